//! A seeded network of model units, the real sequencer, a layout server that crashes, and a client that appends.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::{
    CallId, Hello, LayoutRequest, Lease, Refusal, Request, Response, SequencerRequest,
    SequencerResponse, TailAnswer, WireValue,
};
use milonga_protocol::{
    ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits, ListEnd, Position,
    Published, ServerName, StreamId, Time, UnitIndex, WriterId,
};
use milonga_sequencer::Sequencer;

use super::unit::Unit;
use crate::{
    ClusterPlan, ConfirmId, LayoutCore, LayoutEffect, LayoutStore, SendId, SendOutcome,
    StoreChange, StoreId,
};

pub(super) const SEQUENCER: &str = "sequencer-1";
pub(super) const SECOND_SEQUENCER: &str = "sequencer-2";

/// SplitMix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

enum Event {
    Request(u64, SendId, ServerName, Request, Bytes),
    Outcome(u64, SendId, SendOutcome),
    Hello(Hello),
    Store(u64, StoreId, StoreChange),
    Confirmed(u64, ConfirmId),
    /// The server's next heartbeat is due.
    Beat(ServerName),
    Die(ServerName),
    /// Its supervisor starts it again.
    Start(ServerName),
}

/// What a server dies of, again and again.
pub(super) struct Dies {
    /// A request like this.
    pub(super) of: fn(&Request) -> bool,
    /// So many milliseconds after it has answered; `None`: instead.
    pub(super) after: Option<u64>,
}

/// What the clock on the wall shows when a world begins.
pub(super) const WALL_CLOCK: Duration = Duration::from_secs(1_900_000_000);
/// After so many milliseconds a server that died says hello again.
const STARTED_AFTER: u64 = 300;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) dice: Dice,
    /// For pings: all else is as if there were none.
    ping_dice: Dice,
    pub(super) plan: ClusterPlan,
    pub(super) core: Option<LayoutCore>,
    pub(super) store: LayoutStore,
    pub(super) units: BTreeMap<ServerName, Unit>,
    pub(super) runs: BTreeMap<ServerName, u128>,
    pub(super) sequencers: BTreeMap<ServerName, Sequencer>,
    /// Servers that do not answer and say nothing.
    pub(super) down: Vec<ServerName>,
    /// Servers that say hello and do not answer.
    pub(super) deaf: Vec<ServerName>,
    /// They hear, and cannot be heard.
    pub(super) mute: Vec<ServerName>,
    pub(super) dies: BTreeMap<ServerName, Dies>,
    /// Milliseconds that the store takes longer.
    pub(super) slow_store: u64,
    /// Milliseconds that a message takes longer, to and from a server.
    pub(super) slow: BTreeMap<ServerName, u64>,
    /// One request or reply in so many is lost; 0 = none.
    pub(super) loss: u64,
    /// Whether a majority says that the core is the leader.
    pub(super) leads: bool,
    /// The epoch of what other members have committed, of which this one has not heard.
    pub(super) elsewhere: Option<Epoch>,
    /// Effects that the layout servers have wanted so far.
    pub(super) effects: u64,
    pub(super) replies: Vec<(CallId, Response)>,
    pub(super) committed: BTreeMap<Epoch, Layout>,
    pub(super) acked: BTreeMap<Position, (EncodedEntry, StreamId)>,
    known: Option<Layout>,
    core_run: u64,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    written: u64,
}

impl World {
    pub(super) fn new(seed: u64, chains: usize, replicas: usize) -> Self {
        let name = |c, r| ServerName::new(format!("unit-{c}{r}"));
        let chain = |c| (0..replicas).map(|r| name(c, r)).collect();
        let units: Vec<Vec<ServerName>> = (0..chains).map(chain).collect();
        let names: Vec<_> = units.iter().flatten().cloned().collect();
        let limits = Limits::default();
        let mut world = Self {
            now: Time::default(),
            dice: Dice(seed),
            ping_dice: Dice(seed + 1_000),
            plan: ClusterPlan::new(units, SEQUENCER.into(), limits, Lease::None),
            core: None,
            store: LayoutStore::memory(),
            units: (1..)
                .zip(&names)
                .map(|(id, name)| (name.clone(), Unit::new(id)))
                .collect(),
            runs: names.iter().map(|name| (name.clone(), 1)).collect(),
            sequencers: [(SEQUENCER.into(), Sequencer::new(Incarnation(1)))].into(),
            down: Vec::new(),
            deaf: Vec::new(),
            mute: Vec::new(),
            dies: BTreeMap::new(),
            slow_store: 0,
            slow: BTreeMap::new(),
            loss: 0,
            leads: true,
            elsewhere: None,
            effects: 0,
            replies: Vec::new(),
            committed: BTreeMap::new(),
            acked: BTreeMap::new(),
            known: None,
            core_run: 0,
            events: BTreeMap::new(),
            next_event: 0,
            written: 0,
        };
        world.runs.insert(SEQUENCER.into(), 1);
        for name in world.servers() {
            world.push(0, Event::Beat(name));
        }
        world.start_core();
        world
    }

