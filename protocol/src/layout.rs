//! The layout: which positions lie on which chains, in which epoch. Immutable data and pure functions.
//!
//! ```text
//! position   0 ........ segment 0 ........ | start ......... the active part ........
//!            closed and frozen (rule 9)    | head arbitrates (rule 7)
//! ```
//!
//! A new epoch with the same chains extends the last segment instead of adding one (same origin, so the map is
//! equal position by position, rule 18); only [`Layout::start`] moves up.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, Incarnation, Position, ServerName, UnitId};
use crate::limits::{Limits, MAX_ENTRY_BYTES, MAX_STREAMS_PER_ENTRY, STARTS_IN_LAYOUT};

/// Index into [`Layout::units`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitIndex(pub u16);

/// A log unit that the layout names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRef {
    /// Its process.
    pub name: ServerName,
    /// Its identity on disk.
    pub id: UnitId,
}

/// A range of positions and its chains: from `start` to the next segment's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First position.
    pub start: Position,
    /// Position `p` lies on chain `(p - origin) mod n`. Not above `start`; survives merges (rule 18).
    pub origin: Position,
    /// The chains, each from head to tail. Whoever is listed is complete: it holds whatever is settled (rule 10).
    pub chains: Vec<Vec<UnitIndex>>,
    /// Units that are being given what a chain holds; no replicas yet (rule 5).
    pub joining: Vec<Joining>,
}

/// A unit on its way into a chain of a closed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Joining {
    /// The chain, as an index into the segment's chains.
    pub chain: u16,
    /// The unit.
    pub unit: UnitIndex,
}

impl Segment {
    /// A segment whose chains are complete.
    #[must_use]
    pub const fn new(start: Position, origin: Position, chains: Vec<Vec<UnitIndex>>) -> Self {
        Self {
            start,
            origin,
            chains,
            joining: Vec::new(),
        }
    }

    /// Whether both have the same number of chains and give each position to the same one (rule 18).
    #[must_use]
    pub fn maps_like(&self, other: &Self) -> bool {
        let stripes = self.chains.len().max(1) as u64;
        let apart = self.origin.0.abs_diff(other.origin.0);
        self.chains.len() == other.chains.len() && apart.is_multiple_of(stripes)
    }

    /// Whether `unit` is a replica of one of the chains.
    #[must_use]
    pub fn lists(&self, unit: UnitIndex) -> bool {
        self.chains.iter().any(|chain| chain.contains(&unit))
    }

    /// The chain of `position`, as an index into `chains`.
    #[must_use]
    pub fn chain_of(&self, position: Position) -> usize {
        let stripes = self.chains.len().max(1) as u64;
        let chain = position.0.saturating_sub(self.origin.0) % stripes;
        usize::try_from(chain).expect("fewer chains than usize")
    }
}

/// How much redundancy is wanted, and how little is enough to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redundancy {
    /// Replicas that a chain is to have; units that are free are taken in until it has.
    pub replicas: u16,
    /// A chain gives up no replica if fewer than these were left; at least 1.
    pub min_replicas: u16,
}

impl Redundancy {
    /// Chains of `replicas` units, of which one is enough to go on.
    #[must_use]
    pub const fn of(replicas: u16) -> Self {
        Self {
            replicas,
            min_replicas: 1,
        }
    }
}

/// The sequencer that an epoch names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequencerRef {
    /// Its process.
    pub name: ServerName,
    /// The run of that process that was bootstrapped for this epoch (rule 17).
    pub incarnation: Incarnation,
}

/// One epoch's layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch; all else is immutable within it.
    pub epoch: Epoch,
    /// First position of the part that this epoch opened: all below is closed.
    pub start: Position,
    /// Starts of the last epochs (this one included, oldest first, at most [`STARTS_IN_LAYOUT`]).
    pub starts: Vec<(Epoch, Position)>,
    /// Segments in order of position; the first starts at 0; the last has no end.
    pub segments: Vec<Segment>,
    /// The units that segments refer to. One that no segment names any more keeps its index.
    pub units: Vec<UnitRef>,
    /// The policy for chains that lose replicas.
    pub redundancy: Redundancy,
    /// The sequencer.
    pub sequencer: SequencerRef,
    /// Shared limits.
    pub limits: Limits,
}

