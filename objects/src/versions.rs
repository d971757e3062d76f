//! The version table: who changed which key last, of every object, hosted or not. Pure.
//!
//! It knows touches only, never a type or a state, so a halted object still decides and anybody can rebuild it.
//!
//! Bounded by the conflict window in two generations, instead of by a queue of expiries:
//!
//! ```text
//!            since_previous          since_current
//!   forgotten      |   previous          |   current        position
//!                  |<----- ≥ window ---->|<----- < window ----->|
//! ```

use std::collections::BTreeMap;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Position, StreamId};

use crate::key::KeyBytes;
use crate::record::{Commit, ReadKeys, TouchedKeys};
use crate::table::{Retired, Table};

/// What is kept before the first record tells its window: the layout's may have been lowered since then.
const WINDOW_UNTIL_KNOWN: u64 = 1 << 18;

/// Last changes of the keys of all objects.
///
/// A version is the position of the entry that made the change. Records are judged in order, so whatever the table
/// holds lies before the record that is judged, also within the same entry.
pub(crate) struct Versions {
    objects: BTreeMap<StreamId, ObjectVersions>,
    /// The layout's window.
    window: u64,
    /// The widest window of any record that was judged: records keep the one they were written under (rule 33).
    widest: Option<u64>,
    since_previous: Position,
    since_current: Position,
    /// Old generations, dropped a few keys at a time: dropping a million at once would stop playback.
    retired: Vec<Retired>,
}

#[derive(Default)]
struct ObjectVersions {
    current: Table,
    previous: Table,
    /// Last change that touched the whole object.
    whole: Option<Position>,
    /// Last change of any kind.
    latest: Option<Position>,
}

/// How a commit record ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Committed,
    Aborted(Clash),
}

/// Why a transaction aborts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clash {
    /// Something it read was changed at this position.
    Changed {
        stream: StreamId,
        /// `None`: the whole object was read.
        key: Option<KeyBytes>,
        at: Position,
    },
    /// Its snapshot is older than its window.
    TooOld { snapshot: Position, window: u64 },
}

/// The table does not reach back to the snapshot of a commit record, though the record's window does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CannotJudge {
    pub(crate) snapshot: Position,
    pub(crate) known_since: Position,
}

impl Versions {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            window: window.max(1),
            widest: None,
            since_previous: Position::ZERO,
            since_current: Position::ZERO,
            retired: Vec::new(),
        }
    }

    /// Playback has reached `position`: forgets what no commit record there or later may ask for.
    pub(crate) fn advance(&mut self, position: Position) {
        self.drop_retired(4);
        let kept = self.widest.unwrap_or(WINDOW_UNTIL_KNOWN).max(self.window);
        if position.0 - self.since_current.0.min(position.0) < kept {
            return;
        }
        for object in self.objects.values_mut() {
            let current = std::mem::take(&mut object.current);
            let current = if plants::active(Plant::VersionsForgottenEarly) {
                Table::default()
            } else {
                current
            };
            let old = std::mem::replace(&mut object.previous, current);
            if !old.is_empty() {
                self.retired.push(old.retire());
            }
        }
        self.since_previous = self.since_current;
        self.since_current = position;
    }

    fn drop_retired(&mut self, keys: usize) {
        if let Some(table) = self.retired.last_mut()
            && !table.drop_some(keys)
        {
            self.retired.pop();
        }
    }

    /// A committed change at `position`.
    pub(crate) fn record(&mut self, position: Position, stream: StreamId, touches: &TouchedKeys) {
        // Faster than new ones come, however many keys one record touches.
        self.drop_retired(2 + touches.count());
        let object = self.objects.entry(stream).or_default();
        object.latest = Some(position);
        match touches {
            TouchedKeys::None => {}
            TouchedKeys::Whole => object.whole = Some(position),
            TouchedKeys::One(key) => object.current.set(key, position),
            TouchedKeys::Many(keys) => {
                keys.iter()
                    .for_each(|key| object.current.set(key, position));
            }
        }
    }

    /// The verdict on a commit record at `position`: the same on every replica that has played up to it.
    pub(crate) fn judge(
        &mut self,
        position: Position,
        commit: &Commit<'_>,
    ) -> Result<Verdict, CannotJudge> {
        let snapshot = commit.snapshot;
        if commit.reads.is_empty() {
            return Ok(Verdict::Committed);
        }
        self.widest = self.widest.max(Some(commit.window));
        if snapshot.plus(commit.window) < position {
            return Ok(Verdict::Aborted(Clash::TooOld {
                snapshot,
                window: commit.window,
            }));
        }
        if snapshot < self.since_previous {
            return Err(CannotJudge {
                snapshot,
                known_since: self.since_previous,
            });
        }
        for read in &commit.reads {
            let Some(object) = self.objects.get(&read.stream) else {
                continue;
            };
            let clash = |key: Option<&[u8]>, at| Clash::Changed {
                stream: read.stream,
                key: key.map(KeyBytes::from),
                at,
            };
            match &read.what {
                ReadKeys::Whole => {
                    let last = if plants::active(Plant::WholeReadMissesKeys) {
                        object.whole
                    } else {
                        object.latest
                    };
                    if let Some(at) = last.filter(|at| after(snapshot, *at)) {
                        return Ok(Verdict::Aborted(clash(None, at)));
                    }
                }
                ReadKeys::Keys(keys) => {
                    for key in keys {
                        if let Some(at) = object.changed_since(snapshot, key) {
                            return Ok(Verdict::Aborted(clash(Some(key), at)));
                        }
                    }
                }
            }
        }
        Ok(Verdict::Committed)
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        let tables = |o: &ObjectVersions| o.current.len() + o.previous.len();
        self.objects.values().map(tables).sum()
    }
}

