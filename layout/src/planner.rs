//! From what is known to the next layout, or to the reason why there can be none. Pure.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::layout::{Redundancy, SequencerRef};
use milonga_protocol::messages::{SealReport, UnitHello};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{
    ClusterId, Epoch, Layout, Position, Segment, ServerName, UnitId, UnitIndex, UnitRef,
};

use crate::algebra::{self, Change};
use crate::history::History;
use crate::plan::ClusterPlan;
use crate::policy;

/// Why a unit may not take part, with the way out; `None` if it may (rules 10, 15, 28).
pub(crate) fn objection(history: &History, name: &ServerName, unit: &UnitHello) -> Option<String> {
    let Some(layout) = history.current() else {
        return at_genesis(name, unit);
    };
    let listed = layout.units.iter().find(|listed| listed.name == *name);
    let Some(listed) = listed else {
        return new_unit(layout, name, unit);
    };
    if unit.id != listed.id && may_be_new(history, layout, name, unit) {
        return new_unit(layout, name, unit);
    }
    if unit.id != listed.id && unit.empty {
        return Some(format!(
            "{name} came with an empty directory, but this cluster keeps data on it (unit {}); give it back its directory, or, if that is lost and its chain goes on without it, `milonga cluster add-unit {name}`",
            listed.id
        ));
    }
    if unit.id != listed.id {
        return Some(format!(
            "{name} came with the directory of unit {}, but the layout lists unit {} under this name; exchange the directories",
            unit.id, listed.id
        ));
    }
    if let Some(other) = unit.cluster.filter(|cluster| *cluster != layout.cluster) {
        return Some(format!(
            "{name} belongs to cluster {other}, not to {}; check its directory and the addresses",
            layout.cluster
        ));
    }
    lost_past(history, name, unit)
}

/// Whether an operator has added `name` with another directory than the one that was listed under that name, and that one
/// is in no chain any more.
fn may_be_new(history: &History, layout: &Layout, name: &ServerName, unit: &UnitHello) -> bool {
    let added = history.policy().added.get(name);
    added.is_some_and(|added| added.id == unit.id) && policy::member(layout, name).is_none()
}

/// A spare that no layout has named yet.
fn new_unit(layout: &Layout, name: &ServerName, unit: &UnitHello) -> Option<String> {
    if let Some(other) = layout.units.iter().find(|other| other.id == unit.id) {
        return Some(format!(
            "{name} came with the directory of {}; give it back, and start {name} with an empty one",
            other.name
        ));
    }
    let own = Some(layout.cluster);
    let foreign = unit.cluster != own && (!unit.empty || unit.cluster.is_some());
    foreign
        .then(|| format!("{name} holds data of another cluster; start it with an empty directory"))
}

/// That a unit confirmed epoch `had` and comes back with `has`.
pub(crate) fn has_less(name: &ServerName, had: Epoch, has: Epoch) -> String {
    format!(
        "{name} has lost its past: it confirmed epoch {had} and comes back with epoch {has} (a restored backup?); give it back its newest directory, or, if that is lost and its chain goes on without it, start it with an empty one and `milonga cluster add-unit {name}`"
    )
}

fn at_genesis(name: &ServerName, unit: &UnitHello) -> Option<String> {
    if unit.empty && unit.cluster.is_none() {
        return None;
    }
    let whose = match unit.cluster {
        Some(cluster) => format!("data of cluster {cluster}"),
        None => "data".to_owned(),
    };
    Some(format!(
        "{name} holds {whose}, but the history of layouts is empty; restore the history (the layout server's directory), or start {name} with an empty directory to make a new cluster"
    ))
}

/// Rule 28, and its mirror image: a history that has lost its own.
fn lost_past(history: &History, name: &ServerName, unit: &UnitHello) -> Option<String> {
    let opened = history.opened(unit.id).unwrap_or_default();
    if unit.persisted < opened {
        return Some(has_less(name, opened, unit.persisted));
    }
    let known = history.epoch();
    if unit.persisted > known {
        return Some(format!(
            "{name} has served epoch {}, but the history ends with epoch {known} (a restored backup?); give the layout server back its newest directory",
            unit.persisted
        ));
    }
    None
}