/// The part of a segment that one unit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitRange {
    /// First position of the segment.
    pub from: Position,
    /// End of the segment, exclusive ([`Position::MAX`] for the last).
    pub to: Position,
    /// Own positions are those `p` with `(p - origin) mod stripes == chain`.
    pub origin: Position,
    /// Number of chains.
    pub stripes: u64,
    /// The chain this unit is a replica of.
    pub chain: u64,
    /// Place in the chain: 0 is the head.
    pub place: u16,
    /// Length of the chain.
    pub replicas: u16,
}

impl UnitRange {
    /// Whether `position` is one of this range's.
    #[must_use]
    pub const fn owns(&self, position: Position) -> bool {
        position.0 >= self.from.0
            && position.0 < self.to.0
            && (position.0 - self.origin.0) % self.stripes == self.chain
    }

    /// The first own position that is not below `position` (may be at or above `to`).
    #[must_use]
    pub const fn first_at_or_above(&self, position: Position) -> Position {
        let at = if position.0 > self.from.0 {
            position.0
        } else {
            self.from.0
        };
        let phase = (at - self.origin.0) % self.stripes;
        let up = (self.chain + self.stripes - phase) % self.stripes;
        Position(at.saturating_add(up))
    }

    /// Own positions in `from..to`, in order.
    pub fn positions(self, from: Position, to: Position) -> impl Iterator<Item = Position> {
        let to = to.min(self.to);
        let mut next = self.first_at_or_above(from);
        std::iter::from_fn(move || {
            let position = next;
            (position < to).then(|| {
                next = position.plus(self.stripes);
                position
            })
        })
    }

    /// Whether this unit is the head of the chain.
    #[must_use]
    pub const fn is_head(&self) -> bool {
        self.place == 0
    }

    /// Whether this unit is the tail of the chain.
    #[must_use]
    pub const fn is_tail(&self) -> bool {
        self.place + 1 == self.replicas
    }
}

/// Why a layout is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A statement about the segments does not hold.
    #[error("segment {segment} of the layout of epoch {epoch}: {why}")]
    Segment {
        /// The epoch.
        epoch: Epoch,
        /// Index of the segment.
        segment: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A statement about the layout as a whole does not hold.
    #[error("layout of epoch {epoch}: {why}")]
    Whole {
        /// The epoch.
        epoch: Epoch,
        /// What is wrong.
        why: &'static str,
    },
}

impl Layout {
    /// The segment of `position`, as an index.
    #[must_use]
    pub fn segment_of(&self, position: Position) -> usize {
        self.segments
            .partition_point(|segment| segment.start <= position)
            .saturating_sub(1)
    }

    /// End of segment `index`, exclusive.
    #[must_use]
    pub fn end_of(&self, index: usize) -> Position {
        self.segments
            .get(index + 1)
            .map_or(Position::MAX, |next| next.start)
    }

    /// The chain of `position`, head first.
    #[must_use]
    pub fn chain(&self, position: Position) -> &[UnitIndex] {
        let segment = &self.segments[self.segment_of(position)];
        &segment.chains[segment.chain_of(position)]
    }

    /// Whether `position` lies below this epoch's start: its value is frozen, there is no arbitration (rule 9).
    #[must_use]
    pub fn is_closed(&self, position: Position) -> bool {
        position < self.start
    }

    /// The unit at `index`.
    #[must_use]
    pub fn unit(&self, index: UnitIndex) -> &UnitRef {
        &self.units[usize::from(index.0)]
    }

    /// Index of the unit with identity `id`.
    #[must_use]
    pub fn find_unit(&self, id: UnitId) -> Option<UnitIndex> {
        let index = self.units.iter().position(|unit| unit.id == id)?;
        u16::try_from(index).ok().map(UnitIndex)
    }

