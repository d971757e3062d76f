//! The `milonga` command. Standard output carries results, standard error everything else; exit code 0 ok,
//! 1 failed, 2 usage, 3 not found.

mod certs;
mod cluster;
mod local;
mod log;
mod objects;
mod operate;
mod output;
mod serve;
mod status;
mod unit;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, value_parser};
use milonga_node::EmbeddedNode;
use milonga_protocol::SharedEnv;
use milonga_transport::TokioEnv;

use crate::{ClientConfig, Milonga};
use output::Failure;

pub use local::{LocalCluster, LocalClusterError};

/// Replicated data structures over one shared log.
#[derive(Debug, Parser)]
#[command(name = "milonga", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    /// Print one JSON value and nothing else on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// Which log.
#[derive(Debug, Clone, Args)]
struct Target {
    /// Configuration file: of a client, or of the server for `serve` [default: $MILONGA_CONFIG].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of an embedded log.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
}

/// What a [`Target`] names.
#[derive(Debug)]
enum Place {
    Config(PathBuf),
    Dir(PathBuf),
}

/// Commands that need no log; a log that is named all the same is a mistake.
const WITHOUT_TARGET: [&str; 3] = ["dev", "init", "certs"];

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a small cluster in this process, for development; prints one line when ready.
    Dev(serve::Dev),
    /// Run one server process.
    Serve(serve::Serve),
    /// Write configurations and certificates of a cluster on loopback, one process for each server.
    Init(serve::Init),
    /// Make a certificate authority, and certificates for servers and clients.
    Certs(certs::Certs),
    /// Show who serves what, how redundant it is, and what is being done about it.
    Status(status::StatusCommand),
    /// The cluster: its history, growth and care. init, move-sequencer, add-unit, remove-unit, replace-unit, add-chain.
    #[command(subcommand)]
    Cluster(operate::ClusterCommand),
    /// The log itself: append, read, tail, follow, fill, trim.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// The directory of a log unit, looked at without changing it: inspect, verify.
    #[command(subcommand)]
    Unit(unit::UnitCommand),
    /// Replicated maps of text to text.
    #[command(subcommand)]
    Map(objects::MapCommand),
    /// Replicated counters.
    #[command(subcommand)]
    Counter(objects::CounterCommand),
    /// Replicated queues of text.
    #[command(subcommand)]
    Queue(objects::QueueCommand),
}

/// Runs the command line of this process and gives its exit code.
///
/// Test and example binaries call it too, so that they can be any role of a cluster themselves. Logs go to standard
/// error, as `RUST_LOG` says (default: warnings).
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// [`main`] with these arguments, the first of which is the name of the program.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version are no failures; clap knows which stream is whose.
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 2 } else { 0 });
        }
    };
    log_to_stderr();
    // A server process does little work for each message and much waking: on one thread nothing has to be woken across
    // threads. Its disk threads are its own. Commands that play objects use all cores.
    let mut builder = match cli.command {
        Command::Serve(_) | Command::Unit(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start a runtime: {error}")).report(),
    };
    let result = runtime.block_on(dispatch(cli));
    // All that has to end was waited for. To look up the name of a server may take much longer.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let hidden = |name| {
        Arg::new(name)
            .long(name)
            .hide(true)
            .value_parser(value_parser!(PathBuf))
    };
    let mut command = Cli::command();
    for name in WITHOUT_TARGET {
        command = command.mut_subcommand(name, |sub| sub.args(["config", "dir"].map(hidden)));
    }
    command = command.mut_subcommand("serve", |sub| sub.arg(hidden("dir")));
    let both = || ["config", "dir"].map(hidden);
    command = command.mut_subcommand("unit", |sub| {
        let sub = sub.args(both());
        let sub = sub.mut_subcommand("inspect", |sub| sub.args(both()));
        sub.mut_subcommand("verify", |sub| sub.args(both()))
    });
    command = command.mut_subcommand("cluster", |sub| {
        sub.mut_subcommand("init", |sub| sub.args(both()))
    });
    let cli = Cli::from_arg_matches(&command.try_get_matches_from_mut(arguments)?)
        .map_err(|error| error.format(&mut command))?;
    let wrong = |text: &str| {
        Err(command
            .clone()
            .error(clap::error::ErrorKind::ArgumentConflict, text))
    };
    let Target { config, dir } = &cli.target;
    match cli.command {
        Command::Dev(_) if config.is_some() || dir.is_some() => {
            wrong("`dev` makes a cluster of its own; it takes --data DIR, no --dir and no --config")
        }
        Command::Init(_)
        | Command::Certs(_)
        | Command::Cluster(operate::ClusterCommand::Init(_))
            if config.is_some() || dir.is_some() =>
        {
            wrong("this command makes files below --out; it takes no --dir and no --config")
        }
        Command::Unit(_) if config.is_some() || dir.is_some() => wrong(
            "`unit` takes the directory of one log unit behind the command, no --dir and no --config",
        ),
        Command::Serve(_) if dir.is_some() => wrong("`serve` takes --config FILE, no --dir"),
        _ if config.is_some() && dir.is_some() => wrong("--config and --dir name two logs"),
        _ => Ok(cli),
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // A program that embeds this command may have its own subscriber: that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_colourful())
        // Standard error may be closed; then there is nobody to tell.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Whether standard error is a terminal, and nobody asked for plain text (<https://no-color.org>).
fn is_colourful() -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !plain
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli {
        target,
        json,
        command,
    } = cli;
    let stopped = Err(Failure::interrupted());
    match command {
        Command::Dev(dev) => dev.run(json).await,
        Command::Init(init) => init.run(json),
        Command::Serve(serve) => serve.run(target.config()).await,
        Command::Certs(certs) => certs.run(json),
        Command::Status(status) => status.run(&target, json).await,
        Command::Cluster(command) => command.run(&target, json).await,
        Command::Unit(command) => command.run(json),
        Command::Log(log::LogCommand::Follow(follow)) => {
            // It ends no other way.
            let follow = with(&target, Access::Existing, Ok(()), async |m| {
                follow.run(m, json).await
            });
            follow.await
        }
        Command::Log(command) => {
            let access = command.access();
            with(&target, access, stopped, async |m| {
                command.run(m, json).await
            })
            .await
        }
        Command::Map(command) => {
            let access = command.access();
            with(&target, access, stopped, async |m| {
                command.run(m, json).await
            })
            .await
        }
        Command::Counter(command) => {
            let access = command.access();
            with(&target, access, stopped, async |m| {
                command.run(m, json).await
            })
            .await
        }
        Command::Queue(command) => {
            let access = command.access();
            with(&target, access, stopped, async |m| {
                command.run(m, json).await
            })
            .await
        }
    }
}

