//! Hosts the servers: disk threads, roles, configuration, status.
//!
//! ```text
//!   network ──> Front (decode, who may) ──> Handle ──> Host: Unit       ──> disk threads ── directory, locked
//!                                      ├──> Handle ──> Host: Sequencer
//!                                      ├──> Handle ──> Host: Layout     ──> network
//!                                      └──> Door   ──> raft replica     ──> network, store thread
//!   Greeter ──> says hello to the layout, and again (rule 2)
//! ```
//!
//! The cores are pure; everything that touches the world is here or in the transport. Nothing here knows what an
//! epoch or a position is. [`Node`] is a process of a cluster, over QUIC; [`EmbeddedNode`] is a whole log in this
//! process, over memory; both are a [`ServerProcess`] on this computer. Neither installs anything process-wide.

mod config;
mod disk;
mod embedded;
mod error;
mod hello;
mod host;
mod layout;
mod lease;
mod lock;
mod look;
mod machine;
mod node;
mod process;
mod roles;
mod service;
mod steer;
#[cfg(test)]
mod tests;

pub use config::{
    ConfigError, LayoutSettings, LimitSettings, ProcessConfig, SequencerSettings, ServerAddress,
    TlsPaths, UnitSettings,
};
pub use embedded::{EmbeddedNode, EmbeddedOptions};
pub use error::NodeError;
pub use layout::{LayoutPlan, NEW_LAYOUT};
pub use lock::{DirectoryError, DirectoryLock, LOCK_FILE};
pub use look::{LookError, UnitDirectory};
pub use machine::{DiskCompletion, Guard, Machine, OpenDisk, OpenLayout};
pub use milonga_log_units::{
    Affected, Damage, Remark, SegmentReport, SegmentState, StateReport, UnitReport,
};
pub use node::Node;
pub use process::{ServerPlan, ServerProcess};
