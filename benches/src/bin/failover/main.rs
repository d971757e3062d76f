//! How long appends stand still when a server is killed, moved or added, and how fast a unit is given what it lacks: real
//! processes, QUIC and mutual TLS, fdatasync.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark runs on real threads and real time"
)]

mod appends;
mod cluster;
mod planned;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use appends::{Appends, fill};
use bytes::Bytes;
use clap::Parser as _;
use cluster::{Cluster, wait};
use milonga::NewEntry;
use milonga::cli;
use milonga_benches::report::{Better, Figure, ReportArgs};
use milonga_protocol::{Layout, UnitIndex};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Between two kills: the layout bears less and less silence if they come faster.
const ROUND: Duration = Duration::from_secs(6);
/// Of the log that is copied.
const COPIED_ENTRIES: u64 = 60_000;
const COPIED_BYTES: usize = 4 << 10;

/// Kills, moves and adds servers while 64 tasks append; reports the longest pauses.
#[derive(Debug, clap::Parser)]
struct Arguments {
    #[command(flatten)]
    report: ReportArgs,
    /// Each thing is done 100 times instead of 20, and the 99th percentile is reported instead of the maximum.
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
    let (report, mut figures, long) = (&arguments.report, Vec::new(), arguments.long);
    let times = if long { 100 } else { 20 };
    if report.wants("sequencer_killed") {
        let (gone, _) = kills(times, |layout, _| layout.sequencer.name.to_string()).await?;
        figures.push(worst("sequencer_killed", gone, long).target(1_000.0));
    }
    if report.wants("unit_killed") {
        let any = |layout: &Layout, round: usize| {
            let chains = &layout.segments[layout.segments.len() - 1].chains;
            let units: Vec<&UnitIndex> = chains.iter().flatten().collect();
            layout.unit(*units[round % units.len()]).name.to_string()
        };
        let (gone, back) = kills(times, any).await?;
        figures.push(worst("unit_killed", gone, long).target(1_000.0));
        figures.push(worst("unit_killed_is_back", back, long));
    }
    if report.wants("sequencer_moved") {
        let (pauses, _) = planned::moves(times, 2, 0).await?;
        figures.push(worst("sequencer_moved", pauses, long).target(50.0));
    }
    if report.wants("seal_8_units") {
        let (_, seals) = planned::moves(times, 4, 0).await?;
        figures.push(worst("seal_8_units", seals, long).target(20.0));
    }
    if report.wants("million_streams") {
        let (pauses, _) = planned::moves(times / 2, 2, 1_000_000).await?;
        figures.push(worst("million_streams", pauses, long).target(1_000.0));
    }
    if report.wants("chain_added") {
        let pauses = planned::growth(times).await?;
        figures.push(worst("chain_added", pauses, long).target(100.0));
    }
    if report.wants("layout_lost") {
        let (appends, reads) = planned::layout_lost().await?;
        let figure = |name: &str, pause: f64| {
            Figure::new(name, "ms", Better::Lower, vec![pause]).target(500.0)
        };
        figures.push(figure("layout_lost_appends", appends));
        figures.push(figure("layout_lost_reads", reads));
    }
    if report.wants("copy") {
        figures.extend(copying().await?);
    }
    Ok(figures)
}

/// The worst of these milliseconds, or what 99 of 100 do not exceed.
fn worst(name: &str, mut ms: Vec<f64>, long: bool) -> Figure {
    ms.sort_by(f64::total_cmp);
    let (suffix, at) = if long {
        ("p99", (ms.len() * 99 / 100).min(ms.len() - 1))
    } else {
        ("max", ms.len() - 1)
    };
    let median = ms[ms.len() / 2];
    eprintln!("{name}: median {median:.1} ms of {}", ms.len());
    Figure::new(
        format!("{name}_{suffix}"),
        "ms",
        Better::Lower,
        vec![ms[at]],
    )
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Kills the server that `victim` names, starts it again and waits until the cluster is whole, so many times. The longest
/// pauses of appends after each kill, and after each start.
async fn kills(
    times: usize,
    victim: impl Fn(&Layout, usize) -> String,
) -> Result<(Vec<f64>, Vec<f64>), AnyError> {
    let mut cluster = Cluster::start(2, 1)?;
    let milonga = cluster.connect().await?;
    let appends = Appends::start(&milonga, 128);
    cluster.whole(&milonga).await?;
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    for round in 0..times {
        let began = Instant::now();
        let name = victim(&milonga.client().layout().layout, round);
        appends.longest();
        cluster.kill(&name)?;
        tokio::time::sleep(ROUND / 2).await;
        gone.push(millis(appends.longest()));
        cluster.spawn(&name)?;
        tokio::time::sleep(ROUND / 4).await;
        cluster.whole(&milonga).await?;
        tokio::time::sleep(ROUND.saturating_sub(began.elapsed())).await;
        back.push(millis(appends.longest()));
    }
    appends.stop().await?;
    milonga.close().await?;
    Ok((gone, back))
}

/// A unit is killed for good, and the spare gets the whole chain while appends go on.
async fn copying() -> Result<Vec<Figure>, AnyError> {
    let mut cluster = Cluster::start(2, 1)?;
    let milonga = cluster.connect().await?;
    cluster.whole(&milonga).await?;
    let payload = Bytes::from(vec![0xCD; COPIED_BYTES]);
    let entry = |_| NewEntry::new(Vec::new(), payload.clone());
    fill(&milonga, (0..COPIED_ENTRIES).map(entry)).await?;
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
    eprintln!("copy: {seconds:.1} s; {alone:.0} appends a second alone, {beside:.0} beside it");
    let megabytes = (COPIED_ENTRIES / 2 * COPIED_BYTES as u64) as f64 / 1e6;
    let share = vec![beside / alone * 100.0];
    Ok(vec![
        Figure::new("copy", "MB/s", Better::Higher, vec![megabytes / seconds]).target(100.0),
        Figure::new("copy_appends_beside", "%", Better::Higher, share).target(70.0),
    ])
}