    /// Another unit, that no configuration names.
    pub(super) fn add_stranger(&mut self, name: &str) {
        let name = ServerName::new(name);
        let id = self.units.len() as u128 + 1;
        self.units.insert(name.clone(), Unit::new(id));
        self.runs.insert(name.clone(), 1);
        self.push(0, Event::Beat(name));
    }

    /// A process that is neither a unit nor a sequencer.
    pub(super) fn add_process(&mut self, name: &str) {
        let name = ServerName::new(name);
        self.runs.insert(name.clone(), 1);
        self.push(0, Event::Beat(name));
    }

    /// The unit comes back with an empty directory.
    pub(super) fn replace_disk(&mut self, name: &str) {
        let name = ServerName::new(name);
        let id = 1_000 + u128::from(self.dice.below(1_000_000));
        self.units.insert(name.clone(), Unit::new(id));
        self.restart(&name);
    }

    /// Another process that can be the sequencer.
    pub(super) fn add_sequencer(&mut self) {
        let name = ServerName::new(SECOND_SEQUENCER);
        let sequencer = Sequencer::new(Incarnation(1));
        self.sequencers.insert(name.clone(), sequencer);
        self.runs.insert(name.clone(), 1);
        self.plan.spare_sequencers.push(name.clone());
        self.push(0, Event::Beat(name));
        self.crash_core();
        self.start_core();
        self.run_for(1_000);
    }

    /// Another unit, in no chain.
    pub(super) fn add_spare(&mut self, name: &str) {
        self.add_stranger(name);
        self.plan.spare_units.push(name.into());
        self.crash_core();
        self.start_core();
        self.run_for(1_000);
    }

    pub(super) fn servers(&self) -> Vec<ServerName> {
        self.runs.keys().cloned().collect()
    }

    pub(super) fn core(&mut self) -> &mut LayoutCore {
        self.core.as_mut().expect("running")
    }

    // ------------------------------------------------------------------------------------------- faults

    pub(super) fn start_core(&mut self) {
        self.core_run += 1;
        let fresh = ClusterId(1_000 + u128::from(self.core_run));
        let core = LayoutCore::start(self.plan.clone(), self.store.history(), fresh, self.now);
        self.core = Some(core.expect("a good plan"));
    }

    /// Another member of the layout leads.
    pub(super) fn take_over(&mut self) {
        self.crash_core();
        let history = self.store.history();
        let core = LayoutCore::take_over(self.plan.clone(), history, ClusterId(7), self.now);
        self.core = Some(core.expect("a good plan"));
    }

