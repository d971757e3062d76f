//! The conformance suite over the real cores: units on simulated disks and the sequencer, behind the network in
//! memory. Only the layout is a stand-in that reconfigures by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use milonga_client::{ClientOptions, LogClient};
use milonga_log_units::sim::SimDisk;
use milonga_log_units::{Disk, Unit, UnitConfig, UnitEffect};
use milonga_protocol::conformance::{LogUnderTest, Outcome, checks};
use milonga_protocol::env::BoxFuture;
use milonga_protocol::frame::Message;
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    Bootstrap, CallId, LayoutRequest, LayoutResponse, Lease, Request, Response, SequencerRequest,
    SequencerResponse, StreamTail, Token, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::{
    AppendError, BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout,
    Limits, ListEnd, NewEntry, Position, Published, ReadAnswer, Redundancy, Segment, SharedEnv,
    SharedLog, StreamId, Time, UnitId, UnitIndex, UnitRef, WriterId,
};
use milonga_sequencer::Sequencer;
use milonga_transport::{
    Caller, MemoryNetwork, Peer, Reply, Role, Service, Serving, SharedNetwork, TokioEnv,
};
use tokio::sync::Notify;

/// Runs one core.
struct Host {
    env: SharedEnv,
    core: Mutex<Core>,
    wake: Notify,
}

struct Core {
    role: RoleCore,
    calls: BTreeMap<CallId, Reply>,
    next: u64,
}

enum RoleCore {
    Unit {
        unit: Box<Unit>,
        disk: SimDisk,
    },
    Sequencer(Box<Sequencer>),
    Layout {
        published: Option<Published>,
        waiting: Vec<(CallId, Time)>,
    },
}

impl Service for Host {
    fn handle(&self, _from: &Caller, request: Message, reply: Reply) {
        let decoded = Request::decode(&request).expect("clients send requests");
        let mut core = self.core.lock().expect("no panic inside");
        core.next += 1;
        let call = CallId(core.next);
        core.calls.insert(call, reply);
        core.handle(self.env.now(), call, decoded, request.body);
        drop(core);
        self.wake.notify_one();
    }
}

impl Core {
    fn handle(&mut self, now: Time, call: CallId, request: Request, body: Bytes) {
        match (&mut self.role, request) {
            (RoleCore::Unit { unit, .. }, Request::Unit(request)) => {
                unit.handle(now, call, request, body);
            }
            (RoleCore::Sequencer(sequencer), Request::Sequencer(request)) => {
                sequencer.handle(now, call, request);
            }
            (
                RoleCore::Layout { published, waiting },
                Request::Layout(LayoutRequest::Get { known, wait_ms }),
            ) => match published {
                Some(published) if published.layout.epoch > known => {
                    let layout = LayoutResponse::Layout(published.clone());
                    self.reply(call, Response::Layout(layout), Bytes::new());
                }
                _ => {
                    let wait = Duration::from_millis(u64::from(wait_ms));
                    waiting.push((call, now.after(wait)));
                }
            },
            (RoleCore::Layout { .. }, _) => {
                self.reply(call, Response::Layout(LayoutResponse::Heard), Bytes::new());
            }
            (_, other) => panic!("not for this role: {other:?}"),
        }
        self.pump(now);
    }

    fn reply(&mut self, call: CallId, response: Response, body: Bytes) {
        if let Some(reply) = self.calls.remove(&call) {
            reply.send(response.into_message(body));
        }
    }

    fn pump(&mut self, now: Time) {
        loop {
            let (mut replies, mut busy) = (Vec::new(), false);
            match &mut self.role {
                RoleCore::Unit { unit, disk } => {
                    while let Some(effect) = unit.poll_effect() {
                        match effect {
                            UnitEffect::Disk(id, op) => disk.submit(id, op),
                            UnitEffect::Reply(call, response, body) => {
                                replies.push((call, response, body));
                            }
                        }
                    }
                    while disk.step() {}
                    for (id, result) in disk.take_completions() {
                        unit.disk_done(now, id, result);
                        busy = true;
                    }
                }
                RoleCore::Sequencer(sequencer) => {
                    while let Some((call, response)) = sequencer.poll_reply() {
                        replies.push((call, response, Bytes::new()));
                    }
                }
                RoleCore::Layout { .. } => {}
            }
            for (call, response, body) in replies {
                self.reply(call, response, body);
            }
            if !busy {
                return;
            }
        }
    }

