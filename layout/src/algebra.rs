//! What may become of the segments from one layout to the next (rules 9, 10, 18). Pure.
//!
//! ```text
//! before                [0 .......................... ∞) a b | c d
//! b is gone             [0 .......................... ∞) a   | c d      from every segment: it missed an epoch
//! b is back             [0 ... s) a (+b) | c d    [s . ∞) a b | c d      new entries at once, old ones are copied
//! b has them all        [0 .......................... ∞) a b | c d      equal maps are one segment again
//! one more chain        [0 ... t) a b | c d    [t . ∞) a b | c d | e f  of what is appended from now on
//! ```
//!
//! The map of the longer part counts from its own start (rule 18); the older part keeps its map, so the two never become
//! one. No entry ever moves: below the new start each position keeps its chain, which loses and wins replicas.

use std::collections::BTreeSet;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Joining, Layout, Position, Segment, UnitIndex};

/// Whether every chain that loses somebody of `gone` keeps enough replicas.
pub(crate) fn can_do_without(layout: &Layout, gone: &BTreeSet<UnitIndex>) -> bool {
    let least = usize::from(layout.redundancy.min_replicas.max(1));
    let mut chains = layout.segments.iter().flat_map(|s| &s.chains);
    chains.all(|chain| {
        let left = chain.iter().filter(|unit| !gone.contains(unit)).count();
        left == chain.len() || left >= least
    })
}

/// The chains of what is appended now.
pub(crate) fn active_chains(layout: &Layout) -> &[Vec<UnitIndex>] {
    layout.segments.last().map_or(&[][..], |last| &last.chains)
}

/// Chains of the active segment that want more replicas, each with how many.
pub(crate) fn vacancies(layout: &Layout) -> impl Iterator<Item = (u16, usize)> {
    let wanted = usize::from(layout.redundancy.replicas);
    let chains = (0..).zip(active_chains(layout));
    chains.filter_map(move |(index, chain)| {
        let missing = wanted.saturating_sub(chain.len());
        (missing > 0).then_some((index, missing))
    })
}

/// Units that are still being given something; one may come more than once.
pub(crate) fn joining(layout: &Layout) -> impl Iterator<Item = UnitIndex> {
    let joining = layout.segments.iter().flat_map(|s| &s.joining);
    joining.map(|joining| joining.unit)
}

/// How the units of one layout differ from those of the layout before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// Members that the next epoch goes on without. (Whether it can is the caller's business.)
    pub(crate) gone: BTreeSet<UnitIndex>,
    /// Units that hold everything of what they were joining.
    pub(crate) copied: BTreeSet<UnitIndex>,
    /// Units that have forgotten what they do not surely know, with the chain that each of them enters: one of the active
    /// segment, or one more.
    pub(crate) joins: Vec<(u16, UnitIndex)>,
    /// Who is to have all that another one has, to take its place later.
    pub(crate) replaces: Vec<(UnitIndex, UnitIndex)>,
}

/// The segments of the layout after `old`, which starts at `start`.
pub(crate) fn next_segments(old: &Layout, start: Position, change: &Change) -> Vec<Segment> {
    let mut segments = old.segments.clone();
    for segment in &mut segments {
        list(segment, &change.copied, &old.segments);
        drop_units(segment, &change.gone);
    }
    if !change.joins.is_empty() {
        join(&mut segments, start, &change.joins);
    }
    replace(&mut segments, &change.replaces);
    refill(&mut segments, usize::from(old.redundancy.replicas));
    merge(segments)
}

