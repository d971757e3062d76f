//! The processes of a world: servers as `scripts/cluster` starts them, and clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use milonga_layout::ClusterPlan;
use milonga_node::{LayoutPlan, ServerPlan, ServerProcess, UnitSettings};
use milonga_protocol::change::{ChangeStage, ClusterChange};
use milonga_protocol::messages::{
    LayoutRequest, LayoutResponse, Lease, Refusal, Request, Response, SequencerRequest,
};
use milonga_protocol::{Epoch, Incarnation, Limits, ServerName, SharedEnv};
use milonga_transport::{Identity, Peer, Role, SharedNetwork};

use crate::world::disk::{End, WorldDisk, WorldMachine, WorldStore};
use crate::world::executor::{Executor, ProcessId};
use crate::world::journal::{Journal, Observed};
use crate::world::network::WorldNetwork;
use crate::world::plan::{Plan, Shape};
use crate::world::quic::{Line, Plug};
use crate::world::rng::Rng;

/// The servers of a world.
#[derive(Debug)]
pub struct Cluster {
    seed: u64,
    executor: Executor,
    network: WorldNetwork,
    journal: Journal,
    shape: Shape,
    line: Line,
    rng: Rng,
    servers: BTreeMap<ServerName, Server>,
    /// Those whose start failed, and why.
    failed: Failures,
}

type Failures = Arc<Mutex<Vec<(ServerName, ProcessId, String)>>>;

#[derive(Debug)]
struct Server {
    disk: WorldDisk,
    store: WorldStore,
    running: Option<ProcessId>,
}

impl Cluster {
    /// A cluster whose servers do not run yet.
    pub(crate) fn new(
        seed: u64,
        plan: &Plan,
        executor: &Executor,
        network: &WorldNetwork,
        journal: &Journal,
        line: &Line,
    ) -> Self {
        let server = |name: String| {
            let disk = WorldDisk::new(seed, &name, plan.disk.clone());
            let store = WorldStore::new(seed, &name, &plan.disk);
            let running = None;
            (
                name.as_str().into(),
                Server {
                    disk,
                    store,
                    running,
                },
            )
        };
        Self {
            seed,
            executor: executor.clone(),
            network: network.clone(),
            journal: journal.clone(),
            line: line.clone(),
            rng: Rng::new(seed, "cluster"),
            servers: plan.shape.servers().into_iter().map(server).collect(),
            shape: plan.shape.clone(),
            failed: Failures::default(),
        }
    }

    /// The run of a server, if it runs.
    #[must_use]
    pub fn process(&self, name: &ServerName) -> Option<ProcessId> {
        self.servers.get(name)?.running
    }

    /// The disk of a server.
    #[must_use]
    pub fn disk(&self, name: &ServerName) -> Option<&WorldDisk> {
        Some(&self.servers.get(name)?.disk)
    }

    /// Names and disks of all servers.
    pub fn disks(&self) -> impl Iterator<Item = (&ServerName, &WorldDisk)> {
        let servers = self.servers.iter();
        servers.map(|(name, server)| (name, &server.disk))
    }

    /// Names of all servers.
    #[must_use]
    pub fn names(&self) -> Vec<ServerName> {
        self.servers.keys().cloned().collect()
    }

    /// Where clients ask for the layout.
    #[must_use]
    pub fn layout_servers(&self) -> Vec<Peer> {
        let peer = |name: String| {
            let name = name.as_str().into();
            let address = self.line.address(&name).as_str().into();
            Peer { name, address }
        };
        let names = self.shape.layout_servers().into_iter();
        names.map(peer).collect()
    }

