//! Bytes on disk: format version 1, but for the state, whose version is 2. A state of version 1 is read, too.
//!
//! ```text
//! superblock              who this directory belongs to; replaced by write-new and rename
//! state                   epoch, trim mark, first segment, voids: two slots, always written one after the other
//! segment-%016x.log       header block | batch | batch | ... zeros ... | footer | trailer
//!
//! batch   = header (104 bytes), then records; one group commit, one synced write
//! record  = header (40 bytes), then an entry as received, padded to 8 bytes
//! ```
//!
//! Everything is little-endian. Every checksum is a CRC-32C that starts from the cluster and unit id; those of
//! batches and records also from the segment's generation, and records name their batch: what another unit
//! wrote, or what a file held in an earlier life, never verifies (rule 27).
//!
//! Powersafe overwrite is assumed: bytes outside the range of a write keep their values, so batches lie back to
//! back and are not padded to pages.

mod batch;
mod block;
mod footer;

pub(crate) use batch::{
    BATCH_HEADER, BatchHeader, RECORD_HEADER, RecordHeader, RecordKind, encode_record, record_bytes,
};
pub(crate) use block::{
    BlockError, HEADER_BYTES, STATE_BYTES, STATE_SLOT, SUPERBLOCK_BYTES, SegmentHeader, State,
    Superblock, Void, block_bytes,
};
pub(crate) use footer::{Edges, Footer, Junk, Suspect, TRAILER_BYTES, Trailer};

use milonga_protocol::{ClusterId, UnitId};

/// Version of every format in the directory, but for the state's.
pub(crate) const FORMAT_VERSION: u8 = 1;
/// Version of the state: 2 brought its voids.
pub(crate) const STATE_VERSION: u8 = 2;

/// The newest version of `file` that is read.
pub(crate) fn newest_version(file: &str) -> u8 {
    if file == STATE {
        STATE_VERSION
    } else {
        FORMAT_VERSION
    }
}

/// Name of the superblock.
pub(crate) const SUPERBLOCK: &str = "superblock";
/// Name under which a new superblock is prepared.
pub(crate) const SUPERBLOCK_NEW: &str = "superblock.new";
/// Name of the state file.
pub(crate) const STATE: &str = "state";
/// The host's lock file; never touched here.
pub(crate) const LOCK: &str = "lock";

/// Name of segment `number`.
pub(crate) fn segment_name(number: u64) -> String {
    format!("segment-{number:016x}.log")
}

/// The number in a segment's name; `None` for any other name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // Numbers begin at 1: one that nothing can follow was never given.
    (segment_name(number) == name && number < u64::MAX).then_some(number)
}

/// Whose bytes these are: part of every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster: ClusterId,
    pub(crate) unit: UnitId,
}

impl Owner {
    /// What checksums of blocks start from.
    pub(crate) fn seed(self) -> u32 {
        let cluster = crc32c::crc32c(&self.cluster.0.to_le_bytes());
        crc32c::crc32c_append(cluster, &self.unit.0.to_le_bytes())
    }

    /// What checksums of batches and records start from.
    pub(crate) fn seed_of(self, generation: u64) -> u32 {
        crc32c::crc32c_append(self.seed(), &generation.to_le_bytes())
    }
}

/// Bytes into a position or offset: `usize` has 64 bits on every platform this runs on.
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of buffers that exist"
)]
pub(crate) const fn size(bytes: u64) -> usize {
    bytes as usize
}

/// Little-endian reading without panics on short input.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
}
