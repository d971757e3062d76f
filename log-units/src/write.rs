//! Writes and fills: who may write what where (rules 5, 7–9).

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::limits::{ITEMS_PER_MESSAGE, Limits};
use milonga_protocol::messages::{CallId, Refusal, UnitResponse, WireValue, WriteAnswer};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{EncodedEntry, EntryId, Epoch, Position, StreamId};

use crate::epochs::Serving;
use crate::format::{BATCH_HEADER, Footer, HEADER_BYTES, record_bytes, size};
use crate::index::{Held, Place};
use crate::marks;
use crate::read::Purpose;
use crate::reader::{ANSWER_BYTES, Slot};
use crate::unit::Unit;
use crate::writer::{NewValue, Waiter};

/// A `Write`, taken apart.
#[derive(Debug)]
pub(crate) struct WriteRequest {
    epoch: Epoch,
    settled: Position,
    items: Vec<(Position, Value)>,
    bytes: usize,
    /// Whose entries were found where they had to be read. It only grows, so comparing comes to an end whatever the
    /// cache does meanwhile.
    known: BTreeMap<Position, EntryId>,
}

impl WriteRequest {
    /// Notes what a read has found.
    pub(crate) fn learn(&mut self, found: impl IntoIterator<Item = (Position, EntryId)>) {
        self.known.extend(found);
    }
}

/// A value that came with a request.
#[derive(Clone, Debug)]
enum Value {
    Data {
        entry: EncodedEntry,
        streams: Vec<StreamId>,
    },
    Junk,
    /// Not an entry, or over a limit of the layout.
    Bad,
}

impl Value {
    fn id(&self) -> Option<EntryId> {
        match self {
            Self::Data { entry, .. } => Some(entry.id()),
            Self::Junk | Self::Bad => None,
        }
    }
}

/// What is to happen with one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Answer(WriteAnswer),
    /// This, once that is durable: until then it may be taken back for want of space.
    Wait(WriteAnswer, u64),
    /// Written, with own positions so far apart.
    New {
        stride: u64,
    },
    /// What is held has to be read first.
    Look(Place),
    /// Held and unreadable at the head that arbitrates: only another epoch helps.
    LostAtHead,
}

impl Unit {
    pub(crate) fn write(
        &mut self,
        call: CallId,
        epoch: Epoch,
        settled: Position,
        items: Vec<(Position, WireValue)>,
        body: Bytes,
    ) {
        match self.take_apart(epoch, &items, body) {
            Ok((items, bytes)) => {
                let request = WriteRequest {
                    epoch,
                    settled,
                    items,
                    bytes,
                    known: BTreeMap::new(),
                };
                self.carry_out_write(call, request);
            }
            Err(refusal) => self.refuse(call, refusal),
        }
    }

    /// Carries out a write, once it is known what is held at its positions.
    pub(crate) fn carry_out_write(&mut self, call: CallId, request: WriteRequest) {
        if let Some(refusal) = self.refusal_of_write(request.epoch, request.bytes) {
            return self.refuse(call, refusal);
        }
        self.told(request.items.first().map(|(p, _)| *p), request.settled);
        let mut look = Vec::new();
        for (position, value) in &request.items {
            match self.judge(*position, value, &request.known) {
                Verdict::Look(place) => look.push((*position, Slot::Disk(place))),
                Verdict::LostAtHead => {
                    let why = format!("the value at {position} is damaged here");
                    return self.refuse(call, Refusal::Poisoned { why });
                }
                _ => {}
            }
        }
        if !look.is_empty() {
            if self.reader.is_busy() {
                let what = "reads under way".to_owned();
                return self.refuse(call, Refusal::Busy { what });
            }
            // A retry that writes again what fell out of the cache is rare; what does not fit comes in the next round.
            return self.begin_read(call, Purpose::Compare(request), look, ANSWER_BYTES);
        }
        let known = request.known;
        self.write_all(call, request.items, |unit, position, value| {
            unit.judge(position, value, &known)
        });
    }

