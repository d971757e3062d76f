//! The index of one segment: trees while it is written, flat arrays afterwards.

use std::collections::BTreeMap;

use milonga_protocol::{Position, StreamId, UnitRange};

use crate::format::{BatchHeader, Edges, Footer, Junk, Suspect};
use crate::index::{Held, Place};
use crate::junk::JunkSet;
use crate::scan::{Content, FoundBatch};

/// Index of the segment that is being written, or is being read without its footer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active {
    pub(crate) number: u64,
    pub(crate) generation: u64,
    pub(crate) edges: Edges,
    entries: BTreeMap<u64, u64>,
    streams: BTreeMap<u64, Vec<u64>>,
    /// Sum of the lengths of the lists in `streams`.
    members: usize,
    junk: JunkSet,
}

/// Index of a segment that is not written any more.
///
/// Memory: 8 + 4 bytes per entry (position, offset), 4 bytes per place in a stream, 12 bytes per distinct stream of
/// the segment: 16 bytes per entry and stream, plus what is not per entry. Junk is kept as ranges.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sealed {
    pub(crate) footer: Footer,
    junk: JunkSet,
}

/// Offsets are stored in units of this.
const ALIGN: u64 = 8;

#[expect(
    clippy::cast_possible_truncation,
    reason = "segments have at most 4 GiB, offsets are stored in units of 8"
)]
const fn packed(offset: u64) -> u32 {
    (offset / ALIGN) as u32
}

fn unpacked(offset: u32) -> u64 {
    u64::from(offset) * ALIGN
}

impl Active {
    pub(crate) fn new(number: u64, generation: u64) -> Self {
        Self {
            number,
            generation,
            ..Self::default()
        }
    }

    /// Notes a batch's place in the chain of batches.
    pub(crate) fn add_batch(&mut self, header: &BatchHeader) {
        let edges = &mut self.edges;
        if edges.first == 0 {
            edges.first = header.number;
            edges.previous = header.previous;
            edges.first_high = header.high;
            edges.lowest_high = header.high;
        }
        edges.lowest_high = edges.lowest_high.min(header.high);
        edges.last = header.number;
        edges.epoch = header.epoch;
        edges.mark = header.mark;
        edges.high = header.high.max(header.end);
    }

    pub(crate) fn add_data(&mut self, position: Position, offset: u64, streams: &[StreamId]) {
        self.entries.insert(position.0, offset);
        for stream in streams {
            let list = self.streams.entry(stream.0).or_default();
            match list.last() {
                Some(last) if *last >= position.0 => {
                    if let Err(at) = list.binary_search(&position.0) {
                        list.insert(at, position.0);
                        self.members += 1;
                    }
                }
                _ => {
                    list.push(position.0);
                    self.members += 1;
                }
            }
        }
    }

    pub(crate) fn add_junk(&mut self, junk: Junk) {
        // Junk over data: that was lost, and an operator has given it up.
        let over = self.entries.range(junk.from..junk.end.max(junk.from));
        let over = over.map(|(p, _)| *p);
        let over = over.filter(|p| (p - junk.from).is_multiple_of(junk.stride.max(1)));
        for position in over.collect::<Vec<_>>() {
            self.entries.remove(&position);
        }
        self.junk.insert(junk);
    }

    /// Adds what a scan found in one batch.
    pub(crate) fn add_found(&mut self, batch: &FoundBatch) {
        self.add_batch(&batch.header);
        for record in &batch.records {
            match &record.content {
                Content::Data(streams) => self.add_data(record.position, record.offset, streams),
                Content::Junk(junk) => self.add_junk(*junk),
            }
        }
    }

    /// Upper bound of the footer's size if `entries` more in `places` stream places and `others` other things came.
    pub(crate) fn footer_bytes(&self, entries: usize, places: usize, others: usize) -> usize {
        Footer::bytes(
            self.entries.len() + entries,
            self.streams.len() + places,
            self.members + places,
            self.junk.len() + others,
        )
    }

    /// The flat form, to be written as a footer and kept.
    pub(crate) fn seal(&self, high: Position, suspects: &[Suspect]) -> Sealed {
        let positions: Vec<u64> = self.entries.keys().copied().collect();
        let mut firsts = Vec::with_capacity(self.streams.len() + 1);
        let mut members = Vec::with_capacity(self.members);
        firsts.push(0);
        for list in self.streams.values() {
            let at = list.iter().filter_map(|p| positions.binary_search(p).ok());
            members.extend(at.filter_map(|i| u32::try_from(i).ok()));
            firsts.push(u32::try_from(members.len()).unwrap_or(u32::MAX));
        }
        Sealed::new(Footer {
            number: self.number,
            generation: self.generation,
            edges: Edges { high, ..self.edges },
            offsets: self.entries.values().map(|o| packed(*o)).collect(),
            positions,
            streams: self.streams.keys().copied().collect(),
            firsts,
            members,
            junk: self.junk.list(),
            suspects: suspects.to_vec(),
        })
    }

