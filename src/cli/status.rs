//! `milonga status`: who serves what, at a glance. Asks the servers themselves, so it works while the log does not.

mod redundancy;
mod text;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use milonga_protocol::messages::{LayoutRequest, LayoutResponse, Request, Response, ServerStatus};
use milonga_protocol::{Epoch, Layout, Published, ServerName, SharedEnv, UnitIndex};
use milonga_transport::{Peer, SharedNetwork, TokioEnv};
use serde::Serialize;
use tokio::task::JoinSet;

use super::output::{self, Failure};
use super::{Access, Place, Target};
use crate::ClientConfig;
use redundancy::{Out, Redundancy};

/// For the layout, without which there is little to show.
const PATIENCE: Duration = Duration::from_secs(3);
/// For what a server says of itself.
const PATIENCE_FOR_ONE: Duration = Duration::from_millis(1_500);

/// What the layout says of itself when all of it is open to clients, whatever it does besides.
const PUBLISHED: &str = "published";

/// Shows the cluster's state, and one line for each server. Ends with 0 if every member of the layout serves, also with
/// reduced redundancy.
#[derive(Debug, Args)]
pub(super) struct StatusCommand {
    /// Also show what each role of each server says of itself.
    #[arg(long, short)]
    verbose: bool,
}

#[derive(Debug, Serialize)]
struct Status {
    cluster: Option<String>,
    epoch: Option<u64>,
    start: Option<u64>,
    chains: Vec<Vec<String>>,
    sequencer: Option<String>,
    /// Who leads the layout.
    leader: Option<Leader>,
    servers: Vec<Server>,
    /// What is waited for, if there is no layout or it cannot be served.
    waiting: Option<String>,
    redundancy: Option<Redundancy>,
    /// What is being copied to whom, and how far that is.
    copying: Option<String>,
    /// Units that are not allowed to take part, or cannot.
    out: Vec<Out>,
    /// Units that an operator removed, and that run all the same.
    removed: Vec<String>,
}

/// The leader of the layout, and in which term.
#[derive(Debug, Serialize)]
struct Leader {
    name: String,
    term: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Server {
    name: String,
    address: String,
    up: bool,
    problem: Option<String>,
    roles: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(skip)]
    part: Part,
}

/// What a server is in the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Part {
    /// Of an active chain, from 1.
    chain: Option<usize>,
    is_joining: bool,
    is_sequencer: bool,
    /// The layout needs it.
    is_member: bool,
    /// It has been in some layout as a unit.
    is_unit: bool,
}

impl StatusCommand {
    pub(super) async fn run(self, target: &Target, json: bool) -> Result<(), Failure> {
        let status = match target.place()? {
            Place::Dir(dir) => embedded(&dir).await?,
            Place::Config(file) => cluster(&ClientConfig::read(file)?).await?,
        };
        output::result(json, &status, |status| status.text(self.verbose))?;
        status.verdict()
    }
}

async fn cluster(config: &ClientConfig) -> Result<Status, Failure> {
    let env: SharedEnv = TokioEnv::try_new()?;
    let network = crate::milonga::network(config, &env)?;
    let asker = Asker { env, network };
    let mut waiting = None;
    let mut published: Option<Published> = None;
    let mut silent = Vec::new();
    for (server, said) in asker.layouts(config.peers()).await {
        match said {
            // Who follows may not have heard of the newest one yet.
            Ok(LayoutResponse::Layout(found)) => {
                let newest = published.take();
                let newest = newest.filter(|newest| newest.layout.epoch >= found.layout.epoch);
                published = Some(newest.unwrap_or(found));
            }
            Ok(LayoutResponse::Waiting { why }) => waiting = Some(why),
            Ok(_) => {}
            Err(why) => {
                silent.push(Server::silent(&server.name, &server.address, &why));
                waiting = Some(why);
            }
        }
    }
    let peers = config.peers().into_iter();
    let mut peers: BTreeMap<ServerName, Arc<str>> =
        peers.map(|peer| (peer.name, peer.address)).collect();
    if let Some(published) = &published {
        let known = published.addresses.iter();
        peers.extend(known.map(|(name, address)| (name.clone(), Arc::from(address.as_str()))));
        let mut unknown = members(&published.layout);
        unknown.retain(|name| !peers.contains_key(name));
        let why = "has said nothing since the layout server was started";
        silent.extend(unknown.iter().map(|name| Server::silent(name, "-", why)));
    }
    peers.retain(|name, _| silent.iter().all(|server| server.name != name.as_str()));
    let mut asked = JoinSet::new();
    for (name, address) in peers {
        let asker = asker.clone();
        asked.spawn(async move { asker.server(Peer { name, address }).await });
    }
    let mut servers = asked.join_all().await;
    servers.extend(silent);
    Ok(Status::of(published.as_ref(), servers, waiting))
}

