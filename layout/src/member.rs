//! A member of the layout as its host sees it: it follows, or it leads, and then owns a [`LayoutCore`].
//!
//! ```text
//!            lead(history)                              a leadership confirmed by a majority (rule 20)
//!   follows --------------> leads: a core of its own, begun from the history
//!           <--------------
//!            follow(leader)                             leadership lost, or a change without a verdict
//! ```
//!
//! Who follows answers what any member may: it hears hellos, so that it knows who is there when it comes to lead, and hands
//! out the newest layout that is open. That may be an old one; a client never goes back to it (rule 23). So clients find
//! the log while there is no leader, and hear of a new epoch whichever member they ask.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::messages::{CallId, Hello, LayoutRequest, LayoutResponse, Refusal, Response};
use milonga_protocol::settle::{SendId, SendOutcome};
use milonga_protocol::{ClusterId, Epoch, Published, ServerName, Time};

use crate::core::LayoutCore;
use crate::effect::{ConfirmId, LayoutEffect, StoreId};
use crate::gets::Gets;
use crate::heard::Heard;
use crate::history::History;
use crate::plan::{ClusterPlan, PlanError};

/// Numbers the cores of one member: what one of them asked for is nothing to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reign(u64);

/// One member of the layout; pure, driven as a [`LayoutCore`] is.
#[derive(Debug)]
pub struct LayoutMember {
    plan: ClusterPlan,
    /// The id the cluster gets if this member makes it.
    fresh: ClusterId,
    /// It is the only member, so a start is the start of everything.
    alone: bool,
    history: Arc<History>,
    seat: Seat,
    reign: Reign,
    effects: VecDeque<LayoutEffect>,
}

#[derive(Debug)]
enum Seat {
    Follows {
        leader: Option<(ServerName, String)>,
        /// Why this member does not do more, if that is known.
        why: Option<String>,
        gets: Gets,
        heard: Heard,
    },
    Leads {
        core: Box<LayoutCore>,
        /// Not answered yet.
        calls: BTreeSet<CallId>,
    },
}

impl LayoutMember {
    /// A member that follows nobody yet. `fresh` becomes the cluster's id if this member makes it: draw it at random.
    ///
    /// # Errors
    /// [`PlanError`]: the plan is impossible, or names other units than the history.
    pub fn new(
        plan: ClusterPlan,
        alone: bool,
        history: Arc<History>,
        fresh: ClusterId,
    ) -> Result<Self, PlanError> {
        plan.check(history.current(), history.policy())?;
        Ok(Self {
            plan,
            fresh,
            alone,
            history,
            seat: Seat::follower(None, None, Heard::default()),
            reign: Reign::default(),
            effects: VecDeque::new(),
        })
    }

    /// Begins a reign from a history that holds all that was committed before: this member leads, and a majority said so.
    pub fn lead(&mut self, now: Time, history: Arc<History>) {
        self.follow(None, None);
        self.history = history;
        self.answer_all_gets();
        self.reign.0 += 1;
        let (plan, history) = (self.plan.clone(), History::clone(&self.history));
        let core = if self.alone {
            LayoutCore::start(plan, history, self.fresh, now)
        } else {
            LayoutCore::take_over(plan, history, self.fresh, now)
        };
        let heard = std::mem::take(self.heard());
        self.seat = match core {
            Ok(mut core) => {
                core.heard = heard;
                Seat::Leads {
                    core: Box::new(core),
                    calls: BTreeSet::new(),
                }
            }
            Err(error) => Seat::follower(None, Some(format!("cannot go on: {error}")), heard),
        };
    }

    /// Follows `leader`, if anybody is known to lead; `why`: what keeps this member from more, for people.
    pub fn follow(&mut self, leader: Option<(ServerName, String)>, why: Option<String>) {
        match &mut self.seat {
            Seat::Follows {
                leader: before,
                why: before_why,
                ..
            } => (*before, *before_why) = (leader, why),
            Seat::Leads { core, calls } => {
                let (calls, heard) = (std::mem::take(calls), std::mem::take(&mut core.heard));
                self.seat = Seat::follower(leader, why, heard);
                for call in calls {
                    self.refuse(call);
                }
            }
        }
    }

