//! Growth and care of a real cluster by command, under load: nothing acknowledged is lost, and the chains are as asked.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use milonga::{ClientConfig, Map, Milonga};
use milonga_node::{
    LayoutSettings, ProcessConfig, SequencerSettings, ServerAddress, TlsPaths, UnitSettings,
};
use milonga_protocol::ServerName;
use milonga_transport::{Role, certs};
use serde_json::{Value, json};

const CHILD: &str = env!("CARGO_BIN_EXE_child");
/// The last three are named by no configuration but their own.
const NAMES: [&str; 8] = [
    "layout-1",
    "sequencer-1",
    "sequencer-2",
    "unit-1a",
    "unit-1b",
    "unit-x",
    "unit-y",
    "unit-z",
];

struct Cluster {
    dir: PathBuf,
    running: BTreeMap<&'static str, Child>,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        let certificates = dir.join("certs");
        certs::make_ca(&certificates).expect("an authority");
        let client = ServerName::new("client");
        certs::make_leaf(&certificates, &client, Role::Client).expect("a certificate");
        let sockets = NAMES.map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let addresses = sockets.map(|socket| socket.local_addr().expect("bound"));
        let layout_at = addresses[0].to_string();
        for (name, listen) in NAMES.iter().zip(addresses) {
            let server = ServerName::new(name);
            certs::make_leaf(&certificates, &server, Role::Server).expect("a certificate");
            let tls = TlsPaths::of(&certificates, name);
            let mut config = ProcessConfig::new(name, listen, tls);
            config.data = Some(dir.join(name));
            config.layout_servers = vec![ServerAddress::new("layout-1", &layout_at)];
            if name.starts_with("unit-") {
                let mut unit = UnitSettings::default();
                unit.segment_bytes = 8 << 20;
                config.unit = Some(unit);
            } else if name.starts_with("sequencer-") {
                config.sequencer = Some(SequencerSettings::default());
            } else {
                let chain = vec!["unit-1a".to_owned(), "unit-1b".to_owned()];
                let mut layout = LayoutSettings::new(vec![chain], "sequencer-1");
                layout.spare_sequencers = vec!["sequencer-2".to_owned()];
                config.layout = Some(layout);
            }
            let text = toml::to_string(&config).expect("plain");
            std::fs::write(dir.join(format!("{name}.toml")), text).expect("writable");
        }
        let servers = [("layout-1", layout_at.as_str())];
        let client = ClientConfig::new(&certificates, "client", servers);
        let text = toml::to_string(&client).expect("plain");
        std::fs::write(dir.join("client.toml"), text).expect("writable");
        let mut cluster = Self {
            dir: dir.to_owned(),
            running: BTreeMap::new(),
        };
        NAMES.iter().for_each(|name| cluster.spawn(name));
        cluster
    }

    fn spawn(&mut self, name: &'static str) {
        let child = Command::new(CHILD)
            .args(["server", "serve", "--config"])
            .arg(self.dir.join(format!("{name}.toml")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        self.running.insert(name, child);
    }

    fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).expect("runs");
        child.kill().expect("killed");
        child.wait().expect("dead");
    }

    /// `milonga cluster …`.
    async fn command(&self, arguments: &[&str]) -> Output {
        let output = tokio::process::Command::new(CHILD)
            .args(["server", "cluster", "--json", "--config"])
            .arg(self.dir.join("client.toml"))
            .args(arguments)
            .output();
        output.await.expect("runs")
    }

    /// The same, with success.
    async fn ok(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        let value = serde_json::from_slice(&output.stdout).expect("one JSON value");
        println!("{arguments:?}: {value}");
        value
    }

    /// Waits until the status names it as removed, while it runs.
    async fn says_removed(&self, name: &str) {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            let output = self.command(&["status"]).await;
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if status["removed"] == json!([name]) {
                return;
            }
            assert!(Instant::now() < give_up, "{status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The same, refused.
    async fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

impl Cluster {
    /// The same with certificates of another authority.
    async fn refused_with_other_certificates(&self, arguments: &[&str]) -> String {
        let other = self.dir.join("other");
        certs::make_ca(&other).expect("an authority");
        let client = ServerName::new("client");
        certs::make_leaf(&other, &client, Role::Client).expect("a certificate");
        let file = self.dir.join("client.toml");
        let own = std::fs::read_to_string(&file).expect("readable");
        let certs = self.dir.join("certs").display().to_string();
        let text = own.replace(&certs, &other.display().to_string());
        assert_ne!(text, own);
        std::fs::write(&file, text).expect("writable");
        let why = self.refused(arguments).await;
        std::fs::write(&file, own).expect("writable");
        why
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What writers did so far.
#[derive(Default)]
struct Acked {
    keys: BTreeMap<String, u64>,
    last: Option<Instant>,
    longest: Duration,
}

fn lock(acked: &Mutex<Acked>) -> std::sync::MutexGuard<'_, Acked> {
    acked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writers that go on until they are stopped.
struct Writers {
    acked: Arc<Mutex<Acked>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(map: &Map<String, u64>) -> Self {
        let (acked, stop) = (Arc::<Mutex<Acked>>::default(), Arc::<AtomicBool>::default());
        let tasks = (0..4_u64).map(|writer| {
            let (map, acked, stop) = (map.clone(), Arc::clone(&acked), Arc::clone(&stop));
            tokio::spawn(async move {
                for n in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{writer}/{n}");
                    map.insert(key.clone(), n).await.expect("goes on");
                    let mut acked = lock(&acked);
                    let pause = acked.last.replace(Instant::now());
                    let pause = pause.map(|last| last.elapsed()).unwrap_or_default();
                    acked.longest = acked.longest.max(pause);
                    acked.keys.insert(key, n);
                }
            })
        });
        let tasks = tasks.collect();
        Self { acked, stop, tasks }
    }

    /// Waits until so many more were acknowledged; the longest pause between two since it was asked last.
    async fn go_on(&self, more: usize) -> Duration {
        let give_up = Instant::now() + Duration::from_secs(20);
        let before = lock(&self.acked).keys.len();
        while lock(&self.acked).keys.len() < before + more {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(Instant::now() < give_up, "appends do not go on");
        }
        std::mem::take(&mut lock(&self.acked).longest)
    }

    /// Stops them; everything that was acknowledged.
    async fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.tasks {
            writer.await.expect("a writer failed");
        }
        std::mem::take(&mut lock(&self.acked).keys)
    }
}

async fn check(map: &Map<String, u64>, keys: &BTreeMap<String, u64>) {
    for (key, n) in keys {
        assert_eq!(map.get(key).await.expect("readable"), Some(*n), "{key}");
    }
}

/// The chains of the newest layout's segments.
async fn segments(cluster: &Cluster) -> Vec<Value> {
    let history = cluster.ok(&["history"]).await;
    let segments = history["segments"].as_array().expect("segments").clone();
    let chains = segments.into_iter().map(|segment| {
        assert_eq!(segment["joining"], json!([]));
        segment["chains"].clone()
    });
    chains.collect()
}

/// Also those that the run of the layout server before made, once this one has made its own.
async fn says_why_epochs_began(cluster: &Cluster) {
    let wanted = [
        "the cluster is new",
        "sequencer-2 is to be the sequencer; sequencer-2 takes over",
        "unit-x can take a place in a chain; takes in unit-x, unit-y; there are 2 chains now",
        "unit-z has got everything",
        "unit-1b is to leave; goes on without unit-1b",
        "the layout server was started",
    ];
    let give_up = Instant::now() + Duration::from_secs(10);
    let epochs = loop {
        let output = cluster.command(&["history"]).await;
        let history: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let epochs = history["epochs"].as_array().cloned().unwrap_or_default();
        if wanted
            .iter()
            .all(|cause| epochs.iter().any(|epoch| epoch["cause"] == *cause))
        {
            break epochs;
        }
        assert!(Instant::now() < give_up, "{history}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let began = epochs.iter().map(|epoch| epoch["began"].as_str());
    let began: Vec<_> = began.map(|began| began.expect("a time")).collect();
    assert!(began.is_sorted() && began[0].ends_with('Z'), "{began:?}");
    assert!(!began[0].starts_with("1970"), "{began:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_is_cared_for_under_load() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut cluster = Cluster::start(dir.path());
    let config = ClientConfig::read(dir.path().join("client.toml")).expect("just written");
    let milonga = Milonga::connect(config.clone()).await.expect("connects");
    let map = milonga.map::<String, u64>("kept").await.expect("opens");
    let writers = Writers::start(&map);
    writers.go_on(200).await;

    let planned = cluster
        .ok(&["move-sequencer", "sequencer-2", "--dry-run"])
        .await;
    assert_eq!(planned["dry_run"], json!(true));
    let moved = cluster.ok(&["move-sequencer", "sequencer-2"]).await;
    assert_eq!(moved["sequencer"], json!("sequencer-2"));
    println!(
        "pause when the sequencer moved: {:?}",
        writers.go_on(200).await
    );

    let grown = cluster.ok(&["add-chain", "unit-x", "unit-y"]).await;
    let wanted = json!([["unit-1a", "unit-1b"], ["unit-x", "unit-y"]]);
    assert_eq!(grown["chains"], wanted);
    println!(
        "pause when a chain was added: {:?}",
        writers.go_on(400).await
    );

    let replaced = cluster.ok(&["replace-unit", "unit-1a", "unit-z"]).await;
    assert_eq!(replaced["joins"], json!(["unit-z"]));
    println!(
        "pause when a unit was replaced: {:?}",
        writers.go_on(200).await
    );
    cluster.kill("unit-1a");

    cluster.ok(&["remove-unit", "unit-1b"]).await;
    println!(
        "pause when a unit was removed: {:?}",
        writers.go_on(200).await
    );
    let older = json!([["unit-z"]]);
    cluster.says_removed("unit-1b").await;
    let newer = json!([["unit-z"], ["unit-x", "unit-y"]]);
    assert_eq!(segments(&cluster).await, [older, newer]);
    cluster.kill("unit-1b");

    let why = cluster.refused(&["remove-unit", "unit-z"]).await;
    assert!(why.contains("would keep fewer"), "{why}");
    let why = cluster.refused(&["add-unit", "unit-9"]).await;
    assert!(why.contains("has not said hello"), "{why}");
    let why = cluster.refused(&["add-unit", "layout-1"]).await;
    assert!(why.contains("runs, but is no log unit"), "{why}");

    // Whoever is turned away need not wait until it is too late.
    let why = cluster.refused_with_other_certificates(&["add-unit", "unit-9"]);
    let why = why.await;
    assert!(why.contains("certificate"), "{why}");
    assert!(!why.contains("not known to be under way"), "{why}");

    // Its configuration is as it was.
    cluster.kill("layout-1");
    cluster.spawn("layout-1");
    writers.go_on(200).await;
    says_why_epochs_began(&cluster).await;
    let keys = writers.stop().await;
    check(&map, &keys).await;
    milonga.close().await.expect("closes");
    let again = Milonga::connect(config).await.expect("connects");
    let map = again.map::<String, u64>("kept").await.expect("opens");
    check(&map, &keys).await;
    again.close().await.expect("closes");
}
