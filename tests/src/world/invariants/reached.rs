//! I17: when everything has healed, every client appends, reads to the tail, and no hole stays.
//!
//! That clients end in time is seen by the world itself; here is what they must have done by then.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::{Position, ServerName};

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Reached {
    healed: Option<Moment>,
    appended: BTreeSet<ServerName>,
    read: BTreeSet<ServerName>,
    /// Everything below was settled, and since when, by client.
    settled: BTreeMap<Position, Moment>,
}

impl Invariant for Reached {
    fn name(&self) -> &'static str {
        "I17 everybody gets to the tail"
    }

    fn source(&self) -> &'static str {
        "CORFU §3.3, holes; rules 9 and 26; F5, F8, F20"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        if !view.healed {
            return Ok(());
        }
        self.healed.get_or_insert(view.now);
        for observed in view.news {
            if let Observed::Returned(id) = observed {
                self.returned(&view.pages.operations[id.0])?;
            }
        }
        Ok(())
    }

    fn check_end(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let operations = view.pages.operations.iter();
        let clients: BTreeSet<_> = operations.map(|record| &record.client).collect();
        self.end(clients.into_iter())
    }
}

impl Reached {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        if self.healed.is_none_or(|healed| record.invoked < healed) {
            return Ok(());
        }
        let client = record.client.clone();
        match (&record.operation, outcome) {
            (Operation::Append { .. }, Outcome::Appended(_)) => {
                self.appended.insert(client);
            }
            (Operation::Sync { .. }, Outcome::Entries(..)) => {
                self.read.insert(client);
            }
            (Operation::Settle { to, .. }, Outcome::Done) => {
                self.settled.entry(*to).or_insert(*at);
            }
            (Operation::Read { position }, Outcome::Unwritten) => {
                let mut above = self.settled.range(position.next()..);
                if let Some((to, since)) = above.find(|(_, since)| **since < record.invoked) {
                    let text = format!(
                        "{client} read {position} as unwritten at {}, settled below {to} since {since}",
                        record.invoked
                    );
                    return Err(Violation(text));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end<'a>(&self, clients: impl Iterator<Item = &'a ServerName>) -> Result<(), Violation> {
        for client in clients {
            for (done, what) in [(&self.appended, "appended"), (&self.read, "read")] {
                if !done.contains(client) {
                    let text = format!("{client} has not {what} since everything healed");
                    return Err(Violation(text));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, appended, operation};

    #[test]
    fn who_gets_nowhere_and_holes_that_stay_are_noticed() {
        let mut see = Reached {
            healed: Some(Moment(0)),
            ..Reached::default()
        };
        let client = appended(1, 3, 7).client;
        assert!(see.end([&client].into_iter()).is_err());
        assert_eq!(see.returned(&appended(1, 3, 7)), Ok(()));
        assert!(see.end([&client].into_iter()).is_err());
        let sync = Operation::Sync {
            streams: vec![STREAM],
            from: Position(0),
        };
        let synced = operation(1, sync, Outcome::Entries(vec![], Position(4)));
        assert_eq!(see.returned(&synced), Ok(()));
        assert_eq!(see.end([&client].into_iter()), Ok(()));

        let (from, to, position) = (Position(0), Position(9), Position(8));
        let hole = |at| operation(at, Operation::Read { position }, Outcome::Unwritten);
        assert_eq!(see.returned(&hole(1)), Ok(()));
        let settled = operation(2, Operation::Settle { from, to }, Outcome::Done);
        assert_eq!(see.returned(&settled), Ok(()));
        assert!(see.returned(&hole(9)).is_err());
    }
}
