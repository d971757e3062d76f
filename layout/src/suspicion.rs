//! Who is taken for gone: the sequencer, if there is another process that can take its place, and units, if their chains
//! keep enough replicas.
//!
//! Being wrong is harmless. Units serve the new epoch only, so tokens of the old sequencer are refused; the next one waits
//! for the old one's lease, and a tail answer without a lease is confirmed by units, which no longer do (rules 20 and 21).
//! A unit that missed an epoch forgets what was decided without it before it comes back (rule 10). It costs a
//! reconfiguration, and copying.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use milonga_protocol::messages::Hello;
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Epoch, ServerName, Time, UnitId, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::phase::Phase;
use crate::planner;
use crate::words::unnamed;

/// A server that says hello ten times a second and was silent for so long is taken for gone.
const SILENT: Duration = Duration::from_millis(500);
/// Who was never heard since this process began is waited for so long: everything may just be starting.
const ABSENT: Duration = Duration::from_secs(3);
/// A unit that says hello and does not do what it is asked for so long is taken for gone.
pub(crate) const ANSWERS_WITHIN: Duration = Duration::from_millis(1_500);
/// It is asked again after this long.
const UNRESPONSIVE_FOR: Duration = Duration::from_secs(5);

/// So many suspicions cost nothing; with each further one that is not older than this, patience doubles. A layout server
/// with a slow link would else seal everything again and again, and never come to an end.
const QUICK_SUSPICIONS: usize = 6;
const REMEMBERED_FOR: Duration = Duration::from_secs(30);
const MOST_DOUBLINGS: u32 = 3;

/// How long silence is borne.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// When somebody was suspected lately; bounded, because it doubles the time between two.
    suspicions: VecDeque<Time>,
    /// Who was taken for gone by silence, and when: that patience has grown since does not bring anybody back.
    silent: BTreeMap<ServerName, Time>,
}

impl Patience {
    fn suspected(&mut self, now: Time, silent: impl IntoIterator<Item = ServerName>) {
        let silent = silent.into_iter().map(|name| (name, now));
        self.silent.extend(silent);
        self.suspicions.push_back(now);
        let old = |at: &Time| now.since(*at) > REMEMBERED_FOR;
        while self.suspicions.front().is_some_and(old) {
            self.suspicions.pop_front();
        }
    }

    fn silent(&self, now: Time) -> Duration {
        let lately = self.suspicions.iter();
        let lately = lately
            .filter(|at| now.since(**at) <= REMEMBERED_FOR)
            .count();
        let doublings = (lately + 1).saturating_sub(QUICK_SUSPICIONS);
        let doublings = u32::try_from(doublings).unwrap_or(MOST_DOUBLINGS);
        SILENT * 2_u32.pow(doublings.min(MOST_DOUBLINGS))
    }
}

impl LayoutCore {
    /// When the silence of `name`, which began then, is enough to take it for gone.
    fn silence_ends(&self, name: &ServerName, since: Time) -> Time {
        let taken = self.patience.silent.get(name).copied();
        let taken = taken.filter(|at| since <= *at);
        taken.unwrap_or_else(|| since.after(self.patience.silent(self.now)))
    }

    /// Whether `name` said hello lately and did not do what it was asked for.
    fn is_unresponsive(&self, name: &ServerName) -> bool {
        self.unresponsive.get(name).is_some_and(|t| *t > self.now)
    }

    /// It is taken for gone for a while.
    pub(crate) fn does_not_answer(&mut self, name: ServerName) {
        let until = self.now.after(UNRESPONSIVE_FOR);
        self.unresponsive.insert(name, until);
    }

    /// Whether `name` can be the sequencer, and was heard lately.
    pub(crate) fn can_sequence(&self, name: &ServerName) -> bool {
        let hello = self.heard.fresh(self.now, name);
        hello.is_some_and(|hello| hello.sequencer)
            && self.gone_at(name) > self.now
            && !self.is_unresponsive(name)
    }

    /// When `name` is taken for gone, if nothing more is heard of it.
    fn gone_at(&self, name: &ServerName) -> Time {
        let since = self.heard.silent_since(name);
        self.silence_ends(name, since.unwrap_or(self.started))
    }

    /// Other processes that can be the sequencer now.
    fn other_sequencers(&self) -> impl Iterator<Item = &ServerName> {
        let others = self.plan.sequencers();
        others.filter(|name| **name != self.sequencer && self.can_sequence(name))
    }

