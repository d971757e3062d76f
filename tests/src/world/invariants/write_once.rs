//! I1: one position, one settled value for ever; and one value within an epoch, whichever unit is asked.

use crate::world::invariants::values::Values;
use crate::world::network::Said;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug)]
pub struct WriteOnce(Values);

impl Default for WriteOnce {
    fn default() -> Self {
        Self(Values::new(Said::is_same))
    }
}

impl Invariant for WriteOnce {
    fn name(&self) -> &'static str {
        "I1 write-once"
    }

    fn source(&self) -> &'static str {
        "CORFU §3; log contract, clause 1; rules 7 to 9"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.0.exchange(view.wire, exchange))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{data, junk, read, unwritten, wire, written};

    #[test]
    fn two_values_of_one_position_are_noticed() {
        let wire = wire();
        let mut values = WriteOnce::default().0;
        let mut see = |exchange| values.exchange(&wire, &exchange);
        assert_eq!(see(written("a", 1, 3, data(1))), Ok(()));
        assert_eq!(see(read("b", 1, 3, unwritten())), Ok(()));
        assert_eq!(see(read("b", 1, 3, data(1))), Ok(()));
        let other = see(read("a", 1, 3, data(2))).expect_err("another entry");
        assert!(other.0.starts_with("3 held"), "{other:?}");
        assert!(see(read("a", 2, 3, junk())).is_err(), "settled before");
    }

    #[test]
    fn what_was_not_settled_may_be_void_in_the_next_epoch() {
        let wire = wire();
        let mut values = WriteOnce::default().0;
        let mut see = |exchange| values.exchange(&wire, &exchange);
        assert_eq!(see(written("a", 1, 3, data(1))), Ok(()), "the head's only");
        assert_eq!(see(written("a", 2, 3, data(2))), Ok(()));
        assert!(see(written("b", 2, 3, junk())).is_err());
    }
}
