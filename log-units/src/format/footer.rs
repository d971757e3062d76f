//! The index of a full segment, at the end of its file.

use bytes::BufMut;
use milonga_protocol::{Epoch, Position};

use super::block::{block, unblock};
use super::{BlockError, Owner, Reader};

/// Bytes of the trailer, the very end of a segment file.
pub(crate) const TRAILER_BYTES: u64 = 64;
const FOOTER_MAGIC: &[u8; 8] = b"MLGFOOTR";
const TRAILER_MAGIC: &[u8; 8] = b"MLGTRAIL";

/// Where the footer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) generation: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Trailer {
    pub(crate) fn encode(&self, owner: Owner) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u64_le(self.generation);
        body.put_u64_le(self.offset);
        body.put_u64_le(self.len);
        let mut out = block(*TRAILER_MAGIC, owner.seed(), &body);
        out.resize(super::size(TRAILER_BYTES), 0);
        out
    }

    pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(unblock(*TRAILER_MAGIC, owner.seed(), bytes).ok()?);
        Some(Self {
            generation: r.u64()?,
            offset: r.u64()?,
            len: r.u64()?,
        })
    }
}

/// Junk at `from`, `from + stride`, … below `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Junk {
    pub(crate) from: u64,
    pub(crate) end: u64,
    pub(crate) stride: u64,
}

/// Damage: whatever of `from..to` is not held elsewhere may have been held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) from: Position,
    pub(crate) to: Position,
}

/// What ties a segment's batches to the log before and behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edges {
    /// Number of the first batch; 0 if there is none.
    pub(crate) first: u64,
    /// Number of the batch before the first.
    pub(crate) previous: u64,
    /// `high` of the first batch.
    pub(crate) first_high: Position,
    /// The lowest `high` of all batches: earlier segments hold nothing valid at or above it.
    pub(crate) lowest_high: Position,
    /// Number of the last batch.
    pub(crate) last: u64,
    /// Epoch of the last batch.
    pub(crate) epoch: Epoch,
    /// Settled mark of the last batch.
    pub(crate) mark: Position,
    /// First position above everything held, at the end of the segment.
    pub(crate) high: Position,
}

/// The index of a full segment. Parallel arrays, as they are kept in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) number: u64,
    pub(crate) generation: u64,
    pub(crate) edges: Edges,
    /// Positions of data, ascending.
    pub(crate) positions: Vec<u64>,
    /// Offsets of their records, in units of 8 bytes.
    pub(crate) offsets: Vec<u32>,
    /// Streams, ascending.
    pub(crate) streams: Vec<u64>,
    /// Where each stream's part of `members` begins; one more than there are streams.
    pub(crate) firsts: Vec<u32>,
    /// Indexes into `positions`, ascending within a stream.
    pub(crate) members: Vec<u32>,
    pub(crate) junk: Vec<Junk>,
    pub(crate) suspects: Vec<Suspect>,
}

impl Footer {
    /// Bytes of the footer with trailer, for `entries` positions in `members` stream places of `streams`
    /// streams and `others` other items. Never too low.
    pub(crate) const fn bytes(
        entries: usize,
        streams: usize,
        members: usize,
        others: usize,
    ) -> usize {
        320 + entries * 12 + streams * 12 + members * 4 + others * 24
    }

