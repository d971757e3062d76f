//! The unit: events in, effects out.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use milonga_protocol::messages::{CallId, Refusal, Response, UnitHello, UnitRequest, UnitResponse};
use milonga_protocol::{ClusterId, Epoch, Position, Time};

use crate::config::{OpenError, UnitConfig};
use crate::disk::{DiskDone, DiskError, DiskOp, FileName, OpId};
use crate::doubts::Doubts;
use crate::epochs::Epochs;
use crate::files::Files;
use crate::format::{Owner, Superblock};
use crate::index::Index;
use crate::pace::Pace;
use crate::reader::Reader;
use crate::rebuild::Recovered;
use crate::recovery::{Recovery, Step};
use crate::scrub::Scrub;
use crate::state_file::StateFile;
use crate::streams::Parked;
use crate::writer::Writer;

/// What the host is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum UnitEffect {
    /// Submit the operation, and call [`Unit::disk_done`] with its result.
    Disk(OpId, DiskOp),
    /// Answer a call. The bytes are the message's body.
    Reply(CallId, Response, Bytes),
}

/// A log unit: write-once storage of positions on a [`Disk`](crate::Disk). A pure state machine.
///
/// The host feeds it with [`handle`](Self::handle), [`disk_done`](Self::disk_done) and
/// [`handle_time`](Self::handle_time), in any order, and after each turn (of one or many of these) carries out what
/// [`poll_effect`](Self::poll_effect) gives until that gives nothing. Batches are formed while polling: whatever was
/// handed in before the first poll is committed together.
///
/// Every call is answered exactly once, unless the unit is dropped before. An answer that says `Durable`, `Filled`,
/// `Trimmed`, or `Done` to an `Open` is given only after the disk has confirmed a synced write of what it says.
#[derive(Debug)]
pub struct Unit {
    pub(crate) config: UnitConfig,
    pub(crate) seed: u64,
    phase: Phase,
    pub(crate) superblock: Superblock,
    pub(crate) state: StateFile,
    pub(crate) epochs: Epochs,
    pub(crate) index: Index,
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
    pub(crate) doubts: Doubts,
    pub(crate) files: Files,
    pub(crate) scrub: Scrub,
    pub(crate) parked: Vec<Parked>,
    /// Settled mark: everything below is settled on all replicas of this unit's chain.
    pub(crate) mark: Position,
    /// The first failure of the disk.
    pub(crate) poison: Option<String>,
    pub(crate) counters: Counters,
    pub(crate) pace: Pace,
    pub(crate) now: Time,
    effects: VecDeque<UnitEffect>,
    ops: BTreeMap<OpId, Op>,
    next_op: u64,
}

#[derive(Debug)]
enum Phase {
    Recovering(Box<Recovery>),
    Failed(OpenError),
    Ready,
}

/// What an operation under way is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Recovery,
    Batch,
    Footer,
    CreateSegment,
    SegmentHeader,
    State(u8),
    Superblock(u8),
    Remove,
    Space,
    Read(u64),
}

/// For `status`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) batches: u64,
    pub(crate) records: u64,
    pub(crate) lost_on_read: u64,
    pub(crate) lost_on_scrub: u64,
    /// Lost, and given back by another replica.
    pub(crate) repaired: u64,
    pub(crate) disk_reads: u64,
    pub(crate) cut: Option<String>,
}

impl Unit {
    /// Starts on the directory of the disk that carries out its effects. `generation_seed`: random, new at each
    /// start.
    #[must_use]
    pub fn start(config: UnitConfig, generation_seed: u64) -> Self {
        let (recovery, first) = Recovery::start(config.clone());
        let superblock = Superblock {
            cluster: ClusterId::default(),
            unit: config.new_id,
            name: config.name.as_str().to_owned(),
        };
        let mut unit = Self {
            reader: Reader::new(config.cache_bytes),
            config,
            seed: generation_seed,
            phase: Phase::Recovering(Box::new(recovery)),
            superblock,
            state: StateFile::default(),
            epochs: Epochs::default(),
            index: Index::default(),
            writer: Writer::default(),
            files: Files::default(),
            doubts: Doubts::default(),
            scrub: Scrub::default(),
            parked: Vec::new(),
            mark: Position::ZERO,
            poison: None,
            counters: Counters::default(),
            pace: Pace::default(),
            now: Time::default(),
            effects: VecDeque::new(),
            ops: BTreeMap::new(),
            next_op: 0,
        };
        unit.submit(Op::Recovery, first);
        unit
    }

