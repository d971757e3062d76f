//! Streams: reading them in order, waiting for their next part, and their tails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::limits::{
    BACKPOINTERS, ITEMS_PER_MESSAGE, LONGEST_WAIT_MS, STREAM_TAILS_PER_PAGE,
};
use milonga_protocol::messages::{CallId, Refusal, StreamTail, UnitReadAnswer, UnitResponse};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{BackPointers, Epoch, ListEnd, Position, StreamId, Time, UnitRange};

use crate::read::{Purpose, len32};
use crate::reader::{ANSWER_BYTES, Slot, concat};
use crate::segment_index::Wanted;
use crate::unit::Unit;

/// Most requests that wait for the next part of a stream; more are answered at once.
const MOST_PARKED: usize = 4_096;
/// Most entries of one answer.
const MOST_ENTRIES: usize = 16_384;

/// A `ReadStreams`.
#[derive(Clone, Debug)]
pub(crate) struct StreamsRead {
    pub(crate) epoch: Epoch,
    pub(crate) streams: Vec<StreamId>,
    pub(crate) from: Position,
    pub(crate) to: Position,
    pub(crate) max_bytes: u32,
    /// Batches that were durable when the list of entries was made.
    pub(crate) as_of: u64,
}

/// One that waits.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) deadline: Time,
    call: CallId,
    read: StreamsRead,
}

impl Unit {
    pub(crate) fn read_streams(&mut self, call: CallId, mut read: StreamsRead, wait_ms: u32) {
        if let Err(refusal) = self.check(read.epoch) {
            return self.refuse(call, refusal);
        }
        if read.streams.len() > ITEMS_PER_MESSAGE {
            let why = format!(
                "{} streams, at most {ITEMS_PER_MESSAGE}",
                read.streams.len()
            );
            return self.refuse(call, Refusal::Malformed { why });
        }
        if self.range_around(read.from).is_none() {
            let why = format!("this unit holds no range around {}", read.from);
            return self.refuse(call, Refusal::Malformed { why });
        }
        read.streams.sort_unstable();
        read.streams.dedup();
        if wait_ms > 0 && self.parked.len() < MOST_PARKED && !self.has_news(&read) {
            let wait = Duration::from_millis(wait_ms.min(LONGEST_WAIT_MS).into());
            self.parked.push(Parked {
                deadline: self.now.after(wait),
                call,
                read,
            });
            return;
        }
        self.give_streams(call, read);
    }

    /// The range whose segment contains `position`, as an index.
    fn range_around(&self, position: Position) -> Option<usize> {
        let held = &self.serving()?.held;
        held.iter()
            .position(|held| held.range.from <= position && position < held.range.to)
    }

    /// Whether a read can be answered with progress, or the reason why there will be none. Entries beyond the first
    /// own position are no news while that is undecided: nobody may be shown them.
    fn has_news(&self, read: &StreamsRead) -> bool {
        if read.from < self.trimmed() || read.from >= read.to {
            return true;
        }
        let Some(range) = self.range_around(read.from).and_then(|r| self.range(r)) else {
            return true;
        };
        let next = range.first_at_or_above(read.from);
        next > read.from || self.index.held(next).is_some() || self.index.is_lost(next)
    }

    fn range(&self, index: usize) -> Option<UnitRange> {
        Some(self.serving()?.held.get(index)?.range)
    }

    /// Positions of the streams in `range`, as far as they are asked and lie below `end`, ascending, at most
    /// [`MOST_ENTRIES`].
    fn candidates(&self, read: &StreamsRead, range: UnitRange, end: Position) -> Vec<u64> {
        let (from, to) = (read.from.0, read.to.min(range.to).min(end).0);
        let most = MOST_ENTRIES;
        let wanted = Wanted {
            range,
            from,
            to,
            most,
        };
        let mut found = Vec::new();
        // Segments hold nearly disjoint positions: those that begin above what was found have nothing to add.
        let mut segments: Vec<_> = self.index.sealed.iter().collect();
        segments.retain(|s| s.end() > from && s.start().is_some_and(|start| start < to));
        segments.sort_by_key(|s| s.start());
        for segment in segments {
            let enough = found.len() >= most && found.last().copied() < segment.start();
            if enough {
                break;
            }
            for stream in &read.streams {
                segment.stream(stream.0, &wanted, &mut found);
            }
            found.sort_unstable();
            found.dedup();
            found.truncate(most);
        }
        if let Some(active) = &self.index.active {
            for stream in &read.streams {
                active.stream(stream.0, &wanted, &mut found);
            }
            found.sort_unstable();
            found.dedup();
            found.truncate(most);
        }
        found
    }

