//! The `milonga` command. Standard output carries results, standard error everything else; exit code 0 ok,
//! 1 failed, 2 usage, 3 not found.

mod certs;
mod cluster;
mod local;
mod log;
mod objects;
mod output;
mod serve;
mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

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
    /// Configuration file: of a client, or of the server for `serve`.
    #[arg(long, global = true, env = "MILONGA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of an embedded log.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a small cluster in this process, for development; prints one line when ready.
    Dev(serve::Dev),
    /// Run one server process.
    Serve(serve::Serve),
    /// Write configurations and certificates of a small cluster on loopback, one process for each server.
    Init(serve::Init),
    /// Make a certificate authority, and certificates for servers and clients.
    Certs(certs::Certs),
    /// Show who serves what.
    Status,
    /// The log itself: append, read, tail, follow, fill, trim.
    #[command(subcommand)]
    Log(log::LogCommand),
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
    let cli = match Cli::try_parse_from(arguments) {
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
        Command::Serve(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start a runtime: {error}")).report(),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // A program that embeds this command may have its own subscriber: that one stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli {
        target,
        json,
        command,
    } = cli;
    match command {
        Command::Dev(dev) => dev.run(json).await,
        Command::Init(init) => init.run(json),
        Command::Serve(serve) => serve.run(target.config.as_deref()).await,
        Command::Certs(certs) => certs.run(json),
        Command::Status => status::run(&target, json).await,
        Command::Log(command) => with(&target, async |m| command.run(m, json).await).await,
        Command::Map(command) => with(&target, async |m| command.run(m, json).await).await,
        Command::Counter(command) => with(&target, async |m| command.run(m, json).await).await,
        Command::Queue(command) => with(&target, async |m| command.run(m, json).await).await,
    }
}

impl Target {
    /// Opens the log that the options name.
    async fn open(&self) -> Result<Milonga, Failure> {
        match (&self.dir, &self.config) {
            (Some(dir), _) => Ok(Milonga::embedded(dir).await?),
            (None, Some(file)) => Ok(Milonga::connect(ClientConfig::read(file)?).await?),
            (None, None) => Err(Failure::usage(
                "which log? pass --dir DIR for an embedded one, or --config FILE (or MILONGA_CONFIG) for a cluster",
            )),
        }
    }
}

/// Opens the log, runs `work` until it ends or the process is told to stop, and closes the log in either case.
async fn with(
    target: &Target,
    work: impl AsyncFnOnce(&Milonga) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let milonga = target.open().await?;
    let result = tokio::select! {
        biased;
        result = work(&milonga) => result,
        signal = serve::told_to_stop() => signal.and_then(|()| Err(Failure::interrupted())),
    };
    let closed = milonga.close().await;
    result?;
    Ok(closed?)
}
