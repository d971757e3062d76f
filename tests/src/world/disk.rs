//! The machines of the world: simulated disks and stores that survive their processes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milonga_layout::{Member, MemberId, RaftDisk, RaftJob, RaftStore};
use milonga_log_units::sim::SimDisk;
use milonga_log_units::{Disk, DiskError, DiskOp, FileName, OpId};
use milonga_node::{DiskCompletion, Guard, Machine, NodeError, OpenDisk, OpenLayout};
use milonga_protocol::SharedEnv;
use tokio::sync::mpsc::UnboundedSender;

use crate::world::executor::{Executor, ProcessId};
use crate::world::rng::Rng;
use crate::world::trace::Moment;

/// Bytes on a disk that is not full.
const CAPACITY: u64 = 1 << 30;
/// Bytes that a disk writes in a millisecond.
const BYTES_PER_MILLI: u64 = 300 << 10;

/// Most nanoseconds that an operation takes: else the rare long one of a slow disk outlasts the fault by a minute.
const LONGEST: u64 = 5_000_000_000;

/// How fast the disks are when nothing in particular happens. Drawn by each seed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskPlan {
    /// Typical nanoseconds of a write that is not synced, and of a read.
    pub access: u64,
    /// Typical nanoseconds of a sync.
    pub sync: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Killed: the system keeps what was written.
    Kill,
    /// Power loss: what was not synced may be gone, torn or there.
    PowerLoss,
}

/// One unit's disk; clones share it.
#[derive(Clone)]
pub struct WorldDisk(Arc<Mutex<DiskState>>);

struct DiskState {
    name: String,
    sim: SimDisk,
    plan: DiskPlan,
    rng: Rng,
    /// When each lane (writes, reads) is free again.
    busy: [Moment; 2],
    /// Operations whose time is over, but which come after others of the same file.
    due: BTreeSet<OpId>,
    /// Synced writes to segments that are under way.
    writes: BTreeSet<OpId>,
    /// Since one of them failed in this run: how many were submitted.
    after_failure: Option<u32>,
    stalled_until: Moment,
    slow: u64,
}

impl WorldDisk {
    /// An empty disk.
    #[must_use]
    pub fn new(seed: u64, name: &str, plan: DiskPlan) -> Self {
        let mut rng = Rng::new(seed, &format!("disk {name}"));
        let state = DiskState {
            name: name.to_owned(),
            sim: SimDisk::new(rng.next()).without_trace(),
            plan,
            rng,
            busy: [Moment::default(); 2],
            due: BTreeSet::new(),
            writes: BTreeSet::new(),
            after_failure: None,
            stalled_until: Moment::default(),
            slow: 1,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of the disk when its process ends. Faults that were set are gone.
    pub fn end(&self, how: End) {
        let mut state = self.lock();
        let seed = state.rng.next();
        state.sim = match how {
            End::Kill => state.sim.kill(seed),
            End::PowerLoss => state.sim.crash(seed),
        };
        state.busy = [Moment::default(); 2];
        state.due.clear();
        state.writes.clear();
        state.after_failure = None;
    }

    /// Synced writes to segments that this run has submitted since one of them failed.
    #[must_use]
    pub fn writes_after_failure(&self) -> u32 {
        self.lock().after_failure.unwrap_or_default()
    }

    /// Sets a fault.
    pub fn with_sim(&self, set: impl FnOnce(&mut SimDisk)) {
        set(&mut self.lock().sim);
    }

    /// Nothing completes before `until`.
    pub fn stall(&self, until: Moment) {
        self.lock().stalled_until = until;
    }

    /// Everything takes `factor` times as long.
    pub fn slow(&self, factor: u64) {
        self.lock().slow = factor.max(1);
    }

    /// Leaves so many bytes free; `None`: as many as at first.
    pub fn set_free(&self, bytes: Option<u64>) {
        self.lock().sim.set_free(bytes.unwrap_or(CAPACITY));
    }

    /// Flips a bit somewhere in the entries of a segment file. Whether there was one.
    pub fn rot(&self) -> bool {
        let mut state = self.lock();
        let files = state.sim.files();
        let written = |(name, bytes): (FileName, Vec<u8>)| {
            let used = bytes.iter().rposition(|b| *b != 0)? + 1;
            (name.starts_with("seg") && used > 8_192).then_some((name, used as u64))
        };
        let segments: Vec<_> = files.into_iter().filter_map(written).collect();
        if segments.is_empty() {
            return false;
        }
        let (name, used) = state.rng.pick(&segments).clone();
        let bit = state.rng.between(4_096 * 8, used * 8 - 1);
        state.sim.flip_bit(&name, bit)
    }

    /// All files as the system would show them.
    #[must_use]
    pub fn files(&self) -> Vec<(FileName, Vec<u8>)> {
        self.lock().sim.files()
    }
}

impl fmt::Debug for WorldDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorldDisk({})", self.lock().name)
    }
}

