//! Blocks: the small framed structures. Framing is the same in all versions, so that a newer one is named as such
//! and not taken for damage.
//!
//! ```text
//! 0  magic (8)   8  u8 version   9  zero (3)   12  u32 body length   16  body ...   CRC-32C (4)
//! ```

use bytes::BufMut;
use milonga_protocol::{ClusterId, Epoch, Position, UnitId};

use super::{FORMAT_VERSION, Owner, Reader, STATE_VERSION};

/// Bytes of the superblock file.
pub(crate) const SUPERBLOCK_BYTES: u64 = 4_096;
/// Bytes of the state file.
pub(crate) const STATE_BYTES: u64 = 8_192;
/// Distance of the state's slots.
pub(crate) const STATE_SLOT: u64 = 4_096;
/// Bytes of a segment's header block.
pub(crate) const HEADER_BYTES: u64 = 4_096;

const FRAME: usize = 16;
const SUPERBLOCK_MAGIC: &[u8; 8] = b"MLGSUPER";
const STATE_MAGIC: &[u8; 8] = b"MLGSTATE";
const SEGMENT_MAGIC: &[u8; 8] = b"MLGSEGMT";

/// Why bytes are not a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockError {
    /// Another magic: not such a block at all (zeros included).
    Foreign,
    /// An intact block of another version.
    Version(u8),
    /// The checksum or the length is wrong, or a field is.
    Damaged,
}

/// Frames `body`, in format version 1.
pub(crate) fn block(magic: [u8; 8], seed: u32, body: &[u8]) -> Vec<u8> {
    versioned_block(magic, FORMAT_VERSION, seed, body)
}

fn versioned_block(magic: [u8; 8], version: u8, seed: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FRAME + body.len() + 4);
    out.put_slice(&magic);
    out.put_u8(version);
    out.put_bytes(0, 3);
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(body);
    let crc = crc32c::crc32c_append(seed, &out);
    out.put_u32_le(crc);
    out
}

/// The body of the block at the start of `bytes`, of format version 1.
pub(crate) fn unblock(magic: [u8; 8], seed: u32, bytes: &[u8]) -> Result<&[u8], BlockError> {
    versioned_unblock(magic, FORMAT_VERSION, seed, bytes).map(|(_, body)| body)
}

/// Version, at most `newest`, and body of the block at the start of `bytes`.
fn versioned_unblock(
    magic: [u8; 8],
    newest: u8,
    seed: u32,
    bytes: &[u8],
) -> Result<(u8, &[u8]), BlockError> {
    let mut r = Reader(bytes);
    if r.bytes(8).ok_or(BlockError::Foreign)? != magic {
        return Err(BlockError::Foreign);
    }
    let version = r.u8().ok_or(BlockError::Damaged)?;
    let _zero = r.bytes(3).ok_or(BlockError::Damaged)?;
    let len = r.u32().ok_or(BlockError::Damaged)? as usize;
    let body = r.bytes(len).ok_or(BlockError::Damaged)?;
    let crc = r.u32().ok_or(BlockError::Damaged)?;
    if crc32c::crc32c_append(seed, &bytes[..FRAME + len]) != crc {
        return Err(BlockError::Damaged);
    }
    if !(1..=newest).contains(&version) {
        return Err(BlockError::Version(version));
    }
    Ok((version, body))
}

/// Bytes of the block at the start of `bytes`, as its frame says.
pub(crate) fn block_bytes(bytes: &[u8]) -> usize {
    let len = bytes.get(12..FRAME).and_then(|len| Reader(len).u32());
    FRAME + len.unwrap_or(0) as usize + 4
}

/// `bytes` with zeros behind them up to `len`.
fn padded_to(mut bytes: Vec<u8>, len: u64) -> Vec<u8> {
    bytes.resize(super::size(len).max(bytes.len()), 0);
    bytes
}

/// Who the directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Zero while the unit belongs to no cluster.
    pub(crate) cluster: ClusterId,
    pub(crate) unit: UnitId,
    pub(crate) name: String,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u128_le(self.cluster.0);
        body.put_u128_le(self.unit.0);
        let name = self.name.as_bytes();
        let len = name.len().min(1_024);
        body.put_u16_le(u16::try_from(len).unwrap_or_default());
        body.put_slice(&name[..len]);
        padded_to(block(*SUPERBLOCK_MAGIC, 0, &body), SUPERBLOCK_BYTES)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        let mut r = Reader(unblock(*SUPERBLOCK_MAGIC, 0, bytes)?);
        let decoded = (|| {
            let cluster = ClusterId(r.u128()?);
            let unit = UnitId(r.u128()?);
            let len = usize::from(r.u16()?);
            let name = String::from_utf8(r.bytes(len)?.to_vec()).ok()?;
            Some(Self {
                cluster,
                unit,
                name,
            })
        })();
        decoded.ok_or(BlockError::Damaged)
    }
}

/// Most voids that a state names: with them it still fits its slot.
const MOST_VOIDS: usize = 200;

/// Of what batches up to number `batch` hold, nothing at or above `from` counts, whatever can be read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Void {
    pub(crate) batch: u64,
    pub(crate) from: Position,
}

