//! I5: one layout for each epoch, and nobody is handed an older one than before.

use std::collections::BTreeMap;

use milonga_protocol::messages::{
    LayoutResponse, Request, Response, SequencerRequest, UnitRequest,
};
use milonga_protocol::{Epoch, Layout, ServerName};

use crate::world::network::{Exchange, Wire};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. The newest epoch that was handed out by each server.
#[derive(Debug, Default)]
pub struct Epochs(BTreeMap<ServerName, Epoch>);

impl Invariant for Epochs {
    fn name(&self) -> &'static str {
        "I5 one layout per epoch"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.4; rule 15"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange))
    }
}

impl Epochs {
    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        if let Request::Unit(UnitRequest::Open { layout, .. }) = &exchange.request {
            same(wire, layout)?;
        }
        if let Request::Sequencer(SequencerRequest::Bootstrap(page)) = &exchange.request
            && let Some(layout) = wire.layouts.get(&page.epoch)
            && page.next != layout.start
        {
            let (epoch, next, start) = (page.epoch, page.next, layout.start);
            let text = format!("{epoch} starts at {start}, but its sequencer at {next}");
            return Err(Violation(text));
        }
        let Response::Layout(LayoutResponse::Layout(published)) = &exchange.response else {
            return Ok(());
        };
        same(wire, &published.layout)?;
        let epoch = published.layout.epoch;
        let newest = self.0.entry(exchange.server.clone()).or_default();
        if epoch < *newest {
            let server = &exchange.server;
            let text = format!("{server} handed out {epoch} after {newest}");
            return Err(Violation(text));
        }
        *newest = epoch;
        Ok(())
    }
}

fn same(wire: &Wire, layout: &Layout) -> Result<(), Violation> {
    if let Err(error) = layout.validate() {
        return Err(Violation(error.to_string()));
    }
    let before = wire.layouts.range(..layout.epoch).next_back();
    if let Some((epoch, before)) = before
        && before.start > layout.start
    {
        let text = format!(
            "{epoch} started above {}: {before:?}, {layout:?}",
            layout.epoch
        );
        return Err(Violation(text));
    }
    match wire.layouts.get(&layout.epoch) {
        Some(known) if known != layout => {
            let text = format!("two layouts of one epoch: {known:?} and {layout:?}");
            Err(Violation(text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::Position;

    use super::*;
    use crate::world::invariants::samples::{handed_out, layout, wire};

    #[test]
    fn a_second_layout_and_an_older_one_are_noticed() {
        let wire = wire();
        let mut epochs = Epochs::default();
        let mut see = |layout| epochs.exchange(&wire, &handed_out(layout));
        assert_eq!(see(layout(1)), Ok(()));
        assert_eq!(see(layout(2)), Ok(()));
        assert!(see(layout(1)).is_err(), "older");
        let mut other = layout(2);
        other.start = Position(7);
        assert!(see(other).is_err());
    }
}