impl DiskState {
    /// When an operation that is submitted `now` ends.
    fn end_of(&mut self, now: Moment, op: &DiskOp) -> Moment {
        let (lane, typical, bytes) = match op {
            DiskOp::ReadAt { len, .. } => (1, self.plan.access, *len),
            DiskOp::List | DiskOp::Space => (1, self.plan.access, 0),
            DiskOp::WriteAt { sync: false, .. } => (0, self.plan.access, op.bytes()),
            _ => (0, self.plan.sync, op.bytes()),
        };
        let takes = self.rng.long_tailed(typical) + bytes * 1_000_000 / BYTES_PER_MILLI;
        let takes = (takes * self.slow).min(LONGEST);
        let end = self.busy[lane].max(now).plus(takes);
        self.busy[lane] = end;
        end.max(self.stalled_until)
    }

    fn count(&mut self, id: OpId, op: &DiskOp) {
        if let DiskOp::WriteAt {
            name, sync: true, ..
        } = op
            && name.starts_with("segment")
        {
            self.writes.insert(id);
            self.after_failure = self.after_failure.map(|n| n + 1);
        }
    }

    fn ended(&mut self, (id, result): &DiskCompletion) {
        if self.writes.remove(id) && matches!(result, Err(DiskError::Io(_))) {
            self.after_failure.get_or_insert(0);
        }
    }

    /// The time of an operation is over: carries it out, or has it follow those that come first.
    fn finish(&mut self, id: OpId) {
        self.due.insert(id);
        let Self { due, sim, .. } = self;
        let mut before = usize::MAX;
        while due.len() < before {
            before = due.len();
            due.retain(|id| !sim.finish(*id));
        }
    }
}

/// The disk in the hands of one process.
struct Handle {
    disk: WorldDisk,
    executor: Executor,
    process: ProcessId,
    done: UnboundedSender<DiskCompletion>,
}

impl Disk for Handle {
    fn submit(&mut self, id: OpId, op: DiskOp) {
        let now = self.executor.now();
        let mut state = self.disk.lock();
        let end = state.end_of(now, &op);
        state.count(id, &op);
        state.sim.submit(id, op);
        drop(state);
        finish_at(
            end,
            id,
            &self.disk,
            &self.executor,
            self.process,
            &self.done,
        );
    }
}

/// Carries out an operation, later if the disk stalls.
fn finish_at(
    at: Moment,
    id: OpId,
    disk: &WorldDisk,
    executor: &Executor,
    process: ProcessId,
    done: &UnboundedSender<DiskCompletion>,
) {
    let (disk, handle, done) = (disk.clone(), executor.clone(), done.clone());
    executor.schedule(at, process, move || {
        let mut state = disk.lock();
        if state.stalled_until > handle.now() {
            let until = state.stalled_until;
            drop(state);
            finish_at(until, id, &disk, &handle, process, &done);
            return;
        }
        state.finish(id);
        for completion in state.sim.take_completions() {
            state.ended(&completion);
            handle.trace(&Completed(&state.name, &completion));
            // Who submitted it may have stopped.
            let _ = done.send(completion);
        }
    });
}

/// A completion as the trace shows it.
struct Completed<'a>(&'a str, &'a DiskCompletion);

impl std::hash::Hash for Completed<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.0.hash(state);
        match &self.1.1 {
            Ok(milonga_log_units::DiskDone::Read(bytes)) => bytes.hash(state),
            Ok(milonga_log_units::DiskDone::Files(files)) => files.hash(state),
            Ok(milonga_log_units::DiskDone::Space(free)) => free.hash(state),
            Ok(milonga_log_units::DiskDone::Done) => 0_u8.hash(state),
            Err(error) => error.to_string().hash(state),
        }
    }
}

