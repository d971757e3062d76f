//! Decoders that are private, for `milonga-fuzz`.

use bytes::Bytes;
use milonga_protocol::{ClusterId, UnitId};

use crate::format::{
    self, BATCH_HEADER, BatchHeader, Footer, Owner, RECORD_HEADER, RecordHeader, SegmentHeader,
    State, Superblock, Trailer,
};
use crate::scan::scan;

/// Whose bytes the golden directory holds.
const OWNER: Owner = Owner {
    cluster: ClusterId(0xc1),
    unit: UnitId(0xface),
};

/// Takes `bytes` for each small structure of the directory; what can be read must be written alike.
pub fn blocks(bytes: &[u8]) {
    if let Ok(superblock) = Superblock::decode(bytes) {
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }
    if let Ok(state) = State::decode(OWNER, bytes) {
        assert_eq!(State::decode(OWNER, &state.encode(OWNER)), Ok(state));
    }
    if let Ok(header) = SegmentHeader::decode(OWNER, bytes) {
        assert_eq!(
            SegmentHeader::decode(OWNER, &header.encode(OWNER)),
            Ok(header)
        );
    }
    if let Some(trailer) = Trailer::decode(OWNER, bytes) {
        assert_eq!(
            Trailer::decode(OWNER, &trailer.encode(OWNER)),
            Some(trailer)
        );
    }
    if let Some(header) = BatchHeader::decode(OWNER, bytes) {
        assert_eq!(
            BatchHeader::decode(OWNER, &header.encode(OWNER)),
            Some(header)
        );
    }
    let generation = footer_generation(bytes);
    let _ = RecordHeader::decode(OWNER.seed_of(generation), bytes);
    if let Ok(footer) = Footer::decode(OWNER, generation, bytes) {
        let (_, again) = footer.encode(OWNER, 0);
        assert_eq!(Footer::decode(OWNER, footer.generation, &again), Ok(footer));
    }
}

/// Scans `file` as a segment; what is found lies in it, in order.
pub fn segment(file: &Bytes) {
    let mut at = 0;
    for batch in scan(OWNER, 1, None, file) {
        assert!(batch.offset >= at && batch.end() <= file.len() as u64);
        at = batch.end();
        let mut inside = batch.offset;
        for record in &batch.records {
            assert!(record.offset >= inside && record.offset < at);
            inside = record.offset;
        }
    }
}

/// Makes every checksum in `bytes` right, wherever one of the formats' magics stands: damage that no checksum shows.
pub fn reseal(bytes: &mut [u8]) {
    let batch = bytes.chunks(8).position(|c| c.starts_with(b"MLGB"));
    let generation = batch.map_or(0, |nth| u64_at(bytes, nth * 8 + 8));
    for at in (0..bytes.len()).step_by(8) {
        let rest = &mut bytes[at..];
        match rest {
            [b'M', b'R', ..] => reseal_record(rest, OWNER.seed_of(generation)),
            [b'M', b'L', b'G', b'B', ..] => {
                if let Some(header) = rest.get_mut(..BATCH_HEADER) {
                    let generation = u64_at(header, 8);
                    put_crc(header, OWNER.seed_of(generation));
                }
            }
            [b'M', b'L', b'G', ..] => reseal_block(rest),
            _ => {}
        }
    }
}

fn reseal_record(rest: &mut [u8], seed: u32) {
    let Some(len) = rest.get(4..8).map(|b| format::size(u64::from(u32_of(b)))) else {
        return;
    };
    let Some((header, rest)) = rest.split_at_mut_checked(RECORD_HEADER) else {
        return;
    };
    if let Some(body) = rest.get_mut(..len) {
        let crc = if header[3] == 1 && len > 4 {
            let crc = crc32c::crc32c(&body[4..]);
            body[..4].copy_from_slice(&crc.to_le_bytes());
            crc
        } else {
            crc32c::crc32c(body)
        };
        header[32..36].copy_from_slice(&crc.to_le_bytes());
    }
    put_crc(header, seed);
}

fn reseal_block(rest: &mut [u8]) {
    let seed = match rest.get(..8) {
        Some(b"MLGSUPER") => 0,
        Some(b"MLGFOOTR") => OWNER.seed_of(footer_generation(rest)),
        _ => OWNER.seed(),
    };
    let Some(len) = rest.get(12..16).map(|b| format::size(u64::from(u32_of(b)))) else {
        return;
    };
    if let Some(block) = rest.get_mut(..len.saturating_add(20)) {
        put_crc(block, seed);
    }
}

/// The checksum of all but the last four bytes goes there.
fn put_crc(bytes: &mut [u8], seed: u32) {
    if let Some((covered, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32c::crc32c_append(seed, covered).to_le_bytes();
    }
}

fn u32_of(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// What a footer's block says of its generation.
fn footer_generation(block: &[u8]) -> u64 {
    u64_at(block, 24)
}

/// 0 if there are fewer bytes.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).unwrap_or_default();
    bytes
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte))
}
