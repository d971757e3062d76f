//! Writing batches, sealing full segments, and what happens when the disk fails.

use bytes::Bytes;
use milonga_protocol::Position;
use milonga_protocol::messages::{Refusal, UnitResponse, WriteAnswer};
use milonga_protocol::plants::{self, Plant};

use crate::disk::{DiskDone, DiskError, DiskOp};
use crate::format::{HEADER_BYTES, segment_name, size};
use crate::segment_index::Active;
use crate::unit::{Op, Unit};
use crate::writer::{BatchContext, Placed, Waiter};

impl Unit {
    /// Sends the next batch on its way, if nothing is in flight.
    pub(crate) fn pump(&mut self) {
        let busy = self.writer.in_flight.is_some() || self.writer.sealing.is_some();
        let nothing = self.writer.queue.is_empty() && !self.writer.closing;
        if self.poison.is_some() || busy || nothing || !self.has_active() {
            return;
        }
        let (count, fits) = if self.writer.closing {
            (0, self.room(0, 0, 0) >= crate::format::BATCH_HEADER)
        } else {
            let count = self.fitting();
            (count, count > 0)
        };
        if !fits {
            return self.roll();
        }
        let Some(active) = &self.index.active else {
            return;
        };
        let context = BatchContext {
            owner: self.owner(),
            segment: active.number,
            generation: active.generation,
            epoch: self.writing_epoch(),
            mark: self.mark,
            high: self.index.high,
            trim: self.trimmed(),
        };
        let batch = self.writer.take_batch(count, &context);
        let last_seq = batch.last_seq;
        let op = DiskOp::WriteAt {
            name: segment_name(context.segment),
            offset: batch.offset,
            data: vec![batch.bytes.clone()],
            sync: true,
        };
        self.submit(Op::Batch, op);
        if plants::active(Plant::AckBeforeSync) {
            self.answer_waiters(last_seq);
        }
    }

    /// Takes a prepared file if there is no active segment. Whether there is one now.
    fn has_active(&mut self) -> bool {
        if self.index.active.is_some() {
            return true;
        }
        let Some(next) = self.files.prepared.pop_front() else {
            self.stalled();
            return false;
        };
        self.index.active = Some(Active::new(next.number, next.generation));
        self.writer.end = HEADER_BYTES;
        self.writer.size = next.size;
        self.prepare_segment();
        true
    }

    /// Bytes for a batch with so many entries, stream places and other records in the active segment.
    fn room(&self, entries: usize, places: usize, others: usize) -> usize {
        let Some(active) = &self.index.active else {
            return 0;
        };
        let footer = active.footer_bytes(entries, places, others + self.index.suspects.len() + 8);
        size(self.writer.size.saturating_sub(self.writer.end)).saturating_sub(footer)
    }

    fn fitting(&self) -> usize {
        self.writer
            .fitting(self.config.batch_bytes, |entries, places, others| {
                self.room(entries, places, others)
            })
    }

    /// Goes on in the next segment; the footer of this one first.
    fn roll(&mut self) {
        if self.files.prepared.is_empty() {
            return self.stalled();
        }
        let Some(active) = &self.index.active else {
            return;
        };
        let sealed = active.seal(self.index.high, &self.index.suspects);
        let (offset, bytes) = sealed.to_footer().encode(self.owner(), self.writer.size);
        let name = segment_name(active.number);
        self.writer.sealing = Some(Box::new(sealed));
        if offset < self.writer.end {
            // No room for it (an older file, or one with much damage): it will be scanned.
            return self.sealed();
        }
        let op = DiskOp::WriteAt {
            name,
            offset,
            data: vec![Bytes::from(bytes)],
            sync: true,
        };
        self.submit(Op::Footer, op);
    }

    /// Nothing can be written before there is another segment.
    fn stalled(&mut self) {
        if self.files.out_of_space {
            self.reject_queue();
        } else {
            self.make_segment();
        }
    }

    pub(crate) fn footer_done(&mut self, result: Result<DiskDone, DiskError>) {
        match result {
            // A footer saves time at the next start, nothing more.
            Ok(_) | Err(DiskError::Full) => self.sealed(),
            Err(error) => self.poison(&format!("writing a footer: {error}")),
        }
    }

    fn sealed(&mut self) {
        if let Some(sealed) = self.writer.sealing.take() {
            self.index.active = None;
            self.index.sealed.push(*sealed);
        }
        // The next one is taken at once: a full segment is never the last (recovery relies on it).
        if !self.files.prepared.is_empty() {
            self.has_active();
        }
    }

