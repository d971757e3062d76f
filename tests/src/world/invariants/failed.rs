//! I15: an append that was reported failed is never read.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::world::journal::{Observed, Operation, Outcome, Record};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Failed {
    failed: BTreeMap<Bytes, String>,
    seen: BTreeMap<Bytes, String>,
}

impl Invariant for Failed {
    fn name(&self) -> &'static str {
        "I15 failed is never read"
    }

    fn source(&self) -> &'static str {
        "log contract, clause 4; rule 13; F7, F8, F14"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for observed in view.news {
            if let Observed::Returned(id) = observed {
                self.returned(&view.pages.operations[id.0])?;
            }
        }
        Ok(())
    }
}

impl Failed {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((_, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Append { payload, .. }, Outcome::Failed(why)) => {
                if let Some(seen) = self.seen.get(payload) {
                    let text = format!("{payload:?} failed ({why}), but {seen}");
                    return Err(Violation(text));
                }
                self.failed.insert(payload.clone(), why.clone());
                Ok(())
            }
            (Operation::Read { position }, Outcome::Data(payload)) => self.see(payload, || {
                format!("{} read it at {position}", record.client)
            }),
            (_, Outcome::Entries(entries, _)) => {
                let mut entries = entries.iter();
                entries.try_for_each(|seen| {
                    let where_seen = || format!("{} read it at {}", record.client, seen.position);
                    self.see(&seen.payload, where_seen)
                })
            }
            _ => Ok(()),
        }
    }

    fn see(&mut self, payload: &Bytes, how: impl Fn() -> String) -> Result<(), Violation> {
        if let Some(why) = self.failed.get(payload) {
            let text = format!("{payload:?} failed ({why}), but {}", how());
            return Err(Violation(text));
        }
        if !self.seen.contains_key(payload) {
            self.seen.insert(payload.clone(), how());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::Position;

    use super::*;
    use crate::world::invariants::samples::{STREAM, operation, payload, seen};

    #[test]
    fn a_failed_append_that_is_read_is_noticed_in_either_order() {
        let failed = || {
            let append = Operation::Append {
                streams: vec![STREAM],
                payload: payload(7),
            };
            operation(1, append, Outcome::Failed("full".into()))
        };
        let read = || {
            let position = Position(3);
            operation(1, Operation::Read { position }, Outcome::Data(payload(7)))
        };
        let follow = || {
            let follow = Operation::Follow {
                streams: vec![STREAM],
                from: Position(0),
            };
            operation(1, follow, Outcome::Entries(vec![seen(3, 7)], Position(4)))
        };
        for pair in [[failed(), read()], [read(), failed()], [failed(), follow()]] {
            let mut see = Failed::default();
            assert_eq!(see.returned(&pair[0]), Ok(()));
            assert!(see.returned(&pair[1]).is_err());
        }
    }
}
