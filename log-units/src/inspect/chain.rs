//! What ties the segments together, read backwards: batches name the one before them, and void what lies before them.

use std::collections::BTreeSet;

use milonga_protocol::{Epoch, Position};

use super::report::{
    Affected, Damage, Remark, SegmentReport, SegmentState, StateReport, UnitReport,
};
use super::segment::{Segment, Wrong, first_byte, junk_from, positions};
use crate::format::{Edges, Footer, HEADER_BYTES, Owner, STATE, State, segment_name};
use crate::scan::{Content, FoundBatch};
use crate::segment_index::{Active, Sealed};

/// Most damage, remarks and lost ranges that are listed.
const LISTED: usize = 10_000;
/// Most streams that are told apart: some 16 MiB.
const STREAMS: usize = 1 << 20;

/// What was found so far, and what waits for an earlier segment.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pub(super) owner: Option<Owner>,
    /// The newest copy of the state.
    pub(super) state: Option<State>,
    report: UnitReport,
    streams: BTreeSet<u64>,
    /// Number of the segment that was read last.
    before: Option<u64>,
    /// The earliest batch so far.
    next: Option<Next>,
    /// Damage of which the chain of batches will say what it cost.
    open: Vec<Damage>,
    /// Positions at or above are void in whatever is still to come.
    void: Option<Position>,
    max_epoch: Epoch,
    /// Pieces of the segment at hand that could not be read.
    unread: Vec<Damage>,
    /// Whether any segment was never used.
    spare: bool,
}

/// A batch whose predecessor is looked for.
#[derive(Debug)]
struct Next {
    file: String,
    offset: u64,
    number: u64,
    previous: u64,
    high: Position,
}

impl Chain {
    pub(super) fn damage(&mut self, file: &str, offset: u64, expected: String) {
        self.push(damage(file, offset, expected, Affected::Nothing));
    }

    fn push(&mut self, mut damage: Damage) {
        if let Affected::Positions(from, to) = damage.affected {
            let from = from.max(self.trim());
            damage.affected = if from < to {
                Affected::Positions(from, to)
            } else {
                Affected::Nothing
            };
        }
        if self.report.damage.len() < LISTED {
            self.report.damage.push(damage);
        } else {
            self.report.more_damage += 1;
        }
    }

    pub(super) fn remark(&mut self, file: &str, offset: u64, text: String) {
        if self.report.remarks.len() < LISTED {
            let file = file.to_owned();
            self.report.remarks.push(Remark { file, offset, text });
        }
    }

    /// A part of the segment at hand that the disk does not give: what it cost shows in the chain.
    pub(super) fn unread(&mut self, file: &str, offset: u64, expected: String) {
        self.unread
            .push(damage(file, offset, expected, Affected::Unknown));
    }

    /// `bytes` must be `written` and zeros.
    pub(super) fn zeros(&mut self, file: &str, bytes: &[u8], written: &[u8]) {
        self.zeros_at(file, 0, bytes, written);
    }

