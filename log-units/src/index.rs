//! Which positions this unit holds, and where, over all segments.

use std::collections::BTreeSet;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Position, StreamId};

use crate::format::{Junk, Suspect};
use crate::segment_index::{Active, Sealed};

/// Where an entry's record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Number of the segment.
    pub(crate) segment: u64,
    /// Offset of the record's header.
    pub(crate) offset: u64,
}

/// What is held at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// An entry.
    Data(Place),
    /// Junk.
    Junk,
}

/// The index of the whole unit. Only durable values are in it.
///
/// A position may be held twice (a damaged value that was repaired): the newest segment wins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// Ascending by number. Missing and unreadable segments are there, empty.
    pub(crate) sealed: Vec<Sealed>,
    /// The segment that is written, if there is one yet.
    pub(crate) active: Option<Active>,
    /// Damage of unknown content: what is not held otherwise is lost.
    pub(crate) suspects: Vec<Suspect>,
    /// Held positions that turned out to be unreadable, and values whose write failed half-way.
    pub(crate) lost: BTreeSet<Position>,
    /// First position above everything that is or may be held. Lowered only by voiding.
    pub(crate) high: Position,
}

impl Index {
    /// What is held at `position`, readable or not.
    pub(crate) fn held(&self, position: Position) -> Option<Held> {
        if position >= self.high {
            return None;
        }
        let in_active = self.active.as_ref().and_then(|a| a.held(position.0));
        in_active.or_else(|| self.sealed.iter().rev().find_map(|s| s.held(position.0)))
    }

    /// The segment of that number, or the next one that has entries at or above `from`, and the first of those; of later
    /// segments all count.
    pub(crate) fn entries_from(
        &self,
        segment: u64,
        from: u64,
        most: usize,
    ) -> Option<(u64, Vec<(u64, Place)>)> {
        let of = |number: u64, entries: Vec<(u64, u64)>| {
            let placed = |(position, offset)| {
                let segment = number;
                (position, Place { segment, offset })
            };
            let entries: Vec<_> = entries.into_iter().map(placed).collect();
            (!entries.is_empty()).then_some((number, entries))
        };
        let from_of = |number| if number == segment { from } else { 0 };
        let at = self
            .sealed
            .partition_point(|sealed| sealed.footer.number < segment);
        let found = self.sealed[at..].iter().find_map(|sealed| {
            let number = sealed.footer.number;
            of(number, sealed.entries_from(from_of(number), most))
        });
        let active = self.active.as_ref().filter(|a| a.number >= segment);
        found.or_else(|| {
            let active = active?;
            of(
                active.number,
                active.entries_from(from_of(active.number), most),
            )
        })
    }

    /// Whether something may be lost here.
    pub(crate) fn is_damaged(&self) -> bool {
        !self.lost.is_empty() || !self.suspects.is_empty()
    }

    /// Whether `position` is known or owed, but cannot be given.
    pub(crate) fn is_lost(&self, position: Position) -> bool {
        self.lost.contains(&position)
            || (self.is_suspect(position) && self.held(position).is_none())
    }

    fn is_suspect(&self, position: Position) -> bool {
        self.suspects
            .iter()
            .any(|s| s.from <= position && position < s.to)
    }

    /// First position of `from`, `from + stride`, … below `end` that is not held; at or above `end` if all are.
    /// Runs through flat arrays, so that millions of positions take milliseconds.
    pub(crate) fn first_gap(&self, from: Position, stride: u64, end: Position) -> Position {
        let mut at = from.0;
        while at < end.0 {
            let before = at;
            for sealed in self.sealed.iter().rev() {
                at = sealed.run(at, stride, end.0);
            }
            if let Some(active) = &self.active {
                at = active.run(at, stride, end.0);
            }
            if at == before {
                break;
            }
        }
        Position(at)
    }

    /// The lowest lost position in `from..to` that `own` accepts.
    pub(crate) fn first_lost(
        &self,
        from: Position,
        to: Position,
        own: impl Fn(Position) -> bool,
    ) -> Option<Position> {
        if from >= to {
            return None;
        }
        self.lost.range(from..to).copied().find(|p| own(*p))
    }

    /// For each stream the first position above its durable entries, or a higher one: looks at streams in the two
    /// newest segments only, and takes an older one to be all theirs.
    pub(crate) fn ends_of(&self, streams: &[StreamId]) -> Vec<Position> {
        if !self.suspects.is_empty() {
            return vec![self.high; streams.len()];
        }
        let (newest, older) = match self.sealed.split_last() {
            Some((newest, older)) => (Some(newest), older),
            None => (None, &[][..]),
        };
        // Segments overlap a little: writes do not arrive in order.
        let below = older.iter().map(Sealed::end).max().unwrap_or(0);
        let end_of = |stream: &StreamId| {
            let in_active = self.active.as_ref().and_then(|a| a.last_of(stream.0));
            let last = in_active.max(newest.and_then(|s| s.last_of(stream.0)));
            Position(last.map_or(0, |last| last.saturating_add(1)).max(below))
        };
        streams.iter().map(end_of).collect()
    }