    /// What the unit says of itself. `None` while it reads its directory; an error if that cannot be opened.
    #[must_use]
    pub fn hello(&self) -> Option<Result<UnitHello, OpenError>> {
        match &self.phase {
            Phase::Recovering(_) => None,
            Phase::Failed(error) => Some(Err(error.clone())),
            Phase::Ready => {
                let cluster = self.cluster();
                Some(Ok(UnitHello {
                    id: self.superblock.unit,
                    cluster,
                    persisted: self.state.durable.epoch,
                    serving: self.serving().map_or(Epoch::NONE, |s| s.layout.epoch),
                    empty: self.state.durable.epoch == Epoch::NONE
                        && self.index.high == Position::ZERO,
                    poisoned: self.poison.is_some(),
                    damaged: self.index.is_damaged(),
                    disk_micros: self.pace.typical(),
                }))
            }
        }
    }

    /// Takes a request; `body` holds the entries it carries. The answer comes out of
    /// [`poll_effect`](Self::poll_effect), now or later.
    pub fn handle(&mut self, now: Time, call: CallId, request: UnitRequest, body: Bytes) {
        self.now = self.now.max(now);
        match &self.phase {
            Phase::Recovering(_) => return self.refuse(call, Refusal::NotOpen),
            Phase::Failed(error) => {
                let why = error.to_string();
                return self.refuse(call, Refusal::Poisoned { why });
            }
            Phase::Ready => {}
        }
        match request {
            UnitRequest::Write {
                epoch,
                settled,
                items,
            } => self.write(call, epoch, settled, items, body),
            UnitRequest::Fill { epoch, from, to } => self.fill(call, epoch, from, to),
            UnitRequest::Read {
                epoch,
                settled,
                positions,
            } => self.read(call, epoch, settled, positions),
            UnitRequest::ReadStreams {
                epoch,
                streams,
                from,
                to,
                max_bytes,
                wait_ms,
            } => {
                let read = crate::streams::StreamsRead {
                    epoch,
                    streams,
                    from,
                    to,
                    max_bytes,
                    as_of: 0,
                };
                self.read_streams(call, read, wait_ms);
            }
            UnitRequest::Confirm { epoch } => self.confirm(call, epoch),
            UnitRequest::Trim { epoch, below } => self.trim(call, epoch, below),
            UnitRequest::Settled { epoch, below } => self.settled(call, epoch, below),
            UnitRequest::Told { epoch, settled } => self.told_of_last(call, epoch, settled),
            UnitRequest::Seal { epoch } => self.seal(call, epoch),
            UnitRequest::Collect {
                epoch,
                after,
                below,
            } => self.collect(call, epoch, after, below),
            UnitRequest::Open {
                layout,
                persisted,
                starts,
            } => self.open(call, layout, persisted, &starts),
            UnitRequest::Ends { epoch, streams } => self.ends(call, epoch, &streams),
            UnitRequest::Repair {
                epoch,
                settled,
                items,
            } => self.repair(call, epoch, settled, items, body),
            UnitRequest::Rejoin {
                cluster,
                epoch,
                below,
            } => self.rejoin(call, cluster, epoch, below),
            UnitRequest::Lacking { epoch, from, limit } => self.lacking(call, epoch, from, limit),
        }
    }

    /// Takes the result of an operation that [`poll_effect`](Self::poll_effect) asked for.
    pub fn disk_done(&mut self, now: Time, op: OpId, result: Result<DiskDone, DiskError>) {
        self.now = self.now.max(now);
        let Some(what) = self.ops.remove(&op) else {
            return;
        };
        self.pace.ended(self.now, op);
        self.ended(&what, op, &result);
        match what {
            Op::Recovery => self.recovery_done(result),
            Op::Batch => self.batch_done(result),
            Op::Footer => self.footer_done(result),
            Op::CreateSegment => self.segment_created(result),
            Op::SegmentHeader => self.segment_ready(result),
            Op::State(slot) => self.state_done(slot, result),
            Op::Superblock(step) => self.superblock_done(step, result),
            Op::Remove => self.ask_space(),
            Op::Space => self.space_done(result),
            Op::Read(chunk) => self.chunk_done(chunk, result),
        }
    }

