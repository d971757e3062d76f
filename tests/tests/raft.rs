//! The layout's raft on the world's executor: several processes in one thread, in whatever order a seed draws, their
//! clocks apart. The same seed gives the same run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use milonga_layout::{
    Leadership, Member, MemberId, RaftCarrier, RaftConfig, RaftRequest, RaftResponse, RaftStore,
    Replica, StoreChange,
};
use milonga_protocol::{BoxFuture, Epoch, SharedEnv, Time};
use milonga_tests::world::{Executor, Moment, Order, ProcessId, Trace};

const COUNT: u64 = 3;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic under the lock")
}

/// Members that are reachable.
type Listening = Arc<Mutex<BTreeMap<MemberId, Weak<Replica>>>>;

struct Wire {
    env: SharedEnv,
    executor: Executor,
    listening: Listening,
}

impl RaftCarrier for Wire {
    fn call(
        &self,
        to: MemberId,
        _: &Member,
        request: RaftRequest,
        _: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        let (env, executor) = (Arc::clone(&self.env), self.executor.clone());
        let listening = Arc::clone(&self.listening);
        Box::pin(async move {
            let delay = Duration::from_micros(env.random() % 5_000);
            env.sleep(delay).await;
            executor.trace(&format!("to {to}: {request:?}"));
            let replica = lock(&listening).get(&to).and_then(Weak::upgrade);
            let replica = replica.ok_or("nobody listens")?;
            let response = replica.handle(request).await;
            executor.trace(&format!("{to} answers {response:?}"));
            Ok(response)
        })
    }
}

/// Where a process puts its replica for others to see, and keeps it.
type Running = Arc<Mutex<Option<Arc<Replica>>>>;

struct World {
    executor: Executor,
    listening: Listening,
    stores: BTreeMap<MemberId, RaftStore>,
    processes: BTreeMap<MemberId, (ProcessId, Running)>,
}

impl World {
    fn new(seed: u64, order: Order) -> Self {
        let lateness = Duration::from_micros(500);
        Self {
            executor: Executor::new(seed, order, lateness, Trace::new(false)),
            listening: Listening::default(),
            stores: (1..=COUNT)
                .map(|id| (MemberId(id), RaftStore::memory()))
                .collect(),
            processes: BTreeMap::new(),
        }
    }

    fn start(&mut self, seed: u64, id: u64) {
        let id = MemberId(id);
        // A clock of its own: 0.1 % too fast or slow.
        let rate = 1_000_000 - 1_000 + 1_000 * (id.0 - 1);
        let shown = Duration::from_secs(id.0);
        let process = self
            .executor
            .start(seed, &format!("layout-{id}"), shown, rate);
        let env = self.executor.env(process);
        let members = (1..=COUNT).map(|id| {
            let member = Member {
                name: "layout".into(),
                address: String::new(),
            };
            (MemberId(id), member)
        });
        let (members, store) = (members.collect(), self.stores[&id].clone());
        let wire = Wire {
            env: Arc::clone(&env),
            executor: self.executor.clone(),
            listening: Arc::clone(&self.listening),
        };
        let (listening, running) = (Arc::clone(&self.listening), Running::default());
        self.processes.insert(id, (process, Arc::clone(&running)));
        let start = async move {
            let config = RaftConfig::default();
            let started = Replica::start(id, members, store, Arc::new(wire), &env, &config).await;
            let replica = Arc::new(started.expect("starts"));
            lock(&listening).insert(id, Arc::downgrade(&replica));
            replica.initialize().await.expect("a new cluster");
            *lock(&running) = Some(replica);
        };
        let task = self.executor.spawn(process, "member", Box::pin(start));
        task.detach();
    }

    fn kill(&mut self, id: MemberId) {
        let (process, running) = self.processes.remove(&id).expect("runs");
        self.executor.kill(process);
        lock(&running).take();
    }

    fn run_for(&self, millis: u64) {
        let until = self.executor.now().plus(millis * 1_000_000);
        self.executor.run_until(until).expect("goes on");
    }

    fn leadership(&self, id: MemberId) -> Leadership {
        let running = lock(&self.processes[&id].1);
        running
            .as_ref()
            .map_or_else(Leadership::default, |replica| {
                *replica.leadership().borrow()
            })
    }

    fn leader(&self) -> MemberId {
        for _ in 0..100 {
            self.run_for(100);
            if let Some(id) = self.processes.keys().find(|id| self.leadership(**id).leads) {
                return *id;
            }
        }
        panic!("no leader at {}", self.executor.now());
    }

    /// Has the leader propose; whether the history took it.
    fn propose(&self, epoch: u64) -> Option<bool> {
        let leader = self.leader();
        let (process, running) = &self.processes[&leader];
        let replica = lock(running).clone().expect("runs");
        let verdict = Arc::new(Mutex::new(None));
        let answer = Arc::clone(&verdict);
        let propose = async move {
            let intent = StoreChange::Intent {
                epoch: Epoch(epoch),
            };
            *lock(&answer) = replica.propose(intent).await.ok().map(|v| v.is_ok());
        };
        self.executor
            .spawn(*process, "propose", Box::pin(propose))
            .detach();
        self.run_for(3_000);
        *lock(&verdict)
    }
}

/// Elects, changes, kills the leader, changes, restarts. Gives the time and what the trace amounts to.
fn life(seed: u64, order: Order) -> (Moment, u64) {
    println!("seed {seed} {order:?}");
    let mut world = World::new(seed, order);
    for id in 1..=COUNT {
        world.start(seed, id);
    }
    assert_eq!(world.propose(1), Some(true));
    let old = world.leader();
    world.kill(old);
    assert_eq!(world.propose(2), Some(true));
    assert_ne!(world.leader(), old);
    assert_eq!(world.propose(1), Some(false), "stale");
    world.start(seed, old.0);
    world.run_for(5_000);
    for (_, running) in world.processes.values() {
        let replica = lock(running).clone().expect("runs");
        assert_eq!(replica.history().intent(), Some(Epoch(2)));
    }
    let end = world.executor.now();
    let hash = world.executor.with_trace(|trace| trace.hash());
    (end, hash)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for order in [Order::Fifo, Order::Lifo, Order::Random] {
        for seed in 1..=5 {
            assert_eq!(life(seed, order), life(seed, order));
        }
        assert_ne!(life(1, order), life(2, order));
    }
}