    pub(crate) fn held(&self, position: u64) -> Option<Held> {
        if let Some(offset) = self.entries.get(&position) {
            return Some(Held::Data(Place {
                segment: self.number,
                offset: *offset,
            }));
        }
        self.junk.contains(position).then_some(Held::Junk)
    }

    /// Steps from `at` by `stride` while positions are held, up to `end`.
    pub(crate) fn run(&self, mut at: u64, stride: u64, end: u64) -> u64 {
        while at < end {
            let before = at;
            let mut entries = self.entries.range(at..end).map(|(p, _)| *p).peekable();
            while at < end {
                while entries.next_if(|p| *p < at).is_some() {}
                if entries.next_if_eq(&at).is_none() {
                    break;
                }
                at = at.saturating_add(stride);
            }
            at = self.junk.run(at, stride, end);
            if at == before {
                break;
            }
        }
        at
    }

    pub(crate) fn void(&mut self, from: u64) {
        self.entries.split_off(&from);
        for list in self.streams.values_mut() {
            list.truncate(list.partition_point(|p| *p < from));
        }
        self.streams.retain(|_, list| !list.is_empty());
        self.members = self.streams.values().map(Vec::len).sum();
        self.junk.cut(from);
    }

    pub(crate) fn next_offset(&self, position: u64) -> Option<u64> {
        let next = self.entries.range(position.saturating_add(1)..).next();
        next.map(|(_, offset)| *offset)
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Positions at or above `from`, ascending, with their offsets.
    pub(crate) fn entries_from(&self, from: u64, most: usize) -> Vec<(u64, u64)> {
        let entries = self.entries.range(from..).take(most);
        entries
            .map(|(position, offset)| (*position, *offset))
            .collect()
    }

    /// The first positions of `stream` that are wanted, ascending.
    pub(crate) fn stream(&self, stream: u64, wanted: &Wanted, out: &mut Vec<u64>) {
        let Some(list) = self.streams.get(&stream) else {
            return;
        };
        let list = &list[list.partition_point(|p| *p < wanted.from)..];
        out.extend(wanted.of(list.iter().copied()));
    }

    /// The last position of `stream`.
    pub(crate) fn last_of(&self, stream: u64) -> Option<u64> {
        self.streams.get(&stream)?.last().copied()
    }

    /// The streams above `after`, ascending, with their positions.
    pub(crate) fn streams_above(
        &self,
        after: Option<u64>,
    ) -> impl Iterator<Item = (u64, &[u64])> + '_ {
        let lower = match after {
            Some(after) => std::ops::Bound::Excluded(after),
            None => std::ops::Bound::Unbounded,
        };
        self.streams
            .range((lower, std::ops::Bound::Unbounded))
            .map(|(stream, list)| (*stream, list.as_slice()))
    }
}

/// Which positions of a stream are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The chain's: a unit that was in another chain before may hold that one's positions, too.
    pub(crate) range: UnitRange,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Most of them.
    pub(crate) most: usize,
}

impl Wanted {
    fn of(&self, positions: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
        let below = positions.take_while(|p| *p < self.to);
        let own = below.filter(|p| self.range.owns(Position(*p)));
        own.take(self.most)
    }
}

impl Sealed {
    pub(crate) fn new(mut footer: Footer) -> Self {
        let mut junk = JunkSet::default();
        for range in std::mem::take(&mut footer.junk) {
            junk.insert(range);
        }
        let mut sealed = Self { footer, junk };
        sealed.shrink();
        sealed
    }

    /// A segment that is missing or of which nothing can be read.
    pub(crate) fn unreadable(number: u64) -> Self {
        let footer = Footer {
            number,
            firsts: vec![0],
            ..Footer::default()
        };
        Self::new(footer)
    }

    fn shrink(&mut self) {
        let f = &mut self.footer;
        f.positions.shrink_to_fit();
        f.offsets.shrink_to_fit();
        f.streams.shrink_to_fit();
        f.firsts.shrink_to_fit();
        f.members.shrink_to_fit();
    }

    /// The footer, as it is to be written.
    pub(crate) fn to_footer(&self) -> Footer {
        Footer {
            junk: self.junk.list(),
            ..self.footer.clone()
        }
    }

    /// First position above everything in it.
    pub(crate) fn end(&self) -> u64 {
        let last = self.footer.positions.last();
        last.map_or(0, |p| p.saturating_add(1)).max(self.junk.end())
    }

    /// The lowest position of data.
    pub(crate) fn start(&self) -> Option<u64> {
        self.footer.positions.first().copied()
    }

    fn find(&self, position: u64) -> Option<usize> {
        let positions = &self.footer.positions;
        let (first, last) = (positions.first()?, positions.last()?);
        if position < *first || position > *last {
            return None;
        }
        // Without holes or stripes the distance to the first is the index.
        let direct = usize::try_from(position - first).ok()?;
        if positions.get(direct) == Some(&position) {
            return Some(direct);
        }
        positions.binary_search(&position).ok()
    }

