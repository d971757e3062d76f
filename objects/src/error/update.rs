//! Errors of updates.

use std::sync::Arc;

use milonga_protocol::{AppendError, Position};

use super::{Halt, ReadError, ReplicaHalt};
use crate::update::Ticket;

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
