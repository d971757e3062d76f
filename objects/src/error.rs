//! Why something was not done, and what to do next. A conflict between transactions is an outcome, not an error.

use std::sync::Arc;

use milonga_protocol::{AppendError, LogError, Position};

use crate::update::Ticket;

/// An object stopped on this replica, at a record that it could not take (rule 38). Others go on; so does this one,
/// on replicas that understand the record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("object {object:?} halted at position {position}, record {record}: {why}")]
#[non_exhaustive]
pub struct Halt {
    /// Name of the object.
    pub object: Arc<str>,
    /// Where.
    pub position: Position,
    /// The record within the entry.
    pub record: u32,
    /// Why, and what helps.
    pub why: String,
}

/// The whole replica stopped: it can neither go on nor skip. Open a new one when the cause is removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaHalt {
    /// The log cannot give what the replica needs next: trimmed or lost.
    #[error("this replica stopped after playing everything below {applied}: what follows is gone")]
    Log {
        /// Everything below was played.
        applied: Position,
        /// What the log said.
        source: LogError,
    },
    /// An entry by a newer build.
    #[error(
        "this replica stopped at position {position}: payload version {version} is newer than this build; upgrade it"
    )]
    Newer {
        /// Where.
        position: Position,
        /// The entry's version.
        version: u8,
    },
    /// A transaction judged by a window that is larger than what this replica keeps.
    #[error(
        "this replica stopped at position {position}: a transaction there read at {snapshot}, but changes are known \
         from {known_since} on only; restart it with the layout's conflict window"
    )]
    Window {
        /// Where.
        position: Position,
        /// The transaction's snapshot.
        snapshot: Position,
        /// First position whose changes are known.
        known_since: Position,
    },
    /// The directory itself halted, so that new streams would be missed.
    #[error("this replica stopped, because the directory did")]
    Directory {
        /// Why.
        source: Halt,
    },
}

/// Why a read, a snapshot or a look into the directory has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The object halted on this replica.
    #[error(transparent)]
    Halted(#[from] Halt),
    /// The whole replica halted.
    #[error(transparent)]
    ReplicaHalted(#[from] ReplicaHalt),
    /// The deadline passed.
    #[error("not served within {waited_ms} ms: {what}; try again")]
    Unavailable {
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
    },
    /// The log refused, for a reason that waiting does not cure.
    #[error("the log refused")]
    Log {
        /// What it said.
        source: LogError,
    },
    /// The object is not in this frozen world: it was opened later, or with another replica.
    #[error(
        "object {object:?} is not in this snapshot: it was opened later or on another replica; take a new snapshot"
    )]
    NotInSnapshot {
        /// Name of the object.
        object: Arc<str>,
    },
    /// The replica was closed.
    #[error("the replica was closed")]
    Closed,
}

impl ReadError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NotInSnapshot { .. })
    }

    /// The object it is about, if it is about one.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Halted(halt) | Self::ReplicaHalted(ReplicaHalt::Directory { source: halt }) => {
                Some(&halt.object)
            }
            Self::NotInSnapshot { object } => Some(object),
            _ => None,
        }
    }

    /// The position it is about, if it is about one.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        match self {
            Self::Halted(halt) => Some(halt.position),
            Self::ReplicaHalted(halt) => Some(halt.position()),
            _ => None,
        }
    }
}

impl ReplicaHalt {
    /// Where.
    #[must_use]
    pub const fn position(&self) -> Position {
        match self {
            Self::Log { applied, .. } => *applied,
            Self::Newer { position, .. } | Self::Window { position, .. } => *position,
            Self::Directory { source } => source.position,
        }
    }
}

/// Why an update has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Over the limit of one entry; nothing was written.
    #[error(
        "an update of {object:?} of {size} bytes is over the limit of {limit} bytes; split the value"
    )]
    TooLarge {
        /// Name of the object.
        object: Arc<str>,
        /// Bytes.
        size: usize,
        /// Allowed.
        limit: usize,
    },
    /// The operation cannot be written; nothing was.
    #[error("an update of {object:?} cannot be encoded: {why}")]
    Encode {
        /// Name of the object.
        object: Arc<str>,
        /// Why.
        why: String,
    },
    /// The object is halted on this replica. `written`: the update is in the log, at this position, and took effect
    /// on replicas that are not halted; else nothing was written.
    #[error("the update cannot be applied here")]
    Halted {
        /// Where it is in the log, if it is.
        written: Option<Position>,
        /// Why.
        source: Halt,
    },
    /// The whole replica halted; nothing was written.
    #[error("nothing was written")]
    ReplicaHalted {
        /// Why.
        source: ReplicaHalt,
    },
    /// The log did not take it; nothing was written.
    #[error("not appended; nothing was written")]
    Append {
        /// What the log said.
        source: AppendError,
    },
    /// Whether there is anything to pop could not be read; nothing was written.
    #[error("nothing was written, because nothing could be read")]
    Read {
        /// Why.
        source: ReadError,
    },
    /// The deadline passed while the update waited for its turn; nothing was written.
    #[error("not sent within {waited_ms} ms, because earlier updates wait too; try again")]
    Unavailable {
        /// How long.
        waited_ms: u64,
    },
    /// The deadline passed: the update may or may not take effect, once. Ask `Replica::settle` with the ticket.
    #[error(
        "outcome unknown after {waited_ms} ms; ask `settle` with the ticket before doing it again"
    )]
    OutcomeUnknown {
        /// For [`Replica::settle`](crate::Replica::settle).
        ticket: Ticket,
        /// How long.
        waited_ms: u64,
    },
    /// The replica was closed; nothing was written.
    #[error("the replica was closed; nothing was written")]
    Closed,
}

