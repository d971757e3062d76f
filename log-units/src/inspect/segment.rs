//! One segment file by itself, whole.

use bytes::Bytes;

use super::report::Affected;
use crate::format::{
    BATCH_HEADER, BlockError, Footer, HEADER_BYTES, Junk, Owner, RECORD_HEADER, RecordHeader,
    SegmentHeader, TRAILER_BYTES, Trailer, segment_name, size,
};
use crate::scan::{Content, FoundBatch, scan};

/// What is wrong in it, whatever its neighbours hold.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) offset: u64,
    pub(super) expected: String,
    pub(super) affected: Affected,
    /// Index of the batch that it lies in.
    pub(super) batch: Option<usize>,
}

/// A segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) name: String,
    pub(super) header: Option<SegmentHeader>,
    pub(super) batches: Vec<FoundBatch>,
    pub(super) footer: Option<Footer>,
    /// A trailer tells of a footer here, which cannot be read.
    pub(super) no_footer: Option<u64>,
    /// Where the footer lies, or the file ends.
    pub(super) limit: u64,
    pub(super) wrong: Vec<Wrong>,
    pub(super) len: u64,
    /// Whether all of the header block is zero.
    pub(super) blank_header: bool,
    file: Bytes,
}

impl Segment {
    /// Reads it, unless it is of another version, which is the error.
    pub(super) fn read(owner: Owner, number: u64, file: Bytes) -> Result<Self, u8> {
        let block = file.get(..size(HEADER_BYTES)).unwrap_or(&file);
        let mut segment = Self {
            number,
            name: segment_name(number),
            header: None,
            batches: Vec::new(),
            footer: None,
            no_footer: None,
            limit: file.len() as u64,
            wrong: Vec::new(),
            len: file.len() as u64,
            blank_header: first_byte(block, 0, HEADER_BYTES).is_none(),
            file: file.clone(),
        };
        match SegmentHeader::decode(owner, &file) {
            Ok(header) => segment.check_header(owner, header),
            Err(BlockError::Version(version)) => return Err(version),
            Err(_) => {}
        }
        let generation = segment.header.map(|h| h.generation);
        segment.batches = scan(owner, number, generation, &file);
        segment.read_footer(owner);
        for at in 0..segment.batches.len() {
            segment.check_batch(owner, at);
        }
        Ok(segment)
    }

    fn note(&mut self, offset: u64, expected: String) {
        self.wrong.push(Wrong {
            offset,
            expected,
            affected: Affected::Nothing,
            batch: None,
        });
    }

    fn check_header(&mut self, owner: Owner, header: SegmentHeader) {
        if header.number != self.number {
            let expected = format!(
                "segment {}: it is segment {} under another name",
                self.number, header.number
            );
            return self.note(0, expected);
        }
        let written = header.encode(owner).len();
        if let Some(at) = first_byte(&self.file, written as u64, HEADER_BYTES) {
            self.note(at, "zeros behind the header".to_owned());
        }
        if self.len > header.size
            && let Some(at) = first_byte(&self.file, header.size, self.len)
        {
            self.note(
                at,
                format!("nothing: the file was made with {} bytes", header.size),
            );
        }
        self.header = Some(header);
    }

    /// As the header says, or the first batch.
    pub(super) fn generation(&self) -> Option<u64> {
        match (&self.header, self.batches.first()) {
            (Some(header), _) => Some(header.generation),
            (None, first) => first.map(|batch| batch.header.generation),
        }
    }

    fn read_footer(&mut self, owner: Owner) {
        let len = self.header.map_or(self.len, |h| h.size);
        let Some(at) = len.checked_sub(TRAILER_BYTES).filter(|_| len <= self.len) else {
            return;
        };
        let trailer = &self.file[size(at)..size(len)];
        let Some(trailer) = Trailer::decode(owner, trailer).filter(|t| {
            let end = t.offset.checked_add(t.len);
            Some(t.generation) == self.generation()
                && t.offset >= HEADER_BYTES
                && end.is_some_and(|end| end <= at)
        }) else {
            self.limit = len;
            return;
        };
        self.limit = trailer.offset;
        let end = trailer.offset + trailer.len;
        let bytes = &self.file[size(trailer.offset)..size(end)];
        match Footer::decode(owner, trailer.generation, bytes) {
            Ok(footer) if footer.number == self.number => self.footer = Some(footer),
            _ => self.no_footer = Some(trailer.offset),
        }
        let written = trailer.encode(owner);
        let found = self.file[size(at)..size(len)].iter();
        let other = found.zip(&written).position(|(a, b)| a != b);
        let other = other.map(|other| at + other as u64);
        if let Some(at) = first_byte(&self.file, end, at).or(other) {
            self.note(at, "zeros around the trailer".to_owned());
        }
    }

