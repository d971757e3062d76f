//! The roles of one process put together: hosts, threads, and the order in which they end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use milonga_layout::{ClusterPlan, LayoutCore};
use milonga_log_units::{Disk, Unit, UnitConfig};
use milonga_protocol::{ClusterId, SharedEnv, Task, UnitId};
use milonga_sequencer::Sequencer;
use milonga_transport::{Identity, Peer, SharedNetwork};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::config::UnitSettings;
use crate::disk::FileDisk;
use crate::error::NodeError;
use crate::hello::Greeter;
use crate::host::{self, Handle};
use crate::lock::DirectoryLock;
use crate::roles::{LayoutRole, SequencerRole, UnitRole, UnitState};
use crate::service::Roles;
use crate::steer::{Steering, StoreThread};

/// What one process is to be.
pub(crate) struct Plan {
    pub(crate) data: Option<PathBuf>,
    pub(crate) unit: Option<UnitSettings>,
    pub(crate) sequencer: bool,
    pub(crate) layout: Option<ClusterPlan>,
}

/// Everything that runs, in the order in which it is stopped: nothing touches the directory any more when its
/// lock is released.
pub(crate) struct Process {
    tasks: Vec<Task>,
    disk: Option<FileDisk>,
    store: Option<StoreThread>,
    lock: Option<DirectoryLock>,
    roles: Arc<Roles>,
    unit_state: Option<watch::Receiver<UnitState>>,
}

impl Process {
    /// Locks the directory, recovers the unit, loads the layout, starts the hosts. Nobody can call them yet.
    pub(crate) async fn start(
        env: &SharedEnv,
        plan: Plan,
        identity: &Arc<Identity>,
        network: &SharedNetwork,
    ) -> Result<Self, NodeError> {
        let data = plan.data.clone().unwrap_or_default();
        let needs_data = plan.unit.is_some() || plan.layout.is_some();
        let lock = needs_data.then(|| DirectoryLock::take(&data)).transpose()?;
        let mut process = Self {
            tasks: Vec::new(),
            disk: None,
            store: None,
            lock,
            roles: Arc::new(Roles::new(env, identity)),
            unit_state: None,
        };
        let sequencer = plan.sequencer.then(|| process.sequencer(env, identity));
        let unit = match &plan.unit {
            Some(settings) => Some(
                process
                    .unit(env, &data.join("unit"), settings, identity)
                    .await?,
            ),
            None => None,
        };
        let layout = match plan.layout {
            Some(plan) => Some(process.layout(env, &data, plan, identity, network)?),
            None => None,
        };
        process.roles = Arc::new(Roles {
            unit,
            sequencer,
            layout,
            ..Roles::new(env, identity)
        });
        Ok(process)
    }

    /// Who answers requests.
    pub(crate) const fn roles(&self) -> &Arc<Roles> {
        &self.roles
    }

    /// Begins to say hello to the layout; `address` is where others reach this process.
    pub(crate) fn greet(&mut self, network: &SharedNetwork, address: &str, layout: &[Peer]) {
        let roles = &self.roles;
        for server in layout {
            let greeter = Greeter {
                env: Arc::clone(&roles.env),
                network: Arc::clone(network),
                to: server.clone(),
                name: roles.identity.name().clone(),
                address: address.to_owned(),
                incarnation: roles.identity.incarnation(),
                identity: Arc::clone(&roles.identity),
                unit: self.unit_state.clone(),
                sequencer: roles.sequencer.is_some(),
            };
            let task = roles.env.spawn("hello", Box::pin(greeter.run()));
            self.tasks.push(task);
        }
    }

    /// Stops everything, on a thread of its own because it waits for the disk.
    pub(crate) async fn close(self) {
        let (sender, stopped) = oneshot::channel();
        let stop = move || {
            drop(self);
            let _ = sender.send(());
        };
        // Without a thread to be had it is stopped right here: the closure was dropped, and `self` with it.
        if let Err(error) = std::thread::Builder::new().spawn(stop) {
            tracing::warn!(%error, "no thread to stop the node on");
        }
        let _ = stopped.await;
    }

    fn sequencer(&mut self, env: &SharedEnv, identity: &Identity) -> Handle<SequencerRole> {
        let core = SequencerRole(Sequencer::new(identity.incarnation()));
        let (_, events) = unbounded_channel();
        let (handle, task) = host::start(env, core, events, |effect| match effect {});
        self.tasks.push(task);
        handle
    }

    async fn unit(
        &mut self,
        env: &SharedEnv,
        directory: &Path,
        settings: &UnitSettings,
        identity: &Identity,
    ) -> Result<Handle<UnitRole>, NodeError> {
        let mut config = UnitConfig::new(UnitId(env.random_id()), identity.name().clone());
        config.segment_bytes = settings.segment_bytes;
        config.soft_reserve_bytes = settings.reserve_bytes;
        config.cache_bytes = settings.cache_bytes;
        let (done, events) = unbounded_channel();
        let disk = FileDisk::open(env, directory, &done)?;
        let mut submit = disk.handle();
        self.disk = Some(disk);
        let (core, mut state) = UnitRole::new(Unit::start(config, env.random()));
        self.unit_state = Some(state.clone());
        let (handle, task) = host::start(env, core, events, move |(op, what)| {
            submit.submit(op, what);
        });
        self.tasks.push(task);
        let opened = state.wait_for(Option::is_some).await;
        let opened = opened.map_err(|_| NodeError::Stopped)?.clone();
        match opened.expect("waited for") {
            Err(source) => Err(NodeError::Unit {
                directory: directory.display().to_string(),
                source,
            }),
            Ok(hello) => {
                if let Some(cluster) = hello.cluster {
                    let set = identity.set_cluster(cluster);
                    set.map_err(|error| NodeError::Layout {
                        why: error.to_string(),
                    })?;
                }
                tracing::info!(unit = %hello.id, epoch = %hello.persisted, "log unit recovered");
                Ok(handle)
            }
        }
    }

    fn layout(
        &mut self,
        env: &SharedEnv,
        data: &Path,
        plan: ClusterPlan,
        identity: &Arc<Identity>,
        network: &SharedNetwork,
    ) -> Result<Handle<LayoutRole>, NodeError> {
        let (sender, events) = unbounded_channel();
        let (store, history) = StoreThread::open(&data.join("layout.redb"), &sender)?;
        let mut steering = Steering::new(env, network, &sender, &store);
        self.store = Some(store);
        let candidate = ClusterId(env.random_id());
        let core = LayoutCore::start(plan, history, candidate, env.now());
        let core = core.map_err(|error| NodeError::Layout {
            why: error.to_string(),
        })?;
        let identity = Arc::clone(identity);
        let core = LayoutRole { core, identity };
        let (handle, task) = host::start(env, core, events, move |effect| {
            steering.carry_out(effect);
        });
        self.tasks.push(task);
        Ok(handle)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.clear();
        self.disk = None;
        self.store = None;
        self.lock = None;
    }
}
