//! The decision core: takes entries in order and says which of their records hold. Pure; one owner.
//!
//! It sees every entry of every registered object, hosted here or not, and never a type or a state. What holds is
//! then applied by [`crate::world`].

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Entry, Position, StreamId, WriterId};

use crate::error::ReplicaHalt;
use crate::record::{self, PayloadError, Record, TouchedKeys};
use crate::versions::{Verdict, Versions};

/// Decides, entry by entry.
pub(crate) struct Playback {
    own: WriterId,
    versions: Versions,
}

/// An entry with the verdicts on its records.
pub(crate) struct Plan<'a> {
    pub(crate) position: Position,
    pub(crate) streams: Vec<StreamId>,
    /// The submission number, if this replica's log handle wrote the entry.
    pub(crate) own_tag: Option<u64>,
    pub(crate) content: Content<'a>,
}

/// What an entry says.
pub(crate) enum Content<'a> {
    /// Its records; updates and decisions count as committed.
    Records(Vec<(Record<'a>, Verdict)>),
    /// Nothing that can be understood.
    Malformed(String),
}

impl Playback {
    /// A core that knows nothing; `window` is the largest conflict window of any record to come.
    pub(crate) fn new(own: WriterId, window: u64) -> Self {
        Self {
            own,
            versions: Versions::new(window),
        }
    }

    /// Decides the entry at `position`. Entries MUST come in order, and each once.
    pub(crate) fn decide<'a>(
        &mut self,
        position: Position,
        entry: &'a Entry,
    ) -> Result<Plan<'a>, ReplicaHalt> {
        self.versions.advance(position);
        let mut plan = Plan {
            position,
            streams: entry.streams().filter(|s| s.is_object()).collect(),
            own_tag: None,
            content: Content::Records(Vec::new()),
        };
        let payload = match record::decode_entry(entry) {
            Ok(payload) => payload,
            Err(PayloadError::Newer(version)) => {
                return Err(ReplicaHalt::Newer { position, version });
            }
            Err(PayloadError::Malformed(why)) => {
                for stream in &plan.streams {
                    self.versions.record(position, *stream, &TouchedKeys::Whole);
                }
                plan.content = Content::Malformed(why);
                return Ok(plan);
            }
        };
        if entry.id.writer == self.own {
            plan.own_tag = Some(payload.tag);
        }
        let mut records = Vec::with_capacity(payload.records.len());
        for record in payload.records {
            let verdict = self.decide_record(position, &record)?;
            records.push((record, verdict));
        }
        plan.content = Content::Records(records);
        Ok(plan)
    }

    fn decide_record(
        &mut self,
        position: Position,
        record: &Record<'_>,
    ) -> Result<Verdict, ReplicaHalt> {
        match record {
            Record::Update(update) => {
                self.versions
                    .record(position, update.stream, &update.touches);
            }
            Record::Commit(commit) => {
                let verdict = self.versions.judge(position, commit).map_err(|unknown| {
                    ReplicaHalt::Window {
                        position,
                        snapshot: unknown.snapshot,
                        known_since: unknown.known_since,
                    }
                })?;
                let counts = verdict == Verdict::Committed || plants::active(Plant::AbortedCounts);
                for update in commit.updates.iter().filter(|_| counts) {
                    self.versions
                        .record(position, update.stream, &update.touches);
                }
                return Ok(verdict);
            }
            Record::Decision(_) => {}
        }
        Ok(Verdict::Committed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use milonga_protocol::{BackPointers, EntryId, StreamLink};
    use serde_bytes::Bytes as Slice;

    use super::*;
    use crate::counter::{CounterOp, CounterState};
    use crate::error::ReadError;
    use crate::record::{Commit, Decision, Read, ReadKeys, Update};
    use crate::world::{Hosted, World};

    const COUNTER: StreamId = StreamId(16);
    const OTHER: StreamId = StreamId(18);

    fn add(stream: StreamId, op: &[u8]) -> Update<'_> {
        Update {
            stream,
            touches: TouchedKeys::One(Slice::new(b"k")),
            op_version: 1,
            op: Slice::new(op),
        }
    }

    fn entry(records: &[Record<'_>]) -> Entry {
        let link = |stream| StreamLink {
            stream,
            back: BackPointers::EMPTY,
        };
        let payload = records
            .iter()
            .fold(record::begin_payload(7, 0), |out, record| {
                record.encode(out)
            });
        Entry {
            id: EntryId {
                writer: WriterId(1),
                sequence: 1,
            },
            links: vec![link(COUNTER), link(OTHER)],
            payload: Bytes::from(payload),
        }
    }

    /// Reads the key, then changes it.
    fn transaction<'a>(snapshot: u64, op: &'a [u8]) -> Record<'a> {
        Record::Commit(Commit {
            snapshot: Position(snapshot),
            window: 100,
            reads: vec![Read {
                stream: COUNTER,
                what: ReadKeys::Keys(vec![Slice::new(b"k")]),
            }],
            updates: vec![add(COUNTER, op), add(OTHER, op)],
        })
    }

    struct Both(Playback, World);

    impl Both {
        fn new() -> Self {
            let mut world = World::new();
            for (stream, name) in [(COUNTER, "counter"), (OTHER, "other")] {
                assert!(world.join_new(stream, Hosted::new::<CounterState>(name.into())));
            }
            Self(Playback::new(WriterId(1), 100), world)
        }

        fn play(&mut self, position: u64, records: &[Record<'_>]) -> usize {
            let entry = entry(records);
            let plan = self.0.decide(Position(position), &entry).unwrap();
            assert_eq!(plan.own_tag, Some(7));
            self.1.apply(&plan, true).len()
        }

        fn value(&self, stream: StreamId) -> Result<i64, ReadError> {
            let state = self.1.state::<CounterState>(stream, &Arc::from("any"))?;
            Ok(state.value())
        }
    }

    #[test]
    fn of_two_transactions_in_one_entry_that_read_what_both_change_the_first_commits() {
        let one = postcard::to_stdvec(&CounterOp::Add(1)).unwrap();
        let mut both = Both::new();
        let outcomes = both.play(5, &[transaction(5, &one), transaction(5, &one)]);
        assert_eq!(outcomes, 2);
        assert_eq!((both.value(COUNTER), both.value(OTHER)), (Ok(1), Ok(1)));
        assert!(!both.1.is_aborted(Position(5), 0) && both.1.is_aborted(Position(5), 1));
        assert_eq!(
            both.1.aborted_between(Position(5), Position(6)),
            [(Position(5), 1)]
        );
        // The aborted one changed nothing, so it is no conflict either: only the first is.
        both.play(6, &[transaction(6, &one), transaction(5, &one)]);
        assert_eq!(both.value(OTHER), Ok(2));
        assert_eq!(both.1.applied(), Position(7));
    }

    #[test]
    fn a_halted_object_still_decides_and_the_rest_of_a_transaction_holds() {
        let one = postcard::to_stdvec(&CounterOp::Add(1)).unwrap();
        let mut both = Both::new();
        both.play(3, &[Record::Update(add(COUNTER, b"\xff"))]);
        let halt = both.value(COUNTER).unwrap_err();
        assert_eq!(halt.position(), Some(Position(3)));
        both.play(4, &[transaction(3, &one)]);
        assert_eq!(both.value(OTHER), Ok(0), "it read what 3 changed");
        both.play(5, &[transaction(4, &one)]);
        assert_eq!(both.value(OTHER), Ok(1));
        assert_eq!(both.value(COUNTER).unwrap_err(), halt);
    }

    #[test]
    fn a_decision_that_differs_from_the_own_verdict_halts_loudly() {
        let one = postcard::to_stdvec(&CounterOp::Add(1)).unwrap();
        let decision = |committed| {
            Record::Decision(Decision {
                position: Position(5),
                record: 1,
                committed,
            })
        };
        let mut both = Both::new();
        both.play(5, &[transaction(5, &one), transaction(5, &one)]);
        both.play(6, &[decision(false)]);
        assert_eq!(both.value(COUNTER), Ok(1));
        both.play(7, &[decision(true)]);
        let halt = both.value(COUNTER).unwrap_err();
        assert!(halt.to_string().contains("report this"), "{halt}");
        assert_eq!(halt.position(), Some(Position(7)));
    }

    #[test]
    fn whole_changes_of_foreign_bytes_abort_those_who_read_before() {
        let one = postcard::to_stdvec(&CounterOp::Add(1)).unwrap();
        let mut both = Both::new();
        let mut foreign = entry(&[]);
        foreign.payload = Bytes::from_static(b"rubbish");
        foreign.links.truncate(1);
        let plan = both.0.decide(Position(2), &foreign).unwrap();
        assert!(both.1.apply(&plan, false).is_empty());
        both.play(3, &[transaction(2, &one)]);
        assert_eq!(both.value(OTHER), Ok(0));
        both.play(4, &[transaction(3, &one)]);
        assert_eq!(both.value(OTHER), Ok(1));
    }

    /// Who reads the changed object's stream alone never meets the entry.
    #[test]
    fn a_record_of_a_stream_that_its_entry_is_not_in_counts_nowhere() {
        let one = postcard::to_stdvec(&CounterOp::Add(1)).unwrap();
        let both_ways = [Record::Update(add(COUNTER, &one)), transaction(0, &one)];
        for record in both_ways {
            let mut both = Both::new();
            let mut unlinked = entry(&[record]);
            unlinked.links.retain(|link| link.stream == OTHER);
            let plan = both.0.decide(Position(1), &unlinked).unwrap();
            both.1.apply(&plan, false);
            assert_eq!(both.value(COUNTER), Ok(0));
            let halt = both.value(OTHER).unwrap_err();
            assert!(halt.to_string().contains("not in that stream"), "{halt}");
            // Loaded later, alone, it is the same.
            let mut late = Hosted::new::<CounterState>("late".into());
            late.load(OTHER, Position(1), &unlinked, |_| false);
            assert_eq!(late.halted().map(|halt| halt.position), Some(Position(1)));
        }
    }
}