    fn time(&mut self, now: Time) -> Option<Time> {
        let next = match &mut self.role {
            RoleCore::Unit { unit, .. } => {
                unit.handle_time(now);
                unit.next_time()
            }
            RoleCore::Sequencer(sequencer) => {
                sequencer.handle_time(now);
                sequencer.next_time()
            }
            RoleCore::Layout { waiting, .. } => {
                let late = waiting.extract_if(.., |(_, until)| *until <= now);
                let late: Vec<_> = late.collect();
                let next = waiting.iter().map(|(_, until)| *until).min();
                for (call, _) in late {
                    let why = "nothing newer".into();
                    let response = Response::Layout(LayoutResponse::Waiting { why });
                    self.reply(call, response, Bytes::new());
                }
                next
            }
        };
        self.pump(now);
        next
    }
}

impl Host {
    fn start(env: &SharedEnv, role: RoleCore) -> Arc<Self> {
        let core = Core {
            role,
            calls: BTreeMap::new(),
            next: 0,
        };
        let host = Arc::new(Self {
            env: Arc::clone(env),
            core: Mutex::new(core),
            wake: Notify::new(),
        });
        host.core.lock().expect("no panic inside").pump(env.now());
        let weak = Arc::downgrade(&host);
        let timers = async move {
            while let Some(host) = weak.upgrade() {
                let next = host
                    .core
                    .lock()
                    .expect("no panic inside")
                    .time(host.env.now());
                let soon = host.env.now().after(Duration::from_secs(60));
                tokio::select! {
                    biased;
                    () = host.wake.notified() => {}
                    () = host.env.sleep_until(next.unwrap_or(soon)) => {}
                }
            }
        };
        env.spawn("host", Box::pin(timers)).detach();
        host
    }
}

struct Cluster {
    env: SharedEnv,
    network: Arc<MemoryNetwork>,
    admin: SharedNetwork,
    units: Mutex<Vec<(Arc<Host>, Serving)>>,
    layout: Arc<Host>,
    others: Mutex<Vec<Serving>>,
    history: Mutex<Layout>,
    clients: Mutex<Vec<Arc<LogClient>>>,
    tokens: Mutex<Vec<Token>>,
}

fn peer(name: &str) -> Peer {
    Peer {
        name: name.into(),
        address: name.into(),
    }
}

fn unit_config(n: usize) -> UnitConfig {
    let id = UnitId(n as u128 + 1);
    let mut config = UnitConfig::new(id, format!("unit-{n}").as_str().into());
    config.segment_bytes = 4 << 20;
    config.soft_reserve_bytes = 1 << 20;
    config
}

impl Cluster {
    async fn start(chains: usize, replicas: usize) -> Arc<Self> {
        let mut limits = Limits::default();
        limits.entry_bytes = 1 << 17;
        Self::with(chains, replicas, limits).await
    }

    async fn with(chains: usize, replicas: usize, limits: Limits) -> Arc<Self> {
        let env: SharedEnv = TokioEnv::seeded(5);
        let network = MemoryNetwork::new(Arc::clone(&env));
        let admin = network.endpoint("admin".into(), Role::Server);
        let layout = Host::start(
            &env,
            RoleCore::Layout {
                published: None,
                waiting: Vec::new(),
            },
        );
        let index = |n: usize| UnitIndex(u16::try_from(n).expect("few"));
        let units = (0..chains * replicas).map(|n| UnitRef {
            name: format!("unit-{n}").as_str().into(),
            id: UnitId(n as u128 + 1),
        });
        let history = Layout {
            cluster: ClusterId(77),
            epoch: Epoch::NONE,
            start: Position::ZERO,
            starts: Vec::new(),
            segments: vec![Segment::new(
                Position::ZERO,
                Position::ZERO,
                (0..chains)
                    .map(|c| (0..replicas).map(|r| index(c * replicas + r)).collect())
                    .collect(),
            )],
            units: units.collect(),
            redundancy: Redundancy::of(2),
            sequencer: SequencerRef {
                name: "sequencer-1".into(),
                incarnation: Incarnation(0),
            },
            limits,
        };
        let served = network.serve("layout-1".into(), Arc::<Host>::clone(&layout));
        let cluster = Arc::new(Self {
            env,
            network,
            admin,
            units: Mutex::default(),
            layout,
            others: Mutex::new(vec![served]),
            history: Mutex::new(history),
            clients: Mutex::default(),
            tokens: Mutex::default(),
        });
        let disks = (0..chains * replicas).map(|n| SimDisk::new(n as u64));
        cluster.start_units(disks.collect());
        cluster.reconfigure().await;
        for _ in 0..4 {
            let client = LogClient::connect(
                Arc::clone(&cluster.env),
                cluster.network.endpoint("client".into(), Role::Client),
                vec![peer("layout-1")],
                ClientOptions::default(),
            );
            let client = client.await.expect("there is a layout");
            cluster.clients.lock().expect("no panic").push(client);
        }
        cluster
    }

