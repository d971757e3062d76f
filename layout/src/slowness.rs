//! Who is slow, though it says hello: a disk that takes a hundred times as long as others', a process that is stopped most
//! of the time, a link that delays everything (decision 0015).
//!
//! Two things are measured. The leader pings every server several times a second: the round trip tells of the process and of
//! the way to it. Units say in their hello how long their disk took lately to make a batch durable. Each is compared with
//! what it is for the others of the same role, never with a number alone: where all are slow, nobody is.
//!
//! A unit that is slow is no failure: it serves until an epoch without it can be made, like one that an operator wants to
//! leave. If its chain cannot do without it, it stays. One unit at a time is out for that.

mod measures;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::{Lease, Request};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{ServerName, Time, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::effect::LayoutEffect;

pub(crate) use measures::Slowness;
use measures::{Measure, Seen, median};

impl LayoutCore {
    /// When servers are to be pinged, and judged, next. In an embedded log all are one process.
    pub(crate) fn watch_at(&self) -> Option<Time> {
        let compares = self.plan.lease != Lease::DirectoryLock && self.history.current().is_some();
        compares.then(|| self.slowness.ping_at())
    }

    /// Judges everybody by what is known, and pings again, if it is time to.
    pub(crate) fn watch(&mut self) {
        if self.watch_at().is_none_or(|at| at > self.now) {
            return;
        }
        self.slowness.ping_round(self.now);
        let (units, sequencers) = (self.heard_units(), self.heard_sequencers());
        self.compare(&units, &sequencers);
        if self.is_published() && !plants::active(Plant::SlownessIgnored) {
            self.take_out_the_slow(&units);
        }
        for name in units.union(&sequencers) {
            self.ping(name);
        }
    }

    fn ping(&mut self, name: &ServerName) {
        let Some(to) = self.heard.peer(name) else {
            return;
        };
        let id = self.courier.id();
        self.slowness.pinged(self.now, name, id);
        self.effect(LayoutEffect::Send {
            id,
            to,
            request: Request::Ping,
            body: Bytes::new(),
        });
    }

    /// All units that were heard lately, also those in no chain.
    fn heard_units(&self) -> BTreeSet<ServerName> {
        let added = self.history.policy().added.keys();
        let names = self.units.iter().chain(&self.plan.spare_units).chain(added);
        let heard = |name: &&ServerName| {
            let hello = self.heard.fresh(self.now, name);
            hello.is_some_and(|hello| hello.unit.is_some())
        };
        names.filter(heard).cloned().collect()
    }

    fn heard_sequencers(&self) -> BTreeSet<ServerName> {
        let heard = |name: &&ServerName| self.heard.fresh(self.now, name).is_some();
        self.plan.sequencers().filter(heard).cloned().collect()
    }

    // --------------------------------------------------------------------------------------------- compare

    /// Takes in who is slow just now, and who is not.
    fn compare(&mut self, units: &BTreeSet<ServerName>, sequencers: &BTreeSet<ServerName>) {
        let mut seen = BTreeMap::new();
        for (names, measure) in [
            (units, Measure::RoundTrip),
            (units, Measure::Disk),
            (sequencers, Measure::RoundTrip),
        ] {
            for (name, one) in self.seen(names, measure) {
                let slow = one.is_slow().then_some(one);
                let before = seen.entry(name).or_insert(slow);
                *before = before.or(slow);
            }
        }
        for (name, slow) in &seen {
            self.slowness.see(self.now, name, slow.as_ref());
        }
        self.slowness.see_no_others(&seen.into_keys().collect());
    }

    /// What each shows, beside what the others do who are not out for slowness.
    fn seen(&self, names: &BTreeSet<ServerName>, measure: Measure) -> Vec<(ServerName, Seen)> {
        let value = |name: &ServerName| match measure {
            Measure::RoundTrip => self.slowness.round_trip(self.now, name),
            Measure::Disk => self.disk_pace(name),
        };
        let values: Vec<_> = (names.iter())
            .filter_map(|name| Some((name, value(name)?)))
            .collect();
        let see = |(name, own): &(&ServerName, Duration)| {
            let others = values.iter().filter(|(other, _)| other != name);
            let others = others.filter(|(other, _)| !self.slowness.is_out(other));
            let others = median(others.map(|(_, value)| *value).collect());
            let (measure, own) = (measure, *own);
            let seen = Seen {
                measure,
                own,
                others,
            };
            ((*name).clone(), seen)
        };
        values.iter().map(see).collect()
    }