impl fmt::Debug for Completed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk of {}: op {} ", self.0, self.1.0.0)?;
        match &self.1.1 {
            Ok(milonga_log_units::DiskDone::Read(bytes)) => write!(f, "read {} bytes", bytes.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Where one member of the layout keeps the history, with the disk below; clones share it.
#[derive(Clone)]
pub struct WorldStore(Arc<Mutex<StoreState>>);

struct StoreState {
    /// Made when it is first opened: most servers have none.
    store: Option<RaftStore>,
    rng: Rng,
    sync: u64,
    /// When the disk is free again.
    busy: Moment,
    /// Submitted, not yet done, in their order.
    pending: VecDeque<RaftJob>,
    /// Whether the member has made its part of a new layout.
    made: bool,
}

impl WorldStore {
    /// An empty store.
    #[must_use]
    pub fn new(seed: u64, name: &str, plan: &DiskPlan) -> Self {
        Self(Arc::new(Mutex::new(StoreState {
            store: None,
            rng: Rng::new(seed, &format!("layout store {name}")),
            sync: plan.sync,
            busy: Moment::default(),
            pending: VecDeque::new(),
            made: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process ended: what was under way may or may not have become durable, in its order.
    pub fn end(&self) {
        let pending = {
            let mut state = self.lock();
            state.busy = Moment::default();
            std::mem::take(&mut state.pending)
        };
        for job in pending {
            if !self.lock().rng.happens(500_000) {
                return;
            }
            job();
        }
    }

    /// Does the job that was submitted first.
    fn work(&self) {
        // Not under the lock: whoever waits for it may submit the next.
        let job = self.lock().pending.pop_front();
        if let Some(job) = job {
            job();
        }
    }
}

/// The disk below a store, for one run of its process.
struct StoreDisk {
    store: WorldStore,
    executor: Executor,
    process: ProcessId,
}

impl RaftDisk for StoreDisk {
    fn run(&self, job: RaftJob) {
        let at = {
            let mut state = self.store.lock();
            let sync = state.sync;
            let takes = state.rng.long_tailed(sync);
            state.busy = state.busy.max(self.executor.now()).plus(takes);
            state.pending.push_back(job);
            state.busy
        };
        let (store, tracer) = (self.store.clone(), self.executor.clone());
        self.executor.schedule(at, self.process, move || {
            tracer.trace(&"layout store");
            store.work();
        });
    }
}

impl fmt::Debug for WorldStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorldStore({:?})", self.lock().store)
    }
}

/// What one process of the world runs on.
pub(crate) struct WorldMachine {
    pub(crate) executor: Executor,
    pub(crate) process: ProcessId,
    pub(crate) disk: WorldDisk,
    pub(crate) store: WorldStore,
}

impl Machine for WorldMachine {
    fn lock(&self, _directory: &Path) -> Result<Guard, NodeError> {
        Ok(Box::new(()))
    }

    fn disk(
        &self,
        _env: &SharedEnv,
        directory: &Path,
        done: UnboundedSender<DiskCompletion>,
    ) -> Result<OpenDisk, NodeError> {
        let handle = Handle {
            disk: self.disk.clone(),
            executor: self.executor.clone(),
            process: self.process,
            done,
        };
        Ok(OpenDisk {
            path: directory.to_owned(),
            disk: Box::new(handle),
            guard: Box::new(()),
        })
    }

    fn layout(
        &self,
        _directory: &Path,
        _id: MemberId,
        _member: &Member,
        _alone: bool,
    ) -> Result<OpenLayout, NodeError> {
        let mut state = self.store.lock();
        let store = state.store.get_or_insert_with(RaftStore::memory).clone();
        let disk = StoreDisk {
            store: self.store.clone(),
            executor: self.executor.clone(),
            process: self.process,
        };
        Ok(OpenLayout {
            store: store.on(Arc::new(disk)),
            is_new: !state.made,
            guard: Box::new(()),
        })
    }

    fn layout_is_made(&self, _directory: &Path) -> Result<(), NodeError> {
        self.store.lock().made = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn each_operation_ends_when_its_own_time_is_over() {
        let plan = DiskPlan { access: 1, sync: 1 };
        let disk = WorldDisk::new(1, "unit", plan);
        let mut state = disk.lock();
        let create = |name: &str| DiskOp::Create {
            name: name.into(),
            size: 512,
        };
        let write = DiskOp::WriteAt {
            name: "slow".into(),
            offset: 0,
            data: vec![Bytes::from_static(b"late")],
            sync: true,
        };
        for (id, op) in [(1, create("slow")), (2, create("fast")), (3, write)] {
            state.sim.submit(OpId(id), op);
        }
        let mut finish = |id| {
            state.finish(OpId(id));
            let done = state.sim.take_completions();
            done.iter().map(|(id, _)| id.0).collect::<Vec<_>>()
        };
        assert_eq!(finish(2), [2], "not the one that takes longer");
        assert!(finish(3).is_empty(), "the file is not there yet");
        assert_eq!(finish(1), [1, 3]);
    }
}