    /// The best of them. One that is restless counts only when the present one is gone; a slow one is better than that.
    pub(crate) fn other_sequencer(&self) -> Option<&ServerName> {
        let needed = !self.can_sequence(&self.sequencer);
        let others = self.other_sequencers();
        let others = others.filter(|name| needed || !self.is_restless(name));
        others.min_by_key(|name| (self.is_restless(name), self.is_slow(name)))
    }

    /// The sequencer of the next epoch, and from when on that is settled: the present one while it is there, and when it
    /// is gone, another one. Without others it is waited for.
    pub(crate) fn next_sequencer(&self) -> Option<(&ServerName, Time)> {
        let present = &self.sequencer;
        let other = self.other_sequencer();
        // Whoever is another one while the present one is there is calm.
        let worse = self.is_outrun() || self.is_restless(present);
        if let Some(other) = other.filter(|_| worse || !self.can_sequence(present)) {
            let gone_at = if worse || self.is_unresponsive(present) {
                self.now
            } else {
                self.gone_at(present)
            };
            return Some((other, gone_at));
        }
        let hello = self.heard.fresh(self.now, present);
        let here = hello.is_some_and(|hello| hello.sequencer);
        here.then_some((present, Time::default()))
    }

    // ----------------------------------------------------------------------------------------------- units

    /// What speaks against the unit that said `hello`, its last one. That may be older than what its run has persisted since:
    /// where it hears but cannot be heard yet, or another leader heard it. So what it reports when it is sealed is looked at again.
    pub(crate) fn objection(&self, hello: &Hello) -> Option<String> {
        let name = &hello.name;
        let entered = self.entered.get(name) == Some(&hello.incarnation);
        let counts = !entered || plants::active(Plant::OldHelloCounts);
        let mut unit = hello.unit.filter(|_| counts)?;
        if !self.was_heard_since_the_start(name) {
            let opened = self.history.opened(unit.id).unwrap_or_default();
            unit.persisted = unit.persisted.max(opened);
        }
        let confirmed = self.confirmed.get(&unit.id);
        let before = confirmed.filter(|confirmed| self.heard.since(name) > Some(confirmed.at));
        let had = before.map_or(Epoch::NONE, |confirmed| confirmed.epoch);
        let less = || planner::has_less(name, had, unit.persisted);
        let objection = planner::objection(&self.history, name, &unit);
        objection.or_else(|| (unit.persisted < had).then(less))
    }

    /// Whether the last hello of `name` came to this leader, and not to the one before.
    pub(crate) fn was_heard_since_the_start(&self, name: &ServerName) -> bool {
        self.heard.at(name) >= Some(self.started)
    }

    /// The newest epoch that a unit is known to have persisted.
    pub(crate) fn surely_persisted(&self, unit: UnitId) -> Epoch {
        let opened = self.history.opened(unit).unwrap_or_default();
        let confirmed = self.confirmed.get(&unit);
        confirmed.map_or(opened, |confirmed| confirmed.epoch.max(opened))
    }

    /// Why the unit `name` cannot take part now, though it may say hello.
    pub(crate) fn trouble(&self, name: &ServerName) -> Option<String> {
        let hello = self.heard.last(name);
        let Some((hello, unit)) = hello.and_then(|hello| Some((hello, hello.unit?))) else {
            return Some("says nothing".into());
        };
        if let Some(objection) = self.objection(hello) {
            return Some(unnamed(name, &objection).to_owned());
        }
        if unit.poisoned {
            return Some("its disk failed; restart it, or replace the disk".into());
        }
        if self.is_unresponsive(name) {
            return Some("does not answer".into());
        }
        let silent = self.silent_unit_at(name) <= self.now;
        silent.then(|| "says nothing any more".into())
    }

    fn silent_unit_at(&self, name: &ServerName) -> Time {
        match self.heard.silent_since(name) {
            Some(since) => self.silence_ends(name, since),
            None => self.started.after(ABSENT),
        }
    }

    /// When the unit `name` is taken for gone, if nothing more is heard of it.
    fn unit_gone_at(&self, name: &ServerName) -> Time {
        match self.heard.since(name) {
            // Its next run would have us wait for as long again.
            Some(since) if self.is_to_blame(name) && self.trouble(name).is_some() => since,
            // An old hello of another run may have been overtaken.
            Some(since) if self.trouble(name).is_some() => since.after(SILENT),
            _ => self.silent_unit_at(name),
        }
    }

    /// Whether the unit `name` can take part in the next epoch.
    pub(crate) fn can_serve(&self, name: &ServerName) -> bool {
        self.trouble(name).is_none()
    }

