//! The members of a layout in one thread.

use std::fmt::Debug;
use std::time::Duration;

use milonga_protocol::Task;

use super::disks::SlowDisk;
use super::net::{Net, Wire};
use super::*;

/// How long a test waits for what must come, in virtual time.
const SOON: Duration = Duration::from_secs(30);

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

impl Cluster {
    /// A cluster whose members have stores in memory and are not started.
    pub(super) fn new(env: &SharedEnv, count: u64) -> Self {
        let members = members(count);
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
            net: Net::new(env),
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
        let wire = Wire::new(id, &self.net);
        let (disk, task) = SlowDisk::new(&self.env);
        self.disks.insert(id, task);
        let members = self.members.clone();
        let store = self.stores[&id].clone().on(Arc::new(disk));
        let started = Replica::start(id, members, store, Arc::new(wire), &self.env, &self.config);
        let replica = Arc::new(started.await.unwrap());
        self.net.attach(id, &replica);
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
        self.net.cut_off(id);
    }

    pub(super) fn heal(&self) {
        self.net.heal();
    }

    pub(super) fn note(&self, what: &str) {
        self.net.note(what);
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.net.trace()
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
            let leads = |id: &MemberId| self.get(*id).leadership().borrow().leads;
            let mut ids = self.ids().into_iter();
            ids.find(|id| !self.net.is_cut_off(*id) && leads(id))
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
