//! The log contract in memory: for objects, doctests and property tests, and as the model that others are compared to.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::entry::{BackPointers, Entry, ListEnd, StreamLink};
use crate::env::BoxFuture;
use crate::ids::{EntryId, Epoch, Position, StreamId, WriterId};
use crate::limits::Limits;
use crate::log::{
    AppendError, Appended, Log, LogError, NewEntry, ReadAnswer, SharedLog, StreamPart, StreamRead,
    Tail, TailOf, Target, Written,
};

/// A log in memory; clones and handles share it. An append is decided as soon as it is polled.
///
/// For tests it can have holes ([`Self::take_hole`]), lose positions ([`Self::lose`]), and hold calls back or fail
/// appends ([`Self::set_gate`], [`Self::set_faults`]). It has no clock: [`Log::wait`] returns only when the log
/// grew, and with [`Self::fill_holes`] off a reader waits for a hole until somebody decides it.
///
/// ```
/// use milonga_protocol::{Log, MemoryLog, NewEntry, ReadAnswer, StreamId, TailOf};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// let log = MemoryLog::single();
/// let appended = log.append(NewEntry::new([StreamId::raw(1)], "tango")).await.unwrap();
/// let ReadAnswer::Data(entry) = log.read(vec![appended.position]).await.unwrap().remove(0) else {
///     panic!("just written");
/// };
/// assert_eq!(entry.payload, "tango");
/// assert_eq!(log.tail(TailOf::Log).await.unwrap().next, appended.position.next());
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryLog(Arc<Shared>);

/// Where a call is held back by a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// An append that has not taken effect yet.
    BeforeAppend,
    /// An append that has taken effect and not answered yet.
    AfterAppend,
    /// A tail check before it looks.
    BeforeTail,
    /// A tail check that has looked and not answered yet.
    AfterTail,
    /// A read, or a read of streams, before it looks.
    BeforeRead,
}

/// What a test makes of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AppendFault {
    /// It succeeds.
    None,
    /// It is written, but the caller hears [`AppendError::OutcomeUnknown`].
    UnknownWritten,
    /// It is not written, its position becomes junk, and the caller hears [`AppendError::OutcomeUnknown`].
    UnknownLost,
    /// It is not written and the caller hears this.
    Refused(AppendError),
}

/// Holds calls back: the call goes on when the returned future ends.
pub type GateFn = dyn Fn(Gate) -> BoxFuture<'static, ()> + Send + Sync;
/// Decides what becomes of an append.
pub type FaultFn = dyn Fn(&NewEntry) -> AppendFault + Send + Sync;

struct Shared {
    state: Mutex<State>,
    /// Notified whenever a position is granted or decided.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// What the positions from `trimmed` on hold; the end is the tail.
    slots: VecDeque<Slot>,
    trimmed: Position,
    heads: BTreeMap<StreamId, BackPointers>,
    sequences: BTreeMap<WriterId, u64>,
    limits: Limits,
    keep_holes: bool,
    gate: Option<Arc<GateFn>>,
    faults: Option<Arc<FaultFn>>,
}

enum Slot {
    /// Granted with these links.
    Hole(Vec<StreamLink>),
    Data(Entry),
    Junk,
    Lost,
}

impl MemoryLog {
    /// An empty log with default limits, whose readers fill holes at once.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// One handle of a new log.
    #[must_use]
    pub fn single() -> SharedLog {
        Self::new().handle(WriterId(1))
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.0.lock().limits = limits;
        self
    }

    /// Whether a reader that meets a hole fills it at once (the default), or waits until somebody else decides it.
    #[must_use]
    pub fn fill_holes(self, fill: bool) -> Self {
        self.0.lock().keep_holes = !fill;
        self
    }

    /// Holds calls back from now on (`None`: no longer).
    pub fn set_gate(&self, gate: Option<Arc<GateFn>>) {
        self.0.lock().gate = gate;
    }

