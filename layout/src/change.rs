//! What operators ask for: whether it can be, what is to be decided for it, and how far it is.
//!
//! A wish is granted by one durable decision ([`Policy`]); everything after that is what the layout does anyway: it takes
//! in who is expected, copies, and goes on without who is to leave. So it does not matter which leader goes on, and asking
//! again is the way to watch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use milonga_protocol::change::{ChangeReport, ChangeStage, ClusterChange};
use milonga_protocol::limits::UNITS_PER_NEW_CHAIN;
use milonga_protocol::messages::{CallId, Hello, LayoutResponse, Refusal, UnitHello};
use milonga_protocol::{ClusterId, Layout, ServerName, Time, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::history::StoreChange;
use crate::plan;
use crate::planner;
use crate::policy::{self, Added, MOST_CHAINS, MOST_UNITS, Policy};
use crate::words::list;

/// Most unknown units that are remembered.
const MOST_STRANGERS: usize = 64;
/// One that has not said hello for so long is forgotten.
const STRANGERS_FOR: Duration = Duration::from_secs(3);
/// What to do about a directory that was used.
const EMPTY_ONE: &str = "start it with an empty one (`data` in its configuration)";

/// Who said hello and belongs to nothing, or not any more: an operator may add those that are units.
#[derive(Debug, Default)]
pub(crate) struct Strangers(BTreeMap<ServerName, (Time, Hello)>);

impl Strangers {
    pub(crate) fn hear(&mut self, now: Time, hello: Hello) {
        self.0.retain(|_, (at, _)| now.since(*at) < STRANGERS_FOR);
        if self.0.len() < MOST_STRANGERS || self.0.contains_key(&hello.name) {
            self.0.insert(hello.name.clone(), (now, hello));
        }
    }

    fn last(&self, now: Time, name: &ServerName) -> Option<&Hello> {
        let (at, hello) = self.0.get(name)?;
        (now.since(*at) < STRANGERS_FOR).then_some(hello)
    }
}

/// What a wish comes to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is so.
    Done,
    /// It was decided, and is going on.
    UnderWay,
    /// This is to be decided for it.
    Decide(Policy),
    /// The next epoch is to name it.
    Sequencer(ServerName),
}

type Judged = Result<Verdict, String>;

impl LayoutCore {
    /// Takes an operator's wish.
    pub(crate) fn change(&mut self, call: CallId, change: &ClusterChange, dry_run: bool) {
        let Some(layout) = self.published().filter(|_| self.is_published()).cloned() else {
            let what = format!("a reconfiguration is under way: {}", self.why());
            return self.refuse(call, Refusal::Busy { what });
        };
        let verdict = match self.judge(&layout, change) {
            Ok(verdict) => verdict,
            Err(why) => return self.refuse(call, Refusal::Declined { why }),
        };
        let stage = match &verdict {
            Verdict::Done => ChangeStage::Done,
            Verdict::Decide(_) | Verdict::Sequencer(_) if dry_run => ChangeStage::Planned,
            _ => ChangeStage::UnderWay,
        };
        let report = LayoutResponse::Change(self.report(&layout, change, stage));
        match verdict {
            Verdict::Decide(policy) if !dry_run => {
                if !self.is_quiet() {
                    let what = "another decision is being recorded".to_owned();
                    return self.refuse(call, Refusal::Busy { what });
                }
                self.store_for(Some((call, report)), StoreChange::Policy { policy });
            }
            Verdict::Sequencer(name) if !dry_run => {
                self.reply(call, report);
                let cause = format!("{name} is to be the sequencer");
                self.sequencer = name;
                self.gather(cause);
            }
            _ => self.reply(call, report),
        }
    }

    /// Decisions are durable: whoever is expected is heard from now on.
    pub(crate) fn policy_stored(&mut self) {
        let added = self.history.policy().added.keys();
        let known = added.filter_map(|name| self.strangers.last(self.now, name));
        for hello in known.cloned().collect::<Vec<_>>() {
            self.hear(hello);
        }
        if self.is_idle() {
            self.care();
        }
    }

