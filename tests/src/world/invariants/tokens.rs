//! I6: (epoch, position) of a sequencer's tokens strictly increases, as do the positions of an epoch, above everything
//! settled. A sequencer that was replaced may go on granting in its epoch: units refuse those tokens.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Response, SequencerResponse, Token};
use milonga_protocol::{Epoch, Position, ServerName};

use crate::world::network::{Exchange, Wire};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Tokens {
    /// The last one of each sequencer's.
    last: BTreeMap<ServerName, (Epoch, Position)>,
    /// The last position that was granted in each epoch.
    granted: BTreeMap<Epoch, Position>,
    /// The highest position that the tail of a chain had, by the epoch in which it had it.
    settled: BTreeMap<Epoch, Position>,
}

impl Invariant for Tokens {
    fn name(&self) -> &'static str {
        "I6 tokens increase"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.2; rules 16, 17, 20 and 23"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange))
    }
}

impl Tokens {
    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        match &exchange.response {
            Response::Sequencer(
                SequencerResponse::Tokens(tokens) | SequencerResponse::SomeTokens { tokens, .. },
            ) => {
                let mut tokens = tokens.iter();
                tokens.try_for_each(|token| self.token(wire, &exchange.server, epoch, token))
            }
            // Who is in an old epoch may read what was settled in a newer one (rule 4).
            _ if exchange.is_of_any_epoch() => Ok(()),
            _ => {
                let values = exchange.shown.iter().filter(|shown| shown.said.is_value());
                for shown in values {
                    if wire.is_tail(epoch, &exchange.server, shown.position) {
                        let high = self.settled.entry(epoch).or_default();
                        *high = (*high).max(shown.position);
                    }
                }
                Ok(())
            }
        }
    }

    fn token(
        &mut self,
        wire: &Wire,
        server: &ServerName,
        epoch: Epoch,
        token: &Token,
    ) -> Result<(), Violation> {
        let now = (epoch, token.position);
        let last = self.last.insert(server.clone(), now);
        let of_epoch = self.granted.insert(epoch, token.position);
        let last = last.max(of_epoch.map(|position| (epoch, position)));
        if let Some(last) = last.filter(|last| *last >= now) {
            let text = format!("{server} granted {now:?} after {last:?}");
            return Err(Violation(text));
        }
        let layout = wire.layouts.get(&epoch);
        if layout.is_none_or(|layout| layout.is_closed(token.position)) {
            let text = format!("{now:?} was granted below the start of {layout:?}");
            return Err(Violation(text));
        }
        let mut older = self.settled.range(..=epoch);
        match older.find(|(_, high)| **high >= token.position) {
            Some((before, high)) => Err(Violation(format!(
                "{now:?} was granted, but {high} was settled in {before}"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{data, granted, wire, written};

    #[test]
    fn tokens_that_do_not_increase_are_noticed() {
        let wire = wire();
        let mut tokens = Tokens::default();
        let mut see = |exchange| tokens.exchange(&wire, &exchange);
        assert_eq!(see(granted(1, 3)), Ok(()));
        assert!(see(granted(1, 3)).is_err(), "twice");
        assert_eq!(see(written("b", 1, 3, data(1))), Ok(()));
        assert!(see(granted(2, 1)).is_err(), "settled and above");
        assert_eq!(see(granted(2, 4)), Ok(()));
        assert!(see(granted(1, 9)).is_err(), "an old epoch");
    }
}
