//! The log unit core: write-once storage on a completion-based disk; pure.

mod disk;

pub use disk::{Disk, DiskDone, DiskError, DiskOp, FileName, OpId};