    /// The layout server dies; what it had sent goes on, what it had asked of its store may or may not be durable.
    pub(super) fn crash_core(&mut self) {
        self.core = None;
        self.core_run += 1;
        let stores = |e: &Event| matches!(e, Event::Store(..));
        let keys: Vec<_> = self.events.iter().filter(|(_, e)| stores(e)).collect();
        let keys: Vec<_> = keys.into_iter().map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(Event::Store(_, _, change)) = self.events.remove(&key)
                && self.dice.one_in(2)
            {
                self.apply(&change);
            }
        }
    }

    pub(super) fn restart(&mut self, name: &ServerName) {
        let run = self.runs.get_mut(name).expect("a server");
        *run += 1;
        if let Some(unit) = self.units.get_mut(name) {
            unit.restart();
        } else {
            let sequencer = Sequencer::new(Incarnation(*run));
            self.sequencers.insert(name.clone(), sequencer);
        }
        self.hello(name);
    }

    /// Whether it dies of the request instead of serving it.
    fn is_deadly(&mut self, name: &ServerName, request: &Request) -> bool {
        match self.dies.get(name) {
            Some(dies) if (dies.of)(request) => {
                let after = dies.after;
                let ms = after.unwrap_or_default();
                self.push(ms * 1_000, Event::Die(name.clone()));
                after.is_none()
            }
            _ => false,
        }
    }

    // ------------------------------------------------------------------------------------------- events

    fn push(&mut self, delay_us: u64, event: Event) {
        let at = self.now.after(Duration::from_micros(delay_us));
        self.events.insert((at, self.next_event), event);
        self.next_event += 1;
    }

    fn dice_for(&mut self, request: &Request) -> &mut Dice {
        match request {
            Request::Ping => &mut self.ping_dice,
            _ => &mut self.dice,
        }
    }

    /// How many microseconds longer a message to or from it takes.
    fn slowness(&self, name: &ServerName) -> u64 {
        self.slow.get(name).map_or(0, |ms| ms * 1_000)
    }

    pub(super) fn hello(&mut self, name: &ServerName) {
        if self.mute.contains(name) {
            return;
        }
        let hello = Hello {
            name: name.clone(),
            address: format!("{name}:1"),
            incarnation: Incarnation(self.runs[name]),
            unit: self.units.get(name).map(Unit::hello),
            sequencer: self.sequencers.contains_key(name),
        };
        let delay = 50 + self.dice.below(3_000) + self.slowness(name);
        if !self.dice.one_in(self.loss) {
            self.push(delay, Event::Hello(hello));
        }
    }

    /// Runs until `until`, one event after the other; `each` is called after each.
    pub(super) fn run_until(&mut self, until: Time, mut each: impl FnMut(&mut Self)) {
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timer = self.core.as_ref().and_then(LayoutCore::next_time);
            let next = [event, timer].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            let now = self.now;
            if event.is_some_and(|at| at <= now) {
                let (_, event) = self.events.pop_first().expect("just seen");
                self.happen(event);
            } else if let Some(core) = &mut self.core {
                core.handle_time(now);
            }
            self.carry_out();
            each(self);
        }
    }

    pub(super) fn run_for(&mut self, ms: u64) {
        let until = self.now.after(Duration::from_millis(ms));
        self.run_until(until, |_| ());
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Beat(name) => {
                if !self.down.contains(&name) {
                    self.hello(&name);
                }
                let next = 50_000 + self.dice.below(100_000);
                self.push(next, Event::Beat(name));
            }
            Event::Hello(hello) => {
                if let Some(core) = &mut self.core {
                    core.handle(now, CallId(0), LayoutRequest::Hello(hello));
                }
            }
            Event::Die(name) => {
                if self.dies.contains_key(&name) && !self.down.contains(&name) {
                    self.down.push(name.clone());
                    self.push(STARTED_AFTER * 1_000, Event::Start(name));
                }
            }
            Event::Start(name) => {
                self.down.retain(|down| *down != name);
                self.restart(&name);
            }
            Event::Request(run, id, to, request, body) => {
                if self.down.contains(&to) || self.deaf.contains(&to) {
                    return self.push(1_000_000, Event::Outcome(run, id, Err("down".into())));
                }
                if self.is_deadly(&to, &request) {
                    return self.push(1_000, Event::Outcome(run, id, Err("died".into())));
                }
                let slow = self.slowness(&to);
                let loss = self.loss;
                let dice = self.dice_for(&request);
                let delay = 50 + dice.below(3_000) + slow;
                let lost = dice.one_in(loss);
                let outcome = self.serve(&to, request, body);
                let outcome = if lost {
                    Err("lost".into())
                } else {
                    Ok(outcome)
                };
                self.push(
                    if lost { 1_000_000 } else { delay },
                    Event::Outcome(run, id, outcome),
                );
            }
            Event::Outcome(run, id, outcome) if run == self.core_run => {
                self.core().wall_clock = WALL_CLOCK + now.since_start();
                self.core().handle_reply(now, id, outcome);
            }
            Event::Store(run, id, change) if run == self.core_run => {
                self.apply(&change);
                self.core().stored(now, id, Ok(()));
            }
            Event::Confirmed(run, id) if run == self.core_run => {
                let known = self
                    .elsewhere
                    .unwrap_or_else(|| self.store.history().epoch());
                let leads_at = self.leads.then_some(known);
                self.core().confirmed(now, id, leads_at);
            }
            Event::Outcome(..) | Event::Store(..) | Event::Confirmed(..) => {}
        }
    }

    fn apply(&mut self, change: &StoreChange) {
        self.store.apply(change).expect("continues the history");
        if let StoreChange::Commit { layout, .. } = change {
            let before = self.committed.insert(layout.epoch, layout.clone());
            assert_eq!(before, None, "two layouts of epoch {}", layout.epoch);
        }
    }

    fn carry_out(&mut self) {
        let Some(core) = &mut self.core else {
            return;
        };
        let effects: Vec<_> = std::iter::from_fn(|| core.poll_effect()).collect();
        for effect in effects {
            let run = self.core_run;
            match effect {
                LayoutEffect::BeginAnew { why } => panic!("{why}"),
                LayoutEffect::Confirm { id } => {
                    let delay = 100 + self.dice.below(2_000);
                    self.push(delay, Event::Confirmed(run, id));
                }
                LayoutEffect::Reply(call, response) => {
                    if call != CallId(0) {
                        self.replies.push((call, response));
                    }
                    continue;
                }
                LayoutEffect::Store { id, change } => {
                    let delay = 100 + self.dice.below(2_000) + self.slow_store * 1_000;
                    self.push(delay, Event::Store(run, id, change));
                }
                LayoutEffect::Send {
                    id,
                    to,
                    request,
                    body,
                } => {
                    let slow = self.slowness(&to.name);
                    // Pings change nothing, wherever they are cut off.
                    self.effects -= u64::from(request == Request::Ping);
                    let loss = self.loss;
                    let dice = self.dice_for(&request);
                    let is_lost = dice.one_in(loss);
                    let late = is_lost && dice.one_in(2);
                    let delay = if is_lost {
                        0
                    } else {
                        50 + dice.below(3_000) + slow
                    };
                    let request = Event::Request(run, id, to.name, request, body);
                    // Lost, or so late that the sender has given up.
                    if is_lost {
                        if late {
                            self.push(1_500_000, request);
                        }
                        self.push(1_000_000, Event::Outcome(run, id, Err("lost".into())));
                    } else {
                        self.push(delay, request);
                    }
                }
            }
            self.effects += 1;
        }
    }

    fn serve(&mut self, to: &ServerName, request: Request, body: Bytes) -> (Response, Bytes) {
        match request {
            Request::Unit(request) => {
                let unit = self.units.get_mut(to).expect("a unit");
                unit.serve(request, body)
            }
            Request::Sequencer(request) => (self.ask_the(to, request), Bytes::new()),
            Request::Ping => (Response::Pong, Bytes::new()),
            other => panic!("the layout never sends {other:?}"),
        }
    }

    /// The sequencer of the newest layout.
    pub(super) fn ask_sequencer(&mut self, request: SequencerRequest) -> Response {
        let history = self.store.history();
        let name = history.current().map(|l| l.sequencer.name.clone());
        self.ask_the(&name.unwrap_or_else(|| SEQUENCER.into()), request)
    }

    fn ask_the(&mut self, name: &ServerName, request: SequencerRequest) -> Response {
        let sequencer = self.sequencers.get_mut(name).expect("a sequencer");
        sequencer.handle(self.now, CallId(1), request);
        sequencer.poll_reply().expect("answered at once").1
    }

    /// Somebody asks the layout server, if there is one.
    pub(super) fn ask(&mut self, call: CallId, request: LayoutRequest) {
        if let Some(core) = &mut self.core {
            core.handle(self.now, call, request);
            self.carry_out();
        }
    }

    // ------------------------------------------------------------------------------------------- client

    /// A client with a perhaps old layout appends to one of a few streams, and perhaps dies in the middle.
    pub(super) fn append(&mut self) {
        let published = self.core.as_ref().and_then(LayoutCore::published_layout);
        if let Some(published) = published
            && !self.dice.one_in(3)
        {
            assert_eq!(
                self.committed.get(&published.layout.epoch),
                Some(&published.layout)
            );
            self.known = Some(published.layout);
        }
        let Some(layout) = self.known.clone() else {
            return;
        };
        let (epoch, stream) = (layout.epoch, StreamId(self.dice.below(6)));
        let sequencer = layout.sequencer.name.clone();
        if self.down.contains(&sequencer) {
            return;
        }
        let wants = vec![vec![stream]];
        let response = self.ask_the(&sequencer, SequencerRequest::Tokens { epoch, wants });
        let Response::Sequencer(SequencerResponse::Tokens(mut tokens)) = response else {
            return self.met(epoch, &response);
        };
        let token = tokens.remove(0);
        self.written += 1;
        let id = EntryId {
            writer: WriterId(7),
            sequence: self.written,
        };
        let payload = Bytes::from(vec![b'x'; 8]);
        let links = token.links;
        let entry = Entry { id, links, payload };
        let entry = EncodedEntry::encode(token.position, &entry, false);
        self.write(&layout, token.position, entry, stream);
    }

    fn write(&mut self, layout: &Layout, at: Position, entry: EncodedEntry, stream: StreamId) {
        for unit in layout.chain(at).to_vec() {
            let name = layout.unit(unit).name.clone();
            if self.dice.one_in(8) || self.down.contains(&name) {
                return;
            }
            let len = u32::try_from(entry.len()).unwrap();
            let items = vec![(at, WireValue::Data { len })];
            let model = self.units.get_mut(&name).expect("a unit");
            match model.write(layout.epoch, items, entry.bytes().clone()) {
                // Nobody fills in this world, so the writer wins.
                Ok(response) => assert!(format!("{response:?}").contains("Durable")),
                Err(refusal) => return self.met(layout.epoch, &Response::Refused(refusal)),
            }
        }
        self.acked.insert(at, (entry, stream));
    }

    /// Who meets a seal says so.
    fn met(&mut self, epoch: Epoch, response: &Response) {
        let now = self.now;
        if let (Response::Refused(Refusal::Sealed { .. }), Some(core)) = (response, &mut self.core)
        {
            core.handle(now, CallId(0), LayoutRequest::ReportSealed { epoch });
            self.carry_out();
        }
    }

    /// Something acknowledged is lost, with its streams, on one replica or on all.
    pub(super) fn lose(&mut self, everywhere: bool) -> Option<(Position, StreamId)> {
        let any = self.dice.below(self.acked.len().max(1) as u64);
        let any = self.acked.iter().nth(usize::try_from(any).unwrap())?;
        let (position, stream) = (*any.0, any.1.1);
        let layout = self.store.history().current()?.clone();
        let mut chain = layout.chain(position).to_vec();
        let lost = |unit: &UnitIndex| {
            self.units[&layout.unit(*unit).name]
                .lost
                .contains(&position)
        };
        if !everywhere && chain.iter().any(lost) {
            return None;
        }
        if !everywhere {
            let place = self.dice.below(chain.len() as u64);
            chain = vec![chain[usize::try_from(place).unwrap()]];
        }
        for unit in chain {
            let unit = self.units.get_mut(&layout.unit(unit).name);
            unit.expect("a unit").lose(position);
        }
        Some((position, stream))
    }

    /// All entries of the stream that was acknowledged last are lost on all replicas; gives the last of them.
    pub(super) fn lose_stream(&mut self) -> (Position, StreamId) {
        let (position, (_, stream)) = self.acked.last_key_value().expect("acknowledged");
        let (position, stream) = (*position, *stream);
        for unit in self.units.values_mut() {
            let of_it = unit.cells.iter().filter(|(_, (value, _))| match value {
                milonga_protocol::Value::Data(entry) => entry.streams().contains(&stream),
                milonga_protocol::Value::Junk => false,
            });
            let of_it: Vec<_> = of_it.map(|(position, _)| *position).collect();
            of_it.into_iter().for_each(|position| unit.lose(position));
        }
        (position, stream)
    }

    /// Trims below something settled; a unit may miss it.
    pub(super) fn trim(&mut self) {
        let Some(core) = self.core.as_ref().filter(|core| core.is_idle()) else {
            return;
        };
        let start = core.published_layout().map(|p| p.layout.start.0);
        let below = Position(self.dice.below(start.unwrap_or(0) + 1));
        let layout = core.published_layout().map(|p| p.layout);
        for unit in layout.iter().flat_map(Layout::members) {
            let name = layout.as_ref().map(|l| l.unit(unit).name.clone());
            if !self.dice.one_in(4) {
                let unit = name.and_then(|name| self.units.get_mut(&name));
                unit.expect("a unit").trim(below);
            }
        }
    }

    // ------------------------------------------------------------------------------------------- checks

    pub(super) fn is_served(&self) -> bool {
        let Some(core) = self.core.as_ref().filter(|core| core.is_idle()) else {
            return false;
        };
        let Some(Published { layout, .. }) = core.published_layout() else {
            return false;
        };
        let all = layout.members().len() >= self.plan.unit_names().count();
        let mut members = layout.members().into_iter();
        let serves = |unit| self.units[&layout.unit(unit).name].serves() == layout.epoch;
        all && layout.segments.len() == 1 && members.all(serves)
    }

    /// Whether only an operator can help: what a unit lacks is lost on every replica.
    fn is_stuck(&self) -> bool {
        let core = self.core.as_ref().filter(|core| core.is_idle());
        let facts = core.map(LayoutCore::facts).unwrap_or_default();
        facts
            .get("copying")
            .is_some_and(|words| words.contains("lost on every"))
    }

    /// After all faults: it heals, everything acknowledged is there, and it stays as it is.
    pub(super) fn heal_and_check(&mut self) {
        self.loss = 0;
        self.down.clear();
        if self.core.is_none() {
            self.start_core();
        }
        for _ in 0..400 {
            self.run_for(100);
            if self.is_served() {
                break;
            }
        }
        let facts = self.core().facts();
        assert!(self.is_served() || self.is_stuck(), "not healed: {facts:?}");
        self.check_units();
        self.check_streams();
        let epochs = self.committed.len();
        self.run_for(5_000);
        let state = self.core().facts();
        assert_eq!(
            self.committed.len(),
            epochs,
            "it does not rest: {facts:?} then {state:?}"
        );
        assert!(self.is_served() || self.is_stuck());
    }

    /// However many units and chains operators want: it comes to rest, and everything acknowledged is there.
    pub(super) fn settle_and_check(&mut self) {
        let rests = |world: &Self| {
            let core = world.core.as_ref().filter(|core| core.is_idle());
            let layout = core.and_then(LayoutCore::published_layout);
            let joins = |p: Published| p.layout.segments.iter().any(|s| !s.joining.is_empty());
            layout.is_some_and(|published| !joins(published))
        };
        for _ in 0..400 {
            self.run_for(100);
            if rests(self) {
                break;
            }
        }
        let facts = self.core().facts();
        assert!(rests(self), "it does not rest: {facts:?}");
        self.check_units();
        self.check_streams();
    }

    fn check_units(&mut self) {
        let layout = self.core().published_layout().expect("served").layout;
        let members = layout.members().into_iter().map(|unit| layout.unit(unit));
        for unit in members {
            assert_eq!(self.units[&unit.name].id, unit.id);
        }
        let trimmed = self.units.values().map(|unit| unit.trimmed).max().unwrap();
        for (position, (entry, _)) in self.acked.range(trimmed..) {
            for unit in layout.chain(*position) {
                let unit = &self.units[&layout.unit(*unit).name];
                let held = unit.cells.get(position).map(|(value, _)| value);
                let want = milonga_protocol::Value::Data(entry.clone());
                let lost = held.is_none() && unit.lost.contains(position);
                assert!(lost || held == Some(&want), "acknowledged at {position}");
            }
        }
        for p in trimmed.0..layout.start.0 {
            let chain = layout.chain(Position(p)).iter();
            let held = chain.map(|unit| &self.units[&layout.unit(*unit).name]);
            let held = held.filter(|u| !u.lost.contains(&Position(p)));
            let held: Vec<_> = held
                .map(|u| u.cells.get(&Position(p)).map(|c| &c.0))
                .collect();
            assert!(held.iter().all(Option::is_some), "{p} is not settled");
            assert!(held.iter().all(|value| *value == held[0]), "{p} differs");
        }
    }

    fn check_streams(&mut self) {
        let epoch = self.core().published_layout().expect("served").layout.epoch;
        let streams = (0..6).map(StreamId).collect();
        let response = self.ask_sequencer(SequencerRequest::Tail { epoch, streams });
        let Response::Sequencer(SequencerResponse::Tail(answer)) = response else {
            panic!("no tail: {response:?}");
        };
        let TailAnswer { next, trimmed, .. } = answer;
        for (position, (_, stream)) in self.acked.range(trimmed..) {
            assert!(*position < next);
            let list = answer.streams[usize::try_from(stream.0).unwrap()];
            // It is named, or not led over, and a read goes as far as that.
            let named = list.positions().contains(position);
            let oldest = list.positions().last();
            let below = list.end() == ListEnd::Unknown && oldest.is_some_and(|p| p > position);
            assert!(named || below, "{position} of {stream}: {list:?}");
        }
    }
}