    /// Members that cannot take part now.
    pub(crate) fn absent(&self) -> BTreeSet<UnitIndex> {
        let mut members = self.members();
        members.retain(|unit| !self.can_serve(self.unit_name(*unit)));
        members
    }

    /// Who makes the next epoch, and from when on that is settled: all members, without those that are gone if every
    /// chain can do without them. `None`: some chain would keep too few (rule 16).
    pub(crate) fn next_members(&self) -> Option<(BTreeSet<UnitIndex>, Time)> {
        let (members, absent) = (self.members(), self.absent());
        let Some(layout) = self.history.current() else {
            let all = absent.is_empty() && self.objections().is_empty();
            return all.then_some((members, Time::default()));
        };
        if !algebra::can_do_without(layout, &absent) {
            return None;
        }
        let gone_at = absent
            .iter()
            .map(|unit| self.unit_gone_at(self.unit_name(*unit)));
        let gone_at = gone_at.max().unwrap_or_default();
        let gone = self.with_leavers(absent);
        Some((members.difference(&gone).copied().collect(), gone_at))
    }

    /// Those that are gone, and those that start again and again, that an operator wants to leave or that are slow, as far as
    /// their chains can do without them now.
    pub(crate) fn with_leavers(&self, gone: BTreeSet<UnitIndex>) -> BTreeSet<UnitIndex> {
        let Some(layout) = self.history.current() else {
            return gone;
        };
        let mut gone = self.with_restless(layout, gone);
        let wanted = self.history.policy().leavers(layout);
        for unit in wanted.into_iter().chain(self.slow_leavers()) {
            let mut more = gone.clone();
            more.insert(unit);
            if algebra::can_do_without(layout, &more) {
                gone = more;
            }
        }
        gone
    }

