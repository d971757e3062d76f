//! The layout's owner: what comes in, what goes out. The phases themselves are in `reconfigure`, `opening` and
//! `settling`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use milonga_protocol::messages::{CallId, Hello, LayoutRequest, LayoutResponse, Refusal, Response};
use milonga_protocol::settle::{SendId, SendOutcome};
use milonga_protocol::{
    ClusterId, Epoch, Incarnation, Layout, Position, Published, ServerName, Time, UnitId, UnitIndex,
};

use crate::change::Strangers;
use crate::copying::Copying;
use crate::courier::Courier;
use crate::effect::{ConfirmId, LayoutEffect, StoreId};
use crate::gets::Gets;
use crate::heard::Heard;
use crate::history::{History, StoreChange};
use crate::joining::Joining;
use crate::lease::Leases;
use crate::phase::{Confirmed, Errand, Phase, Runs};
use crate::plan::{ClusterPlan, PlanError};
use crate::slowness::Slowness;
use crate::suspicion::{ANSWERS_WITHIN, Patience};
use crate::took::Took;
use crate::words::list;

/// A unit that says so again after this long really serves nothing (and its hello is not an old one, overtaken).
const NOT_SERVING_FOR: Duration = Duration::from_millis(500);

/// Owns the history and carries out reconfigurations; pure. One for each cluster.
///
/// Feed it requests, outcomes and time; carry out what [`Self::poll_effect`] gives, in order. Effects of one core may
/// be abandoned at any point (a crash): a core started from the store goes on.
///
/// Servers repeat their hello at least once a second: one that was silent for three is waited for before anything is
/// sealed.
#[derive(Debug)]
pub struct LayoutCore {
    pub(crate) plan: ClusterPlan,
    pub(crate) history: History,
    /// The id the cluster gets if this core makes it.
    pub(crate) fresh: ClusterId,
    /// All units that the newest layout names, by index; before genesis those of the plan.
    pub(crate) units: Vec<ServerName>,
    pub(crate) now: Time,
    pub(crate) heard: Heard,
    /// When this core was started.
    pub(crate) started: Time,
    /// The sequencer of the epoch that is current or being made.
    pub(crate) sequencer: ServerName,
    pub(crate) phase: Phase,
    /// Why the next epoch is needed, and since when, until its layout is committed.
    pub(crate) origin: Option<(String, Time)>,
    /// What the clock on the wall shows, for the history's readers.
    pub(crate) wall_clock: Duration,
    pub(crate) courier: Courier<Errand>,
    /// When the present phase, or the part of it that units are waited for in, began.
    pub(crate) phase_since: Time,
    pub(crate) took: Took,
    /// Runs that the current epoch was opened with.
    pub(crate) runs: Runs,
    /// The last run of each unit that an epoch was opened with, and that nothing spoke against then.
    pub(crate) entered: Runs,
    /// What each unit of the layout said when it was sealed.
    pub(crate) confirmed: BTreeMap<UnitId, Confirmed>,
    pub(crate) patience: Patience,
    pub(crate) slowness: Slowness,
    pub(crate) leases: Leases,
    /// Servers that did not answer, though they say hello: until then they are taken for gone.
    pub(crate) unresponsive: BTreeMap<ServerName, Time>,
    /// Who comes into chains.
    pub(crate) joining: Joining,
    /// What units are being given.
    pub(crate) copying: Option<Copying>,
    /// What units are to be given that others go before.
    pub(crate) copying_aside: BTreeMap<UnitIndex, Copying>,
    /// Replicas that had lost something, and when they were looked through last.
    pub(crate) mended: BTreeMap<UnitIndex, Time>,
    pub(crate) next_step: u64,
    /// The highest trim mark that was reported when the current epoch was made.
    pub(crate) trimmed: Position,
    /// Members that have got everything.
    pub(crate) copied: BTreeSet<UnitIndex>,
    /// What settling found out for people: lost positions, or what stopped it.
    pub(crate) settled: crate::settling::Notes,
    /// End of what some replica lost with its streams, as of the current epoch; 0 if there is nothing.
    pub(crate) lost: Position,
    published: Option<Layout>,
    /// Since when a unit says, in the run that was opened, that it serves nothing.
    not_serving: BTreeMap<ServerName, Time>,
    gets: Gets,
    /// Who waits for them: a call, with its answer, or the phase.
    storing: BTreeMap<StoreId, (StoreChange, Option<(CallId, LayoutResponse)>)>,
    pub(crate) strangers: Strangers,
    next_store: u64,
    effects: VecDeque<LayoutEffect>,
}