/// What the layout says: its leader, or, if nobody leads, the first of its members that knows.
fn layout_fact<'a>(servers: &'a [Server], fact: &str) -> Option<&'a str> {
    let leader = servers.iter().filter(|server| server.leads());
    let mut all = leader.chain(servers);
    all.find_map(|server| server.fact("layout", fact))
}

/// Whom the layout needs.
fn members(layout: &Layout) -> Vec<ServerName> {
    let units = layout.members().into_iter();
    let units = units.map(|unit| layout.unit(unit).name.clone());
    units.chain([layout.sequencer.name.clone()]).collect()
}

/// An embedded log has no servers to ask from outside: open it and show what it opened.
async fn embedded(dir: &Path) -> Result<Status, Failure> {
    let milonga = super::open_directory(dir, Access::Existing).await?;
    let status = Status::of(Some(&milonga.client().layout()), Vec::new(), None);
    milonga.close().await?;
    Ok(status)
}

#[derive(Clone)]
struct Asker {
    env: SharedEnv,
    network: SharedNetwork,
}

impl Asker {
    async fn ask(
        &self,
        peer: &Peer,
        request: Request,
        patience: Duration,
    ) -> Result<Response, String> {
        let deadline = self.env.now().after(patience);
        let message = request.into_message(Bytes::new());
        let answer = self
            .network
            .call(peer, message, deadline)
            .await
            .map_err(|e| e.to_string())?;
        Response::decode(&answer).map_err(|e| e.to_string())
    }