/// What a unit must not forget, and what is too small for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Number of this version of the state.
    pub(crate) sequence: u64,
    /// The highest epoch entered.
    pub(crate) epoch: Epoch,
    /// Trim mark.
    pub(crate) trim: Position,
    /// Segments below this number were removed on purpose.
    pub(crate) first_segment: u64,
    /// Number of the last batch in those segments.
    pub(crate) removed_batch: u64,
    /// What is void, ascending by batch and by position.
    pub(crate) voids: Vec<Void>,
}

impl State {
    /// Notes one more void. If there are too many, the oldest goes: `high` of the batches behind it says the same.
    pub(crate) fn add_void(&mut self, void: Void) {
        self.voids.retain(|before| before.from < void.from);
        if self.voids.len() == MOST_VOIDS {
            self.voids.remove(0);
        }
        self.voids.push(void);
    }

    /// From where on batch `batch` is void, and each one before it.
    pub(crate) fn void_from(&self, batch: u64) -> Option<Position> {
        let of = self.voids.iter().filter(|void| void.batch >= batch);
        of.map(|void| void.from).min()
    }

    pub(crate) fn encode(&self, owner: Owner) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u128_le(owner.cluster.0);
        body.put_u128_le(owner.unit.0);
        for field in [
            self.sequence,
            self.epoch.0,
            self.trim.0,
            self.first_segment,
            self.removed_batch,
        ] {
            body.put_u64_le(field);
        }
        body.put_u32_le(u32::try_from(self.voids.len()).unwrap_or(u32::MAX));
        for void in &self.voids {
            body.put_u64_le(void.batch);
            body.put_u64_le(void.from.0);
        }
        let block = versioned_block(*STATE_MAGIC, STATE_VERSION, owner.seed(), &body);
        // All of the slot: nothing stays of a longer one.
        padded_to(block, STATE_SLOT)
    }

    pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Result<Self, BlockError> {
        let (version, body) = versioned_unblock(*STATE_MAGIC, STATE_VERSION, owner.seed(), bytes)?;
        let mut r = Reader(body);
        let decoded = (|| {
            let _ids = (r.u128()?, r.u128()?);
            let mut state = Self {
                sequence: r.u64()?,
                epoch: Epoch(r.u64()?),
                trim: Position(r.u64()?),
                first_segment: r.u64()?,
                removed_batch: r.u64()?,
                voids: Vec::new(),
            };
            let voids = if version > 1 { r.u32()? as usize } else { 0 };
            for _ in 0..voids.min(MOST_VOIDS + 1) {
                let (batch, from) = (r.u64()?, Position(r.u64()?));
                state.voids.push(Void { batch, from });
            }
            let sorted = |a: &Void, b: &Void| a.batch <= b.batch && a.from < b.from;
            (voids <= MOST_VOIDS && state.voids.is_sorted_by(sorted)).then_some(state)
        })();
        // As of batches and segments: a number that nothing can follow was never given.
        decoded
            .filter(|s: &Self| {
                let batch = s.voids.last().map_or(0, |void| void.batch);
                let last = s.sequence.max(s.first_segment).max(s.removed_batch);
                last.max(batch) < u64::MAX
            })
            .ok_or(BlockError::Damaged)
    }
}

/// First block of a segment file, written before its first batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    /// Drawn anew for each file.
    pub(crate) generation: u64,
    /// Bytes of the file: a shorter one was truncated.
    pub(crate) size: u64,
    /// The unit's persisted epoch when the file was prepared.
    pub(crate) epoch: Epoch,
    /// Trim mark at that time.
    pub(crate) trim: Position,
    /// Settled mark at that time.
    pub(crate) mark: Position,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, owner: Owner) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_u128_le(owner.cluster.0);
        body.put_u128_le(owner.unit.0);
        for field in [
            self.number,
            self.generation,
            self.size,
            self.epoch.0,
            self.trim.0,
            self.mark.0,
        ] {
            body.put_u64_le(field);
        }
        block(*SEGMENT_MAGIC, owner.seed(), &body)
    }

    pub(crate) fn decode(owner: Owner, bytes: &[u8]) -> Result<Self, BlockError> {
        let mut r = Reader(unblock(*SEGMENT_MAGIC, owner.seed(), bytes)?);
        let decoded = (|| {
            let _ids = (r.u128()?, r.u128()?);
            Some(Self {
                number: r.u64()?,
                generation: r.u64()?,
                size: r.u64()?,
                epoch: Epoch(r.u64()?),
                trim: Position(r.u64()?),
                mark: Position(r.u64()?),
            })
        })();
        decoded.ok_or(BlockError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_with_all_its_voids_fits_its_slot_and_is_read_again() {
        let owner = Owner {
            cluster: ClusterId(1),
            unit: UnitId(2),
        };
        let mut state = State::default();
        let voids = (0..300).map(|n| Void {
            batch: n,
            from: Position(n * 5),
        });
        for void in voids {
            state.add_void(void);
            let bytes = state.encode(owner);
            assert_eq!(bytes.len() as u64, STATE_SLOT);
            assert_eq!(State::decode(owner, &bytes).as_ref(), Ok(&state));
        }
        assert_eq!((state.voids.len(), state.voids[0].batch), (200, 100));
        assert_eq!(state.void_from(0), Some(Position(500)));
        assert_eq!(state.void_from(250), Some(Position(1_250)));
        // A void covers those before it that begin above.
        let (batch, from) = (300, Position(600));
        state.add_void(Void { batch, from });
        assert_eq!(state.voids.len(), 21);
        assert_eq!(state.void_from(300), Some(from));
        assert_eq!(state.void_from(301), None);
    }
}
