//! Who comes into a chain that lost a replica: a unit that is back, or a spare (rules 10 and 16).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use milonga_protocol::{Epoch, Incarnation, Position, ServerName, Time, UnitId, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::phase::{Errand, Phase, Runs};
use crate::planner::Join;
use crate::suspicion::ANSWERS_WITHIN;
use crate::words::list;

/// A unit that was given up comes back this long after, and twice as long after each further time.
const FIRST_PENANCE: Duration = Duration::from_millis(250);
const LONGEST_PENANCE: Duration = Duration::from_secs(60);
/// A unit that served so long without being given up is trusted again.
const TRUSTED_AFTER: Duration = Duration::from_secs(300);

/// What is known of units that are in no chain.
#[derive(Debug, Default)]
pub(crate) struct Joining {
    /// They forgot what they do not surely know, and write nothing before they are opened.
    ready: BTreeMap<ServerName, Ready>,
    /// They are being asked to, since when.
    asked: BTreeMap<ServerName, Time>,
    /// Chains that want more replicas, each since when.
    vacant_since: BTreeMap<u16, Time>,
    given_up: BTreeMap<ServerName, GivenUp>,
}

/// A unit that can join.
#[derive(Clone, Copy, Debug)]
struct Ready {
    id: UnitId,
    /// The run that was asked: another one may come with an older directory, from before it forgot anything.
    run: Incarnation,
    /// The chain that wants it.
    chain: u16,
    /// It kept what lies below, at most.
    kept_below: Position,
}

/// How often a unit was given up, and when last.
#[derive(Clone, Copy, Debug)]
struct GivenUp {
    times: u32,
    at: Time,
}

impl Joining {
    /// Errands were forgotten.
    pub(crate) fn interrupted(&mut self) {
        self.asked.clear();
    }

    fn give_up(&mut self, name: &ServerName, now: Time) {
        let before = self.given_up.get(name);
        let times = before.filter(|g| now.since(g.at) < TRUSTED_AFTER);
        let times = times.map_or(0, |g| g.times) + 1;
        self.given_up
            .insert(name.clone(), GivenUp { times, at: now });
        self.ready.remove(name);
    }

    /// When a unit that was given up may come back: who goes up and down does not take everybody along (flap damping).
    fn trusted_at(&self, name: &ServerName) -> Time {
        let Some(given_up) = self.given_up.get(name) else {
            return Time::default();
        };
        let doubled = FIRST_PENANCE * 2_u32.saturating_pow((given_up.times - 1).min(16));
        given_up.at.after(doubled.min(LONGEST_PENANCE))
    }
}

impl LayoutCore {
    /// A layout was published: notes whether chains want more replicas.
    pub(crate) fn note_vacancies(&mut self) {
        let Some(layout) = self.history.current() else {
            return;
        };
        let before = std::mem::take(&mut self.joining.vacant_since);
        let since = |chain| before.get(&chain).copied().unwrap_or(self.now);
        let vacant = algebra::vacancies(layout).map(|(chain, _)| (chain, since(chain)));
        self.joining.vacant_since = vacant.collect();
    }

    /// A layout was committed: who is in it, and who was given up.
    pub(crate) fn note_members(&mut self, before: &Runs) {
        for unit in self.members() {
            let name = self.unit_name(unit).clone();
            self.joining.ready.remove(&name);
        }
        let gone = before.keys().filter(|name| self.member(name).is_none());
        for name in gone.collect::<Vec<_>>() {
            let why = self.trouble(name).unwrap_or_default();
            tracing::warn!(unit = %name, why, "goes on without it");
            self.joining.give_up(name, self.now);
        }
        let layout = self.history.current();
        let listed = |unit: &UnitId| layout.is_some_and(|layout| layout.find_unit(*unit).is_some());
        self.confirmed.retain(|unit, _| listed(unit));
        self.copied.clear();
        self.mended.clear();
    }

