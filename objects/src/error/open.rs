//! Errors of openings.

use std::sync::Arc;

use milonga_protocol::AppendError;

use super::ReadError;

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
