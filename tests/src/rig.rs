//! Servers in this process, clients over them, and faults: what conformance and fault tests run on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use milonga_client::{ClientOptions, LogClient};
use milonga_node::{
    EmbeddedNode, EmbeddedOptions, LayoutSettings, Node, ProcessConfig, SequencerSettings,
    ServerAddress, TlsPaths, UnitSettings,
};
use milonga_protocol::conformance::LogUnderTest;
use milonga_protocol::messages::{
    Request, Response, SequencerRequest, SequencerResponse, UnitRequest, UnitResponse, WireValue,
    WriteAnswer,
};
use milonga_protocol::{
    BoxFuture, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Log as _, Position, ReadAnswer,
    ServerName, SharedEnv, SharedLog, StreamId, StreamLink, WriterId,
};
use milonga_transport::{Identity, Peer, QuicNetwork, Role, SharedNetwork, TokioEnv, certs};

/// Small files and no cache, so that every fault on disk shows at once.
fn unit_settings() -> UnitSettings {
    let mut settings = UnitSettings::default();
    settings.segment_bytes = 8 << 20;
    settings.reserve_bytes = 0;
    settings.cache_bytes = 0;
    settings
}

fn options() -> ClientOptions {
    let mut options = ClientOptions::default();
    options.deadline = Duration::from_secs(20);
    options
}

const CLIENTS: usize = 4;

enum Servers {
    Embedded {
        /// Only held: dropping it stops the servers.
        _node: EmbeddedNode,
    },
    Cluster(Vec<Node>),
}

/// A log with its servers in this process.
pub struct Rig {
    env: SharedEnv,
    dir: tempfile::TempDir,
    configs: Vec<ProcessConfig>,
    servers: Mutex<Servers>,
    network: SharedNetwork,
    clients: Vec<Arc<LogClient>>,
    /// Tokens of holes: the epoch they were granted in, and their links.
    tokens: Mutex<BTreeMap<Position, (Epoch, Vec<StreamLink>)>>,
}

impl Rig {
    /// An embedded log. It cannot be restarted under its clients: they live in the process that would die.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn embedded() -> Arc<Self> {
        let env: SharedEnv = TokioEnv::new();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut settings = EmbeddedOptions::default();
        settings.unit = unit_settings();
        let node = EmbeddedNode::start(dir.path(), Arc::clone(&env), settings)
            .await
            .expect("starts");
        let network = node.network(ServerName::new("client"));
        let clients = clients(&env, &network, &node.layout()).await;
        let servers = Mutex::new(Servers::Embedded { _node: node });
        Arc::new(Self {
            env,
            dir,
            configs: Vec::new(),
            servers,
            network,
            clients,
            tokens: Mutex::default(),
        })
    }

    /// A cluster over QUIC: `chains` chains of `replicas` units, and one process for sequencer and layout.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn cluster(chains: usize, replicas: usize) -> Arc<Self> {
        let env: SharedEnv = TokioEnv::new();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let configs = configs(dir.path(), chains, replicas);
        let nodes = start_all(&configs, &env).await;
        let tls = certs::read_tls(&dir.path().join("certs"), &ServerName::new("client"))
            .expect("just made");
        let identity = Identity::new(ServerName::new("client"), Incarnation(env.random_id()));
        let network = QuicNetwork::client(Arc::clone(&env), &tls, identity);
        let clients = clients(&env, &network, &configs[0].layout_servers[0].peer()).await;
        let servers = Mutex::new(Servers::Cluster(nodes));
        Arc::new(Self {
            env,
            dir,
            configs,
            servers,
            network,
            clients,
            tokens: Mutex::default(),
        })
    }

    /// The `n`-th client.
    #[must_use]
    pub fn client(&self, n: usize) -> &Arc<LogClient> {
        &self.clients[n]
    }

    /// Stops all servers, then starts them again.
    ///
    /// # Panics
    /// If one does not start again, or the log is embedded.
    pub async fn restart_servers(&self) {
        let old = std::mem::replace(&mut *self.lock(), Servers::Cluster(Vec::new()));
        if let Servers::Cluster(nodes) = old {
            for node in nodes {
                // A port is free again only once its socket is closed.
                node.close().await;
            }
        }
        let nodes = start_all(&self.configs, &self.env).await;
        *self.lock() = Servers::Cluster(nodes);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Servers> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, server: &ServerName, request: Request, body: Bytes) -> Response {
        let published = self.clients[0].layout();
        let peer = Peer {
            name: server.clone(),
            address: published.addresses[server].as_str().into(),
        };
        let deadline = self.env.now().after(Duration::from_secs(5));
        let answer = self
            .network
            .call(&peer, request.into_message(body), deadline)
            .await;
        Response::decode(&answer.expect("the server answers")).expect("a response")
    }

    /// Writes down the chain like a writer who took its token in `epoch`; whether it won everywhere.
    async fn write_chain(
        &self,
        epoch: Epoch,
        position: Position,
        links: Vec<StreamLink>,
        payload: Bytes,
    ) -> bool {
        let id = EntryId {
            writer: WriterId(self.env.random_id()),
            sequence: 0,
        };
        let entry = EncodedEntry::encode(position, &Entry { id, links, payload }, false);
        let len = u32::try_from(entry.len()).expect("small");
        let layout = self.clients[0].layout();
        for unit in layout.layout.chain(position) {
            let items = vec![(position, WireValue::Data { len })];
            let write = UnitRequest::Write {
                epoch,
                settled: Position::ZERO,
                items,
            };
            let name = &layout.layout.unit(*unit).name;
            let answer = self
                .call(name, Request::Unit(write), entry.bytes().clone())
                .await;
            let Response::Unit(UnitResponse::Written { answers, .. }) = answer else {
                return false;
            };
            if answers != [WriteAnswer::Durable] {
                return false;
            }
        }
        true
    }

    /// Changes a byte of the stored entry in the data folders of at most `most` units; says how many.
    async fn damage(&self, position: Position, most: usize) -> usize {
        let answer = self.clients[0]
            .read(vec![position])
            .await
            .expect("readable")
            .remove(0);
        let ReadAnswer::Data(entry) = answer else {
            panic!("{position} holds {answer:?}")
        };
        let mut needle = entry.id.writer.0.to_le_bytes().to_vec();
        needle.extend(entry.id.sequence.to_le_bytes());
        let mut damaged = 0;
        for file in segment_files(self.dir.path()) {
            if damaged == most {
                break;
            }
            let mut bytes = std::fs::read(&file).expect("a segment");
            if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
                bytes[at] ^= 0x40;
                write_in_place(&file, &bytes[at..=at], at);
                damaged += 1;
            }
        }
        damaged
    }
}