    /// Writes what is new and answers once all of it is durable.
    fn write_all(
        &mut self,
        call: CallId,
        items: Vec<(Position, Value)>,
        judge: impl Fn(&Self, Position, &Value) -> Verdict,
    ) {
        let mut answers = Vec::with_capacity(items.len());
        let mut last = 0;
        for (position, value) in items {
            let answer = match judge(self, position, &value) {
                Verdict::Answer(answer) => (answer, 0),
                Verdict::Wait(answer, seq) => (answer, seq),
                Verdict::New { stride } => {
                    (WriteAnswer::Durable, self.admit(position, value, stride))
                }
                Verdict::Look(_) | Verdict::LostAtHead => (WriteAnswer::Refused, 0),
            };
            last = last.max(answer.1);
            answers.push(answer);
        }
        if last == 0 {
            let answers = answers.into_iter().map(|(answer, _)| answer).collect();
            let marks = self.marks();
            return self.reply(call, UnitResponse::Written { answers, marks }, Bytes::new());
        }
        self.note_writes();
        self.writer.wait(last, Waiter::Write { call, answers });
    }

    /// Takes settled values from somebody who read them at another replica: back, or for the first time (rules 10, 11).
    pub(crate) fn repair(
        &mut self,
        call: CallId,
        epoch: Epoch,
        settled: Position,
        items: Vec<(Position, WireValue)>,
        body: Bytes,
    ) {
        let (items, bytes) = match self.take_apart(epoch, &items, body) {
            Ok(parts) => parts,
            Err(refusal) => return self.refuse(call, refusal),
        };
        if let Some(refusal) = self.refusal_of_write(epoch, bytes) {
            return self.refuse(call, refusal);
        }
        self.told(items.first().map(|(p, _)| *p), settled);
        self.write_all(call, items, Self::judge_repair);
    }

    /// What is held stays, unread: replicas of a settled position are equal (rule 12).
    fn judge_repair(&self, position: Position, value: &Value) -> Verdict {
        let (stride, settled) = match (self.held_of(position), self.joining_range(position)) {
            // What may still be undecided is decided by its writers, and by the next epoch.
            (Some(held), _) => (held.range.stripes, self.is_settled(held, position)),
            (None, Some(range)) => (range.stripes, true),
            (None, None) => return Verdict::Answer(WriteAnswer::NotMine),
        };
        if position < self.trimmed() {
            return Verdict::Answer(WriteAnswer::Trimmed);
        }
        if !settled || matches!(value, Value::Bad) {
            return Verdict::Answer(WriteAnswer::Refused);
        }
        if let Some(pending) = self.writer.pending.get(&position) {
            return Verdict::Wait(WriteAnswer::Durable, pending.seq);
        }
        if !self.index.is_lost(position) && self.index.held(position).is_some() {
            return Verdict::Answer(WriteAnswer::Durable);
        }
        self.judge_new(value, false, stride)
    }

    fn is_settled(&self, held: &marks::Held, position: Position) -> bool {
        let closed = self.serving().is_some_and(|s| s.layout.is_closed(position));
        closed || position < held.settled
    }

    /// The values of a request of the epoch that is served, and the bytes they take.
    fn take_apart(
        &self,
        epoch: Epoch,
        items: &[(Position, WireValue)],
        body: Bytes,
    ) -> Result<(Vec<(Position, Value)>, usize), Refusal> {
        let limits = self.check(epoch)?.layout.limits;
        parse(items, body, &limits).map_err(|why| Refusal::Malformed { why })
    }

    fn refusal_of_write(&self, epoch: Epoch, bytes: usize) -> Option<Refusal> {
        if let Err(refusal) = self.check(epoch) {
            return Some(refusal);
        }
        if let Some(refusal) = self.poisoned() {
            return Some(refusal);
        }
        let queued = self.writer.queued_bytes;
        if queued > 0 && queued + bytes > self.config.queue_bytes {
            return Some(Refusal::Busy {
                what: format!("{} bytes of queued writes", self.config.queue_bytes),
            });
        }
        None
    }