    /// Starts a server, unless it runs.
    pub fn start(&mut self, name: &ServerName) {
        if self.process(name).is_some() {
            return;
        }
        let process = new_process(&self.executor, self.seed, name, &mut self.rng);
        let env = self.executor.env(process);
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        server.running = Some(process);
        let store = server.store.clone();
        let disk = server.disk.clone();
        let layout = self.layout_servers();
        let machine = WorldMachine {
            executor: self.executor.clone(),
            process,
            disk,
            store,
        };
        let start = Start {
            plan: server_plan(&self.shape, name, &layout),
            line: self.line.clone(),
            journal: self.journal.clone(),
            name: name.clone(),
            network: self.network.clone(),
            layout,
            failed: Arc::clone(&self.failed),
            process,
            env,
            machine,
        };
        self.journal
            .push(Observed::Started(self.executor.now(), name.clone()));
        self.executor.trace(&("start", name.as_str(), process));
        self.executor
            .spawn(process, "server", Box::pin(start.run()))
            .detach();
    }

    /// Ends a server, if it runs.
    pub fn stop(&mut self, name: &ServerName, how: End) {
        let Some(server) = self.servers.get_mut(name) else {
            return;
        };
        let Some(process) = server.running.take() else {
            return;
        };
        self.executor.trace(&("stop", name.as_str(), process, how));
        self.executor.kill(process);
        self.network.killed(process);
        server.disk.end(how);
        server.store.end();
        self.journal
            .push(Observed::Killed(self.executor.now(), name.clone()));
    }

    /// Somebody from outside: a new process, with its network.
    fn outsider(&mut self, name: &str) -> (ProcessId, SharedEnv, SharedNetwork) {
        let name = ServerName::new(name);
        let process = new_process(&self.executor, self.seed, &name, &mut self.rng);
        let env = self.executor.env(process);
        let identity = Identity::new(name.clone(), Incarnation(env.random_id()));
        let plug = Plug {
            executor: &self.executor,
            network: &self.network,
            journal: &self.journal,
            process,
            env: &env,
            name: &name,
        };
        let network = self.line.network(&plug, Role::Client, &identity);
        (process, env, network)
    }

    /// Somebody asks the sequencer `name` for the tail, in the epoch that it says it serves.
    pub(crate) fn query(&mut self, name: &ServerName, lasts: Duration) {
        let (process, env, network) = self.outsider("asker");
        let address = self.line.address(name).as_str().into();
        let name = name.clone();
        let peer = Peer { name, address };
        let until = env.now().after(lasts);
        let asks = async move {
            let mut epoch = Epoch(1);
            while env.now() < until {
                let streams = Vec::new();
                let request = SequencerRequest::Tail { epoch, streams };
                let message = Request::Sequencer(request).into_message(Bytes::new());
                let deadline = env.now().after(Duration::from_millis(100));
                let answer = network.call(&peer, message, deadline).await.ok();
                if let Some(Response::Refused(
                    Refusal::Sealed { epoch: other } | Refusal::NotYet { epoch: other },
                )) = answer.and_then(|message| Response::decode(&message).ok())
                {
                    epoch = other;
                }
                env.sleep(Duration::from_millis(20)).await;
            }
        };
        self.executor
            .spawn(process, "asker", Box::pin(asks))
            .detach();
    }

    /// An operator asks the layout for a change until it is done, cannot be, or the time is over.
    pub(crate) fn operate(&mut self, change: ClusterChange, lasts: Duration) {
        let (process, env, network) = self.outsider("operator");
        let layout = self.layout_servers();
        let until = env.now().after(lasts);
        let asks = async move {
            while env.now() < until {
                for server in &layout {
                    if is_decided(&env, &network, server, &change).await {
                        return;
                    }
                }
                env.sleep(Duration::from_millis(300)).await;
            }
        };
        self.executor
            .spawn(process, "operator", Box::pin(asks))
            .detach();
    }

    /// Restarts the servers whose start failed, as whoever supervises them would, and says why they had.
    pub fn restart_failed(&mut self) -> Vec<(ServerName, String)> {
        let failures = Arc::clone(&self.failed);
        let mut failed = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = std::mem::take(&mut *failed);
        let mut said = Vec::new();
        for (name, process, why) in failed {
            if self.process(&name) == Some(process) {
                self.stop(&name, End::Kill);
                self.start(&name);
                said.push((name, why));
            }
        }
        said
    }
}

