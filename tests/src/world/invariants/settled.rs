//! I3: once a reader saw what a position holds, every later reader sees the same; and nobody sees it before the tail of
//! its chain has said that it has it.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::{Position, ServerName};

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::network::{Exchange, Wire};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Settled {
    /// What each position was first seen to hold, and when.
    seen: BTreeMap<Position, (Moment, Outcome)>,
    /// What the tail of its chain, in any epoch, said to have.
    at_tail: BTreeSet<Position>,
    /// Where what each unit said to have ended.
    marks: BTreeMap<ServerName, Position>,
}

impl Invariant for Settled {
    fn name(&self) -> &'static str {
        "I3 settled stays"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.3; rule 6; F2"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for exchange in &view.wire.exchanges {
            self.exchange(view.wire, exchange);
        }
        for observed in view.news {
            if let Observed::Returned(id) = observed {
                let record = &view.pages.operations[id.0];
                self.returned(record)?;
                self.early(view.wire, record)?;
            }
        }
        Ok(())
    }
}

impl Settled {
    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) {
        let Some(epoch) = exchange.epoch() else {
            return;
        };
        let values = exchange.shown.iter().filter(|shown| shown.said.is_value());
        let values = values.map(|shown| shown.position);
        let at_tail = values.filter(|p| wire.is_tail(epoch, &exchange.server, *p));
        self.at_tail.extend(at_tail);
        if let Some(marks) = exchange.marks() {
            let mark = self.marks.entry(exchange.server.clone()).or_default();
            *mark = marks.settled.max(*mark);
        }
    }

    /// Rule 6. What is closed was settled by whoever opened the epoch (rule 9).
    fn early(&self, wire: &Wire, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        let shown: Vec<Position> = match (&record.operation, outcome) {
            (Operation::Read { position }, Outcome::Data(_) | Outcome::Junk) => vec![*position],
            (_, Outcome::Entries(entries, _)) => entries.iter().map(|e| e.position).collect(),
            _ => return Ok(()),
        };
        let told = |position: &Position| {
            self.at_tail.contains(position)
                || wire
                    .tail_now(*position)
                    .is_none_or(|tail| self.marks.get(tail).is_some_and(|mark| mark > position))
        };
        match shown.iter().find(|position| !told(position)) {
            Some(position) => Err(Violation(format!(
                "{} saw {position} at {at}, before the tail of its chain had said that it has it",
                record.client
            ))),
            None => Ok(()),
        }
    }

    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Read { position }, Outcome::Data(_) | Outcome::Junk) => {
                self.see(record, *position, *at, outcome.clone())
            }
            (Operation::Read { position }, Outcome::Unwritten | Outcome::Lost) => {
                let known = self.seen.get(position);
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
                    self.see(record, seen.position, *at, value)
                })
            }
            _ => Ok(()),
        }
    }

    fn see(
        &mut self,
        record: &Record,
        position: Position,
        at: Moment,
        value: Outcome,
    ) -> Result<(), Violation> {
        let (known, before) = self
            .seen
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
    use crate::world::invariants::samples::{
        STREAM, data, operation, payload, seen, wire, written,
    };

    #[test]
    fn what_is_seen_before_the_tail_has_it_is_noticed() {
        let wire = wire();
        let position = Position(5);
        let shown = operation(9, Operation::Read { position }, Outcome::Data(payload(1)));
        let mut see = Settled::default();
        see.exchange(&wire, &written("a", 2, 5, data(1)));
        assert!(see.early(&wire, &shown).is_err(), "only the head has it");
        see.exchange(&wire, &written("b", 2, 5, data(1)));
        assert_eq!(see.early(&wire, &shown), Ok(()));
    }

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