/// Two names may not stand for one directory.
pub(crate) fn twins<'a>(units: impl Iterator<Item = (&'a ServerName, UnitId)>) -> Option<String> {
    let mut seen = BTreeMap::new();
    for (name, id) in units {
        if let Some(other) = seen.insert(id, name) {
            return Some(format!(
                "{other} and {name} have the same identity {id}: one directory was copied from the other; empty the copy"
            ));
        }
    }
    None
}

/// What the next layout is made from, besides the history.
#[derive(Debug)]
pub(crate) struct Observations {
    /// For genesis: the id the cluster gets.
    pub(crate) fresh: ClusterId,
    /// For genesis: identities of all units, in the order of [`ClusterPlan::unit_names`].
    pub(crate) units: Vec<UnitId>,
    /// What the members that go on reported when sealed. Whoever is missing here is gone.
    pub(crate) reports: BTreeMap<UnitIndex, SealReport>,
    /// Units that enter a chain.
    pub(crate) joins: Vec<Join>,
    /// Members that hold everything of what they are joining.
    pub(crate) copied: BTreeSet<UnitIndex>,
    /// The sequencer's run.
    pub(crate) sequencer: SequencerRef,
}

/// A unit that has forgotten what it does not surely know, and may enter a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) name: ServerName,
    pub(crate) id: UnitId,
    pub(crate) chain: u16,
}

impl Observations {
    /// First position above everything that anybody holds or may have held.
    pub(crate) fn high(&self) -> Position {
        let asked = if plants::active(Plant::StartFromOneUnit) {
            1
        } else {
            self.reports.len()
        };
        let reports = self.reports.values().take(asked);
        let high = reports.map(|r| r.high.max(r.marks.trimmed).max(r.lost));
        high.max().unwrap_or_default()
    }

    /// Everything below was trimmed on some replica.
    pub(crate) fn trimmed(&self) -> Position {
        let trimmed = self.reports.values().map(|r| r.marks.trimmed);
        trimmed.max().unwrap_or_default()
    }

    /// End of what some replica lost with its streams, if that was not trimmed; 0 if there is nothing.
    pub(crate) fn lost(&self) -> Position {
        let lost = self.reports.values().map(|r| r.lost).max();
        let lost = lost.unwrap_or_default();
        if lost > self.trimmed() {
            lost
        } else {
            Position::ZERO
        }
    }

    /// Everything below is decided on every unit: settling begins there.
    pub(crate) fn settled(&self) -> Position {
        let settled = self.reports.values().map(|r| r.marks.settled);
        if plants::active(Plant::SettlesFromHighestMark) {
            return settled.max().unwrap_or_default();
        }
        settled.min().unwrap_or_default().max(self.trimmed())
    }
}

/// The layout of `epoch`: the same chains without those that are gone and with those that join, and a new start. `start`
/// is not below any position that any sealed unit holds, nor below the last start, so nothing that was written is granted
/// again (rule 16).
pub(crate) fn next_layout(
    plan: &ClusterPlan,
    history: &History,
    epoch: Epoch,
    seen: &Observations,
) -> Layout {
    let Some(old) = history.current() else {
        return genesis(plan, history, epoch, seen);
    };
    let start = old.start.max(seen.high());
    let stays = |unit: &UnitIndex| seen.reports.contains_key(unit);
    let gone = old.members().into_iter().filter(|unit| !stays(unit));
    let (units, joins) = with_joining(old, &seen.joins);
    let change = Change {
        gone: gone.collect(),
        copied: seen.copied.clone(),
        joins,
        replaces: replaces(history, &units, seen),
    };
    Layout {
        epoch,
        start,
        starts: history.starts_with(epoch, start),
        segments: algebra::next_segments(old, start, &change),
        units,
        sequencer: seen.sequencer.clone(),
        ..old.clone()
    }
}

