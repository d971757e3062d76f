//! The members and the network between them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::Duration;

use milonga_protocol::{BoxFuture, Task, Time};
use tokio::sync::mpsc;

use super::*;

/// How long a test waits for what must come, in virtual time.
const SOON: Duration = Duration::from_secs(30);

/// What happened, line by line.
type Trace = Arc<Mutex<Vec<String>>>;

/// The network: who is reachable, and what travelled.
pub(super) struct Net {
    env: SharedEnv,
    state: Mutex<State>,
    trace: Trace,
}

#[derive(Default)]
struct State {
    replicas: BTreeMap<MemberId, Weak<Replica>>,
    cut_off: BTreeSet<MemberId>,
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn note(&self, what: &str) {
        let line = format!("{:?} {what}", self.env.now());
        self.trace.lock().unwrap().push(line);
    }

    /// A drawn delay below 10 ms.
    fn delay(&self) -> BoxFuture<'static, ()> {
        let delay = Duration::from_micros(self.env.random() % 10_000);
        self.env.sleep(delay)
    }

    /// Whether something can go between the two now.
    fn connected(&self, a: MemberId, b: MemberId) -> bool {
        let state = self.lock();
        !state.cut_off.contains(&a) && !state.cut_off.contains(&b)
    }
}

/// One member's way into the network. What is cut off hangs: nobody is told.
struct Wire {
    from: MemberId,
    net: Arc<Net>,
}

impl RaftCarrier for Wire {
    fn call(
        &self,
        to: MemberId,
        _: &Member,
        request: RaftRequest,
        _: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        let (from, net) = (self.from, Arc::clone(&self.net));
        Box::pin(async move {
            let bytes = request.encode();
            assert!(bytes.len() <= MESSAGE_BYTES);
            net.delay().await;
            if !net.connected(from, to) {
                std::future::pending::<()>().await;
            }
            net.note(&format!("{from} -> {to} {} {request:?}", request.kind()));
            let request = RaftRequest::decode(&bytes).unwrap();
            let Some(replica) = net.lock().replicas.get(&to).and_then(Weak::upgrade) else {
                return Err("nobody listens".to_owned());
            };
            let response = replica.handle(request).await.encode();
            drop(replica);
            net.delay().await;
            if !net.connected(from, to) {
                std::future::pending::<()>().await;
            }
            let response = RaftResponse::decode(&response).unwrap();
            net.note(&format!("{to} -> {from} {response:?}"));
            Ok(response)
        })
    }
}

/// All members of one layout.
pub(super) struct Cluster {
    pub(super) env: SharedEnv,
    pub(super) config: RaftConfig,
    members: BTreeMap<MemberId, Member>,
    stores: BTreeMap<MemberId, RaftStore>,
    replicas: BTreeMap<MemberId, Arc<Replica>>,
    disks: BTreeMap<MemberId, Task>,
    net: Arc<Net>,
}

/// A disk that takes its time. What it has not begun when its task is dropped is lost, as when the power goes.
struct SlowDisk(mpsc::UnboundedSender<RaftJob>);

impl SlowDisk {
    fn new(env: &SharedEnv) -> (Self, Task) {
        let (sender, mut jobs) = mpsc::unbounded_channel::<RaftJob>();
        let clock = Arc::clone(env);
        let serve = async move {
            while let Some(job) = jobs.recv().await {
                let sync = Duration::from_micros(clock.random() % 8_000);
                clock.sleep(sync).await;
                job();
            }
        };
        (Self(sender), env.spawn("disk", Box::pin(serve)))
    }
}

impl RaftDisk for SlowDisk {
    fn run(&self, job: RaftJob) {
        // Without power the job is dropped.
        let _ = self.0.send(job);
    }
}

impl Cluster {
    /// A cluster whose members have stores in memory and are not started.
    pub(super) fn new(env: &SharedEnv, count: u64) -> Self {
        let members = members(count);
        let net = Net {
            env: Arc::clone(env),
            state: Mutex::default(),
            trace: Trace::default(),
        };
        Self {
            env: Arc::clone(env),
            config: RaftConfig::default(),
            stores: members
                .keys()
                .map(|id| (*id, RaftStore::memory()))
                .collect(),
            members,
            replicas: BTreeMap::new(),
            disks: BTreeMap::new(),
            net: Arc::new(net),
        }
    }

    /// A cluster that runs and has a leader.
    pub(super) async fn running(env: &SharedEnv, count: u64) -> Self {
        let mut cluster = Self::new(env, count);
        for id in 1..=count {
            cluster.start(id).await;
        }
        for replica in cluster.replicas.values() {
            replica.initialize().await.unwrap();
        }
        cluster.leader().await;
        cluster
    }