    fn admit(&mut self, position: Position, value: Value, stride: u64) -> u64 {
        let value = match value {
            Value::Data { entry, streams } => NewValue::Data { entry, streams },
            Value::Junk | Value::Bad => NewValue::Junk { stride },
        };
        self.writer.admit(position, value)
    }

    fn judge(
        &self,
        position: Position,
        value: &Value,
        known: &BTreeMap<Position, EntryId>,
    ) -> Verdict {
        let Some((held, serving)) = self.held_of(position).zip(self.serving()) else {
            return Verdict::Answer(WriteAnswer::NotMine);
        };
        let range = held.range;
        let arbitrates = range.is_head() && !serving.layout.is_closed(position);
        if position < self.trimmed() {
            return Verdict::Answer(WriteAnswer::Trimmed);
        }
        if position > self.farthest() {
            return Verdict::Answer(WriteAnswer::TooFar);
        }
        if matches!(value, Value::Bad) || (arbitrates && matches!(value, Value::Junk)) {
            return Verdict::Answer(WriteAnswer::Refused);
        }
        let compared = |same: bool| {
            if same {
                WriteAnswer::Durable
            } else {
                WriteAnswer::Occupied
            }
        };
        if let Some(pending) = self.writer.pending.get(&position) {
            return Verdict::Wait(compared(pending.id == value.id()), pending.seq);
        }
        if !self.index.is_lost(position) {
            match self.index.held(position) {
                None => {}
                Some(Held::Junk) => return Verdict::Answer(compared(value.id().is_none())),
                Some(Held::Data(place)) => {
                    let Some(id) = value.id() else {
                        return Verdict::Answer(WriteAnswer::Occupied);
                    };
                    let found = known
                        .get(&position)
                        .copied()
                        .or_else(|| self.cached_id(place));
                    return match found {
                        Some(found) => Verdict::Answer(compared(found == id)),
                        None => Verdict::Look(place),
                    };
                }
            }
        } else if arbitrates && position < held.settled {
            // Settled without this sender, or it would not send: it finds out what by asking the log.
            return Verdict::Answer(WriteAnswer::Refused);
        } else if arbitrates {
            return Verdict::LostAtHead;
        }
        self.judge_new(value, arbitrates, range.stripes)
    }

    /// A value for a position that holds nothing readable.
    fn judge_new(&self, value: &Value, arbitrates: bool, stride: u64) -> Verdict {
        if let Value::Data { entry, streams } = value {
            if !self.fits_segment(entry.len(), streams.len()) {
                return Verdict::Answer(WriteAnswer::Refused);
            }
            if arbitrates && !entry.reserved_space() && self.is_full() {
                return Verdict::Answer(WriteAnswer::Full);
            }
        }
        Verdict::New { stride }
    }

    /// The last position that may be written (rule 5).
    fn farthest(&self) -> Position {
        self.serving().map_or(Position::ZERO, |serving| {
            let settled = serving.held.last().map(|held| held.settled);
            let from = settled.unwrap_or_default().max(serving.layout.start);
            from.plus(serving.layout.limits.positions_ahead)
        })
    }

    fn cached_id(&self, place: Place) -> Option<EntryId> {
        let entry = self.reader.cached(place)?;
        EncodedEntry::check(entry).ok().map(|entry| entry.id())
    }

    /// Whether an entry fits an empty segment.
    fn fits_segment(&self, entry: usize, streams: usize) -> bool {
        let others = self.index.suspects.len() + 8;
        let needed = size(HEADER_BYTES)
            + BATCH_HEADER
            + record_bytes(entry)
            + Footer::bytes(1, streams, streams, others);
        needed <= size(self.config.segment_size())
    }

    // -------------------------------------------------------------------------------------------------- fill

