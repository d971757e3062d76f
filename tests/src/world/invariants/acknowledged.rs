//! I1, I2, I3 and I15 for raw appends: what was acknowledged is what later reads see, and nothing else is.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::Position;

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// Position by position, what was acknowledged or read there first, and when that was known.
#[derive(Debug, Default)]
pub struct Acknowledged {
    settled: BTreeMap<Position, (Moment, Outcome)>,
    appended: BTreeMap<Bytes, Position>,
    failed: BTreeMap<Bytes, String>,
}

impl Invariant for Acknowledged {
    fn name(&self) -> &'static str {
        "I2 acknowledged is readable"
    }

    fn source(&self) -> &'static str {
        "log contract, clauses 1 to 4"
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

impl Acknowledged {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Append { payload }, Outcome::Appended(position)) => {
                self.appended.insert(payload.clone(), *position);
                self.settle(record, *position, *at, Outcome::Data(payload.clone()))
            }
            (Operation::Append { payload }, Outcome::Failed(why)) => {
                self.failed.insert(payload.clone(), why.clone());
                Ok(())
            }
            (Operation::Read { position }, Outcome::Data(_) | Outcome::Junk) => {
                self.settle(record, *position, *at, outcome.clone())
            }
            (
                Operation::Read { position },
                Outcome::Unwritten | Outcome::Lost | Outcome::Trimmed,
            ) => match self.settled.get(position) {
                Some((known, before)) if *known < record.invoked => Err(Violation(format!(
                    "{} read {position} as {outcome:?} from {} to {at}, but at {known} it held {before:?}",
                    record.client, record.invoked
                ))),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn settle(
        &mut self,
        record: &Record,
        position: Position,
        at: Moment,
        value: Outcome,
    ) -> Result<(), Violation> {
        if let Outcome::Data(payload) = &value {
            if let Some(why) = self.failed.get(payload) {
                let text = format!("{payload:?} at {position} was reported failed: {why}");
                return Err(Violation(text));
            }
            if let Some(other) = self.appended.get(payload).filter(|p| **p != position) {
                let text = format!("{payload:?} is at {other} and at {position}");
                return Err(Violation(text));
            }
        }
        match self.settled.get(&position) {
            Some((known, before)) if *before != value => Err(Violation(format!(
                "{position} held {before:?} at {known}, but {} saw {value:?} at {at}",
                record.client
            ))),
            Some(_) => Ok(()),
            None => {
                self.settled.insert(position, (at, value));
                Ok(())
            }
        }
    }
}