    /// What each of these says of the layout, in their order.
    async fn layouts(&self, peers: Vec<Peer>) -> Vec<(Peer, Result<LayoutResponse, String>)> {
        let mut asked = JoinSet::new();
        for (place, peer) in peers.into_iter().enumerate() {
            let asker = self.clone();
            asked.spawn(async move {
                let said = asker.layout(&peer).await;
                (place, peer, said)
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(place, ..)| *place);
        answers
            .into_iter()
            .map(|(_, peer, said)| (peer, said))
            .collect()
    }

    async fn layout(&self, peer: &Peer) -> Result<LayoutResponse, String> {
        let get = LayoutRequest::Get {
            known: Epoch::NONE,
            wait_ms: 0,
        };
        match self.ask(peer, Request::Layout(get), PATIENCE).await? {
            Response::Layout(answer) => Ok(answer),
            Response::Refused(refusal) => Err(refusal.to_string()),
            other => Err(format!("unexpected answer {other:?}")),
        }
    }

    async fn server(&self, peer: Peer) -> Server {
        let answer = match self.ask(&peer, Request::Status, PATIENCE_FOR_ONE).await {
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
            part: Part::default(),
        }
    }
}

impl Server {
    /// One that need not be asked.
    fn silent(name: &ServerName, address: &str, why: &str) -> Self {
        Self {
            name: name.to_string(),
            address: address.to_owned(),
            up: false,
            problem: Some(why.to_owned()),
            roles: BTreeMap::new(),
            part: Part::default(),
        }
    }

    /// Whether it leads the layout.
    fn leads(&self) -> bool {
        self.fact("layout", "leads") == Some("yes")
    }

    /// Whether it keeps the layout's history together with its leader.
    fn takes_part(&self) -> bool {
        self.up && (self.leads() || self.fact("layout", "follows").is_some())
    }

    /// Finds out whether it is a member of the layout that nobody counts on: another member leads.
    fn compare_with_leader(&mut self) {
        if self.up
            && self.problem.is_none()
            && !self.takes_part()
            && let Some(state) = self.fact("layout", "state")
        {
            self.problem = Some(format!(
                "takes no part in the layout ({state}); its log says why: another cluster's directory, or no way to the others"
            ));
        }
    }

    fn fact(&self, role: &str, fact: &str) -> Option<&str> {
        self.roles.get(role)?.get(fact).map(String::as_str)
    }

    /// Finds its part in the layout, and whether it plays it.
    fn compare(&mut self, layout: &Layout) {
        let unit = (0..).map(UnitIndex).zip(&layout.units);
        let unit = unit.filter(|(_, unit)| unit.name.as_str() == self.name);
        let units: Vec<_> = unit.map(|(index, _)| index).collect();
        let active = layout.segments.last().map_or(&[][..], |s| &s.chains);
        let has = |chain: &Vec<UnitIndex>| units.iter().any(|unit| chain.contains(unit));
        let mut joining = layout.segments.iter().flat_map(|s| &s.joining);
        let members = layout.members();
        let is_unit_at_work = units.iter().any(|unit| members.contains(unit));
        self.part = Part {
            chain: active.iter().position(has).map(|chain| chain + 1),
            is_joining: joining.any(|joining| units.contains(&joining.unit)),
            is_sequencer: layout.sequencer.name.as_str() == self.name,
            is_unit: !units.is_empty(),
            is_member: is_unit_at_work || layout.sequencer.name.as_str() == self.name,
        };
        let epoch = layout.epoch.to_string();
        let serves = |role, fact| self.fact(role, fact) == Some(&epoch);
        let fits = (!is_unit_at_work || serves("unit", "epoch_serving"))
            && (!self.part.is_sequencer || serves("sequencer", "epoch"));
        if self.up && !fits {
            self.problem = Some(format!("does not serve epoch {epoch} yet"));
        }
        if is_unit_at_work && let Some(why) = self.fact("unit", "poison") {
            self.problem = Some(format!("its disk failed: {why}"));
        }
    }
}

impl Status {
    fn of(
        published: Option<&Published>,
        mut servers: Vec<Server>,
        waiting: Option<String>,
    ) -> Self {
        let layout = published.map(|p| &p.layout);
        if let Some(layout) = layout {
            for server in &mut servers {
                server.compare(layout);
            }
        }
        if servers.iter().any(Server::leads) {
            servers.iter_mut().for_each(Server::compare_with_leader);
        }
        servers.sort_by_cached_key(|server| (server.rank(), server.name.clone()));
        let fact = |fact: &str| layout_fact(&servers, fact).map(str::to_owned);
        let waiting = match layout {
            Some(_) => fact("state").filter(|state| !state.starts_with(PUBLISHED)),
            None => waiting.or_else(|| Some("nobody answers".to_owned())),
        };
        Self {
            cluster: layout.map(|l| l.cluster.to_string()),
            epoch: layout.map(|l| l.epoch.0),
            start: layout.map(|l| l.start.0),
            chains: layout.map(chains).unwrap_or_default(),
            sequencer: layout.map(|l| l.sequencer.name.to_string()),
            leader: servers.iter().find(|s| s.leads()).map(|server| Leader {
                name: server.name.clone(),
                term: server
                    .fact("layout", "raft_term")
                    .and_then(|term| term.parse().ok()),
            }),
            waiting,
            redundancy: layout.map(Redundancy::of),
            copying: layout.and_then(|layout| redundancy::copying(layout, fact("copying"))),
            out: layout.map_or_else(Vec::new, |layout| {
                redundancy::out(layout, fact("out").as_deref())
            }),
            removed: fact("removed").map_or_else(Vec::new, |names| {
                names.split(", ").map(str::to_owned).collect()
            }),
            servers,
        }
    }

    /// Fails unless every member serves and nothing is waited for. Who is no member may be gone.
    fn verdict(&self) -> Result<(), Failure> {
        let troubled = self.servers.iter().filter(|server| server.is_troubled());
        let troubled: Vec<_> = troubled.map(|server| server.name.as_str()).collect();
        match (self.epoch, &self.waiting, troubled.as_slice()) {
            (Some(_), None, []) => Ok(()),
            (None, ..) => Err(Failure::failed("there is no layout; see above")),
            (_, Some(_), []) => Err(Failure::failed("something is waited for; see above")),
            (_, _, troubled) => Err(Failure::failed(format!(
                "not serving: {}; see above",
                troubled.join(", ")
            ))),
        }
    }
}

impl Server {
    /// Whether it does not do what the layout needs it for.
    const fn is_troubled(&self) -> bool {
        self.part.is_member && self.problem.is_some()
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