    /// The ranges of segment `index`, one for each chain, as held by that chain's tail.
    pub fn ranges(&self, index: usize) -> impl Iterator<Item = UnitRange> + '_ {
        let segment = &self.segments[index];
        segment
            .chains
            .iter()
            .enumerate()
            .map(move |(chain, units)| self.range(index, chain, units.len().saturating_sub(1)))
    }

    fn range(&self, index: usize, chain: usize, place: usize) -> UnitRange {
        let segment = &self.segments[index];
        UnitRange {
            from: segment.start,
            to: self.end_of(index),
            origin: segment.origin,
            stripes: segment.chains.len() as u64,
            chain: chain as u64,
            place: u16::try_from(place).unwrap_or(u16::MAX),
            replicas: u16::try_from(segment.chains[chain].len()).unwrap_or(u16::MAX),
        }
    }

    /// The units that take part in this epoch: replicas, and those that are on their way to be.
    #[must_use]
    pub fn members(&self) -> BTreeSet<UnitIndex> {
        let joining = self.segments.iter().flat_map(|s| &s.joining);
        joining
            .map(|joining| joining.unit)
            .chain(self.listed())
            .collect()
    }

    /// The units that are a replica of some chain.
    #[must_use]
    pub fn listed(&self) -> BTreeSet<UnitIndex> {
        let chains = self.segments.iter().flat_map(|s| &s.chains);
        chains.flatten().copied().collect()
    }

    /// The ranges that the unit with identity `id` is being given, in order of position. Its place in their chains is
    /// behind the last.
    #[must_use]
    pub fn joining_of(&self, id: UnitId) -> Vec<UnitRange> {
        let Some(unit) = self.find_unit(id) else {
            return Vec::new();
        };
        let segments = self.segments.iter().enumerate();
        let ranges = segments.flat_map(|(index, segment)| {
            let mine = segment.joining.iter().filter(move |j| j.unit == unit);
            mine.map(move |joining| {
                let chain = usize::from(joining.chain);
                self.range(index, chain, segment.chains[chain].len())
            })
        });
        ranges.collect()
    }

    /// All ranges that the unit with identity `id` holds, in order of position.
    #[must_use]
    pub fn ranges_of(&self, id: UnitId) -> Vec<UnitRange> {
        let Some(unit) = self.find_unit(id) else {
            return Vec::new();
        };
        let mut ranges = Vec::new();
        for (index, segment) in self.segments.iter().enumerate() {
            for (chain, units) in segment.chains.iter().enumerate() {
                if let Some(place) = units.iter().position(|u| *u == unit) {
                    ranges.push(self.range(index, chain, place));
                }
            }
        }
        ranges
    }

    /// `start` of the first epoch after `epoch`: tokens of `epoch` at or above it are void (rule 13).
    /// `None` if there is no later epoch or it is too long ago to be listed.
    #[must_use]
    pub fn start_after(&self, epoch: Epoch) -> Option<Position> {
        let (first, start) = self.starts.iter().find(|(e, _)| *e > epoch)?;
        (*first == epoch.next()).then_some(*start)
    }

    /// Checks everything that makes a layout usable.
    ///
    /// # Errors
    /// [`LayoutError`] names the first statement that does not hold.
    pub fn validate(&self) -> Result<(), LayoutError> {
        let whole = |why| {
            Err(LayoutError::Whole {
                epoch: self.epoch,
                why,
            })
        };
        if self.epoch == Epoch::NONE {
            return whole("epoch 0 has no layout");
        }
        if self
            .segments
            .first()
            .is_none_or(|first| first.start != Position::ZERO)
        {
            return whole("the first segment does not start at 0");
        }
        if self
            .segments
            .last()
            .is_some_and(|last| last.start > self.start)
        {
            return whole("the last segment starts above the epoch's start");
        }
        if self.starts.last() != Some(&(self.epoch, self.start)) {
            return whole("the list of starts does not end with this epoch's");
        }
        if self.starts.len() > STARTS_IN_LAYOUT {
            return whole("the list of starts is too long");
        }
        if !ascending(&self.starts) {
            return whole("the list of starts does not ascend by epoch and by position");
        }
        if has_twins(self.units.iter().map(|unit| unit.id))
            || has_twins(self.units.iter().map(|unit| &unit.name))
        {
            return whole("two units have the same identity or the same name");
        }
        if self.redundancy.min_replicas == 0 {
            return whole("its chains may lose all their replicas");
        }
        if self.limits.entry_bytes > MAX_ENTRY_BYTES
            || self.limits.streams_per_entry > MAX_STREAMS_PER_ENTRY
        {
            return whole("a limit is above its hard ceiling");
        }
        for index in 0..self.segments.len() {
            self.validate_segment(index)?;
        }
        Ok(())
    }

    fn validate_segment(&self, index: usize) -> Result<(), LayoutError> {
        let wrong = |why| {
            Err(LayoutError::Segment {
                epoch: self.epoch,
                segment: index,
                why,
            })
        };
        let segment = &self.segments[index];
        if segment.start >= self.end_of(index) {
            return wrong("starts at or above its end");
        }
        if segment.origin > segment.start {
            return wrong("has its origin above its start");
        }
        if segment.chains.is_empty() || segment.chains.iter().any(Vec::is_empty) {
            return wrong("has no chains, or one without replicas");
        }
        let mut seen = vec![false; self.units.len()];
        for unit in segment.chains.iter().flatten() {
            match seen.get_mut(usize::from(unit.0)) {
                None => return wrong("names a unit that the layout does not list"),
                Some(true) => return wrong("names a unit twice"),
                Some(unseen) => *unseen = true,
            }
        }
        for Joining { chain, unit } in &segment.joining {
            if usize::from(*chain) >= segment.chains.len() {
                return wrong("has a unit join a chain that it does not have");
            }
            match seen.get_mut(usize::from(unit.0)) {
                None => return wrong("names a unit that the layout does not list"),
                Some(true) => return wrong("has a unit join that it names already"),
                Some(unseen) => *unseen = true,
            }
        }
        if !segment.joining.is_empty() && self.end_of(index) > self.start {
            return wrong("has a unit join, but is not closed");
        }
        Ok(())
    }
}