    fn judge(&self, layout: &Layout, change: &ClusterChange) -> Judged {
        match change {
            ClusterChange::MoveSequencer { to } => self.judge_sequencer(layout, to),
            ClusterChange::AddUnit { name, chain } => self.judge_add(layout, name, *chain),
            ClusterChange::RemoveUnit { name } => self.judge_remove(layout, name),
            ClusterChange::ReplaceUnit { old, new } => self.judge_replace(layout, old, new),
            ClusterChange::AddChain { units } => self.judge_chain(layout, units),
        }
    }

    /// What is decided and not done yet, for people.
    pub(crate) fn decided(&self) -> Option<String> {
        let layout = self.history.current()?;
        let retired = &self.history.policy().retired;
        let members = layout.members().into_iter();
        let members = members.map(|unit| &layout.unit(unit).name);
        let leave = members.filter_map(|name| {
            Some(match retired.get(name)? {
                Some(heir) => format!("{name} leaves once {heir} has everything"),
                None => format!("{name} leaves"),
            })
        });
        let chain = self.next_chain().map(list);
        let comes =
            chain.map(|chain| format!("a chain of {chain} comes once all of them are there"));
        let words: Vec<_> = leave.chain(comes).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    // ------------------------------------------------------------------------------------------ sequencer

    fn judge_sequencer(&self, layout: &Layout, to: &ServerName) -> Judged {
        if layout.sequencer.name == *to {
            return Ok(Verdict::Done);
        }
        if self.plan.sequencers().all(|name| name != to) {
            return Err(format!(
                "{to} is not configured as a sequencer; name it under spare_sequencers in the layout server's configuration"
            ));
        }
        if !self.can_sequence(to) {
            return Err(format!(
                "{to} has not said lately that it can be the sequencer; start it, and look at `milonga status`"
            ));
        }
        if let Some(why) = self.restless_words(to).or_else(|| self.slow_words(to)) {
            return Err(format!("{to} {why}; find out why, or wait"));
        }
        Ok(Verdict::Sequencer(to.clone()))
    }

    // ---------------------------------------------------------------------------------------------- units

    /// What was heard lately under that name, whether or not it belongs to something.
    fn heard_of(&self, name: &ServerName) -> Option<&Hello> {
        let stranger = self.strangers.last(self.now, name);
        stranger.or_else(|| self.heard.fresh(self.now, name))
    }

    /// Units that run, though an operator removed them.
    pub(crate) fn removed_and_running(&self) -> impl Iterator<Item = &ServerName> {
        let retired = self.history.policy().retired.keys();
        retired.filter(|name| {
            let hello = self.heard_of(name);
            self.was_removed(name) && hello.is_some_and(|hello| hello.unit.is_some())
        })
    }

    /// What a unit that is no member says of itself, if an operator may give it a place: it was heard lately, and its
    /// directory is its own or empty.
    fn newcomer(&self, name: &ServerName) -> Result<UnitHello, String> {
        let Some(hello) = self.heard_of(name) else {
            return Err(format!(
                "{name} has not said hello lately; start it with an empty directory and this layout server under layout_servers. If it runs, its log says why it is not heard: a directory of another cluster is refused"
            ));
        };
        let Some(unit) = hello.unit else {
            return Err(format!(
                "{name} runs, but is no log unit; name a process whose configuration has a [unit]"
            ));
        };
        if unit.poisoned {
            return Err(format!("the disk of {name} failed; replace it"));
        }
        // A spare that once had a place comes with what it had.
        if self.is_free(name, &unit) {
            return Ok(unit);
        }
        match self.used_directory(name, &unit) {
            Some(used) => Err(format!("{name} comes with {used}; {EMPTY_ONE}")),
            None => Ok(unit),
        }
    }

    /// The directory that the unit comes with, in words; `None` if it is as good as new.
    fn used_directory(&self, name: &ServerName, unit: &UnitHello) -> Option<String> {
        let foreign = |cluster: &ClusterId| Some(*cluster) != self.history.cluster();
        if let Some(cluster) = unit.cluster.filter(foreign) {
            return Some(format!("a directory of another cluster ({cluster})"));
        }
        let mut listed = self.history.current().into_iter().flat_map(|l| &l.units);
        match listed.find(|listed| listed.id == unit.id) {
            Some(other) if other.name != *name => Some(format!("the directory of {}", other.name)),
            Some(_) if !unit.empty => Some("its old directory, which is not empty".to_owned()),
            _ => (!unit.empty).then(|| format!("a directory that is not empty (unit {})", unit.id)),
        }
    }

    /// Whether the unit may take places already, with the directory it comes with.
    fn is_free(&self, name: &ServerName, unit: &UnitHello) -> bool {
        let policy = self.history.policy();
        let known = self.knows_unit(name) && !policy.retired.contains_key(name);
        let objection = planner::objection(&self.history, name, unit);
        known && self.member(name).is_none() && objection.is_none()
    }

    /// The policy, with a unit that may take places.
    fn with_added(&self, mut policy: Policy, name: &ServerName, home: Option<u16>) -> Judged {
        let id = self.newcomer(name)?.id;
        policy.retired.remove(name);
        policy.added.insert(name.clone(), Added { id, home });
        decide(policy)
    }

    fn judge_add(&self, layout: &Layout, name: &ServerName, chain: Option<u16>) -> Judged {
        let active = algebra::active_chains(layout);
        if let Some(chain) = chain.filter(|chain| usize::from(*chain) >= active.len()) {
            return Err(format!(
                "there is no chain {}; there are {}",
                u32::from(chain) + 1,
                active.len()
            ));
        }
        let policy = self.history.policy();
        if self.member(name).is_some() {
            return self.judge_add_member(layout, name, chain);
        }
        if self.is_reserved(name) {
            return Err(format!("{name} is about to take a place already"));
        }
        let unit = self.newcomer(name)?;
        let home = chain.or_else(|| self.home(name));
        if !self.is_free(name, &unit) || self.home(name) != home {
            return self.with_added(policy.clone(), name, home);
        }
        let wanted = home.is_some_and(|chain| vacant(layout, chain));
        Ok(if wanted {
            Verdict::UnderWay
        } else {
            Verdict::Done
        })
    }

    /// It takes part: perhaps its leaving is taken back.
    fn judge_add_member(&self, layout: &Layout, name: &ServerName, chain: Option<u16>) -> Judged {
        let at = policy::active_chain(layout, name);
        if let (Some(at), Some(chain)) = (at, chain)
            && at != chain
        {
            return Err(format!(
                "{name} is in chain {}; a unit cannot move to another chain",
                u32::from(at) + 1
            ));
        }
        let mut policy = self.history.policy().clone();
        if policy.retired.remove(name).is_some() {
            self.keep(&mut policy, layout, name);
            return decide(policy);
        }
        Ok(if is_joining(layout, name) {
            Verdict::UnderWay
        } else {
            Verdict::Done
        })
    }

    /// `name` stays in its chain after all: whom the configuration does not name stays added.
    fn keep(&self, policy: &mut Policy, layout: &Layout, name: &ServerName) {
        if self.plan.home(name).is_some() {
            return;
        }
        if let Some(unit) = policy::member(layout, name) {
            let added = Added {
                id: layout.unit(unit).id,
                home: policy::active_chain(layout, name),
            };
            policy.added.insert(name.clone(), added);
        }
    }

    fn judge_remove(&self, layout: &Layout, name: &ServerName) -> Judged {
        let mut policy = self.history.policy().clone();
        let member = self.member(name);
        if policy.retired.get(name) == Some(&None) {
            return Ok(member.map_or(Verdict::Done, |_| Verdict::UnderWay));
        }
        if !self.knows_unit(name) {
            return Err(format!("{name} is not a unit of this cluster"));
        }
        if let Some(unit) = member {
            let mut gone = self.with_leavers(self.absent());
            gone.insert(unit);
            self.can_spare(layout, name, &gone)?;
        }
        // A chain that was to come of it comes no more.
        if self.next_chain().is_some_and(|chain| chain.contains(name)) {
            policy.chains.pop();
        }
        // Whose place it was to take stays.
        let stays = |old: &ServerName, new: &Option<ServerName>| {
            new.as_ref() == Some(name) && self.member(old).is_some()
        };
        let staying = policy.retired.iter().filter(|(old, new)| stays(old, new));
        for old in staying.map(|(old, _)| old.clone()).collect::<Vec<_>>() {
            policy.retired.remove(&old);
            self.keep(&mut policy, layout, &old);
        }
        policy.added.remove(name);
        policy.retired.insert(name.clone(), None);
        decide(policy)
    }

    /// Whether each chain keeps enough replicas without those that are gone and `name`.
    fn can_spare(
        &self,
        layout: &Layout,
        name: &ServerName,
        gone: &BTreeSet<UnitIndex>,
    ) -> Result<(), String> {
        if algebra::can_do_without(layout, gone) {
            return Ok(());
        }
        let least = layout.redundancy.min_replicas.max(1);
        let chain = policy::active_chain(layout, name).map_or(0, |chain| u32::from(chain) + 1);
        Err(format!(
            "without {name} chain {chain} would keep fewer complete replicas than it must ({least}); `milonga cluster replace-unit {name} NEW` gives its place to another unit, `milonga cluster add-unit NEW --chain {chain}` gives the chain one that it lacks"
        ))
    }

    fn judge_replace(&self, layout: &Layout, old: &ServerName, new: &ServerName) -> Judged {
        let mut policy = self.history.policy().clone();
        if policy.retired.get(old) == Some(&Some(new.clone())) {
            let left = self.member(old).is_none();
            let there = self.member(new).is_some() && !is_joining(layout, new);
            return Ok(if left && there {
                Verdict::Done
            } else {
                Verdict::UnderWay
            });
        }
        if old == new {
            return Err("a unit cannot replace itself".into());
        }
        if policy.retired.contains_key(old) {
            return Err(format!(
                "{old} is leaving or has left; `milonga cluster add-unit {old}` takes that back while it is still in its chain"
            ));
        }
        let Some(chain) = policy::active_chain(layout, old) else {
            return Err(self.has_no_place(layout, old, new));
        };
        if let Some(at) = policy::active_chain(layout, new) {
            return Err(format!("{new} is in chain {} already", u32::from(at) + 1));
        }
        if self.is_reserved(new) {
            return Err(format!("{new} is about to take a place already"));
        }
        let mut successions = policy.retired.iter();
        let heir_of = successions.find(|(_, heir)| heir.as_ref() == Some(old));
        if let Some((other, _)) = heir_of.filter(|(other, _)| self.member(other).is_some()) {
            return Err(format!("{old} is only just taking the place of {other}"));
        }
        policy.added.remove(old);
        policy.retired.insert(old.clone(), Some(new.clone()));
        self.with_added(policy, new, Some(chain))
    }

    /// Why `new` cannot be given the place of `old`, which is in no chain, and what to do instead.
    fn has_no_place(&self, layout: &Layout, old: &ServerName, new: &ServerName) -> String {
        if !self.knows_unit(old) {
            return format!("{old} is not a unit of this cluster");
        }
        let mut lacking = algebra::vacancies(layout).map(|(chain, _)| chain);
        let Some(home) = self.home(old).or_else(|| lacking.next()) else {
            return format!(
                "{old} is in no chain, it is a spare; `milonga cluster add-unit {new}` adds another one, `milonga cluster remove-unit {old}` keeps {old} out"
            );
        };
        let chain = u32::from(home) + 1;
        if vacant(layout, home) {
            return format!(
                "{old} is in no chain now; `milonga cluster add-unit {new} --chain {chain}` gives chain {chain} what it lacks, then `milonga cluster remove-unit {old}` keeps {old} out"
            );
        }
        format!(
            "{old} is in no chain now, and chain {chain}, where it belongs, lacks nothing; `milonga cluster remove-unit {old}` keeps {old} out"
        )
    }

    // --------------------------------------------------------------------------------------------- chains

    fn judge_chain(&self, layout: &Layout, units: &[ServerName]) -> Judged {
        let mut policy = self.history.policy().clone();
        if policy.chains.iter().any(|chain| chain == units) {
            let comes = self.next_chain().is_some_and(|chain| chain == units);
            return Ok(if comes {
                Verdict::UnderWay
            } else {
                Verdict::Done
            });
        }
        if let Some(chain) = self.next_chain() {
            return Err(format!(
                "a chain of {} is only just being added; wait for it, or take one of its units back with `milonga cluster remove-unit`",
                list(chain)
            ));
        }
        let least = usize::from(layout.redundancy.min_replicas.max(1));
        if !(least..=UNITS_PER_NEW_CHAIN).contains(&units.len()) {
            return Err(format!(
                "a chain has {least} to {UNITS_PER_NEW_CHAIN} units, {} were named",
                units.len()
            ));
        }
        if policy.chains.len() >= MOST_CHAINS {
            return Err(format!(
                "{MOST_CHAINS} chains were added already, no more are possible"
            ));
        }
        if units.iter().collect::<BTreeSet<_>>().len() < units.len() {
            return Err("one unit is named twice".into());
        }
        let home = u16::try_from(algebra::active_chains(layout).len()).ok();
        for name in units {
            if let Some(at) = policy::active_chain(layout, name) {
                return Err(format!("{name} is in chain {} already", u32::from(at) + 1));
            }
            if self.is_reserved(name) || self.member(name).is_some() {
                return Err(format!("{name} is about to take a place already"));
            }
            let unit = self.newcomer(name)?;
            if !unit.empty {
                return Err(format!(
                    "{name} comes with its old directory, which is not empty; {EMPTY_ONE}"
                ));
            }
            policy.retired.remove(name);
            let id = unit.id;
            policy.added.insert(name.clone(), Added { id, home });
        }
        policy.chains.push(units.to_vec());
        decide(policy)
    }

    // -------------------------------------------------------------------------------------------- reports

    fn report(&self, layout: &Layout, change: &ClusterChange, stage: ChangeStage) -> ChangeReport {
        let mut report = ChangeReport {
            stage,
            epoch: layout.epoch,
            steps: Vec::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            sequencer: layout.sequencer.name.clone(),
            chains: plan::chains_of(layout),
            copying: self.copies(),
        };
        match change {
            _ if stage != ChangeStage::Done => self.foresee(layout, change, &mut report),
            // Else it would look as if nothing had come of the chain that was named.
            ClusterChange::AddUnit { name, chain } if self.member(name).is_none() => {
                report.steps.push(self.may_join(layout, name, *chain));
            }
            _ => {}
        }
        report
    }

    /// What is left to be done.
    fn foresee(&self, layout: &Layout, change: &ClusterChange, report: &mut ChangeReport) {
        let next = layout.epoch.next();
        match change {
            ClusterChange::MoveSequencer { to } => {
                let from = &layout.sequencer.name;
                let step = format!("epoch {next} names {to} as the sequencer instead of {from}");
                report.steps.push(step);
                report.sequencer = to.clone();
            }
            ClusterChange::AddUnit { name, chain } => {
                let home = chain.or_else(|| self.home(name));
                let wanted = home.filter(|chain| vacant(layout, *chain));
                match wanted.filter(|_| self.member(name).is_none()) {
                    Some(chain) => self.foresee_join(layout, name, chain, report),
                    None if is_joining(layout, name) => report.steps.push(is_being_given(name)),
                    None if self.member(name).is_some() => {
                        report.steps.push(format!("{name} keeps its place"));
                    }
                    None => report.steps.push(self.may_join(layout, name, *chain)),
                }
            }
            ClusterChange::RemoveUnit { name } => self.foresee_leave(layout, name, report),
            ClusterChange::ReplaceUnit { old, new } => {
                let chain = policy::active_chain(layout, old);
                if let Some(chain) = chain.filter(|_| self.member(new).is_none()) {
                    self.foresee_join(layout, new, chain, report);
                } else if is_joining(layout, new) {
                    report.steps.push(is_being_given(new));
                }
                self.foresee_leave(layout, old, report);
            }
            ClusterChange::AddChain { units } => {
                let count = report.chains.len() + 1;
                report.steps.push(format!(
                    "with epoch {next} everything that is appended from then on is spread over {count} chains, the last of {}; nothing is copied, older positions keep their chains",
                    list(units)
                ));
                report.joins = units.clone();
                report.chains.push(units.clone());
                foresee_reduced(layout, count - 1, report);
            }
        }
    }

    /// When a unit that may take a place, and is not promised one, takes one.
    fn may_join(&self, layout: &Layout, name: &ServerName, chain: Option<u16>) -> String {
        let later = self.plan.spare_after.as_secs();
        let Some(home) = chain.or_else(|| self.home(name)) else {
            return format!(
                "{name} is a spare: it takes a place that has been free in some chain for {later} s"
            );
        };
        let chain = u32::from(home) + 1;
        if vacant(layout, home) {
            return format!("{name} may take a place in chain {chain}, which lacks a replica");
        }
        format!(
            "chain {chain} lacks nothing now; {name} is a spare: it takes a place in chain {chain} as soon as one is free, and one in another chain that has been free for {later} s"
        )
    }

    fn foresee_join(
        &self,
        layout: &Layout,
        name: &ServerName,
        chain: u16,
        report: &mut ChangeReport,
    ) {
        let (next, number) = (layout.epoch.next(), u32::from(chain) + 1);
        report.steps.push(format!(
            "{name} joins chain {number} with epoch {next} and takes what is appended from then on"
        ));
        if let Some(why) = self.why_not_yet(name, chain) {
            report.steps.push(format!("that waits: {name} {why}"));
        }
        report.steps.push(format!(
            "{name} is given what chain {number} holds below the position where epoch {next} begins, and is a replica of that, too"
        ));
        report.joins.push(name.clone());
        if let Some(chain) = report.chains.get_mut(usize::from(chain)) {
            chain.push(name.clone());
        }
    }

    /// Why a unit that may take places already is not taken into the chain at once.
    fn why_not_yet(&self, name: &ServerName, chain: u16) -> Option<String> {
        let unit = self.heard_of(name).and_then(|hello| hello.unit);
        if !unit.is_some_and(|unit| self.is_free(name, &unit)) {
            return None;
        }
        let restless = || {
            self.restless_words(name)
                .filter(|_| !self.is_calm_enough(name, chain))
        };
        let why = self.trouble(name).or_else(|| self.slow_words(name));
        why.or_else(restless).or_else(|| self.penance_words(name))
    }

    fn foresee_leave(&self, layout: &Layout, name: &ServerName, report: &mut ChangeReport) {
        report.steps.push(if self.member(name).is_some() {
            format!("{name} leaves its chains, and is not taken in again")
        } else {
            format!("{name} is not taken in again")
        });
        report.leaves.push(name.clone());
        for index in 0..report.chains.len() {
            let before = report.chains[index].len();
            report.chains[index].retain(|unit| unit != name);
            if report.chains[index].len() < before {
                foresee_reduced(layout, index, report);
            }
        }
    }
}

/// Says so if a chain will have fewer replicas than are wanted.
fn foresee_reduced(layout: &Layout, chain: usize, report: &mut ChangeReport) {
    let (wanted, number) = (usize::from(layout.redundancy.replicas), chain + 1);
    let have = report.chains.get(chain).map_or(0, Vec::len);
    if have < wanted {
        report.steps.push(format!(
            "chain {number} has {have} of {wanted} replicas then, until a spare takes a place"
        ));
    }
}

/// A policy within its bounds.
fn decide(policy: Policy) -> Judged {
    match policy.check() {
        Ok(()) => Ok(Verdict::Decide(policy)),
        Err(why) => Err(format!(
            "{why} (at most {MOST_UNITS} units, {MOST_CHAINS} chains)"
        )),
    }
}

fn is_being_given(name: &ServerName) -> String {
    format!("{name} is being given what its chain holds")
}

/// Whether the chain lacks a replica.
fn vacant(layout: &Layout, chain: u16) -> bool {
    algebra::vacancies(layout).any(|(vacant, _)| vacant == chain)
}

/// Whether there is something that the member is still being given.
fn is_joining(layout: &Layout, name: &ServerName) -> bool {
    let unit = policy::member(layout, name);
    algebra::joining(layout).any(|joining| Some(joining) == unit)
}
