//! Reads of single positions, and what comes of every finished read.

use bytes::Bytes;
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::{CallId, Marks, Refusal, UnitReadAnswer, UnitResponse, WireValue};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{EncodedEntry, Epoch, Position};

use crate::disk::{DiskDone, DiskError, DiskOp};
use crate::format::segment_name;
use crate::index::{Held, Place};
use crate::marks;
use crate::reader::{ANSWER_BYTES, Found, Job, Slot, concat};
use crate::streams::StreamsRead;
use crate::unit::{Op, Unit};
use crate::write::WriteRequest;

/// What a read is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// A `Read`, with the marks it was asked under.
    Values(Marks),
    /// The winners of a `Fill`.
    Winners,
    /// A `ReadStreams`.
    Streams(StreamsRead),
    /// A `Write` that has to know what is there.
    Compare(WriteRequest),
    /// Nobody's: to find damage.
    Scrub,
}

impl Job<Purpose> {
    /// Whether there is no answer to give: what was withheld comes first, or is needed.
    fn gives_nothing(&self) -> bool {
        match self.purpose {
            // Who reads streams is told where the entry is, and looks for it elsewhere.
            Purpose::Streams(_) => false,
            Purpose::Compare(_) => true,
            _ => matches!(self.slots.first(), Some((_, Slot::Withheld))),
        }
    }
}

impl Unit {
    pub(crate) fn read(
        &mut self,
        call: CallId,
        epoch: Epoch,
        settled: Position,
        positions: Vec<Position>,
    ) {
        if positions.len() > ITEMS_PER_MESSAGE {
            let why = format!("{} positions, at most {ITEMS_PER_MESSAGE}", positions.len());
            return self.refuse(call, Refusal::Malformed { why });
        }
        if self.reader.is_busy() {
            let what = "reads under way".to_owned();
            return self.refuse(call, Refusal::Busy { what });
        }
        match self.check(epoch).map(|_| ()) {
            Ok(()) => {
                self.told(positions.first().copied(), settled);
                let slots = positions.iter().map(|p| (*p, self.slot(*p))).collect();
                let marks = self.marks();
                self.begin_read(call, Purpose::Values(marks), slots, ANSWER_BYTES);
            }
            Err(refusal) => self.read_settled(call, epoch, &positions, refusal),
        }
    }

    /// What is settled may be read in any epoch that is not above this unit's, also sealed or poisoned (rule 4).
    fn read_settled(
        &mut self,
        call: CallId,
        epoch: Epoch,
        positions: &[Position],
        refusal: Refusal,
    ) {
        let settled = self.mark;
        let slots: Vec<_> = positions
            .iter()
            .map(|p| (*p, self.stored_slot(*p)))
            .collect();
        let sure = slots.iter().all(|(position, slot)| {
            let known = [UnitReadAnswer::Junk, UnitReadAnswer::Trimmed].map(Slot::Known);
            *position < settled
                && (matches!(slot, Slot::Data(_) | Slot::Disk(_)) || known.contains(slot))
        });
        if epoch > self.state.durable.epoch || !sure {
            return self.refuse(call, refusal);
        }
        let trimmed = self.trimmed();
        let marks = Marks { settled, trimmed };
        self.begin_read(call, Purpose::Values(marks), slots, ANSWER_BYTES);
    }

    /// What this unit, which serves an epoch, knows of `position`.
    pub(crate) fn slot(&self, position: Position) -> Slot {
        let owned = self.held_of(position).is_some();
        if position >= self.trimmed() {
            if !owned {
                return self.slot_of_joining(position);
            }
            // What is lost and just being given back is lost until it is durable: "pending" would say that it was never
            // settled.
            let first = self.is_first_value(position);
            let pending = first && self.writer.pending.contains_key(&position);
            if pending || self.writer.uncertain.contains(&position) {
                return Slot::Known(UnitReadAnswer::Pending);
            }
            if first && self.was_settled(position) {
                return Slot::Known(lost_answer());
            }
        }
        self.stored_slot(position)
    }

    /// What is held of a range that is being given to this unit: never that something was not written (rule 5).
    fn slot_of_joining(&self, position: Position) -> Slot {
        if self.joining_range(position).is_none() {
            return Slot::Known(UnitReadAnswer::NotMine);
        }
        match self.stored_slot(position) {
            Slot::Known(UnitReadAnswer::Unwritten) => Slot::Known(lost_answer()),
            held => held,
        }
    }