/// What a command needs of a log in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// It changes nothing that is not there.
    Existing,
    /// It makes the log if it is not there.
    Make,
}

impl Target {
    /// The configuration file. What is said on the command line comes before the environment.
    fn config(&self) -> Option<PathBuf> {
        let environment = || std::env::var_os("MILONGA_CONFIG").filter(|file| !file.is_empty());
        self.config
            .clone()
            .or_else(|| environment().map(PathBuf::from))
    }

    fn place(&self) -> Result<Place, Failure> {
        if let Some(dir) = &self.dir {
            return Ok(Place::Dir(dir.clone()));
        }
        self.config().map(Place::Config).ok_or_else(|| {
            Failure::usage(
                "which log? pass --dir DIR for an embedded one, or --config FILE (or MILONGA_CONFIG) for a cluster",
            )
        })
    }
}

/// So long a command that was interrupted, or failed, waits for a cluster.
const GOODBYE: Duration = Duration::from_secs(1);

/// Ends when a cluster has had its time to say goodbye, which begins now or when the process is told to stop.
async fn goodbye(at_once: bool) -> Result<(), Failure> {
    if !at_once {
        serve::told_to_stop().await?;
    }
    let env: SharedEnv = TokioEnv::try_new()?;
    env.sleep(GOODBYE).await;
    Ok(())
}

/// Opens the log in a directory.
async fn open_directory(dir: &Path, access: Access) -> Result<Milonga, Failure> {
    // What is a file, or holds other things, is refused with better words when it is opened.
    let is_nothing = !dir.exists() || (dir.is_dir() && !EmbeddedNode::exists(dir));
    if access == Access::Existing && is_nothing {
        return Err(Failure::not_found(format!("no log in {}", dir.display())));
    }
    Ok(Milonga::embedded(dir).await?)
}

/// Opens the log, runs `work` until it ends or the process is told to stop, which is then the result, and closes the
/// log in either case.
async fn with(
    target: &Target,
    access: Access,
    stopped: Result<(), Failure>,
    work: impl AsyncFnOnce(&Milonga) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (milonga, in_cluster) = match target.place()? {
        Place::Dir(dir) => (open_directory(&dir, access).await?, false),
        Place::Config(file) => (Milonga::connect(ClientConfig::read(file)?).await?, true),
    };
    let (result, told) = tokio::select! {
        biased;
        result = work(&milonga) => (result, false),
        signal = serve::told_to_stop() => (signal.and(stopped), true),
    };
    let closed = if in_cluster {
        // Whoever interrupts does not want to wait for servers that do not answer, nor does who was told so.
        let at_once = told || result.is_err();
        tokio::select! {
            biased;
            closed = milonga.close() => closed,
            over = goodbye(at_once) => { over?; Ok(()) }
        }
    } else {
        milonga.close().await
    };
    result?;
    Ok(closed?)
}
