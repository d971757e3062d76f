//! The positions of one chain that are still to be settled.

use std::collections::VecDeque;

use crate::ids::Position;
use crate::layout::UnitRange;

/// Runs of own positions, ascending; each run is half-open and holds every own position in it.
#[derive(Debug)]
pub(super) struct Work {
    range: UnitRange,
    runs: VecDeque<(Position, Position)>,
}

impl Work {
    /// The own positions of `range` in `from..to`.
    pub(super) fn range(range: UnitRange, from: Position, to: Position) -> Self {
        let mut work = Self {
            range,
            runs: VecDeque::new(),
        };
        let first = range.first_at_or_above(from);
        let to = to.min(range.to);
        if first < to {
            work.runs.push_back((first, to));
        }
        work
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Adds an own position above all others.
    pub(super) fn add(&mut self, position: Position) {
        match self.runs.back_mut() {
            Some((_, to)) if position < *to => {}
            Some((_, to)) if self.range.first_at_or_above(*to) == position => *to = position.next(),
            _ => self.runs.push_back((position, position.next())),
        }
    }

    /// Takes up to `limit` positions from the front.
    pub(super) fn take(&mut self, limit: usize) -> Vec<Position> {
        let mut taken = Vec::new();
        while taken.len() < limit && !self.runs.is_empty() {
            taken.extend(self.take_run(limit - taken.len()));
        }
        taken
    }

    /// Takes up to `limit` positions that follow one another without a gap.
    pub(super) fn take_run(&mut self, limit: usize) -> Vec<Position> {
        let Some((from, to)) = self.runs.pop_front() else {
            return Vec::new();
        };
        let taken: Vec<_> = self.range.positions(from, to).take(limit).collect();
        let rest = taken
            .last()
            .map_or(to, |last| self.range.first_at_or_above(last.next()));
        if rest < to {
            self.runs.push_front((rest, to));
        }
        taken
    }

    /// Puts positions that were taken last back in front.
    pub(super) fn put_back(&mut self, positions: &[Position]) {
        let behind = std::mem::take(&mut self.runs);
        for position in positions {
            self.add(*position);
        }
        self.runs.extend(behind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> UnitRange {
        UnitRange {
            from: Position(0),
            to: Position(100),
            origin: Position(0),
            stripes: 3,
            chain: 1,
            place: 0,
            replicas: 1,
        }
    }

    #[test]
    fn taking_and_putting_back_keeps_every_position_once() {
        let mut work = Work::range(range(), Position(5), Position(20));
        assert_eq!(work.take(2), [7, 10].map(Position));
        work.add(Position(25));
        work.put_back(&[7, 10].map(Position));
        assert_eq!(work.take_run(9), [7, 10].map(Position));
        assert_eq!(work.take(9), [13, 16, 19, 25].map(Position));
        assert!(work.is_empty());
    }
}
