//! The rule of commitment (protocol rule 30), by looking at every change since the snapshot.

use crate::world::witness::decode::{Commit, ReadOf, Touched};

/// What a committed record touched.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where.
    pub position: u64,
    /// Of which object.
    pub stream: u64,
    /// What.
    pub touches: Touched,
}

/// How a commit record ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Committed,
    /// Its snapshot is older than its window.
    TooOld,
    /// What it read was changed: streams and positions of all such changes.
    Overtaken(Vec<(u64, u64)>),
}

impl Verdict {
    /// Whether it holds.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        matches!(self, Self::Committed)
    }
}

/// The verdict on a commit record at `position`, before which `changes` were made, in order.
#[must_use]
pub(super) fn judge(commit: &Commit, position: u64, changes: &[Change]) -> Verdict {
    if commit.reads.is_empty() {
        return Verdict::Committed;
    }
    if commit.snapshot.saturating_add(commit.window) < position {
        return Verdict::TooOld;
    }
    let since = changes.partition_point(|change| change.position < commit.snapshot);
    let clashes: Vec<_> = changes[since..]
        .iter()
        .filter(|change| commit.reads.iter().any(|read| clash(read, change)))
        .map(|change| (change.stream, change.position))
        .collect();
    if clashes.is_empty() {
        Verdict::Committed
    } else {
        Verdict::Overtaken(clashes)
    }
}

fn clash((stream, what): &(u64, ReadOf), change: &Change) -> bool {
    let keys = match what {
        _ if *stream != change.stream => return false,
        ReadOf::Whole => return true,
        ReadOf::Keys(keys) => keys,
    };
    match &change.touches {
        Touched::Whole => !keys.is_empty(),
        touches => touches.keys().iter().any(|key| keys.contains(key)),
    }
}
