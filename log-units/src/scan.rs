//! Reading the batches of a segment without an index, damaged or not. Pure: bytes in, findings out.

use bytes::Bytes;
use milonga_protocol::{EncodedEntry, Epoch, Position, StreamId};

use crate::format::{
    BATCH_HEADER, BatchHeader, HEADER_BYTES, Junk, Owner, RECORD_HEADER, Reader, RecordHeader,
    RecordKind, size,
};

/// What a readable record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Vec<StreamId>),
    Junk(Junk),
}

/// A record that verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRecord {
    pub(crate) position: Position,
    pub(crate) epoch: Epoch,
    /// Offset of the record's header in the file.
    pub(crate) offset: u64,
    pub(crate) content: Content,
}

/// A batch whose header verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundBatch {
    pub(crate) header: BatchHeader,
    /// Offset of the batch's header in the file.
    pub(crate) offset: u64,
    pub(crate) records: Vec<FoundRecord>,
    /// What is damaged in it: exact positions where the record's header could be read, else the whole span.
    pub(crate) damage: Vec<(Position, Position)>,
}

impl FoundBatch {
    /// Offset behind the batch.
    pub(crate) fn end(&self) -> u64 {
        self.offset + BATCH_HEADER as u64 + u64::from(self.header.body_len)
    }
}

/// Finds the batches of segment `number` in the bytes of its file. Without a `generation` (unreadable header
/// block) the first batch that verifies says it: files are never reused, so it can only be the right one.
pub(crate) fn scan(
    owner: Owner,
    number: u64,
    mut generation: Option<u64>,
    file: &Bytes,
) -> Vec<FoundBatch> {
    let mut found: Vec<FoundBatch> = Vec::new();
    let mut at = size(HEADER_BYTES);
    while let Some(header) = find_header(owner, number, generation, &found, file, &mut at) {
        generation = Some(header.generation);
        let batch = read_batch(owner, header, at, file);
        at = size(batch.end());
        found.push(batch);
    }
    found
}

/// The next batch header at or behind `at`, which is moved to it. Batches lie back to back, so unless something is
/// damaged the first try succeeds, or nothing follows.
fn find_header(
    owner: Owner,
    number: u64,
    generation: Option<u64>,
    before: &[FoundBatch],
    file: &Bytes,
    at: &mut usize,
) -> Option<BatchHeader> {
    let last = before.last().map_or(0, |batch| batch.header.number);
    let mut offset = *at;
    while offset + BATCH_HEADER <= file.len() {
        let header = BatchHeader::decode(owner, &file[offset..]).filter(|header| {
            header.segment == number
                && generation.is_none_or(|g| g == header.generation)
                && header.number > last
                && offset + BATCH_HEADER + header.body_len as usize <= file.len()
        });
        if header.is_some() {
            *at = offset;
            return header;
        }
        offset += 8;
    }
    None
}

fn read_batch(owner: Owner, header: BatchHeader, offset: usize, file: &Bytes) -> FoundBatch {
    let seed = owner.seed_of(header.generation);
    let end = offset + BATCH_HEADER + header.body_len as usize;
    let mut batch = FoundBatch {
        header,
        offset: offset as u64,
        records: Vec::with_capacity((header.records as usize).min(1 << 16)),
        damage: Vec::new(),
    };
    let mut seen = 0_u32;
    let mut at = offset + BATCH_HEADER;
    while at + RECORD_HEADER <= end {
        let record = RecordHeader::decode(seed, &file[at..end])
            .filter(|r| r.batch == header.number && at + r.total() <= end);
        let Some(record) = record else {
            at += 8;
            continue;
        };
        let body = file.slice(at + RECORD_HEADER..at + RECORD_HEADER + record.len as usize);
        match content(&record, body) {
            Some(content) => batch.records.push(FoundRecord {
                position: record.position,
                epoch: record.epoch,
                offset: at as u64,
                content,
            }),
            None if record.kind == RecordKind::Data => {
                batch.damage.push((record.position, record.position.next()));
            }
            None => batch.damage.push((header.lowest, header.end)),
        }
        seen = seen.saturating_add(1);
        at += record.total();
    }
    if seen < header.records {
        batch.damage.push((header.lowest, header.end));
    }
    batch
}

/// The record's content, if its body verifies.
fn content(record: &RecordHeader, body: Bytes) -> Option<Content> {
    let mut r = Reader(&body);
    match record.kind {
        RecordKind::Data => {
            let tied = r.u32() == Some(record.body_crc);
            let entry = EncodedEntry::check(body).ok().filter(|_| tied)?;
            Some(Content::Data(entry.streams()))
        }
        _ if crc32c::crc32c(&body) != record.body_crc => None,
        RecordKind::Junk => {
            let (end, stride) = (r.u64()?, r.u64()?);
            let from = record.position.0;
            (from < end && stride > 0).then_some(Content::Junk(Junk { from, end, stride }))
        }
    }
}

/// Whether any byte from `offset` on is not zero.
pub(crate) fn has_bytes_from(file: &Bytes, offset: u64) -> bool {
    file.get(size(offset).min(file.len())..)
        .is_some_and(|rest| rest.iter().any(|byte| *byte != 0))
}
