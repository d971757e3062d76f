//! I2: what was acknowledged is readable until it is trimmed, at its position and in its streams.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::{Position, StreamId};

use crate::world::journal::{Observed, Operation, Outcome, Record, Seen};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Acknowledged {
    appended: BTreeMap<Position, Acked>,
    by_payload: BTreeMap<Bytes, Position>,
}

#[derive(Debug)]
struct Acked {
    at: Moment,
    streams: Vec<StreamId>,
    payload: Bytes,
}

impl Invariant for Acknowledged {
    fn name(&self) -> &'static str {
        "I2 acknowledged is readable"
    }

    fn source(&self) -> &'static str {
        "log contract, clauses 2 to 4; F2, F17"
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

impl Acknowledged {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((at, outcome)) = &record.returned else {
            return Ok(());
        };
        match (&record.operation, outcome) {
            (Operation::Append { streams, payload }, Outcome::Appended(position)) => {
                self.appended(*position, *at, streams, payload)
            }
            (Operation::Read { position }, outcome) => self.read(record, *position, outcome),
            (
                Operation::Sync { streams, from } | Operation::Follow { streams, from },
                Outcome::Entries(entries, complete),
            ) => self.listed(record, streams, (*from, *complete), entries),
            _ => Ok(()),
        }
    }

    fn appended(
        &mut self,
        position: Position,
        at: Moment,
        streams: &[StreamId],
        payload: &Bytes,
    ) -> Result<(), Violation> {
        let acked = Acked {
            at,
            streams: streams.to_vec(),
            payload: payload.clone(),
        };
        let other = self.by_payload.insert(payload.clone(), position);
        let before = self.appended.insert(position, acked);
        if let Some(other) = other.filter(|other| *other != position) {
            let text = format!("{payload:?} was appended at {other} and at {position}");
            return Err(Violation(text));
        }
        match before {
            Some(before) if before.payload != *payload => {
                let before = before.payload;
                let text = format!("{position} was given to {before:?} and to {payload:?}");
                Err(Violation(text))
            }
            _ => Ok(()),
        }
    }

    fn read(
        &self,
        record: &Record,
        position: Position,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        if let Outcome::Data(payload) = outcome
            && let Some(other) = self.by_payload.get(payload)
            && *other != position
        {
            let text = format!("{payload:?} was appended at {other}, and is at {position}, too");
            return Err(Violation(text));
        }
        let Some(acked) = self.appended.get(&position) else {
            return Ok(());
        };
        let fits = match outcome {
            Outcome::Data(payload) => *payload == acked.payload,
            Outcome::Junk => false,
            Outcome::Unwritten | Outcome::Lost => record.invoked <= acked.at,
            _ => true,
        };
        if fits {
            return Ok(());
        }
        Err(Violation(format!(
            "{} read {position} as {outcome:?}, begun at {}, but at {} an append of {:?} returned",
            record.client, record.invoked, acked.at, acked.payload
        )))
    }

    fn listed(
        &self,
        record: &Record,
        streams: &[StreamId],
        (from, complete): (Position, Position),
        entries: &[Seen],
    ) -> Result<(), Violation> {
        if from >= complete {
            return Ok(());
        }
        for (position, acked) in self.appended.range(from..complete) {
            if !acked.streams.iter().any(|stream| streams.contains(stream)) {
                continue;
            }
            // Their order is looked at by I7.
            let at = entries.binary_search_by_key(position, |seen| seen.position);
            let seen = at.ok().map(|at| &entries[at]);
            if seen.is_none_or(|seen| seen.payload != acked.payload) {
                return Err(Violation(format!(
                    "{} read {streams:?} from {from} to {complete} and found {seen:?} at {position}, but at {} an append of {:?} returned",
                    record.client, acked.at, acked.payload
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, appended, operation, payload, seen};

    fn read(at: u64, outcome: Outcome) -> Record {
        let position = Position(3);
        operation(at, Operation::Read { position }, outcome)
    }

    #[test]
    fn an_append_that_is_not_there_is_noticed() {
        let mut see = Acknowledged::default();
        let before = read(1, Outcome::Unwritten);
        assert_eq!(see.returned(&appended(1, 3, 7)), Ok(()));
        assert_eq!(see.returned(&before), Ok(()), "begun before it returned");
        assert_eq!(see.returned(&read(9, Outcome::Data(payload(7)))), Ok(()));
        assert_eq!(see.returned(&read(9, Outcome::Trimmed)), Ok(()));
        let wrong = [Outcome::Unwritten, Outcome::Lost, Outcome::Junk];
        for wrong in wrong.into_iter().chain([Outcome::Data(payload(8))]) {
            assert!(see.returned(&read(9, wrong)).is_err());
        }
        assert!(see.returned(&appended(5, 4, 7)).is_err(), "twice");
    }

    #[test]
    fn an_append_that_its_stream_leaves_out_is_noticed() {
        let mut see = Acknowledged::default();
        assert_eq!(see.returned(&appended(1, 3, 7)), Ok(()));
        let mut part = |complete, entries| {
            let sync = Operation::Sync {
                streams: vec![STREAM],
                from: Position(0),
            };
            let outcome = Outcome::Entries(entries, Position(complete));
            see.returned(&operation(9, sync, outcome))
        };
        assert_eq!(part(3, vec![]), Ok(()));
        assert_eq!(part(4, vec![seen(3, 7)]), Ok(()));
        assert!(part(4, vec![]).is_err());
        assert!(part(4, vec![seen(3, 8)]).is_err());
    }
}
