//! Rule 24: the sequencer's lists name the newest entry of each stream, or lead to what was granted after it.

use std::collections::BTreeMap;

use milonga_protocol::messages::{
    Request, Response, SequencerRequest, SequencerResponse, UnitRequest,
};
use milonga_protocol::{BackPointers, Epoch, ListEnd, Position, StreamId};

use crate::world::journal::{Observed, Operation};
use crate::world::network::{Exchange, Said, Wire};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Pointers {
    /// Settled entries of each stream, with the epoch in which they were first seen.
    entries: BTreeMap<StreamId, BTreeMap<Position, Epoch>>,
    /// Somebody wanted everything below to be trimmed.
    trimmed: Position,
}

impl Invariant for Pointers {
    fn name(&self) -> &'static str {
        "R24 lists lead to every entry"
    }

    fn source(&self) -> &'static str {
        "Tango §5; rules 16, 22 and 24"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for observed in view.news {
            // A unit may have done it and been sealed before it answered.
            if let Observed::Invoked(id) = observed {
                self.invoked(&view.pages.operations[id.0].operation);
            }
        }
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange))
    }
}

impl Pointers {
    fn invoked(&mut self, operation: &Operation) {
        if let Operation::Trim { below } = operation {
            self.trimmed = self.trimmed.max(*below);
        }
    }

    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        if let Request::Unit(UnitRequest::Trim { below, .. }) = &exchange.request {
            self.trimmed = self.trimmed.max(*below);
        }
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        let end = (epoch, Position::MAX);
        match (&exchange.request, &exchange.response) {
            (
                Request::Sequencer(SequencerRequest::Tail { streams, .. }),
                Response::Sequencer(SequencerResponse::Tail(tail)),
            ) => {
                let mut lists = streams.iter().zip(&tail.streams);
                lists.try_for_each(|(stream, list)| self.list(*stream, list, end))
            }
            (
                _,
                Response::Sequencer(
                    SequencerResponse::Tokens(tokens)
                    | SequencerResponse::SomeTokens { tokens, .. },
                ),
            ) => {
                let mut links = tokens.iter().flat_map(|token| {
                    let links = token.links.iter();
                    links.map(|link| (link, token.position))
                });
                links.try_for_each(|(link, below)| {
                    self.list(link.stream, &link.back, (epoch, below))
                })
            }
            _ => {
                self.learn(wire, exchange, epoch);
                Ok(())
            }
        }
    }

    fn learn(&mut self, wire: &Wire, exchange: &Exchange, epoch: Epoch) {
        for shown in &exchange.shown {
            if let Said::Data(entry) = &shown.said
                && wire.is_tail(epoch, &exchange.server, shown.position)
            {
                for stream in entry.streams() {
                    let entries = self.entries.entry(stream).or_default();
                    entries.entry(shown.position).or_insert(epoch);
                }
            }
        }
    }

    /// An entry in `from..to` that was settled in or before `epoch` and not trimmed.
    fn between(
        &self,
        entries: &BTreeMap<Position, Epoch>,
        epoch: Epoch,
        (from, to): (Position, Position),
    ) -> Option<Position> {
        let from = from.max(self.trimmed);
        let mut found = (from < to).then(|| entries.range(from..to).rev())?;
        let found = found.find(|(_, settled)| **settled <= epoch);
        found.map(|(position, _)| *position)
    }

    /// `list` is what the sequencer of an epoch says of `stream` below `below`.
    fn list(
        &self,
        stream: StreamId,
        list: &BackPointers,
        (epoch, below): (Epoch, Position),
    ) -> Result<(), Violation> {
        let Some(entries) = self.entries.get(&stream) else {
            return Ok(());
        };
        // Between two pointers, and above the first, there is nothing of the stream; below the last one neither, unless
        // the list leaves that open.
        let mut above = below;
        let mut left_out = None;
        for position in list.positions() {
            left_out = left_out.or_else(|| self.between(entries, epoch, (position.next(), above)));
            above = *position;
        }
        if list.end() != ListEnd::Unknown {
            left_out = left_out.or_else(|| self.between(entries, epoch, (Position::ZERO, above)));
        }
        match left_out {
            Some(missed) => Err(Violation(format!(
                "{list:?} of {stream:?} below {below} leaves out {missed}"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, data, granted_after, wire, written};

    #[test]
    fn a_list_that_leaves_an_entry_out_is_noticed() {
        let wire = wire();
        let mut pointers = Pointers::default();
        for position in [3, 5] {
            let seen = written("b", 1, position, data(position));
            assert_eq!(pointers.exchange(&wire, &seen), Ok(()));
        }
        let list = |positions: &[u64], end| {
            BackPointers::new(positions.iter().copied().map(Position), end)
        };
        let mut see = |list| pointers.exchange(&wire, &granted_after(STREAM, 9, list));
        assert_eq!(see(list(&[7, 5, 4, 3], ListEnd::Beginning)), Ok(()));
        assert_eq!(see(list(&[5], ListEnd::Unknown)), Ok(()));
        assert!(see(list(&[3], ListEnd::Unknown)).is_err());
        assert!(see(list(&[7, 3], ListEnd::Unknown)).is_err());
        assert!(see(list(&[5], ListEnd::Beginning)).is_err());
        // What somebody wants to be trimmed may be gone before anybody says so.
        pointers.invoked(&Operation::Trim { below: Position(4) });
        let list = list(&[5], ListEnd::BelowTrim);
        let seen = granted_after(STREAM, 9, list);
        assert_eq!(pointers.exchange(&wire, &seen), Ok(()));
    }
}