    fn give_streams(&mut self, call: CallId, mut read: StreamsRead) {
        if let Err(refusal) = self.check(read.epoch) {
            return self.refuse(call, refusal);
        }
        if read.from < self.trimmed() {
            let below = self.trimmed();
            return self.reply(call, UnitResponse::Trimmed { below }, Bytes::new());
        }
        if self.reader.is_busy() {
            let what = "reads under way".to_owned();
            return self.refuse(call, Refusal::Busy { what });
        }
        let range = self.range_around(read.from).and_then(|r| self.range(r));
        let found = range.map(|range| self.candidates(&read, range, Position::MAX));
        let found = found.unwrap_or_default();
        read.as_of = self.counters.batches;
        let slots = found
            .into_iter()
            .map(|p| (Position(p), self.stored_slot(Position(p))))
            .collect();
        let budget = ANSWER_BYTES.min(read.max_bytes as usize);
        self.begin_read(call, Purpose::Streams(read), slots, budget);
    }

    pub(crate) fn answer_streams(
        &mut self,
        call: CallId,
        read: &StreamsRead,
        slots: Vec<(Position, Slot)>,
    ) {
        // The answer tells marks and what is decided: those belong to an epoch, also if the disk took its time.
        if let Err(refusal) = self.check(read.epoch) {
            return self.refuse(call, refusal);
        }
        let Some((index, range)) = self
            .range_around(read.from)
            .and_then(|r| Some((r, self.range(r)?)))
        else {
            let why = format!("this unit holds no range around {}", read.from);
            return self.refuse(call, Refusal::Malformed { why });
        };
        if read.from < self.trimmed() {
            let below = self.trimmed();
            return self.reply(call, UnitResponse::Trimmed { below }, Bytes::new());
        }
        let limit = read.to.min(range.to).max(read.from);
        let first = range.first_at_or_above(read.from);
        let gap = self.index.first_gap(first, range.stripes, limit);
        let mut complete = gap.min(limit).max(read.from);
        let lost = self
            .index
            .first_lost(read.from, complete, |p| range.owns(p));
        complete = lost.unwrap_or(complete);
        let (mut entries, bodies, given_below) = take_given(slots);
        complete = complete.min(given_below);
        complete = self.not_above_unseen(read, range, complete, &entries);
        // A lost position of unknown streams: the reader learns that it is lost, and not just undecided.
        let ends_at_lost = complete < limit && range.owns(complete) && self.index.is_lost(complete);
        let listed = entries.binary_search_by_key(&complete, |(position, _)| *position);
        if let (true, Err(at)) = (ends_at_lost, listed) {
            entries.insert(at, (complete, 0));
        }
        let marks = self.marks_of(index);
        self.reply(
            call,
            UnitResponse::Entries {
                entries,
                complete,
                marks,
            },
            concat(&bodies),
        );
    }

    /// Entries that became durable while the disk was read are not in the list: `complete` stops before the first.
    fn not_above_unseen(
        &self,
        read: &StreamsRead,
        range: UnitRange,
        complete: Position,
        listed: &[(Position, u32)],
    ) -> Position {
        if read.as_of == self.counters.batches || plants::active(Plant::ListClaimsNews) {
            return complete;
        }
        let now = self.candidates(read, range, complete);
        let given: BTreeSet<u64> = listed.iter().map(|(position, _)| position.0).collect();
        let unseen = now.into_iter().find(|position| !given.contains(position));
        unseen.map_or(complete, |position| complete.min(Position(position)))
    }

    // ----------------------------------------------------------------------------------------------- waiting

    /// Answers who waits and can be answered now.
    pub(crate) fn wake_parked(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        let parked = std::mem::take(&mut self.parked);
        for parked in parked {
            if self.has_news(&parked.read) {
                self.give_streams(parked.call, parked.read);
            } else {
                self.parked.push(parked);
            }
        }
    }

    /// Answers who has waited long enough.
    pub(crate) fn expire_parked(&mut self) {
        let now = self.now;
        let (late, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|p| p.deadline <= now);
        self.parked = waiting;
        for parked in late {
            self.give_streams(parked.call, parked.read);
        }
    }