    /// Footer and trailer, to be written so that they end with the file, which has `size` bytes.
    /// Returns the offset and the bytes.
    pub(crate) fn encode(&self, owner: Owner, size: u64) -> (u64, Vec<u8>) {
        let mut body = Vec::new();
        body.put_u64_le(self.number);
        body.put_u64_le(self.generation);
        let e = &self.edges;
        for field in [e.first, e.previous, e.first_high.0, e.lowest_high.0] {
            body.put_u64_le(field);
        }
        for field in [e.last, e.epoch.0, e.mark.0, e.high.0] {
            body.put_u64_le(field);
        }
        put_u64s(&mut body, &self.positions);
        put_u32s(&mut body, &self.offsets);
        put_u64s(&mut body, &self.streams);
        put_u32s(&mut body, &self.firsts);
        put_u32s(&mut body, &self.members);
        let junk: Vec<u64> = self
            .junk
            .iter()
            .flat_map(|j| [j.from, j.end, j.stride])
            .collect();
        put_u64s(&mut body, &junk);
        let suspects: Vec<u64> = self
            .suspects
            .iter()
            .flat_map(|s| [s.from.0, s.to.0])
            .collect();
        put_u64s(&mut body, &suspects);
        let mut out = block(*FOOTER_MAGIC, owner.seed_of(self.generation), &body);
        let len = out.len() as u64;
        let offset = size.saturating_sub(len + TRAILER_BYTES) / 8 * 8;
        let trailer = Trailer {
            generation: self.generation,
            offset,
            len,
        };
        out.resize(
            super::size(size.saturating_sub(TRAILER_BYTES + offset)).max(out.len()),
            0,
        );
        out.extend_from_slice(&trailer.encode(owner));
        (offset, out)
    }

    /// Reads a footer that [`Trailer`] told where to find.
    pub(crate) fn decode(owner: Owner, generation: u64, bytes: &[u8]) -> Result<Self, BlockError> {
        let body = unblock(*FOOTER_MAGIC, owner.seed_of(generation), bytes)?;
        Self::parse(&mut Reader(body))
            .filter(Self::is_consistent)
            .ok_or(BlockError::Damaged)
    }

    fn parse(r: &mut Reader<'_>) -> Option<Self> {
        let mut footer = Self {
            number: r.u64()?,
            generation: r.u64()?,
            ..Self::default()
        };
        footer.edges = Edges {
            first: r.u64()?,
            previous: r.u64()?,
            first_high: Position(r.u64()?),
            lowest_high: Position(r.u64()?),
            last: r.u64()?,
            epoch: Epoch(r.u64()?),
            mark: Position(r.u64()?),
            high: Position(r.u64()?),
        };
        footer.positions = u64s(r)?;
        footer.offsets = u32s(r)?;
        footer.streams = u64s(r)?;
        footer.firsts = u32s(r)?;
        footer.members = u32s(r)?;
        footer.junk = u64s(r)?
            .chunks_exact(3)
            .map(|c| Junk {
                from: c[0],
                end: c[1],
                stride: c[2],
            })
            .collect();
        footer.suspects = u64s(r)?
            .chunks_exact(2)
            .map(|c| Suspect {
                from: Position(c[0]),
                to: Position(c[1]),
            })
            .collect();
        Some(footer)
    }

    /// Whether the arrays fit each other: a checksum proves who wrote them, not that they were right.
    fn is_consistent(&self) -> bool {
        let entries = self.positions.len();
        self.offsets.len() == entries
            && self.edges.last.max(self.number) < u64::MAX
            && self.positions.is_sorted_by(|a, b| a < b)
            && self.streams.is_sorted_by(|a, b| a < b)
            && self.firsts.len() == self.streams.len() + 1
            && self.firsts.first() == Some(&0)
            && self.firsts.is_sorted()
            && self.firsts.last().map(|last| *last as usize) == Some(self.members.len())
            && self.members.iter().all(|m| (*m as usize) < entries)
            && self.junk.iter().all(|j| j.stride > 0 && j.from < j.end)
    }
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    out.put_u64_le(values.len() as u64);
    out.reserve(values.len() * 8);
    for value in values {
        out.put_u64_le(*value);
    }
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    out.put_u64_le(values.len() as u64);
    out.reserve(values.len() * 4);
    for value in values {
        out.put_u32_le(*value);
    }
}

fn u64s(r: &mut Reader<'_>) -> Option<Vec<u64>> {
    let len = usize::try_from(r.u64()?).ok()?.checked_mul(8)?;
    let bytes = r.bytes(len)?;
    Some(
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|c| u64::from_le_bytes(*c))
            .collect(),
    )
}

fn u32s(r: &mut Reader<'_>) -> Option<Vec<u32>> {
    let len = usize::try_from(r.u64()?).ok()?.checked_mul(4)?;
    let bytes = r.bytes(len)?;
    Some(
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|c| u32::from_le_bytes(*c))
            .collect(),
    )
}