/// Asks once; whether asking again is in vain.
async fn is_decided(
    env: &SharedEnv,
    network: &SharedNetwork,
    server: &Peer,
    change: &ClusterChange,
) -> bool {
    let (change, dry_run) = (change.clone(), false);
    let request = Request::Layout(LayoutRequest::Change { change, dry_run });
    let deadline = env.now().after(Duration::from_secs(1));
    let answer = network.call(server, request.into_message(Bytes::new()), deadline);
    let answer = answer.await.ok();
    match answer.and_then(|message| Response::decode(&message).ok()) {
        Some(Response::Layout(LayoutResponse::Change(report))) => report.stage == ChangeStage::Done,
        Some(Response::Refused(refusal)) => matches!(refusal, Refusal::Declined { .. }),
        _ => false,
    }
}

/// A new run of `name`, with a clock of its own.
pub(crate) fn new_process(
    executor: &Executor,
    seed: u64,
    name: &ServerName,
    rng: &mut Rng,
) -> ProcessId {
    let shown = Duration::from_nanos(rng.below(1 << 50));
    let rate = rng.between(999_800, 1_000_200);
    executor.start(seed, name.as_str(), shown, rate)
}

fn server_plan(shape: &Shape, name: &ServerName, members: &[Peer]) -> ServerPlan {
    let chains = shape.chain_names();
    let in_chain = chains.iter().flatten().any(|unit| unit == name.as_str());
    let is_unit = in_chain || shape.spare_names().any(|spare| spare == name.as_str());
    let mut limits = Limits::default();
    limits.positions_ahead = shape.positions_ahead;
    limits.conflict_window = shape.conflict_window;
    let layout = || {
        let chain = |units: &Vec<String>| units.iter().map(ServerName::new).collect();
        let chains = chains.iter().map(chain).collect();
        let plan = ClusterPlan::new(chains, "sequencer-1".into(), limits, Lease::None);
        let spares = shape.spare_sequencer.then(|| "sequencer-2".into());
        let spare_units = shape.spare_names().map(ServerName::new);
        let plan = plan
            .with_spare_sequencers(spares.into_iter().collect())
            .with_spare_units(spare_units.collect(), shape.spare_after)
            .with_min_replicas(shape.min_replicas)
            .with_lease_ms(shape.lease_ms);
        LayoutPlan::new(plan, members.to_vec())
    };
    let unit = || {
        let mut unit = UnitSettings::default();
        unit.segment_bytes = shape.segment_bytes;
        unit.cache_bytes = shape.cache_bytes;
        unit.reserve_bytes = 4 * shape.segment_bytes;
        unit
    };
    ServerPlan {
        data: Some("data".into()),
        unit: is_unit.then(unit),
        sequencer: name.as_str().starts_with("sequencer-"),
        layout: members
            .iter()
            .any(|member| member.name == *name)
            .then(layout),
    }
}

/// The main task of a server process.
struct Start {
    name: ServerName,
    plan: ServerPlan,
    machine: WorldMachine,
    env: SharedEnv,
    process: ProcessId,
    line: Line,
    journal: Journal,
    network: WorldNetwork,
    layout: Vec<Peer>,
    failed: Failures,
}

impl Start {
    async fn run(mut self) {
        if let Err(why) = self.live().await {
            self.env.sleep(Duration::from_millis(100)).await;
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.push((self.name, self.process, why));
        }
    }

    /// Runs until the process is killed; why it could not start.
    async fn live(&mut self) -> Result<(), String> {
        let incarnation = Incarnation(self.env.random_id());
        let identity = Identity::new(self.name.clone(), incarnation);
        let plug = Plug {
            executor: &self.machine.executor,
            network: &self.network,
            journal: &self.journal,
            process: self.process,
            env: &self.env,
            name: &self.name,
        };
        let network = self.line.network(&plug, Role::Server, &identity);
        let plan = std::mem::take(&mut self.plan);
        let process = ServerProcess::start(&self.env, &self.machine, plan, &identity, &network);
        let mut process = process.await.map_err(|error| error.to_string())?;
        let _serving = self.line.serve(&plug, &identity, process.service())?;
        process.greet(&network, &self.line.address(&self.name), &self.layout);
        std::future::pending().await
    }
}
