//! The figures that the first slice has to reach: 2 x 2 units as processes, QUIC and mutual TLS, fdatasync.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark runs on real threads and real time"
)]

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser as _;
use milonga::cli::{self, LocalCluster};
use milonga::{ClientConfig, Map, Milonga, NewEntry, ReadAnswer};
use milonga_benches::report::{Better, Figure, ReportArgs};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const TASKS: usize = 256;
const SAMPLES: usize = 3;
const WARM_UP: Duration = Duration::from_secs(1);
const SAMPLE: Duration = Duration::from_secs(4);
const KEYS: u64 = 100_000;
const OPEN_ENTRIES: u64 = 1_000_000;

/// Appends, gets, inserts and opening, on a cluster of processes that this command starts and stops.
#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    report: ReportArgs,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    match std::env::args().nth(1).as_deref() {
        Some("server") => return cli::run(std::iter::once(program).chain(arguments.skip(1))),
        Some("writer") => return exit(runtime().block_on(write_until_killed())),
        _ => {}
    }
    let arguments = Arguments::parse();
    exit(
        runtime()
            .block_on(measure(&arguments.report))
            .and_then(|figures| {
                arguments.report.print(&figures)?;
                Ok(())
            }),
    )
}

fn exit(result: Result<(), AnyError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("threads and an epoll can be had")
}

async fn measure(report: &ReportArgs) -> Result<Vec<Figure>, AnyError> {
    let mut figures = Vec::new();
    if report.wants("append_128B_256") {
        let rates = on_cluster(async |config, _| appends(config).await).await?;
        figures.push(rate("append_128B_256", rates, 60_000.0));
    }
    if report.wants("map_get_256") {
        let rates = on_cluster(async |config, program| gets(config, program).await).await?;
        figures.push(rate("map_get_256", rates, 200_000.0));
    }
    if report.wants("map_get_256_unleased") {
        let rates = on_cluster_with(false, async |config, program| gets(config, program).await);
        let name = "map_get_256_unleased";
        figures.push(Figure::new(name, "1/s", Better::Higher, rates.await?));
    }
    for leased in [true, false] {
        let names = if leased {
            ["get_alone_1", "get_alone_256"]
        } else {
            ["get_alone_1_unleased", "get_alone_256_unleased"]
        };
        if names.iter().any(|name| report.wants(name)) {
            let samples = on_cluster_with(leased, async |config, _| gets_alone(config).await);
            let figures_of = names.into_iter().zip(samples.await?);
            figures.extend(
                figures_of.map(|(name, samples)| Figure::new(name, "1/s", Better::Higher, samples)),
            );
        }
    }
    if report.wants("map_insert_256") {
        let rates = on_cluster(async |config, _| inserts(config).await).await?;
        figures.push(rate("map_insert_256", rates, 60_000.0));
    }
    if report.wants("open_1M") {
        let rates = on_cluster(async |config, _| opens(config).await).await?;
        figures.push(rate("open_1M", rates, 300_000.0));
    }
    Ok(figures)
}

fn rate(name: &str, samples: Vec<f64>, target: f64) -> Figure {
    Figure::new(name, "1/s", Better::Higher, samples).target(target)
}

/// Runs `work` on a fresh cluster with an empty log.
async fn on_cluster<T>(
    work: impl AsyncFnOnce(&Path, &Path) -> Result<T, AnyError>,
) -> Result<T, AnyError> {
    on_cluster_with(true, work).await
}

/// The same; without leases, a chain confirms each tail check.
async fn on_cluster_with<T>(
    leased: bool,
    work: impl AsyncFnOnce(&Path, &Path) -> Result<T, AnyError>,
) -> Result<T, AnyError> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?.join("target"))?;
    let program = std::env::current_exe()?;
    let mut cluster = LocalCluster::start(dir.path(), 2, 2, &program, &["server"])?;
    if !leased {
        let layout = cluster.names()[0].clone();
        cluster.kill(&layout)?;
        let file = dir.path().join(format!("{layout}.toml"));
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(
            &file,
            text.replacen("[layout]", "[layout]\nlease_ms = 0", 1),
        )?;
        cluster.spawn(&layout)?;
    }
    work(cluster.config(), &program).await
}

async fn connect(config: &Path) -> Result<Milonga, AnyError> {
    Ok(Milonga::connect(ClientConfig::read(config)?).await?)
}

/// What the tasks of one measurement share.
#[derive(Default)]
struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }
}

/// Runs `TASKS` tasks that count into the shared progress; gives operations per second of each sample.
async fn rates<F>(task: impl Fn(u64, Arc<Progress>) -> F) -> Result<Vec<f64>, AnyError>
where
    F: Future<Output = Result<(), AnyError>> + Send + 'static,
{
    rates_of(TASKS, task).await
}

/// The same with so many tasks.
async fn rates_of<F>(
    tasks: usize,
    task: impl Fn(u64, Arc<Progress>) -> F,
) -> Result<Vec<f64>, AnyError>
where
    F: Future<Output = Result<(), AnyError>> + Send + 'static,
{
    let progress = Arc::new(Progress::default());
    let tasks: Vec<_> = (0..tasks as u64)
        .map(|n| tokio::spawn(task(n, Arc::clone(&progress))))
        .collect();
    sleep(WARM_UP).await;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let (before, since) = (progress.done.load(Ordering::Relaxed), now());
        sleep(SAMPLE).await;
        let done = progress.done.load(Ordering::Relaxed) - before;
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of seconds are far below 2^52"
        )]
        samples.push(done as f64 / since.elapsed().as_secs_f64());
    }
    progress.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    Ok(samples)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

