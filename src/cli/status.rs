//! `milonga status`: who serves what, at a glance. Asks the servers themselves, so it works while the log does not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::{LayoutRequest, LayoutResponse, Request, Response, ServerStatus};
use milonga_protocol::{Epoch, Layout, Published, ServerName, SharedEnv, UnitIndex};
use milonga_transport::{Peer, SharedNetwork, TokioEnv};
use serde::Serialize;

use super::output::{self, Failure};
use super::{Access, Place, Target};
use crate::ClientConfig;

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize)]
struct Status {
    cluster: Option<String>,
    epoch: Option<u64>,
    start: Option<u64>,
    chains: Vec<Vec<String>>,
    sequencer: Option<String>,
    servers: Vec<Server>,
    /// What is waited for, if there is no layout.
    waiting: Option<String>,
}

#[derive(Debug, Serialize)]
struct Server {
    name: String,
    address: String,
    up: bool,
    problem: Option<String>,
    roles: BTreeMap<String, BTreeMap<String, String>>,
}

pub(super) async fn run(target: &Target, json: bool) -> Result<(), Failure> {
    let file = match target.place()? {
        Place::Dir(dir) => return embedded(&dir, json).await,
        Place::Config(file) => file,
    };
    let config = ClientConfig::read(file)?;
    let env: SharedEnv = TokioEnv::try_new()?;
    let network = crate::milonga::network(&config, &env)?;
    let asker = Asker { env, network };
    let mut waiting = None;
    let mut published = None;
    for server in config.peers() {
        match asker.layout(&server).await {
            Ok(LayoutResponse::Layout(found)) => {
                published = Some(found);
                break;
            }
            Ok(LayoutResponse::Waiting { why }) => waiting = Some(why),
            Ok(LayoutResponse::Heard) => {}
            Err(why) => waiting = Some(why),
        }
    }
    let mut peers: BTreeMap<ServerName, Arc<str>> = config
        .peers()
        .into_iter()
        .map(|peer| (peer.name, peer.address))
        .collect();
    if let Some(published) = &published {
        let known = published.addresses.iter();
        peers.extend(known.map(|(name, address)| (name.clone(), Arc::from(address.as_str()))));
    }
    let mut servers = Vec::new();
    for (name, address) in peers {
        servers.push(asker.server(Peer { name, address }).await);
    }
    if let Some(published) = &published {
        for server in &mut servers {
            server.compare(&published.layout);
        }
    }
    let status = Status::of(published.as_ref(), servers, waiting);
    output::result(json, &status, Status::text)?;
    let troubled = status
        .servers
        .iter()
        .filter(|server| server.problem.is_some());
    let troubled: Vec<_> = troubled.map(|server| server.name.as_str()).collect();
    match (&status.waiting, troubled.is_empty()) {
        (None, true) => Ok(()),
        (Some(_), true) => Err(Failure::failed("there is no layout; see above")),
        (_, false) => Err(Failure::failed(format!(
            "not serving: {}; see above",
            troubled.join(", ")
        ))),
    }
}

/// An embedded log has no servers to ask from outside: open it and show what it opened.
async fn embedded(dir: &Path, json: bool) -> Result<(), Failure> {
    let milonga = super::open_directory(dir, Access::Existing).await?;
    let status = Status::of(Some(&milonga.client().layout()), Vec::new(), None);
    milonga.close().await?;
    output::result(json, &status, Status::text)
}

struct Asker {
    env: SharedEnv,
    network: SharedNetwork,
}

impl Asker {
    async fn ask(&self, peer: &Peer, request: Request) -> Result<Response, String> {
        let deadline = self.env.now().after(PATIENCE);
        let message = request.into_message(Bytes::new());
        let answer = self
            .network
            .call(peer, message, deadline)
            .await
            .map_err(|e| e.to_string())?;
        Response::decode(&answer).map_err(|e| e.to_string())
    }