    /// The epoch is over: nobody may wait in it.
    pub(crate) fn refuse_parked(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            match self.check(parked.read.epoch).map(|_| ()) {
                Ok(()) => self.parked.push(parked),
                Err(refusal) => self.refuse(parked.call, refusal),
            }
        }
    }

    // -------------------------------------------------------------------------------------------------- ends

    /// Where what is durable here ends: of the log, and of each of the streams.
    pub(crate) fn ends(&mut self, call: CallId, epoch: Epoch, streams: &[StreamId]) {
        if let Err(refusal) = self.check(epoch) {
            return self.refuse(call, refusal);
        }
        if streams.len() > ITEMS_PER_MESSAGE {
            let why = format!("{} streams, at most {ITEMS_PER_MESSAGE}", streams.len());
            return self.refuse(call, Refusal::Malformed { why });
        }
        // What was trimmed is not in the index any more, and who has not read it has to hear of that.
        let trimmed = self.trimmed();
        let at_least = |end: Position| end.max(trimmed);
        let ends = UnitResponse::Ends {
            marks: self.marks(),
            log: at_least(self.index.high),
            streams: self
                .index
                .ends_of(streams)
                .into_iter()
                .map(at_least)
                .collect(),
        };
        self.reply(call, ends, Bytes::new());
    }

    // ------------------------------------------------------------------------------------------------- tails

    /// Distinct streams of the unit.
    pub(crate) fn count_streams(&self) -> u64 {
        let mut streams: Vec<u64> = Vec::new();
        for sealed in &self.index.sealed {
            streams.extend(sealed.streams_above(None).map(|(stream, _)| stream));
        }
        if let Some(active) = &self.index.active {
            streams.extend(active.streams_above(None).map(|(stream, _)| stream));
        }
        streams.sort_unstable();
        streams.dedup();
        streams.len() as u64
    }

    pub(crate) fn collect(
        &mut self,
        call: CallId,
        epoch: Epoch,
        after: Option<StreamId>,
        below: Position,
    ) {
        let sealed_for = self.sealed_for();
        if epoch <= self.state.durable.epoch || epoch < sealed_for {
            let epoch = self.over();
            return self.refuse(call, Refusal::Sealed { epoch });
        }
        if epoch > sealed_for {
            let epoch = sealed_for;
            return self.refuse(call, Refusal::NotYet { epoch });
        }
        let (tails, done) = self.tails(after, below);
        self.reply(call, UnitResponse::Tails { tails, done }, Bytes::new());
    }

    /// A page of stream tails, from positions below `below` and not below the trim mark.
    fn tails(&self, after: Option<StreamId>, below: Position) -> (Vec<StreamTail>, bool) {
        let after = after.map(|stream| stream.0);
        let most = STREAM_TAILS_PER_PAGE;
        let mut page: BTreeMap<u64, Tail> = BTreeMap::new();
        let mut last = u64::MAX;
        let mut cut = false;
        let trimmed = self.trimmed();
        let mut add = |stream: u64, positions: &mut dyn Iterator<Item = u64>| {
            if stream > last {
                return false;
            }
            // A page of streams without anything to say would be empty, and say nothing of where to go on.
            let mut positions = positions
                .skip_while(|p| *p >= below.0)
                .take_while(|p| *p >= trimmed.0)
                .peekable();
            if positions.peek().is_none() {
                return true;
            }
            page.entry(stream).or_default().add(positions);
            while page.len() > most {
                page.pop_last();
                cut = true;
                last = page.keys().next_back().copied().unwrap_or(u64::MAX);
            }
            true
        };
        if let Some(active) = &self.index.active {
            for (stream, list) in active.streams_above(after) {
                if !add(stream, &mut list.iter().copied().rev()) {
                    break;
                }
            }
        }
        for sealed in self.index.sealed.iter().rev() {
            for (stream, list) in sealed.streams_above(after) {
                if !add(stream, &mut list.rev()) {
                    break;
                }
            }
        }
        // What was lost may have been of any stream: pointers may not lead over it.
        let lost = self.index.lost_end().min(below);
        let tails = page
            .into_iter()
            .filter_map(|(stream, tail)| {
                let last = tail.finish(lost, trimmed > Position::ZERO)?;
                let stream = StreamId(stream);
                Some(StreamTail { stream, last })
            })
            .collect();
        (tails, !cut)
    }
}

/// Of what was read, what is given: positions with their lengths, their bytes, and the first position of which
/// nothing is said.
fn take_given(slots: Vec<(Position, Slot)>) -> (Vec<(Position, u32)>, Vec<Bytes>, Position) {
    let mut below = Position::MAX;
    if let Some((last, _)) = slots.last().filter(|_| slots.len() >= MOST_ENTRIES) {
        below = last.next();
    }
    let (mut entries, mut bodies) = (Vec::with_capacity(slots.len()), Vec::new());
    for (position, slot) in slots {
        match slot {
            Slot::Data(entry) => {
                entries.push((position, len32(&entry)));
                bodies.push(entry);
            }
            Slot::Known(UnitReadAnswer::Lost) | Slot::Withheld => entries.push((position, 0)),
            Slot::Known(_) => {}
            Slot::Later | Slot::Disk(_) => {
                below = position;
                break;
            }
        }
    }
    (entries, bodies, below)
}

/// The last positions of one stream.
#[derive(Clone, Debug, Default)]
struct Tail {
    /// Newest first, one more than are reported.
    newest: Vec<u64>,
}

impl Tail {
    /// Adds positions of one segment, newest first.
    fn add(&mut self, positions: impl Iterator<Item = u64>) {
        let positions = positions.take(BACKPOINTERS + 1);
        self.newest.extend(positions);
        self.newest.sort_unstable_by(|a, b| b.cmp(a));
        self.newest.dedup();
        self.newest.truncate(BACKPOINTERS + 1);
    }

    /// The list; `None` if there is nothing to say. `lost`: end of what may have been of any stream. Its last position
    /// is named as one that may be this stream's, and what is older is not.
    fn finish(self, lost: Position, trimmed: bool) -> Option<BackPointers> {
        if self.newest.is_empty() {
            return None;
        }
        let list = BackPointers::new(
            self.newest.into_iter().map(Position),
            if trimmed {
                ListEnd::BelowTrim
            } else {
                ListEnd::Beginning
            },
        );
        Some(list.down_to_lost(lost))
    }
}
