//! Why a node does not start.

use std::time::Duration;

use milonga_layout::{RaftStoreError, StartError, StoreError};
use milonga_log_units::OpenError;
use milonga_transport::{BindError, TlsError};

use crate::config::ConfigError;
use crate::lock::DirectoryError;

/// Why a node does not start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is another process's.
    #[error(
        "the certificate {certificate} is for {found}, but this process is {name}; correct `name` or `tls.cert`"
    )]
    Certificate {
        /// The file.
        certificate: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        name: String,
    },
    /// The log unit's directory cannot be opened; nothing in it was changed.
    #[error("log unit in {directory}: {source}")]
    Unit {
        /// The directory.
        directory: String,
        /// Why not.
        source: OpenError,
    },
    /// The layout's history of before, without raft, cannot be taken over.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layout's history cannot be opened.
    #[error(transparent)]
    History(#[from] RaftStoreError),
    /// This member of the layout cannot run.
    #[error(transparent)]
    Member(#[from] StartError),
    /// What the configuration says of the layout does not fit its history.
    #[error("layout: {why}")]
    Layout {
        /// What does not fit.
        why: String,
    },
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The log did not become usable in time.
    #[error("no layout within {} s: {why}", waited.as_secs())]
    NoLayout {
        /// What is missing.
        why: String,
        /// How long.
        waited: Duration,
    },
    /// The runtime is being shut down.
    #[error("the runtime stopped while the node was starting")]
    Stopped,
}