    /// The next unit that may come into a chain, and when.
    fn candidate(&self) -> Option<(&ServerName, u16, Time)> {
        let layout = self.history.current()?;
        let free: Vec<_> = self.free_units().filter(|n| !self.is_reserved(n)).collect();
        let vacant = |(chain, _)| Some((chain, *self.joining.vacant_since.get(&chain)?));
        let chains = algebra::vacancies(layout).filter_map(vacant);
        let candidates = chains.flat_map(|(chain, vacant_since)| {
            free.iter().map(move |name| {
                let home = self.home(name) == Some(chain);
                let spare_at = vacant_since.after(if home {
                    Duration::ZERO
                } else {
                    self.plan.spare_after
                });
                let at = spare_at.max(self.joining.trusted_at(name));
                (at, !home, chain, *name)
            })
        });
        let candidates = candidates.chain(self.expected());
        let fit = candidates.filter(|(_, _, chain, name)| self.is_calm_enough(name, *chain));
        let (at, _, chain, name) = fit.min()?;
        Some((name, chain, at))
    }

    /// Units that an operator wants in a certain place: successors, and the units of a chain that is to come. Units of a
    /// chain to come that are ready wait for the others.
    fn expected(&self) -> impl Iterator<Item = (Time, bool, u16, &ServerName)> {
        let waits = self.next_chain().is_none_or(|chain| {
            let mut chain = chain.iter();
            !chain.all(|name| self.is_ready(name))
        });
        self.free_units().filter_map(move |name| {
            let at = self.joining.trusted_at(name);
            let layout = self.history.current()?;
            if let Some(chain) = self.history.policy().succession(layout, name) {
                return Some((at, false, chain, name));
            }
            let of_next = self.next_chain().is_some_and(|c| c.contains(name));
            let more = algebra::active_chains(layout).len();
            let more = u16::try_from(more).ok()?;
            (of_next && !(waits && self.is_ready(name))).then_some((at, false, more, name))
        })
    }

    /// Whether it has forgotten what it does not surely know, and is still the same.
    fn is_ready(&self, name: &ServerName) -> bool {
        self.ready(name).is_some() && self.is_fit(name) && !self.is_restless(name)
    }

    /// What `name` answered when it was asked to forget, if it is the same run, and nothing that it kept was given up since.
    fn ready(&self, name: &ServerName) -> Option<Ready> {
        let ready = *self.joining.ready.get(name)?;
        let hello = self.heard.fresh(self.now, name)?;
        let same_unit = hello.unit.is_some_and(|unit| unit.id == ready.id);
        let same = same_unit && hello.incarnation == ready.run;
        let below = self.history.given_up_from(self.trimmed);
        (same && ready.kept_below <= below).then_some(ready)
    }

    /// Whether it can serve, and would not be in everybody's way.
    fn is_fit(&self, name: &ServerName) -> bool {
        self.can_serve(name) && !self.is_slow(name)
    }

    /// The chain that `name` belongs to: as an operator decided, or as it was configured.
    pub(crate) fn home(&self, name: &ServerName) -> Option<u16> {
        let added = self.history.policy().added.get(name);
        added.map_or_else(|| self.plan.home(name), |added| added.home)
    }

    /// The units of the chain that is to come.
    pub(crate) fn next_chain(&self) -> Option<&[ServerName]> {
        let layout = self.history.current()?;
        let configured = self.plan.units.len();
        self.history.policy().next_chain(configured, layout)
    }

    /// Whether an operator wants the unit in a certain place, so that it takes no other.
    pub(crate) fn is_reserved(&self, name: &ServerName) -> bool {
        let Some(layout) = self.history.current() else {
            return false;
        };
        let of_next = self.next_chain().is_some_and(|c| c.contains(name));
        of_next || self.history.policy().succession(layout, name).is_some()
    }

    /// Units that are there, in no chain, and may be.
    fn free_units(&self) -> impl Iterator<Item = &ServerName> {
        let policy = self.history.policy();
        let names = self.units.iter().chain(&self.plan.spare_units);
        let mut distinct: BTreeSet<_> = names.chain(policy.added.keys()).collect();
        distinct.retain(|name| !policy.retired.contains_key(*name));
        let free = move |name: &&ServerName| {
            let hello = self.heard.fresh(self.now, name);
            let unit = hello.and_then(|hello| hello.unit);
            unit.is_some() && self.member(name).is_none() && self.is_fit(name)
        };
        distinct.into_iter().filter(free)
    }

