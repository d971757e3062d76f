//! The command `torture`: a cluster of real processes over QUIC, some of which are killed and stopped all the time, and a
//! client that knows what it was told.
//!
//! ```text
//!   schedule (seed) ── round ── signals ──> cluster: layout-1 to -3, sequencer-1 and -2, units 1a 1b 2a 2b, a spare
//!                        |                     ^
//!                     ledger <── load ─────────+   every lane notes what came of each of its updates
//!                        |       sample, hand ─'   what the witness judges
//!   reading (fresh client, every replica, the disks) ── tally ──> 0 lost, 0 doubled
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "real processes run on real time and threads"
)]

mod cluster;
mod hand;
mod ledger;
mod load;
mod objects;
mod reading;
mod replicas;
mod report;
mod round;
mod sample;
mod schedule;
mod tally;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use milonga_protocol::{Env as _, SharedEnv};
use milonga_transport::TokioEnv;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::say;
use crate::world::Rng;
use crate::world::workloads::why;
use cluster::{Cluster, SERVER};
use ledger::Ledger;
use load::Load;
use replicas::Asker;
use report::Report;
use sample::Sample;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Kills and stops real processes, and counts what is lost.
#[derive(Clone, Debug, Parser)]
#[command(name = "torture")]
struct Args {
    /// How many rounds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=2_000))]
    rounds: u64,
    /// After them, so many rounds in which all units lose their power at once. Needs root, for a disk of its own.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1_000))]
    power_cuts: u64,
    /// Draws who is hurt, when and how; printed if it is drawn itself.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints one JSON value.
    #[arg(long)]
    json: bool,
}

/// From the start of the servers until everything works.
const START: Duration = Duration::from_secs(30);
/// From the last round until every chain has all its replicas: a unit that was often gone waits for a minute.
const WHOLE: Duration = Duration::from_secs(120);
/// The final reading.
const READING: Duration = Duration::from_secs(300);

