//! Errors of transactions.

use super::{ReadError, UpdateError};

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
    /// The deadline passed between or during attempts, none of which committed; nothing was written.
    #[error(
        "no commit within {waited_ms} ms and {attempts} attempts: {what}; nothing was written, try again"
    )]
    Unavailable {
        /// Attempts that ended with a conflict.
        attempts: u32,
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
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
            Self::TooSlow { .. } | Self::Unavailable { .. } => true,
            _ => false,
        }
    }
}
