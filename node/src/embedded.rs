//! A whole log in this process.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_layout::ClusterPlan;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    LayoutRequest, LayoutResponse, Lease, Request, Response, SequencerRequest, SequencerResponse,
    ServerStatus,
};
use milonga_protocol::{Epoch, Incarnation, Limits, ServerName, SharedEnv, Time};
use milonga_transport::{Identity, MemoryNetwork, Peer, Role, Serving, SharedNetwork};

use crate::config::UnitSettings;
use crate::error::NodeError;
use crate::layout::{self, LayoutPlan};
use crate::lock::{DirectoryError, LOCK_FILE};
use crate::machine::LocalMachine;
use crate::process::{ServerPlan, ServerProcess, UNIT_DIRECTORY};

/// Name of the process that holds all roles, and its address.
const NAME: &str = "embedded";
/// What a directory without a log may hold: an earlier start that got no further, and what a new file system has.
const NOTHING: [&str; 2] = [LOCK_FILE, "lost+found"];
/// How the layout begins to say that it waits for nothing that time or another start will bring.
const HOPELESS: [&str; 2] = ["cannot go on", "stopped"];
/// How long the layout may take to say that nothing has changed.
const WAIT_MS: u32 = 100;
/// Between two looks whether the log is usable.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Settings of an embedded log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmbeddedOptions {
    /// Of its log unit.
    pub unit: UnitSettings,
    /// Limits of a new log; one that exists keeps its own.
    pub limits: Limits,
    /// How long to wait until the log is usable.
    pub deadline: Duration,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            unit: UnitSettings::default(),
            limits: Limits::default(),
            deadline: Duration::from_secs(30),
        }
    }
}

/// Sequencer, one log unit and layout in this process, durable in one directory.
///
/// Dropping it stops everything and releases the directory before it returns, so that the same process can open it
/// again at once; [`EmbeddedNode::close`] does the same without blocking the runtime meanwhile.
pub struct EmbeddedNode {
    // In this order: who serves, then what is served.
    serving: Serving,
    network: Arc<MemoryNetwork>,
    process: ServerProcess,
}

impl EmbeddedNode {
    /// Opens the log in `directory`, or makes one, and waits until it is usable.
    ///
    /// # Errors
    /// [`NodeError`] says what to do. Nothing is left running or locked.
    pub async fn start(
        directory: &Path,
        env: SharedEnv,
        options: EmbeddedOptions,
    ) -> Result<Self, NodeError> {
        check_is_ours(directory)?;
        let name = ServerName::new(NAME);
        let network = MemoryNetwork::new(Arc::clone(&env));
        let own = network.endpoint(name.clone(), Role::Server);
        let incarnation = Incarnation(env.random_id());
        let identity = Identity::new(name.clone(), incarnation);
        let chains = vec![vec![name.clone()]];
        let lease = Lease::DirectoryLock;
        let cluster = ClusterPlan::new(chains, name.clone(), options.limits, lease);
        let plan = ServerPlan {
            data: Some(directory.to_owned()),
            unit: Some(options.unit),
            sequencer: true,
            layout: Some(LayoutPlan::new(cluster, vec![layout_peer()])),
        };
        let mut process = ServerProcess::start(&env, &LocalMachine, plan, &identity, &own).await?;
        let service = process.service();
        let serving = network.serve(name, service);
        process.greet(&own, NAME, &[layout_peer()]);
        let node = Self {
            serving,
            network,
            process,
        };
        Opening {
            env: &env,
            network: own,
            until: env.now().after(options.deadline),
        }
        .wait(options.deadline)
        .await?;
        Ok(node)
    }

    /// Whether `directory` holds a log, or what is left of one; an empty or absent one does not.
    #[must_use]
    pub fn exists(directory: &Path) -> bool {
        layout::exists(directory) || directory.join(UNIT_DIRECTORY).exists()
    }

    /// The network over which a client reaches the log; its calls go out under `name`.
    #[must_use]
    pub fn network(&self, name: ServerName) -> SharedNetwork {
        self.network.endpoint(name, Role::Client)
    }

    /// Where a client asks for the layout.
    #[must_use]
    pub fn layout(&self) -> Peer {
        layout_peer()
    }

    /// What it is and does.
    pub async fn status(&self) -> ServerStatus {
        self.process.status().await
    }

    /// Stops serving, finishes what the disk has under way, and releases the directory.
    pub async fn close(self) {
        drop(self.serving);
        self.process.close().await;
    }
}

impl fmt::Debug for EmbeddedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedNode").finish_non_exhaustive()
    }
}

/// Leaves alone what is no log: files of somebody else's, into which a log would be mixed.
fn check_is_ours(directory: &Path) -> Result<(), DirectoryError> {
    let no_log = |what: String| DirectoryError::NoLog {
        path: directory.to_owned(),
        what,
    };
    if directory.exists() && !directory.is_dir() {
        return Err(no_log("is a file, not a directory".to_owned()));
    }
    if EmbeddedNode::exists(directory) {
        return Ok(());
    }
    // One that cannot be read, or is not there yet, is the business of who locks it.
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.find(|name| !NOTHING.contains(&name.as_str())) {
        Some(other) => Err(no_log(format!(
            "holds no log but other files, such as {other}"
        ))),
        None => Ok(()),
    }
}

fn layout_peer() -> Peer {
    Peer {
        name: ServerName::new(NAME),
        address: NAME.into(),
    }
}

/// Waits for the reconfiguration that every start is.
struct Opening<'a> {
    env: &'a SharedEnv,
    network: SharedNetwork,
    until: Time,
}

impl Opening<'_> {
    async fn wait(&self, waited: Duration) -> Result<(), NodeError> {
        let mut why = String::from("the layout did not answer");
        while self.env.now() < self.until {
            match self.published().await {
                Ok(epoch) => match self.serves(epoch).await {
                    Ok(()) => return Ok(()),
                    Err(reason) => why = reason,
                },
                Err(reason) if HOPELESS.iter().any(|word| reason.starts_with(word)) => {
                    return Err(NodeError::Layout { why: reason });
                }
                Err(reason) => why = reason,
            }
            self.env.sleep(LOOK_AGAIN).await;
        }
        Err(NodeError::NoLayout { why, waited })
    }

    async fn published(&self) -> Result<Epoch, String> {
        let request = LayoutRequest::Get {
            known: Epoch::NONE,
            wait_ms: WAIT_MS,
        };
        match self.call(Request::Layout(request)).await? {
            Response::Layout(LayoutResponse::Layout(published)) => Ok(published.layout.epoch),
            Response::Layout(LayoutResponse::Waiting { why }) => Err(why),
            other => Err(format!("the layout answers {other:?}")),
        }
    }

    /// Whether the sequencer serves `epoch`: it is bootstrapped last.
    async fn serves(&self, epoch: Epoch) -> Result<(), String> {
        let streams = Vec::new();
        let request = Request::Sequencer(SequencerRequest::Tail { epoch, streams });
        match self.call(request).await? {
            Response::Sequencer(SequencerResponse::Tail(_)) => Ok(()),
            other => Err(format!("the sequencer answers {other:?}")),
        }
    }

    async fn call(&self, request: Request) -> Result<Response, String> {
        let message: Message = request.into_message(Bytes::new());
        let call = self.network.call(&layout_peer(), message, self.until);
        let answer = call.await.map_err(|error| error.to_string())?;
        Response::decode(&answer).map_err(|error| error.to_string())
    }
}