    pub(crate) fn held(&self, position: u64) -> Option<Held> {
        if let Some(offset) = self
            .find(position)
            .and_then(|at| self.footer.offsets.get(at))
        {
            return Some(Held::Data(Place {
                segment: self.footer.number,
                offset: unpacked(*offset),
            }));
        }
        self.junk.contains(position).then_some(Held::Junk)
    }

    /// Steps from `at` by `stride` while positions are held, up to `end`.
    pub(crate) fn run(&self, mut at: u64, stride: u64, end: u64) -> u64 {
        while at < end {
            let before = at;
            if let Some(found) = self.find(at) {
                for position in &self.footer.positions[found..] {
                    if *position > at || at >= end {
                        break;
                    }
                    if *position == at {
                        at = at.saturating_add(stride);
                    }
                }
            }
            at = self.junk.run(at, stride, end);
            if at == before {
                break;
            }
        }
        at
    }

    pub(crate) fn void(&mut self, from: u64) {
        if self.end() <= from {
            return;
        }
        let f = &mut self.footer;
        let kept = f.positions.partition_point(|p| *p < from);
        f.positions.truncate(kept);
        f.offsets.truncate(kept);
        let (mut streams, mut firsts, mut members) = (Vec::new(), vec![0], Vec::new());
        for (at, stream) in f.streams.iter().enumerate() {
            let list = range_of(&f.firsts, at).and_then(|r| f.members.get(r));
            let before = members.len();
            members.extend(list.into_iter().flatten().filter(|m| (**m as usize) < kept));
            if members.len() > before {
                streams.push(*stream);
                firsts.push(u32::try_from(members.len()).unwrap_or(u32::MAX));
            }
        }
        f.streams = streams;
        f.firsts = firsts;
        f.members = members;
        self.junk.cut(from);
        self.shrink();
    }

    pub(crate) fn next_offset(&self, position: u64) -> Option<u64> {
        let at = self.find(position)?;
        self.footer.offsets.get(at + 1).map(|o| unpacked(*o))
    }

    pub(crate) fn entries(&self) -> usize {
        self.footer.positions.len()
    }

    /// Positions at or above `from`, ascending, with their offsets.
    pub(crate) fn entries_from(&self, from: u64, most: usize) -> Vec<(u64, u64)> {
        let f = &self.footer;
        let at = f.positions.partition_point(|position| *position < from);
        let entries = f.positions[at..].iter().zip(&f.offsets[at..]).take(most);
        entries
            .map(|(position, offset)| (*position, unpacked(*offset)))
            .collect()
    }

    /// Bytes that the arrays take, by capacity.
    pub(crate) fn memory(&self) -> usize {
        let f = &self.footer;
        (f.positions.capacity() + f.streams.capacity()) * 8
            + (f.offsets.capacity() + f.firsts.capacity() + f.members.capacity()) * 4
            + self.junk.len() * 24
    }

    fn members_at(&self, at: usize) -> &[u32] {
        range_of(&self.footer.firsts, at)
            .and_then(|range| self.footer.members.get(range))
            .unwrap_or_default()
    }

    fn position_of(&self, member: u32) -> u64 {
        let positions = &self.footer.positions;
        positions.get(member as usize).copied().unwrap_or(0)
    }

    /// The first positions of `stream` that are wanted, ascending.
    pub(crate) fn stream(&self, stream: u64, wanted: &Wanted, out: &mut Vec<u64>) {
        let Ok(at) = self.footer.streams.binary_search(&stream) else {
            return;
        };
        let members = self.members_at(at);
        let first = members.partition_point(|m| self.position_of(*m) < wanted.from);
        out.extend(wanted.of(members[first..].iter().map(|m| self.position_of(*m))));
    }

    /// The last position of `stream`.
    pub(crate) fn last_of(&self, stream: u64) -> Option<u64> {
        let at = self.footer.streams.binary_search(&stream).ok()?;
        self.members_at(at).last().map(|m| self.position_of(*m))
    }

    /// The streams above `after`, ascending, with their positions.
    pub(crate) fn streams_above(
        &self,
        after: Option<u64>,
    ) -> impl Iterator<Item = (u64, impl DoubleEndedIterator<Item = u64> + '_)> + '_ {
        let first = after.map_or(0, |after| {
            self.footer.streams.partition_point(|s| *s <= after)
        });
        self.footer.streams[first..]
            .iter()
            .enumerate()
            .map(move |(at, stream)| {
                let members = self.members_at(first + at);
                (*stream, members.iter().map(|m| self.position_of(*m)))
            })
    }
}

fn range_of(firsts: &[u32], at: usize) -> Option<std::ops::Range<usize>> {
    let (from, to) = (*firsts.get(at)? as usize, *firsts.get(at + 1)? as usize);
    (from <= to).then_some(from..to)
}