    /// Lets waits pass and looks at a full disk again.
    pub fn handle_time(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.expire_parked();
        self.recheck_space();
        self.pace.look(self.now);
        if matches!(self.phase, Phase::Ready) {
            self.go_on_scrubbing();
        }
    }

    /// When [`handle_time`](Self::handle_time) is to be called at the latest.
    #[must_use]
    pub fn next_time(&self) -> Option<Time> {
        let parked = self.parked.iter().map(|p| p.deadline).min();
        let times = [
            parked,
            self.files.recheck_at,
            self.scrub_at(),
            self.pace.look_at(),
        ];
        times.into_iter().flatten().min()
    }

    /// The next thing to do for the host. `None`: nothing until the next event.
    pub fn poll_effect(&mut self) -> Option<UnitEffect> {
        if self.effects.is_empty() {
            self.go_on();
        }
        self.effects.pop_front()
    }

    /// Begins whatever can begin.
    fn go_on(&mut self) {
        if !matches!(self.phase, Phase::Ready) {
            return;
        }
        self.go_on_rejoining();
        self.go_on_opening();
        self.prepare_segment();
        self.pump();
        self.write_state();
        self.answer_seals();
    }

    // ------------------------------------------------------------------------------------------ for the parts

    pub(crate) fn submit(&mut self, what: Op, op: DiskOp) {
        self.next_op += 1;
        let id = OpId(self.next_op);
        if what == Op::Batch {
            self.pace.began(self.now, id, op.bytes());
        }
        self.doubts.submitted(&what, id);
        self.ops.insert(id, what);
        self.effects.push_back(UnitEffect::Disk(id, op));
    }

    /// The operation that was submitted last.
    pub(crate) const fn last_op(&self) -> OpId {
        OpId(self.next_op)
    }

    pub(crate) fn reply(&mut self, call: CallId, response: UnitResponse, body: Bytes) {
        let response = Response::Unit(response);
        self.effects
            .push_back(UnitEffect::Reply(call, response, body));
    }

    pub(crate) fn refuse(&mut self, call: CallId, refusal: Refusal) {
        let response = Response::Refused(refusal);
        self.effects
            .push_back(UnitEffect::Reply(call, response, Bytes::new()));
    }

    /// The cluster, once known.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        Some(self.superblock.cluster).filter(|c| *c != ClusterId::default())
    }

    pub(crate) const fn owner(&self) -> Owner {
        Owner {
            cluster: self.superblock.cluster,
            unit: self.superblock.unit,
        }
    }

    /// Everything below was trimmed, durably.
    pub(crate) const fn trimmed(&self) -> Position {
        self.state.durable.trim
    }

    pub(crate) fn remove_file(&mut self, name: FileName) {
        self.submit(Op::Remove, DiskOp::Remove { name });
    }

    // ---------------------------------------------------------------------------------------------- recovery

    fn recovery_done(&mut self, result: Result<DiskDone, DiskError>) {
        let Phase::Recovering(recovery) = &mut self.phase else {
            return;
        };
        match recovery.done(result) {
            Step::Do(op) => self.submit(Op::Recovery, op),
            Step::Failed(error) => {
                tracing::error!(%error, "the unit's directory cannot be opened");
                self.phase = Phase::Failed(error);
            }
            Step::Ready(recovered) => self.recovered(*recovered),
        }
    }

    fn recovered(&mut self, recovered: Recovered) {
        if let Some(superblock) = recovered.superblock {
            self.superblock = superblock;
        }
        self.state = StateFile::new(recovered.state);
        self.index = recovered.index;
        (self.writer.end, self.writer.size) = recovered.active_end;
        self.writer.next_batch = recovered.next_batch.max(1);
        self.writer.last_batch = recovered.last_batch;
        self.files = Files::new(recovered.prepared, recovered.next_segment);
        self.mark = recovered.mark;
        self.counters.cut = recovered.cut;
        self.poison = recovered.poison;
        self.phase = Phase::Ready;
        for name in recovered.leftovers {
            self.remove_file(name);
        }
        self.ask_space();
        self.begin_scrubbing();
        if let Some(cut) = &self.counters.cut {
            tracing::warn!(%cut, "cut a torn tail");
        }
    }
}
