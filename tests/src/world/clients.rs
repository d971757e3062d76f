//! The client processes of a world.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use milonga_client::ClientOptions;
use milonga_protocol::{Incarnation, ServerName};
use milonga_transport::{Identity, Peer, Role};

use crate::world::cluster::new_process;
use crate::world::executor::{Executor, ProcessId};
use crate::world::journal::Journal;
use crate::world::network::WorldNetwork;
use crate::world::plan::Plan;
use crate::world::quic::{Line, Plug};
use crate::world::rng::Rng;
use crate::world::workload::{Client, EnvOf, Inside, NetworkOf, Shared, Workload};

pub(crate) fn client_name(number: usize) -> ServerName {
    format!("client-{}", number + 1).as_str().into()
}

/// The client processes of a world.
#[derive(Debug)]
pub(crate) struct Clients {
    seed: u64,
    executor: Executor,
    network: WorldNetwork,
    journal: Journal,
    pub(crate) workload: Box<dyn Workload>,
    pub(crate) layout: Vec<Peer>,
    pub(crate) line: Line,
    options: ClientOptions,
    pace: Duration,
    shared: Arc<Shared>,
    healed: Arc<AtomicBool>,
    rng: Rng,
    all: BTreeMap<ServerName, ClientState>,
}

#[derive(Debug)]
struct ClientState {
    number: usize,
    runs: u64,
    running: Option<ProcessId>,
    ended: Arc<AtomicBool>,
}

impl Clients {
    pub(crate) fn new(
        plan: &Plan,
        seed: u64,
        executor: &Executor,
        network: &WorldNetwork,
        journal: &Journal,
        workload: Box<dyn Workload>,
    ) -> Self {
        let mut options = ClientOptions::default();
        options.deadline = Duration::from_secs(5);
        options.groups_in_flight = plan.shape.groups_in_flight;
        options.group_entries = plan.shape.group_entries;
        let state = |number: usize| {
            let name = client_name(number);
            let state = ClientState {
                number,
                runs: 0,
                running: None,
                ended: Arc::default(),
            };
            (name, state)
        };
        Self {
            seed,
            executor: executor.clone(),
            network: network.clone(),
            journal: journal.clone(),
            workload,
            layout: Vec::new(),
            line: Line::Memory,
            options,
            pace: plan.pace,
            shared: Arc::default(),
            healed: Arc::default(),
            rng: Rng::new(seed, "clients"),
            all: (0..plan.shape.clients).map(state).collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn process(&self, name: &ServerName) -> Option<ProcessId> {
        self.all.get(name)?.running
    }

    pub(crate) fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.unfinished().is_empty()
    }

    pub(crate) fn unfinished(&self) -> Vec<&str> {
        let all = self.all.iter();
        all.filter(|(_, state)| !state.ended.load(Ordering::Relaxed))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    pub(crate) fn start(&mut self, name: &ServerName) {
        let Some(state) = self.all.get_mut(name) else {
            return;
        };
        if state.running.is_some() {
            return;
        }
        let process = new_process(&self.executor, self.seed, name, &mut self.rng);
        state.running = Some(process);
        state.ended = Arc::default();
        let env = self.executor.env(process);
        let plug = Plug {
            executor: &self.executor,
            network: &self.network,
            journal: &self.journal,
            process,
            env: &env,
            name,
        };
        let identity = Identity::new(name.clone(), Incarnation(env.random_id()));
        let network = self.line.network(&plug, Role::Client, &identity);
        let client = Client::new(Inside {
            name: name.clone(),
            number: state.number,
            run: state.runs,
            executor: self.executor.clone(),
            process,
            env: EnvOf(env),
            network: NetworkOf(network),
            layout: self.layout.clone(),
            options: self.options.clone(),
            pace: self.pace,
            journal: self.journal.clone(),
            healed: Arc::clone(&self.healed),
            shared: Arc::clone(&self.shared),
            rng: Mutex::new(Rng::new(self.seed, &format!("{name} {}", state.runs))),
        });
        state.runs += 1;
        self.executor.trace(&("start", name.as_str(), process));
        let (life, ended) = (self.workload.client(client), Arc::clone(&state.ended));
        let life = async move {
            life.await;
            ended.store(true, Ordering::Relaxed);
        };
        self.executor
            .spawn(process, "client", Box::pin(life))
            .detach();
    }

    pub(crate) fn stop(&mut self, name: &ServerName) {
        if let Some(state) = self.all.get_mut(name)
            && let Some(process) = state.running.take()
        {
            self.executor.trace(&("stop", name.as_str(), process));
            self.executor.kill(process);
            self.network.killed(process);
        }
    }
}