    /// Whether nothing was ever held at `position`, as far as is known.
    pub(crate) fn is_first_value(&self, position: Position) -> bool {
        !self.index.is_lost(position) && self.index.held(position).is_none()
    }

    /// Whether `position` is known to be settled: whoever does not hold it has lost it (rules 5 and 11).
    pub(crate) fn was_settled(&self, position: Position) -> bool {
        let held = self.held_of(position);
        held.is_some_and(|held| position < held.settled)
    }

    /// The range that owns `position`, and what is known of it.
    pub(crate) fn held_of(&self, position: Position) -> Option<&marks::Held> {
        let held = &self.serving()?.held;
        held.iter().find(|held| held.range.owns(position))
    }

    /// What the log holds at `position`, whosever it is.
    pub(crate) fn stored_slot(&self, position: Position) -> Slot {
        let answer = if position < self.trimmed() {
            UnitReadAnswer::Trimmed
        } else if self.index.is_lost(position) {
            lost_answer()
        } else {
            match self.index.held(position) {
                Some(Held::Data(place)) => {
                    return self
                        .reader
                        .cached(place)
                        .map_or(Slot::Disk(place), Slot::Data);
                }
                Some(Held::Junk) => UnitReadAnswer::Junk,
                None => UnitReadAnswer::Unwritten,
            }
        };
        Slot::Known(answer)
    }

    /// Reads the winners of a fill, all durable now.
    pub(crate) fn give_winners(&mut self, call: CallId, positions: Vec<Position>) {
        let slots = positions
            .into_iter()
            .map(|p| (p, self.stored_slot(p)))
            .collect();
        self.begin_read(call, Purpose::Winners, slots, ANSWER_BYTES);
    }

    pub(crate) fn begin_read(
        &mut self,
        call: CallId,
        purpose: Purpose,
        slots: Vec<(Position, Slot)>,
        budget: usize,
    ) {
        let index = &self.index;
        let guess = |position, place| index.guess_bytes(position, place);
        let done = self.reader.begin(call, purpose, slots, budget, guess);
        match done {
            Some(job) => self.job_done(job),
            None => self.submit_reads(),
        }
    }

    pub(crate) fn submit_reads(&mut self) {
        while let Some(read) = self.reader.next_read() {
            self.counters.disk_reads += 1;
            let op = DiskOp::ReadAt {
                name: segment_name(read.segment),
                offset: read.offset,
                len: read.len,
            };
            self.submit(Op::Read(read.chunk), op);
        }
    }

    pub(crate) fn chunk_done(&mut self, chunk: u64, result: Result<DiskDone, DiskError>) {
        self.reader.ended();
        let found = match result {
            Ok(DiskDone::Read(bytes)) => Found::Bytes(bytes),
            Err(DiskError::Busy(why)) => Found::NotNow(why),
            Err(DiskError::Io(_)) if self.reader.is_single(chunk) => return self.doubt(chunk),
            _ => Found::Nothing,
        };
        self.chunk_found(chunk, &found);
    }

    /// What came of a read is known.
    pub(crate) fn chunk_found(&mut self, chunk: u64, found: &Found) {
        self.doubts.over(chunk);
        let segment = self.reader.segment_of(chunk);
        let generation = segment.and_then(|s| self.index.generation(s)).unwrap_or(0);
        let owner = self.owner();
        let (job, damaged) = self.reader.done(chunk, owner, generation, found);
        for (position, place) in damaged {
            self.note_damage(position, place);
        }
        self.submit_reads();
        if let Some(job) = job {
            self.job_done(job);
        }
    }

    /// What is at `place` cannot be read. Unless it was trimmed, voided or repaired meanwhile, it is lost.
    fn note_damage(&mut self, position: Position, place: Place) {
        let still = self.index.held(position) == Some(Held::Data(place));
        if position >= self.trimmed() && still && self.index.lost.insert(position) {
            self.counters.lost_on_read += 1;
            tracing::error!(%position, segment = place.segment, offset = place.offset, "a damaged entry");
            if self.arbitrates_undecided(position) {
                self.seal_itself(position);
            }
        }
    }

