//! The log contract. `milonga-client` implements it over a cluster, `MemoryLog` in
//! memory; objects use nothing else.
//!
//! ```text
//!                trimmed            settled                    next
//!   position  0 ... | ............... | ..... some holes ........ | not granted
//!             Trimmed   Data or Junk    Data, Junk or Unwritten     Unwritten
//! ```
//!
//! An implementation MUST keep these clauses; `milonga-protocol`'s conformance suite has a test for each.
//!
//! 1. **Write-once.** One position holds one value for ever: data or junk.
//! 2. **Durable.** An append that returned is on stable storage of every replica (or in memory, for the memory log).
//! 3. **Linearizable.** A read or tail check sees every append that returned before it began.
//! 4. **Exactly-once append while the client lives.** If an outcome is unknown the client finds out before it retries.
//!    The same entry is never at two positions, and an entry reported failed is never read.
//! 5. **A read answers one of five**: [`ReadAnswer`]. Answering `Unwritten` for `Lost` is the worst bug of all.
//! 6. **Nothing is delivered past a hole.** Streams come in order, without gaps.
//!
//! An implementation MUST NOT block for ever: every call ends by its deadline with an answer or a typed error.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::entry::{BackPointers, Entry, ListEnd};
use crate::env::BoxFuture;
use crate::ids::{EntryId, Epoch, Position, StreamId, WriterId};
use crate::limits::Limits;

/// A log that many may use.
pub type SharedLog = Arc<dyn Log>;

/// The shared log. Object-safe; called once per batch of records, so a boxed future costs nothing that shows.
pub trait Log: fmt::Debug + Send + Sync + 'static {
    /// The identity under which this handle's entries are written.
    fn writer(&self) -> WriterId;

    /// The limits in force.
    fn limits(&self) -> Limits;

    /// Appends one entry; many may be in flight. The work begins at the first poll and, once begun, goes on in
    /// the background if the future is dropped (the entry is then appended once, or not at all).
    fn append(&self, entry: NewEntry) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Linearizable tail check. Concurrent calls may share one; a call that begins after a check was sent waits
    /// for the next.
    fn tail(&self, of: TailOf) -> BoxFuture<'static, Result<Tail, LogError>>;

    /// Reads positions, in their order. Positions the log has not decided answer `Unwritten`; nothing is filled.
    fn read(
        &self,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<Vec<ReadAnswer>, LogError>>;

    /// The next part of some streams: waits for progress, settles holes whose time is up, never passes one.
    /// It returns as soon as it can deliver or complete anything; call again until
    /// [`StreamPart::complete`] reaches [`StreamPart::target`].
    fn read_streams(&self, read: StreamRead) -> BoxFuture<'static, Result<StreamPart, LogError>>;

    /// Returns when one of the streams may have a position at or above `from` (or any position at all, if
    /// `streams` is empty), at the latest after about a second. A hint to make a tail check, without busy polling.
    fn wait(
        &self,
        streams: Arc<[StreamId]>,
        from: Position,
    ) -> BoxFuture<'static, Result<(), LogError>>;

    /// Decides every hole in `from..to`: finishes what the head has, fills the rest with junk. Returns when all
    /// are settled.
    fn settle(&self, from: Position, to: Position) -> BoxFuture<'static, Result<(), LogError>>;

    /// Forgets everything below `below`, at most up to the settled part of the log; persisted before it returns.
    /// Monotone; returns the mark in force, which may be lower than asked, or higher.
    fn trim(&self, below: Position) -> BoxFuture<'static, Result<Position, LogError>>;
}

/// An entry to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// The streams it belongs to: distinct, at most [`Limits::streams_per_entry`]. May be empty.
    pub streams: Vec<StreamId>,
    /// The bytes, at most [`Limits::entry_bytes`].
    pub payload: Bytes,
    /// Whether the entry may use the reserve of a full disk: directory and checkpoints only.
    pub reserved_space: bool,
}

impl NewEntry {
    /// An ordinary entry.
    #[must_use]
    pub fn new(streams: impl Into<Vec<StreamId>>, payload: impl Into<Bytes>) -> Self {
        Self {
            streams: streams.into(),
            payload: payload.into(),
            reserved_space: false,
        }
    }
}

/// Where an entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its position.
    pub position: Position,
    /// Its id.
    pub id: EntryId,
}

/// What a tail check asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TailOf {
    /// The whole log.
    Log,
    /// The log and these streams.
    Streams(Arc<[StreamId]>),
}

/// The answer of a tail check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tail {
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// First position that was not granted.
    pub next: Position,
    /// Trim mark.
    pub trimmed: Position,
    /// Last positions of the streams asked, in that order: granted, perhaps not written yet.
    pub streams: Vec<BackPointers>,
    /// Where everything lies that had been appended, if that is known more closely than by what was granted.
    pub written: Option<Written>,
}

/// Ends, exclusive, of what had been appended: every append that returned before the check began lies below. So a
/// linearizable read need not wait for entries that others are still writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Of the whole log.
    pub log: Position,
    /// Of each stream asked, in that order.
    pub streams: Vec<Position>,
}

impl Tail {
    /// An answer that knows only what was granted.
    #[must_use]
    pub const fn new(
        epoch: Epoch,
        next: Position,
        trimmed: Position,
        streams: Vec<BackPointers>,
    ) -> Self {
        Self {
            epoch,
            next,
            trimmed,
            streams,
            written: None,
        }
    }