    fn start_units(&self, disks: Vec<SimDisk>) {
        let started = disks.into_iter().enumerate().map(|(n, disk)| {
            let unit = Box::new(Unit::start(unit_config(n), self.env.random()));
            let host = Host::start(&self.env, RoleCore::Unit { unit, disk });
            let name = format!("unit-{n}");
            let serving = self
                .network
                .serve(name.as_str().into(), Arc::<Host>::clone(&host));
            (host, serving)
        });
        let started = started.collect();
        *self.units.lock().expect("no panic") = started;
    }

    async fn ask(&self, to: &str, request: Request) -> Response {
        for _ in 0..100 {
            let message = request.clone().into_message(Bytes::new());
            let deadline = self.env.now().after(Duration::from_secs(5));
            let answer = self.admin.call(&peer(to), message, deadline).await;
            let answer = Response::decode(&answer.expect("in memory")).expect("a response");
            match answer {
                Response::Refused(_) => self.env.sleep(Duration::from_millis(5)).await,
                other => return other,
            }
        }
        panic!("{to} keeps refusing {request:?}");
    }

    async fn ask_unit(&self, n: usize, request: UnitRequest) -> UnitResponse {
        match self.ask(&format!("unit-{n}"), Request::Unit(request)).await {
            Response::Unit(response) => response,
            other => panic!("{other:?}"),
        }
    }

    /// Seal, collect, commit, open, bootstrap, publish. Every unit is there.
    async fn reconfigure(&self) {
        let mut layout = self.history.lock().expect("no panic").clone();
        layout.epoch = layout.epoch.next();
        let (epoch, count) = (layout.epoch, layout.units.len());
        let (mut start, mut trimmed) = (layout.start, Position::ZERO);
        for n in 0..count {
            let UnitResponse::Sealed(report) = self.ask_unit(n, UnitRequest::Seal { epoch }).await
            else {
                panic!("no seal report");
            };
            start = start.max(report.high);
            trimmed = trimmed.max(report.marks.trimmed);
        }
        layout.start = start;
        layout.starts.push((epoch, start));
        let tails = self.collect(epoch, start, count).await;
        layout.sequencer.incarnation = Incarnation(u128::from(epoch.0));
        for n in 0..count {
            let open = UnitRequest::Open {
                layout: layout.clone(),
                persisted: Epoch::NONE,
                starts: layout.starts.clone(),
            };
            self.ask_unit(n, open).await;
        }
        self.bootstrap(&layout, trimmed, tails).await;
        *self.history.lock().expect("no panic") = layout.clone();
        let names = layout.units.iter().map(|unit| unit.name.clone());
        let names = names.chain([layout.sequencer.name.clone()]);
        let new = Published {
            addresses: names.map(|n| (n.clone(), n.to_string())).collect(),
            layout,
        };
        let mut core = self.layout.core.lock().expect("no panic");
        let RoleCore::Layout { published, waiting } = &mut core.role else {
            panic!("the layout's host");
        };
        *published = Some(new.clone());
        for (call, _) in std::mem::take(waiting) {
            let layout = LayoutResponse::Layout(new.clone());
            core.reply(call, Response::Layout(layout), Bytes::new());
        }
    }

