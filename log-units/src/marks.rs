//! What is settled and what is decided here, range by range (rules 4–6).
//!
//! ```text
//! range 0, closed              range 1, active
//! |ssssssss..d...............| |sssssssssssssssddd.......     s: settled, told or known; d: held here
//!          ^ the unit's mark              ^ settled of range 1
//! ```
//!
//! What is told of one range says nothing about another: each has a chain of its own. The unit's mark, which is stored
//! and decides what may be read in any epoch, is where the first of them stops.

use milonga_protocol::messages::Marks;
use milonga_protocol::{Layout, Position, UnitRange};

use crate::unit::Unit;

/// One of the unit's ranges in the epoch that is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) range: UnitRange,
    /// Every own position of the range below it is settled: on all replicas of its chain, or lost for good.
    pub(crate) settled: Position,
    /// The first own position, not below `settled`, that is not durably held here; `to` of the range if all are.
    pub(crate) decided: Position,
}

impl Held {
    /// The range at the start of an epoch, with what was settled before.
    pub(crate) fn new(range: UnitRange, mark: Position) -> Self {
        let settled = mark.min(range.to).max(range.from);
        Self {
            range,
            settled,
            decided: range.first_at_or_above(settled).min(range.to),
        }
    }

    /// Whether nothing of the range at or above `mark` is left.
    fn is_over(&self, mark: Position) -> bool {
        self.range.first_at_or_above(mark) >= self.range.to
    }

    /// Told, as far as it can be true: what is settled in the active part is durable here.
    fn tell(&mut self, layout: &Layout, told: Position) {
        let most = layout.start.max(self.decided).min(self.range.to);
        self.settled = self.settled.max(told.min(most));
    }
}

impl Unit {
    /// Marks of the last range.
    pub(crate) fn marks(&self) -> Marks {
        let last = self.epochs.serving.as_ref().map(|s| s.held.len());
        self.marks_of(last.unwrap_or(0).saturating_sub(1))
    }

    /// Marks of one range. `settled` is its first own position that is neither settled nor durably held and readable
    /// here; `to` of the range if there is none. Without ranges (sealed by a restart) it is the mark that was stored.
    pub(crate) fn marks_of(&self, range: usize) -> Marks {
        let trimmed = self.trimmed();
        let serving = self.epochs.serving.as_ref();
        let found = serving.and_then(|s| s.held.get(range));
        let settled = found.map_or(self.mark, |held| {
            let own = |p| held.range.owns(p);
            let lost = self.index.first_lost(held.settled, held.decided, own);
            lost.unwrap_or(held.decided)
        });
        Marks { settled, trimmed }
    }

    /// Marks over all ranges, for a seal: whoever settles begins where something is missing here, also if it was given
    /// up for lost before, so that another replica's value may still come.
    pub(crate) fn marks_of_all(&self) -> Marks {
        let trimmed = self.trimmed();
        let Some(serving) = &self.epochs.serving else {
            return self.marks();
        };
        let missing = serving.held.iter().find_map(|held| {
            let range = held.range;
            let first = range.first_at_or_above(trimmed);
            let gap = self.index.first_gap(first, range.stripes, range.to);
            let lost = self.index.first_lost(range.from, gap, |p| range.owns(p));
            lost.or(Some(gap)).filter(|missing| *missing < range.to)
        });
        let end = serving.held.last().map(|held| held.range.to);
        let settled = missing.or(end).unwrap_or(self.mark);
        Marks { settled, trimmed }
    }

    /// Moves `decided` of each range over what is held now.
    pub(crate) fn advance_decided(&mut self) {
        let trimmed = self.trimmed();
        let Some(serving) = &mut self.epochs.serving else {
            return;
        };
        for held in &mut serving.held {
            let range = held.range;
            let from = trimmed.max(held.settled).max(held.decided);
            let from = range.first_at_or_above(from);
            let gap = self.index.first_gap(from, range.stripes, range.to);
            held.decided = gap.min(range.to);
            // The tail of a chain, written one after the other, knows what is settled: what it has.
            if range.is_tail() {
                held.settled = held.settled.max(held.decided);
            }
        }
        self.raise_mark();
    }

    /// Somebody who writes or reads `at` told the settled mark of its chain.
    pub(crate) fn told(&mut self, at: Option<Position>, told: Position) {
        let Some((serving, at)) = self.epochs.serving.as_mut().zip(at) else {
            return;
        };
        if let Some(held) = serving.held.iter_mut().find(|h| h.range.owns(at)) {
            held.tell(&serving.layout, told);
            self.raise_mark();
        }
    }

    /// Somebody asked the tails of the last segment what is settled there.
    pub(crate) fn told_of_active(&mut self, told: Position) {
        let Some(serving) = &mut self.epochs.serving else {
            return;
        };
        let last = serving.held.last_mut();
        if let Some(active) = last.filter(|held| held.range.to == Position::MAX) {
            active.tell(&serving.layout, told);
            self.raise_mark();
        }
    }

    /// The layout's leader told that everything below, at most the epoch's start, is settled on every chain, and what is
    /// lost is lost for good. Nobody else can know that of closed ranges: the tails that clients ask speak of the last one.
    pub(crate) fn told_of_all(&mut self, below: Position) {
        let Some(serving) = &mut self.epochs.serving else {
            return;
        };
        let below = below.min(serving.layout.start);
        for held in &mut serving.held {
            held.tell(&serving.layout, below);
        }
        self.advance_decided();
    }

    /// The unit's mark goes where the first range stops.
    fn raise_mark(&mut self) {
        let Some(serving) = &self.epochs.serving else {
            return;
        };
        let unsettled = serving.held.iter().find(|held| !held.is_over(held.settled));
        let held = unsettled.or_else(|| serving.held.last());
        self.mark = self.mark.max(held.map_or(self.mark, |held| held.settled));
    }

    /// Of this unit's positions all below it are settled, and so owed.
    pub(crate) fn owed_below(&self) -> Position {
        let ranges = self.serving().map_or(&[][..], |s| &s.held);
        let unsettled = ranges.iter().find(|held| !held.is_over(held.settled));
        unsettled.map_or(Position::MAX, |held| held.settled)
    }

    /// Everything of this unit's below it may be trimmed: it is settled, or at least decided here.
    pub(crate) fn trimmable(&self) -> Position {
        let serving = self.epochs.serving.as_ref();
        let ranges = serving.map_or(&[][..], |s| &s.held);
        let ends = ranges.iter().map(|held| held.settled.max(held.decided));
        let undecided = ranges
            .iter()
            .zip(ends)
            .find(|(held, end)| !held.is_over(*end));
        // All that this unit has is closed and complete: it cannot judge what lies behind.
        undecided.map_or(Position::MAX, |(_, end)| end)
    }
}
