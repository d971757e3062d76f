//! What is known to be settled, and since when positions are known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_protocol::{Epoch, Position, Time};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a chain for as long as its segment exists: where it begins, how it gives positions to chains, and the index in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainKey {
    pub(crate) start: Position,
    pub(crate) origin: Position,
    pub(crate) chains: usize,
    pub(crate) chain: usize,
}

/// For each chain the highest settled mark that its tail has told, and in which epoch. Settled is settled in every later
/// epoch too; a unit of an earlier one may not have taken part, and must not hear of it.
#[derive(Default)]
pub(crate) struct SettledMarks(Mutex<BTreeMap<ChainKey, (Epoch, Position)>>);

impl SettledMarks {
    /// Every position of the chain below the answer is settled, by what was known in `epoch`.
    pub(crate) fn get(&self, epoch: Epoch, chain: ChainKey) -> Position {
        let known = lock(&self.0).get(&chain).copied().unwrap_or_default();
        let (learned, mark) = known;
        if learned <= epoch {
            mark
        } else {
            Position::ZERO
        }
    }

    /// A unit of `epoch` told so.
    pub(crate) fn raise(&self, epoch: Epoch, chain: ChainKey, mark: Position) {
        let mut marks = lock(&self.0);
        let (learned, known) = marks.entry(chain).or_default();
        if mark > *known {
            (*learned, *known) = (epoch.max(*learned), mark);
        }
    }
}

/// Since when positions are known to have been granted: hole timers run from then, all together (rule 26).
#[derive(Default)]
pub(crate) struct KnownSince(Mutex<Steps>);

#[derive(Default)]
struct Steps {
    epoch: Epoch,
    /// `(end, time)`, ascending in both: positions below `end` are known since `time`.
    steps: VecDeque<(Position, Time)>,
}

/// Times are kept this much finer than the age that is asked about; so the number of steps is bounded.
const GRAIN: u32 = 64;

impl KnownSince {
    /// Positions below `end` were granted, as seen `now` in `epoch`. Nobody will ask for an age above `age`, and
    /// times may be too early by a small part of it.
    pub(crate) fn saw(&self, epoch: Epoch, end: Position, now: Time, age: Duration) {
        let mut known = lock(&self.0);
        if known.epoch < epoch {
            // Positions that nobody wrote may be granted again: their time begins anew.
            known.epoch = epoch;
            known.steps.clear();
        }
        // What is old enough need not be told apart.
        while known
            .steps
            .get(1)
            .is_some_and(|(_, time)| now.since(*time) >= age)
        {
            known.steps.pop_front();
        }
        if epoch < known.epoch {
            return;
        }
        match known.steps.back_mut() {
            Some((last, _)) if *last >= end => {}
            Some((last, time)) if now.since(*time) < age / GRAIN => *last = end,
            _ => known.steps.push_back((end, now)),
        }
    }

    /// Since when `position` is known; `None` if it is not.
    pub(crate) fn since(&self, position: Position) -> Option<Time> {
        let known = lock(&self.0);
        let step = known.steps.partition_point(|(end, _)| *end <= position);
        known.steps.get(step).map(|(_, time)| *time)
    }

    /// Every position below the answer is known for `age` or longer.
    pub(crate) fn older_than(&self, age: Duration, now: Time) -> Position {
        let known = lock(&self.0);
        let old = known
            .steps
            .partition_point(|(_, time)| now.since(*time) >= age);
        match old.checked_sub(1) {
            Some(last) => known.steps[last].0,
            None => Position::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    /// A chain of a segment of so many that begins with the log.
    fn key(chains: usize, chain: usize) -> ChainKey {
        ChainKey {
            start: Position::ZERO,
            origin: Position::ZERO,
            chains,
            chain,
        }
    }

    const AGE: Duration = Duration::from_millis(10);

    #[test]
    fn a_position_is_known_since_the_first_time_it_was_seen() {
        let known = KnownSince::default();
        known.saw(Epoch(1), Position(10), at(5), AGE);
        known.saw(Epoch(1), Position(8), at(6), AGE);
        known.saw(Epoch(1), Position(20), at(7), AGE);
        assert_eq!(known.since(Position(9)), Some(at(5)));
        assert_eq!(known.since(Position(10)), Some(at(7)));
        assert_eq!(known.since(Position(20)), None);
        assert_eq!(known.older_than(AGE, at(14)), Position::ZERO);
        assert_eq!(known.older_than(AGE, at(15)), Position(10));
        assert_eq!(known.older_than(AGE, at(17)), Position(20));
    }

    #[test]
    fn a_new_epoch_begins_anew() {
        let known = KnownSince::default();
        known.saw(Epoch(1), Position(10), at(5), AGE);
        known.saw(Epoch(2), Position(10), at(50), AGE);
        known.saw(Epoch(1), Position(30), at(60), AGE);
        assert_eq!(known.since(Position(3)), Some(at(50)));
        assert_eq!(known.since(Position(20)), None);
    }

    #[test]
    fn a_busy_log_needs_few_steps_and_still_ages() {
        let known = KnownSince::default();
        for n in 0..100_000 {
            let now = Time::from_start(Duration::from_micros(n));
            known.saw(Epoch(1), Position(n), now, AGE);
        }
        assert!(lock(&known.0).steps.len() < 2 * GRAIN as usize);
        let old = known.older_than(AGE, at(100));
        assert!(Position(89_000) < old && old < Position(91_000), "{old}");
    }

    #[test]
    fn marks_never_go_back() {
        let marks = SettledMarks::default();
        let chain = key(2, 1);
        marks.raise(Epoch(1), chain, Position(7));
        marks.raise(Epoch(2), chain, Position(3));
        assert_eq!(marks.get(Epoch(1), chain), Position(7));
        assert_eq!(marks.get(Epoch(1), key(2, 0)), Position::ZERO);
    }

    #[test]
    fn units_of_an_earlier_epoch_do_not_hear_of_marks_of_a_later_one() {
        let marks = SettledMarks::default();
        let chain = key(2, 1);
        marks.raise(Epoch(3), chain, Position(7));
        assert_eq!(marks.get(Epoch(2), chain), Position::ZERO);
        marks.raise(Epoch(2), chain, Position(9));
        assert_eq!(marks.get(Epoch(2), chain), Position::ZERO, "it holds both");
        assert_eq!(marks.get(Epoch(4), chain), Position(9));
        // One more chain from the same start on: other positions.
        assert_eq!(marks.get(Epoch(4), key(3, 1)), Position::ZERO);
    }
}
