//! How long the disk takes to make a batch durable: what tells others that it has become slow, though nothing fails.
//!
//! Only batches count, and a large one as a small one of that disk would take: units are compared with each other, and one
//! that gets large entries, or is given what it lacks, is not slow for that. A unit that writes nothing says nothing, and
//! nobody waits for it either.

use std::collections::VecDeque;
use std::time::Duration;

use milonga_protocol::Time;

use crate::disk::OpId;

/// So many of the last batches count, and none that is older than [`LATELY`].
const MOST: usize = 9;
const LATELY: Duration = Duration::from_secs(5);
/// Fewer say nothing: one late sync is no slow disk.
const LEAST: usize = 4;
/// A batch that is under way for so long counts alone, and as long as it takes: a disk that is stuck ends nothing.
const STUCK: Duration = Duration::from_secs(1);
/// What a disk carries while a small batch becomes durable, about: larger ones count as so many small ones.
const SMALL: u64 = 640 << 10;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the last batches took.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// The batch under way, of which there is one at a time: since when, and its bytes.
    under_way: Option<(OpId, Time, u64)>,
    /// When it ended and how many microseconds a small one would have taken, the oldest first.
    took: VecDeque<(Time, u32)>,
    looked: Time,
    typical: Option<u32>,
}

impl Pace {
    /// A batch of so many bytes goes to the disk.
    pub(crate) const fn began(&mut self, now: Time, op: OpId, bytes: u64) {
        self.under_way = Some((op, now, bytes));
    }

    /// An operation ended, perhaps that.
    pub(crate) fn ended(&mut self, now: Time, op: OpId) {
        let Some((_, began, bytes)) = self.under_way.take_if(|(batch, ..)| *batch == op) else {
            return;
        };
        if self.took.len() == MOST {
            self.took.pop_front();
        }
        let took = u64::from(micros(now.since(began)));
        let took = took * SMALL / (SMALL + bytes);
        let took = u32::try_from(took).unwrap_or(u32::MAX);
        self.took.push_back((now, took));
    }

    /// The median in microseconds, as of the last look; `None` if there is too little to say.
    pub(crate) const fn typical(&self) -> Option<u32> {
        self.typical
    }

    /// When to look again, if there is anything to see.
    pub(crate) fn look_at(&self) -> Option<Time> {
        let idle = self.under_way.is_none() && self.took.is_empty();
        (!idle).then(|| self.looked.after(LOOK_EVERY))
    }

    /// Looks, if it is time to.
    pub(crate) fn look(&mut self, now: Time) {
        if self.look_at().is_none_or(|at| at > now) {
            return;
        }
        self.looked = now;
        let old = |(ended, _): &(Time, u32)| now.since(*ended) > LATELY;
        while self.took.front().is_some_and(old) {
            self.took.pop_front();
        }
        let mut took: Vec<_> = self.took.iter().map(|(_, took)| *took).collect();
        took.sort_unstable();
        let median = took.get(took.len() / 2).filter(|_| took.len() >= LEAST);
        let stuck = self.under_way.map(|(_, began, _)| now.since(began));
        let stuck = stuck.filter(|age| *age >= STUCK).map(micros);
        self.typical = stuck.max(median.copied());
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    /// Batches of so many milliseconds, one after the other; when the last one ended.
    fn batches(pace: &mut Pace, mut now: u64, took: &[u64]) -> u64 {
        for ms in took {
            pace.began(at(now), OpId(now), 0);
            pace.ended(at(now), OpId(u64::MAX));
            now += ms;
            pace.ended(at(now), OpId(now - ms));
            pace.look(at(now));
        }
        now
    }

    #[test]
    fn the_median_of_what_was_written_lately_is_said() {
        let mut pace = Pace::default();
        assert_eq!((pace.look_at(), pace.typical()), (None, None));
        let end = batches(&mut pace, 1_000, &[2, 2, 900]);
        pace.look(at(end + 500));
        assert_eq!(pace.typical(), None, "too few");
        let end = batches(&mut pace, end + 500, &[3, 3, 700]);
        pace.look(at(end + 500));
        assert_eq!(pace.typical(), Some(3_000), "two late ones do not count");
        let end = batches(&mut pace, end + 500, &[200; 40]);
        assert_eq!(pace.typical(), Some(200_000));
        // It is looked at once more, and then there is nothing to see.
        pace.look(at(end + 6_000));
        assert_eq!((pace.look_at(), pace.typical()), (None, None));
    }

    #[test]
    fn a_large_batch_counts_as_a_small_one() {
        let mut pace = Pace::default();
        let mut write = |now, took| {
            pace.began(at(now), OpId(now), 4 << 20);
            pace.ended(at(now + took), OpId(now));
            pace.look(at(now + 500));
            pace.typical()
        };
        let healthy: Vec<_> = (1..=5).map(|n| write(n * 500, 37)).collect();
        assert_eq!(healthy.last(), Some(&Some(5_000)));
        let broken: Vec<_> = (5..=12).map(|n| write(n * 800, 740)).collect();
        assert_eq!(broken.last(), Some(&Some(100_000)));
    }

    #[test]
    fn a_batch_that_does_not_end_counts_alone() {
        let mut pace = Pace::default();
        let end = batches(&mut pace, 1_000, &[1; 1_000]);
        pace.began(at(end), OpId(9), 0);
        pace.look(at(end + 900));
        assert_eq!(pace.typical(), Some(1_000));
        pace.look(at(end + 2_000));
        assert_eq!(pace.typical(), Some(2_000_000));
        pace.ended(at(end + 2_100), OpId(9));
        pace.look(at(end + 2_600));
        assert_eq!(pace.typical(), Some(1_000));
    }
}
