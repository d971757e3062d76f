//! `milonga serve` and `milonga dev`: server processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use milonga_node::{Node, ProcessConfig};
use milonga_protocol::SharedEnv;
use milonga_transport::{SeverableUdp, TokioEnv};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::cluster::{self, Existing, Shape};
use super::output::{self, Failure};
use crate::{ClientConfig, Milonga};

/// Completes on SIGINT or SIGTERM.
pub(super) async fn told_to_stop() -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

/// Runs one server process until it is told to stop.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Stop as well when standard input closes: for a parent that must not leave servers behind.
    #[arg(long)]
    until_stdin_closes: bool,
    /// Nothing comes and nothing goes while this file exists, as if the network cable were cut: to see what others do then.
    #[arg(long, value_name = "FILE", hide = true)]
    sever_while: Option<PathBuf>,
}

impl Serve {
    /// Prints one line when it listens.
    pub(super) async fn run(self, config: Option<PathBuf>) -> Result<(), Failure> {
        let config = config
            .ok_or_else(|| Failure::usage("serve needs --config FILE (or MILONGA_CONFIG)"))?;
        let config = ProcessConfig::read(&config)?;
        let name = config.name.clone();
        let env: SharedEnv = TokioEnv::try_new()?;
        let sockets = SeverableUdp::default();
        let severing = self.sever_while.map(|file| {
            let looks = sever_while(Arc::clone(&env), file, sockets.clone());
            env.spawn("sever", Box::pin(looks))
        });
        let node = Node::start_over(config, env, Arc::new(sockets)).await?;
        output::line(format_args!("{name} listens on {}", node.local_addr()))?;
        let stopped = tokio::select! {
            biased;
            stopped = told_to_stop() => stopped,
            () = stdin_closed(), if self.until_stdin_closes => Ok(()),
        };
        node.close().await;
        drop(severing);
        stopped
    }
}

/// Severs `sockets` while `file` exists.
async fn sever_while(env: SharedEnv, file: PathBuf, sockets: SeverableUdp) {
    loop {
        env.sleep(Duration::from_millis(20)).await;
        sockets.sever(file.exists());
    }
}

/// Completes when standard input ends or fails.
async fn stdin_closed() {
    let mut buffer = [0; 64];
    let mut stdin = tokio::io::stdin();
    while tokio::io::AsyncReadExt::read(&mut stdin, &mut buffer)
        .await
        .is_ok_and(|n| n > 0)
    {}
}

/// Everything a small cluster needs lies below one folder and is kept between runs if `--data` names it.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Where certificates, configurations and data go; default: a fresh temporary folder, removed at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Number of chains.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    chains: u8,
    /// Replicas of each chain.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
}

#[derive(Debug, Serialize)]
struct Ready {
    config: PathBuf,
    addresses: Vec<String>,
    certs: PathBuf,
}

impl Dev {
    pub(super) async fn run(self, json: bool) -> Result<(), Failure> {
        let (dir, temporary) = match self.data {
            Some(dir) => (dir, false),
            None => (
                std::env::temp_dir().join(format!("milonga-dev-{}", std::process::id())),
                true,
            ),
        };
        let result = run_in(
            &dir,
            usize::from(self.chains),
            usize::from(self.replicas),
            json,
        )
        .await;
        if temporary {
            // What went wrong before it was made, is what to report.
            let removed = std::fs::remove_dir_all(&dir);
            if result.is_ok() {
                removed?;
            }
        }
        result
    }
}

async fn run_in(dir: &Path, chains: usize, replicas: usize, json: bool) -> Result<(), Failure> {
    let shape = Shape::small(chains, replicas);
    let files = cluster::prepare(dir, &shape, None, Existing::Keep)?;
    let _lock = files.lock;
    let env: SharedEnv = TokioEnv::try_new()?;
    let mut nodes = Vec::new();
    for config in files.servers {
        nodes.push(Node::start(config, Arc::clone(&env)).await?);
    }
    // Ready means: a client can work with it.
    Milonga::connect(ClientConfig::read(&files.client)?)
        .await?
        .close()
        .await?;
    let addresses = nodes
        .iter()
        .map(|node| node.local_addr().to_string())
        .collect();
    let ready = Ready {
        config: files.client,
        addresses,
        certs: files.certs,
    };
    output::result(json, &ready, |ready| {
        format!(
            "ready: milonga --config {} (servers: {})",
            ready.config.display(),
            ready.addresses.join(" ")
        )
    })?;
    let stopped = told_to_stop().await;
    // The first owns the layout, to which the others speak until they end.
    for node in nodes.into_iter().rev() {
        node.close().await;
    }
    stopped
}

/// Files for `milonga serve` (NAME.toml) and for clients (client.toml) below one folder.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where to put them.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of chains.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    chains: u8,
    /// Replicas of each chain.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// Spare units, and as many spare sequencers [default: 1, or what is there].
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=8))]
    spares: Option<u8>,
    /// Members of the layout: 1, 3 or 5; with 3 it outlives one of them, with 5 two [default: 1, or what is there].
    #[arg(long, value_parser = members)]
    layouts: Option<usize>,
    /// Port of layout-1; the others take the ports behind it. 0: free ones.
    #[arg(long, default_value_t = 7400)]
    port: u16,
    /// Overwrite configurations that are there, but for those of a cluster of other chains that has data.
    #[arg(long)]
    force: bool,
    /// Use configurations that are there, if they are of the same chains.
    #[arg(long, conflicts_with = "force")]
    keep: bool,
}

fn members(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err("a majority of them decides: use 1, 3 or 5".to_owned()),
    }
}

impl Init {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let (chains, replicas) = (usize::from(self.chains), usize::from(self.replicas));
        let shape =
            Shape::with_spares(chains, replicas, self.spares.map(usize::from), self.layouts);
        let existing = match (self.force, self.keep) {
            (true, _) => Existing::Replace,
            (false, true) => Existing::Keep,
            (false, false) => Existing::Refuse,
        };
        let port = (self.port != 0).then_some(self.port);
        let files = cluster::prepare(&self.out, &shape, port, existing)?;
        let addresses = files
            .servers
            .iter()
            .map(|server| server.listen.to_string())
            .collect();
        let ready = Ready {
            config: files.client,
            addresses,
            certs: files.certs,
        };
        output::result(json, &ready, |ready| ready.config.display().to_string())
    }
}
