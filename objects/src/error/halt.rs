//! What stops for good.

use std::sync::Arc;

use milonga_protocol::{LogError, Position};

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