impl ObjectVersions {
    fn changed_since(&self, snapshot: Position, key: &[u8]) -> Option<Position> {
        let of_key = self.current.get(key).or_else(|| self.previous.get(key));
        let whole = self
            .whole
            .filter(|_| !plants::active(Plant::WholeChangeMissed));
        let last = of_key.max(whole)?;
        after(snapshot, last).then_some(last)
    }
}

/// Whether a change at `version` was not yet in the frozen world at `snapshot` (exclusive).
fn after(snapshot: Position, version: Position) -> bool {
    if plants::active(Plant::VersionOffByOne) {
        return version > snapshot;
    }
    version >= snapshot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Read;
    use serde_bytes::Bytes as Slice;

    const MAP: StreamId = StreamId(16);

    fn one(key: &[u8]) -> TouchedKeys<'_> {
        TouchedKeys::One(Slice::new(key))
    }

    fn reading(snapshot: u64, what: ReadKeys<'_>) -> Commit<'_> {
        Commit {
            snapshot: Position(snapshot),
            window: 10,
            reads: vec![Read { stream: MAP, what }],
            updates: vec![],
        }
    }

    fn key(snapshot: u64, key: &[u8]) -> Commit<'_> {
        reading(snapshot, ReadKeys::Keys(vec![Slice::new(key)]))
    }

    fn commits(versions: &mut Versions, position: u64, commit: &Commit<'_>) -> bool {
        versions
            .judge(Position(position), commit)
            .expect("covered by the window")
            == Verdict::Committed
    }

    #[test]
    fn a_change_at_the_snapshot_or_later_conflicts_with_its_key_only() {
        let mut versions = Versions::new(10);
        versions.record(Position(5), MAP, &one(b"a"));
        assert!(!commits(&mut versions, 6, &key(5, b"a")), "5 was not seen");
        assert!(commits(&mut versions, 6, &key(6, b"a")), "5 was seen");
        assert!(commits(&mut versions, 6, &key(5, b"b")));
        assert!(!commits(&mut versions, 6, &reading(5, ReadKeys::Whole)));
        versions.record(Position(7), MAP, &TouchedKeys::None);
        assert!(commits(&mut versions, 8, &key(6, b"a")));
        assert!(!commits(&mut versions, 8, &reading(7, ReadKeys::Whole)));
        versions.record(Position(8), MAP, &TouchedKeys::Whole);
        assert!(!commits(&mut versions, 9, &key(8, b"b")));
    }

    #[test]
    fn a_snapshot_older_than_the_window_aborts_and_no_reads_always_commit() {
        let mut versions = Versions::new(10);
        assert!(commits(&mut versions, 15, &key(5, b"a")));
        assert!(!commits(&mut versions, 16, &key(5, b"a")));
        let blind = Commit {
            reads: vec![],
            ..key(0, b"")
        };
        assert!(commits(&mut versions, 1_000, &blind));
    }

    #[test]
    fn every_change_within_the_window_is_known_and_older_ones_are_forgotten() {
        let mut versions = Versions::new(10);
        assert!(commits(&mut versions, 0, &key(0, b"a")), "tells the window");
        for position in 0..1_000_u64 {
            versions.advance(Position(position));
            for snapshot in position.saturating_sub(10)..=position {
                for changed in position.saturating_sub(20)..position {
                    assert_eq!(
                        commits(
                            &mut versions,
                            position,
                            &key(snapshot, &changed.to_be_bytes())
                        ),
                        changed < snapshot
                    );
                }
            }
            versions.record(Position(position), MAP, &one(&position.to_be_bytes()));
            assert!(versions.keys() <= 20);
            assert!(versions.retired.len() <= 2);
        }
    }

    #[test]
    fn old_tables_go_away_however_many_keys_a_record_touches() {
        let mut versions = Versions::new(10);
        assert!(commits(&mut versions, 0, &key(0, b"a")), "tells the window");
        for position in 0..1_000_u64 {
            versions.advance(Position(position));
            let keys: Vec<_> = (0..50).map(|n| (position * 50 + n).to_be_bytes()).collect();
            let keys = keys.iter().map(|key| Slice::new(key)).collect();
            versions.record(Position(position), MAP, &TouchedKeys::Many(keys));
            assert!(
                versions.retired.len() <= 2,
                "{} at {position}",
                versions.retired.len()
            );
        }
    }

    #[test]
    fn a_window_wider_than_the_table_cannot_be_judged() {
        let mut versions = Versions::new(10);
        assert!(commits(&mut versions, 0, &key(0, b"a")), "tells the window");
        (0..100).for_each(|p| versions.advance(Position(p)));
        let wide = Commit {
            window: 90,
            ..key(20, b"a")
        };
        assert!(versions.judge(Position(100), &wide).is_err());
    }
}
