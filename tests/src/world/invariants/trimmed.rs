//! I11: trim is monotone, nothing at or above the mark vanishes, nothing below it comes back.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, Response, UnitRequest, UnitResponse};
use milonga_protocol::{Position, ServerName};

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::network::{Exchange, How, Said};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Trimmed {
    /// The highest mark that anybody asked of a unit.
    asked: Position,
    /// The highest that each unit named, and since when.
    marks: BTreeMap<ServerName, (Position, Moment)>,
    /// The highest that a client was told, and when.
    told: (Position, Moment),
}

impl Invariant for Trimmed {
    fn name(&self) -> &'static str {
        "I11 trim is monotone"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.5; design §3, trim; rules 5, 22 and 25; F10"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for observed in view.news {
            match observed {
                Observed::Returned(id) => self.returned(&view.pages.operations[id.0])?,
                // A unit may have done it and died before it answered.
                Observed::Invoked(id) => self.invoked(&view.pages.operations[id.0].operation),
                _ => {}
            }
        }
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(exchange))
    }
}

impl Trimmed {
    fn invoked(&mut self, operation: &Operation) {
        if let Operation::Trim { below } = operation {
            self.asked = self.asked.max(*below);
        }
    }

    fn exchange(&mut self, exchange: &Exchange) -> Result<(), Violation> {
        if let Request::Unit(UnitRequest::Trim { below, .. }) = &exchange.request {
            self.asked = self.asked.max(*below);
        }
        let mark = match &exchange.response {
            Response::Unit(UnitResponse::Trimmed { below }) => Some(*below),
            // A read tells the marks under which it began; the disk may have taken its time.
            Response::Unit(UnitResponse::Values { .. }) => None,
            _ => exchange.marks().map(|marks| marks.trimmed),
        };
        if let Some(mark) = mark {
            self.mark(&exchange.server, mark, exchange.at)?;
        }
        let known = self.marks.get(&exchange.server).copied();
        let (known, since) = known.unwrap_or_default();
        for shown in &exchange.shown {
            let position = shown.position;
            // What was asked before may have become durable just before the trim.
            let back = shown.how == How::Written && position < known && exchange.asked > since;
            let gone = shown.said == Said::Trimmed && position >= self.asked;
            if back || gone {
                let server = &exchange.server;
                let text = format!(
                    "{server}, trimmed below {known} of {}, says of {position}: {:?}, {:?}",
                    self.asked, shown.how, shown.said
                );
                return Err(Violation(text));
            }
        }
        Ok(())
    }

    fn mark(&mut self, server: &ServerName, mark: Position, at: Moment) -> Result<(), Violation> {
        let entry = self.marks.entry(server.clone()).or_default();
        let known = entry.0;
        if mark < known || mark > self.asked {
            let text = format!(
                "{server} was trimmed below {known} and is now trimmed below {mark}; asked: {}",
                self.asked
            );
            return Err(Violation(text));
        }
        if mark > known {
            *entry = (mark, at);
        }
        Ok(())
    }

    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        match (&record.operation, &record.returned) {
            (Operation::Trim { .. }, Some((at, Outcome::Mark(mark)))) => {
                if *mark > self.told.0 {
                    self.told = (*mark, *at);
                }
                Ok(())
            }
            (Operation::Read { position }, Some((_, outcome))) => {
                let (mark, at) = self.told;
                let is = *outcome == Outcome::Trimmed;
                let answered = !matches!(outcome, Outcome::Failed(_) | Outcome::Unknown(_));
                let back = *position < mark && at < record.invoked && answered && !is;
                if back || (is && *position >= self.asked) {
                    let text = format!(
                        "{} read {position} as {outcome:?}; trimmed below {mark}, asked: {}",
                        record.client, self.asked
                    );
                    return Err(Violation(text));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{
        confirmed, data, operation, read, said, trim, written,
    };

    #[test]
    fn a_mark_that_falls_or_was_never_asked_is_noticed() {
        let mut see = Trimmed::default();
        assert_eq!(see.exchange(&confirmed("a", 0)), Ok(()));
        assert!(see.exchange(&confirmed("a", 3)).is_err(), "nobody asked");
        assert_eq!(see.exchange(&trim("a", 5)), Ok(()));
        assert_eq!(see.exchange(&confirmed("a", 5)), Ok(()));
        assert_eq!(see.exchange(&confirmed("b", 0)), Ok(()), "another unit");
        assert!(see.exchange(&confirmed("a", 4)).is_err());
    }

    #[test]
    fn what_vanishes_above_the_mark_or_comes_back_below_it_is_noticed() {
        let mut see = Trimmed::default();
        assert_eq!(see.exchange(&trim("a", 5)), Ok(()));
        assert_eq!(see.exchange(&read("a", 1, 4, said(Said::Trimmed))), Ok(()));
        assert!(see.exchange(&read("a", 1, 5, said(Said::Trimmed))).is_err());
        assert!(see.exchange(&written("a", 1, 4, data(1))).is_err());
        let told = operation(
            1,
            Operation::Trim { below: Position(5) },
            Outcome::Mark(Position(5)),
        );
        assert_eq!(see.returned(&told), Ok(()));
        let position = Position(4);
        let read = |at, outcome| operation(at, Operation::Read { position }, outcome);
        assert_eq!(see.returned(&read(9, Outcome::Trimmed)), Ok(()));
        assert!(see.returned(&read(9, Outcome::Junk)).is_err());
        assert_eq!(see.returned(&read(1, Outcome::Junk)), Ok(()), "it overlaps");
    }
}
