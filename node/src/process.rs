//! The roles of one process put together: hosts, threads, and the order in which they end.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use milonga_layout::{LayoutMember, Replica};
use milonga_log_units::{Unit, UnitConfig};
use milonga_protocol::messages::ServerStatus;
use milonga_protocol::{ClusterId, SharedEnv, Task, UnitId};
use milonga_sequencer::{AskLease, Sequencer};
use milonga_transport::{Identity, Peer, Service, SharedNetwork};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::config::UnitSettings;
use crate::error::NodeError;
use crate::hello::Greeter;
use crate::host::{self, Handle};
use crate::layout::{Carrier, Door, LayoutPlan, NEW_LAYOUT, Supervisor};
use crate::lease::Renewer;
use crate::machine::{DiskCompletion, Guard, Machine, OpenDisk};
use crate::roles::{LayoutRole, Leased, SequencerRole, UnitRole, UnitState};
use crate::service::{Front, Roles};
use crate::steer::Steering;

/// In the data directory: the directory of the log unit.
pub(crate) const UNIT_DIRECTORY: &str = "unit";

/// What one process is to be.
#[derive(Clone, Debug, Default)]
pub struct ServerPlan {
    /// Directory of what has to survive; a unit and a layout need one.
    pub data: Option<PathBuf>,
    /// Holds a log unit.
    pub unit: Option<UnitSettings>,
    /// Can be the sequencer.
    pub sequencer: bool,
    /// Is a member of the layout.
    pub layout: Option<LayoutPlan>,
}

/// The roles of one process, over any network and any machine: what [`Node`](crate::Node) and
/// [`EmbeddedNode`](crate::EmbeddedNode) are made of.
///
/// Everything that runs is listed in the order in which it is stopped: nothing touches the directory any more when
/// its lock is released. Dropping it stops everything, and blocks if the machine's disk does.
pub struct ServerProcess {
    /// They say hello to the layout, and ask it for leases.
    greeters: Vec<Task>,
    tasks: Vec<Task>,
    replica: Option<Arc<Replica>>,
    disk: Option<Guard>,
    store: Option<Guard>,
    lock: Option<Guard>,
    roles: Arc<Roles>,
    unit_state: Option<watch::Receiver<UnitState>>,
    /// What the sequencer asks of the layout, and the way back: until it is known where that is.
    leases: Option<(UnboundedReceiver<AskLease>, UnboundedSender<Leased>)>,
}

impl ServerProcess {
    /// Locks the directory, recovers the unit, loads the layout's history, starts the hosts. Nobody can call them before
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
            replica: None,
            disk: None,
            store: None,
            lock,
            roles: Arc::new(Roles::new(env, identity)),
            unit_state: None,
            leases: None,
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
                let replica = process
                    .replica(env, machine, &data, &plan, identity, network)
                    .await?;
                Some(process.layout(env, plan, replica, identity, network)?)
            }
            None => None,
        };
        let door = process.replica.as_ref();
        let door = door.map(|replica| Door::new(env, replica));
        process.roles = Arc::new(Roles {
            door,
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

    /// Begins to say hello to the layout, and to ask it for leases; `address` is where others reach this process.
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
        if let Some((asks, leased)) = self.leases.take() {
            let renewer = Renewer {
                network: Arc::clone(network),
                layout: layout.to_vec(),
                name: roles.identity.name().clone(),
                incarnation: roles.identity.incarnation(),
                asks,
                leased,
            };
            let task = roles.env.spawn("leases", Box::pin(renewer.run()));
            self.greeters.push(task);
        }
    }

    /// Says hello no more: who closes is not to complain that others do, too.
    pub(crate) fn stop_greeting(&mut self) {
        self.greeters.clear();
    }

    /// Stops everything, on a thread of its own because it waits for the disk.
    pub async fn close(mut self) {
        self.greeters.clear();
        self.tasks.clear();
        if let Some(replica) = self.replica.take() {
            replica.shutdown().await;
        }
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
        let (leased, events) = unbounded_channel();
        let (ask, asks) = unbounded_channel();
        let (handle, task) = host::start(env, core, events, move |effect| {
            // Who asks no more belongs to a process that is being stopped.
            let _ = ask.send(effect);
        });
        self.leases = Some((asks, leased));
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

    /// Starts this member's copy of the history.
    async fn replica(
        &mut self,
        env: &SharedEnv,
        machine: &dyn Machine,
        data: &Path,
        plan: &LayoutPlan,
        identity: &Identity,
        network: &SharedNetwork,
    ) -> Result<Arc<Replica>, NodeError> {
        let members = plan.members();
        let own = members.iter().find(|(_, m)| m.name == *identity.name());
        let (id, member) = own.ok_or_else(|| NodeError::Layout {
            why: format!("{} is not listed under layout_servers", identity.name()),
        })?;
        let (id, alone) = (*id, members.len() == 1);
        let open = machine.layout(data, id, member, alone)?;
        self.store = Some(open.guard);
        let carrier = Arc::new(Carrier(Arc::clone(network)));
        let replica = Replica::start(id, members, open.store, carrier, env, &plan.raft).await?;
        let replica = Arc::new(replica);
        self.replica = Some(Arc::clone(&replica));
        let stopped = |why| NodeError::Layout { why };
        if !replica.has_past().await.map_err(stopped)? {
            if !alone && !open.is_new {
                return Err(NodeError::Layout {
                    why: without_past(data, identity),
                });
            }
            replica.initialize().await?;
        }
        if open.is_new {
            machine.layout_is_made(data)?;
        }
        Ok(replica)
    }

    fn layout(
        &mut self,
        env: &SharedEnv,
        plan: LayoutPlan,
        replica: Arc<Replica>,
        identity: &Arc<Identity>,
        network: &SharedNetwork,
    ) -> Result<Handle<LayoutRole>, NodeError> {
        let (history, fresh) = (replica.history(), ClusterId(env.random_id()));
        let alone = plan.members.len() == 1;
        let member = LayoutMember::new(plan.cluster, alone, history, fresh);
        let member = member.map_err(|error| NodeError::Layout {
            why: error.to_string(),
        })?;
        let (events, receiver) = unbounded_channel();
        let (anew, asked) = unbounded_channel();
        let mut steering = Steering::new(env, network, &events, &replica, anew);
        let role = LayoutRole {
            member,
            replica: Arc::clone(&replica),
            identity: Arc::clone(identity),
            env: Arc::clone(env),
        };
        let (handle, task) = host::start(env, role, receiver, move |(reign, effect)| {
            steering.carry_out(reign, effect);
        });
        self.tasks.push(task);
        let supervisor = Supervisor {
            env: Arc::clone(env),
            replica,
            events,
            anew: asked,
        };
        let task = env.spawn("layout supervisor", Box::pin(supervisor.run()));
        self.tasks.push(task);
        Ok(handle)
    }
}

/// What a member of several has to do whose disk holds nothing.
fn without_past(data: &Path, identity: &Identity) -> String {
    let mark = data.join(NEW_LAYOUT);
    format!(
        "{} is a member of the layout and its directory is empty; if the cluster is new, make an empty file {} on each member, as `milonga init` does, and start again; if it is not, this disk was lost, and with it what this member promised the others: restore it, the other members go on without it",
        identity.name(),
        mark.display()
    )
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
        if let Some(replica) = self.replica.take() {
            replica.stop();
        }
        self.disk = None;
        self.store = None;
        self.lock = None;
    }
}
