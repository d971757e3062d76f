//! A server process over QUIC.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use milonga_layout::{ClusterPlan, SPARE_AFTER};
use milonga_protocol::limits::DEFAULT_LEASE_MS;
use milonga_protocol::messages::{Lease, ServerStatus};
use milonga_protocol::{Incarnation, ServerName, SharedEnv};
use milonga_transport::{Bounds, Datagrams, Identity, Peer, QuicNetwork, QuicServer, Tls, Udp};

use crate::config::{LayoutSettings, ProcessConfig, ServerAddress};
use crate::error::NodeError;
use crate::layout::LayoutPlan;
use crate::machine::LocalMachine;
use crate::process::{ServerPlan, ServerProcess};

/// One server process: the roles that its configuration gives it, reachable over QUIC.
///
/// Dropping it stops everything and releases the data directory before it returns, the port soon after;
/// [`Node::close`] also says goodbye to callers, does not block the runtime, and returns when the port is free, too.
/// Nothing that was acknowledged is lost either way. It installs no signal
/// handler and no log subscriber.
pub struct Node {
    // In this order: who serves, then what is served.
    server: QuicServer,
    process: ServerProcess,
}

impl Node {
    /// Starts the process: locks its directory, recovers its unit, listens, and says hello to the layout. The log is
    /// usable once the layout has heard all that it names; this does not wait for that.
    ///
    /// # Errors
    /// [`NodeError`] says what to do. Nothing is left running or locked.
    pub async fn start(config: ProcessConfig, env: SharedEnv) -> Result<Self, NodeError> {
        Self::start_over(config, env, Arc::new(Udp)).await
    }

    /// As [`Node::start`], over other sockets.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_over(
        config: ProcessConfig,
        env: SharedEnv,
        datagrams: Arc<dyn Datagrams>,
    ) -> Result<Self, NodeError> {
        config.check(Path::new("configuration"))?;
        let tls = Tls::read(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
        if *tls.name() != config.name {
            return Err(NodeError::Certificate {
                certificate: config.tls.cert.display().to_string(),
                found: tls.name().to_string(),
                name: config.name.to_string(),
            });
        }
        let incarnation = Incarnation(env.random_id());
        let identity = Identity::new(config.name.clone(), incarnation);
        let network = QuicNetwork::client_over(
            Arc::clone(&env),
            &tls,
            Arc::clone(&identity),
            Bounds::default(),
            Arc::clone(&datagrams),
        );
        let plan = ServerPlan {
            data: config.data.clone(),
            unit: config.unit.clone(),
            sequencer: config.sequencer.is_some(),
            layout: config
                .layout
                .as_ref()
                .map(|settings| layout_plan(settings, &config)),
        };
        let mut process =
            ServerProcess::start(&env, &LocalMachine, plan, &identity, &network).await?;
        let service = process.service();
        let server = QuicServer::bind_over(
            env,
            config.listen,
            &tls,
            identity,
            service,
            Bounds::default(),
            &*datagrams,
        )?;
        let address = config
            .advertise
            .clone()
            .unwrap_or_else(|| server.local_addr().to_string());
        let layout: Vec<Peer> = config
            .layout_servers
            .iter()
            .map(|server| server.peer())
            .map(|peer| at_home(peer, &config.name, &address))
            .collect();
        process.greet(&network, &address, &layout);
        tracing::info!(name = %config.name, address, "serving");
        Ok(Self { server, process })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        self.process.roles().identity.name()
    }

    /// The address it listens on; with port 0 in the configuration, the port it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// What it is and does.
    pub async fn status(&self) -> ServerStatus {
        self.process.status().await
    }

    /// Stops serving, finishes what the disk has under way, and releases the directory.
    pub async fn close(mut self) {
        self.process.stop_greeting();
        self.server.close().await;
        self.process.close().await;
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} at {})", self.name(), self.local_addr())
    }
}

/// A process that is its own layout server knows its address better than the configuration, which may say port 0.
fn at_home(peer: Peer, name: &ServerName, address: &str) -> Peer {
    if peer.name == *name {
        Peer {
            address: address.into(),
            ..peer
        }
    } else {
        peer
    }
}

fn layout_plan(settings: &LayoutSettings, config: &ProcessConfig) -> LayoutPlan {
    let members = config.layout_servers.iter().map(ServerAddress::peer);
    LayoutPlan::new(cluster_plan(settings), members.collect())
}

fn cluster_plan(settings: &LayoutSettings) -> ClusterPlan {
    let chain = |units: &Vec<String>| units.iter().map(ServerName::new).collect();
    let spares = settings.spare_sequencers.iter().map(ServerName::new);
    let units = settings.spare_units.iter().map(ServerName::new);
    ClusterPlan::new(
        settings.chains.iter().map(chain).collect(),
        ServerName::new(&settings.sequencer),
        settings.limits.limits(),
        Lease::None,
    )
    .with_spare_sequencers(spares.collect())
    .with_spare_units(units.collect(), SPARE_AFTER)
    .with_min_replicas(settings.min_replicas.unwrap_or(1))
    .with_copy_limit(settings.copy_bytes_per_second)
    .with_lease_ms(settings.lease_ms.unwrap_or(DEFAULT_LEASE_MS))
}