impl LayoutCore {
    /// Begins with what the store holds. A start is a reconfiguration, so nothing is published before all listed
    /// servers have been heard of. `fresh` becomes the cluster's id if there is none yet: draw it at random.
    ///
    /// # Errors
    /// [`PlanError`]: the plan is impossible, or names other units than the history.
    pub fn start(
        plan: ClusterPlan,
        history: History,
        fresh: ClusterId,
        now: Time,
    ) -> Result<Self, PlanError> {
        Self::from_history(plan, history, fresh, now, "the layout server was started")
    }

    fn from_history(
        plan: ClusterPlan,
        history: History,
        fresh: ClusterId,
        now: Time,
        why: &str,
    ) -> Result<Self, PlanError> {
        plan.check(history.current(), history.policy())?;
        let units = match history.current() {
            Some(layout) => layout.units.iter().map(|unit| unit.name.clone()).collect(),
            None => plan.unit_names().cloned().collect(),
        };
        let cause = match history.current() {
            Some(_) => why,
            None => "the cluster is new",
        };
        let sequencer = match history.current() {
            // Unless the configuration does not name it any more.
            Some(Layout { sequencer, .. }) if plan.sequencers().any(|s| *s == sequencer.name) => {
                sequencer.name.clone()
            }
            _ => plan.sequencer.clone(),
        };
        let leases = Leases::begin(&plan, &history, now);
        Ok(Self {
            plan,
            history,
            fresh,
            units,
            now,
            heard: Heard::default(),
            started: now,
            sequencer,
            phase: Phase::Gather {
                cause: cause.into(),
                since: now,
                able: None,
            },
            origin: Some((cause.into(), now)),
            wall_clock: Duration::ZERO,
            courier: Courier::new(),
            phase_since: now,
            took: Took::default(),
            runs: Runs::new(),
            entered: Runs::new(),
            confirmed: BTreeMap::new(),
            patience: Patience::default(),
            slowness: Slowness::default(),
            leases,
            unresponsive: BTreeMap::new(),
            joining: Joining::default(),
            copying: None,
            copying_aside: BTreeMap::new(),
            mended: BTreeMap::new(),
            next_step: 0,
            trimmed: Position::ZERO,
            copied: BTreeSet::new(),
            settled: crate::settling::Notes::default(),
            lost: Position::ZERO,
            published: None,
            not_serving: BTreeMap::new(),
            gets: Gets::default(),
            storing: BTreeMap::new(),
            strangers: Strangers::default(),
            next_store: 0,
            effects: VecDeque::new(),
        })
    }

    /// Begins as the leader among several: an epoch that is at rest goes on, if all its servers say that they serve it.
    /// Everything else is as in [`Self::start`].
    ///
    /// # Errors
    /// [`PlanError`], as [`Self::start`].
    pub fn take_over(
        plan: ClusterPlan,
        history: History,
        fresh: ClusterId,
        now: Time,
    ) -> Result<Self, PlanError> {
        let why = "another term of the layout's leadership began";
        let mut core = Self::from_history(plan, history, fresh, now, why)?;
        let same_sequencer = |layout: &Layout| layout.sequencer.name == core.sequencer;
        if core.history.is_at_rest() && core.history.current().is_some_and(same_sequencer) {
            core.take_up();
        }
        Ok(core)
    }

