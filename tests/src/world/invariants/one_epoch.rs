//! I14: a server serves one epoch at a time, entered by this run of its process and never left for a lower one.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, SequencerRequest, UnitRequest};
use milonga_protocol::{Epoch, ServerName};

use crate::world::network::Exchange;
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head. Which epoch each server has entered, in which run, and when.
#[derive(Debug, Default)]
pub struct OneEpoch(BTreeMap<ServerName, Entered>);

#[derive(Clone, Copy, Debug, Default)]
struct Entered {
    epoch: Epoch,
    run: u64,
    at: Moment,
}

impl Invariant for OneEpoch {
    fn name(&self) -> &'static str {
        "I14 one epoch at a time"
    }

    fn source(&self) -> &'static str {
        "rules 1, 2 and 17"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(exchange))
    }
}

impl OneEpoch {
    fn exchange(&mut self, exchange: &Exchange) -> Result<(), Violation> {
        if !exchange.is_served() {
            return Ok(());
        }
        let entered = self.0.entry(exchange.server.clone()).or_default();
        match &exchange.request {
            Request::Unit(UnitRequest::Open { layout, .. }) => {
                return entered.enter(layout.epoch, exchange);
            }
            Request::Sequencer(SequencerRequest::Bootstrap(page)) if page.last => {
                return entered.enter(page.epoch, exchange);
            }
            _ => {}
        }
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        let fits = epoch == entered.epoch && exchange.run == entered.run;
        let read = exchange.is_from_disk();
        let began_before = exchange.asked <= entered.at && epoch < entered.epoch;
        if fits || (read && (exchange.is_of_any_epoch() || began_before)) {
            return Ok(());
        }
        Err(Violation(format!(
            "run {} of {} served {epoch}, but it was run {} that entered {} at {}: {:?} gave {:?}",
            exchange.run,
            exchange.server,
            entered.run,
            entered.epoch,
            entered.at,
            exchange.request,
            exchange.response
        )))
    }
}

impl Entered {
    fn enter(&mut self, epoch: Epoch, exchange: &Exchange) -> Result<(), Violation> {
        let again = epoch == self.epoch && exchange.run == self.run;
        if epoch <= self.epoch && !again {
            return Err(Violation(format!(
                "run {} of {} entered {epoch} after run {} had entered {}",
                exchange.run, exchange.server, self.run, self.epoch
            )));
        }
        if !again {
            *self = Self {
                epoch,
                run: exchange.run,
                at: exchange.at,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{data, open, restarted, written};

    #[test]
    fn a_second_epoch_and_a_revived_one_are_noticed() {
        let mut one = OneEpoch::default();
        assert!(one.exchange(&written("a", 1, 3, data(1))).is_err());
        assert_eq!(one.exchange(&open("a", 1)), Ok(()));
        assert_eq!(one.exchange(&open("a", 1)), Ok(()));
        assert_eq!(one.exchange(&written("a", 1, 3, data(1))), Ok(()));
        assert!(one.exchange(&written("a", 2, 3, data(1))).is_err());
        let revived = restarted(written("a", 1, 3, data(1)));
        assert!(one.exchange(&revived).is_err());
        assert!(one.exchange(&restarted(open("a", 1))).is_err(), "rule 2");
        assert_eq!(one.exchange(&restarted(open("a", 2))), Ok(()));
        assert!(one.exchange(&open("a", 1)).is_err());
    }
}
