//! I4: after a seal was acknowledged nothing of a lower epoch has an effect.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, SequencerRequest, UnitRequest};
use milonga_protocol::{Epoch, ServerName};

use crate::world::network::Exchange;
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. The newest seal that each server has acknowledged, and when.
#[derive(Debug, Default)]
pub struct Sealed(BTreeMap<ServerName, (Epoch, Moment)>);

impl Invariant for Sealed {
    fn name(&self) -> &'static str {
        "I4 sealed is over"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.4; rules 1 to 4"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(exchange))
    }
}

impl Sealed {
    fn exchange(&mut self, exchange: &Exchange) -> Result<(), Violation> {
        if !exchange.is_served() {
            return Ok(());
        }
        if let Request::Unit(UnitRequest::Seal { epoch } | UnitRequest::Rejoin { epoch, .. })
        | Request::Sequencer(SequencerRequest::Seal { epoch }) = &exchange.request
        {
            let sealed = self.0.entry(exchange.server.clone()).or_default();
            *sealed = (*sealed).max((*epoch, exchange.at));
            return Ok(());
        }
        let sealed = self.0.get(&exchange.server).copied();
        let Some((epoch, (sealed, since))) = exchange.epoch().zip(sealed) else {
            return Ok(());
        };
        // What the disk held takes effect before it is told; the disk may take its time.
        let read = exchange.is_from_disk();
        if epoch >= sealed || (read && (exchange.asked <= since || exchange.is_of_any_epoch())) {
            return Ok(());
        }
        Err(Violation(format!(
            "{} was sealed for {sealed} at {since}, but at {} it served {epoch}: {:?} gave {:?}",
            exchange.server, exchange.at, exchange.request, exchange.response
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{data, read, refused, seal, unwritten, written};

    #[test]
    fn effects_of_a_lower_epoch_are_noticed() {
        let mut sealed = Sealed::default();
        assert_eq!(sealed.exchange(&written("a", 1, 3, data(1))), Ok(()));
        assert_eq!(sealed.exchange(&seal("a", 2)), Ok(()));
        assert_eq!(sealed.exchange(&refused("a", 1)), Ok(()));
        assert_eq!(sealed.exchange(&written("b", 1, 4, data(2))), Ok(()));
        assert_eq!(sealed.exchange(&written("a", 2, 4, data(2))), Ok(()));
        assert!(sealed.exchange(&written("a", 1, 4, data(2))).is_err());
        assert!(sealed.exchange(&read("a", 1, 9, unwritten())).is_err());
    }
}
