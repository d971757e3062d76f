//! I20: a tail answer is given under a lease only while no later epoch has granted a token. Later, an append may have been
//! acknowledged that the answer does not count, and nobody else is asked.

use milonga_protocol::Epoch;
use milonga_protocol::messages::{Lease, Request, Response, SequencerRequest, SequencerResponse};

use crate::world::network::Exchange;
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Leased {
    /// The newest epoch that has granted a token, and since when.
    newest: Option<(Epoch, Moment)>,
}

impl Invariant for Leased {
    fn name(&self) -> &'static str {
        "I20 a lease ends before the next sequencer grants"
    }

    fn source(&self) -> &'static str {
        "rule 20; the stream model's `lease` and `wait`"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(exchange))
    }
}

impl Leased {
    fn exchange(&mut self, exchange: &Exchange) -> Result<(), Violation> {
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        match &exchange.response {
            Response::Sequencer(
                SequencerResponse::Tokens(_) | SequencerResponse::SomeTokens { .. },
            ) => {
                if self.newest.is_none_or(|(newest, _)| newest < epoch) {
                    self.newest = Some((epoch, exchange.at));
                }
                Ok(())
            }
            Response::Sequencer(SequencerResponse::Tail(answer))
                if answer.lease == Lease::Renewed && is_check(&exchange.request) =>
            {
                match self.newest {
                    Some((newest, since)) if newest > epoch && since < exchange.at => {
                        Err(Violation(format!(
                            "{} answered a tail check of {epoch} under a lease at {}, but {newest} has granted tokens since {since}",
                            exchange.server, exchange.at
                        )))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// A `Wait` is answered alike, and proves nothing.
const fn is_check(request: &Request) -> bool {
    matches!(request, Request::Sequencer(SequencerRequest::Tail { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{granted, tail};

    #[test]
    fn a_lease_that_outlives_its_epoch_is_noticed() {
        let mut leased = Leased::default();
        let mut see = |at, mut exchange: Exchange| {
            exchange.at = Moment(at);
            leased.exchange(&exchange)
        };
        assert_eq!(see(10, granted(1, 0)), Ok(()));
        assert_eq!(see(20, tail(1, Lease::Renewed)), Ok(()));
        assert_eq!(see(30, granted(2, 4)), Ok(()));
        assert_eq!(
            see(30, tail(1, Lease::Renewed)),
            Ok(()),
            "at the same moment"
        );
        assert_eq!(
            see(40, tail(1, Lease::None)),
            Ok(()),
            "a chain has to confirm it"
        );
        assert_eq!(see(40, tail(2, Lease::Renewed)), Ok(()));
        assert!(see(40, tail(1, Lease::Renewed)).is_err());
    }
}
