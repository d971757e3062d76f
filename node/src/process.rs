//! The roles of one process put together: hosts, threads, and the order in which they end.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use milonga_layout::{ClusterPlan, LayoutCore};
use milonga_log_units::{Unit, UnitConfig};
use milonga_protocol::messages::ServerStatus;
use milonga_protocol::{ClusterId, SharedEnv, Task, UnitId};
use milonga_sequencer::Sequencer;
use milonga_transport::{Identity, Peer, Service, SharedNetwork};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::config::UnitSettings;
use crate::error::NodeError;
use crate::hello::Greeter;
use crate::host::{self, Handle};
use crate::machine::{DiskCompletion, Guard, Machine, OpenDisk, OpenStore};
use crate::roles::{LayoutEvent, LayoutRole, SequencerRole, UnitRole, UnitState};
use crate::service::{Front, Roles};
use crate::steer::Steering;

/// In the data directory: the directory of the log unit.
pub(crate) const UNIT_DIRECTORY: &str = "unit";
/// In the data directory: the history of layouts.
pub(crate) const LAYOUT_FILE: &str = "layout.redb";

/// What one process is to be.
#[derive(Clone, Debug, Default)]
pub struct ServerPlan {
    /// Directory of what has to survive; a unit and a layout need one.
    pub data: Option<PathBuf>,
    /// Holds a log unit.
    pub unit: Option<UnitSettings>,
    /// Can be the sequencer.
    pub sequencer: bool,
    /// Owns the layout.
    pub layout: Option<ClusterPlan>,
}

/// The roles of one process, over any network and any machine: what [`Node`](crate::Node) and
/// [`EmbeddedNode`](crate::EmbeddedNode) are made of.
///
/// Everything that runs is listed in the order in which it is stopped: nothing touches the directory any more when
/// its lock is released. Dropping it stops everything, and blocks if the machine's disk does.
pub struct ServerProcess {
    /// They say hello to the layout.
    greeters: Vec<Task>,
    tasks: Vec<Task>,
    disk: Option<Guard>,
    store: Option<Guard>,
    lock: Option<Guard>,
    roles: Arc<Roles>,
    unit_state: Option<watch::Receiver<UnitState>>,
}

impl ServerProcess {
    /// Locks the directory, recovers the unit, loads the layout, starts the hosts. Nobody can call them before
    /// [`Self::service`] is served.
    ///
    /// # Errors
    /// [`NodeError`] says what to do. Nothing is left running or locked.
    pub async fn start(
        env: &SharedEnv,
        machine: &dyn Machine,
        plan: ServerPlan,
        identity: &Arc<Identity>,
        network: &SharedNetwork,
    ) -> Result<Self, NodeError> {
        let data = plan.data.clone().unwrap_or_default();
        let needs_data = plan.unit.is_some() || plan.layout.is_some();
        let lock = needs_data.then(|| machine.lock(&data)).transpose()?;
        let mut process = Self {
            greeters: Vec::new(),
            tasks: Vec::new(),
            disk: None,
            store: None,
            lock,
            roles: Arc::new(Roles::new(env, identity)),
            unit_state: None,
        };
        let sequencer = plan.sequencer.then(|| process.sequencer(env, identity));
        let unit = match &plan.unit {
            Some(settings) => {
                let (done, events) = unbounded_channel();
                let disk = machine.disk(env, &data.join(UNIT_DIRECTORY), done)?;
                Some(process.unit(env, disk, events, settings, identity).await?)
            }
            None => None,
        };
        let layout = match plan.layout {
            Some(plan) => {
                let (events, receiver) = unbounded_channel();
                let stored = events.clone();
                let done = move |id, result| stored.send(LayoutEvent::Stored(id, result)).is_ok();
                let store = machine.store(&data.join(LAYOUT_FILE), Box::new(done))?;
                let OpenStore {
                    history,
                    submit,
                    guard,
                } = store;
                process.store = Some(guard);
                let candidate = ClusterId(env.random_id());
                let core = LayoutCore::start(plan, history, candidate, env.now());
                let core = core.map_err(|error| NodeError::Layout {
                    why: error.to_string(),
                })?;
                let steering = Steering::new(env, network, &events, submit);
                Some(process.layout(env, core, receiver, steering, identity))
            }
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

    /// What answers requests; to be served on the network.
    #[must_use]
    pub fn service(&self) -> Arc<dyn Service> {
        Arc::new(Front(Arc::clone(&self.roles)))
    }

    /// What it is and does.
    pub async fn status(&self) -> ServerStatus {
        self.roles.status().await
    }

    /// Begins to say hello to the layout; `address` is where others reach this process.
    pub fn greet(&mut self, network: &SharedNetwork, address: &str, layout: &[Peer]) {
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
            self.greeters.push(task);
        }
    }

    /// Says hello no more: who closes is not to complain that others do, too.
    pub(crate) fn stop_greeting(&mut self) {
        self.greeters.clear();
    }

    /// Stops everything, on a thread of its own because it waits for the disk.
    pub async fn close(self) {
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

    fn sequencer(&mut self, env: &SharedEnv, identity: &Arc<Identity>) -> Handle<SequencerRole> {
        let core = SequencerRole {
            core: Sequencer::new(identity.incarnation()),
            identity: Arc::clone(identity),
        };
        let (_, events) = unbounded_channel();
        let (handle, task) = host::start(env, core, events, |effect| match effect {});
        self.tasks.push(task);
        handle
    }

    async fn unit(
        &mut self,
        env: &SharedEnv,
        disk: OpenDisk,
        events: UnboundedReceiver<DiskCompletion>,
        settings: &UnitSettings,
        identity: &Identity,
    ) -> Result<Handle<UnitRole>, NodeError> {
        let mut config = UnitConfig::new(UnitId(env.random_id()), identity.name().clone());
        config.segment_bytes = settings.segment_bytes;
        config.soft_reserve_bytes = settings.reserve_bytes;
        config.cache_bytes = settings.cache_bytes;
        config.scrub_bytes_per_second = settings.scrub_bytes_per_second;
        let OpenDisk {
            path,
            mut disk,
            guard,
        } = disk;
        self.disk = Some(guard);
        let (core, mut state) = UnitRole::new(Unit::start(config, env.random()));
        self.unit_state = Some(state.clone());
        let (handle, task) = host::start(env, core, events, move |(op, what)| {
            disk.submit(op, what);
        });
        self.tasks.push(task);
        let opened = state.wait_for(Option::is_some).await;
        let opened = opened.map_err(|_| NodeError::Stopped)?.clone();
        match opened.expect("waited for") {
            Err(source) => Err(NodeError::Unit {
                directory: path.display().to_string(),
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
        core: LayoutCore,
        events: UnboundedReceiver<LayoutEvent>,
        mut steering: Steering,
        identity: &Arc<Identity>,
    ) -> Handle<LayoutRole> {
        let identity = Arc::clone(identity);
        let core = LayoutRole { core, identity };
        let (handle, task) = host::start(env, core, events, move |effect| {
            steering.carry_out(effect);
        });
        self.tasks.push(task);
        handle
    }
}

impl fmt::Debug for ServerProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerProcess({})", self.roles.identity.name())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.greeters.clear();
        self.tasks.clear();
        self.disk = None;
        self.store = None;
        self.lock = None;
    }
}