async fn appends(config: &Path) -> Result<Vec<f64>, AnyError> {
    let milonga = connect(config).await?;
    let log = milonga.log();
    let samples = rates(|task, progress| {
        let log = Arc::clone(&log);
        async move {
            let payload = |n: u64| {
                let mut bytes = vec![0xAB; 128];
                bytes[..8].copy_from_slice(&task.to_le_bytes());
                bytes[8..16].copy_from_slice(&n.to_le_bytes());
                Bytes::from(bytes)
            };
            let mut n = 0;
            let mut sampled = Vec::new();
            while progress.goes_on() {
                let appended = log.append(NewEntry::new(Vec::new(), payload(n))).await?;
                if n % 1_000 == task {
                    sampled.push((appended.position, n));
                }
                progress.add(1);
                n += 1;
            }
            for (position, n) in sampled {
                match log.read(vec![position]).await?.remove(0) {
                    ReadAnswer::Data(entry) if entry.payload == payload(n) => {}
                    other => {
                        return Err(format!("position {position} reads back as {other:?}").into());
                    }
                }
            }
            Ok(())
        }
    })
    .await?;
    milonga.close().await?;
    Ok(samples)
}

async fn filled_map(milonga: &Milonga, entries: u64) -> Result<Map<String, String>, AnyError> {
    let map = milonga.map::<String, String>("bench").await?;
    let next = Arc::new(AtomicU64::new(0));
    let fillers: Vec<_> = (0..4_096)
        .map(|_| {
            let (map, next) = (map.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= entries {
                        return Ok::<(), AnyError>(());
                    }
                    map.insert(key(n), value(n)).await?;
                }
            })
        })
        .collect();
    for filler in fillers {
        filler.await??;
    }
    Ok(map)
}

fn key(n: u64) -> String {
    format!("key-{n:08}")
}

fn value(n: u64) -> String {
    format!("value-{n:010}")
}

async fn gets(config: &Path, program: &Path) -> Result<Vec<f64>, AnyError> {
    let milonga = connect(config).await?;
    let map = filled_map(&milonga, KEYS).await?;
    let mut writer = Writer::start(program, config)?;
    let samples = gets_of(TASKS, &map).await?;
    writer.still_writes()?;
    milonga.close().await?;
    Ok(samples)
}

async fn gets_of(tasks: usize, map: &Map<String, String>) -> Result<Vec<f64>, AnyError> {
    rates_of(tasks, |task, progress| {
        let map = map.clone();
        async move {
            let mut n = task * 7_919;
            while progress.goes_on() {
                n = (n + 104_729) % KEYS;
                if map.get(&key(n)).await?.is_none() {
                    return Err(format!("key {n} is gone").into());
                }
                progress.add(1);
            }
            Ok(())
        }
    })
    .await
}

/// Nobody writes, so a get costs its tail check: by one task, and shared by many.
async fn gets_alone(config: &Path) -> Result<[Vec<f64>; 2], AnyError> {
    let milonga = connect(config).await?;
    let map = filled_map(&milonga, KEYS).await?;
    let samples = [gets_of(1, &map).await?, gets_of(TASKS, &map).await?];
    milonga.close().await?;
    Ok(samples)
}

/// Another process that writes to the same map.
struct Writer(Child);

impl Writer {
    fn start(program: &Path, config: &Path) -> Result<Self, AnyError> {
        let child = Command::new(program)
            .arg("writer")
            .arg(config)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn still_writes(&mut self) -> Result<(), AnyError> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the writing process ended: {status}").into()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn write_until_killed() -> Result<(), AnyError> {
    let config = std::env::args_os()
        .nth(2)
        .ok_or("writer needs a configuration")?;
    let milonga = connect(Path::new(&config)).await?;
    let map = milonga.map::<String, String>("bench").await?;
    for n in 0_u64.. {
        map.insert(key(n % KEYS), value(n)).await?;
    }
    Ok(())
}

async fn inserts(config: &Path) -> Result<Vec<f64>, AnyError> {
    let milonga = connect(config).await?;
    let map = milonga.map::<String, String>("bench").await?;
    let samples = rates(|task, progress| {
        let map = map.clone();
        async move {
            let mut n = task * 7_919;
            while progress.goes_on() {
                n = (n + 104_729) % KEYS;
                map.insert(key(n), value(n)).await?;
                progress.add(1);
            }
            Ok(())
        }
    })
    .await?;
    milonga.close().await?;
    Ok(samples)
}

async fn opens(config: &Path) -> Result<Vec<f64>, AnyError> {
    let milonga = connect(config).await?;
    filled_map(&milonga, OPEN_ENTRIES).await?;
    milonga.close().await?;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let milonga = connect(config).await?;
        let since = now();
        let map = milonga.map::<String, String>("bench").await?;
        let entries = map.len().await?;
        let seconds = since.elapsed().as_secs_f64();
        milonga.close().await?;
        if entries as u64 != OPEN_ENTRIES {
            return Err(format!("{entries} entries instead of {OPEN_ENTRIES}").into());
        }
        #[expect(clippy::cast_precision_loss, reason = "a million is far below 2^52")]
        samples.push(OPEN_ENTRIES as f64 / seconds);
    }
    Ok(samples)
}
