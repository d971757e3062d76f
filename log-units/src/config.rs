//! What a unit is told when it starts, and why it may refuse to.

use milonga_protocol::{ClusterId, ServerName, UnitId};

use crate::format::HEADER_BYTES;

/// Local settings of a log unit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitConfig {
    /// The cluster that the directory is expected to belong to, if the process knows it.
    pub cluster: Option<ClusterId>,
    /// Identity of the unit if the directory is empty: random.
    pub new_id: UnitId,
    /// The process's name; a directory that was made under another name is refused.
    pub name: ServerName,
    /// Bytes of a new segment file, header and footer included. An entry must fit one segment.
    pub segment_bytes: u64,
    /// Free bytes below which a head refuses ordinary data. What is preallocated is reserve, too.
    pub soft_reserve_bytes: u64,
    /// Bytes of recently written batches that are kept in memory for readers.
    pub cache_bytes: usize,
    /// Bytes of writes that may wait for the disk before the unit answers `Busy`.
    pub queue_bytes: usize,
    /// Bytes after which a group commit is closed and the next one begun.
    pub batch_bytes: usize,
    /// Bytes of entries that are read in a second to find damage; 0: none.
    pub scrub_bytes_per_second: u64,
}

impl UnitConfig {
    /// The defaults: segments of 64 MiB, 256 MiB of soft reserve, 64 MiB of cache, 4 MiB/s of scrubbing.
    #[must_use]
    pub const fn new(new_id: UnitId, name: ServerName) -> Self {
        Self {
            cluster: None,
            new_id,
            name,
            segment_bytes: 64 << 20,
            soft_reserve_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            queue_bytes: 32 << 20,
            batch_bytes: 4 << 20,
            scrub_bytes_per_second: 4 << 20,
        }
    }

    /// Bytes of a segment file: whole pages, between 8 KiB and 4 GiB.
    pub(crate) fn segment_size(&self) -> u64 {
        let size = self.segment_bytes.clamp(2 * HEADER_BYTES, 4 << 30);
        size / HEADER_BYTES * HEADER_BYTES
    }
}

/// Why a directory cannot be opened. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It belongs to another cluster.
    #[error(
        "the directory belongs to cluster {found}, this process to cluster {expected}; use the right directory"
    )]
    OtherCluster {
        /// In the superblock.
        found: ClusterId,
        /// As configured.
        expected: ClusterId,
    },
    /// It was made by a unit of another name.
    #[error(
        "the directory belongs to unit {found}, this process is {expected}; use the right directory or name"
    )]
    OtherUnit {
        /// In the superblock.
        found: String,
        /// As configured.
        expected: ServerName,
    },
    /// A later version wrote it.
    #[error(
        "{file} has format version {found}, this build knows up to {known}; upgrade this process"
    )]
    NewerVersion {
        /// The file.
        file: String,
        /// In the file.
        found: u8,
        /// Of this build.
        known: u8,
    },
    /// There are files that are no log unit's.
    #[error(
        "{file} is no file of a log unit; use an empty directory, or move the file away if it is known to be foreign"
    )]
    Foreign {
        /// The file.
        file: String,
    },
    /// Damage that cannot be confined to some positions. The files are as they were.
    #[error(
        "{file}: {why}; nothing was changed. Restore the directory, or remove all of it to start as a new unit"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk refused an operation.
    #[error("{what}: {why}; free the disk or repair it and start again")]
    Disk {
        /// What was tried.
        what: String,
        /// The disk's words.
        why: String,
    },
}
