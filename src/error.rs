//! Why a log cannot be opened.

use milonga_client::ConnectError;
use milonga_transport::{NoRuntime, TlsError};

use crate::config::ConfigError;

/// Why [`Milonga`](crate::Milonga) cannot be opened or closed. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Called outside a tokio runtime.
    #[error(transparent)]
    NoRuntime(#[from] NoRuntime),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificates cannot be read or used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cluster does not answer, or does not accept this process.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The servers in this process cannot start.
    #[cfg(feature = "embedded")]
    #[error(transparent)]
    Node(#[from] milonga_node::NodeError),
    /// Closed, but not all that was under way was done by the deadline. Whoever still waits is told by an own error.
    #[error(
        "closed, but {updates} updates or transactions were not known to be written by the deadline{}; open it again \
         and look which of them took effect before doing them again",
        if *.appends { ", and appends were under way" } else { "" }
    )]
    Unfinished {
        /// Updates and transactions that were not written, or may not have been.
        updates: usize,
        /// Whether entries were being appended that no object had submitted.
        appends: bool,
    },
}

impl Error {
    /// Whether the same call may succeed later without a change of configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_retryable(),
            Self::Config(ConfigError::Unresolved { .. }) => true,
            _ => false,
        }
    }
}