/// Who takes whose place, of those that take part in the next epoch.
fn replaces(
    history: &History,
    units: &[UnitRef],
    seen: &Observations,
) -> Vec<(UnitIndex, UnitIndex)> {
    let index = |name: &ServerName| {
        let at = units.iter().position(|unit| unit.name == *name)?;
        let index = u16::try_from(at).map(UnitIndex).ok()?;
        let joins = seen.joins.iter().any(|join| join.name == *name);
        (joins || seen.reports.contains_key(&index)).then_some(index)
    };
    let retired = history.policy().retired.iter();
    let pairs = retired.filter_map(|(old, new)| Some((index(old)?, index(new.as_ref()?)?)));
    pairs.collect()
}

/// The list of units with those that join, and where each of them enters.
fn with_joining(old: &Layout, joins: &[Join]) -> (Vec<UnitRef>, Vec<(u16, UnitIndex)>) {
    let mut units = old.units.clone();
    let mut places = Vec::new();
    for join in joins {
        let known = units.iter().position(|unit| unit.name == join.name);
        let at = known.unwrap_or(units.len());
        let Ok(index) = u16::try_from(at).map(UnitIndex) else {
            continue;
        };
        let unit = UnitRef {
            name: join.name.clone(),
            id: join.id,
        };
        match units.get_mut(at) {
            Some(place) => *place = unit,
            None => units.push(unit),
        }
        places.push((join.chain, index));
    }
    (units, places)
}

