//! I13: the replicas of a settled position are equal, byte by byte, links included; and none of them lacks it.

use crate::world::invariants::values::Values;
use crate::world::network::{Exchange, Said, Wire};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug)]
pub struct Replicas(Values);

impl Default for Replicas {
    fn default() -> Self {
        Self(Values::new(|one, other| one == other))
    }
}

impl Invariant for Replicas {
    fn name(&self) -> &'static str {
        "I13 replicas are equal"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.3; rules 6 and 12"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange))
    }
}

impl Replicas {
    fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        self.0.exchange(wire, exchange)?;
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        // Damage in the last batch of a disk looks like a torn write: its chain mends it (rule 27).
        if wire.damaged.contains(&exchange.server) {
            return Ok(());
        }
        let unwritten = |said: &Said| *said == Said::Unwritten;
        for shown in exchange.shown.iter().filter(|s| unwritten(&s.said)) {
            // A read takes effect when it begins; the disk may take its time.
            let settled = self.0.settled_at(shown.position);
            if settled.is_some_and(|(at, before)| before <= epoch && at < exchange.asked) {
                let (position, server) = (shown.position, &exchange.server);
                let text = format!("{position} was settled, but {server} does not have it");
                return Err(Violation(text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{data, linked, read, unwritten, wire, written};

    #[test]
    fn other_links_are_another_value() {
        let wire = wire();
        let mut replicas = Replicas::default();
        let mut see = |exchange| replicas.exchange(&wire, &exchange);
        assert_eq!(see(written("a", 1, 3, data(1))), Ok(()));
        assert_eq!(see(written("b", 1, 3, data(1))), Ok(()));
        assert!(see(read("a", 1, 3, linked(1, 9))).is_err());
    }

    #[test]
    fn a_replica_that_lacks_what_is_settled_is_noticed() {
        let wire = wire();
        let mut replicas = Replicas::default();
        let mut see = |exchange| replicas.exchange(&wire, &exchange);
        assert_eq!(see(read("a", 1, 3, unwritten())), Ok(()));
        assert_eq!(see(written("b", 1, 3, data(1))), Ok(()));
        assert!(see(read("a", 1, 3, unwritten())).is_err());
    }
}