    /// Takes a request; the answer comes as an effect, for `Get` perhaps later.
    pub fn handle(&mut self, now: Time, call: CallId, request: LayoutRequest) {
        self.pass(now);
        self.heard.received(self.now);
        match request {
            LayoutRequest::Hello(hello) => {
                if let Some(why) = self.unlisted(&hello) {
                    self.strangers.hear(self.now, hello);
                    return self.refuse(call, Refusal::Identity { why });
                }
                if !self.knows(&hello.name) {
                    self.strangers.hear(self.now, hello);
                    return self.reply(call, LayoutResponse::Heard);
                }
                self.hear(hello);
                self.reply(call, LayoutResponse::Heard);
            }
            LayoutRequest::ReportSealed { epoch } => {
                // An epoch that is over, or not published yet, has a successor under way.
                if epoch == self.history.epoch() && self.is_published() {
                    self.gather(format!("somebody met a sealed server in epoch {epoch}"));
                }
                self.reply(call, LayoutResponse::Heard);
            }
            LayoutRequest::Get { known, wait_ms } => {
                let newer = self.published().is_some_and(|l| l.epoch > known);
                if newer || !self.gets.park(self.now, call, known, wait_ms) {
                    self.answer_get(call, known);
                }
            }
            LayoutRequest::GiveUp { from, to } => self.give_up(call, from, to),
            LayoutRequest::Change { change, dry_run } => self.change(call, &change, dry_run),
            LayoutRequest::History { after } => {
                let report = self.history.report(after);
                self.reply(call, LayoutResponse::History(report));
            }
            LayoutRequest::Renew(renewal) => self.renew(call, renewal),
        }
    }

    /// Takes the outcome of a `Send`. Unknown ids, also those of abandoned attempts, are ignored.
    pub fn handle_reply(&mut self, now: Time, send: SendId, outcome: SendOutcome) {
        self.pass(now);
        if self.slowness.answered(self.now, send, &outcome) {
            return;
        }
        let Some((errand, tries)) = self.courier.back(send) else {
            return;
        };
        if let Errand::Settle(id) = errand {
            return self.settle_answered(id, outcome);
        }
        if outcome.is_ok() {
            self.heard.received(self.now);
        }
        let answered = match outcome {
            Ok((response, body)) => self.errand_answered(&errand, response, body),
            Err(why) => Err(why),
        };
        if let Err(why) = answered {
            self.courier.again(self.now, errand, tries, why);
        }
    }

    /// Takes the outcome of a `Store`.
    pub fn stored(&mut self, now: Time, store: StoreId, outcome: Result<(), String>) {
        self.pass(now);
        let Some((change, call)) = self.storing.remove(&store) else {
            return;
        };
        let applied = outcome.and_then(|()| self.history.apply(&change).map_err(|e| e.to_string()));
        match (applied, call) {
            (Ok(()), None) => self.change_stored(),
            (Ok(()), Some((call, response))) => {
                self.reply(call, response);
                if let StoreChange::Policy { .. } = change {
                    self.policy_stored();
                }
            }
            // Whether it is durable is unknown, so nothing may be decided any more by this core.
            (Err(why), call) => {
                self.courier.forget();
                self.phase = Phase::Halted { why: why.clone() };
                if let Some((call, _)) = call {
                    self.refuse(call, Refusal::Busy { what: why });
                }
            }
        }
    }

    /// Takes the outcome of a `Confirm`: if a majority said that this is the leader, the epoch of all that was committed
    /// before.
    pub fn confirmed(&mut self, now: Time, id: ConfirmId, leads_at: Option<Epoch>) {
        self.pass(now);
        self.leadership_confirmed(id, leads_at);
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Time) {
        self.pass(now);
        for call in self.gets.expired(self.now) {
            self.answer_get(call, Epoch(u64::MAX));
        }
        for (errand, tries) in self.courier.due(self.now) {
            self.send(errand, tries);
        }
        match &self.phase {
            Phase::Gather { .. } => self.try_to_begin(),
            Phase::Open(_) => self.bootstrap_if_due(),
            Phase::Settle(_) => self.settle_time(),
            Phase::Idle => self.care(),
            _ => {}
        }
        self.suspect();
        self.watch();
    }