    /// Fails appends from now on (`None`: no longer).
    pub fn set_faults(&self, faults: Option<Arc<FaultFn>>) {
        self.0.lock().faults = faults;
    }

    /// A handle that writes as `writer`.
    #[must_use]
    pub fn handle(&self, writer: WriterId) -> SharedLog {
        Arc::new(Handle {
            shared: Arc::clone(&self.0),
            writer,
        })
    }

    /// Grants a position that nobody writes, as if its writer had died.
    #[must_use]
    pub fn take_hole(&self, streams: &[StreamId]) -> Position {
        let mut state = self.0.lock();
        let (position, links) = state.grant(streams);
        state.slots.push_back(Slot::Hole(links));
        drop(state);
        self.0.changed.notify_waiters();
        position
    }

    /// Writes the hole at `position` for the streams it was taken for, as a late `writer`.
    /// `None` if it was decided before: then nothing is written.
    pub fn write_hole(
        &self,
        position: Position,
        writer: WriterId,
        payload: impl Into<Bytes>,
    ) -> Option<Appended> {
        let mut state = self.0.lock();
        let id = state.next_id(writer);
        let slot = state.slot_mut(position)?;
        let Slot::Hole(links) = slot else {
            return None;
        };
        *slot = Slot::Data(Entry {
            id,
            links: std::mem::take(links),
            payload: payload.into(),
        });
        drop(state);
        self.0.changed.notify_waiters();
        Some(Appended { position, id })
    }

    /// Damages `position` for good: reads answer `Lost`, and reads of any stream stop there, because a reader
    /// cannot know whose it was. `false` if nothing is there.
    pub fn lose(&self, position: Position) -> bool {
        let mut state = self.0.lock();
        let Some(slot) = state.slot_mut(position) else {
            return false;
        };
        *slot = Slot::Lost;
        drop(state);
        self.0.changed.notify_waiters();
        true
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        write!(f, "MemoryLog({}..{})", state.trimmed, state.next())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pass(&self, gate: Gate) {
        let hook = self.lock().gate.clone();
        if let Some(hook) = hook {
            hook(gate).await;
        }
    }
}

impl State {
    fn next(&self) -> Position {
        self.trimmed.plus(self.slots.len() as u64)
    }

    fn index(&self, position: Position) -> Option<usize> {
        usize::try_from(position.0.checked_sub(self.trimmed.0)?).ok()
    }

    fn slot(&self, position: Position) -> Option<&Slot> {
        self.slots.get(self.index(position)?)
    }

    fn slot_mut(&mut self, position: Position) -> Option<&mut Slot> {
        let index = self.index(position)?;
        self.slots.get_mut(index)
    }

    fn next_id(&mut self, writer: WriterId) -> EntryId {
        let sequence = self.sequences.entry(writer).or_insert(0);
        *sequence += 1;
        EntryId {
            writer,
            sequence: *sequence,
        }
    }

    /// The stream's last positions, as a sequencer that knows the trim mark gives them.
    fn head(&self, stream: StreamId) -> BackPointers {
        let Some(list) = self.heads.get(&stream) else {
            return if self.trimmed == Position::ZERO {
                BackPointers::EMPTY
            } else {
                BackPointers::none(ListEnd::BelowTrim)
            };
        };
        let kept = list.positions().iter().copied();
        let kept = kept.take_while(|position| *position >= self.trimmed);
        if list.positions().last().is_some_and(|p| *p < self.trimmed) {
            BackPointers::new(kept, ListEnd::BelowTrim)
        } else {
            *list
        }
    }

    /// The end of what is written below `end`.
    fn written_end(&self, end: Position) -> Position {
        let mut end = end;
        while end > self.trimmed && matches!(self.slot(end.minus(1)), Some(Slot::Hole(_))) {
            end = end.minus(1);
        }
        end
    }