    /// Offset behind the last batch.
    pub(super) fn end(&self) -> u64 {
        self.batches.last().map_or(HEADER_BYTES, FoundBatch::end)
    }

    /// The first byte behind the last batch, and before the footer, that is not zero.
    pub(super) fn rest(&self) -> Option<u64> {
        first_byte(&self.file, self.end(), self.limit)
    }

    /// Walks over the records as they lie, so that every byte of the batch is accounted for.
    fn check_batch(&mut self, owner: Owner, nth: usize) {
        let Some(batch) = self.batches.get(nth) else {
            return;
        };
        let header = batch.header;
        let seed = owner.seed_of(header.generation);
        let span = Affected::Positions(header.lowest, header.end);
        let (mut at, end) = (batch.offset + BATCH_HEADER as u64, batch.end());
        let mut found = batch.records.iter().peekable();
        let mut wrong = Vec::new();
        let mut seen = 0_u64;
        let mut in_damage = false;
        while at + RECORD_HEADER as u64 <= end {
            let record = RecordHeader::decode(seed, &self.file[size(at)..size(end)])
                .filter(|r| r.batch == header.number && at + r.total() as u64 <= end);
            let Some(record) = record else {
                if !in_damage {
                    let expected = format!("a record of batch {}", header.number);
                    wrong.push((at, expected, span));
                }
                in_damage = true;
                at += 8;
                continue;
            };
            in_damage = false;
            seen += 1;
            if found.next_if(|f| f.offset == at).is_none() {
                let expected = format!(
                    "{} bytes with the right checksum in a record of batch {}",
                    record.len, header.number
                );
                let affected = match record.kind {
                    crate::format::RecordKind::Data => {
                        Affected::Positions(record.position, record.position.next())
                    }
                    crate::format::RecordKind::Junk => span,
                };
                wrong.push((at + RECORD_HEADER as u64, expected, affected));
            } else {
                let body = at + RECORD_HEADER as u64 + u64::from(record.len);
                let next = at + record.total() as u64;
                if let Some(at) = first_byte(&self.file, body, next) {
                    wrong.push((at, "zeros behind a record".to_owned(), Affected::Nothing));
                }
            }
            at += record.total() as u64;
        }
        if wrong.is_empty() && seen != u64::from(header.records) {
            let expected = format!("{} records in batch {}", header.records, header.number);
            wrong.push((batch.offset, format!("{expected}, not {seen}"), span));
        }
        if at < end && !in_damage {
            let what = format!("a record of batch {}", header.number);
            wrong.push((at, what, span));
        }
        let wrong = wrong.into_iter().map(|(offset, expected, affected)| Wrong {
            offset,
            expected,
            affected,
            batch: Some(nth),
        });
        self.wrong.extend(wrong);
    }
}

/// First and last position of what batches hold.
pub(super) fn positions(batches: &[FoundBatch]) -> Option<(u64, u64)> {
    let records = batches.iter().flat_map(|batch| &batch.records);
    let spans = records.map(|record| match &record.content {
        Content::Data(_) => (record.position.0, record.position.0),
        Content::Junk(junk) => (junk.from, last_of(*junk)),
    });
    spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// The last position of a range of junk.
fn last_of(junk: Junk) -> u64 {
    junk.end - 1 - (junk.end - 1 - junk.from) % junk.stride.max(1)
}

/// How many of its positions lie at or above `from`.
pub(super) fn junk_from(junk: Junk, from: u64) -> u64 {
    let stride = junk.stride.max(1);
    let all = junk.end.saturating_sub(junk.from).div_ceil(stride);
    let below = from
        .min(junk.end)
        .saturating_sub(junk.from)
        .div_ceil(stride);
    all - below
}

/// The first byte of `from..to` that is not zero. Most are, and whole pages are compared at once.
pub(super) fn first_byte(file: &[u8], from: u64, to: u64) -> Option<u64> {
    const ZEROS: [u8; 4_096] = [0; 4_096];
    let to = size(to).min(file.len());
    let mut at = size(from).min(to);
    for page in file[at..to].chunks(ZEROS.len()) {
        if page != &ZEROS[..page.len()] {
            let inside = page.iter().position(|byte| *byte != 0)?;
            return Some((at + inside) as u64);
        }
        at += page.len();
    }
    None
}
