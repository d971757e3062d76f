//! How long appends stand still when a server is killed, and how fast a unit is given what it lacks: real processes, QUIC
//! and mutual TLS, fdatasync.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark runs on real threads and real time"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser as _;
use milonga::cli;
use milonga::{ClientConfig, Milonga, NewEntry};
use milonga_benches::report::{Better, Figure, ReportArgs};
use milonga_protocol::{Layout, UnitIndex};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const TASKS: u64 = 64;
/// Between two kills: the layout bears less and less silence if they come faster.
const ROUND: Duration = Duration::from_secs(6);
/// A cluster that is not whole again after so long never will be.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the log that is copied.
const COPIED_ENTRIES: u64 = 60_000;
const COPIED_BYTES: usize = 4 << 10;

/// Kills the sequencer at work and units, again and again; reports the longest pause of appends from 64 tasks.
#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    report: ReportArgs,
    /// Kills 100 times instead of 20, and reports the 99th percentile instead of the maximum.
    #[arg(long)]
    long: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    if std::env::args().nth(1).as_deref() == Some("server") {
        return cli::run(std::iter::once(program).chain(arguments.skip(1)));
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new().expect("threads and an epoll can be had");
    let result = runtime.block_on(measure(&arguments));
    match result.and_then(|figures| Ok(arguments.report.print(&figures)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<Vec<Figure>, AnyError> {
    let (report, mut figures) = (&arguments.report, Vec::new());
    let kills = if arguments.long { 100 } else { 20 };
    if report.wants("sequencer_killed") {
        let pauses = pauses(kills, |layout, _| layout.sequencer.name.to_string()).await?;
        figures.push(pause("sequencer_killed", &pauses, arguments.long));
    }
    if report.wants("unit_killed") {
        let any = |layout: &Layout, round: usize| {
            let chains = &layout.segments[layout.segments.len() - 1].chains;
            let units: Vec<&UnitIndex> = chains.iter().flatten().collect();
            layout.unit(*units[round % units.len()]).name.to_string()
        };
        let pauses = pauses(kills, any).await?;
        figures.push(pause("unit_killed", &pauses, arguments.long));
    }
    if report.wants("copy") {
        figures.extend(copying().await?);
    }
    Ok(figures)
}

/// The worst pause, or the one that 99 of 100 do not exceed.
fn pause(name: &str, pauses: &[Duration], long: bool) -> Figure {
    let mut ms: Vec<f64> = pauses.iter().map(|p| p.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let (name, at) = if long {
        (
            format!("{name}_p99"),
            (ms.len() * 99 / 100).min(ms.len() - 1),
        )
    } else {
        (format!("{name}_max"), ms.len() - 1)
    };
    eprintln!(
        "{name}: median {:.0} ms of {} kills",
        ms[ms.len() / 2],
        ms.len()
    );
    Figure::new(name, "ms", Better::Lower, vec![ms[at]]).target(1_000.0)
}

/// Kills the server that `victim` names, starts it again and waits until the cluster is whole, so many times.
async fn pauses(
    kills: usize,
    victim: impl Fn(&Layout, usize) -> String,
) -> Result<Vec<Duration>, AnyError> {
    let mut cluster = Cluster::start()?;
    let milonga = cluster.connect().await?;
    let appends = Appends::start(&milonga, 128);
    cluster.whole(&milonga).await?;
    let mut pauses = Vec::new();
    for round in 0..kills {
        let began = Instant::now();
        let name = victim(&milonga.client().layout().layout, round);
        appends.longest();
        cluster.kill(&name)?;
        tokio::time::sleep(ROUND / 2).await;
        appends.still_going()?;
        pauses.push(appends.longest());
        cluster.spawn(&name)?;
        cluster.whole(&milonga).await?;
        tokio::time::sleep(ROUND.saturating_sub(began.elapsed())).await;
    }
    appends.stop().await?;
    milonga.close().await?;
    Ok(pauses)
}

/// A unit is killed for good, and the spare gets the whole chain while appends go on.
async fn copying() -> Result<Vec<Figure>, AnyError> {
    let mut cluster = Cluster::start()?;
    let milonga = cluster.connect().await?;
    cluster.whole(&milonga).await?;
    fill(&milonga).await?;
    let appends = Appends::start(&milonga, 128);
    let rate = async |time: Duration| {
        let before = appends.done.load(Ordering::Relaxed);
        tokio::time::sleep(time).await;
        (appends.done.load(Ordering::Relaxed) - before) as f64 / time.as_secs_f64()
    };
    rate(Duration::from_secs(2)).await;
    let alone = rate(Duration::from_secs(3)).await;
    cluster.kill("unit-1a")?;
    let layout = || milonga.client().layout().layout.clone();
    let joining = || layout().segments.iter().any(|s| !s.joining.is_empty());
    wait(joining).await?;
    let (began, before) = (Instant::now(), appends.done.load(Ordering::Relaxed));
    wait(|| !joining()).await?;
    let seconds = began.elapsed().as_secs_f64();
    let beside = (appends.done.load(Ordering::Relaxed) - before) as f64 / seconds;
    appends.stop().await?;
    milonga.close().await?;
    let megabytes = (COPIED_ENTRIES / 2 * COPIED_BYTES as u64) as f64 / 1e6;
    Ok(vec![
        Figure::new("copy", "MB/s", Better::Higher, vec![megabytes / seconds]).target(100.0),
        Figure::new(
            "copy_appends_beside",
            "%",
            Better::Higher,
            vec![beside / alone * 100.0],
        )
        .target(70.0),
    ])
}

/// Entries of 4 KiB, half of them on each chain.
async fn fill(milonga: &Milonga) -> Result<(), AnyError> {
    let (log, next) = (milonga.log(), Arc::new(AtomicU64::new(0)));
    let tasks = (0..256).map(|_| {
        let (log, next) = (Arc::clone(&log), Arc::clone(&next));
        tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < COPIED_ENTRIES {
                let payload = Bytes::from(vec![0xCD; COPIED_BYTES]);
                log.append(NewEntry::new(Vec::new(), payload)).await?;
            }
            Ok::<(), AnyError>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(())
}

/// Waits until `is` so.
async fn wait(is: impl Fn() -> bool) -> Result<(), AnyError> {
    let give_up = Instant::now() + PATIENCE;
    while !is() {
        if Instant::now() > give_up {
            return Err("the cluster does not get on".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Appends that go on until they are stopped.
struct Appends {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    last: Arc<Mutex<(Instant, Duration)>>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), AnyError>>>,
}

impl Appends {
    fn start(milonga: &Milonga, bytes: usize) -> Self {
        let (done, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let last = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let log = milonga.log();
        let tasks = (0..TASKS).map(|_| {
            let (log, done, stop) = (Arc::clone(&log), Arc::clone(&done), Arc::clone(&stop));
            let last = Arc::clone(&last);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let payload = Bytes::from(vec![0xAB; bytes]);
                    log.append(NewEntry::new(Vec::new(), payload)).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.1 = last.1.max(last.0.elapsed());
                    last.0 = Instant::now();
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Self {
            done,
            stop,
            last,
            tasks,
        }
    }

    /// The longest pause between two that were acknowledged, since it was asked last.
    fn longest(&self) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut last.1)
    }

    fn still_going(&self) -> Result<(), AnyError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.0.elapsed() {
            since if since < Duration::from_secs(1) => Ok(()),
            since => Err(format!("nothing was appended for {since:?}").into()),
        }
    }

    async fn stop(self) -> Result<(), AnyError> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

/// The cluster of `milonga init`, as processes of this program.
struct Cluster {
    dir: tempfile::TempDir,
    running: BTreeMap<String, Child>,
}

impl Cluster {
    fn start() -> Result<Self, AnyError> {
        let dir = tempfile::tempdir_in(std::env::current_dir()?.join("target"))?;
        let config = dir.path().join("cluster");
        let port = free_ports()?;
        let init = Command::new(std::env::current_exe()?)
            .args([
                "server",
                "init",
                "--chains",
                "2",
                "--replicas",
                "2",
                "--port",
            ])
            .arg(port.to_string())
            .arg("--out")
            .arg(&config)
            .stdout(Stdio::null())
            .status()?;
        if !init.success() {
            return Err("`milonga init` failed".into());
        }
        let mut cluster = Self {
            dir,
            running: BTreeMap::new(),
        };
        for file in std::fs::read_dir(&config)? {
            let path = file?.path();
            let name = path
                .file_stem()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            if path.extension().is_some_and(|e| e == "toml") && name != "client" {
                cluster.spawn(name)?;
            }
        }
        Ok(cluster)
    }

    fn config(&self, name: &str) -> PathBuf {
        let file = Path::new("cluster").join(format!("{name}.toml"));
        self.dir.path().join(file)
    }

    fn spawn(&mut self, name: &str) -> Result<(), AnyError> {
        let child = Command::new(std::env::current_exe()?)
            .args(["server", "serve", "--config"])
            .arg(self.config(name))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    fn kill(&mut self, name: &str) -> Result<(), AnyError> {
        let child = self.running.remove(name);
        let mut child = child.ok_or_else(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    async fn connect(&self) -> Result<Milonga, AnyError> {
        Ok(Milonga::connect(ClientConfig::read(self.config("client"))?).await?)
    }

    /// Waits until every chain has all its replicas.
    async fn whole(&self, milonga: &Milonga) -> Result<(), AnyError> {
        wait(|| {
            let layout = &milonga.client().layout().layout;
            let full = layout.segments[0]
                .chains
                .iter()
                .all(|chain| chain.len() == 2);
            layout.segments.len() == 1 && full
        })
        .await
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

/// The first of a few ports that nobody has just now.
fn free_ports() -> Result<u16, AnyError> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let port = socket.local_addr()?.port();
    Ok(port.min(u16::MAX - 32))
}