/// Whether epochs follow one another and none starts below the one before it. If one did, a value could be void for
/// an old token and settled for a new one (rules 1 and 13).
#[must_use]
pub fn ascending(starts: &[(Epoch, Position)]) -> bool {
    let follows = |pair: &[(Epoch, Position)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
    starts.windows(2).all(follows)
}

fn has_twins<T: Ord>(names: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    let mut names = names;
    !names.all(|name| seen.insert(name))
}

/// A layout as it is handed out: with the addresses where its servers were last heard of.
/// (Addresses are local settings of each process, so they are not part of the layout.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The layout.
    pub layout: Layout,
    /// Address of each server that said hello.
    pub addresses: BTreeMap<ServerName, String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A layout with `chains` chains of `replicas` units each.
    fn layout(start: u64, origins: &[(u64, u64, usize)], replicas: usize) -> Layout {
        let most = origins.iter().map(|o| o.2).max().unwrap_or(1);
        let units = (0..most * replicas)
            .map(|u| UnitRef {
                name: format!("u{u}").as_str().into(),
                id: UnitId(u as u128),
            })
            .collect();
        let segments = origins
            .iter()
            .map(|&(start, origin, chains)| {
                let unit = |u| UnitIndex(u16::try_from(u).unwrap());
                let chain = |c| (0..replicas).map(|r| unit(c * replicas + r)).collect();
                let chains = (0..chains).map(chain).collect();
                Segment::new(Position(start), Position(origin), chains)
            })
            .collect();
        Layout {
            cluster: ClusterId(1),
            epoch: Epoch(3),
            start: Position(start),
            starts: vec![(Epoch(2), Position(1)), (Epoch(3), Position(start))],
            segments,
            units,
            redundancy: Redundancy::of(2),
            sequencer: SequencerRef {
                name: "s".into(),
                incarnation: Incarnation(1),
            },
            limits: Limits::default(),
        }
    }

    proptest! {
        #[test]
        fn each_position_lies_on_exactly_one_chain(
            second in 1_u64..200, a in 1_usize..5, b in 1_usize..5, replicas in 1_usize..4, p in 0_u64..400,
        ) {
            let layout = layout(500, &[(0, 0, a), (second, second.saturating_sub(3), b)], replicas);
            layout.validate().expect("made valid");
            let position = Position(p);
            let holders: Vec<_> = layout
                .units
                .iter()
                .filter(|u| layout.ranges_of(u.id).iter().any(|r| r.owns(position)))
                .map(|u| u.id)
                .collect();
            let mut chain: Vec<_> = layout.chain(position).iter().map(|u| layout.unit(*u).id).collect();
            chain.sort();
            prop_assert_eq!(holders, chain);
            for range in layout.units.iter().flat_map(|u| layout.ranges_of(u.id)) {
                let first = range.first_at_or_above(position);
                prop_assert!(first >= position);
                prop_assert!(range.owns(first) || first >= range.to);
                prop_assert!((p..first.0).all(|q| !range.owns(Position(q))));
            }
        }
    }

    proptest! {
        /// Whatever is accepted maps each position to one chain of distinct units, and lists starts that ascend.
        #[test]
        fn what_is_accepted_holds_together(
            mut segments in prop::collection::vec((0_u64..40, 0_u64..40, 1_usize..4), 1..4),
            mut starts in prop::collection::vec((0_u64..9, 0_u64..60), 1..5),
            replicas in 1_usize..3, twin in any::<bool>(), tidy in any::<bool>(),
        ) {
            if tidy {
                // Else hardly anything would be accepted.
                segments.sort_unstable();
                segments[0].0 = 0;
                segments.iter_mut().for_each(|(start, origin, _)| *origin = *start.min(origin));
                starts.sort_unstable();
            }
            let mut layout = layout(0, &segments, replicas);
            (layout.epoch, layout.start) = starts.last().map(|(e, p)| (Epoch(*e), Position(*p))).unwrap();
            layout.starts = starts.iter().map(|(e, p)| (Epoch(*e), Position(*p))).collect();
            if let (true, [first, .., last]) = (twin, layout.units.as_mut_slice()) {
                last.id = first.id;
            }
            let valid = layout.validate();
            let ascend = starts.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
            let tiled = segments[0].0 == 0
                && segments.windows(2).all(|w| w[0].0 < w[1].0)
                && segments.iter().all(|(start, origin, _)| origin <= start && *start <= layout.start.0);
            let distinct = !twin || layout.units.len() < 2;
            let named = layout.epoch != Epoch::NONE;
            prop_assert_eq!(valid.is_ok(), ascend && tiled && distinct && named, "{:?}", valid);
            if valid.is_err() {
                return Ok(());
            }
            for p in (0..100).map(Position) {
                let chain: BTreeSet<_> = layout.chain(p).iter().map(|u| layout.unit(*u).id).collect();
                prop_assert_eq!(chain.len(), replicas);
                let owns = |u: &&UnitRef| layout.ranges_of(u.id).iter().filter(|r| r.owns(p)).count();
                let holders = layout.units.iter().map(|u| (u.id, owns(&u)));
                let holders: BTreeMap<_, _> = holders.filter(|(_, ranges)| *ranges > 0).collect();
                prop_assert!(holders.values().all(|ranges| *ranges == 1));
                prop_assert_eq!(holders.into_keys().collect::<BTreeSet<_>>(), chain);
            }
            let mut last = None;
            for epoch in (0..8).map(Epoch) {
                let start = layout.start_after(epoch);
                prop_assert!(start.is_none() || start >= last, "starts after later epochs are not lower");
                last = start.or(last);
            }
        }

        /// Two segments of the same chains are one if, and only if, their origins lie a multiple of the stripes
        /// apart (rule 18).
        #[test]
        fn segments_of_one_map_are_one(
            second in 1_u64..60, origin in 0_u64..60, chains in 1_usize..5,
        ) {
            let origin = origin.min(second);
            let two = layout(100, &[(0, 0, chains), (second, origin, chains)], 1);
            let one = layout(100, &[(0, 0, chains)], 1);
            let equal = (0..200).all(|p| one.chain(Position(p)) == two.chain(Position(p)));
            prop_assert_eq!(equal, origin % chains as u64 == 0);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = layout(9, &[(0, 0, 2)], 2);
        assert_eq!(good.validate(), Ok(()));
        let mut twice = good.clone();
        twice.segments[0].chains[1] = twice.segments[0].chains[0].clone();
        assert!(
            twice
                .validate()
                .unwrap_err()
                .to_string()
                .contains("names a unit twice")
        );
        let mut unknown = good.clone();
        unknown.segments[0].chains[1][0] = UnitIndex(77);
        assert!(
            unknown
                .validate()
                .unwrap_err()
                .to_string()
                .contains("does not list")
        );
        let mut backwards = layout(9, &[(0, 0, 2), (5, 5, 2)], 2);
        backwards.segments[1].start = Position::ZERO;
        assert!(
            backwards
                .validate()
                .unwrap_err()
                .to_string()
                .contains("at or above its end")
        );
    }

    #[test]
    fn old_tokens_are_void_from_the_start_of_the_next_epoch() {
        let layout = layout(9, &[(0, 0, 1)], 1);
        assert_eq!(layout.start_after(Epoch(1)), Some(Position(1)));
        assert_eq!(layout.start_after(Epoch(2)), Some(Position(9)));
        assert_eq!(layout.start_after(Epoch(3)), None);
        assert_eq!(layout.start_after(Epoch(0)), None);
    }
}