    /// How far the streams asked must be read to have seen every append that returned before the check. For a check
    /// of the whole log: [`Self::written_end`].
    #[must_use]
    pub fn target(&self) -> Target {
        match &self.written {
            Some(written) => self.to(written.streams.iter().copied().max().unwrap_or(written.log)),
            None => self.granted(),
        }
    }

    /// How far the streams asked must be read to know what became of every position of theirs that was granted before
    /// the check: what followers wait for. For a check of the whole log: up to `next`.
    #[must_use]
    pub fn granted(&self) -> Target {
        let ends = self.streams.iter().map(|list| self.granted_end(list));
        self.to(ends.max().unwrap_or(self.next))
    }

    /// Every append that returned before the check lies below it, whatever its streams.
    #[must_use]
    pub fn written_end(&self) -> Position {
        self.written
            .as_ref()
            .map_or(self.next, |written| written.log)
    }

    /// The end, exclusive, of what was granted to one of the streams asked.
    #[must_use]
    pub fn granted_end(&self, list: &BackPointers) -> Position {
        match (list.last(), list.end()) {
            (Some(last), _) => last.next(),
            (None, ListEnd::Beginning) => Position::ZERO,
            (None, ListEnd::BelowTrim) => self.trimmed,
            (None, ListEnd::Unknown) => self.next,
        }
    }

    const fn to(&self, to: Position) -> Target {
        Target {
            epoch: self.epoch,
            to,
        }
    }
}

/// How far to read. Belongs to an epoch: when that ends, it is lowered to the next one's start (rule 23).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The epoch of the tail check it came from.
    pub epoch: Epoch,
    /// End, exclusive.
    pub to: Position,
}

/// One of five.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAnswer {
    /// An entry.
    Data(Entry),
    /// Nothing, for ever.
    Junk,
    /// Nothing decided yet.
    Unwritten,
    /// Below the trim mark.
    Trimmed,
    /// Something that no replica can give. Only an operator can turn it into junk.
    Lost,
}

/// What to read of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRead {
    /// Which streams. An entry of several of them is delivered once.
    pub streams: Arc<[StreamId]>,
    /// First position wanted: everything below is complete for the reader.
    pub from: Position,
    /// How far.
    pub target: Target,
    /// Stop after about this many bytes of payload.
    pub max_bytes: usize,
}

/// Part of some streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPart {
    /// Entries in order of position.
    pub entries: Vec<(Position, Entry)>,
    /// Every entry of the streams below it has now been delivered. Read on from here.
    pub complete: Position,
    /// The target, lowered if its epoch has ended.
    pub target: Target,
}

impl StreamPart {
    /// Whether the target is reached.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.complete >= self.target.to
    }
}

/// Why an append did not return a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// Over a limit; nothing was written.
    #[error("an entry of {size} bytes is over the limit of {limit} bytes; split it")]
    TooLarge {
        /// Bytes.
        size: usize,
        /// Allowed.
        limit: usize,
    },
    /// Over a limit, or a stream named twice; nothing was written.
    #[error("an entry in {streams} streams is over the limit of {limit}, or names one twice")]
    Streams {
        /// Streams.
        streams: usize,
        /// Allowed.
        limit: usize,
    },
    /// A log unit's disk is full; nothing was written. Trim the log or add space; it goes on by itself.
    #[error("the disk of {unit} is full; trim the log or add space, then retry")]
    Full {
        /// The unit.
        unit: String,
    },
    /// The deadline passed; surely nothing was written.
    #[error("not appended within {waited_ms} ms: {what}")]
    Unavailable {
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
    },
    /// The deadline passed, or the evidence is gone: the entry may or may not be in the log, once.
    #[error("outcome of the append {id} unknown: {what}")]
    OutcomeUnknown {
        /// The last attempt.
        id: EntryId,
        /// What was waited for.
        what: String,
    },
    /// The handle was closed; nothing was written.
    #[error("the log was closed")]
    Closed,
    /// The entry would begin a stream, and there are as many as the layout allows; nothing was written.
    #[error(
        "the entry would begin a new stream, and the log has its limit of {limit}; use streams that exist"
    )]
    StreamLimit {
        /// Most streams that may exist.
        limit: u64,
    },
}

impl AppendError {
    /// Whether the same call may succeed later, without the risk of a second effect.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}

/// Why a read, tail check or trim failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The deadline passed.
    #[error("no answer within {waited_ms} ms: {what}")]
    Unavailable {
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
    },
    /// The reader wants what was trimmed.
    #[error("the log was trimmed below position {below}; positions from {from} on were asked for")]
    Trimmed {
        /// The mark.
        below: Position,
        /// First position asked.
        from: Position,
    },
    /// No replica can give this position.
    #[error(
        "position {position} is lost on every replica; if a unit is out (see `milonga status`), start it, it may have it; else an operator must decide (`milonga log fill --give-up-lost`)"
    )]
    Lost {
        /// The position.
        position: Position,
    },
    /// A server refused for a reason that waiting does not cure.
    #[error("{server} refused: {why}")]
    Refused {
        /// The server.
        server: String,
        /// Its words.
        why: String,
    },
    /// The handle was closed.
    #[error("the log was closed")]
    Closed,
}

impl LogError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
