//! What may become of the segments from one layout to the next (rules 9, 10, 18). Pure.
//!
//! ```text
//! before                [0 .......................... ∞) a b | c d
//! b is gone             [0 .......................... ∞) a   | c d      from every segment: it missed an epoch
//! b is back             [0 ... s) a (+b) | c d    [s . ∞) a b | c d      new entries at once, old ones are copied
//! b has them all        [0 .......................... ∞) a b | c d      equal maps are one segment again
//! ```
//!
//! No entry ever moves: below the new start each position keeps its chain, which loses and wins replicas.

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

/// Chains of the active segment that want more replicas, each with how many.
pub(crate) fn vacancies(layout: &Layout) -> impl Iterator<Item = (u16, usize)> {
    let wanted = usize::from(layout.redundancy.replicas);
    let chains = layout.segments.last().map_or(&[][..], |s| &s.chains);
    let chains = (0..).zip(chains);
    chains.filter_map(move |(index, chain)| {
        let missing = wanted.saturating_sub(chain.len());
        (missing > 0).then_some((index, missing))
    })
}

/// How the units of one layout differ from those of the layout before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    /// Members that the next epoch goes on without. (Whether it can is the caller's business.)
    pub(crate) gone: BTreeSet<UnitIndex>,
    /// Units that hold everything of what they were joining.
    pub(crate) copied: BTreeSet<UnitIndex>,
    /// Units that have forgotten what they do not surely know, with the chain that each of them enters.
    pub(crate) joins: Vec<(u16, UnitIndex)>,
}

/// The segments of the layout after `old`, which starts at `start`.
pub(crate) fn next_segments(old: &Layout, start: Position, change: &Change) -> Vec<Segment> {
    let mut segments = old.segments.clone();
    let active = segments.last().cloned();
    for segment in &mut segments {
        list(segment, &change.copied, active.as_ref());
        drop_units(segment, &change.gone);
    }
    if !change.joins.is_empty() {
        join(&mut segments, start, &change.joins);
    }
    refill(&mut segments, usize::from(old.redundancy.replicas));
    merge(segments)
}

/// Who has everything is a replica from now on: behind the others, or where the active chain has it, so that segments can
/// become one again. Who was listed before keeps its place among the others; so a new tail holds what is settled, only.
fn list(segment: &mut Segment, copied: &BTreeSet<UnitIndex>, active: Option<&Segment>) {
    let all = plants::active(Plant::ListedBeforeCopied);
    let ready = |joining: &Joining| all || copied.contains(&joining.unit);
    let alike = active.filter(|active| active.maps_like(segment));
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

/// From `start` on the chains have these units, too.
fn join(segments: &mut Vec<Segment>, start: Position, joins: &[(u16, UnitIndex)]) {
    // A segment that holds nothing yet is not closed first.
    if let Some(last) = segments.last().filter(|last| last.start < start) {
        let next = Segment::new(start, last.origin, last.chains.clone());
        segments.push(next);
    }
    let Some(last) = segments.last_mut() else {
        return;
    };
    for (chain, unit) in joins {
        if let Some(chain) = last.chains.get_mut(usize::from(*chain)) {
            chain.push(*unit);
        }
    }
}

/// Closed segments whose chains want more replicas are given units of the active one: those of the same chain, so that the
/// two can become one segment again, and others only where no chain is the same.
fn refill(segments: &mut [Segment], wanted: usize) {
    let Some((last, closed)) = segments.split_last_mut() else {
        return;
    };
    for segment in closed {
        let alike = segment.maps_like(last);
        for index in 0..segment.chains.len() {
            let candidates = if alike {
                last.chains.get(index..=index)
            } else {
                last.chains.get(..)
            };
            let candidates = candidates.into_iter().flatten().flatten();
            for unit in candidates {
                let chain = u16::try_from(index).unwrap_or(u16::MAX);
                let joining = segment.joining.iter().filter(|j| j.chain == chain).count();
                if segment.chains[index].len() + joining >= wanted {
                    break;
                }
                let busy = segment.joining.iter().any(|j| j.unit == *unit);
                if !busy && !segment.lists(*unit) {
                    let unit = *unit;
                    segment.joining.push(Joining { chain, unit });
                }
            }
        }
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
/// replica, and wins none but those that were joining it.
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use milonga_protocol::Epoch;
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

    proptest! {
        /// Whoever is listed for a position has it, whatever happens: a model keeps, for each position, who is complete.
        #[test]
        fn nobody_is_listed_who_is_not_complete(
            steps in prop::collection::vec((0_u64..6, any::<[bool; 5]>(), any::<[bool; 5]>(), any::<bool>()), 1..30),
        ) {
            let mut layout = first();
            let mut complete: BTreeMap<u64, BTreeSet<UnitIndex>> = BTreeMap::new();
            for (grown, gone, copied, joins) in steps {
                let pick = |of: BTreeSet<UnitIndex>, which: [bool; 5]| -> BTreeSet<UnitIndex> {
                    of.into_iter().filter(|u| which[usize::from(u.0)]).collect()
                };
                let mut gone = pick(layout.members(), gone);
                if !can_do_without(&layout, &gone) {
                    gone.clear();
                }
                let joining = layout.segments.iter().flat_map(|s| &s.joining).map(|j| j.unit);
                let copied = pick(joining.collect(), copied);
                let members = layout.members();
                let mut free = (0..5).map(UnitIndex).filter(|u| !members.contains(u));
                let places = vacancies(&layout).filter(|_| joins);
                let joins: Vec<_> = places.filter_map(|(chain, _)| Some((chain, free.next()?))).collect();
                // Positions written in this epoch are on all of their chain.
                let start = layout.start.0 + grown;
                for position in layout.start.0..start {
                    let chain = layout.chain(Position(position)).iter().copied();
                    complete.insert(position, chain.collect());
                }
                for (position, holders) in &mut complete {
                    let segment = &layout.segments[layout.segment_of(Position(*position))];
                    let chain = segment.chain_of(Position(*position));
                    let given = segment.joining.iter().filter(|j| usize::from(j.chain) == chain);
                    holders.extend(given.map(|j| j.unit).filter(|u| copied.contains(u)));
                    holders.retain(|unit| !gone.contains(unit));
                }
                let change = Change { gone, copied, joins };
                layout = next(&layout, start, &change);
                layout.starts = vec![(layout.epoch, layout.start)];
                for (position, holders) in &complete {
                    let chain = layout.chain(Position(*position));
                    prop_assert!(chain.iter().all(|unit| holders.contains(unit)), "position {}", position);
                }
                prop_assert!(layout.segments.len() <= 8, "{} segments", layout.segments.len());
                prop_assert!(layout.epoch > Epoch(1));
            }
        }
    }
}
