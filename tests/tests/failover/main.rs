//! SIGKILL and SIGSTOP of the sequencer, of units and of members of the layout of a real cluster, also again and again, which
//! makes them slow: it goes on, and nothing acknowledged is lost.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

mod layouts;
mod leases;
mod slow;

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use milonga::{ClientConfig, Map, Milonga};
use milonga_client::{ClientOptions, LogClient};
use milonga_node::{
    LayoutSettings, NEW_LAYOUT, ProcessConfig, SequencerSettings, ServerAddress, TlsPaths,
    UnitSettings,
};
use milonga_protocol::{Incarnation, Layout, ServerName, SharedEnv};
use milonga_transport::{Identity, QuicNetwork, Role, TokioEnv, certs};

const CHILD: &str = env!("CARGO_BIN_EXE_child");
const LAYOUTS: [&str; 3] = ["layout-1", "layout-2", "layout-3"];
const OTHERS: [&str; 4] = ["sequencer-1", "sequencer-2", "unit-1a", "unit-1b"];

/// Members of the layout, two sequencers and one chain of two units, as processes.
struct Cluster {
    dir: PathBuf,
    layout: Vec<ServerAddress>,
    running: BTreeMap<&'static str, Child>,
}

impl Cluster {
    /// So many members of the layout, and all others.
    fn start(dir: &Path, layouts: usize) -> Self {
        let names: Vec<_> = LAYOUTS[..layouts].iter().chain(&OTHERS).copied().collect();
        let certificates = dir.join("certs");
        certs::make_ca(&certificates).expect("an authority");
        let client = ServerName::new("client");
        certs::make_leaf(&certificates, &client, Role::Client).expect("a certificate");
        let sockets: Vec<_> = (names.iter())
            .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let addresses = sockets.iter().map(|s| s.local_addr().expect("bound"));
        let addresses: Vec<_> = addresses.collect();
        drop(sockets);
        let members = LAYOUTS[..layouts].iter().zip(&addresses);
        let member =
            |(name, at): (&&str, &std::net::SocketAddr)| ServerAddress::new(name, &at.to_string());
        let layout: Vec<_> = members.map(member).collect();
        for (name, listen) in names.iter().zip(&addresses) {
            let server = ServerName::new(name);
            certs::make_leaf(&certificates, &server, Role::Server).expect("a certificate");
            let tls = TlsPaths::of(&certificates, name);
            let mut config = ProcessConfig::new(name, *listen, tls);
            config.data = Some(dir.join(name));
            config.layout_servers.clone_from(&layout);
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
                std::fs::create_dir(dir.join(name)).expect("writable");
                std::fs::write(dir.join(name).join(NEW_LAYOUT), "").expect("writable");
            }
            let text = toml::to_string(&config).expect("plain");
            std::fs::write(dir.join(format!("{name}.toml")), text).expect("writable");
        }
        let mut cluster = Self {
            dir: dir.to_owned(),
            layout: layout.clone(),
            running: BTreeMap::new(),
        };
        names.iter().for_each(|name| cluster.spawn(name));
        let layout = layout.iter().map(|m| (&*m.name, &*m.address));
        let client = ClientConfig::new(&certificates, "client", layout);
        let client = toml::to_string(&client).expect("plain");
        std::fs::write(dir.join("client.toml"), client).expect("writable");
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