    pub(crate) fn fill(&mut self, call: CallId, epoch: Epoch, from: Position, to: Position) {
        if let Some(refusal) = self.refusal_of_write(epoch, 0) {
            return self.refuse(call, refusal);
        }
        let positions = match self.fillable(from, to) {
            Ok(positions) => positions,
            Err(why) => return self.refuse(call, Refusal::Malformed { why }),
        };
        let stride = self
            .serving()
            .and_then(Serving::last)
            .map_or(1, |r| r.stripes);
        let farthest = self.farthest();
        let mut last = 0;
        let mut winners = Vec::with_capacity(positions.len());
        let trimmed = self.trimmed();
        // What was trimmed has no winner: the mark in the answer says so.
        for position in positions.into_iter().filter(|p| *p >= trimmed) {
            // What is lost is not decided here, and what is too far waits for what is below: the winners stop.
            if self.index.is_lost(position) || position > farthest {
                break;
            }
            let over = plants::acts(Plant::FillOverPending, 4);
            let pending = self.writer.pending.get(&position);
            if let Some(pending) = pending.filter(|_| !over) {
                last = last.max(pending.seq);
            } else if self.index.held(position).is_none() {
                let seq = self.writer.admit(position, NewValue::Junk { stride });
                last = last.max(seq);
            }
            winners.push(position);
        }
        if last == 0 {
            return self.give_winners(call, winners);
        }
        self.note_writes();
        let positions = winners;
        self.writer.wait(last, Waiter::Fill { call, positions });
    }

    /// Own positions in `from..to`, if all of that may be filled here.
    fn fillable(&self, from: Position, to: Position) -> Result<Vec<Position>, String> {
        let serving = self.serving().ok_or("not serving")?;
        let range = serving.last().ok_or("no range")?;
        if range.to != Position::MAX || from < range.from || serving.layout.is_closed(from) {
            return Err(format!(
                "fill from {from}: closed or not of this unit; only the active part, from {} on, is filled",
                serving.layout.start
            ));
        }
        if !range.is_head() {
            return Err("fill at a unit that is not the head of its chain".to_owned());
        }
        let positions: Vec<_> = range
            .positions(from, to)
            .take(ITEMS_PER_MESSAGE + 1)
            .collect();
        if positions.len() > ITEMS_PER_MESSAGE {
            return Err(format!("more than {ITEMS_PER_MESSAGE} positions to fill"));
        }
        Ok(positions)
    }
}

/// Takes a write's body apart.
fn parse(
    items: &[(Position, WireValue)],
    mut body: Bytes,
    limits: &Limits,
) -> Result<(Vec<(Position, Value)>, usize), String> {
    if items.len() > ITEMS_PER_MESSAGE {
        return Err(format!(
            "{} items, at most {ITEMS_PER_MESSAGE}",
            items.len()
        ));
    }
    let bytes = body.len();
    let mut parsed = Vec::with_capacity(items.len());
    for (position, value) in items {
        let value = match value {
            WireValue::Junk => Value::Junk,
            WireValue::Data { len } => {
                let len = *len as usize;
                if len > body.len() {
                    return Err("the body is shorter than its items say".to_owned());
                }
                checked(*position, body.split_to(len), limits)
            }
        };
        parsed.push((*position, value));
    }
    if !body.is_empty() {
        return Err(format!("{} bytes behind the last item", body.len()));
    }
    Ok((parsed, bytes))
}

/// An entry that may be written at `position`.
fn checked(position: Position, bytes: Bytes, limits: &Limits) -> Value {
    let Ok(entry) = EncodedEntry::check(bytes) else {
        return Value::Bad;
    };
    let Ok(decoded) = entry.decode(position) else {
        return Value::Bad;
    };
    let streams: Vec<_> = decoded.streams().collect();
    if decoded.payload.len() > limits.entry_bytes as usize
        || streams.len() > limits.streams_per_entry as usize
    {
        return Value::Bad;
    }
    Value::Data { entry, streams }
}
