//! Group commit: what waits for the disk, and for whom.
//!
//! While one batch is being written everything that arrives queues; when it is durable, all that waits is the next
//! batch. A value is `pending` from its admission until it is durable, and then in the index.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use milonga_protocol::messages::{CallId, WriteAnswer};
use milonga_protocol::{EncodedEntry, EntryId, Epoch, Position, StreamId};

use crate::format::{
    BATCH_HEADER, BatchHeader, Junk, Owner, RecordHeader, RecordKind, encode_record, record_bytes,
};
use crate::segment_index::Sealed;

/// A value on its way to the disk.
#[derive(Debug)]
pub(crate) enum NewValue {
    Data {
        entry: EncodedEntry,
        streams: Vec<StreamId>,
    },
    /// Junk; own positions are `stride` apart.
    Junk { stride: u64 },
}

/// An admitted value.
#[derive(Debug)]
pub(crate) struct Queued {
    /// Order of admission, from 1.
    pub(crate) seq: u64,
    pub(crate) position: Position,
    pub(crate) value: NewValue,
}

impl Queued {
    fn bytes(&self) -> usize {
        match &self.value {
            NewValue::Data { entry, .. } => record_bytes(entry.len()),
            NewValue::Junk { .. } => record_bytes(JUNK_BODY),
        }
    }
}

/// Bytes of a junk record's body.
const JUNK_BODY: usize = 16;

/// What is known of a pending position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) seq: u64,
    /// `None`: junk.
    pub(crate) id: Option<EntryId>,
}

/// Somebody who waits for durability.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// Answers, each with what it waits for (0: nothing).
    Write {
        call: CallId,
        answers: Vec<(WriteAnswer, u64)>,
    },
    Fill {
        call: CallId,
        positions: Vec<Position>,
    },
}

/// A record in flight: what the index needs once it is durable.
#[derive(Debug)]
pub(crate) enum Placed {
    Data {
        position: Position,
        streams: Vec<StreamId>,
        offset: u64,
    },
    Junk(Junk),
}

/// A batch in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) header: BatchHeader,
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) placed: Vec<Placed>,
    /// The last value admitted to it; 0 for a batch without records.
    pub(crate) last_seq: u64,
}

/// State of the log's end.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) queued_bytes: usize,
    pub(crate) pending: BTreeMap<Position, Pending>,
    pub(crate) in_flight: Option<InFlight>,
    /// The footer of this segment is being written.
    pub(crate) sealing: Option<Box<Sealed>>,
    /// By what they wait for.
    pub(crate) waiters: BTreeMap<u64, Vec<Waiter>>,
    /// An empty batch is to be written: behind it, damage to the batch before is no torn write, but lost data, and no
    /// number of a torn batch is given again.
    pub(crate) closing: bool,
    /// First values that were on their way when the disk failed: only a restart tells whether they are there.
    pub(crate) uncertain: BTreeSet<Position>,
    last_seq: u64,
    /// Offset of the next batch in the active segment.
    pub(crate) end: u64,
    /// Size of the active segment's file.
    pub(crate) size: u64,
    pub(crate) next_batch: u64,
    pub(crate) last_batch: u64,
}

/// What a batch takes from its surroundings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchContext {
    pub(crate) owner: Owner,
    pub(crate) segment: u64,
    pub(crate) generation: u64,
    pub(crate) epoch: Epoch,
    pub(crate) mark: Position,
    pub(crate) high: Position,
    pub(crate) trim: Position,
}