/// Who has everything is a replica from now on: behind the others, or where the newest segment with the same map has it, so
/// that segments can become one again. Who was listed before keeps its place among the others; so a new tail holds what is
/// settled, only.
fn list(segment: &mut Segment, copied: &BTreeSet<UnitIndex>, all_segments: &[Segment]) {
    let all = plants::active(Plant::ListedBeforeCopied);
    let ready = |joining: &Joining| all || copied.contains(&joining.unit);
    let mut newest_first = all_segments.iter().rev();
    let alike = newest_first.find(|other| other.maps_like(segment));
    for Joining { chain, unit } in segment.joining.iter().filter(|j| ready(j)) {
        let index = usize::from(*chain);
        let Some(chain) = segment.chains.get_mut(index) else {
            continue;
        };
        let order = alike.and_then(|active| active.chains.get(index));
        let place = |unit: &UnitIndex| order?.iter().position(|u| u == unit);
        let at = place(unit).and_then(|own| {
            let behind = |other: &UnitIndex| place(other).is_some_and(|at| at > own);
            chain.iter().position(behind)
        });
        chain.insert(at.unwrap_or(chain.len()), *unit);
    }
    segment.joining.retain(|joining| !ready(joining));
}

fn drop_units(segment: &mut Segment, gone: &BTreeSet<UnitIndex>) {
    for chain in &mut segment.chains {
        chain.retain(|unit| !gone.contains(unit));
    }
    let stays = |joining: &Joining| !gone.contains(&joining.unit);
    segment.joining.retain(stays);
}

/// From `start` on the chains have these units, too, and there is one more chain if some of them enter that.
fn join(segments: &mut Vec<Segment>, start: Position, joins: &[(u16, UnitIndex)]) {
    // A segment that holds nothing yet is not closed first.
    if let Some(last) = segments.last().filter(|last| last.start < start) {
        let next = Segment::new(start, last.origin, last.chains.clone());
        segments.push(next);
    }
    let Some(last) = segments.last_mut() else {
        return;
    };
    let more = last.chains.len();
    if joins.iter().any(|(chain, _)| usize::from(*chain) == more) {
        last.chains.push(Vec::new());
        last.origin = last.start;
    }
    for (chain, unit) in joins {
        if let Some(chain) = last.chains.get_mut(usize::from(*chain)) {
            chain.push(*unit);
        }
    }
}

/// In closed segments successors join the chains of those whose place they take.
fn replace(segments: &mut [Segment], replaces: &[(UnitIndex, UnitIndex)]) {
    let closed = segments.split_last_mut().map(|(_, closed)| closed);
    for segment in closed.into_iter().flatten() {
        for (old, new) in replaces {
            let mut chains = (0..).zip(&segment.chains);
            let place = chains.find(|(_, chain)| chain.contains(old));
            if let Some((chain, _)) = place {
                join_closed(segment, chain, *new);
            }
        }
    }
}

/// Closed segments whose chains want more replicas are given units of the active chain with the same number: with the same
/// map all of them, so that the two can become one segment again.
fn refill(segments: &mut [Segment], wanted: usize) {
    let Some((last, closed)) = segments.split_last_mut() else {
        return;
    };
    for segment in closed {
        let alike = segment.maps_like(last);
        for (chain, candidates) in (0..).zip(&last.chains) {
            let wanted = if alike {
                wanted.max(candidates.len())
            } else {
                wanted
            };
            for unit in candidates {
                let Some(replicas) = segment.chains.get(usize::from(chain)) else {
                    break;
                };
                let joining = segment.joining.iter().filter(|j| j.chain == chain);
                if replicas.len() + joining.count() >= wanted {
                    break;
                }
                join_closed(segment, chain, *unit);
            }
        }
    }
}

/// Unless the segment names the unit already.
fn join_closed(segment: &mut Segment, chain: u16, unit: UnitIndex) {
    let busy = segment.joining.iter().any(|j| j.unit == unit);
    if !busy && !segment.lists(unit) {
        segment.joining.push(Joining { chain, unit });
    }
}

/// Neighbours that give each position to the same chain are one segment.
fn merge(segments: Vec<Segment>) -> Vec<Segment> {
    let mut merged: Vec<Segment> = Vec::with_capacity(segments.len());
    for segment in segments {
        let same = merged.last().is_some_and(|before| {
            before.maps_like(&segment)
                && before.chains == segment.chains
                && before.joining == segment.joining
        });
        if !same {
            merged.push(segment);
        }
    }
    merged
}