    fn signal(&self, name: &str, signal: &str) {
        let pid = self.running[name].id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.expect("kill runs").success());
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

/// A client of the log alone, to see the layout by.
async fn log_client(certificates: &Path, layout: &[ServerAddress]) -> Arc<LogClient> {
    let name = ServerName::new("client");
    let env: SharedEnv = TokioEnv::new();
    let tls = certs::read_tls(certificates, &name).expect("just made");
    let identity = Identity::new(name, Incarnation(env.random_id()));
    let network = QuicNetwork::client(Arc::clone(&env), &tls, identity);
    let layout = layout.iter().map(ServerAddress::peer).collect();
    let client = LogClient::connect(env, network, layout, ClientOptions::default());
    client.await.expect("connects")
}

/// A cluster under load, with a map that keeps what was acknowledged.
struct Load {
    cluster: Cluster,
    config: ClientConfig,
    milonga: Milonga,
    map: Map<String, u64>,
    log: Arc<LogClient>,
    writers: Writers,
    acked: Arc<Mutex<Acked>>,
}

impl Load {
    async fn start(dir: &Path, layouts: usize) -> Self {
        let cluster = Cluster::start(dir, layouts);
        let config = ClientConfig::read(dir.join("client.toml")).expect("just written");
        let milonga = Milonga::connect(config.clone()).await.expect("connects");
        let map = milonga.map::<String, u64>("kept").await.expect("opens");
        let log = log_client(&dir.join("certs"), &cluster.layout).await;
        let writers = Writers::start(&map);
        let acked = Arc::clone(&writers.acked);
        Self {
            cluster,
            config,
            milonga,
            map,
            log,
            writers,
            acked,
        }
    }
}

async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// What writers did so far.
#[derive(Default)]
struct Acked {
    keys: BTreeMap<String, u64>,
    last: Option<Instant>,
    longest: Duration,
}

impl Acked {
    fn note(&mut self, key: String, n: u64) {
        let pause = self.last.replace(Instant::now()).map(|last| last.elapsed());
        self.longest = self.longest.max(pause.unwrap_or_default());
        self.keys.insert(key, n);
    }
}

fn lock(acked: &Mutex<Acked>) -> std::sync::MutexGuard<'_, Acked> {
    acked.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the layout is `such` and a hundred updates were acknowledged since; the longest pause between two.
async fn goes_on_when(
    log: &LogClient,
    acked: &Mutex<Acked>,
    such: impl Fn(&Layout) -> bool,
) -> Duration {
    let give_up = Instant::now() + Duration::from_secs(20);
    let (mut before, mut began) = (0, false);
    loop {
        sleep(20).await;
        let count = lock(acked).keys.len();
        let layout = log.layout().layout.clone();
        if !began && such(&layout) {
            (before, began) = (count, true);
        }
        if began && count > before + 100 {
            return std::mem::take(&mut lock(acked).longest);
        }
        assert!(Instant::now() < give_up, "it does not go on: {layout:?}");
    }
}

/// The same, as soon as `name` is the sequencer.
async fn goes_on_with(log: &LogClient, name: &str, acked: &Mutex<Acked>) -> Duration {
    goes_on_when(log, acked, is_sequencer(name)).await
}

fn is_sequencer(name: &str) -> impl Fn(&Layout) -> bool {
    move |layout| layout.sequencer.name.as_str() == name
}

/// Names of the chain, head first; none while parts of the log have other chains.
fn chain(layout: &Layout) -> Vec<&str> {
    let [segment] = &layout.segments[..] else {
        return Vec::new();
    };
    let chain = segment.chains[0].iter();
    chain.map(|unit| layout.unit(*unit).name.as_str()).collect()
}

/// Whether all of the log is on one chain of these units, head first.
fn is_chain(wanted: &'static [&'static str]) -> impl Fn(&Layout) -> bool {
    move |layout| chain(layout) == wanted
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
                    lock(&acked).note(key, n);
                }
            })
        });
        let tasks = tasks.collect();
        Self { acked, stop, tasks }
    }

    /// Everything that was acknowledged is in the map.
    async fn check(self, map: &Map<String, u64>) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.tasks {
            writer.await.expect("a writer failed");
        }
        let keys = std::mem::take(&mut lock(&self.acked).keys);
        for (key, n) in &keys {
            assert_eq!(map.get(key).await.expect("readable"), Some(*n), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_sequencer_takes_over_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        mut cluster,
        milonga,
        map,
        log,
        writers,
        acked,
        ..
    } = Load::start(dir.path(), 1).await;
    goes_on_with(&log, "sequencer-1", &acked).await;
    cluster.kill("sequencer-1");
    let killed = goes_on_with(&log, "sequencer-2", &acked).await;
    // Who comes back is the spare now; who is stopped and goes on later is harmless.
    cluster.spawn("sequencer-1");
    sleep(500).await;
    cluster.signal("sequencer-2", "-STOP");
    let stopped = goes_on_with(&log, "sequencer-1", &acked).await;
    cluster.signal("sequencer-2", "-CONT");
    sleep(500).await;
    goes_on_with(&log, "sequencer-1", &acked).await;
    println!("longest pause when killed {killed:?}, when stopped {stopped:?}");
    writers.check(&map).await;
    milonga.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_goes_on_without_a_unit_and_takes_it_in_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        mut cluster,
        config,
        milonga,
        map,
        log,
        writers,
        acked,
    } = Load::start(dir.path(), 1).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    // The head.
    cluster.kill("unit-1a");
    let killed = goes_on_when(&log, &acked, is_chain(&["unit-1b"])).await;
    cluster.spawn("unit-1a");
    let back = goes_on_when(&log, &acked, is_chain(&["unit-1b", "unit-1a"])).await;
    // Who has only just got everything is as good as the other.
    cluster.signal("unit-1b", "-STOP");
    let stopped = goes_on_when(&log, &acked, is_chain(&["unit-1a"])).await;
    cluster.signal("unit-1b", "-CONT");
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    println!(
        "longest pause when killed {killed:?}, when it came back {back:?}, when stopped {stopped:?}"
    );
    writers.check(&map).await;
    milonga.close().await.expect("closes");
    // With the disk of either, all is there.
    cluster.kill("unit-1a");
    let again = Milonga::connect(config).await.expect("connects");
    let map = again.map::<String, u64>("kept").await.expect("opens");
    let kept = map.len().await.expect("readable");
    assert!(kept > 400, "{kept}");
    again.close().await.expect("closes");
}