    async fn layout(&self, peer: &Peer) -> Result<LayoutResponse, String> {
        let get = LayoutRequest::Get {
            known: Epoch::NONE,
            wait_ms: 0,
        };
        match self.ask(peer, Request::Layout(get)).await? {
            Response::Layout(answer) => Ok(answer),
            Response::Refused(refusal) => Err(refusal.to_string()),
            other => Err(format!("unexpected answer {other:?}")),
        }
    }

    async fn server(&self, peer: Peer) -> Server {
        let answer = match self.ask(&peer, Request::Status).await {
            Ok(Response::Status(status)) => Ok(status),
            Ok(Response::Refused(refusal)) => Err(refusal.to_string()),
            Ok(other) => Err(format!("unexpected answer {other:?}")),
            Err(why) => Err(why),
        };
        let (roles, problem) = match answer {
            Ok(ServerStatus { roles, .. }) => (roles, None),
            Err(why) => (BTreeMap::new(), Some(why)),
        };
        Server {
            name: peer.name.to_string(),
            address: peer.address.to_string(),
            up: problem.is_none(),
            problem,
            roles,
        }
    }
}

impl Server {
    /// Whether it serves what the layout says it does.
    fn compare(&mut self, layout: &Layout) {
        let fact = |role: &str, fact: &str| self.roles.get(role)?.get(fact).cloned();
        let epoch = layout.epoch.to_string();
        let serves = |serving: Option<String>| serving.is_some_and(|serving| serving == epoch);
        let is_unit = layout
            .units
            .iter()
            .any(|unit| unit.name.as_str() == self.name);
        let is_sequencer = layout.sequencer.name.as_str() == self.name;
        let fits = (!is_unit || serves(fact("unit", "epoch_serving")))
            && (!is_sequencer || serves(fact("sequencer", "epoch")));
        if self.up && !fits {
            self.problem = Some(format!("does not serve epoch {epoch} yet"));
        }
    }
}

impl Status {
    fn of(published: Option<&Published>, servers: Vec<Server>, waiting: Option<String>) -> Self {
        let layout = published.map(|p| &p.layout);
        Self {
            cluster: layout.map(|l| l.cluster.to_string()),
            epoch: layout.map(|l| l.epoch.0),
            start: layout.map(|l| l.start.0),
            chains: layout.map(chains).unwrap_or_default(),
            sequencer: layout.map(|l| l.sequencer.name.to_string()),
            servers,
            waiting: if layout.is_some() { None } else { waiting },
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        match (&self.cluster, self.epoch, self.start) {
            (Some(cluster), Some(epoch), Some(start)) => {
                let _ = writeln!(
                    text,
                    "cluster {cluster}\nepoch {epoch}, opened at position {start}"
                );
            }
            _ => {
                let why = self.waiting.as_deref().unwrap_or("nobody answers");
                let _ = writeln!(text, "no layout: {why}");
            }
        }
        for (number, chain) in self.chains.iter().enumerate() {
            let _ = writeln!(text, "chain {}: {}", number + 1, chain.join(" -> "));
        }
        if let Some(sequencer) = &self.sequencer {
            let _ = writeln!(text, "sequencer: {sequencer}");
        }
        for server in &self.servers {
            let state = match (&server.problem, server.up) {
                (None, _) => "up".to_owned(),
                (Some(problem), true) => format!("up, but it {problem}"),
                (Some(problem), false) => format!("DOWN: {problem}"),
            };
            let _ = writeln!(text, "\n{} ({}) {state}", server.name, server.address);
            for (role, facts) in &server.roles {
                let facts: Vec<_> = facts
                    .iter()
                    .map(|(name, value)| format!("{name} {value}"))
                    .collect();
                let _ = writeln!(text, "  {role}: {}", facts.join(", "));
            }
        }
        text
    }
}

/// The chains of the last segment, by name.
fn chains(layout: &Layout) -> Vec<Vec<String>> {
    let name = |unit: &UnitIndex| layout.unit(*unit).name.to_string();
    let chains = layout.segments.last().map(|segment| &segment.chains);
    chains
        .into_iter()
        .flatten()
        .map(|chain| chain.iter().map(name).collect())
        .collect()
}
