//! Hosts the servers: disk threads, roles, configuration, status.

mod config;
mod disk;
mod host;
mod lock;

pub use config::{
    ConfigError, LayoutSettings, LimitSettings, ProcessConfig, SequencerSettings, ServerAddress,
    TlsPaths, UnitSettings,
};
pub use lock::DirectoryError;
