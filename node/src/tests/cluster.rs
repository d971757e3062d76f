//! Server processes over QUIC and mutual TLS, all in this one, on free ports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::{Raw, id, raw};
use crate::{
    LayoutSettings, Node, NodeError, ProcessConfig, SequencerSettings, ServerAddress, TlsPaths,
    UnitSettings,
};
use milonga_layout::StoreChange;
use milonga_protocol::messages::{Refusal, Request, Response, UnitReadAnswer};
use milonga_protocol::{ClusterId, Epoch, Incarnation, SharedEnv, StreamId};
use milonga_transport::{Identity, QuicNetwork, Role, Tls, TokioEnv, certs};

const UNITS: [&str; 4] = ["unit-1a", "unit-1b", "unit-2a", "unit-2b"];
const SEQUENCER: &str = "sequencer-1";

struct Cluster {
    dir: tempfile::TempDir,
    env: SharedEnv,
    sequencer: Option<Node>,
    address: String,
    units: Vec<Option<Node>>,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        certs::make_ca(path).unwrap();
        for name in UNITS.iter().chain([&SEQUENCER]) {
            certs::make_leaf(path, &(*name).into(), Role::Server).unwrap();
        }
        certs::make_leaf(path, &"app".into(), Role::Client).unwrap();
        let env: SharedEnv = TokioEnv::new();
        let sequencer = Node::start(sequencer_config(path, "127.0.0.1:0"), env.clone()).await;
        let sequencer = sequencer.unwrap();
        let address = sequencer.local_addr().to_string();
        let mut cluster = Self {
            dir,
            env,
            sequencer: Some(sequencer),
            address,
            units: Vec::new(),
        };
        for name in UNITS {
            let unit = cluster.start_unit(name).await.unwrap();
            cluster.units.push(Some(unit));
        }
        cluster
    }

    async fn start_unit(&self, name: &str) -> Result<Node, NodeError> {
        let config = unit_config(self.dir.path(), name, &self.address);
        Node::start(config, self.env.clone()).await
    }

    fn client(&self) -> Raw {
        let tls = Tls::read(
            self.path("ca.pem"),
            self.path("app.pem"),
            self.path("app.key"),
        );
        let identity = Identity::new("app".into(), Incarnation(self.env.random_id()));
        let network = QuicNetwork::client(self.env.clone(), &tls.unwrap(), identity);
        let layout = ServerAddress::new(SEQUENCER, &self.address).peer();
        raw(&self.env, network, layout)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn sequencer_config(dir: &Path, listen: &str) -> ProcessConfig {
    let tls = TlsPaths::of(dir, SEQUENCER);
    let mut config = ProcessConfig::new(SEQUENCER, listen.parse().unwrap(), tls);
    config.data = Some(dir.join("data-sequencer-1"));
    config.sequencer = Some(SequencerSettings::default());
    let chain = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let chains = vec![chain(&UNITS[..2]), chain(&UNITS[2..])];
    config.layout = Some(LayoutSettings::new(chains, SEQUENCER));
    config.layout_servers = vec![ServerAddress::new(SEQUENCER, listen)];
    config
}

fn unit_config(dir: &Path, name: &str, layout: &str) -> ProcessConfig {
    let tls = TlsPaths::of(dir, name);
    let mut config = ProcessConfig::new(name, "127.0.0.1:0".parse().unwrap(), tls);
    config.data = Some(dir.join(format!("data-{name}")));
    config.unit = Some(UnitSettings {
        segment_bytes: 8 << 20,
        reserve_bytes: 1 << 20,
        ..UnitSettings::default()
    });
    config.layout_servers = vec![ServerAddress::new(SEQUENCER, layout)];
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_opens_and_a_returning_server_makes_a_new_epoch() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let published = client.published(Epoch::NONE).await;
    let mut positions = Vec::new();
    for n in 0..10 {
        let appended = client
            .append(&published, id(n), StreamId::raw(1), "first")
            .await;
        positions.push(appended.expect("an open log takes appends"));
    }
    // A unit goes and comes back: at another port, with the same directory.
    cluster.units[3].take().unwrap().close().await;
    let unit = cluster.start_unit(UNITS[3]).await.unwrap();
    cluster.units[3] = Some(unit);
    let second = client.published(published.layout.epoch).await;
    // The sequencer's process, which owns the layout too, comes back at the same port.
    cluster.sequencer.take().unwrap().close().await;
    let config = sequencer_config(cluster.dir.path(), &cluster.address);
    cluster.sequencer = Some(Node::start(config, cluster.env.clone()).await.unwrap());
    let third = client.published(second.layout.epoch).await;
    assert_eq!(third.layout.cluster, published.layout.cluster);
    let appended = client
        .append(&third, id(99), StreamId::raw(1), "last")
        .await;
    positions.push(appended.expect("an open log takes appends"));
    for position in positions {
        let (answer, _) = client.read(&third, position).await.unwrap();
        assert!(matches!(answer, UnitReadAnswer::Data { .. }), "{answer:?}");
    }
    let status = cluster.units[0].as_ref().unwrap().status().await;
    assert_eq!(status.cluster, Some(third.layout.cluster));
}

/// What a directory looked like before the history was kept on raft.
fn write_old_history(data: &Path, layout: &milonga_protocol::Layout) {
    std::fs::remove_file(data.join("layout-raft.redb")).unwrap();
    let (mut store, _) = milonga_layout::LayoutStore::open(data.join("layout.redb")).unwrap();
    let (epoch, layout) = (layout.epoch, layout.clone());
    let units = layout.units.iter().map(|unit| unit.id).collect();
    let parent = Epoch::NONE;
    for change in [
        StoreChange::Intent { epoch },
        StoreChange::Commit {
            parent,
            layout,
            origin: None,
        },
        StoreChange::Opened { epoch, units },
    ] {
        store.apply(&change).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_goes_on_with_the_history_that_it_kept_without_raft() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    let first = client.published(Epoch::NONE).await;
    let appended = client.append(&first, id(1), StreamId::raw(1), "kept").await;
    let position = appended.expect("an open log takes appends");
    cluster.sequencer.take().unwrap().close().await;
    let config = sequencer_config(cluster.dir.path(), &cluster.address);
    let data = config.data.clone().unwrap();
    write_old_history(&data, &first.layout);
    let node = Node::start(config.clone(), cluster.env.clone()).await;
    let second = client.published(first.layout.epoch).await;
    assert_eq!(second.layout.cluster, first.layout.cluster);
    let (answer, _) = client.read(&second, position).await.unwrap();
    assert!(matches!(answer, UnitReadAnswer::Data { .. }), "{answer:?}");
    assert!(!data.join("layout.redb").exists());
    // And once more, from where it is kept now.
    node.unwrap().close().await;
    cluster.sequencer = Some(Node::start(config, cluster.env.clone()).await.unwrap());
    let third = client.published(second.layout.epoch).await;
    assert_eq!(third.layout.cluster, first.layout.cluster);
}

#[tokio::test]
async fn a_member_of_several_needs_a_past_or_a_new_layout_and_names_that_are_proved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    certs::make_ca(path).unwrap();
    for name in [SEQUENCER, "layout-2", UNITS[0]] {
        certs::make_leaf(path, &name.into(), Role::Server).unwrap();
    }
    let env: SharedEnv = TokioEnv::new();
    let mut config = sequencer_config(path, "127.0.0.1:0");
    for name in ["layout-2", "layout-3"] {
        config
            .layout_servers
            .push(ServerAddress::new(name, "127.0.0.1:1"));
    }
    let data = config.data.clone().unwrap();
    let refused = Node::start(config.clone(), env.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("NEW-LAYOUT"), "{refused}");
    std::fs::write(data.join(crate::NEW_LAYOUT), "").unwrap();
    let node = Node::start(config.clone(), env.clone()).await.unwrap();
    assert!(!data.join(crate::NEW_LAYOUT).exists());
    let status = node.status().await;
    assert_eq!(status.roles["layout"]["leads"], "no");

    // A candidate of term 1: layout-2, by order of name.
    let vote = bytes::Bytes::from_static(&[1, 1, 1, 0, 0]);
    let peer = ServerAddress::new(SEQUENCER, &node.local_addr().to_string()).peer();
    let ask = async |name: &str| {
        let file = |end| path.join(format!("{name}.{end}"));
        let tls = Tls::read(path.join("ca.pem"), file("pem"), file("key"));
        let identity = Identity::new(name.into(), Incarnation(env.random_id()));
        let network = QuicNetwork::client(env.clone(), &tls.unwrap(), identity);
        let deadline = env.now().after(Duration::from_secs(5));
        let request = Request::Raft.into_message(vote.clone());
        let answer = network.call(&peer, request, deadline).await.unwrap();
        Response::decode(&answer).unwrap()
    };
    let stranger = ask(UNITS[0]).await;
    assert!(
        matches!(&stranger, Response::Refused(Refusal::NotAllowed { why }) if why.contains("member 1")),
        "{stranger:?}"
    );
    assert_eq!(ask("layout-2").await, Response::Raft);
    node.close().await;
    // It has a past now, and needs no mark.
    let node = Node::start(config, env.clone()).await.unwrap();
    node.close().await;
}

/// Layout, unit and sequencer, each a process of its own: the last has no directory that names its cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequencer_alone_learns_its_cluster_and_refuses_others() {
    let dir = tempfile::tempdir().unwrap();
    let (path, env): (_, SharedEnv) = (dir.path(), TokioEnv::new());
    certs::make_ca(path).unwrap();
    for name in ["layout-1", UNITS[0], SEQUENCER] {
        certs::make_leaf(path, &name.into(), Role::Server).unwrap();
    }
    certs::make_leaf(path, &"app".into(), Role::Client).unwrap();
    let anywhere = "127.0.0.1:0";
    let mut config = ProcessConfig::new("layout-1", anywhere.parse().unwrap(), {
        TlsPaths::of(path, "layout-1")
    });
    config.data = Some(path.join("data-layout-1"));
    config.layout = Some(LayoutSettings::new(
        vec![vec![UNITS[0].to_owned()]],
        SEQUENCER,
    ));
    config.layout_servers = vec![ServerAddress::new("layout-1", anywhere)];
    let layout = Node::start(config, env.clone()).await.unwrap();
    let address = ServerAddress::new("layout-1", &layout.local_addr().to_string());
    let mut config = unit_config(path, UNITS[0], anywhere);
    config.layout_servers = vec![address.clone()];
    let unit = Node::start(config, env.clone()).await.unwrap();
    let tls = TlsPaths::of(path, SEQUENCER);
    let mut config = ProcessConfig::new(SEQUENCER, anywhere.parse().unwrap(), tls);
    config.sequencer = Some(SequencerSettings::default());
    config.layout_servers = vec![address.clone()];
    let sequencer = Node::start(config, env.clone()).await.unwrap();

    let network = |cluster: Option<ClusterId>| {
        let file = |name| path.join(name);
        let tls = Tls::read(file("ca.pem"), file("app.pem"), file("app.key"));
        let identity = Identity::new("app".into(), Incarnation(env.random_id()));
        if let Some(cluster) = cluster {
            identity.set_cluster(cluster).unwrap();
        }
        QuicNetwork::client(env.clone(), &tls.unwrap(), identity)
    };
    let client = raw(&env, network(None), address.peer());
    let published = client.published(Epoch::NONE).await;
    let cluster = published.layout.cluster;
    assert_eq!(sequencer.status().await.cluster, Some(cluster));
    let peer = ServerAddress::new(SEQUENCER, &sequencer.local_addr().to_string()).peer();
    let call = async |cluster| {
        let status = Request::Status.into_message(bytes::Bytes::new());
        let deadline = env.now().after(Duration::from_secs(5));
        network(cluster).call(&peer, status, deadline).await
    };
    call(Some(cluster)).await.expect("it is of this cluster");
    let error = call(Some(ClusterId(1)))
        .await
        .expect_err("it is of another");
    assert!(error.to_string().contains("belongs to cluster"), "{error}");
    for node in [unit, sequencer, layout] {
        node.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_unit_is_named_and_awaited() {
    let mut cluster = Cluster::start().await;
    drop(cluster.units.pop());
    let client = cluster.client();
    // Whatever was published before, nothing newer comes without the missing one; it is named.
    cluster.env.sleep(Duration::from_millis(300)).await;
    let status = cluster.sequencer.as_ref().unwrap().status().await;
    println!("{:?}", status.roles["layout"]);
    let unit = cluster.start_unit(UNITS[3]).await.unwrap();
    cluster.units.push(Some(unit));
    let published = client.published(Epoch::NONE).await;
    let appended =
        async |published: &_| client.append(published, id(1), StreamId::raw(1), "x").await;
    // The epoch that was read may be the one before the unit came back.
    if appended(&published).await.is_err() {
        let next = client.published(published.layout.epoch).await;
        appended(&next).await.expect("all are here");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    certs::make_ca(path).unwrap();
    for name in ["unit-1a", "unit-1b"] {
        certs::make_leaf(path, &name.into(), Role::Server).unwrap();
    }
    let env: SharedEnv = TokioEnv::new();
    let error = async |config: ProcessConfig| {
        let result = Node::start(config, env.clone()).await;
        result.unwrap_err().to_string()
    };
    let good = unit_config(path, "unit-1a", "127.0.0.1:1");
    let mut other = good.clone();
    other.tls = TlsPaths::of(path, "unit-1b");
    let text = error(other).await;
    assert!(
        text.contains("is for unit-1b, but this process is unit-1a"),
        "{text}"
    );
    let mut missing = good.clone();
    missing.tls.key = path.join("none.key");
    let text = error(missing).await;
    assert!(
        text.contains("none.key") && text.contains("milonga certs"),
        "{text}"
    );
    let mut homeless = good.clone();
    homeless.data = None;
    let text = error(homeless).await;
    assert!(text.contains("key `data`"), "{text}");

    let node = Node::start(good.clone(), env.clone()).await.unwrap();
    let text = error(good.clone()).await;
    assert!(text.contains("is in use by process"), "{text}");
    let mut taken = good.clone();
    taken.data = Some(path.join("elsewhere"));
    taken.listen = node.local_addr();
    let text = error(taken).await;
    assert!(text.contains(&node.local_addr().to_string()), "{text}");
    node.close().await;

    // The directory remembers whose it is.
    let mut stolen = unit_config(path, "unit-1b", "127.0.0.1:1");
    stolen.data.clone_from(&good.data);
    let result = Node::start(stolen, env.clone()).await;
    // A unit that never joined a cluster may not have written its name yet.
    if let Err(refused) = result {
        assert!(refused.to_string().contains("unit-1a"), "{refused}");
    }
}