    pub(super) async fn start(&mut self, id: u64) {
        let id = MemberId(id);
        let wire = Wire {
            from: id,
            net: Arc::clone(&self.net),
        };
        let (disk, task) = SlowDisk::new(&self.env);
        self.disks.insert(id, task);
        let members = self.members.clone();
        let store = self.stores[&id].clone().on(Arc::new(disk));
        let started = Replica::start(id, members, store, Arc::new(wire), &self.env, &self.config);
        let replica = Arc::new(started.await.unwrap());
        self.net
            .lock()
            .replicas
            .insert(id, Arc::downgrade(&replica));
        self.replicas.insert(id, replica);
    }

    /// Stops a member as a loss of power does, or in good order.
    pub(super) async fn stop(&mut self, id: u64, crash: bool) {
        let id = MemberId(id);
        let Some(replica) = self.replicas.remove(&id) else {
            return;
        };
        self.note(&format!("stop {id}, crash: {crash}"));
        if !crash {
            replica.shutdown().await;
        }
        self.disks.remove(&id);
    }

    /// A member's disk takes nothing any more.
    pub(super) fn fail_disk(&mut self, id: MemberId) {
        self.disks.remove(&id);
    }

    /// Gives a member an empty disk.
    pub(super) fn wipe(&mut self, id: u64) {
        self.stores.insert(MemberId(id), RaftStore::memory());
    }

    pub(super) fn cut_off(&self, id: MemberId) {
        self.note(&format!("cut off {id}"));
        self.net.lock().cut_off.insert(id);
    }

    pub(super) fn heal(&self) {
        self.note("heal");
        self.net.lock().cut_off.clear();
    }

    pub(super) fn note(&self, what: &str) {
        self.net.note(what);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.net.trace.lock().unwrap().clone()
    }

    pub(super) fn get(&self, id: MemberId) -> &Replica {
        &self.replicas[&id]
    }

    pub(super) fn ids(&self) -> Vec<MemberId> {
        self.replicas.keys().copied().collect()
    }

    /// A member that says it leads, and none of those that are cut off.
    pub(super) async fn leader(&self) -> MemberId {
        self.until("a leader", || {
            let state = self.net.lock();
            let mut reachable = self
                .replicas
                .iter()
                .filter(|(id, _)| !state.cut_off.contains(id));
            reachable
                .find(|(_, replica)| replica.leadership().borrow().leads)
                .map(|(id, _)| *id)
        })
        .await
    }

    /// Has the leader make a change that the history takes.
    pub(super) async fn change(&self, change: StoreChange) {
        let leader = self.leader().await;
        let verdict = self.get(leader).propose(change).await;
        assert_eq!(verdict, Ok(Ok(())));
    }

    /// Begins and commits the next epoch.
    pub(super) async fn next_epoch(&self) {
        let leader = self.leader().await;
        let history = self.get(leader).history();
        self.change(intent(history.epoch().0 + 1)).await;
        self.change(commit(&history, history.epoch().0)).await;
    }

    /// Waits until all running members have the same history; gives it.
    pub(super) async fn agreed(&self) -> Arc<History> {
        let end = self.env.now().after(SOON);
        let history = loop {
            // One that was deposed behind its back may still say that it leads.
            let leader = self.get(self.leader().await);
            if leader.confirm_leadership().await.is_ok() {
                break leader.history();
            }
            assert!(self.env.now() < end, "no leader that a majority confirms");
        };
        // What nobody had acknowledged may be committed meanwhile.
        self.until("agreement", || {
            let mut all = self.replicas.values().map(|replica| replica.history());
            let first = all.next()?;
            let alike = all.all(|other| other == first);
            (alike && first.epoch() >= history.epoch()).then_some(first)
        })
        .await
    }

    /// Looks until there is something to see.
    pub(super) async fn until<T>(&self, what: impl Debug, look: impl Fn() -> Option<T>) -> T {
        let end = self.env.now().after(SOON);
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            assert!(self.env.now() < end, "no {what:?} in {SOON:?}");
            self.env.sleep(Duration::from_millis(5)).await;
        }
    }
}

/// No network at all.
pub(super) struct Nowhere;

impl RaftCarrier for Nowhere {
    fn call(
        &self,
        _: MemberId,
        _: &Member,
        _: RaftRequest,
        _: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        Box::pin(async { Err("there is no network".to_owned()) })
    }
}