    /// The history has grown.
    pub fn learn(&mut self, history: Arc<History>) {
        self.history = history;
        let epoch = self.history.current_if_opened().map(|layout| layout.epoch);
        if let (Seat::Follows { gets, .. }, Some(epoch)) = (&mut self.seat, epoch) {
            for call in gets.behind(epoch) {
                self.answer_get(call, Epoch::NONE);
            }
        }
    }

    /// The reign that effects belong to.
    #[must_use]
    pub const fn reign(&self) -> Reign {
        self.reign
    }

    /// Whether it leads.
    #[must_use]
    pub const fn leads(&self) -> bool {
        matches!(self.seat, Seat::Leads { .. })
    }

    /// Takes a request; the answer comes as an effect, for `Get` perhaps later.
    pub fn handle(&mut self, now: Time, call: CallId, request: LayoutRequest) {
        match &mut self.seat {
            Seat::Leads { core, calls } => {
                calls.insert(call);
                core.handle(now, call, request);
            }
            Seat::Follows { gets, .. } => match request {
                LayoutRequest::Hello(hello) => {
                    self.hear(now, hello);
                    self.reply(call, LayoutResponse::Heard);
                }
                LayoutRequest::ReportSealed { .. }
                | LayoutRequest::GiveUp { .. }
                | LayoutRequest::Change { .. }
                | LayoutRequest::History { .. }
                | LayoutRequest::Renew(_) => {
                    self.refuse(call);
                }
                LayoutRequest::Get { known, wait_ms } => {
                    let open = self.history.current_if_opened();
                    let newer = open.is_some_and(|layout| layout.epoch > known);
                    if newer || !gets.park(now, call, known, wait_ms) {
                        self.answer_get(call, known);
                    }
                }
            },
        }
    }

    /// What the clock on the wall shows ([`milonga_protocol::Env::wall_clock`]), for who reads the history: to be told before
    /// [`Self::handle_reply`], which may commit an epoch.
    pub fn tell_wall_clock(&mut self, wall_clock: Duration) {
        if let Seat::Leads { core, .. } = &mut self.seat {
            core.wall_clock = wall_clock;
        }
    }

    /// Takes the outcome of a `Send` of `reign`.
    pub fn handle_reply(&mut self, now: Time, reign: Reign, send: SendId, outcome: SendOutcome) {
        if let Seat::Leads { core, .. } = &mut self.seat
            && reign == self.reign
        {
            core.handle_reply(now, send, outcome);
        }
    }

    /// Takes the outcome of a `Store` of `reign`. A reign ends with the first change that was refused, or that has no
    /// verdict: what the history holds is known again only once the leadership is confirmed anew.
    pub fn stored(&mut self, now: Time, reign: Reign, store: StoreId, outcome: Result<(), String>) {
        let Seat::Leads { core, .. } = &mut self.seat else {
            return;
        };
        if reign != self.reign {
            return;
        }
        core.stored(now, store, outcome);
        if let Some(why) = core.halted().map(str::to_owned) {
            tracing::warn!(why, "the layout begins anew from its history");
            self.follow(None, Some(format!("beginning anew: {why}")));
            self.effects.push_back(LayoutEffect::BeginAnew { why });
        }
    }

    /// Takes the outcome of a `Confirm` of `reign`.
    pub fn confirmed(&mut self, now: Time, reign: Reign, id: ConfirmId, leads_at: Option<Epoch>) {
        if let Seat::Leads { core, .. } = &mut self.seat
            && reign == self.reign
        {
            core.confirmed(now, id, leads_at);
        }
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Time) {
        match &mut self.seat {
            Seat::Leads { core, .. } => core.handle_time(now),
            Seat::Follows { gets, .. } => {
                for call in gets.expired(now) {
                    self.answer_get(call, Epoch(u64::MAX));
                }
            }
        }
    }

