//! I7: two clients' views of a stream are prefixes of each other.

use std::collections::BTreeMap;

use milonga_protocol::{Position, StreamId};

use crate::world::journal::{Observed, Operation, Outcome, Record, Seen};
use crate::world::workload::{Invariant, Violation, WorldView};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Prefixes(BTreeMap<StreamId, View>);

/// What all views of a stream together say.
#[derive(Debug, Default)]
struct View {
    /// Known from here on.
    from: Position,
    /// Known up to here, exclusive.
    to: Position,
    entries: BTreeMap<Position, Seen>,
}

impl Invariant for Prefixes {
    fn name(&self) -> &'static str {
        "I7 views are prefixes of each other"
    }

    fn source(&self) -> &'static str {
        "Tango §5; log contract, clause 6; F9"
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

impl Prefixes {
    fn returned(&mut self, record: &Record) -> Result<(), Violation> {
        let Some((_, Outcome::Entries(entries, complete))) = &record.returned else {
            return Ok(());
        };
        let (Operation::Sync { streams, from } | Operation::Follow { streams, from }) =
            &record.operation
        else {
            return Ok(());
        };
        let ascending = entries.is_sorted_by(|a, b| a.position < b.position);
        let mut all = entries.iter();
        let fits = all.all(|seen| {
            (*from..*complete).contains(&seen.position)
                && seen.streams.iter().any(|stream| streams.contains(stream))
        });
        if !ascending || !fits {
            let client = &record.client;
            let text = format!("{client} got {entries:?} of {streams:?} from {from} to {complete}");
            return Err(Violation(text));
        }
        for stream in streams {
            let mine = entries.iter().filter(|seen| seen.streams.contains(stream));
            let view = self.0.entry(*stream).or_default();
            if let Err(why) = view.take(*from, *complete, mine) {
                let text = format!("{} read {stream:?}: {why}", record.client);
                return Err(Violation(text));
            }
        }
        Ok(())
    }
}

impl View {
    /// Takes one client's view of `from..to`.
    fn take<'a>(
        &mut self,
        from: Position,
        to: Position,
        entries: impl Iterator<Item = &'a Seen>,
    ) -> Result<(), String> {
        if from > self.to {
            // Between them lies what was trimmed.
            *self = Self {
                from,
                to: from,
                entries: BTreeMap::new(),
            };
        }
        let (low, high) = (from.max(self.from), to.min(self.to));
        let mut known = self.entries.range(low..high.max(low)).map(|(_, seen)| seen);
        let mut new = Vec::new();
        for seen in entries.filter(|seen| seen.position >= low) {
            if seen.position >= high {
                new.push(seen.clone());
                continue;
            }
            match known.next() {
                Some(before) if before == seen => {}
                before => return Err(format!("{seen:?} where another view has {before:?}")),
            }
        }
        if let Some(missing) = known.next() {
            return Err(format!("nothing where another view has {missing:?}"));
        }
        self.to = self.to.max(to);
        self.entries
            .extend(new.into_iter().map(|seen| (seen.position, seen)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::invariants::samples::{STREAM, operation, seen};

    fn part(from: u64, to: u64, entries: Vec<Seen>) -> Record {
        let follow = Operation::Follow {
            streams: vec![STREAM],
            from: Position(from),
        };
        operation(1, follow, Outcome::Entries(entries, Position(to)))
    }

    #[test]
    fn views_that_differ_are_noticed() {
        let mut see = Prefixes::default();
        assert_eq!(
            see.returned(&part(0, 4, vec![seen(1, 1), seen(3, 3)])),
            Ok(())
        );
        assert_eq!(see.returned(&part(0, 2, vec![seen(1, 1)])), Ok(()));
        assert_eq!(
            see.returned(&part(2, 6, vec![seen(3, 3), seen(5, 5)])),
            Ok(())
        );
        assert_eq!(see.returned(&part(6, 7, vec![])), Ok(()));
        assert!(see.returned(&part(0, 2, vec![])).is_err(), "missing");
        assert!(
            see.returned(&part(4, 7, vec![seen(5, 5), seen(6, 6)]))
                .is_err()
        );
        assert!(
            see.returned(&part(0, 2, vec![seen(1, 9)])).is_err(),
            "another"
        );
        assert!(
            see.returned(&part(7, 8, vec![seen(8, 8)])).is_err(),
            "too far"
        );
        let twice = vec![seen(7, 7), seen(7, 7)];
        assert!(see.returned(&part(7, 9, twice)).is_err());
    }

    #[test]
    fn what_was_trimmed_is_compared_no_more() {
        let mut see = Prefixes::default();
        assert_eq!(see.returned(&part(0, 4, vec![seen(1, 1)])), Ok(()));
        assert_eq!(see.returned(&part(9, 12, vec![seen(10, 1)])), Ok(()));
        assert_eq!(see.returned(&part(2, 12, vec![seen(10, 1)])), Ok(()));
        assert!(see.returned(&part(9, 12, vec![])).is_err());
    }
}
