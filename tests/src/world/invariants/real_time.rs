//! I10 for the log: a tail check sees every append that returned before it began, and checks never go back.

use std::collections::BTreeMap;

use milonga_protocol::{Epoch, Position, StreamId};

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct RealTime {
    appended: Highest<Position>,
    of_streams: BTreeMap<StreamId, Highest<Position>>,
    tails: Highest<(Epoch, Position)>,
}

/// The highest of what had returned at any time.
#[derive(Debug)]
struct Highest<T>(Vec<(Moment, T)>);

impl<T> Default for Highest<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + Ord> Highest<T> {
    fn returned(&mut self, at: Moment, value: T) {
        let highest = self
            .0
            .last()
            .map_or(value, |(_, before)| value.max(*before));
        self.0.push((at, highest));
    }

    /// Of what had returned before `began`.
    fn before(&self, began: Moment) -> Option<T> {
        let count = self.0.partition_point(|(at, _)| *at < began);
        Some(self.0[count.checked_sub(1)?].1)
    }
}

impl Invariant for RealTime {
    fn name(&self) -> &'static str {
        "I10 real-time order"
    }

    fn source(&self) -> &'static str {
        "log contract, clause 3; rules 20, 21 and 23; decisions 0004 and 0007"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for observed in view.news {
            if let Observed::Returned(id) = observed {
                self.returned(&view.pages.operations[id.0])?;
            }
        }
        Ok(())
    }
}

impl RealTime {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Append { streams, .. }, Outcome::Appended(position)) => {
                self.appended.returned(*at, *position);
                for stream in streams {
                    let highest = self.of_streams.entry(*stream).or_default();
                    highest.returned(*at, *position);
                }
                Ok(())
            }
            (Operation::Tail { streams }, Outcome::Tail(tail)) => {
                self.above(record, &self.appended, "granted", tail.next)?;
                self.above(record, &self.appended, "written", tail.written)?;
                self.streams(record, streams, tail.target)?;
                let now = (tail.epoch, tail.next);
                let before = self.tails.before(record.invoked);
                self.tails.returned(*at, now);
                match before.filter(|before| *before > now) {
                    Some(before) => Err(Violation(format!(
                        "{} checked the tail at {} and got {now:?} after {before:?}",
                        record.client, record.invoked
                    ))),
                    None => Ok(()),
                }
            }
            (Operation::Sync { streams, .. }, Outcome::Entries(_, complete)) => {
                self.streams(record, streams, *complete)
            }
            _ => Ok(()),
        }
    }

    fn streams(
        &self,
        record: &Record,
        streams: &[StreamId],
        end: Position,
    ) -> Result<(), Violation> {
        let mut known = streams.iter().filter_map(|s| self.of_streams.get(s));
        known.try_for_each(|highest| self.above(record, highest, "of its streams", end))
    }

    fn above(
        &self,
        record: &Record,
        highest: &Highest<Position>,
        what: &str,
        end: Position,
    ) -> Result<(), Violation> {
        match highest.before(record.invoked) {
            Some(position) if position >= end => Err(Violation(format!(
                "{} {:?}, begun at {}, found the end of what was {what} at {end}, but an append at {position} had returned",
                record.client, record.operation, record.invoked
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, appended, operation};
    use crate::world::journal::Tail;

    fn tail(at: u64, epoch: u64, next: u64, written: u64, target: u64) -> Record {
        let streams = vec![STREAM];
        let tail = Tail {
            epoch: Epoch(epoch),
            next: Position(next),
            written: Position(written),
            target: Position(target),
        };
        operation(at, Operation::Tail { streams }, Outcome::Tail(tail))
    }

    #[test]
    fn a_tail_check_that_misses_an_append_is_noticed() {
        let mut see = RealTime::default();
        assert_eq!(see.returned(&appended(1, 3, 7)), Ok(()));
        assert_eq!(see.returned(&tail(2, 1, 1, 1, 1)), Ok(()), "it overlaps");
        assert_eq!(see.returned(&tail(3, 1, 4, 4, 4)), Ok(()));
        assert!(see.returned(&tail(3, 1, 3, 4, 4)).is_err());
        assert!(see.returned(&tail(3, 1, 4, 3, 4)).is_err());
        assert!(see.returned(&tail(3, 1, 4, 4, 3)).is_err());
        let sync = Operation::Sync {
            streams: vec![STREAM],
            from: Position(0),
        };
        let short = operation(3, sync, Outcome::Entries(vec![], Position(3)));
        assert!(see.returned(&short).is_err());
    }

    #[test]
    fn a_tail_check_that_goes_back_is_noticed() {
        let mut see = RealTime::default();
        assert_eq!(see.returned(&tail(1, 1, 9, 0, 0)), Ok(()));
        assert_eq!(see.returned(&tail(3, 2, 5, 0, 0)), Ok(()), "a new epoch");
        assert!(see.returned(&tail(5, 2, 4, 0, 0)).is_err());
        assert!(see.returned(&tail(5, 1, 9, 0, 0)).is_err());
    }
}
