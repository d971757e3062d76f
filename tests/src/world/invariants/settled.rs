//! I3: once a reader saw what a position holds, every later reader sees the same.

use std::collections::BTreeMap;

use milonga_protocol::Position;

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. What each position was first seen to hold, and when.
#[derive(Debug, Default)]
pub struct Settled(BTreeMap<Position, (Moment, Outcome)>);

impl Invariant for Settled {
    fn name(&self) -> &'static str {
        "I3 settled stays"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.3; rule 6; F2"
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

impl Settled {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Read { position }, Outcome::Data(_) | Outcome::Junk) => {
                self.seen(record, *position, *at, outcome.clone())
            }
            (Operation::Read { position }, Outcome::Unwritten | Outcome::Lost) => {
                let known = self.0.get(position);
                match known.filter(|(known, _)| *known < record.invoked) {
                    Some((known, value)) => Err(Violation(format!(
                        "{} read {position} as {outcome:?} from {} to {at}, but at {known} it held {value:?}",
                        record.client, record.invoked
                    ))),
                    None => Ok(()),
                }
            }
            (_, Outcome::Entries(entries, _)) => {
                let mut entries = entries.iter();
                entries.try_for_each(|seen| {
                    let value = Outcome::Data(seen.payload.clone());
                    self.seen(record, seen.position, *at, value)
                })
            }
            _ => Ok(()),
        }
    }

    fn seen(
        &mut self,
        record: &Record,
        position: Position,
        at: Moment,
        value: Outcome,
    ) -> Result<(), Violation> {
        let (known, before) = self
            .0
            .entry(position)
            .or_insert_with(|| (at, value.clone()));
        if *before == value {
            return Ok(());
        }
        Err(Violation(format!(
            "{position} held {before:?} at {known}, but {} saw {value:?} at {at}",
            record.client
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, operation, payload, seen};

    #[test]
    fn a_value_that_changes_or_goes_is_noticed() {
        let mut see = Settled::default();
        let position = Position(3);
        let read = |at, outcome| operation(at, Operation::Read { position }, outcome);
        assert_eq!(see.returned(&read(1, Outcome::Unwritten)), Ok(()));
        assert_eq!(see.returned(&read(3, Outcome::Data(payload(1)))), Ok(()));
        assert_eq!(
            see.returned(&read(2, Outcome::Unwritten)),
            Ok(()),
            "overlaps"
        );
        assert_eq!(see.returned(&read(9, Outcome::Trimmed)), Ok(()));
        assert!(see.returned(&read(9, Outcome::Unwritten)).is_err());
        assert!(see.returned(&read(9, Outcome::Junk)).is_err());
        let follow = Operation::Follow {
            streams: vec![STREAM],
            from: Position(0),
        };
        let part = Outcome::Entries(vec![seen(3, 2)], Position(4));
        assert!(see.returned(&operation(9, follow, part)).is_err());
    }
}