/// Whether the chains of `new` continue those of `old`: below the new start each position keeps its chain, which keeps a
/// replica, and wins none but those that were joining it. From there on there may be one more chain, of units that held
/// nothing.
pub(crate) fn continues(old: &Layout, new: &Layout) -> Result<(), &'static str> {
    let members = old.members();
    for (index, unit) in old.units.iter().enumerate() {
        let Some(same) = new.units.get(index) else {
            return Err("it forgets a unit");
        };
        if unit.name != same.name {
            return Err("it gives a unit another name");
        }
        let index = u16::try_from(index).map(UnitIndex);
        let member = index.is_ok_and(|index| members.contains(&index));
        if unit.id != same.id && member {
            return Err("it gives a unit that holds entries another identity");
        }
    }
    let cuts = old.segments.iter().chain(&new.segments).map(|s| s.start);
    for at in cuts.filter(|at| *at < new.start) {
        let before = &old.segments[old.segment_of(at)];
        let after = &new.segments[new.segment_of(at)];
        if !before.maps_like(after) {
            return Err("it moves positions to other chains");
        }
        for (index, (old, new)) in before.chains.iter().zip(&after.chains).enumerate() {
            let joined = |unit: &UnitIndex| {
                let of_chain = |j: &&Joining| usize::from(j.chain) == index;
                let mut joining = before.joining.iter().filter(of_chain);
                joining.any(|j| j.unit == *unit)
            };
            if !new.iter().all(|unit| old.contains(unit) || joined(unit)) {
                return Err("it moves positions to other units");
            }
            if !new.iter().any(|unit| old.contains(unit)) {
                return Err("a chain keeps none of its replicas");
            }
        }
    }
    grows(old, new, &members)
}