    /// When [`Self::handle_time`] has something to do.
    #[must_use]
    pub fn next_time(&self) -> Option<Time> {
        match &self.seat {
            Seat::Leads { core, .. } => core.next_time(),
            Seat::Follows { gets, .. } => gets.next_time(),
        }
    }

    /// The next effect, to be carried out in this order.
    pub fn poll_effect(&mut self) -> Option<LayoutEffect> {
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        let Seat::Leads { core, calls } = &mut self.seat else {
            return None;
        };
        let effect = core.poll_effect()?;
        if let LayoutEffect::Reply(call, _) = &effect {
            calls.remove(call);
        }
        Some(effect)
    }

    /// The cluster; `None` before genesis, or before this member has heard of it.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        match &self.seat {
            Seat::Leads { core, .. } => core.cluster(),
            Seat::Follows { .. } => self.history.cluster(),
        }
    }

    /// For people and `milonga status`. Only who leads, or would if it could, has a `state`.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        match &self.seat {
            Seat::Leads { core, .. } => core.facts(),
            Seat::Follows { leader, gets, .. } => {
                let mut facts = BTreeMap::new();
                let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
                fact("epoch", self.history.epoch().to_string());
                fact("waits", gets.len().to_string());
                match leader {
                    Some((name, _)) => fact("follows", name.to_string()),
                    None => fact("state", self.why()),
                };
                facts
            }
        }
    }

    /// Whoever waits asks again, and then asks who leads.
    fn answer_all_gets(&mut self) {
        if let Seat::Follows { gets, .. } = &mut self.seat {
            for call in gets.behind(Epoch(u64::MAX)) {
                self.answer_get(call, Epoch(u64::MAX));
            }
        }
    }

    /// Who says hello to a member that follows is known to it when it comes to lead.
    fn hear(&mut self, now: Time, hello: Hello) {
        let known = self.knows(&hello.name);
        let heard = self.heard();
        heard.received(now);
        if known {
            heard.hear(now, hello);
        }
    }

    fn knows(&self, name: &ServerName) -> bool {
        let units = self.plan.unit_names().chain(&self.plan.spare_units);
        let units = units.chain(self.history.policy().added.keys());
        let listed = self
            .history
            .current()
            .map_or(&[][..], |layout| &layout.units);
        let units = units.chain(listed.iter().map(|unit| &unit.name));
        let mut named = units.chain(self.plan.sequencers());
        named.any(|known| known == name)
    }

    fn heard(&mut self) -> &mut Heard {
        match &mut self.seat {
            Seat::Leads { core, .. } => &mut core.heard,
            Seat::Follows { heard, .. } => heard,
        }
    }

    /// Answers with the newest open layout, if that is newer than `known`.
    fn answer_get(&mut self, call: CallId, known: Epoch) {
        let addresses = self.heard().addresses();
        let open = self.history.current_if_opened();
        let newer = open.filter(|layout| layout.epoch > known).cloned();
        let unheard = newer.as_ref();
        let unheard = unheard.and_then(|layout| self.heard().without_address(layout).cloned());
        let response = match (newer, unheard) {
            (Some(_), Some(name)) => LayoutResponse::Waiting {
                why: format!("this member of the layout has not heard of {name} yet"),
            },
            (Some(layout), None) => LayoutResponse::Layout(Published { layout, addresses }),
            (None, _) => LayoutResponse::Waiting { why: self.why() },
        };
        self.reply(call, response);
    }

    /// One sentence: who is waited for.
    fn why(&self) -> String {
        match &self.seat {
            Seat::Leads { .. } => "this member begins to lead".into(),
            Seat::Follows { why: Some(why), .. } => why.clone(),
            Seat::Follows {
                leader: Some((name, _)),
                ..
            } => format!("this member of the layout follows {name}"),
            Seat::Follows { .. } => {
                "waiting for a majority of the layout's members to elect a leader".into()
            }
        }
    }

    fn reply(&mut self, call: CallId, response: LayoutResponse) {
        let response = Response::Layout(response);
        self.effects.push_back(LayoutEffect::Reply(call, response));
    }

    fn refuse(&mut self, call: CallId) {
        let leader = match &self.seat {
            Seat::Follows { leader, .. } => leader.clone(),
            Seat::Leads { .. } => None,
        };
        let refusal = Response::Refused(Refusal::NotLeader { leader });
        self.effects.push_back(LayoutEffect::Reply(call, refusal));
    }
}

