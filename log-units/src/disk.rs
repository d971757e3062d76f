//! The disk seam: operations go in, completions come out later, in any order.
//!
//! Contract. Paths are names of files in one flat directory. An implementation MUST complete every operation
//! exactly once. A completed `sync` makes durable every write to that file that *completed before the sync was
//! submitted*, and (with `WriteAt { sync: true }`) the write itself; a completed `Rename`, `Create` or `Remove` is
//! durable, directory included. Anything else may be lost, torn at sector boundaries or reordered by a crash.
//! Bytes outside the range of a write never change (powersafe overwrite). After a failed write or sync nothing
//! about the file's unsynced bytes may be assumed, and a later sync that succeeds proves nothing about them.

use bytes::Bytes;

/// Name of a file in the unit's directory.
pub type FileName = String;

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Makes a file of `size` zero bytes, written and synced, under `name`; replaces what was there.
    Create {
        /// The file.
        name: FileName,
        /// Bytes.
        size: u64,
    },
    /// Writes `data`, one behind the other, at `offset` of an existing file.
    WriteAt {
        /// The file.
        name: FileName,
        /// Where.
        offset: u64,
        /// What.
        data: Vec<Bytes>,
        /// Whether to fdatasync before completing.
        sync: bool,
    },
    /// Reads exactly `len` bytes (fewer only at the end of the file).
    ReadAt {
        /// The file.
        name: FileName,
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// fdatasync.
    Sync {
        /// The file.
        name: FileName,
    },
    /// Renames, replacing the target; the directory is synced.
    Rename {
        /// Old name.
        from: FileName,
        /// New name.
        to: FileName,
    },
    /// Removes a file; the directory is synced.
    Remove {
        /// The file.
        name: FileName,
    },
    /// Names and sizes of all files, sorted by name.
    List,
    /// Bytes free for files on this disk.
    Space,
}

/// What an operation gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskDone {
    /// Done.
    Done,
    /// To `ReadAt`.
    Read(Bytes),
    /// To `List`.
    Files(Vec<(FileName, u64)>),
    /// To `Space`.
    Space(u64),
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No space left: nothing durable changed.
    #[error("no space left on the disk")]
    Full,
    /// The file does not exist.
    #[error("no such file: {0}")]
    NotFound(FileName),
    /// The machine lacks something else than space (descriptors, memory): says nothing of what the disk holds, so a
    /// read may be asked for again. Poisons the unit when it hits a write or sync.
    #[error("{0}")]
    Busy(String),
    /// Everything else; poisons the unit when it hits a write or sync. When it hits a read it is damage if the disk takes a
    /// write after it, and a second read and write end alike.
    #[error("{0}")]
    Io(String),
}

impl DiskOp {
    /// How many bytes it writes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::WriteAt { data, .. } => data.iter().map(|part| part.len() as u64).sum(),
            Self::Create { size, .. } => *size,
            _ => 0,
        }
    }
}

/// Ties a completion to its operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// A disk. The unit's host calls `submit` for each effect and feeds `completed` back to the core.
pub trait Disk: Send {
    /// Begins an operation; never blocks. Reads may overtake writes; writes to one file are carried out in order.
    fn submit(&mut self, id: OpId, op: DiskOp);
}