/// Whether the active chains of `new` are those of `old`, perhaps with units that took no part, and at most one more.
fn grows(old: &Layout, new: &Layout, members: &BTreeSet<UnitIndex>) -> Result<(), &'static str> {
    let (Some(before), Some(after)) = (old.segments.last(), new.segments.last()) else {
        return Err("it has no segments");
    };
    if before.maps_like(after) {
        // The same map.
    } else if after.chains.len() == before.chains.len() + 1 {
        if after.start < new.start {
            return Err("it adds a chain for what was appended already");
        }
    } else {
        return Err("it adds or removes chains otherwise than one at a time");
    }
    for (index, chain) in after.chains.iter().enumerate() {
        let kept = before.chains.get(index);
        let had = |unit: &UnitIndex| kept.is_some_and(|kept| kept.contains(unit));
        if !chain
            .iter()
            .all(|unit| had(unit) || !members.contains(unit))
        {
            return Err("it moves a unit to another chain");
        }
        if kept.is_some() && !chain.iter().any(had) {
            return Err("a chain keeps none of its replicas");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::history::History;
    use crate::samples;

    fn units(indexes: &[u16]) -> BTreeSet<UnitIndex> {
        indexes.iter().copied().map(UnitIndex).collect()
    }

    /// Two chains of two, with a spare.
    fn first() -> Layout {
        let mut layout = samples::layout(1, 0, &History::default());
        let spare = milonga_protocol::UnitRef {
            name: "unit-3".into(),
            id: milonga_protocol::UnitId(5),
        };
        layout.units.push(spare);
        layout
    }

    fn next(old: &Layout, start: u64, change: &Change) -> Layout {
        let start = Position(start);
        let mut next = old.clone();
        next.segments = next_segments(old, start, change);
        (next.epoch, next.start) = (old.epoch.next(), start);
        next.starts.push((next.epoch, start));
        next.validate().expect("a good layout");
        continues(old, &next).expect("continues");
        next
    }

    #[test]
    fn a_unit_goes_comes_back_and_is_complete_again() {
        let one = first();
        let gone = units(&[1]);
        assert!(can_do_without(&one, &gone));
        assert!(!can_do_without(&one, &units(&[0, 1])));
        let change = Change {
            gone,
            ..Change::default()
        };
        let two = next(&one, 7, &change);
        assert_eq!(two.segments.len(), 1);
        assert_eq!(two.segments[0].chains[0], [UnitIndex(0)]);
        assert_eq!(vacancies(&two).collect::<Vec<_>>(), [(0, 1)]);
        let change = Change {
            joins: vec![(0, UnitIndex(1))],
            ..Change::default()
        };
        let three = next(&two, 20, &change);
        assert_eq!(three.segments.len(), 2);
        assert_eq!(three.segments[1].chains[0], [0, 1].map(UnitIndex));
        let (chain, unit) = (0, UnitIndex(1));
        assert_eq!(three.segments[0].joining, [Joining { chain, unit }]);
        // A rival sequencer changes nothing about who is joining.
        let four = next(&three, 30, &Change::default());
        assert_eq!(four.segments, three.segments);
        let change = Change {
            copied: units(&[1]),
            ..Change::default()
        };
        let five = next(&four, 40, &change);
        assert_eq!(five.segments, one.segments);
    }

    #[test]
    fn a_spare_takes_the_place_and_may_go_while_it_is_joining() {
        let change = Change {
            gone: units(&[3]),
            joins: vec![(1, UnitIndex(4))],
            ..Change::default()
        };
        let two = next(&first(), 9, &change);
        assert_eq!(two.segments[1].chains[1], [2, 4].map(UnitIndex));
        let (chain, unit) = (1, UnitIndex(4));
        assert_eq!(two.segments[0].joining, [Joining { chain, unit }]);
        let change = Change {
            gone: units(&[4]),
            ..Change::default()
        };
        let three = next(&two, 11, &change);
        assert_eq!(three.segments.len(), 1);
        assert_eq!(three.segments[0].chains[1], [UnitIndex(2)]);
    }

    fn joins(chain: u16, unit: u16) -> Change {
        Change {
            joins: vec![(chain, UnitIndex(unit))],
            ..Change::default()
        }
    }

    fn copied(unit: u16) -> Change {
        Change {
            copied: units(&[unit]),
            ..Change::default()
        }
    }

    #[test]
    fn replicas_that_are_complete_in_another_order_than_they_came_make_one_segment() {
        let mut layout = first();
        layout.redundancy.replicas = 3;
        layout.segments[0].chains = vec![[0, 1, 2].map(UnitIndex).to_vec()];
        let gone = units(&[0, 1]);
        let change = Change {
            gone,
            ..Change::default()
        };
        layout = next(&layout, 7, &change);
        layout = next(&layout, 9, &joins(0, 1));
        layout = next(&layout, 11, &joins(0, 0));
        layout = next(&layout, 13, &copied(0));
        layout = next(&layout, 15, &copied(1));
        let chains = [[2, 1, 0].map(UnitIndex).to_vec()];
        assert_eq!(layout.segments.len(), 1, "{:?}", layout.segments);
        assert_eq!(layout.segments[0].chains, chains);
    }

    #[test]
    fn closed_parts_are_given_to_the_units_of_their_own_chain() {
        let gone = units(&[1, 3]);
        let change = Change {
            gone,
            ..Change::default()
        };
        let mut layout = next(&first(), 7, &change);
        // The second chain has a new unit; the first one still waits for its own.
        layout = next(&layout, 9, &joins(1, 4));
        let (chain, unit) = (1, UnitIndex(4));
        assert_eq!(layout.segments[0].joining, [Joining { chain, unit }]);
        layout = next(&layout, 11, &joins(0, 1));
        for unit in [4, 1] {
            layout = next(&layout, 13, &copied(unit));
        }
        assert_eq!(layout.segments.len(), 1, "{:?}", layout.segments);
    }

    #[test]
    fn what_does_not_continue_is_refused() {
        let change = Change {
            gone: units(&[1]),
            joins: vec![(0, UnitIndex(4))],
            ..Change::default()
        };
        let old = next(&first(), 9, &change);
        let refused = |change: &dyn Fn(&mut Layout)| {
            let mut layout = old.clone();
            layout.start = Position(20);
            change(&mut layout);
            continues(&old, &layout).expect_err("wrong")
        };
        assert!(refused(&|l| l.units.truncate(2)).contains("forgets a unit"));
        assert!(refused(&|l| l.units[0].name = "other".into()).contains("another name"));
        assert!(refused(&|l| l.units[0].id.0 = 99).contains("another identity"));
        assert!(refused(&|l| l.segments[0].origin.0 += 1).contains("other chains"));
        assert!(refused(&|l| l.segments[0].chains.swap(0, 1)).contains("other units"));
        assert!(refused(&|l| l.segments[0].chains[1].push(UnitIndex(1))).contains("other units"));
        let only_new = |l: &mut Layout| l.segments[0].chains[0] = vec![UnitIndex(4)];
        assert!(refused(&only_new).contains("none of its replicas"));
        // Who left every chain may come back as somebody else.
        let mut renamed = old.clone();
        renamed.units[1].id.0 = 99;
        assert_eq!(continues(&old, &renamed), Ok(()));
    }

    fn grown(units: &[u16]) -> Change {
        let unit = |unit: &u16| (2, UnitIndex(*unit));
        Change {
            joins: units.iter().map(unit).collect(),
            ..Change::default()
        }
    }

    #[test]
    fn one_more_chain_takes_what_is_appended_from_then_on() {
        let one = first();
        // Nothing was appended yet: nothing has to keep its chain.
        let empty = next(&one, 0, &grown(&[4]));
        assert_eq!(empty.segments.len(), 1);
        assert_eq!(empty.segments[0].chains.len(), 3);
        let two = next(&one, 105, &grown(&[4]));
        assert_eq!(two.segments.len(), 2);
        assert_eq!(two.segments[0], one.segments[0]);
        assert_eq!(two.segments[1].origin, Position(105));
        for position in 0..105 {
            let position = Position(position);
            assert_eq!(two.chain(position), one.chain(position));
        }
        assert_eq!(two.chain(Position(107)), [UnitIndex(4)]);
        // A unit that is gone and comes back is given what its chain has, on both sides.
        let gone = units(&[1]);
        let change = Change {
            gone,
            ..Change::default()
        };
        let three = next(&two, 120, &change);
        let four = next(&three, 130, &joins(0, 1));
        let (chain, unit) = (0, UnitIndex(1));
        for closed in &four.segments[..2] {
            assert_eq!(closed.joining, [Joining { chain, unit }]);
        }
        let five = next(&four, 140, &copied(1));
        assert_eq!(five.segments, two.segments);
    }

    #[test]
    fn a_successor_is_given_all_that_the_other_has() {
        let two = next(&first(), 10, &grown(&[4]));
        let mut two = two;
        two.units.push(milonga_protocol::UnitRef {
            name: "unit-6".into(),
            id: milonga_protocol::UnitId(6),
        });
        let replaces = vec![(UnitIndex(2), UnitIndex(5))];
        let change = Change {
            replaces: replaces.clone(),
            ..joins(1, 5)
        };
        let three = next(&two, 20, &change);
        let (chain, unit) = (1, UnitIndex(5));
        assert_eq!(three.segments.len(), 3);
        for closed in &three.segments[..2] {
            assert_eq!(closed.joining, [Joining { chain, unit }]);
        }
        assert_eq!(three.chain(Position(20)), [2, 3, 5].map(UnitIndex));
        let four = next(&three, 30, &copied(5));
        let change = Change {
            gone: units(&[2]),
            ..Change::default()
        };
        let five = next(&four, 40, &change);
        assert_eq!(five.segments.len(), 2);
        for segment in &five.segments {
            assert_eq!(segment.chains[1], [3, 5].map(UnitIndex));
        }
    }

    #[test]
    fn what_does_not_grow_by_one_chain_is_refused() {
        let old = next(&first(), 9, &Change::default());
        let good = next(&old, 20, &grown(&[4]));
        let refused = |change: &dyn Fn(&mut Layout)| {
            let mut layout = good.clone();
            change(&mut layout);
            continues(&old, &layout).expect_err("wrong")
        };
        let earlier = |l: &mut Layout| l.segments[1].start = Position(15);
        assert!(refused(&earlier).contains("other chains"));
        let later = |l: &mut Layout| l.start = Position(25);
        assert!(refused(&later).contains("other chains"));
        let two_more = |l: &mut Layout| l.segments[1].chains.push(vec![UnitIndex(5)]);
        assert!(refused(&two_more).contains("one at a time"));
        let fewer = |l: &mut Layout| l.segments[1].chains.truncate(1);
        assert!(refused(&fewer).contains("one at a time"));
        let moved = |l: &mut Layout| l.segments[1].chains[2] = vec![UnitIndex(1)];
        assert!(refused(&moved).contains("unit to another chain"));
        let swapped = |l: &mut Layout| l.segments[1].chains.swap(0, 1);
        assert!(refused(&swapped).contains("unit to another chain"));
        let emptied = |l: &mut Layout| l.segments[1].chains[0] = vec![UnitIndex(5)];
        assert!(refused(&emptied).contains("none of its replicas"));
        // And none goes away again.
        let mut shrunk = good.clone();
        shrunk.start = Position(30);
        let last = Segment::new(Position(30), Position(0), old.segments[0].chains.clone());
        shrunk.segments.push(last);
        let why = continues(&good, &shrunk).expect_err("wrong");
        assert!(why.contains("one at a time"));
    }

    /// Units of the model: two chains of two, and others to come.
    const UNITS: u16 = 9;

    /// What is true of positions, whatever the layouts say.
    struct Model {
        layout: Layout,
        /// Who has everything of a position.
        complete: BTreeMap<u64, BTreeSet<UnitIndex>>,
        /// The chain that a position was written to, and of how many.
        written: BTreeMap<u64, (usize, usize)>,
        replaces: Vec<(UnitIndex, UnitIndex)>,
    }

    /// What happens from one epoch to the next.
    #[derive(Clone, Debug)]
    struct Step {
        grown: u64,
        gone: [bool; UNITS as usize],
        copied: [bool; UNITS as usize],
        joins: bool,
        /// Another chain is added.
        grows: bool,
        /// A unit of this chain is replaced.
        replaced: Option<usize>,
    }

    fn step() -> impl Strategy<Value = Step> {
        let replaced = prop::option::weighted(0.2, 0_usize..4);
        let grows = prop::bool::weighted(0.1);
        let which = any::<[bool; UNITS as usize]>;
        let all = (0_u64..6, which(), which(), any::<bool>(), grows, replaced);
        all.prop_map(|(grown, gone, copied, joins, grows, replaced)| Step {
            grown,
            gone,
            copied,
            joins,
            grows,
            replaced,
        })
    }

    fn pick(of: BTreeSet<UnitIndex>, which: &[bool]) -> BTreeSet<UnitIndex> {
        let picked = of.into_iter().filter(|u| which[usize::from(u.0)]);
        picked.collect()
    }

    impl Model {
        fn new() -> Self {
            let mut layout = first();
            for id in 5..u128::from(UNITS) {
                layout.units.push(milonga_protocol::UnitRef {
                    name: format!("unit-{id}").as_str().into(),
                    id: milonga_protocol::UnitId(id + 1),
                });
            }
            Self {
                layout,
                complete: BTreeMap::new(),
                written: BTreeMap::new(),
                replaces: Vec::new(),
            }
        }

        /// What the next layout is made from.
        fn change(&mut self, step: &Step) -> Change {
            let layout = &self.layout;
            let members = layout.members();
            let mut gone = pick(members.clone(), &step.gone);
            if !can_do_without(layout, &gone) {
                gone.clear();
            }
            let joining = layout.segments.iter().flat_map(|s| &s.joining);
            let copied = pick(joining.map(|j| j.unit).collect(), &step.copied);
            let mut free = (0..UNITS).map(UnitIndex).filter(|u| !members.contains(u));
            let places = vacancies(layout).filter(|_| step.joins);
            let mut joins: Vec<_> = places
                .filter_map(|(chain, _)| Some((chain, free.next()?)))
                .collect();
            let active = &layout.segments.last().expect("one").chains;
            if step.grows && active.len() < 4 {
                let more = u16::try_from(active.len()).expect("few");
                joins.extend(free.by_ref().take(2).map(|unit| (more, unit)));
            }
            let chain = step.replaced.filter(|_| self.replaces.is_empty());
            if let Some(chain) = chain.filter(|chain| *chain < active.len())
                && let Some(new) = free.next()
            {
                self.replaces.push((active[chain][0], new));
                joins.push((u16::try_from(chain).expect("few"), new));
            }
            let replaces = self.replaces.clone();
            Change {
                gone,
                copied,
                joins,
                replaces,
            }
        }

        fn take(&mut self, step: &Step) {
            let mut change = self.change(step);
            let layout = &self.layout;
            // Positions written in this epoch are on all of their chain.
            let start = layout.start.0 + step.grown;
            for position in layout.start.0..start {
                let at = Position(position);
                let segment = &layout.segments[layout.segment_of(at)];
                let place = (segment.chain_of(at), segment.chains.len());
                self.written.insert(position, place);
                let chain = layout.chain(at).iter().copied();
                self.complete.insert(position, chain.collect());
            }
            for (position, holders) in &mut self.complete {
                let segment = &layout.segments[layout.segment_of(Position(*position))];
                let chain = segment.chain_of(Position(*position));
                let given = segment.joining.iter();
                let given = given.filter(|j| usize::from(j.chain) == chain);
                let given = given.map(|j| j.unit);
                holders.extend(given.filter(|u| change.copied.contains(u)));
                holders.retain(|unit| !change.gone.contains(unit));
            }
            let replaces = &mut self.replaces;
            replaces.retain(|(old, new)| !change.gone.contains(old) && !change.gone.contains(new));
            change.replaces.clone_from(replaces);
            self.layout = next(layout, start, &change);
            self.layout.starts = vec![(self.layout.epoch, self.layout.start)];
        }

        fn check(&self) {
            for (position, holders) in &self.complete {
                let at = Position(*position);
                let chain = self.layout.chain(at);
                let all = chain.iter().all(|unit| holders.contains(unit));
                assert!(all, "position {position}");
                let segment = &self.layout.segments[self.layout.segment_of(at)];
                let place = (segment.chain_of(at), segment.chains.len());
                assert_eq!(place, self.written[position], "position {position} moved");
            }
            let chains = self.layout.segments.last().expect("one").chains.len();
            let most = 8 * (chains - 1);
            let count = self.layout.segments.len();
            assert!(count <= most, "{count} segments");
        }
    }

    proptest! {
        /// Whoever is listed for a position has it, and no position ever moves, whatever happens.
        #[test]
        fn nobody_is_listed_who_is_not_complete(steps in prop::collection::vec(step(), 1..30)) {
            let mut model = Model::new();
            for step in &steps {
                model.take(step);
                model.check();
            }
            // When everybody gets everything, one segment is left for each number of chains.
            let calm = Step {
                grown: 1,
                gone: [false; UNITS as usize],
                copied: [true; UNITS as usize],
                joins: true,
                grows: false,
                replaced: None,
            };
            for _ in 0..8 {
                model.take(&calm);
                model.check();
            }
            let chains = model.layout.segments.last().expect("one").chains.len();
            prop_assert!(model.layout.segments.len() < chains, "{:?}", model.layout.segments);
        }
    }
}