    pub(super) fn zeros_at(&mut self, file: &str, at: u64, bytes: &[u8], written: &[u8]) {
        let used = written
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |n| n + 1);
        if let Some(other) = first_byte(bytes, used as u64, bytes.len() as u64) {
            self.damage(file, at + other, "zeros".to_owned());
        }
    }

    /// Before the first segment: `newest` is the last of them.
    pub(super) fn begin(&mut self, newest: Option<u64>) {
        let Some(state) = &self.state else {
            return;
        };
        self.report.state = Some(StateReport {
            sequence: state.sequence,
            epoch: state.epoch,
            trim: state.trim,
            first_segment: state.first_segment,
            voids: state.voids.iter().map(|v| (v.batch, v.from)).collect(),
        });
        let (first, epoch) = (state.first_segment, state.epoch);
        if newest.is_none_or(|newest| newest < first) && epoch > Epoch::NONE {
            let name = segment_name(first);
            let expected = "this file: without it the unit does not start".to_owned();
            self.push(damage(&name, 0, expected, Affected::Unknown));
        }
    }

    fn first_segment(&self) -> u64 {
        self.state.as_ref().map_or(1, |state| state.first_segment)
    }

    /// From where on the state says that batch `number` is void.
    fn void_of(&self, number: u64) -> Option<Position> {
        self.state.as_ref()?.void_from(number)
    }

    /// Batch `number` may hold what lies below `high`, as far as it is not void.
    fn may_hold(&mut self, number: u64, high: Position) {
        let high = self.void_of(number).map_or(high, |void| void.min(high));
        self.report.high = self.report.high.max(high);
    }

    fn trim(&self) -> Position {
        self.state
            .as_ref()
            .map_or(Position::ZERO, |state| state.trim)
    }

    /// Takes a segment; each comes before the one that was given last.
    pub(super) fn add(&mut self, segment: &Segment) {
        let number = segment.number;
        if number < self.first_segment() {
            let text = "below the trim mark: it will be removed when the unit starts";
            self.remark(&segment.name, 0, text.to_owned());
            self.unread.clear();
            return self.list(segment, &segment.batches, SegmentState::Leftover);
        }
        self.missing_behind(number);
        self.before = Some(number);
        self.check_length(segment);
        let lost: Vec<_> = self.unread.drain(..).collect();
        self.open.extend(lost);
        if segment.batches.is_empty() && segment.footer.is_none() {
            if let Some(at) = segment.no_footer {
                self.no_footer(&segment.name, at, false);
            }
            let state = self.add_empty(segment);
            self.report_wrong(segment, usize::MAX);
            return self.list(segment, &[], state);
        }
        self.add_used(segment);
    }

    /// Segments between the one at hand and the one before it that are not there.
    fn missing_behind(&mut self, number: u64) {
        let Some(before) = self.before.filter(|before| number + 1 < *before) else {
            return;
        };
        let many = match before - number - 1 {
            1 => String::new(),
            many => format!(", nor {} more up to {}", many - 1, segment_name(before - 1)),
        };
        let name = segment_name(number + 1);
        let expected = format!("this file: it is missing{many}");
        self.open
            .push(damage(&name, 0, expected, Affected::Unknown));
    }

    fn check_length(&mut self, segment: &Segment) {
        if let Some(header) = segment.header.filter(|header| segment.len < header.size) {
            let expected = format!("{} bytes: the file was cut short", header.size);
            let cut = damage(&segment.name, segment.len, expected, Affected::Unknown);
            self.open.push(cut);
        }
    }

    /// A segment without batches and without an index.
    fn add_empty(&mut self, segment: &Segment) -> SegmentState {
        let name = &segment.name;
        let rest = segment.rest();
        let used = self.next.is_some();
        match (segment.header, rest) {
            (Some(_), None) if !used => {
                self.spare = true;
                SegmentState::Spare
            }
            (Some(_), Some(at)) if !used && self.open.is_empty() => {
                self.spare = true;
                let text = "torn tail: the first batch of this file was not written whole, and does not count";
                self.remark(name, at, text.to_owned());
                SegmentState::Spare
            }
            (None, None) if !used && segment.blank_header => {
                self.spare = true;
                let text = "a spare whose making was interrupted";
                self.remark(name, 0, text.to_owned());
                SegmentState::Spare
            }
            (None, None) if !used => {
                self.spare = true;
                let expected = "a header with the right checksum; the file is a spare".to_owned();
                self.damage(name, 0, expected);
                SegmentState::Spare
            }
            (header, _) => {
                let expected = match header {
                    Some(_) => "batches: none can be read",
                    None => "a header with the right checksum, and batches: none can be read",
                };
                let unreadable = damage(name, 0, expected.to_owned(), Affected::Unknown);
                self.open.push(unreadable);
                SegmentState::Unreadable
            }
        }
    }

    /// What is wrong inside, but for what belongs to batch `torn`.
    fn report_wrong(&mut self, segment: &Segment, torn: usize) {
        let wrong = segment.wrong.iter().filter(|w| w.batch != Some(torn));
        for Wrong {
            offset,
            expected,
            affected,
            ..
        } in wrong
        {
            self.push(damage(&segment.name, *offset, expected.clone(), *affected));
        }
    }

    fn add_used(&mut self, segment: &Segment) {
        let is_tail = self.next.is_none() && segment.footer.is_none();
        let last = segment.batches.len().saturating_sub(1);
        let is_torn = is_tail && segment.wrong.iter().any(|w| w.batch == Some(last));
        let whole = &segment.batches[..segment.batches.len() - usize::from(is_torn)];
        if segment.header.is_none() {
            let expected = "a header with the right checksum; the batches say what it said";
            self.damage(&segment.name, 0, expected.to_owned());
        }
        if self.next.is_none() && segment.footer.is_some() && !self.spare {
            let name = segment_name(segment.number + 1);
            let expected = "this file: the segment before it is full".to_owned();
            self.open
                .push(damage(&name, 0, expected, Affected::Unknown));
        }
        self.report_wrong(segment, if is_torn { last } else { usize::MAX });
        if is_torn && let Some(batch) = segment.batches.last() {
            let h = &batch.header;
            let text = format!(
                "torn tail: batch {} was not written whole and does not count: {} of {} records, {}",
                h.number,
                batch.records.len().min(h.records as usize),
                h.records,
                Affected::Positions(h.lowest, h.end),
            );
            self.remark(&segment.name, batch.offset, text);
            self.may_hold(h.number, h.end);
        }
        if let Some(at) = segment.no_footer {
            self.no_footer(&segment.name, at, is_tail);
        }
        self.check_rest(segment, is_tail, is_torn);
        let was_void = self.void;
        if let Some(footer) = &segment.footer {
            self.add_suspects(footer);
            self.check_last(segment, footer);
        }
        let broken = self.walk(segment, whole);
        if let Some(footer) = &segment.footer {
            self.lower(footer.edges.lowest_high);
        }
        self.count(segment, whole, was_void, broken);
    }

    /// An index is written before anything follows: the last one may be torn.
    fn no_footer(&mut self, name: &str, at: u64, is_tail: bool) {
        if is_tail {
            let text = "torn tail: the index was not written whole (the records are read instead)";
            self.remark(name, at, text.to_owned());
        } else {
            let expected = "an index with the right checksum (the records are read instead)";
            self.damage(name, at, expected.to_owned());
        }
    }

    fn check_rest(&mut self, segment: &Segment, is_tail: bool, is_torn: bool) {
        let name = &segment.name;
        match segment.rest() {
            Some(at) if is_tail && !is_torn => {
                let text = "torn tail: what lies behind the last batch was not written whole, and does not count";
                self.remark(name, at, text.to_owned());
            }
            Some(_) if is_torn => {}
            Some(at) if segment.footer.is_some() => {
                let text = "bytes of a torn write between the last batch and the index";
                self.remark(name, at, text.to_owned());
            }
            Some(at) if segment.limit == segment.len => {
                let expected =
                    "a batch, or the index of the full segment (its records are read instead)";
                self.damage(name, at, expected.to_owned());
            }
            None if !is_tail && segment.footer.is_none() && segment.limit == segment.len => {
                let text = "no index: its batches are read at each start";
                self.remark(name, segment.end(), text.to_owned());
            }
            Some(_) | None => {}
        }
    }

    /// Damage that was known when the segment was sealed.
    fn add_suspects(&mut self, footer: &Footer) {
        for suspect in &footer.suspects {
            self.lose(suspect.from, suspect.to);
        }
    }

    /// Whether the last batch is the one that the index says is.
    fn check_last(&mut self, segment: &Segment, footer: &Footer) {
        let edges = footer.edges;
        let last = segment.batches.last().map(|batch| &batch.header);
        if last.map_or(0, |last| last.number) == edges.last {
            return;
        }
        let affected = self.lose_below(edges.high);
        let expected = format!("batch {}, which the index names as the last", edges.last);
        self.push(damage(&segment.name, segment.end(), expected, affected));
        self.join(edges.last);
        self.next = Some(Next {
            file: segment.name.clone(),
            offset: segment.end(),
            number: edges.last,
            // What lies between is reported: here the chain is taken to be whole.
            previous: last.map_or(edges.previous, |last| last.number),
            high: edges.high,
        });
        self.max_epoch = self.max_epoch.max(edges.epoch);
        self.may_hold(edges.last, edges.high);
    }

    /// Goes through the batches from the last to the first. Whether the chain between them is broken.
    fn walk(&mut self, segment: &Segment, batches: &[FoundBatch]) -> bool {
        let mut broken = false;
        for (at, batch) in batches.iter().enumerate().rev() {
            let h = &batch.header;
            if self.report.batches == 0 {
                self.may_hold(h.number, h.high.max(h.end));
                self.report.settled = h.mark;
            }
            broken |= self.join(h.number) && at + 1 < batches.len();
            if let Some(void) = self.void_of(h.number) {
                self.lower(void);
            }
            for (from, to) in &batch.damage {
                self.lose(*from, *to);
            }
            self.lower(h.high);
            self.max_epoch = self.max_epoch.max(h.epoch);
            self.report.batches += 1;
            self.report.records += batch.records.len() as u64;
            let begins = at.checked_sub(1).and_then(|before| batches.get(before));
            let begins = begins.map_or(HEADER_BYTES, FoundBatch::end);
            if begins != batch.offset {
                let expected = format!("a batch before batch {}", h.number);
                self.open
                    .push(damage(&segment.name, begins, expected, Affected::Unknown));
            }
            self.next = Some(Next {
                file: segment.name.clone(),
                offset: batch.offset,
                number: h.number,
                previous: h.previous,
                high: h.high,
            });
        }
        broken
    }

    /// Void is what lies before the batch at hand, from `high` on.
    fn lower(&mut self, high: Position) {
        self.void = Some(self.void.map_or(high, |void| void.min(high)));
    }

    /// The batch before the one that waits for it is number `number`. Whether another one should be there.
    fn join(&mut self, number: u64) -> bool {
        let Some(next) = self.next.take() else {
            // Nothing behind says what they held.
            for mut damage in std::mem::take(&mut self.open) {
                damage.affected = Affected::Unknown;
                self.push(damage);
            }
            return false;
        };
        let broken = next.previous != number;
        let affected = if broken {
            self.lose_below(next.high)
        } else {
            Affected::Nothing
        };
        if broken && self.open.is_empty() {
            let expected = format!(
                "batch {} before batch {}, not batch {number}",
                next.previous, next.number
            );
            self.push(damage(&next.file, next.offset, expected, affected));
        }
        for mut damage in std::mem::take(&mut self.open) {
            damage.affected = affected;
            self.push(damage);
        }
        broken
    }

    /// What a lost batch held lies anywhere below what is behind it: entries that were copied to the unit had been settled
    /// before.
    fn lose_below(&mut self, high: Position) -> Affected {
        let from = self.trim();
        self.lose(from, high);
        Affected::Positions(from, high.max(from))
    }

    /// Whatever of `from..to` is not void and not trimmed may be lost.
    fn lose(&mut self, from: Position, to: Position) {
        let from = from.max(self.trim());
        let to = self.void.map_or(to, |void| to.min(void));
        if from < to && self.report.lost.len() < LISTED {
            self.report.lost.push((from, to));
        } else if from < to {
            // Too many to be told apart: one range over all of them.
            let all = self.report.lost.drain(..);
            let whole = all.fold((from, to), |a, b| (a.0.min(b.0), a.1.max(b.1)));
            self.report.lost.push(whole);
        }
    }

    /// Makes the index of the segment as recovery does, compares it with the footer, and counts what is in force.
    fn count(
        &mut self,
        segment: &Segment,
        batches: &[FoundBatch],
        void: Option<Position>,
        broken: bool,
    ) {
        let generation = segment.generation();
        let mut active = Active::new(segment.number, generation.unwrap_or_default());
        let mut high = Position::ZERO;
        let mut before = 0;
        for batch in batches {
            let h = &batch.header;
            let void = self.void_between(before, h.number).unwrap_or(h.high);
            let void = void.min(h.high);
            if high > void {
                active.void(void.0);
            }
            active.add_found(batch);
            high = h.high.max(h.end);
            before = h.number;
        }
        let mut sealed = active.seal(high, &[]);
        let damaged = broken
            || segment
                .wrong
                .iter()
                .any(|w| w.affected != Affected::Nothing);
        if let Some(footer) = &segment.footer
            && !damaged
            && footer.edges.last == batches.last().map_or(0, |b| b.header.number)
            && let Some(what) = difference(footer, &sealed)
        {
            let offset = segment.limit;
            self.damage(
                &segment.name,
                offset,
                format!("an index that fits the records: {what}"),
            );
        }
        if let Some(void) = void.into_iter().chain(self.void_of(before)).min() {
            sealed.void(void.0);
        }
        self.count_held(&sealed);
        let state = match (
            &segment.footer,
            self.report.segments.is_empty() || !self.sealed(),
        ) {
            (None, true) => SegmentState::Active,
            _ => SegmentState::Sealed,
        };
        self.list(segment, batches, state);
    }

    /// What the state calls void of batch `from`, but not of batch `to`.
    fn void_between(&self, from: u64, to: u64) -> Option<Position> {
        let voids = self.state.iter().flat_map(|state| &state.voids);
        let of = voids.filter(|void| (from..to).contains(&void.batch));
        of.map(|void| void.from).min()
    }

    /// Whether a segment that was used is listed already.
    fn sealed(&self) -> bool {
        let used =
            |s: &SegmentReport| matches!(s.state, SegmentState::Sealed | SegmentState::Active);
        self.report.segments.iter().any(used)
    }

    fn count_held(&mut self, sealed: &Sealed) {
        let trim = self.trim().0;
        let index = sealed.to_footer();
        let below = index.positions.partition_point(|p| *p < trim);
        self.report.entries += (index.positions.len() - below) as u64;
        for junk in &index.junk {
            let junk = junk_from(*junk, trim);
            self.report.junk = self.report.junk.saturating_add(junk);
        }
        for (at, stream) in index.streams.iter().enumerate() {
            let end = index.firsts.get(at + 1).copied().unwrap_or(0) as usize;
            let last = end.checked_sub(1).and_then(|last| index.members.get(last));
            if last.is_none_or(|last| (*last as usize) < below) {
                continue;
            }
            if self.streams.len() < STREAMS {
                self.streams.insert(*stream);
            } else if !self.streams.contains(stream) {
                self.report.more_streams = true;
            }
        }
    }

    fn list(&mut self, segment: &Segment, batches: &[FoundBatch], state: SegmentState) {
        let records = || batches.iter().flat_map(|batch| &batch.records);
        let mut streams = BTreeSet::new();
        let (mut entries, mut junk) = (0, 0_u64);
        for record in records() {
            match &record.content {
                Content::Data(of) => {
                    entries += 1;
                    streams.extend(of.iter().map(|stream| stream.0));
                }
                Content::Junk(range) => junk = junk.saturating_add(junk_from(*range, 0)),
            }
        }
        let positions = positions(batches);
        self.report.segments.push(SegmentReport {
            name: segment.name.clone(),
            state,
            generation: segment.generation(),
            bytes: segment.len,
            used: batches.last().map_or(HEADER_BYTES, FoundBatch::end),
            batches: batches.len() as u64,
            records: records().count() as u64,
            entries,
            junk,
            streams: streams.len() as u64,
            positions: positions.map(|(first, last)| (Position(first), Position(last))),
        });
    }

    /// The beginning of the log is reached.
    pub(super) fn finish(mut self) -> UnitReport {
        let first = self.first_segment();
        if self.before.is_some_and(|before| before > first) {
            self.missing_behind(first.saturating_sub(1));
        }
        if let Some(state) = self.state.clone() {
            self.report.high = self.report.high.max(state.trim);
            // Segments were removed behind one of which nothing was known.
            let unknown = state.removed_batch == 0 && first > 1;
            let removed = match &self.next {
                Some(next) if unknown => next.previous,
                _ => state.removed_batch,
            };
            self.join(removed);
            if self.max_epoch > state.epoch {
                let expected = format!(
                    "epoch {} or higher, not {}: it is an old copy",
                    self.max_epoch, state.epoch
                );
                self.damage(STATE, 0, expected);
            }
        }
        for damage in std::mem::take(&mut self.open) {
            self.push(damage);
        }
        let mut report = self.report;
        report.streams = self.streams.len() as u64;
        report.segments.reverse();
        report.lost = merged(report.lost);
        report
            .damage
            .sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
        report
            .remarks
            .sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
        report
    }
}