    /// Asks the next candidate to forget what it does not surely know. One that does not answer lets others go first.
    fn invite(&mut self) {
        let late = |(_, since): &(&ServerName, &Time)| since.after(ANSWERS_WITHIN) <= self.now;
        let silent = self.joining.asked.iter().filter(late);
        for name in silent.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.joining.asked.remove(&name);
            self.does_not_answer(name);
        }
        let Some((name, chain, _)) = self.candidate().filter(|(_, _, at)| *at <= self.now) else {
            return;
        };
        let name = name.clone();
        if let Some(ready) = self.ready(&name) {
            let ready = Ready { chain, ..ready };
            self.joining.ready.insert(name.clone(), ready);
            return self.gather(format!("{name} can take a place in a chain"));
        }
        if let Some(run) = self.heard.run(&name)
            && !self.joining.asked.contains_key(&name)
        {
            self.joining.asked.insert(name.clone(), self.now);
            let below = self.history.given_up_from(self.trimmed);
            self.send(Errand::Rejoin(name, run, below), 0);
        }
    }

    /// It has, in this run, and kept at most what lies below the position.
    pub(crate) fn can_join(&mut self, name: ServerName, run: Incarnation, kept_below: Position) {
        self.joining.asked.remove(&name);
        let unit = self.heard.last(&name).and_then(|hello| hello.unit);
        if let Some(unit) = unit {
            let ready = Ready {
                id: unit.id,
                run,
                chain: self.home(&name).unwrap_or_default(),
                kept_below,
            };
            self.joining.ready.insert(name, ready);
            self.care();
        }
    }

    /// Who enters which chain with the next epoch, whose members are these.
    pub(crate) fn ready_to_join(&self, members: &BTreeSet<UnitIndex>) -> Vec<Join> {
        let Some(layout) = self.history.current() else {
            return Vec::new();
        };
        let mut places: Vec<_> = algebra::vacancies(layout).collect();
        let mut joins = self.chain_to_join();
        for name in self.joining.ready.keys() {
            if self.next_chain().is_some_and(|c| c.contains(name)) {
                continue;
            }
            let Some(Ready { id, chain, .. }) = self.ready(name).filter(|_| self.is_fit(name))
            else {
                continue;
            };
            let inside = members.iter().any(|unit| self.unit_name(*unit) == name);
            let succession = self.history.policy().succession(layout, name);
            let calm = self.is_calm_enough(name, succession.unwrap_or(chain));
            if inside || !calm {
                continue;
            }
            if let Some(chain) = succession {
                let name = name.clone();
                joins.push(Join { name, id, chain });
                continue;
            }
            let open = |(place, missing): &&mut (u16, usize)| *place == chain && *missing > 0;
            if let Some((_, missing)) = places.iter_mut().find(open) {
                *missing -= 1;
                joins.push(Join {
                    name: name.clone(),
                    id,
                    chain,
                });
            }
        }
        joins
    }

    /// The units of the chain that is to come, once all of them are ready.
    fn chain_to_join(&self) -> Vec<Join> {
        let (Some(chain), Some(layout)) = (self.next_chain(), self.history.current()) else {
            return Vec::new();
        };
        let more = algebra::active_chains(layout).len();
        let join = |name: &ServerName| {
            let ready = self.joining.ready.get(name)?;
            let outside = self.is_ready(name) && self.member(name).is_none();
            let (name, id) = (name.clone(), ready.id);
            let chain = u16::try_from(more).ok()?;
            outside.then_some(Join { name, id, chain })
        };
        let joins: Option<Vec<_>> = chain.iter().map(join).collect();
        joins.unwrap_or_default()
    }

    /// The epoch that a unit says it has persisted.
    pub(crate) fn persisted(&self, name: &ServerName) -> Epoch {
        let unit = self.heard.last(name).and_then(|hello| hello.unit);
        unit.map_or(Epoch::NONE, |unit| unit.persisted)
    }

    /// The newest epoch is complete.
    pub(crate) fn rest(&mut self) {
        self.phase = Phase::Idle;
        self.care();
    }

    /// Looks whether chains can be given back what they lost.
    pub(crate) fn care(&mut self) {
        // Only what is settled may be given to somebody.
        if self.settled.is_broken() {
            return;
        }
        if matches!(self.phase, Phase::Idle) {
            self.let_go();
        }
        if matches!(self.phase, Phase::Idle) {
            self.copy_on();
        }
        if matches!(self.phase, Phase::Idle) {
            self.invite();
        }
    }

    /// Makes an epoch without those that an operator wants to leave, once nothing keeps them.
    fn let_go(&mut self) {
        if self.history.policy().retired.is_empty() {
            return;
        }
        let Some(layout) = self.history.current() else {
            return;
        };
        let wanted = self.history.policy().leavers(layout);
        let absent = self.absent();
        let gone = self.with_leavers(absent.clone());
        let mut leavers = gone.difference(&absent);
        if let Some(unit) = leavers.find(|unit| wanted.contains(unit)) {
            let name = self.unit_name(*unit).clone();
            self.gather(format!("{name} is to leave"));
        }
    }

    /// When there is something to look at again.
    pub(crate) fn care_at(&self) -> Option<Time> {
        let invite = self.candidate().map(|(name, _, at)| {
            let asked = self.joining.asked.get(name);
            asked.map_or(at, |since| since.after(ANSWERS_WITHIN))
        });
        let times = [invite, self.copy_at()].into_iter().flatten();
        times.min().filter(|_| !self.settled.is_broken())
    }

    // ---------------------------------------------------------------------------------------- for people

    /// Redundancy, for people.
    pub(crate) fn facts_of_care(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let Some(layout) = self.history.current() else {
            return facts;
        };
        let wanted = usize::from(layout.redundancy.replicas);
        let short = algebra::vacancies(layout).map(|(chain, missing)| {
            let has = wanted.saturating_sub(missing);
            format!("chain {} has {has} of {wanted} replicas", chain + 1)
        });
        let short: Vec<_> = short.collect();
        if !short.is_empty() {
            facts.insert("reduced redundancy".into(), short.join(", "));
            let mut free = self.free_units().filter(|name| !self.is_reserved(name));
            let could = |name: &ServerName| {
                let mut vacant = algebra::vacancies(layout);
                vacant.any(|(chain, _)| self.is_calm_enough(name, chain))
            };
            if !free.any(could) {
                let nobody = "no unit is there that could take a place; start who is out, or bring another one (`milonga cluster add-unit`)";
                facts.insert("vacant".into(), nobody.into());
            }
        }
        if let Some(copying) = self.facts_of_copying() {
            facts.insert("copying".into(), copying);
        }
        if let Some(decided) = self.decided() {
            facts.insert("decided".into(), decided);
        }
        let out: Vec<_> = self.out().collect();
        if !out.is_empty() {
            facts.insert("out".into(), out.join("; "));
        }
        let removed = list(self.removed_and_running());
        if !removed.is_empty() {
            facts.insert("removed".into(), removed);
        }
        facts
    }

    /// Units that no chain names, each with the reason.
    fn out(&self) -> impl Iterator<Item = String> {
        let retired = &self.history.policy().retired;
        let names = self.units.iter().filter(|name| self.member(name).is_none());
        let names = names.filter(|name| !retired.contains_key(*name));
        names.map(|name| {
            let why = self.trouble(name).or_else(|| self.slow_words(name));
            // What is wrong may be what it dies of, so both are said.
            let why = why.into_iter().chain(self.restless_words(name));
            let why = why.reduce(|one, other| format!("{one}, and {other}"));
            let why = why.unwrap_or_else(|| {
                let penance = self.penance_words(name);
                penance.unwrap_or_else(|| "waiting for a place in a chain".into())
            });
            format!("{name}: {why}")
        })
    }

    /// That it was given up lately, and is kept out for a while.
    pub(crate) fn penance_words(&self, name: &ServerName) -> Option<String> {
        let at = self.joining.trusted_at(name);
        let wait = at.since(self.now).as_secs_f64().ceil();
        (at > self.now).then(|| format!("was given up lately, may come back in {wait} s"))
    }
}
