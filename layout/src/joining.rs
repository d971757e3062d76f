//! Who comes into a chain that lost a replica: a unit that is back, or a spare (rules 10 and 16).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use milonga_protocol::{Epoch, Position, ServerName, Time, UnitId, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::phase::{Errand, Phase, Runs};
use crate::planner::Join;
use crate::suspicion::ANSWERS_WITHIN;

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
    pub(crate) fn entered(&mut self, before: &Runs) {
        for unit in self.members() {
            let name = self.unit_name(unit).clone();
            self.joining.ready.remove(&name);
        }
        let gone = before.keys().filter(|name| self.member(name).is_none());
        for name in gone.collect::<Vec<_>>() {
            tracing::warn!(unit = %name, "goes on without it");
            self.joining.give_up(name, self.now);
        }
        self.copied.clear();
        self.mended.clear();
    }

    /// The next unit that may come into a chain, and when.
    fn candidate(&self) -> Option<(&ServerName, u16, Time)> {
        let layout = self.history.current()?;
        let free: Vec<_> = self.free_units().collect();
        let vacant = |(chain, _)| Some((chain, *self.joining.vacant_since.get(&chain)?));
        let chains = algebra::vacancies(layout).filter_map(vacant);
        let candidates = chains.flat_map(|(chain, vacant_since)| {
            free.iter().map(move |name| {
                let home = self.plan.home(name) == Some(chain);
                let spare_at = vacant_since.after(if home {
                    Duration::ZERO
                } else {
                    self.plan.spare_after
                });
                let at = spare_at.max(self.joining.trusted_at(name));
                (at, !home, chain, *name)
            })
        });
        let (at, _, chain, name) = candidates.min()?;
        Some((name, chain, at))
    }

    /// Units that are there, in no chain, and may be.
    fn free_units(&self) -> impl Iterator<Item = &ServerName> {
        let names = self.units.iter().chain(&self.plan.spare_units);
        let distinct: BTreeSet<_> = names.collect();
        let free = move |name: &&ServerName| {
            let hello = self.heard.fresh(self.now, name);
            let unit = hello.and_then(|hello| hello.unit);
            unit.is_some() && self.member(name).is_none() && self.can_serve(name)
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
        let unit = self.heard.last(&name).and_then(|hello| hello.unit);
        let below = self.history.given_up_from(self.trimmed);
        if let Some(ready) = self.joining.ready.get_mut(&name)
            && unit.is_some_and(|unit| unit.id == ready.id)
            && ready.kept_below <= below
        {
            ready.chain = chain;
            return self.gather(format!("{name} can take a place in a chain"));
        }
        if !self.joining.asked.contains_key(&name) {
            self.joining.asked.insert(name.clone(), self.now);
            self.send(Errand::Rejoin(name, below), 0);
        }
    }

    /// It has, and kept at most what lies below the position.
    pub(crate) fn can_join(&mut self, name: ServerName, kept_below: Position) {
        self.joining.asked.remove(&name);
        let unit = self.heard.last(&name).and_then(|hello| hello.unit);
        if let Some(unit) = unit {
            let ready = Ready {
                id: unit.id,
                chain: self.plan.home(&name).unwrap_or_default(),
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
        let mut joins = Vec::new();
        // Something may have been given up since they were asked.
        let given_up = self.history.given_up_from(self.trimmed);
        for (name, ready) in &self.joining.ready {
            let (id, chain) = (ready.id, ready.chain);
            let unit = self.heard.fresh(self.now, name).and_then(|h| h.unit);
            let there = unit.is_some_and(|unit| unit.id == id) && self.can_serve(name);
            let inside = members.iter().any(|unit| self.unit_name(*unit) == name);
            if !there || inside || ready.kept_below > given_up {
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
            self.copy_on();
        }
        if matches!(self.phase, Phase::Idle) {
            self.invite();
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
        }
        if let Some(copying) = self.facts_of_copying() {
            facts.insert("copying".into(), copying);
        }
        let out: Vec<_> = self.out().collect();
        if !out.is_empty() {
            facts.insert("out".into(), out.join("; "));
        }
        facts
    }

    /// Units that no chain names, each with the reason.
    fn out(&self) -> impl Iterator<Item = String> {
        let names = self.units.iter().filter(|name| self.member(name).is_none());
        names.map(|name| {
            let why = self.trouble(name).unwrap_or_else(|| {
                let at = self.joining.trusted_at(name);
                let wait = at.since(self.now).as_secs();
                if at > self.now {
                    format!("given up lately, may come back in {wait} s")
                } else {
                    "waiting for a place in a chain".into()
                }
            });
            format!("{name}: {why}")
        })
    }
}
