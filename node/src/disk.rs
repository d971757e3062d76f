//! The real disk: one directory, blocking calls on threads of its own, completions through a channel.
//!
//! ```text
//!   submit ──┬── write lane:   writes, syncs, renames, removes, small creates, in order
//!            ├── prepare lane: large creates (zero-filling a segment takes long and must not delay a commit)
//!            └── read lane:    reads, listings, free space        ── all ──> completions
//! ```
//!
//! Operations on one name keep their order: what follows a large create of that name goes down its lane too.

mod files;
#[cfg(all(test, milonga_shuttle))]
mod threads;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use milonga_log_units::{Disk, DiskDone, DiskOp, FileName, OpId};
use milonga_protocol::SharedEnv;
use milonga_protocol::sync::atomic::{AtomicBool, Ordering};
use milonga_protocol::sync::thread::{self, JoinHandle};
use milonga_protocol::sync::{Mutex, MutexGuard, Weakness, mpsc, weakened};
use tokio::sync::mpsc::UnboundedSender;

use crate::lock::DirectoryError;
use crate::machine::DiskCompletion as Completion;
use files::Files;

/// Files below this are created in order with the writes.
const LARGE: u64 = 1 << 20;

/// Owns the threads. Dropping it finishes the operation under way on each, abandons the rest, and returns when
/// nothing touches the directory any more.
#[derive(Debug)]
pub(crate) struct FileDisk {
    handle: Option<DiskHandle>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Submits operations; many may.
#[derive(Clone, Debug)]
pub(crate) struct DiskHandle {
    write: mpsc::Sender<Job>,
    prepare: mpsc::Sender<Job>,
    read: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

struct Shared {
    env: SharedEnv,
    files: Files,
    stop: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// How many operations wait on a lane, by the name they touch.
#[derive(Debug, Default)]
struct Waiting {
    write: BTreeMap<FileName, usize>,
    prepare: BTreeMap<FileName, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Write,
    Prepare,
    Read,
}

#[derive(Debug)]
struct Job {
    id: OpId,
    op: DiskOp,
}

impl FileDisk {
    /// Opens `directory`, making it if it is not there. Completions go to `done`, in the order they happen.
    ///
    /// The caller holds the directory's lock and keeps it until this is dropped.
    pub(crate) fn open(
        env: &SharedEnv,
        directory: &Path,
        done: &UnboundedSender<Completion>,
    ) -> Result<Self, DirectoryError> {
        let shared = Arc::new(Shared {
            env: Arc::clone(env),
            files: Files::open(directory)?,
            stop: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        let mut threads = Vec::new();
        let mut lane = |lane, name: &str| {
            let (sender, jobs) = mpsc::channel();
            let (shared, done) = (Arc::clone(&shared), done.clone());
            let thread = thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || shared.serve(lane, &jobs, &done))
                .map_err(DirectoryError::io(directory, "starting a disk thread"))?;
            threads.push(thread);
            Ok(sender)
        };
        let write = lane(Lane::Write, "milonga-write")?;
        let prepare = lane(Lane::Prepare, "milonga-prepare")?;
        let read = lane(Lane::Read, "milonga-read")?;
        let handle = DiskHandle {
            write,
            prepare,
            read,
            shared: Arc::clone(&shared),
        };
        Ok(Self {
            handle: Some(handle),
            shared,
            threads,
        })
    }

    /// A way to submit operations.
    pub(crate) fn handle(&self) -> DiskHandle {
        self.handle.clone().expect("taken only by drop")
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let Some(handle) = self.handle.take() else {
            return;
        };
        // Other handles may live on in a task that is not dropped yet: wake the lanes instead of waiting for those.
        for lane in [&handle.write, &handle.prepare, &handle.read] {
            let wake = Job {
                id: OpId(u64::MAX),
                op: DiskOp::List,
            };
            if !weakened(Weakness::StopByFlag) {
                let _ = lane.send(wake);
            }
        }
        drop(handle);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

impl Disk for DiskHandle {
    fn submit(&mut self, id: OpId, op: DiskOp) {
        let lane = self.shared.route(&op);
        let sender = match lane {
            Lane::Write => &self.write,
            Lane::Prepare => &self.prepare,
            Lane::Read => &self.read,
        };
        // A lane that is gone was stopped: nobody waits for the completion.
        let _ = sender.send(Job { id, op });
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn route(&self, op: &DiskOp) -> Lane {
        let names = touched(op);
        if names.is_empty() {
            return Lane::Read;
        }
        let mut waiting = self.waiting();
        let on = |lane: &BTreeMap<FileName, usize>| names.iter().any(|n| lane.contains_key(*n));
        let large = matches!(op, DiskOp::Create { size, .. } if *size >= LARGE);
        let prepare = if weakened(Weakness::LaneByKind) {
            large
        } else {
            on(&waiting.prepare) || (large && !on(&waiting.write))
        };
        let counts = if prepare {
            &mut waiting.prepare
        } else {
            &mut waiting.write
        };
        for name in names {
            *counts.entry(name.clone()).or_insert(0) += 1;
        }
        if prepare { Lane::Prepare } else { Lane::Write }
    }

    fn done(&self, lane: Lane, op: &DiskOp) {
        let mut waiting = self.waiting();
        let counts = match lane {
            Lane::Write => &mut waiting.write,
            Lane::Prepare => &mut waiting.prepare,
            Lane::Read => return,
        };
        for name in touched(op) {
            match counts.get_mut(name) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    counts.remove(name);
                }
            }
        }
    }

    fn serve(&self, lane: Lane, jobs: &mpsc::Receiver<Job>, done: &UnboundedSender<Completion>) {
        while let Ok(Job { id, op }) = jobs.recv() {
            if weakened(Weakness::EarlyCompletion) && lane == Lane::Write {
                let _ = done.send((id, Ok(DiskDone::Done)));
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let began = self.env.now();
            let result = self.files.run(&op, &self.stop);
            let took = self.env.now().since(began).as_secs_f64();
            metrics::histogram!("milonga_disk_seconds", "op" => kind(&op)).record(took);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = &result {
                tracing::warn!(%error, ?lane, "disk operation failed");
            }
            self.done(lane, &op);
            if weakened(Weakness::EarlyCompletion) && lane == Lane::Write {
                continue;
            }
            if done.send((id, result)).is_err() {
                return;
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

const fn kind(op: &DiskOp) -> &'static str {
    match op {
        DiskOp::Create { .. } => "create",
        DiskOp::WriteAt { sync: true, .. } => "write_sync",
        DiskOp::WriteAt { sync: false, .. } => "write",
        DiskOp::ReadAt { .. } => "read",
        DiskOp::Sync { .. } => "sync",
        DiskOp::Rename { .. } => "rename",
        DiskOp::Remove { .. } => "remove",
        DiskOp::List => "list",
        DiskOp::Space => "space",
    }
}

/// The names an operation changes: those need order.
fn touched(op: &DiskOp) -> Vec<&FileName> {
    match op {
        DiskOp::Create { name, .. }
        | DiskOp::WriteAt { name, .. }
        | DiskOp::Sync { name }
        | DiskOp::Remove { name } => vec![name],
        DiskOp::Rename { from, to } => vec![from, to],
        DiskOp::ReadAt { .. } | DiskOp::List | DiskOp::Space => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use milonga_log_units::DiskError;
    use milonga_transport::TokioEnv;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::tests::SmallDisk;

    struct Rig {
        _runtime: tokio::runtime::Runtime,
        disk: FileDisk,
        done: UnboundedReceiver<Completion>,
        next: u64,
    }

    impl Rig {
        fn open(path: &Path) -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_time().build().unwrap();
            let env: SharedEnv = runtime.block_on(async { TokioEnv::new() });
            let (sender, done) = unbounded_channel();
            let disk = FileDisk::open(&env, path, &sender).unwrap();
            Self {
                _runtime: runtime,
                disk,
                done,
                next: 0,
            }
        }

        fn run(&mut self, op: DiskOp) -> Result<DiskDone, DiskError> {
            self.next += 1;
            self.disk.handle().submit(OpId(self.next), op);
            let (id, result) = self.done.blocking_recv().unwrap();
            assert_eq!(id, OpId(self.next));
            result
        }
    }

    fn create(name: &str, size: u64) -> DiskOp {
        DiskOp::Create {
            name: name.into(),
            size,
        }
    }

    fn write(name: &str, offset: u64, data: &[&'static str], sync: bool) -> DiskOp {
        DiskOp::WriteAt {
            name: name.into(),
            offset,
            data: data
                .iter()
                .map(|d| Bytes::from_static(d.as_bytes()))
                .collect(),
            sync,
        }
    }

    fn read(name: &str, offset: u64, len: u64) -> DiskOp {
        DiskOp::ReadAt {
            name: name.into(),
            offset,
            len,
        }
    }

    #[test]
    fn what_was_written_is_read_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        assert_eq!(rig.run(create("a", 64)), Ok(DiskDone::Done));
        assert_eq!(
            rig.run(write("a", 3, &["tan", "", "go"], true)),
            Ok(DiskDone::Done)
        );
        drop(rig);
        let mut rig = Rig::open(dir.path());
        let got = rig.run(read("a", 2, 7));
        assert_eq!(got, Ok(DiskDone::Read(Bytes::from_static(b"\0tango\0"))));
        let Ok(DiskDone::Read(short)) = rig.run(read("a", 60, 100)) else {
            panic!("reads end at the end of the file");
        };
        assert_eq!(short.len(), 4);
        assert_eq!(
            rig.run(DiskOp::List),
            Ok(DiskDone::Files(vec![("a".into(), 64)]))
        );
        assert!(matches!(rig.run(DiskOp::Space), Ok(DiskDone::Space(n)) if n > 0));
    }

    #[test]
    fn renaming_replaces_also_for_who_read_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        for (name, text) in [("old", "one"), ("new", "two")] {
            rig.run(create(name, 3)).unwrap();
            rig.run(write(name, 0, &[text], false)).unwrap();
        }
        assert_eq!(rig.run(read("old", 0, 3)), Ok(DiskDone::Read("one".into())));
        let rename = DiskOp::Rename {
            from: "new".into(),
            to: "old".into(),
        };
        assert_eq!(rig.run(rename), Ok(DiskDone::Done));
        assert_eq!(rig.run(read("old", 0, 3)), Ok(DiskDone::Read("two".into())));
        let gone = DiskError::NotFound("new".into());
        assert_eq!(rig.run(read("new", 0, 3)), Err(gone));
        let remove = DiskOp::Remove { name: "old".into() };
        assert_eq!(rig.run(remove), Ok(DiskDone::Done));
        assert_eq!(rig.run(DiskOp::List), Ok(DiskDone::Files(vec![])));
    }

    #[test]
    fn operations_on_one_name_keep_their_order_over_lanes() {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        let mut disk = rig.disk.handle();
        for round in 0..20 {
            let base = round * 4;
            disk.submit(OpId(base), create("big", 8 << 20));
            disk.submit(OpId(base + 1), write("big", 0, &["x"], true));
            disk.submit(OpId(base + 2), DiskOp::Sync { name: "big".into() });
            let from = "big".to_owned();
            let to = "segment".to_owned();
            disk.submit(OpId(base + 3), DiskOp::Rename { from, to });
            for n in 0..4 {
                let (id, result) = rig.done.blocking_recv().unwrap();
                assert_eq!((id, result), (OpId(base + n), Ok(DiskDone::Done)));
            }
        }
    }

    #[test]
    fn names_cannot_leave_the_directory_and_errors_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        for name in ["../x", "a/b", "", "..", "LOCK"] {
            assert!(matches!(rig.run(create(name, 1)), Err(DiskError::Io(_))));
        }
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let Err(DiskError::Io(text)) = rig.run(write("sub", 0, &["x"], false)) else {
            panic!("a directory cannot be written");
        };
        assert!(text.contains("/sub"), "{text}");
    }

    #[test]
    fn dropping_stops_the_threads_at_once_even_with_other_handles() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let rig = Rig::open(dir.path());
            let mut other = rig.disk.handle();
            for n in 0..10 {
                other.submit(OpId(n), create(&format!("f{n}"), 64 << 20));
            }
            drop(rig);
            std::fs::remove_dir_all(dir.path()).unwrap();
            other.submit(OpId(99), DiskOp::List);
            assert!(
                !dir.path().exists(),
                "nothing touches the directory any more"
            );
        }
    }

    #[test]
    fn a_full_disk_is_told_apart_and_goes_on_when_space_is_back() {
        let Some(small) = SmallDisk::mount("4m") else {
            println!("skipped: cannot mount a small tmpfs here (needs root)");
            return;
        };
        let mut rig = Rig::open(small.path());
        assert_eq!(rig.run(create("a", 2 << 20)), Ok(DiskDone::Done));
        assert_eq!(rig.run(create("b", 3 << 20)), Err(DiskError::Full));
        let only_a = DiskDone::Files(vec![("a".into(), 2 << 20)]);
        assert_eq!(
            rig.run(DiskOp::List),
            Ok(only_a),
            "a failed create leaves nothing"
        );
        let Ok(DiskDone::Space(free)) = rig.run(DiskOp::Space) else {
            panic!("free space is known");
        };
        assert!((1 << 20..=2 << 20).contains(&free), "{free}");
        assert_eq!(rig.run(write("a", 0, &["x"], true)), Ok(DiskDone::Done));
        let remove = DiskOp::Remove { name: "a".into() };
        assert_eq!(rig.run(remove), Ok(DiskDone::Done));
        assert_eq!(rig.run(create("b", 3 << 20)), Ok(DiskDone::Done));
    }

    #[test]
    fn what_can_only_be_read_is_read() {
        let Some(small) = SmallDisk::mount("4m") else {
            println!("skipped: cannot mount a small tmpfs here (needs root)");
            return;
        };
        std::fs::write(small.path().join("a"), "what it holds").unwrap();
        let mut rig = Rig::open(small.path());
        small.make_read_only();
        let read = DiskOp::ReadAt {
            name: "a".into(),
            offset: 5,
            len: 2,
        };
        assert_eq!(rig.run(read), Ok(DiskDone::Read("it".into())));
        let written = rig.run(write("a", 0, &["x"], true));
        assert!(matches!(written, Err(DiskError::Io(_))), "{written:?}");
    }
}
