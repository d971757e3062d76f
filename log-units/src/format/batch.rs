//! Batches and records.

use bytes::BufMut;
use milonga_protocol::{Epoch, Position};

use super::{FORMAT_VERSION, Owner, Reader};

/// Bytes of a batch's header.
pub(crate) const BATCH_HEADER: usize = 104;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER: usize = 40;

const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"MLGB");
const RECORD_MAGIC: u16 = u16::from_le_bytes(*b"MR");

/// `len` rounded up to records' alignment.
pub(crate) const fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Bytes of a record whose body has `len`.
pub(crate) const fn record_bytes(len: usize) -> usize {
    RECORD_HEADER + padded(len)
}

/// Header of one group commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// Of the segment.
    pub(crate) generation: u64,
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Strictly increasing over the unit's life; not without gaps.
    pub(crate) number: u64,
    /// Number of the batch before this one, 0 if there was none: a break in this chain is lost data.
    pub(crate) previous: u64,
    /// Epoch of the records.
    pub(crate) epoch: Epoch,
    /// Settled mark when it was written.
    pub(crate) mark: Position,
    /// First position above everything held before this batch: whatever lies in the log before the batch, at or above
    /// `high`, is void. The state says so, too, whichever batches can be read.
    pub(crate) high: Position,
    /// Lowest position in the batch.
    pub(crate) lowest: Position,
    /// First position above the batch's.
    pub(crate) end: Position,
    /// Trim mark when it was written.
    pub(crate) trim: Position,
    /// Bytes behind the header.
    pub(crate) body_len: u32,
    /// Records in them.
    pub(crate) records: u32,
}

impl BatchHeader {
    /// The header's bytes.
    pub(crate) fn encode(&self, owner: Owner) -> [u8; BATCH_HEADER] {
        let mut out = [0; BATCH_HEADER];
        let mut w = &mut out[..];
        w.put_u32_le(BATCH_MAGIC);
        w.put_u8(FORMAT_VERSION);
        w.put_bytes(0, 3);
        for field in [
            self.generation,
            self.segment,
            self.number,
            self.previous,
            self.epoch.0,
            self.mark.0,
            self.high.0,
            self.lowest.0,
            self.end.0,
            self.trim.0,
        ] {
            w.put_u64_le(field);
        }
        w.put_u32_le(self.body_len);
        w.put_u32_le(self.records);
        w.put_u32_le(0);
        let crc = crc32c::crc32c_append(owner.seed_of(self.generation), &out[..BATCH_HEADER - 4]);
        out[BATCH_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, if one verifies there (under the generation that it states itself).
    pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEADER)?;
        let mut r = Reader(bytes);
        if r.u32()? != BATCH_MAGIC || r.u8()? != FORMAT_VERSION {
            return None;
        }
        let _zero = r.bytes(3)?;
        let header = Self {
            generation: r.u64()?,
            segment: r.u64()?,
            number: r.u64()?,
            previous: r.u64()?,
            epoch: Epoch(r.u64()?),
            mark: Position(r.u64()?),
            high: Position(r.u64()?),
            lowest: Position(r.u64()?),
            end: Position(r.u64()?),
            trim: Position(r.u64()?),
            body_len: r.u32()?,
            records: r.u32()?,
        };
        let _zero = r.u32()?;
        let crc =
            crc32c::crc32c_append(owner.seed_of(header.generation), &bytes[..BATCH_HEADER - 4]);
        // Numbers begin at 1: one that nothing can follow was never given.
        (r.u32()? == crc && header.number < u64::MAX).then_some(header)
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// An entry.
    Data,
    /// Junk at each `stride`-th position; body = end (exclusive) and stride.
    Junk,
}

/// Header of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    /// Bytes of the body, without padding.
    pub(crate) len: u32,
    pub(crate) position: Position,
    pub(crate) epoch: Epoch,
    /// Number of the batch it is part of.
    pub(crate) batch: u64,
    /// Checksum of the body: an entry's own, which ties the entry to this record.
    pub(crate) body_crc: u32,
}

impl RecordHeader {
    /// The header at the start of `bytes`, if one verifies there. `seed` is [`Owner::seed_of`] the generation.
    pub(crate) fn decode(seed: u32, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER)?;
        let mut r = Reader(bytes);
        if r.u16()? != RECORD_MAGIC || r.u8()? != FORMAT_VERSION {
            return None;
        }
        let kind = match r.u8()? {
            1 => RecordKind::Data,
            2 => RecordKind::Junk,
            _ => return None,
        };
        let header = Self {
            kind,
            len: r.u32()?,
            position: Position(r.u64()?),
            epoch: Epoch(r.u64()?),
            batch: r.u64()?,
            body_crc: r.u32()?,
        };
        let crc = crc32c::crc32c_append(seed, &bytes[..RECORD_HEADER - 4]);
        (r.u32()? == crc).then_some(header)
    }

    /// Bytes of the whole record.
    pub(crate) const fn total(&self) -> usize {
        record_bytes(self.len as usize)
    }
}

/// Appends a record. `body_crc` is an entry's own checksum, or that of the body.
pub(crate) fn encode_record(out: &mut Vec<u8>, seed: u32, header: &RecordHeader, body: &[u8]) {
    let at = out.len();
    out.put_u16_le(RECORD_MAGIC);
    out.put_u8(FORMAT_VERSION);
    out.put_u8(match header.kind {
        RecordKind::Data => 1,
        RecordKind::Junk => 2,
    });
    out.put_u32_le(header.len);
    out.put_u64_le(header.position.0);
    out.put_u64_le(header.epoch.0);
    out.put_u64_le(header.batch);
    out.put_u32_le(header.body_crc);
    let crc = crc32c::crc32c_append(seed, &out[at..]);
    out.put_u32_le(crc);
    out.put_slice(body);
    out.put_bytes(0, padded(body.len()) - body.len());
}