    /// When [`Self::handle_time`] has something to do.
    #[must_use]
    pub fn next_time(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Gather { .. } => self.begin_at(),
            Phase::Open(_) => self.bootstrap_at(),
            Phase::Settle(settling) => settling.retry_at,
            Phase::Idle => self.care_at(),
            _ => None,
        };
        let times = [
            phase,
            self.courier.next_time(),
            self.gets.next_time(),
            self.suspect_at(),
            self.watch_at(),
        ];
        times.into_iter().flatten().min()
    }

    /// The next effect, to be carried out in this order.
    pub fn poll_effect(&mut self) -> Option<LayoutEffect> {
        self.effects.pop_front()
    }

    /// The published layout, with the addresses where its servers were last heard of.
    #[must_use]
    pub fn published_layout(&self) -> Option<Published> {
        let layout = self.published.clone()?;
        // Who takes over may not have heard all of them yet. A client would not ask again for the same epoch.
        if self.heard.without_address(&layout).is_some() {
            return None;
        }
        let addresses = self.heard.addresses();
        Some(Published { layout, addresses })
    }

    /// The cluster; `None` before genesis.
    #[must_use]
    pub const fn cluster(&self) -> Option<ClusterId> {
        self.history.cluster()
    }

    /// Whether everything is done: the newest layout is published and all below its start is settled.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Why nothing is decided any more, if that is so.
    pub(crate) fn halted(&self) -> Option<&str> {
        match &self.phase {
            Phase::Halted { why } => Some(why),
            _ => None,
        }
    }

    /// For people and `milonga status`.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = self.settled.facts();
        let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
        fact("state", self.why());
        fact("epoch", self.history.epoch().to_string());
        fact("lease", self.leases_in_words());
        if let Some(cluster) = self.history.cluster() {
            fact("cluster", cluster.to_string());
        }
        if let Some(layout) = &self.published {
            fact("published", layout.epoch.to_string());
            fact("start", layout.start.to_string());
            fact("sequencer", layout.sequencer.name.to_string());
        }
        if self.lost > Position::ZERO && self.is_damaged() {
            let lost = self.lost;
            fact(
                "damaged below",
                format!(
                    "{lost}: some unit has lost entries there; reads take them from its chain, or stop at them"
                ),
            );
        }
        if !self.plan.spare_sequencers.is_empty() {
            let here = self.plan.sequencers();
            fact(
                "sequencers heard",
                list(here.filter(|name| self.can_sequence(name))),
            );
        }
        if let Some(slow) = self.facts_of_slowness() {
            fact("slow", slow);
        }
        if let Some(restless) = self.facts_of_restless() {
            fact("restless", restless);
        }
        fact("waits", self.gets.len().to_string());
        facts.extend(self.took.facts());
        facts.extend(self.facts_of_care());
        facts
    }

    // ------------------------------------------------------------------------------------ for the phases

    pub(crate) fn unit_name(&self, unit: UnitIndex) -> &ServerName {
        &self.units[usize::from(unit.0)]
    }

    /// Who takes part in the newest epoch; before genesis, all units of the plan.
    pub(crate) fn members(&self) -> BTreeSet<UnitIndex> {
        match self.history.current() {
            Some(layout) => layout.members(),
            None => {
                let count = u16::try_from(self.units.len()).unwrap_or(u16::MAX);
                (0..count).map(UnitIndex).collect()
            }
        }
    }

    /// The unit of that name, if it takes part.
    pub(crate) fn member(&self, name: &ServerName) -> Option<UnitIndex> {
        let mut members = self.members().into_iter();
        members.find(|unit| self.unit_name(*unit) == name)
    }

    /// Goes on with an epoch that another leader finished.
    pub(crate) fn take_up(&mut self) {
        self.published = self.history.current().cloned();
        self.phase = Phase::Resume;
        self.origin = None;
    }

    pub(crate) const fn published(&self) -> Option<&Layout> {
        self.published.as_ref()
    }

    /// Whether the newest layout is published and no other is under way.
    pub(crate) const fn is_published(&self) -> bool {
        matches!(
            self.phase,
            Phase::Settle(_) | Phase::Report { .. } | Phase::Idle
        )
    }

    pub(crate) fn effect(&mut self, effect: LayoutEffect) {
        self.effects.push_back(effect);
    }

    /// The current phase waits for this change to be durable.
    pub(crate) fn store(&mut self, change: StoreChange) {
        self.store_for(None, change);
    }

    /// The same, or a call waits for it, and for this answer.
    pub(crate) fn store_for(
        &mut self,
        call: Option<(CallId, LayoutResponse)>,
        change: StoreChange,
    ) {
        let id = StoreId(self.next_store);
        self.next_store += 1;
        self.storing.insert(id, (change.clone(), call));
        self.effect(LayoutEffect::Store { id, change });
    }

    /// An operator is about to give up what is lost in `from..to`. It is noted first: from then on nobody is taken in who
    /// may have kept some of it. Never while a reconfiguration is under way, which may have chosen already whom it takes in.
    fn give_up(&mut self, call: CallId, from: Position, to: Position) {
        let start = self.published().map_or(Position::ZERO, |l| l.start);
        if from >= to || to > start {
            let why = format!(
                "{from}..{to} cannot be given up: only what lies below {start}, the start of the current epoch, can be judged"
            );
            return self.refuse(call, Refusal::Malformed { why });
        }
        if !self.is_quiet() {
            let what = "a reconfiguration is under way".to_owned();
            return self.refuse(call, Refusal::Busy { what });
        }
        let answer = Some((call, LayoutResponse::Heard));
        self.store_for(answer, StoreChange::GivenUp { from, to });
    }

    /// Whether operators' decisions can be recorded now: no reconfiguration is under way that may be based on others.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_published() && self.storing.is_empty()
    }

    /// Hands the current layout out from now on, also to those who wait.
    pub(crate) fn publish(&mut self) {
        self.not_serving.clear();
        self.published = self.history.current().cloned();
        self.note_vacancies();
        for call in self.gets.behind(self.history.epoch()) {
            self.answer_get(call, Epoch::NONE);
        }
    }

    /// Hands out a layout that is not the history's (only a planted bug does that).
    pub(crate) fn hand_out(&mut self, layout: &Layout) {
        self.published = Some(layout.clone());
    }

    /// A reconfiguration is needed.
    pub(crate) fn gather(&mut self, cause: String) {
        tracing::info!(%cause, epoch = %self.history.next_epoch(), "reconfiguration");
        self.courier.forget();
        self.copying = None;
        self.copying_aside.clear();
        self.joining.interrupted();
        // What comes between, until there is an epoch, is not why it is needed.
        let origin = (cause.clone(), self.now);
        self.origin.get_or_insert(origin);
        self.phase = Phase::Gather {
            cause,
            since: self.now,
            able: None,
        };
        self.try_to_begin();
    }

    fn pass(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    // --------------------------------------------------------------------------------------------- hellos

    /// A unit that no chain names would wait for ever: it is told so.
    fn unlisted(&self, hello: &Hello) -> Option<String> {
        let name = &hello.name;
        hello.unit?;
        let sequences = self.plan.sequencers().any(|sequencer| sequencer == name);
        if self.was_removed(name) && !sequences {
            return Some(format!(
                "{name} was removed from this cluster; stop it, or start it with an empty directory and `milonga cluster add-unit {name}`"
            ));
        }
        (!self.knows_unit(name)).then(|| {
            format!(
                "{name} is not a unit of this cluster; `milonga cluster add-unit {name}` makes it one, or name it under spare_units in the layout server's configuration, or correct its name"
            )
        })
    }

    /// Whether an operator removed the unit, and no chain names it any more.
    pub(crate) fn was_removed(&self, name: &ServerName) -> bool {
        self.history.policy().retired.contains_key(name) && self.member(name).is_none()
    }

    pub(crate) fn knows_unit(&self, name: &ServerName) -> bool {
        let policy = self.history.policy();
        self.units.contains(name)
            || self.plan.spare_units.contains(name)
            || policy.added.contains_key(name)
            || policy.retired.contains_key(name)
    }

    /// Whether it is a unit or a sequencer of this cluster.
    fn knows(&self, name: &ServerName) -> bool {
        self.knows_unit(name) || self.plan.sequencers().any(|sequencer| sequencer == name)
    }

    pub(crate) fn hear(&mut self, hello: Hello) {
        let name = hello.name.clone();
        if !self.knows(&name) {
            return;
        }
        let back = self.heard.was_silent(self.now, &name, ANSWERS_WITHIN);
        let new = self.heard.hear(self.now, hello);
        if new {
            self.unresponsive.remove(&name);
            if let Some(why) = self.restless_words(&name) {
                tracing::warn!(server = %name, why, "was started");
            }
        }
        if new || back {
            self.slowness.is_back(&name);
        }
        match &self.phase {
            Phase::Gather { .. } => self.try_to_begin(),
            Phase::Seal(_) | Phase::Collect(_) if new && self.relies_on(&name) => {
                // It has sealed itself, and may report something else: all is asked again, for the same epoch.
                self.gather(format!("{name} was started"));
            }
            Phase::Seal(_) | Phase::Collect(_) if self.can_do_with_others() => {
                self.gather(format!("{name} is back, and another is gone"));
            }
            Phase::Open(_) => self.heard_while_opening(&name, new),
            Phase::Resume => self.heard_while_resuming(&name),
            Phase::Settle(_) | Phase::Report { .. } | Phase::Idle => {
                if let Some(cause) = self.over(&name) {
                    self.gather(cause);
                } else if matches!(self.phase, Phase::Idle) {
                    self.care();
                }
            }
            _ => {}
        }
    }

    /// This run of the unit `name` is in the current epoch.
    pub(crate) fn takes_part(&mut self, name: &ServerName, run: Incarnation) {
        self.runs.insert(name.clone(), run);
        self.entered.insert(name.clone(), run);
    }

    /// Whether what `name` says ends the current epoch, and why.
    pub(crate) fn over(&mut self, name: &ServerName) -> Option<String> {
        let epoch = self.history.epoch();
        let current = self.history.current()?;
        let hello = self.heard.last(name)?;
        if *name == current.sequencer.name && hello.incarnation != current.sequencer.incarnation {
            return Some(format!("{name} was restarted"));
        }
        self.member(name)?;
        let same_run = self.runs.get(name) == Some(&hello.incarnation);
        if hello.unit.is_some_and(|unit| unit.serving == epoch) {
            let run = hello.incarnation;
            self.takes_part(name, run);
            self.not_serving.remove(name);
            return None;
        }
        if !same_run {
            return Some(format!("{name} was restarted"));
        }
        // An old hello may have been overtaken by the opening.
        let since = *self.not_serving.entry(name.clone()).or_insert(self.now);
        let long = self.now.since(since) >= NOT_SERVING_FOR;
        long.then(|| format!("{name} does not serve epoch {epoch} any more"))
    }

    // -------------------------------------------------------------------------------------------- answers

    /// Answers with the published layout if that is newer than `known`.
    fn answer_get(&mut self, call: CallId, known: Epoch) {
        let response = match self.published_layout() {
            Some(published) if published.layout.epoch > known => LayoutResponse::Layout(published),
            _ => LayoutResponse::Waiting { why: self.why() },
        };
        self.reply(call, response);
    }

    pub(crate) fn reply(&mut self, call: CallId, response: LayoutResponse) {
        let response = Response::Layout(response);
        self.effect(LayoutEffect::Reply(call, response));
    }

    pub(crate) fn refuse(&mut self, call: CallId, refusal: Refusal) {
        self.effect(LayoutEffect::Reply(call, Response::Refused(refusal)));
    }
}