    /// Whether this unit is the head that says what `position` holds, and nobody has told it that all replicas have it.
    fn arbitrates_undecided(&self, position: Position) -> bool {
        let held = self.held_of(position).zip(self.serving());
        held.is_some_and(|(held, serving)| {
            let arbitrates = held.range.is_head() && !serving.layout.is_closed(position);
            arbitrates && position >= held.settled
        })
    }

    fn job_done(&mut self, mut job: Job<Purpose>) {
        if matches!(job.purpose, Purpose::Scrub) {
            return self.scrubbed(&job);
        }
        if let Some(what) = job.not_now.take() {
            return self.refuse(job.call, Refusal::Busy { what });
        }
        if let Some(what) = job.withheld.take()
            && job.gives_nothing()
        {
            let refusal = self.poisoned().unwrap_or(Refusal::Busy { what });
            return self.refuse(job.call, refusal);
        }
        let trimmed = self.trimmed();
        let lost = |(position, slot): &(Position, Slot)| {
            *position >= self.mark && *slot == Slot::Known(UnitReadAnswer::Lost)
        };
        if self.serving().is_none() && job.slots.iter().any(lost) {
            // What an active head lost is judged by the next epoch, not by who happens to read it now.
            let epoch = self.over();
            return self.refuse(job.call, Refusal::Sealed { epoch });
        }
        for (position, slot) in &mut job.slots {
            if *slot == Slot::Known(UnitReadAnswer::Lost) {
                // The file may have gone with a trim while it was read.
                let answer = if *position < trimmed {
                    UnitReadAnswer::Trimmed
                } else {
                    lost_answer()
                };
                *slot = Slot::Known(answer);
            }
        }
        match job.purpose {
            Purpose::Scrub => {}
            Purpose::Values(marks) => self.answer_values(job.call, marks, job.slots),
            Purpose::Winners => self.answer_winners(job.call, job.slots),
            Purpose::Streams(read) => self.answer_streams(job.call, &read, job.slots),
            Purpose::Compare(mut request) => {
                let found = |(position, slot)| match slot {
                    Slot::Data(entry) => Some((position, EncodedEntry::check(entry).ok()?.id())),
                    _ => None,
                };
                request.learn(job.slots.into_iter().filter_map(found));
                self.carry_out_write(job.call, request);
            }
        }
    }

    fn answer_values(&mut self, call: CallId, marks: Marks, slots: Vec<(Position, Slot)>) {
        let mut answers = Vec::with_capacity(slots.len());
        let mut entries = Vec::new();
        for (_, slot) in slots {
            answers.push(match slot {
                Slot::Known(answer) => answer,
                Slot::Data(entry) => {
                    let len = len32(&entry);
                    entries.push(entry);
                    UnitReadAnswer::Data { len }
                }
                // More than one answer can carry, or give: it stops early. `Pending` would say that it is not durable.
                Slot::Later | Slot::Withheld | Slot::Disk(_) => break,
            });
        }
        self.reply(
            call,
            UnitResponse::Values { answers, marks },
            concat(&entries),
        );
    }

    fn answer_winners(&mut self, call: CallId, slots: Vec<(Position, Slot)>) {
        let mut winners = Vec::with_capacity(slots.len());
        let mut entries = Vec::new();
        for (position, slot) in slots {
            match slot {
                Slot::Known(UnitReadAnswer::Junk) => winners.push((position, WireValue::Junk)),
                Slot::Data(entry) => {
                    let len = len32(&entry);
                    winners.push((position, WireValue::Data { len }));
                    entries.push(entry);
                }
                // Not decided (no space), lost, trimmed, or too much for one answer: the winners stop here.
                _ => break,
            }
        }
        let marks = self.marks();
        self.reply(
            call,
            UnitResponse::Filled { winners, marks },
            concat(&entries),
        );
    }
}

fn lost_answer() -> UnitReadAnswer {
    if plants::active(Plant::LostIsUnwritten) {
        UnitReadAnswer::Unwritten
    } else {
        UnitReadAnswer::Lost
    }
}

pub(crate) fn len32(entry: &Bytes) -> u32 {
    u32::try_from(entry.len()).unwrap_or(u32::MAX)
}