    pub(crate) fn batch_done(&mut self, result: Result<DiskDone, DiskError>) {
        match result {
            Ok(_) => self.batch_durable(),
            Err(DiskError::Full) => {
                self.disk_is_full();
                self.reject_queue();
            }
            Err(_) if plants::active(Plant::DiskErrorIgnored) => self.batch_durable(),
            Err(error) => self.poison(&format!("writing a batch: {error}")),
        }
    }

    fn batch_durable(&mut self) {
        let Some(batch) = self.writer.in_flight.take() else {
            return;
        };
        self.writer.closing = false;
        if let Some(active) = &mut self.index.active {
            active.add_batch(&batch.header);
        }
        self.counters.batches += 1;
        self.counters.records += u64::from(batch.header.records);
        self.writer.last_batch = batch.header.number;
        self.writer.end = batch.offset + batch.bytes.len() as u64;
        for placed in &batch.placed {
            match placed {
                Placed::Data {
                    position,
                    streams,
                    offset,
                } => {
                    self.writer.pending.remove(position);
                    self.counters.repaired += u64::from(self.index.is_lost(*position));
                    self.index.add_data(*position, *offset, streams);
                }
                Placed::Junk(junk) => {
                    for p in (junk.from..junk.end).step_by(size(junk.stride)) {
                        self.writer.pending.remove(&Position(p));
                    }
                    self.index.add_junk(*junk);
                }
            }
        }
        self.reader
            .remember(batch.header.segment, batch.offset, batch.bytes);
        self.advance_decided();
        self.answer_waiters(batch.last_seq);
        self.wake_parked();
    }

    /// Answers who waits for nothing above `seq`.
    fn answer_waiters(&mut self, seq: u64) {
        for waiter in self.writer.ready(seq) {
            match waiter {
                Waiter::Write { call, answers } => {
                    let answers = answers.into_iter().map(|(answer, _)| answer).collect();
                    let marks = self.marks();
                    self.reply(call, UnitResponse::Written { answers, marks }, Bytes::new());
                }
                Waiter::Fill { call, positions } => self.give_winners(call, positions),
            }
        }
    }

    /// There is no space even for what may use the reserve: takes back what is not on the disk, unwritten.
    fn reject_queue(&mut self) {
        let first = self.writer.first_unresolved();
        let (_, waiters) = self.writer.abandon();
        for waiter in waiters {
            match waiter {
                Waiter::Write { call, answers } => {
                    let answers = answers.into_iter().map(|(answer, seq)| {
                        if seq >= first {
                            WriteAnswer::Full
                        } else {
                            answer
                        }
                    });
                    let answers = answers.collect();
                    let marks = self.marks();
                    self.reply(call, UnitResponse::Written { answers, marks }, Bytes::new());
                }
                Waiter::Fill { call, positions } => self.give_winners(call, positions),
            }
        }
        self.no_space("disk space");
    }

    /// The refusal of a poisoned unit.
    pub(crate) fn poisoned(&self) -> Option<Refusal> {
        let why = self.poison.clone()?;
        Some(Refusal::Poisoned { why })
    }

    /// The disk failed: nothing is written any more. What was on its way may be there or not: for a seal it is lost
    /// (rule 11). While the epoch lasts it is still pending: `Lost` from the only replica would be taken for the end,
    /// though a restart decides it.
    pub(crate) fn poison(&mut self, why: &str) {
        tracing::error!(why, "the unit is poisoned");
        let why = self.poison.get_or_insert_with(|| why.to_owned()).clone();
        let refusal = Refusal::Poisoned { why: why.clone() };
        self.writer.sealing = None;
        let (positions, waiters) = self.writer.abandon();
        for position in positions {
            self.index.high = self.index.high.max(position.next());
            if self.is_first_value(position) && !self.was_settled(position) {
                self.writer.uncertain.insert(position);
            }
            self.index.lost.insert(position);
        }
        for waiter in waiters {
            let (Waiter::Write { call, .. } | Waiter::Fill { call, .. }) = waiter;
            self.refuse(call, refusal.clone());
        }
        for call in self.state.give_up() {
            self.refuse(call, refusal.clone());
        }
        self.fail_entering(&refusal);
        self.doubts_stay(&why);
    }
}