    /// What a unit said last of its disk.
    fn disk_pace(&self, name: &ServerName) -> Option<Duration> {
        let micros = self.heard.last(name)?.unit?.disk_micros?;
        Some(Duration::from_micros(micros.into()))
    }

    // ----------------------------------------------------------------------------------------------- judge

    pub(crate) fn is_slow(&self, name: &ServerName) -> bool {
        self.slowness.is_slow(self.now, name)
    }

    /// Why `name` is not trusted, if it is slow or was not fast for long enough since.
    pub(crate) fn slow_words(&self, name: &ServerName) -> Option<String> {
        self.slowness.why(self.now, name)
    }

    /// Whether a unit is out for slowness and missed, so that no other one may follow it.
    fn one_is_out(&self, units: &BTreeSet<ServerName>) -> bool {
        let layout = self.history.current();
        let reduced = layout.is_some_and(|layout| algebra::vacancies(layout).next().is_some());
        let out = |name: &ServerName| self.slowness.is_out(name);
        let missed = |name: &ServerName| reduced || self.member(name).is_some();
        units.iter().any(|name| out(name) && missed(name))
    }

    /// Makes an epoch without a unit that is slow, or with another sequencer.
    fn take_out_the_slow(&mut self, units: &BTreeSet<ServerName>) {
        if !self.one_is_out(units) {
            let slow = self.slowest(units).cloned();
            if let Some(name) = slow {
                self.slowness.take_out(self.now, &name);
            }
        }
        let sequencer = self.sequencer.clone();
        if self.is_slow(&sequencer) && self.has_fast_spare() && !self.slowness.is_out(&sequencer) {
            self.slowness.take_out(self.now, &sequencer);
        }
        let absent = self.absent();
        let gone = self.with_leavers(absent.clone());
        let mut gone = gone.difference(&absent).map(|unit| self.unit_name(*unit));
        let unit = gone.find(|name| self.slowness.is_out(name));
        let sequencer = Some(&sequencer).filter(|_| self.is_outrun());
        if let Some(name) = unit.or(sequencer) {
            let why = self.slow_words(name).unwrap_or_else(|| "is slow".into());
            let cause = format!("{name} {why}");
            tracing::warn!(server = %name, why, "goes on without it");
            self.gather(cause);
        }
    }

    /// The member that is the slowest of those that their chains can do without, if any of them is slow.
    fn slowest(&self, units: &BTreeSet<ServerName>) -> Option<&ServerName> {
        let layout = self.history.current()?;
        let absent = self.absent();
        let can_go = |unit: &UnitIndex| {
            let mut gone = absent.clone();
            gone.insert(*unit) && algebra::can_do_without(layout, &gone)
        };
        let members = self.members().into_iter().filter(can_go);
        let names = members.map(|unit| self.unit_name(unit));
        let slow = names.filter(|name| units.contains(*name) && self.is_slow(name));
        slow.max_by_key(|name| {
            let round_trip = self.slowness.round_trip(self.now, name);
            round_trip.max(self.disk_pace(name))
        })
    }

    /// Members of the current epoch that are out for slowness: they leave as soon as their chains can do without them.
    pub(crate) fn slow_leavers(&self) -> impl Iterator<Item = UnitIndex> {
        let members = self.members().into_iter();
        members.filter(|unit| self.slowness.is_out(self.unit_name(*unit)))
    }

    // ------------------------------------------------------------------------------------------- sequencer

    /// Whether the present sequencer is out for slowness, and another one is not slow.
    pub(crate) fn is_outrun(&self) -> bool {
        self.slowness.is_out(&self.sequencer) && self.has_fast_spare()
    }

    fn has_fast_spare(&self) -> bool {
        let other = self.other_sequencer();
        other.is_some_and(|other| !self.is_slow(other))
    }

    // ------------------------------------------------------------------------------------------ for people

    /// Who is slow, in words and numbers, but for units that are out: of them it is said why.
    pub(crate) fn facts_of_slowness(&self) -> Option<String> {
        let (units, sequencers) = (self.heard_units(), self.heard_sequencers());
        self.why_not_trusted(units.union(&sequencers), |name| self.slow_words(name))
    }
}
