//! Reading entries: from the batches written last, or from disk, nearby ones in one operation.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use milonga_protocol::messages::{CallId, UnitReadAnswer};
use milonga_protocol::{EncodedEntry, Position};

use crate::format::{Owner, RECORD_HEADER, RecordHeader, RecordKind, size};
use crate::index::Place;

/// Most disk reads under way.
const MOST_READS: usize = 16;
/// Most jobs under way; more are refused as `Busy`.
pub(crate) const MOST_JOBS: usize = 4_096;
/// Bytes that one answer carries, exceeded by one entry at most: it must fit a frame.
pub(crate) const ANSWER_BYTES: usize = 8 << 20;
/// Most bytes that jobs under way may hold; more jobs are refused as `Busy`.
const JOBS_BYTES: usize = 256 << 20;
/// Most bytes of one coalesced read.
const CHUNK: u64 = 1 << 20;
/// Bytes that are read for nothing rather than asking twice.
const GAP: u64 = 16 << 10;

/// What is known of one position of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Anything but data.
    Known(UnitReadAnswer),
    Data(Bytes),
    /// To be read.
    Disk(Place),
    /// Over the answer's size: ask again.
    Later,
    /// The disk did not give it, and nobody knows whether it is there.
    Withheld,
}

/// A list of positions that is being read, for somebody.
#[derive(Debug)]
pub(crate) struct Job<P> {
    pub(crate) call: CallId,
    pub(crate) purpose: P,
    pub(crate) slots: Vec<(Position, Slot)>,
    /// Why the disk could not be asked. Then nothing is known of what was to be read.
    pub(crate) not_now: Option<String>,
    /// Why some entries are `Withheld`.
    pub(crate) withheld: Option<String>,
    /// Chunks under way.
    missing: usize,
    /// Bytes of entries so far, guessed where they are not read.
    bytes: usize,
    budget: usize,
}

/// One read.
#[derive(Debug)]
struct Chunk {
    job: u64,
    segment: u64,
    offset: u64,
    len: u64,
    /// Slots and the offsets of their records.
    wants: Vec<(usize, u64)>,
}

/// What a read of the disk gave.
#[derive(Debug)]
pub(crate) enum Found {
    Bytes(Bytes),
    /// The file, or that part of it, is gone or unreadable.
    Nothing,
    /// The disk was not asked at all, and why.
    NotNow(String),
    /// The disk gave nothing, and nobody knows whether there is something: why.
    Withheld(String),
}

/// Jobs, reads and the cache. `P` says what a job is for.
#[derive(Debug)]
pub(crate) struct ReaderOf<P> {
    jobs: BTreeMap<u64, Job<P>>,
    chunks: BTreeMap<u64, Chunk>,
    queue: VecDeque<u64>,
    running: usize,
    /// Bytes that the jobs hold or will.
    bytes: usize,
    last_id: u64,
    recent: Recent,
}

