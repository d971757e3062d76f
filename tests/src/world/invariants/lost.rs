//! I12: what a unit had on its disk it gives, or calls lost; never unwritten. What it calls lost is repaired.

use std::collections::BTreeMap;

use milonga_protocol::{Epoch, Position, ServerName};

use crate::world::network::{Exchange, Said, Wire};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// How long a lost position may stay so when everything has healed and somebody has noticed: nanoseconds.
const REPAIRED_WITHIN: u64 = 15_000_000_000;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Lost {
    /// What each unit surely had.
    had: BTreeMap<(ServerName, Position), Had>,
    /// What each unit called lost since everything healed, and when first.
    lost: BTreeMap<(ServerName, Position), Moment>,
    trimmed: Position,
}

/// In which epoch and run it said so last, and since when it had it.
#[derive(Clone, Copy, Debug)]
struct Had {
    epoch: Epoch,
    run: u64,
    since: Moment,
}

impl Invariant for Lost {
    fn name(&self) -> &'static str {
        "I12 lost, never unwritten"
    }

    fn source(&self) -> &'static str {
        "log contract, clause 5; rules 5, 11 and 27; F15, F16, F17"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut exchanges = view.wire.exchanges.iter();
        exchanges.try_for_each(|exchange| self.exchange(view.wire, exchange, view.healed))
    }

    fn check_end(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        self.not_repaired(view.now)
    }
}

impl Lost {
    fn exchange(
        &mut self,
        wire: &Wire,
        exchange: &Exchange,
        healed: bool,
    ) -> Result<(), Violation> {
        if exchange.has_rejoined() {
            self.had.retain(|(server, _), _| *server != exchange.server);
        }
        if let Some(marks) = exchange.marks() {
            self.trimmed = self.trimmed.max(marks.trimmed);
        }
        let Some(epoch) = exchange.epoch().filter(|_| !wire.is_of_the_past(exchange)) else {
            return Ok(());
        };
        for shown in &exchange.shown {
            let key = (exchange.server.clone(), shown.position);
            match shown.said {
                Said::Data(_) | Said::Junk => {
                    let before = self.had.get(&key);
                    let before = before.filter(|had| !wire.is_void(had.epoch, key.1));
                    let had = Had {
                        epoch,
                        run: exchange.run,
                        since: before.map_or(exchange.at, |had| had.since),
                    };
                    self.had.insert(key.clone(), had);
                    self.lost.remove(&key);
                }
                Said::Lost if healed && self.had.contains_key(&key) => {
                    self.lost.entry(key).or_insert(exchange.at);
                }
                Said::Unwritten => self.unwritten(wire, exchange, &key)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn unwritten(
        &self,
        wire: &Wire,
        exchange: &Exchange,
        key: &(ServerName, Position),
    ) -> Result<(), Violation> {
        let Some(Had { epoch, run, since }) = self.had.get(key).copied() else {
            return Ok(());
        };
        // Damage in the last batch that a restarted unit finds looks like a torn write (rule 27).
        let cut = run != exchange.run && wire.damaged.contains(&exchange.server);
        // A read takes effect when it begins; the disk may take its time.
        let before = exchange.asked <= since;
        if before || cut || wire.is_void(epoch, key.1) || key.1 < self.trimmed {
            return Ok(());
        }
        Err(Violation(format!(
            "run {run} of {} had {} in {epoch}, but run {} says that it is unwritten",
            key.0, key.1, exchange.run
        )))
    }

    fn not_repaired(&self, now: Moment) -> Result<(), Violation> {
        let late = |at: &Moment| at.plus(REPAIRED_WITHIN) < now;
        let mut lost = self.lost.iter();
        match lost.find(|((_, position), at)| *position >= self.trimmed && late(at)) {
            Some(((server, position), at)) => Err(Violation(format!(
                "{server} has lost {position}, which was noticed at {at} and is not repaired"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{
        data, lost, read, restarted, unwritten, wire, written,
    };

    #[test]
    fn unwritten_where_something_was_is_noticed() {
        let mut wire = wire();
        let mut see = Lost::default();
        let written = written("a", 1, 3, data(1));
        assert_eq!(see.exchange(&wire, &written, false), Ok(()));
        let later = restarted(read("a", 1, 3, unwritten()));
        assert!(see.exchange(&wire, &later, false).is_err());
        wire.damaged.insert("a".into());
        assert_eq!(see.exchange(&wire, &later, false), Ok(()), "perhaps cut");
        let same_run = read("a", 1, 3, unwritten());
        assert!(see.exchange(&wire, &same_run, false).is_err());
    }

    #[test]
    fn what_stays_lost_is_noticed() {
        let wire = wire();
        let mut see = Lost::default();
        for exchange in [written("a", 1, 3, data(1)), read("a", 1, 3, lost())] {
            assert_eq!(see.exchange(&wire, &exchange, true), Ok(()));
        }
        assert_eq!(see.not_repaired(Moment(1)), Ok(()));
        assert!(see.not_repaired(Moment(2 * REPAIRED_WITHIN)).is_err());
        let repaired = written("a", 1, 3, data(1));
        assert_eq!(see.exchange(&wire, &repaired, true), Ok(()));
        assert_eq!(see.not_repaired(Moment(2 * REPAIRED_WITHIN)), Ok(()));
    }
}