/// The command.
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == SERVER) {
        // Nobody is left behind, not even who is stopped.
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            say::note(format_args!("cannot follow the parent process: {error}"));
            return ExitCode::FAILURE;
        }
        return milonga::cli::run(std::iter::once("milonga".into()).chain(arguments));
    }
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say::note(format_args!("no threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(&args));
    // Calls under way have nobody to answer them any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Runs in a directory that is removed, unless something failed.
async fn run(args: &Args) -> ExitCode {
    let seed = args
        .seed
        .unwrap_or_else(|| TokioEnv::new().random() % 1_000_000);
    let say_it = |line: &str| match args.json {
        true => say::note(line),
        false => say::print(line),
    };
    say_it(&format!("seed {seed}"));
    let dir = match tempfile::Builder::new()
        .prefix("milonga-torture-")
        .tempdir()
    {
        Ok(dir) => dir,
        Err(error) => {
            say::note(format_args!("no temporary folder: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(seed);
    let ended = tokio::select! {
        biased;
        code = told_to_stop() => return code,
        ended = torture(args, dir.path(), &mut report, &say_it) => ended,
    };
    if let Err(error) = ended {
        report.fail(format!("torture: {}", why(&*error)));
    }
    for failure in &report.failures {
        say_it(&format!("FAILED: {failure}"));
    }
    let failed = report.failed();
    if failed > 0 {
        let kept = dir.keep();
        say_it(&format!("logs and data are in {}", kept.display()));
    }
    if args.json {
        say::print(report.json());
    } else {
        say::print(format_args!("{} passed, {failed} failed", report.passed()));
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Completes on SIGINT or SIGTERM, with the code to end with.
async fn told_to_stop() -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // They end the process as always then.
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => ExitCode::from(130),
        _ = terminate.recv() => ExitCode::from(143),
    }
}

async fn within<T>(
    most: Duration,
    what: &str,
    work: impl Future<Output = Result<T, AnyError>>,
) -> Result<T, AnyError> {
    match tokio::time::timeout(most, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("{what} takes longer than {most:?}").into()),
    }
}

async fn torture(
    args: &Args,
    dir: &Path,
    report: &mut Report,
    say_it: &impl Fn(&str),
) -> Result<(), AnyError> {
    let env: SharedEnv = TokioEnv::try_new()?;
    let rounds = args.rounds + args.power_cuts;
    let mut cluster = Cluster::start(dir, args.power_cuts > 0)?;
    let began = within(
        START * 2,
        "the start",
        begin(&cluster, &env, report.seed, rounds),
    );
    let Running {
        ledger,
        load,
        sample,
    } = began.await?;
    let mut rng = Rng::new(report.seed, "rounds");
    for number in 1..=rounds {
        let strikes = if number > args.rounds {
            schedule::power_cut(&mut rng)
        } else {
            schedule::draw(&mut rng)
        };
        let round = round::play(number, strikes, &mut cluster, &ledger).await;
        say_it(&round.line());
        cluster.note(&format!("{} {}", clock(), round.line()));
        let is_stuck = round.is_stuck;
        report.rounds.push(round);
        if is_stuck {
            report.fail(format!("nothing goes on after round {number}"));
            break;
        }
    }
    let since = Instant::now();
    match within(WHOLE, "redundancy", whole(&cluster, &env)).await {
        Ok(()) => report.whole_after = Some(since.elapsed()),
        Err(error) => report.fail(error.to_string()),
    }
    load.end().await?;
    let sample = sample.end().await?;
    let book = ledger.close();
    report.count(&book);
    let reading = reading::read(&cluster, &env, &book, sample);
    let read = within(READING, "the final reading", reading).await?;
    say_it(&report.judge(read));
    cluster.end().await?;
    cluster.verify()
}

/// Clients at work.
struct Running {
    ledger: Arc<Ledger>,
    load: Load,
    sample: Sample,
}

/// Connects, and lets all clients work until all kinds of updates were acknowledged.
async fn begin(
    cluster: &Cluster,
    env: &SharedEnv,
    seed: u64,
    rounds: u64,
) -> Result<Running, AnyError> {
    let ledger = Arc::new(Ledger::new());
    let load = Load::start(cluster, env, &ledger, seed).await?;
    let began = Instant::now();
    let sample = Sample::start(cluster, env, seed, rounds).await?;
    while !ledger.all_since(began) {
        pause(Duration::from_millis(10)).await;
    }
    whole(cluster, env).await?;
    Ok(Running {
        ledger,
        load,
        sample,
    })
}

/// Waits until every chain has all its replicas, and the layout says so.
async fn whole(cluster: &Cluster, env: &SharedEnv) -> Result<(), AnyError> {
    let asker = Asker {
        env: Arc::clone(env),
        network: cluster.network(env)?,
    };
    let members = cluster.layouts();
    let began = Instant::now();
    loop {
        let lacks = async {
            let mut facts = BTreeMap::new();
            // What is lacking, only the leader says.
            for member in &members {
                let mut status = asker.status(member).await?;
                facts.extend(status.roles.remove("layout").unwrap_or_default());
            }
            let published = asker.layout(&members[0]).await?.layout;
            let short = ["reduced redundancy", "copying"].map(|fact| facts.contains_key(fact));
            let whole = published.segments.iter().all(|segment| {
                segment.joining.is_empty() && segment.chains.iter().all(|chain| chain.len() == 2)
            });
            let is_whole = whole && !short.contains(&true);
            Ok::<_, AnyError>((!is_whole).then_some(facts))
        };
        let lacks = lacks.await;
        match lacks {
            Ok(None) => return Ok(()),
            lacks if began.elapsed() > WHOLE - Duration::from_secs(5) => {
                return Err(format!("not whole again: {lacks:?}").into());
            }
            _ => pause(Duration::from_millis(50)).await,
        }
    }
}

async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The time of day, as the servers' logs have it.
fn clock() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let (day, ms) = (now.as_secs() % 86_400, now.subsec_millis());
    let (hours, minutes, seconds) = (day / 3_600, day / 60 % 60, day % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{ms:03}")
}
