//! Rule 24 at a unit: of the streams asked it lists every entry that it holds, as far as it calls the list complete.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, Response, UnitRequest, UnitResponse};
use milonga_protocol::{Epoch, Position, ServerName, StreamId};

use crate::world::network::{Exchange, Said, Wire};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. What each unit holds of each stream: in which epoch and run it said so last.
#[derive(Debug, Default)]
pub struct Listed(BTreeMap<(ServerName, StreamId), BTreeMap<Position, (Epoch, u64)>>);

impl Invariant for Listed {
    fn name(&self) -> &'static str {
        "R24 a unit lists all entries of a stream"
    }

    fn source(&self) -> &'static str {
        "design §3, streams; rules 24 and 25"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange))
    }
}

impl Listed {
    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        if let (
            Request::Unit(UnitRequest::ReadStreams {
                epoch,
                streams,
                from,
                ..
            }),
            Response::Unit(UnitResponse::Entries { complete, .. }),
        ) = (&exchange.request, &exchange.response)
            && from < complete
        {
            for stream in streams {
                self.listed(wire, exchange, *epoch, (*stream, *from, *complete))?;
            }
        }
        if !wire.is_of_the_past(exchange) {
            self.learn(exchange);
        }
        Ok(())
    }

    fn listed(
        &self,
        wire: &Wire,
        exchange: &Exchange,
        epoch: Epoch,
        (stream, from, complete): (StreamId, Position, Position),
    ) -> Result<(), Violation> {
        let Some(held) = self.0.get(&(exchange.server.clone(), stream)) else {
            return Ok(());
        };
        let shown = &exchange.shown;
        for (position, (since, run)) in held.range(from..complete) {
            let is_listed = shown.binary_search_by_key(position, |s| s.position).is_ok();
            let cut = *run != exchange.run && wire.damaged.contains(&exchange.server);
            let mine = wire.place(epoch, &exchange.server, *position).is_some();
            if !is_listed && mine && !cut && !wire.is_void(*since, *position) {
                return Err(Violation(format!(
                    "{} has {position} of {stream:?} since {since}, but does not list it from {from} to {complete}",
                    exchange.server
                )));
            }
        }
        Ok(())
    }

    fn learn(&mut self, exchange: &Exchange) {
        if exchange.has_rejoined() {
            self.0.retain(|(server, _), _| *server != exchange.server);
        }
        let Some(epoch) = exchange.epoch() else {
            return;
        };
        for shown in &exchange.shown {
            if let Said::Data(entry) = &shown.said {
                for stream in entry.streams() {
                    let held = self.0.entry((exchange.server.clone(), stream));
                    let held = held.or_default();
                    held.insert(shown.position, (epoch, exchange.run));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, data, list, wire, written};

    #[test]
    fn an_entry_that_is_left_out_is_noticed() {
        let wire = wire();
        let mut see = Listed::default();
        let written = written("a", 1, 3, data(1));
        assert_eq!(see.exchange(&wire, &written), Ok(()));
        let whole = list("a", STREAM, (0, 5), &[(3, data(1))]);
        assert_eq!(see.exchange(&wire, &whole), Ok(()));
        let not_yet = list("a", STREAM, (0, 3), &[]);
        assert_eq!(see.exchange(&wire, &not_yet), Ok(()));
        let short = list("a", STREAM, (0, 5), &[]);
        assert!(see.exchange(&wire, &short).is_err());
    }
}
