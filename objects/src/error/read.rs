//! Errors of reads.

use std::sync::Arc;

use milonga_protocol::{LogError, Position};

use super::{Halt, ReplicaHalt};

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
