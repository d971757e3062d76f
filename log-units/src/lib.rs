//! The log unit core: write-once storage on a completion-based disk; pure.
//!
//! ```text
//!   requests ──> Unit ── epochs: the fence of every request; seal, open
//!                  │  ── write ── writer ── commit ──> batches to the active segment
//!                  │  ── read, streams ── reader <──── recent batches, or the disk
//!                  │  ── index: which position lies where
//!                  │  ── files, state file, superblock
//!                  └─ recovery ── scan ── rebuild: from a directory to an index, damage judged
//!   replies  <──        │ ▲
//!                 DiskOp▼ │DiskDone            (the host owns the disk, the clock and the network)
//! ```
//!
//! A unit holds the own positions of some ranges of the log (those that lie on its chain) and answers for each:
//! data, junk, unwritten, trimmed, or lost. Nothing in this crate knows of other replicas: chains are driven by
//! clients.

mod commit;
mod config;
mod disk;
mod doubts;
mod epochs;
mod facts;
mod files;
mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod index;
mod inspect;
mod junk;
mod marks;
mod pace;
mod read;
mod reader;
mod rebuild;
mod recovery;
mod rejoin;
mod scan;
mod scrub;
mod segment_index;
mod state_file;
mod streams;
mod unit;
mod write;
mod writer;

#[cfg(any(test, feature = "test-util"))]
pub mod sim;

pub use config::{OpenError, UnitConfig};
pub use disk::{Disk, DiskDone, DiskError, DiskOp, FileName, OpId};
#[cfg(any(test, feature = "test-util"))]
pub use inspect::inspect;
pub use inspect::{
    Affected, Damage, Inspection, InspectionStep, Remark, SegmentReport, SegmentState, StateReport,
    UnitReport,
};
pub use unit::{Unit, UnitEffect};

#[cfg(test)]
mod tests;