/// The reader of a unit.
pub(crate) type Reader = ReaderOf<crate::read::Purpose>;

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReadOp {
    pub(crate) chunk: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A record in bytes.
enum Parsed {
    Entry(Bytes),
    /// The record goes on behind the bytes: its whole length.
    Longer(u64),
    Bad,
}

impl<P> ReaderOf<P> {
    pub(crate) fn new(cache_bytes: usize) -> Self {
        Self {
            jobs: BTreeMap::new(),
            chunks: BTreeMap::new(),
            queue: VecDeque::new(),
            running: 0,
            bytes: 0,
            last_id: 0,
            recent: Recent {
                blocks: VecDeque::new(),
                bytes: 0,
                most: cache_bytes,
            },
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.jobs.len() >= MOST_JOBS || self.bytes >= JOBS_BYTES
    }

    pub(crate) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn cached_bytes(&self) -> usize {
        self.recent.bytes
    }

    /// Keeps a batch for readers.
    pub(crate) fn remember(&mut self, segment: u64, offset: u64, batch: Bytes) {
        self.recent.push(segment, offset, batch);
    }

    pub(crate) fn forget_segment(&mut self, segment: u64) {
        self.recent.forget(segment);
    }

    /// The entry at `place`, if it was written lately.
    pub(crate) fn cached(&self, place: Place) -> Option<Bytes> {
        self.recent.entry(place)
    }

    /// Begins a job. `guess` estimates a record's bytes. Returns the job at once if nothing has to be read.
    pub(crate) fn begin(
        &mut self,
        call: CallId,
        purpose: P,
        mut slots: Vec<(Position, Slot)>,
        budget: usize,
        guess: impl Fn(Position, Place) -> u64,
    ) -> Option<Job<P>> {
        let mut bytes = 0;
        let mut wants: Vec<(Place, u64, usize)> = Vec::new();
        let mut given = false;
        for (at, (position, slot)) in slots.iter_mut().enumerate() {
            let (len, place) = match slot {
                Slot::Data(data) => (data.len(), None),
                Slot::Disk(place) => (size(guess(*position, *place)), Some(*place)),
                Slot::Known(_) | Slot::Later | Slot::Withheld => continue,
            };
            if given && bytes + len > budget {
                *slot = Slot::Later;
                continue;
            }
            given = true;
            bytes += len;
            if let Some(place) = place {
                wants.push((place, len as u64, at));
            }
        }
        let mut job = Job {
            call,
            purpose,
            slots,
            not_now: None,
            withheld: None,
            missing: 0,
            bytes,
            budget,
        };
        if wants.is_empty() {
            return Some(job);
        }
        self.last_id += 1;
        let id = self.last_id;
        wants.sort_unstable();
        job.missing = self.plan(id, &wants);
        self.bytes += job.bytes;
        self.jobs.insert(id, job);
        None
    }

    /// Makes chunks of what is wanted, ascending; returns how many.
    fn plan(&mut self, job: u64, wants: &[(Place, u64, usize)]) -> usize {
        let mut chunks: Vec<Chunk> = Vec::new();
        for (place, len, slot) in wants {
            let end = place.offset.saturating_add(*len);
            match chunks.last_mut() {
                Some(chunk)
                    if chunk.segment == place.segment
                        && place.offset <= chunk.offset + chunk.len + GAP
                        && end.saturating_sub(chunk.offset) <= CHUNK =>
                {
                    chunk.len = chunk.len.max(end - chunk.offset);
                    chunk.wants.push((*slot, place.offset));
                }
                _ => chunks.push(Chunk {
                    job,
                    segment: place.segment,
                    offset: place.offset,
                    len: *len,
                    wants: vec![(*slot, place.offset)],
                }),
            }
        }
        let count = chunks.len();
        for chunk in chunks {
            self.enqueue(chunk);
        }
        count
    }

    fn enqueue(&mut self, chunk: Chunk) {
        self.last_id += 1;
        self.queue.push_back(self.last_id);
        self.chunks.insert(self.last_id, chunk);
    }

    /// The next read to submit, if another one may be under way.
    pub(crate) fn next_read(&mut self) -> Option<ReadOp> {
        if self.running >= MOST_READS {
            return None;
        }
        let id = self.queue.pop_front()?;
        let chunk = self.chunks.get(&id)?;
        self.running += 1;
        Some(ReadOp {
            chunk: id,
            segment: chunk.segment,
            offset: chunk.offset,
            len: chunk.len,
        })
    }

    /// A read ended: another one may be under way. What it gave is told to [`Self::done`], or it is asked for again.
    pub(crate) const fn ended(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Asks once more for what a read did not give.
    pub(crate) fn again(&mut self, chunk: u64) {
        self.queue.push_back(chunk);
    }

    /// Whether a read is about one entry only.
    pub(crate) fn is_single(&self, chunk: u64) -> bool {
        self.chunks.get(&chunk).is_some_and(|c| c.wants.len() == 1)
    }

    /// The segment that a read is about.
    pub(crate) fn segment_of(&self, chunk: u64) -> Option<u64> {
        self.chunks.get(&chunk).map(|c| c.segment)
    }

    /// Takes what a read gave. Returns the job if that was its last one, and the positions that
    /// turned out to be damaged.
    pub(crate) fn done(
        &mut self,
        id: u64,
        owner: Owner,
        generation: u64,
        found: &Found,
    ) -> (Option<Job<P>>, Vec<(Position, Place)>) {
        let mut damaged = Vec::new();
        let Some(chunk) = self.chunks.remove(&id) else {
            return (None, damaged);
        };
        let Some(job) = self.jobs.get_mut(&chunk.job) else {
            return (None, damaged);
        };
        let bytes = match found {
            Found::Bytes(bytes) => Some(bytes),
            // One bad sector must not cost its neighbours.
            Found::Nothing if chunk.wants.len() > 1 => {
                job.missing += chunk.wants.len() - 1;
                self.one_by_one(&chunk);
                return (None, damaged);
            }
            Found::Nothing => None,
            Found::NotNow(why) => {
                job.not_now = Some(why.clone());
                return (self.one_less(chunk.job), damaged);
            }
            Found::Withheld(why) => {
                for (slot, _) in &chunk.wants {
                    if let Some((_, value)) = job.slots.get_mut(*slot) {
                        *value = Slot::Withheld;
                    }
                }
                job.withheld = Some(why.clone());
                return (self.one_less(chunk.job), damaged);
            }
        };
        let seed = owner.seed_of(generation);
        let mut again = Vec::new();
        let is_data = |slot: &(Position, Slot)| matches!(slot.1, Slot::Data(_) | Slot::Disk(_));
        let first = job.slots.iter().position(is_data);
        for (slot, offset) in chunk.wants {
            let Some((position, value)) = job.slots.get_mut(slot) else {
                continue;
            };
            let at = size(offset - chunk.offset);
            let record = bytes.and_then(|b| (at <= b.len()).then(|| b.slice(at..)));
            let place = Place {
                segment: chunk.segment,
                offset,
            };
            match record.map_or(Parsed::Bad, |r| parse(seed, *position, &r)) {
                Parsed::Entry(entry) => *value = Slot::Data(entry),
                // Asked once more, with the right length; a file that ends there is damaged.
                Parsed::Longer(len) if len > chunk.len.saturating_sub(at as u64) => {
                    job.bytes += size(len);
                    self.bytes += size(len);
                    if job.bytes > job.budget && first != Some(slot) {
                        *value = Slot::Later;
                    } else {
                        again.push((place, len, slot));
                    }
                }
                _ => {
                    *value = Slot::Known(UnitReadAnswer::Lost);
                    damaged.push((*position, place));
                }
            }
        }
        let more = self.plan(chunk.job, &again);
        if let Some(job) = self.jobs.get_mut(&chunk.job) {
            job.missing += more;
        }
        (self.one_less(chunk.job), damaged)
    }

    /// Asks for each record of a chunk alone.
    fn one_by_one(&mut self, chunk: &Chunk) {
        let end = chunk.offset + chunk.len;
        for (index, (slot, offset)) in chunk.wants.iter().enumerate() {
            let next = chunk.wants.get(index + 1).map_or(end, |(_, next)| *next);
            self.enqueue(Chunk {
                job: chunk.job,
                segment: chunk.segment,
                offset: *offset,
                len: next - offset,
                wants: vec![(*slot, *offset)],
            });
        }
    }

    /// A chunk is done; the job, if it was the last one.
    fn one_less(&mut self, id: u64) -> Option<Job<P>> {
        let job = self.jobs.get_mut(&id)?;
        job.missing -= 1;
        if job.missing > 0 {
            return None;
        }
        let job = self.jobs.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(job.bytes);
        Some(job)
    }
}

fn parse(seed: u32, position: Position, bytes: &Bytes) -> Parsed {
    if bytes.len() < RECORD_HEADER {
        return Parsed::Longer(4_096);
    }
    let Some(header) = RecordHeader::decode(seed, bytes) else {
        return Parsed::Bad;
    };
    if header.kind != RecordKind::Data || header.position != position {
        return Parsed::Bad;
    }
    let end = RECORD_HEADER + header.len as usize;
    if bytes.len() < end {
        return Parsed::Longer(header.total() as u64);
    }
    let entry = bytes.slice(RECORD_HEADER..end);
    let crc = entry.first_chunk::<4>().map(|c| u32::from_le_bytes(*c));
    if crc == Some(header.body_crc) && EncodedEntry::check(entry.clone()).is_ok() {
        Parsed::Entry(entry)
    } else {
        Parsed::Bad
    }
}

/// Puts entries one behind the other; a single one is not copied.
pub(crate) fn concat(entries: &[Bytes]) -> Bytes {
    if let [single] = entries {
        return single.clone();
    }
    let mut body = BytesMut::with_capacity(entries.iter().map(Bytes::len).sum());
    for entry in entries {
        body.extend_from_slice(entry);
    }
    body.freeze()
}

/// The batches written last, whole, oldest first.
#[derive(Debug)]
struct Recent {
    blocks: VecDeque<(Place, Bytes)>,
    bytes: usize,
    most: usize,
}

impl Recent {
    fn push(&mut self, segment: u64, offset: u64, batch: Bytes) {
        if batch.len() > self.most {
            return;
        }
        self.bytes += batch.len();
        self.blocks.push_back((Place { segment, offset }, batch));
        while self.bytes > self.most {
            let Some((_, oldest)) = self.blocks.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
    }

    fn forget(&mut self, segment: u64) {
        self.blocks.retain(|(place, _)| place.segment != segment);
        self.bytes = self.blocks.iter().map(|(_, batch)| batch.len()).sum();
    }

    fn entry(&self, place: Place) -> Option<Bytes> {
        let after = self.blocks.partition_point(|(start, _)| *start <= place);
        let (start, batch) = self.blocks.get(after.checked_sub(1)?)?;
        if start.segment != place.segment {
            return None;
        }
        let at = size(place.offset - start.offset);
        let len = batch.get(at + 4..at + 8)?;
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let from = at + RECORD_HEADER;
        (from + len <= batch.len()).then(|| batch.slice(from..from + len))
    }
}