    /// The end of what is written of a stream, as far as its last positions tell.
    fn stream_end(&self, tail: &Tail, list: &BackPointers) -> Position {
        let is_hole = |p: &&Position| matches!(self.slot(**p), Some(Slot::Hole(_)));
        match list.positions().iter().find(|p| !is_hole(p)) {
            Some(written) => written.next(),
            // All are holes: what is older lies below the oldest of them.
            None => list
                .positions()
                .last()
                .map_or_else(|| tail.granted_end(list), |p| *p),
        }
    }

    fn grant(&mut self, streams: &[StreamId]) -> (Position, Vec<StreamLink>) {
        let position = self.next();
        let links = streams.iter().map(|&stream| StreamLink {
            stream,
            back: self.head(stream),
        });
        let links: Vec<_> = links.collect();
        for link in &links {
            let mut list = link.back;
            list.push(position);
            self.heads.insert(link.stream, list);
        }
        (position, links)
    }

    fn check(&self, entry: &NewEntry) -> Result<(), AppendError> {
        let (size, limit) = (entry.payload.len(), self.limits.entry_bytes as usize);
        if size > limit {
            return Err(AppendError::TooLarge { size, limit });
        }
        let limit = self.limits.streams_per_entry as usize;
        let mut distinct = entry.streams.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if entry.streams.len() > limit || distinct.len() < entry.streams.len() {
            let streams = entry.streams.len();
            return Err(AppendError::Streams { streams, limit });
        }
        Ok(())
    }

    fn append(&mut self, writer: WriterId, entry: NewEntry) -> Result<Appended, AppendError> {
        self.check(&entry)?;
        let fault = self
            .faults
            .as_ref()
            .map_or(AppendFault::None, |faults| faults(&entry));
        if let AppendFault::Refused(error) = fault {
            return Err(error);
        }
        let id = self.next_id(writer);
        let (position, links) = self.grant(&entry.streams);
        let payload = entry.payload;
        self.slots.push_back(match fault {
            AppendFault::UnknownLost => Slot::Junk,
            _ => Slot::Data(Entry { id, links, payload }),
        });
        match fault {
            AppendFault::None => Ok(Appended { position, id }),
            _ => Err(AppendError::OutcomeUnknown {
                id,
                what: "a fault was asked for".into(),
            }),
        }
    }

    fn tail(&self, of: &TailOf) -> Tail {
        let streams = match of {
            TailOf::Log => Vec::new(),
            TailOf::Streams(streams) => streams.iter().map(|s| self.head(*s)).collect(),
        };
        let mut tail = Tail::new(EPOCH, self.next(), self.trimmed, streams);
        tail.written = Some(Written {
            log: self.written_end(self.next()),
            streams: tail
                .streams
                .iter()
                .map(|list| self.stream_end(&tail, list))
                .collect(),
        });
        tail
    }

    fn read(&self, position: Position) -> ReadAnswer {
        if position < self.trimmed {
            return ReadAnswer::Trimmed;
        }
        match self.slot(position) {
            None | Some(Slot::Hole(_)) => ReadAnswer::Unwritten,
            Some(Slot::Data(entry)) => ReadAnswer::Data(entry.clone()),
            Some(Slot::Junk) => ReadAnswer::Junk,
            Some(Slot::Lost) => ReadAnswer::Lost,
        }
    }

    /// The next part, or `None` if a hole comes first.
    fn part(&self, read: &StreamRead) -> Result<Option<StreamPart>, LogError> {
        if read.from < self.trimmed {
            return Err(LogError::Trimmed {
                below: self.trimmed,
                from: read.from,
            });
        }
        // What was not granted needs no waiting for: a target above the tail is lowered, like one of an ended epoch.
        let target = Target {
            epoch: EPOCH,
            to: read.target.to.min(self.next()),
        };
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, read.from);
        while at < target.to && bytes < read.max_bytes.max(1) {
            match self.slot(at) {
                Some(Slot::Data(entry)) if entry.streams().any(|s| read.streams.contains(&s)) => {
                    bytes += entry.payload.len().max(1);
                    entries.push((at, entry.clone()));
                }
                Some(Slot::Data(_) | Slot::Junk) => {}
                Some(Slot::Lost) if at == read.from => {
                    return Err(LogError::Lost { position: at });
                }
                Some(Slot::Hole(_)) if at == read.from => return Ok(None),
                Some(Slot::Lost | Slot::Hole(_)) | None => break,
            }
            at = at.next();
        }
        Ok(Some(StreamPart {
            entries,
            complete: at,
            target,
        }))
    }