impl Seat {
    fn follower(leader: Option<(ServerName, String)>, why: Option<String>, heard: Heard) -> Self {
        Self::Follows {
            leader,
            why,
            gets: Gets::default(),
            heard,
        }
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::messages::{Lease, UnitHello};
    use milonga_protocol::{Incarnation, Limits, UnitId};

    use super::*;
    use crate::history::StoreChange;
    use crate::samples;

    /// The history of a cluster at rest in epoch 1.
    fn history() -> Arc<History> {
        let mut history = History::default();
        let layout = samples::layout(1, 0, &history);
        let (epoch, parent) = (Epoch(1), Epoch::NONE);
        let units = layout.units.iter().map(|unit| unit.id).collect();
        for change in [
            StoreChange::Intent { epoch },
            StoreChange::Commit {
                parent,
                layout,
                origin: None,
            },
            StoreChange::Opened { epoch, units },
            StoreChange::Settled { epoch },
        ] {
            history.apply(&change).expect("continues");
        }
        Arc::new(history)
    }

    fn member(history: &Arc<History>) -> LayoutMember {
        let layout = samples::layout(1, 0, &History::default());
        let units = layout.segments[0].chains.iter();
        let chain = |chain: &Vec<_>| chain.iter().map(|u| layout.unit(*u).name.clone()).collect();
        let sequencer = layout.sequencer.name.clone();
        let plan = ClusterPlan::new(
            units.map(chain).collect(),
            sequencer,
            Limits::default(),
            Lease::None,
        );
        LayoutMember::new(plan, false, Arc::clone(history), ClusterId(9)).expect("a good plan")
    }

    fn ms(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    fn get(known: u64, wait_ms: u32) -> LayoutRequest {
        let known = Epoch(known);
        LayoutRequest::Get { known, wait_ms }
    }

    fn hello(name: &str) -> LayoutRequest {
        LayoutRequest::Hello(Hello {
            name: name.into(),
            address: "there:1".into(),
            incarnation: Incarnation(5),
            unit: None,
            sequencer: true,
        })
    }

    fn replies(member: &mut LayoutMember) -> Vec<(CallId, Response)> {
        let effects = std::iter::from_fn(|| member.poll_effect());
        let reply = |effect| match effect {
            LayoutEffect::Reply(call, response) => Some((call, response)),
            _ => None,
        };
        effects.filter_map(reply).collect()
    }

    #[test]
    fn who_follows_shows_the_newest_open_layout_and_leaves_decisions_to_the_leader() {
        let mut member = member(&Arc::default());
        member.follow(Some(("layout-2".into(), "two:1".into())), None);
        member.handle(ms(0), CallId(1), hello("sequencer-1"));
        member.handle(ms(0), CallId(2), get(0, 1_000));
        let [(CallId(1), Response::Layout(LayoutResponse::Heard))] = replies(&mut member)[..]
        else {
            panic!("a hello is heard, and the other one waits");
        };
        // Nobody is sent to servers without an address.
        member.learn(history());
        let [(CallId(2), Response::Layout(LayoutResponse::Waiting { why }))] =
            &replies(&mut member)[..]
        else {
            panic!("not all were heard");
        };
        assert!(why.contains("has not heard of unit-1a yet"), "{why}");
        for unit in ["unit-1a", "unit-1b", "unit-2a", "unit-2b"] {
            member.handle(ms(0), CallId(0), hello(unit));
        }
        replies(&mut member);
        member.handle(ms(0), CallId(2), get(0, 1_000));
        let [(CallId(2), Response::Layout(LayoutResponse::Layout(published)))] =
            &replies(&mut member)[..]
        else {
            panic!("it has come");
        };
        assert_eq!(published.layout.epoch, Epoch(1));
        assert_eq!(
            published.addresses[&ServerName::new("sequencer-1")],
            "there:1"
        );
        // Nothing newer comes.
        member.handle(ms(10), CallId(3), get(1, 1_000));
        assert_eq!(member.next_time(), Some(ms(1_010)));
        member.handle_time(ms(1_010));
        let [(CallId(3), Response::Layout(LayoutResponse::Waiting { why }))] =
            &replies(&mut member)[..]
        else {
            panic!("its time is up");
        };
        assert!(why.contains("follows layout-2"), "{why}");
        let epoch = Epoch(1);
        member.handle(ms(20), CallId(4), LayoutRequest::ReportSealed { epoch });
        let leader = Some(("layout-2".into(), "two:1".to_owned()));
        let refused = Response::Refused(Refusal::NotLeader { leader });
        assert_eq!(replies(&mut member), [(CallId(4), refused)]);
    }

    #[test]
    fn a_layout_that_is_not_open_yet_is_not_shown() {
        let mut history = History::clone(&history());
        let epoch = Epoch(2);
        history.apply(&StoreChange::Intent { epoch }).unwrap();
        let layout = samples::layout(2, 7, &history);
        let parent = Epoch(1);
        history
            .apply(&StoreChange::Commit {
                parent,
                layout,
                origin: None,
            })
            .unwrap();
        let mut member = member(&Arc::new(history));
        member.handle(ms(0), CallId(1), get(0, 0));
        assert!(matches!(
            replies(&mut member)[..],
            [(_, Response::Layout(LayoutResponse::Waiting { .. }))]
        ));
    }

    /// It did not reach this member, and confirmed an epoch to the leader of before.
    #[test]
    fn what_a_unit_said_before_a_reign_speaks_not_against_it() {
        let mut member = member(&Arc::default());
        let hello = |(name, id): (&str, u128), persisted| {
            let LayoutRequest::Hello(mut hello) = hello(name) else {
                unreachable!();
            };
            hello.unit = Some(UnitHello {
                id: UnitId(id),
                cluster: Some(ClusterId(77)),
                persisted: Epoch(persisted),
                serving: Epoch(persisted),
                empty: false,
                poisoned: false,
                damaged: false,
                disk_micros: None,
            });
            LayoutRequest::Hello(hello)
        };
        member.handle(ms(0), CallId(1), hello(("unit-1a", 1), 0));
        member.lead(ms(5_000), history());
        for at in (5_000..9_000).step_by(100) {
            for unit in [("unit-1b", 2), ("unit-2a", 3), ("unit-2b", 4)] {
                member.handle(ms(at), CallId(2), hello(unit, 1));
            }
            member.handle_time(ms(at));
        }
        let state = &member.facts()["state"];
        let words = "because unit-1a says nothing any more";
        assert!(state.contains(words), "{state}");
    }

    #[test]
    fn whoever_waits_learns_that_a_reign_is_over() {
        let mut member = member(&history());
        member.handle(ms(0), CallId(1), get(1, 1_000));
        member.lead(ms(0), history());
        assert!(member.leads() && replies(&mut member).len() == 1);
        member.handle(ms(1), CallId(2), get(1, 1_000));
        assert_eq!(replies(&mut member), []);
        let leader = Some(("layout-2".into(), "two:1".to_owned()));
        member.follow(leader.clone(), None);
        let refused = Response::Refused(Refusal::NotLeader { leader });
        assert_eq!(replies(&mut member), [(CallId(2), refused)]);
    }

    #[test]
    fn a_change_without_a_verdict_ends_the_reign() {
        let mut member = member(&Arc::default());
        member.lead(ms(0), Arc::default());
        let first = member.reign();
        // As if the core had asked for it: one that did not is not asked about it.
        member.stored(ms(1), first, StoreId(0), Err("no majority".into()));
        assert!(member.leads(), "it has proposed nothing");
        member.follow(None, None);
        member.lead(ms(2), history());
        assert_ne!(member.reign(), first);
        member.stored(ms(3), first, StoreId(0), Err("no majority".into()));
        assert!(member.leads(), "another reign's");
    }
}