    /// End of what is lost together with the knowledge of its streams. What was lost and is repaired may count: without
    /// its ranges a unit cannot tell a hole of its own in damage from another chain's position.
    pub(crate) fn lost_end(&self) -> Position {
        let suspects = self.suspects.iter().map(|s| s.to);
        let mut unknown = self.lost.iter().rev().filter(|p| self.held(**p).is_none());
        let unknown = unknown.next().map(|p| p.next());
        suspects.chain(unknown).max().unwrap_or_default()
    }

    /// Notes the durable value of a position in the active segment.
    pub(crate) fn add_data(&mut self, position: Position, offset: u64, streams: &[StreamId]) {
        if let Some(active) = &mut self.active {
            let skips = streams.len() > 1 && plants::acts(Plant::StreamIndexSkips, 30);
            let listed = &streams[..streams.len() - usize::from(skips)];
            active.add_data(position, offset, listed);
        }
        self.lost.remove(&position);
        self.high = self.high.max(position.next());
    }

    /// Notes durable junk in the active segment.
    pub(crate) fn add_junk(&mut self, junk: Junk) {
        if let Some(active) = &mut self.active {
            active.add_junk(junk);
        }
        if !self.lost.is_empty() {
            let repaired = |p: &Position| {
                p.0 >= junk.from && p.0 < junk.end && (p.0 - junk.from).is_multiple_of(junk.stride)
            };
            self.lost.retain(|p| !repaired(p));
        }
        self.high = self.high.max(Position(junk.end));
    }

    /// Forgets everything at or above `from`: an epoch ended and its tail was not taken over (rule 1).
    pub(crate) fn void(&mut self, from: Position) {
        if self.high <= from {
            return;
        }
        for sealed in &mut self.sealed {
            sealed.void(from.0);
        }
        if let Some(active) = &mut self.active {
            active.void(from.0);
        }
        for suspect in &mut self.suspects {
            suspect.to = suspect.to.min(from);
        }
        self.suspects.retain(|s| s.from < s.to);
        self.lost.split_off(&from);
        self.high = from;
    }

    /// Forgets damage below the trim mark.
    pub(crate) fn trim(&mut self, below: Position) {
        self.lost = self.lost.split_off(&below);
        self.forget_suspects(below);
    }

    /// Below `below` everything is held that the unit owes: what damage may have cost there is back, or was not its own.
    pub(crate) fn forget_suspects(&mut self, below: Position) {
        for suspect in &mut self.suspects {
            suspect.from = suspect.from.max(below);
        }
        self.suspects.retain(|s| s.from < s.to);
    }

    /// The first segment that must stay if everything below `trim` goes, and the last batch before it (0 if nothing
    /// is known of that). Damage above
    /// the mark keeps everything: it is the evidence of what may have been held.
    pub(crate) fn first_needed(&self, trim: Position) -> Option<(u64, u64)> {
        if self.suspects.iter().any(|s| s.to > trim) {
            return None;
        }
        let mut needed = None;
        for sealed in &self.sealed {
            let more = if plants::active(Plant::TrimsTooMuch) {
                8
            } else {
                0
            };
            if sealed.end() > trim.0 + more {
                break;
            }
            needed = Some((sealed.footer.number + 1, sealed.footer.edges.last));
        }
        needed
    }

    /// Takes out the segments below `first` and returns their numbers.
    pub(crate) fn remove_below(&mut self, first: u64) -> Vec<u64> {
        let kept = self
            .sealed
            .partition_point(|sealed| sealed.footer.number < first);
        self.sealed
            .drain(..kept)
            .map(|sealed| sealed.footer.number)
            .collect()
    }

    /// Generation of a segment.
    pub(crate) fn generation(&self, segment: u64) -> Option<u64> {
        if let Some(active) = self.active.as_ref().filter(|a| a.number == segment) {
            return Some(active.generation);
        }
        let at = self
            .sealed
            .binary_search_by_key(&segment, |s| s.footer.number)
            .ok()?;
        self.sealed.get(at).map(|s| s.footer.generation)
    }

    /// About how many bytes the record at `place` takes. A guess: exact where records lie in order of position.
    pub(crate) fn guess_bytes(&self, position: Position, place: Place) -> u64 {
        const LEAST: u64 = 128;
        const MOST: u64 = 64 << 10;
        let next = match self.active.as_ref().filter(|a| a.number == place.segment) {
            Some(active) => active.next_offset(position.0),
            None => self
                .sealed
                .binary_search_by_key(&place.segment, |s| s.footer.number)
                .ok()
                .and_then(|at| self.sealed.get(at)?.next_offset(position.0)),
        };
        next.and_then(|next| next.checked_sub(place.offset))
            .filter(|len| (LEAST..=MOST).contains(len))
            .unwrap_or(4_096)
    }

    /// Entries held, counting repaired ones twice.
    pub(crate) fn entries(&self) -> usize {
        let active = self.active.as_ref().map_or(0, Active::entries);
        active + self.sealed.iter().map(Sealed::entries).sum::<usize>()
    }

    /// Bytes of memory that sealed segments' indexes take.
    pub(crate) fn sealed_bytes(&self) -> usize {
        self.sealed.iter().map(Sealed::memory).sum()
    }
}