    fn settle(&mut self, from: Position, to: Position) {
        let (from, to) = (from.max(self.trimmed), to.min(self.next()));
        let mut at = from;
        while at < to {
            if let Some(slot @ Slot::Hole(_)) = self.slot_mut(at) {
                *slot = Slot::Junk;
            }
            at = at.next();
        }
    }

    fn trim(&mut self, below: Position) -> Position {
        while self.trimmed < below && !matches!(self.slots.front(), None | Some(Slot::Hole(_))) {
            self.slots.pop_front();
            self.trimmed = self.trimmed.next();
        }
        self.trimmed
    }

    /// Whether a stream (any at all, if none is named) has a position at or above `from`.
    fn grew(&self, streams: &[StreamId], from: Position) -> bool {
        if streams.is_empty() {
            return self.next() > from;
        }
        let last = |stream| self.heads.get(stream).and_then(BackPointers::last);
        streams
            .iter()
            .any(|stream| last(stream).is_some_and(|p| p >= from))
    }
}

/// A memory log knows one epoch only.
const EPOCH: Epoch = Epoch(1);

struct Handle {
    shared: Arc<Shared>,
    writer: WriterId,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryLog({:?})", self.writer)
    }
}

impl Log for Handle {
    fn writer(&self) -> WriterId {
        self.writer
    }

    fn limits(&self) -> Limits {
        self.shared.lock().limits
    }

    fn append(&self, entry: NewEntry) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (shared, writer) = (Arc::clone(&self.shared), self.writer);
        Box::pin(async move {
            shared.pass(Gate::BeforeAppend).await;
            let result = shared.lock().append(writer, entry);
            shared.changed.notify_waiters();
            shared.pass(Gate::AfterAppend).await;
            result
        })
    }

    fn tail(&self, of: TailOf) -> BoxFuture<'static, Result<Tail, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            shared.pass(Gate::BeforeTail).await;
            let tail = shared.lock().tail(&of);
            shared.pass(Gate::AfterTail).await;
            Ok(tail)
        })
    }

    fn read(
        &self,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<Vec<ReadAnswer>, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            shared.pass(Gate::BeforeRead).await;
            let state = shared.lock();
            Ok(positions.into_iter().map(|p| state.read(p)).collect())
        })
    }

    fn read_streams(&self, read: StreamRead) -> BoxFuture<'static, Result<StreamPart, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            shared.pass(Gate::BeforeRead).await;
            loop {
                // Made before looking, so that no change in between is missed.
                let changed = shared.changed.notified();
                {
                    let mut state = shared.lock();
                    if let Some(part) = state.part(&read)? {
                        return Ok(part);
                    }
                    if !state.keep_holes {
                        state.settle(read.from, read.target.to);
                        continue;
                    }
                }
                changed.await;
            }
        })
    }

    fn wait(
        &self,
        streams: Arc<[StreamId]>,
        from: Position,
    ) -> BoxFuture<'static, Result<(), LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            loop {
                let changed = shared.changed.notified();
                if shared.lock().grew(&streams, from) {
                    return Ok(());
                }
                changed.await;
            }
        })
    }

    fn settle(&self, from: Position, to: Position) -> BoxFuture<'static, Result<(), LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            shared.lock().settle(from, to);
            shared.changed.notify_waiters();
            Ok(())
        })
    }

    fn trim(&self, below: Position) -> BoxFuture<'static, Result<Position, LogError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mark = shared.lock().trim(below);
            shared.changed.notify_waiters();
            Ok(mark)
        })
    }
}