fn damage(file: &str, offset: u64, expected: String, affected: Affected) -> Damage {
    Damage {
        file: file.to_owned(),
        offset,
        expected,
        affected,
    }
}

/// Ranges without overlaps, ascending.
fn merged(mut ranges: Vec<(Position, Position)>) -> Vec<(Position, Position)> {
    ranges.sort_unstable();
    let mut merged: Vec<(Position, Position)> = Vec::new();
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// What a footer says otherwise than the records of its segment.
fn difference(footer: &Footer, records: &Sealed) -> Option<String> {
    let records = records.to_footer();
    // What was cut or lost on the way raised the end, and is not among the records.
    let high = footer.edges.high.max(records.edges.high);
    let edges = Edges {
        high,
        ..records.edges
    };
    let of = |f: &Footer| {
        f.positions
            .iter()
            .copied()
            .zip(f.offsets.iter().copied())
            .collect::<Vec<_>>()
    };
    let (listed, found) = (of(footer), of(&records));
    if let Some((a, b)) = listed.iter().zip(&found).find(|(a, b)| a != b) {
        let bytes = |offset: u32| u64::from(offset) * 8;
        return Some(format!(
            "it lists position {} at {}, the records have {} at {}",
            a.0,
            bytes(a.1),
            b.0,
            bytes(b.1)
        ));
    }
    if listed.len() != found.len() {
        return Some(format!(
            "it lists {} entries, there are {}",
            listed.len(),
            found.len()
        ));
    }
    let streams = |f: &Footer| (f.streams.clone(), f.firsts.clone(), f.members.clone());
    if streams(footer) != streams(&records) {
        return Some("it lists other streams than the entries name".to_owned());
    }
    if Sealed::new(footer.clone()).to_footer().junk != records.junk {
        return Some("it lists other junk".to_owned());
    }
    (footer.edges != edges || footer.generation != records.generation)
        .then(|| "its first and last batch, epoch or marks are others".to_owned())
}