    async fn collect(&self, epoch: Epoch, below: Position, count: usize) -> Vec<StreamTail> {
        let mut lists: BTreeMap<StreamId, (Vec<Position>, ListEnd)> = BTreeMap::new();
        for n in 0..count {
            let after = None;
            let collect = UnitRequest::Collect {
                epoch,
                after,
                below,
            };
            let UnitResponse::Tails { tails, done: true } = self.ask_unit(n, collect).await else {
                panic!("one page is enough here");
            };
            for tail in tails {
                let list = lists
                    .entry(tail.stream)
                    .or_insert((Vec::new(), ListEnd::Beginning));
                list.0.extend(tail.last.positions());
                if tail.last.end() != ListEnd::Beginning {
                    list.1 = tail.last.end();
                }
            }
        }
        let merged = lists.into_iter().map(|(stream, (mut positions, end))| {
            positions.sort_unstable_by(|a, b| b.cmp(a));
            positions.dedup();
            let last = BackPointers::new(positions, end);
            StreamTail { stream, last }
        });
        merged.collect()
    }

    async fn bootstrap(&self, layout: &Layout, trimmed: Position, tails: Vec<StreamTail>) {
        let incarnation = layout.sequencer.incarnation;
        let sequencer = Box::new(Sequencer::new(incarnation));
        let host = Host::start(&self.env, RoleCore::Sequencer(sequencer));
        {
            let mut others = self.others.lock().expect("no panic");
            others.truncate(1);
            others.push(self.network.serve("sequencer-1".into(), host));
        }
        let bootstrap = Bootstrap {
            epoch: layout.epoch,
            incarnation,
            cluster: layout.cluster,
            next: layout.start,
            trimmed,
            lost: Position::ZERO,
            lease: Lease::None,
            stream_limit: layout.limits.streams,
            page: 0,
            last: true,
            tails,
        };
        let request = Request::Sequencer(SequencerRequest::Bootstrap(bootstrap));
        self.ask("sequencer-1", request).await;
    }

    async fn token(&self, streams: Vec<StreamId>) -> Token {
        let epoch = self.history.lock().expect("no panic").epoch;
        let wants = vec![streams];
        let request = SequencerRequest::Tokens { epoch, wants };
        match self.ask("sequencer-1", Request::Sequencer(request)).await {
            Response::Sequencer(SequencerResponse::Tokens(mut tokens)) => {
                tokens.pop().expect("one was asked")
            }
            other => panic!("{other:?}"),
        }
    }

    async fn write(&self, token: Token, payload: Bytes) -> bool {
        let layout = self.history.lock().expect("no panic").clone();
        let id = EntryId {
            writer: WriterId(99),
            sequence: token.position.0,
        };
        let entry = Entry {
            id,
            links: token.links,
            payload,
        };
        let entry = EncodedEntry::encode(token.position, &entry, false);
        let len = u32::try_from(entry.len()).expect("small");
        for unit in layout.chain(token.position) {
            let write = Request::Unit(UnitRequest::Write {
                epoch: layout.epoch,
                settled: Position::ZERO,
                items: vec![(token.position, WireValue::Data { len })],
            });
            let deadline = self.env.now().after(Duration::from_secs(5));
            let to = peer(&format!("unit-{}", unit.0));
            let answer = self
                .admin
                .call(&to, write.into_message(entry.bytes().clone()), deadline);
            let answer = Response::decode(&answer.await.expect("in memory"));
            match answer.expect("a response") {
                Response::Unit(UnitResponse::Written { answers, .. })
                    if answers == [WriteAnswer::Durable] => {}
                _ => return false,
            }
        }
        true
    }
}

impl LogUnderTest for Cluster {
    fn log(&self, n: usize) -> SharedLog {
        Arc::<LogClient>::clone(&self.clients.lock().expect("no panic")[n])
    }