fn write_in_place(file: &Path, bytes: &[u8], at: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options()
        .write(true)
        .open(file)
        .expect("a segment");
    file.write_all_at(bytes, at as u64).expect("writable");
}

/// All segment files below `dir`, in order of their paths.
fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.starts_with("segment-") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

async fn clients(env: &SharedEnv, network: &SharedNetwork, layout: &Peer) -> Vec<Arc<LogClient>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (env, network) = (Arc::clone(env), Arc::clone(network));
        let client = LogClient::connect(env, network, vec![layout.clone()], options()).await;
        clients.push(client.expect("connects"));
    }
    clients
}

fn configs(dir: &Path, chains: usize, replicas: usize) -> Vec<ProcessConfig> {
    let certs_dir = dir.join("certs");
    certs::make_ca(&certs_dir).expect("an authority");
    certs::make_leaf(&certs_dir, &ServerName::new("client"), Role::Client).expect("a certificate");
    let units: Vec<Vec<String>> = (1..=chains)
        .map(|c| (0..replicas).map(|r| format!("unit-{c}{r}")).collect())
        .collect();
    let names = std::iter::once("sequencer-1").chain(units.iter().flatten().map(String::as_str));
    let sockets: Vec<_> = names
        .clone()
        .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let layout_at = sockets[0].local_addr().expect("bound").to_string();
    names
        .zip(&sockets)
        .map(|(name, socket)| {
            certs::make_leaf(&certs_dir, &ServerName::new(name), Role::Server)
                .expect("a certificate");
            let listen = socket.local_addr().expect("bound");
            let mut config = ProcessConfig::new(name, listen, TlsPaths::of(&certs_dir, name));
            config.data = Some(dir.join(name));
            config.layout_servers = vec![ServerAddress::new("sequencer-1", &layout_at)];
            if name == "sequencer-1" {
                config.sequencer = Some(SequencerSettings::default());
                config.layout = Some(LayoutSettings::new(units.clone(), name));
            } else {
                config.unit = Some(unit_settings());
            }
            config
        })
        .collect()
}

async fn start_all(configs: &[ProcessConfig], env: &SharedEnv) -> Vec<Node> {
    let mut nodes = Vec::new();
    for config in configs {
        nodes.push(
            Node::start(config.clone(), Arc::clone(env))
                .await
                .expect("starts"),
        );
    }
    nodes
}

impl LogUnderTest for Rig {
    fn log(&self, n: usize) -> SharedLog {
        Arc::clone(&self.clients[n]) as SharedLog
    }

    fn make_hole(&self, streams: Vec<StreamId>) -> BoxFuture<'_, Position> {
        Box::pin(async move {
            let layout = self.clients[0].layout();
            let (epoch, name) = (layout.layout.epoch, layout.layout.sequencer.name.clone());
            let request = Request::Sequencer(SequencerRequest::Tokens {
                epoch,
                wants: vec![streams],
            });
            match self.call(&name, request, Bytes::new()).await {
                Response::Sequencer(SequencerResponse::Tokens(tokens)) => {
                    let token = tokens.into_iter().next().expect("one was wanted");
                    self.tokens
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(token.position, (epoch, token.links));
                    token.position
                }
                other => panic!("tokens wanted, got {other:?}"),
            }
        })
    }

    fn write_late(&self, hole: Position, payload: Bytes) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async move {
            let (epoch, links) = self
                .tokens
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&hole)?;
            Some(self.write_chain(epoch, hole, links, payload).await)
        })
    }

    fn lose(&self, position: Position) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            assert!(
                self.damage(position, usize::MAX).await > 0,
                "{position} is on no disk"
            );
            true
        })
    }

    fn lose_one_replica(&self, position: Position) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let replicated = self.clients[0].layout().layout.chain(position).len() > 1;
            if replicated {
                assert_eq!(
                    self.damage(position, 1).await,
                    1,
                    "{position} is on no disk"
                );
            }
            replicated
        })
    }

    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let cluster = matches!(&*self.lock(), Servers::Cluster(_));
            if cluster {
                self.restart_servers().await;
            }
            cluster
        })
    }
}
