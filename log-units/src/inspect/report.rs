//! What an inspection says. Plain data.

use std::fmt;

use milonga_protocol::{ClusterId, Epoch, Position, UnitId};

use crate::disk::FileName;

/// A unit's directory, as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitReport {
    /// Identity of the unit; `None` if nothing says it that can be read.
    pub unit: Option<UnitId>,
    /// Name of its process; `None` if its superblock cannot be read.
    pub name: Option<String>,
    /// Its cluster; `None` while it has none, and if nothing says it (then `unit` is `None`, too).
    pub cluster: Option<ClusterId>,
    /// Version of the formats in the directory.
    pub format: u8,
    /// The newest copy of its state; `None` if there is none that can be read.
    pub state: Option<StateReport>,
    /// Its segment files, ascending.
    pub segments: Vec<SegmentReport>,
    /// First position above everything that is or may be held.
    pub high: Position,
    /// Settled mark of the last batch.
    pub settled: Position,
    /// Batches in all segments, readable ones.
    pub batches: u64,
    /// Readable records in them, void ones and those below the trim mark included.
    pub records: u64,
    /// Entries at or above the trim mark that are not void; repaired ones count twice, as in the unit's own facts.
    pub entries: u64,
    /// Positions of junk at or above the trim mark that are not void.
    pub junk: u64,
    /// Distinct streams of these entries.
    pub streams: u64,
    /// Whether there are more streams than are counted.
    pub more_streams: bool,
    /// What may be lost, ascending: ranges (end exclusive) of which those positions are lost that are the unit's and
    /// that no other record holds. A unit's directory does not say which positions are its own.
    pub lost: Vec<(Position, Position)>,
    /// What is damaged, by file and offset.
    pub damage: Vec<Damage>,
    /// Further damage, too much to be listed.
    pub more_damage: u64,
    /// What is not as it usually is, and no damage: torn writes, what a crash left behind.
    pub remarks: Vec<Remark>,
    /// Bytes of all files.
    pub bytes: u64,
}

impl UnitReport {
    /// Whether nothing says how much was lost: it may be more than `lost`.
    #[must_use]
    pub fn lost_is_unknown(&self) -> bool {
        let unknown = |damage: &Damage| damage.affected == Affected::Unknown;
        self.damage.iter().any(unknown)
    }
}

/// What a unit must not forget.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StateReport {
    /// Number of this version of the state.
    pub sequence: u64,
    /// The highest epoch entered.
    pub epoch: Epoch,
    /// Trim mark.
    pub trim: Position,
    /// Segments below this number were removed on purpose.
    pub first_segment: u64,
    /// What is void: of what batches up to a number hold, everything at or above a position. Ascending.
    pub voids: Vec<(u64, Position)>,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentReport {
    /// The file.
    pub name: FileName,
    /// What it is in.
    pub state: SegmentState,
    /// Drawn anew for each file; `None` if nothing readable says it.
    pub generation: Option<u64>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes up to the end of the last batch.
    pub used: u64,
    /// Readable batches.
    pub batches: u64,
    /// Readable records.
    pub records: u64,
    /// Those of them that are entries.
    pub entries: u64,
    /// Positions that the others turn into junk.
    pub junk: u64,
    /// Distinct streams.
    pub streams: u64,
    /// First and last position in it.
    pub positions: Option<(Position, Position)>,
}

/// What becomes of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Being written.
    Active,
    /// Full.
    Sealed,
    /// Ready to be written.
    Spare,
    /// Nothing in it can be read.
    Unreadable,
    /// Below the trim mark, and not removed yet.
    Leftover,
}

impl SegmentState {
    /// In one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Sealed => "sealed",
            Self::Spare => "spare",
            Self::Unreadable => "unreadable",
            Self::Leftover => "leftover",
        }
    }
}

/// One thing that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub file: FileName,
    /// Where in it.
    pub offset: u64,
    /// What was expected there.
    pub expected: String,
    /// What is lost by it, as far as no other record holds it.
    pub affected: Affected,
}

/// Which positions damage may have cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affected {
    /// None that is not trimmed.
    Nothing,
    /// Some or all of these; the end is exclusive.
    Positions(Position, Position),
    /// Nothing readable says which.
    Unknown,
}

impl fmt::Display for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no position is affected"),
            Self::Positions(from, to) if from.next() == *to => write!(f, "position {from}"),
            Self::Positions(from, to) => write!(f, "positions {from}..{to}"),
            Self::Unknown => f.write_str("unknown positions"),
        }
    }
}

/// Something that an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remark {
    /// The file.
    pub file: FileName,
    /// Where in it.
    pub offset: u64,
    /// What is there.
    pub text: String,
}