impl Writer {
    /// Whether nothing is on its way to the disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_none() && self.sealing.is_none() && self.queue.is_empty() && !self.closing
    }

    /// Admits a value; returns what to wait for.
    pub(crate) fn admit(&mut self, position: Position, value: NewValue) -> u64 {
        self.last_seq += 1;
        let id = match &value {
            NewValue::Data { entry, .. } => Some(entry.id()),
            NewValue::Junk { .. } => None,
        };
        let seq = self.last_seq;
        self.pending.insert(position, Pending { seq, id });
        let queued = Queued {
            seq,
            position,
            value,
        };
        self.queued_bytes += queued.bytes();
        self.queue.push_back(queued);
        seq
    }

    pub(crate) fn wait(&mut self, seq: u64, waiter: Waiter) {
        self.waiters.entry(seq).or_default().push(waiter);
    }

    /// How many of the queued values go into the next batch. `room` gives the bytes that the segment has for a batch
    /// with so many entries, stream places and other records.
    pub(crate) fn fitting(
        &self,
        batch_bytes: usize,
        room: impl Fn(usize, usize, usize) -> usize,
    ) -> usize {
        let (mut bytes, mut entries, mut places, mut junk) = (BATCH_HEADER, 0, 0, 0);
        let mut count = 0;
        let mut next_junk = None;
        for queued in &self.queue {
            match &queued.value {
                NewValue::Data { streams, .. } => {
                    bytes += queued.bytes();
                    entries += 1;
                    places += streams.len();
                    next_junk = None;
                }
                NewValue::Junk { stride } => {
                    // Junk that goes on where the last left off is the same record.
                    if next_junk != Some((queued.position, *stride)) {
                        bytes += queued.bytes();
                        junk += 1;
                    }
                    next_junk = Some((queued.position.plus(*stride), *stride));
                }
            }
            if (count > 0 && bytes > batch_bytes) || bytes > room(entries, places, junk) {
                break;
            }
            count += 1;
        }
        count
    }

    /// Takes the first `count` queued values as the next batch, in flight from now on.
    pub(crate) fn take_batch(&mut self, count: usize, context: &BatchContext) -> &InFlight {
        let number = self.next_batch;
        self.next_batch += 1;
        let seed = context.owner.seed_of(context.generation);
        let data = self.queue.iter().take(count).map(Queued::bytes);
        let bytes = data.sum::<usize>();
        let mut encoder = Encoder {
            out: Vec::with_capacity(BATCH_HEADER + bytes),
            base: self.end,
            seed,
            epoch: context.epoch,
            batch: number,
            placed: Vec::with_capacity(count),
            records: 0,
            lowest: Position::MAX,
            end: Position::ZERO,
            junk: None,
        };
        encoder.out.resize(BATCH_HEADER, 0);
        let mut last_seq = 0;
        for queued in self.queue.drain(..count) {
            self.queued_bytes = self.queued_bytes.saturating_sub(queued.bytes());
            last_seq = queued.seq;
            encoder.add(queued);
        }
        encoder.flush_junk();
        let header = BatchHeader {
            generation: context.generation,
            segment: context.segment,
            number,
            previous: self.last_batch,
            epoch: context.epoch,
            mark: context.mark,
            high: context.high,
            lowest: encoder.lowest.min(encoder.end),
            end: encoder.end,
            trim: context.trim,
            body_len: u32::try_from(encoder.out.len() - BATCH_HEADER).unwrap_or(u32::MAX),
            records: encoder.records,
        };
        encoder.out[..BATCH_HEADER].copy_from_slice(&header.encode(context.owner));
        self.in_flight.insert(InFlight {
            header,
            offset: self.end,
            bytes: encoder.out.into(),
            placed: encoder.placed,
            last_seq,
        })
    }

    /// The first admission that is not durable yet.
    pub(crate) fn first_unresolved(&self) -> u64 {
        let pending = self.pending.values().map(|pending| pending.seq);
        pending.min().unwrap_or(self.last_seq + 1)
    }

    /// The waiters that wait for nothing above `seq`.
    pub(crate) fn ready(&mut self, seq: u64) -> Vec<Waiter> {
        let mut ready = Vec::new();
        while let Some(first) = self.waiters.first_entry().filter(|e| *e.key() <= seq) {
            ready.extend(first.remove());
        }
        ready
    }

    /// Takes everything that is queued or in flight out, and all waiters.
    pub(crate) fn abandon(&mut self) -> (Vec<Position>, Vec<Waiter>) {
        self.queue.clear();
        self.queued_bytes = 0;
        self.in_flight = None;
        self.closing = false;
        let pending = std::mem::take(&mut self.pending);
        (pending.into_keys().collect(), self.ready(u64::MAX))
    }
}

struct Encoder {
    out: Vec<u8>,
    base: u64,
    seed: u32,
    epoch: Epoch,
    batch: u64,
    placed: Vec<Placed>,
    records: u32,
    lowest: Position,
    end: Position,
    /// Junk that may still grow.
    junk: Option<Junk>,
}

impl Encoder {
    fn add(&mut self, queued: Queued) {
        let position = queued.position;
        self.lowest = self.lowest.min(position);
        self.end = self.end.max(position.next());
        match queued.value {
            NewValue::Data { entry, streams } => {
                self.flush_junk();
                let offset = self.base + self.out.len() as u64;
                let body = entry.bytes();
                let crc = body
                    .first_chunk::<4>()
                    .map_or(0, |c| u32::from_le_bytes(*c));
                self.put(RecordKind::Data, position, crc, body);
                self.placed.push(Placed::Data {
                    position,
                    streams,
                    offset,
                });
            }
            NewValue::Junk { stride } => match &mut self.junk {
                Some(junk)
                    if junk.stride == stride
                        && (junk.end - 1).checked_add(stride) == Some(position.0) =>
                {
                    junk.end = position.0.saturating_add(1);
                }
                _ => {
                    self.flush_junk();
                    self.junk = Some(Junk {
                        from: position.0,
                        end: position.0.saturating_add(1),
                        stride: stride.max(1),
                    });
                }
            },
        }
    }

    fn flush_junk(&mut self) {
        let Some(junk) = self.junk.take() else {
            return;
        };
        let mut body = [0; JUNK_BODY];
        body[..8].copy_from_slice(&junk.end.to_le_bytes());
        body[8..].copy_from_slice(&junk.stride.to_le_bytes());
        let crc = crc32c::crc32c(&body);
        self.put(RecordKind::Junk, Position(junk.from), crc, &body);
        self.placed.push(Placed::Junk(junk));
    }

    fn put(&mut self, kind: RecordKind, position: Position, body_crc: u32, body: &[u8]) {
        let header = RecordHeader {
            kind,
            len: u32::try_from(body.len()).unwrap_or(u32::MAX),
            position,
            epoch: self.epoch,
            batch: self.batch,
            body_crc,
        };
        encode_record(&mut self.out, self.seed, &header, body);
        self.records += 1;
    }
}