impl UpdateError {
    /// Whether the same call may succeed later, without the risk of a second effect.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Append { source } => source.is_retryable(),
            Self::Read { source } => source.is_retryable(),
            other => matches!(other, Self::Unavailable { .. }),
        }
    }

    /// The object it is about, if it is about one.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::TooLarge { object, .. } | Self::Encode { object, .. } => Some(object),
            Self::Halted { source, .. } => Some(&source.object),
            Self::OutcomeUnknown { ticket, .. } => ticket.object(),
            Self::Read { source } => source.object(),
            _ => None,
        }
    }

    /// The position it is about, if it is about one.
    #[must_use]
    pub const fn position(&self) -> Option<Position> {
        match self {
            Self::Halted { source, .. } => Some(source.position),
            Self::ReplicaHalted { source } => Some(source.position()),
            Self::Read { source } => source.position(),
            _ => None,
        }
    }
}

/// Why an object was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name belongs to an object of another type.
    #[error("{name:?} is a {existing}, not a {wanted}; open it as what it is, or use another name")]
    Type {
        /// Name of the object.
        name: Arc<str>,
        /// What it is.
        existing: String,
        /// What was asked for.
        wanted: String,
    },
    /// The name is empty or too long.
    #[error("an object's name has 1 to {limit} bytes, not {size}")]
    Name {
        /// Bytes.
        size: usize,
        /// Most allowed.
        limit: usize,
    },
    /// The log could not be read.
    #[error("{name:?} was not opened")]
    Read {
        /// Name of the object.
        name: Arc<str>,
        /// Why.
        source: ReadError,
    },
    /// The name could not be registered. Trying again is safe: a name is registered once.
    #[error("{name:?} was not registered")]
    Register {
        /// Name of the object.
        name: Arc<str>,
        /// Why.
        source: AppendError,
    },
}

impl OpenError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.is_retryable(),
            Self::Register { source, .. } => {
                source.is_retryable() || matches!(source, AppendError::OutcomeUnknown { .. })
            }
            _ => false,
        }
    }

    /// The object it is about.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        match self {
            Self::Type { name, .. } | Self::Read { name, .. } | Self::Register { name, .. } => {
                Some(name)
            }
            Self::Name { .. } => None,
        }
    }
}

/// Why a transaction has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError<E> {
    /// The closure returned an error; nothing was written.
    #[error("the transaction's own code returned an error; nothing was written")]
    Closure(E),
    /// Its records do not fit one entry; nothing was written.
    #[error(
        "a transaction of {size} bytes is over the limit of {limit} bytes; write less, or read whole objects"
    )]
    TooLarge {
        /// Bytes.
        size: usize,
        /// Allowed.
        limit: usize,
    },
    /// It writes too many objects; nothing was written.
    #[error("a transaction that writes {objects} objects is over the limit of {limit}; split it")]
    TooManyObjects {
        /// Objects.
        objects: usize,
        /// Allowed.
        limit: usize,
    },
    /// Every attempt was overtaken by more than the conflict window; nothing was written.
    #[error(
        "all {attempts} attempts took longer than the conflict window of {window} positions; do less in the closure"
    )]
    TooSlow {
        /// Attempts.
        attempts: u32,
        /// Positions.
        window: u64,
    },
    /// What it reads cannot be read; nothing was written.
    #[error("the transaction could not read; nothing was written")]
    Read {
        /// Why.
        source: ReadError,
    },
    /// It has no verdict; see the source for whether anything was written.
    #[error("the transaction has no verdict")]
    Commit {
        /// Why.
        source: UpdateError,
    },
}

impl<E> TransactionError<E> {
    /// Whether the same call may succeed later, without the risk of a second effect.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Read { source } => source.is_retryable(),
            Self::Commit { source } => source.is_retryable(),
            Self::TooSlow { .. } => true,
            _ => false,
        }
    }
}
