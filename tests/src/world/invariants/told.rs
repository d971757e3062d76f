//! Rule 5: below what a unit was told to be settled it holds something, or has lost it.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, Response, UnitRequest, UnitResponse};
use milonga_protocol::{Position, ServerName};

use crate::world::network::{Exchange, Said};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. The highest mark that each unit took in its present run, and since when.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<ServerName, Mark>);

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    run: u64,
    below: Position,
    since: Moment,
}

impl Invariant for Told {
    fn name(&self) -> &'static str {
        "R5 what is settled is held"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.3; rules 5, 6 and 9; F9"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(exchange))
    }
}

impl Told {
    fn exchange(&mut self, exchange: &Exchange) -> Result<(), Violation> {
        if let (
            Request::Unit(UnitRequest::Settled { below, .. }),
            Response::Unit(UnitResponse::Done),
        ) = (&exchange.request, &exchange.response)
        {
            self.told(exchange, *below);
        }
        let Some(mark) = self.0.get(&exchange.server) else {
            return Ok(());
        };
        // A read takes effect when it begins. A restart may have cut its last batch, and is told again.
        if mark.run != exchange.run || exchange.asked <= mark.since {
            return Ok(());
        }
        let mut shown = exchange.shown.iter();
        match shown.find(|s| s.said == Said::Unwritten && s.position < mark.below) {
            Some(shown) => Err(Violation(format!(
                "{} was told at {} that everything below {} is settled, but says that {} is unwritten",
                exchange.server, mark.since, mark.below, shown.position
            ))),
            None => Ok(()),
        }
    }

    fn told(&mut self, exchange: &Exchange, below: Position) {
        let mark = self.0.entry(exchange.server.clone()).or_default();
        if mark.run != exchange.run || mark.below < below {
            *mark = Mark {
                run: exchange.run,
                below,
                since: exchange.at,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{read, restarted, settled, unwritten};

    #[test]
    fn a_hole_below_what_was_told_is_noticed() {
        let mut see = Told::default();
        assert_eq!(see.exchange(&read("a", 1, 3, unwritten())), Ok(()));
        assert_eq!(see.exchange(&settled("a", 4)), Ok(()));
        assert_eq!(see.exchange(&read("a", 1, 4, unwritten())), Ok(()));
        assert_eq!(see.exchange(&read("b", 1, 3, unwritten())), Ok(()));
        assert!(see.exchange(&read("a", 1, 3, unwritten())).is_err());
        let restarted = restarted(read("a", 1, 3, unwritten()));
        assert_eq!(see.exchange(&restarted), Ok(()), "not told yet");
    }
}