fn genesis(plan: &ClusterPlan, history: &History, epoch: Epoch, seen: &Observations) -> Layout {
    let units = plan.unit_names().zip(&seen.units);
    let unit = |(name, id): (&ServerName, &UnitId)| UnitRef {
        name: name.clone(),
        id: *id,
    };
    Layout {
        cluster: seen.fresh,
        epoch,
        start: Position::ZERO,
        starts: history.starts_with(epoch, Position::ZERO),
        segments: vec![Segment::new(Position::ZERO, Position::ZERO, plan.chains())],
        units: units.map(unit).collect(),
        redundancy: Redundancy {
            replicas: plan.replicas(),
            min_replicas: plan.min_replicas.max(1),
        },
        sequencer: seen.sequencer.clone(),
        limits: plan.limits,
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::messages::{Lease, Marks};
    use milonga_protocol::{Incarnation, Limits};
    use proptest::prelude::*;

    use super::*;
    use crate::history::StoreChange;

    fn plan(chains: usize, replicas: usize) -> ClusterPlan {
        let name = |c, r| format!("unit-{c}{r}").as_str().into();
        let chain = |c| (0..replicas).map(|r| name(c, r)).collect();
        ClusterPlan::new(
            (0..chains).map(chain).collect(),
            "sequencer-1".into(),
            Limits::default(),
            Lease::None,
        )
    }

    fn seen(units: usize, reports: &[(u64, u64)], run: u128) -> Observations {
        let report = |(high, trimmed): &(u64, u64)| SealReport {
            high: Position(*high),
            marks: Marks {
                settled: Position(0),
                trimmed: Position(*trimmed),
            },
            ..SealReport::default()
        };
        Observations {
            fresh: ClusterId(9),
            units: (0..units as u128).map(UnitId).collect(),
            reports: (0..)
                .map(UnitIndex)
                .zip(reports.iter().map(report))
                .collect(),
            joins: Vec::new(),
            copied: BTreeSet::new(),
            sequencer: SequencerRef {
                name: "sequencer-1".into(),
                incarnation: Incarnation(run),
            },
        }
    }

    proptest! {
        #[test]
        fn every_planned_layout_continues_its_history(
            chains in 1_usize..4, replicas in 1_usize..4,
            highs in prop::collection::vec(prop::collection::vec((0_u64..100, 0_u64..50), 12), 1..10),
        ) {
            let plan = plan(chains, replicas);
            let mut history = History::default();
            for (run, reports) in highs.iter().enumerate() {
                let genesis = run == 0;
                let empty = vec![(0, 0); 12];
                let reports = if genesis { &empty } else { reports };
                let seen = seen(chains * replicas, &reports[..chains * replicas], run as u128);
                let epoch = history.next_epoch();
                let layout = next_layout(&plan, &history, epoch, &seen);
                let parent = history.epoch();
                prop_assert!(seen.reports.values().all(|r| r.high <= layout.start));
                history.apply(&StoreChange::Intent { epoch }).unwrap();
                history.apply(&StoreChange::Commit { parent, layout: layout.clone(), origin: None }).unwrap();
                prop_assert_eq!(layout.segments.len(), 1);
                prop_assert_eq!(plan.check(Some(&layout), history.policy()), Ok(()));
            }
        }
    }

    fn hello() -> UnitHello {
        UnitHello {
            id: UnitId(1),
            cluster: Some(ClusterId(77)),
            persisted: Epoch(2),
            serving: Epoch(0),
            empty: false,
            poisoned: false,
            damaged: false,
            disk_micros: None,
        }
    }

    fn history() -> History {
        let mut history = History::default();
        for (epoch, start) in [(1, 0), (2, 7)] {
            let parent = history.epoch();
            let layout = crate::samples::layout(epoch, start, &history);
            let epoch = layout.epoch;
            history.apply(&StoreChange::Intent { epoch }).unwrap();
            history
                .apply(&StoreChange::Commit {
                    parent,
                    layout,
                    origin: None,
                })
                .unwrap();
        }
        let opened = StoreChange::Opened {
            epoch: Epoch(2),
            units: vec![UnitId(1)],
        };
        history.apply(&opened).unwrap();
        history
    }

    /// The hello, changed, is objected to in these words.
    fn objected(history: &History, change: impl FnOnce(&mut UnitHello), words: &[&str]) {
        let mut unit = hello();
        change(&mut unit);
        let why = objection(history, &"unit-1a".into(), &unit).expect("objected");
        for word in words.iter().chain(&["unit-1a"]) {
            assert!(why.contains(word), "{word:?} is missing in: {why}");
        }
    }

    #[test]
    fn who_may_not_take_part_is_told_why() {
        let history = history();
        assert_eq!(objection(&history, &"unit-1a".into(), &hello()), None);
        objected(
            &history,
            |unit| (unit.id, unit.empty) = (UnitId(9), true),
            &["empty directory", "give it back"],
        );
        objected(
            &history,
            |unit| unit.id = UnitId(2),
            &["directory of unit", "exchange"],
        );
        objected(
            &history,
            |unit| unit.cluster = Some(ClusterId(3)),
            &["belongs to cluster", "check its directory"],
        );
        objected(
            &history,
            |unit| unit.persisted = Epoch(1),
            &["lost its past", "epoch 2", "newest directory"],
        );
        objected(
            &history,
            |unit| unit.persisted = Epoch(3),
            &["history ends with epoch 2", "layout server"],
        );
        // The directory knows its unit before it knows its cluster.
        let mut young = hello();
        (young.cluster, young.empty) = (None, true);
        assert_eq!(objection(&history, &"unit-1a".into(), &young), None);
    }

    #[test]
    fn genesis_wants_empty_directories() {
        let history = History::default();
        let mut empty = hello();
        (empty.cluster, empty.empty, empty.persisted) = (None, true, Epoch::NONE);
        assert_eq!(objection(&history, &"unit-1a".into(), &empty), None);
        objected(
            &history,
            |_| (),
            &["data of cluster", "restore the history"],
        );
        objected(
            &history,
            |unit| unit.cluster = None,
            &["holds data", "empty directory"],
        );
    }

    #[test]
    fn copied_directories_are_noticed() {
        let (a, b) = (ServerName::new("a"), ServerName::new("b"));
        let units = [(&a, UnitId(1)), (&b, UnitId(1))];
        let why = twins(units.into_iter()).expect("twins");
        assert!(why.contains("a and b have the same identity"));
        let units = [(&a, UnitId(1)), (&b, UnitId(2))];
        assert_eq!(twins(units.into_iter()), None);
    }
}