    /// Which of these are not trusted, in words, and who stays all the same; not of units that are out, of which it is said why.
    pub(crate) fn why_not_trusted<'a>(
        &self,
        names: impl Iterator<Item = &'a ServerName>,
        why: impl Fn(&ServerName) -> Option<String>,
    ) -> Option<String> {
        let words = names.filter_map(|name| {
            let why = why(name)?;
            if self.member(name).is_some() || *name == self.sequencer {
                return Some(format!(
                    "{name} {why}; it stays: it cannot be done without now"
                ));
            }
            (!self.units.contains(name)).then(|| format!("{name} {why}"))
        });
        let words: Vec<_> = words.collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// Whether a reconfiguration that is not committed waits for a unit that is gone, while others, who came back since it
    /// began, could make the next epoch.
    pub(crate) fn can_do_with_others(&self) -> bool {
        let Some((members, waits, _)) = self.relied_on() else {
            return false;
        };
        let gone = |unit: &UnitIndex| !self.can_serve(self.unit_name(*unit));
        waits.iter().any(gone)
            && self
                .next_members()
                .is_some_and(|(others, at)| at <= self.now && others != members)
    }

    /// Whether the present phase relies on the server `name`.
    pub(crate) fn relies_on(&self, name: &ServerName) -> bool {
        let members = self.relied_on().map(|(members, ..)| members);
        let mut members = members.into_iter().flatten();
        let joins = match &self.phase {
            Phase::Collect(collecting) => &collecting.seen.joins[..],
            _ => &[],
        };
        *name == self.sequencer
            || members.any(|unit| self.unit_name(unit) == name)
            || joins.iter().any(|join| join.name == *name)
    }

    /// The units that the present phase relies on, and those of them that it waits for, since when.
    fn relied_on(&self) -> Option<(BTreeSet<UnitIndex>, BTreeSet<UnitIndex>, Time)> {
        let since = self.phase_since;
        Some(match &self.phase {
            // The units are asked once the sequencer has answered.
            Phase::Seal(sealing) if !sealing.sequencer => {
                (sealing.members.clone(), BTreeSet::new(), since)
            }
            Phase::Seal(sealing) => {
                let done = sealing.reports.keys().copied().collect();
                let waits = sealing.members.difference(&done).copied();
                (sealing.members.clone(), waits.collect(), since)
            }
            Phase::Collect(collecting) => {
                let members = collecting.seen.reports.keys().copied().collect();
                (members, collecting.cursors.keys().copied().collect(), since)
            }
            Phase::Open(opening) => {
                let members = self.members();
                let waits = members.difference(&opening.opened).copied().collect();
                (members, waits, since)
            }
            Phase::Settle(settling) => {
                let waits = settling.settle.waiting().map(|(unit, _)| unit);
                (self.members(), waits.collect(), settling.progress_at)
            }
            Phase::Report { left } => (self.members(), left.clone(), since),
            Phase::Idle | Phase::Resume => (self.members(), BTreeSet::new(), since),
            _ => return None,
        })
    }

    /// Whether the next epoch can be made without `more` of `members`. Who is left out and there, a restless or slow unit, may
    /// be needed after all.
    fn can_lose(&self, members: &BTreeSet<UnitIndex>, more: &BTreeSet<UnitIndex>) -> bool {
        let Some(layout) = self.history.current() else {
            return false;
        };
        let mut gone = self.absent();
        gone.retain(|unit| !members.contains(unit));
        gone.extend(more);
        algebra::can_do_without(layout, &gone)
    }

    /// When a unit that the present phase relies on is taken for gone.
    fn suspect_unit_at(&self) -> Option<Time> {
        let (members, waits, since) = self.relied_on()?;
        let gone_at = |unit: &UnitIndex| self.unit_gone_at(self.unit_name(*unit));
        let gone: BTreeSet<_> = members
            .iter()
            .copied()
            .filter(|u| gone_at(u) <= self.now)
            .collect();
        let times = members.iter().filter_map(|unit| {
            let mut lost = gone.clone();
            lost.insert(*unit);
            self.can_lose(&members, &lost).then(|| gone_at(unit))
        });
        let mut slow = gone.clone();
        slow.extend(&waits);
        let stuck = !waits.is_empty() && self.can_lose(&members, &slow);
        times
            .chain(stuck.then(|| since.after(ANSWERS_WITHIN)))
            .min()
    }

    /// Begins a reconfiguration without the units that are gone.
    fn suspect_units(&mut self) {
        let Some((members, waits, since)) = self.relied_on() else {
            return;
        };
        if since.after(ANSWERS_WITHIN) <= self.now {
            for unit in waits {
                self.does_not_answer(self.unit_name(unit).clone());
            }
        }
        let cause = members.iter().find_map(|unit| {
            let name = self.unit_name(*unit);
            self.trouble(name).map(|why| format!("{name} {why}"))
        });
        let silent = members.iter().map(|unit| self.unit_name(*unit));
        let silent = silent.filter(|name| self.silent_unit_at(name) <= self.now);
        let silent: Vec<_> = silent.cloned().collect();
        self.patience.suspected(self.now, silent);
        self.gather(cause.unwrap_or_else(|| "a unit is gone".into()));
    }

    // ------------------------------------------------------------------------------------------------- both

    /// When the sequencer at work is taken for gone.
    fn suspect_sequencer_at(&self) -> Option<Time> {
        let at_work = matches!(
            self.phase,
            Phase::Seal(_)
                | Phase::Collect(_)
                | Phase::Open(_)
                | Phase::Settle(_)
                | Phase::Report { .. }
                | Phase::Idle
                | Phase::Resume
        );
        if !at_work || self.other_sequencers().next().is_none() {
            return None;
        }
        let waits = match &self.phase {
            Phase::Seal(sealing) => !sealing.sequencer,
            Phase::Open(opening) => opening.page.is_some(),
            _ => false,
        };
        let stuck_at = self.phase_since.after(ANSWERS_WITHIN);
        let gone_at = self.gone_at(&self.sequencer);
        Some(if waits {
            gone_at.min(stuck_at)
        } else {
            gone_at
        })
    }

    /// When somebody that is at work is taken for gone.
    pub(crate) fn suspect_at(&self) -> Option<Time> {
        if !self.heard.is_listening(self.now) {
            return None;
        }
        let times = [self.suspect_sequencer_at(), self.suspect_unit_at()];
        times.into_iter().flatten().min()
    }

    /// Begins a reconfiguration if somebody is gone and can be done without.
    pub(crate) fn suspect(&mut self) {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= self.now);
        if !self.heard.is_listening(self.now) {
            // Silence says nothing.
        } else if due(self.suspect_sequencer_at()) {
            self.suspect_sequencer();
        } else if due(self.suspect_unit_at()) {
            self.suspect_units();
        }
    }

    fn suspect_sequencer(&mut self) {
        let name = self.sequencer.clone();
        let silent = self.gone_at(&name) <= self.now;
        self.patience
            .suspected(self.now, silent.then(|| name.clone()));
        let why = if silent {
            "says nothing any more"
        } else {
            self.does_not_answer(name.clone());
            "does not answer"
        };
        self.gather(format!("{name} {why}"));
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::messages::{CallId, Hello, LayoutRequest, Lease};
    use milonga_protocol::{ClusterId, Incarnation, Limits};

    use super::*;
    use crate::history::History;
    use crate::plan::ClusterPlan;

    const ONE: &str = "sequencer-1";
    const TWO: &str = "sequencer-2";

    fn ms(ms: u64) -> Time {
        Time::default().after(Duration::from_millis(ms))
    }

    fn core() -> LayoutCore {
        let units = vec![vec!["unit-1a".into()]];
        let plan = ClusterPlan::new(units, ONE.into(), Limits::default(), Lease::None);
        let plan = plan.with_spare_sequencers(vec![TWO.into()]);
        LayoutCore::start(plan, History::default(), ClusterId(1), ms(0)).expect("a good plan")
    }

    fn hello(core: &mut LayoutCore, at: u64, name: &str) {
        let hello = Hello {
            name: name.into(),
            address: name.to_owned(),
            incarnation: Incarnation(7),
            unit: None,
            sequencer: true,
        };
        core.handle(ms(at), CallId(at), LayoutRequest::Hello(hello));
    }

    /// Hellos of `names` from `from` to `to`, ten a second.
    fn beat(core: &mut LayoutCore, from: u64, to: u64, names: &[&str]) {
        for at in (from..=to).step_by(100) {
            names.iter().for_each(|name| hello(core, at, name));
        }
    }

    fn next(core: &LayoutCore) -> Option<(&str, Time)> {
        let next = core.next_sequencer();
        next.map(|(name, at)| (name.as_str(), at))
    }

    #[test]
    fn a_spare_takes_over_from_who_was_silent_for_half_a_second() {
        let mut core = core();
        beat(&mut core, 0, 1_000, &[ONE, TWO]);
        core.phase = Phase::Idle;
        assert_eq!(next(&core), Some((ONE, ms(0))));
        assert_eq!(core.suspect_at(), Some(ms(1_500)));
        beat(&mut core, 1_100, 1_400, &[TWO]);
        assert!(matches!(core.phase, Phase::Idle));
        beat(&mut core, 1_500, 1_500, &[TWO]);
        core.handle_time(ms(1_500));
        assert!(matches!(core.phase, Phase::Gather { .. }));
        assert_eq!(next(&core), Some((TWO, ms(1_500))));
        // Who comes back takes the epoch's place again only if nobody else has it yet.
        hello(&mut core, 1_600, ONE);
        assert_eq!(next(&core), Some((ONE, ms(0))));
        core.sequencer = TWO.into();
        assert_eq!(next(&core), Some((TWO, ms(0))));
    }

    #[test]
    fn without_a_spare_that_is_there_the_sequencer_is_waited_for() {
        let mut core = core();
        beat(&mut core, 0, 500, &[ONE]);
        core.phase = Phase::Idle;
        assert_eq!(core.suspect_at(), None, "the other one never said hello");
        core.handle_time(ms(700));
        core.handle_time(ms(900));
        core.handle_time(ms(1_100));
        assert!(matches!(core.phase, Phase::Idle));
    }

    #[test]
    fn a_layout_server_that_was_paused_blames_nobody() {
        let mut core = core();
        beat(&mut core, 0, 1_000, &[ONE, TWO]);
        core.phase = Phase::Idle;
        // It slept; the spare's hello happens to be read first.
        hello(&mut core, 9_000, TWO);
        core.handle_time(ms(9_000));
        assert!(matches!(core.phase, Phase::Idle));
        hello(&mut core, 9_001, ONE);
        core.handle_time(ms(9_100));
        assert!(matches!(core.phase, Phase::Idle));
    }

    #[test]
    fn patience_grows_with_suspicions_and_brings_nobody_back() {
        let mut core = core();
        let (mut at, mut waits) = (0, Vec::new());
        for round in 0..9 {
            let (dead, alive) = if round % 2 == 0 {
                (ONE, TWO)
            } else {
                (TWO, ONE)
            };
            core.sequencer = dead.into();
            core.phase = Phase::Idle;
            beat(&mut core, at + 100, at + 1_000, &[ONE, TWO]);
            at += 1_000;
            let began = at;
            while matches!(core.phase, Phase::Idle) {
                at += 100;
                beat(&mut core, at, at, &[alive]);
                core.handle_time(ms(at));
            }
            waits.push(at - began);
            assert_eq!(next(&core), Some((alive, ms(at))), "round {round}");
        }
        assert_eq!(waits[..6], [500; 6]);
        assert_eq!(waits[6..], [1_000, 2_000, 4_000]);
    }

    #[test]
    fn a_new_cluster_does_not_wait_for_a_sequencer_that_never_comes() {
        let mut core = core();
        hello(&mut core, 100, TWO);
        assert_eq!(next(&core), Some((TWO, ms(500))));
    }
}