    fn make_hole(&self, streams: Vec<StreamId>) -> BoxFuture<'_, Position> {
        Box::pin(async move {
            let token = self.token(streams).await;
            let position = token.position;
            self.tokens.lock().expect("no panic").push(token);
            position
        })
    }

    fn write_late(&self, hole: Position, payload: Bytes) -> BoxFuture<'_, Option<bool>> {
        let tokens = self.tokens.lock().expect("no panic");
        let token = tokens.iter().find(|token| token.position == hole).cloned();
        Box::pin(async move { Some(self.write(token?, payload).await) })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            let old = std::mem::take(&mut *self.units.lock().expect("no panic"));
            let mut disks = Vec::new();
            for (n, (host, _serving)) in old.into_iter().enumerate() {
                let core = host.core.lock().expect("no panic");
                if let RoleCore::Unit { disk, .. } = &core.role {
                    disks.push(disk.crash(n as u64));
                }
            }
            self.env.sleep(Duration::from_millis(20)).await;
            self.start_units(disks);
            self.reconfigure().await;
            true
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_keeps_the_log_contract_over_the_real_cores() {
    let mut skipped = Vec::new();
    for (chains, replicas) in [(1, 1), (2, 2)] {
        for check in checks() {
            println!("{check:?} on {chains} x {replicas}");
            let cluster = Cluster::start(chains, replicas).await;
            if check.run(cluster).await == Outcome::NotSupported {
                skipped.push(check.name);
            }
        }
    }
    // Damage is made below the unit: its own tests do that.
    assert!(
        skipped
            .iter()
            .all(|name| name.contains("damage") || name.contains("lost")),
        "{skipped:?}"
    );
}

/// A dead client's token, and many appends at once that are too far above it.
#[tokio::test(start_paused = true)]
async fn a_group_far_above_a_hole_gets_through() {
    for (chains, replicas) in [(1, 1), (1, 2), (2, 2)] {
        let mut limits = Limits::default();
        limits.positions_ahead = 8;
        let cluster = Cluster::with(chains, replicas, limits).await;
        let log = cluster.log(0);
        for _ in 0..10 {
            cluster.make_hole(vec![StreamId::raw(1)]).await;
        }
        let began = cluster.env.now();
        let appends =
            (0..100).map(|n| log.append(NewEntry::new([StreamId::raw(1)], format!("{n}"))));
        for appended in futures_util::future::join_all(appends).await {
            appended.unwrap_or_else(|error| panic!("{chains} x {replicas}: {error}"));
        }
        let took = cluster.env.now().since(began);
        assert!(
            took < Duration::from_secs(5),
            "{chains} x {replicas}: {took:?}"
        );
    }
}

/// More than one answer of a unit carries.
#[tokio::test(start_paused = true)]
async fn what_was_appended_is_read_however_much_it_is() {
    let mut limits = Limits::default();
    limits.entry_bytes = 1 << 20;
    let cluster = Cluster::with(1, 2, limits).await;
    let log = cluster.log(0);
    let mut positions = Vec::new();
    for n in 0..24_u8 {
        let entry = NewEntry::new([StreamId::raw(1)], vec![n; 900 << 10]);
        positions.push(log.append(entry).await.expect("no fault").position);
    }
    for restart in [false, true] {
        if restart {
            cluster.restart().await;
        }
        let answers = cluster.log(1).read(positions.clone()).await.expect("read");
        for (position, answer) in positions.iter().zip(answers) {
            let data = matches!(answer, ReadAnswer::Data(_));
            assert!(data, "{position} is not data, restarted: {restart}");
        }
    }
}

/// Of a group only the appends that would begin one stream too many are refused.
#[tokio::test(start_paused = true)]
async fn the_limit_of_streams_refuses_new_streams_only() {
    let mut limits = Limits::default();
    limits.streams = 3;
    let cluster = Cluster::with(2, 1, limits).await;
    let log = cluster.log(0);
    let appends = (0..8).map(|n| log.append(NewEntry::new([StreamId::raw(n % 4)], "x")));
    let outcomes = futures_util::future::join_all(appends).await;
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(_) => assert_ne!(n % 4, 3),
            Err(error) => {
                assert_eq!(n % 4, 3);
                assert_eq!(error, AppendError::StreamLimit { limit: 3 });
                assert!(!error.is_retryable());
            }
        }
    }
    let entry = NewEntry::new([StreamId::raw(2)], "goes on");
    let appended = log.append(entry).await.expect("an old stream");
    assert_eq!(
        appended.position,
        Position(6),
        "nothing was granted for the refused"
    );
}
