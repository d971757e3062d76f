//! A cluster of server processes: this very binary in other roles.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use milonga::{ClientConfig, Milonga};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use crate::job::{Fault, pause};
use crate::report::{Kill, Progress};
use crate::say;

/// First argument that makes this binary the `milonga` command.
pub(crate) const BE_MILONGA: &str = "--be-milonga";
/// The servers that `milonga init` makes; a folder of an earlier version has no `layout-1` and no spares.
const NAMES: [&str; 8] = [
    "layout-1",
    "sequencer-1",
    "sequencer-2",
    "unit-1a",
    "unit-1b",
    "unit-2a",
    "unit-2b",
    "unit-3",
];

/// The `milonga` command with these arguments; told to stop when the process that started it dies.
pub(crate) fn be_milonga(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        say::note(format_args!("cannot follow the parent process: {error}"));
        return ExitCode::FAILURE;
    }
    milonga::cli::run(std::iter::once("milonga".into()).chain(arguments))
}

/// Servers that are killed, and from which percentage of the work on: a replica of a chain, and the sequencer.
const VICTIMS: [(&str, u64); 2] = [("unit-1a", 35), ("sequencer-1", 60)];
/// Who takes the sequencer's place; a folder of an earlier version has nobody.
const SPARE: &str = "sequencer-2";

/// Running servers; killed when dropped.
pub(crate) struct Servers {
    children: Vec<(&'static str, Child)>,
    dir: PathBuf,
    pub(crate) kills: Vec<Kill>,
}

impl Servers {
    /// Makes certificates and configurations in `dir` unless they are there, and starts all servers.
    pub(crate) async fn start(dir: &Path) -> Result<Self, Fault> {
        let init = milonga()?
            .args(["init", "--keep", "--port", "0", "--out"])
            .arg(dir)
            .output()
            .await?;
        if !init.status.success() {
            return Err(format!(
                "no configuration: {}",
                String::from_utf8_lossy(&init.stderr).trim_end()
            )
            .into());
        }
        let mut servers = Self {
            children: Vec::new(),
            dir: dir.to_owned(),
            kills: Vec::new(),
        };
        let exists = |name: &&str| dir.join(format!("{name}.toml")).exists();
        for name in NAMES.into_iter().filter(exists) {
            let log = std::fs::File::create(servers.log(name))?;
            let child = milonga()?
                .args(["serve", "--config"])
                .arg(dir.join(format!("{name}.toml")))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()?;
            servers.children.push((name, child));
        }
        Ok(servers)
    }

    /// The configuration of clients.
    pub(crate) fn client_config(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    /// Connects as soon as all servers are ready.
    pub(crate) async fn connect(&mut self) -> Result<Milonga, Fault> {
        let config = ClientConfig::read(self.client_config())?;
        tokio::select! {
            biased;
            died = self.any_dies() => Err(died),
            milonga = Milonga::connect(config) => Ok(milonga?),
        }
    }

    /// Completes when a server ends that was not told to; says which, and what it said.
    pub(crate) async fn any_dies(&mut self) -> Fault {
        loop {
            for (name, child) in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    let name = *name;
                    let said = std::fs::read_to_string(self.log(name)).unwrap_or_default();
                    let last: Vec<_> = said.lines().rev().take(5).collect();
                    let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                    return format!("{name} ended with {status}:\n{last}").into();
                }
            }
            pause(Duration::from_millis(100)).await;
        }
    }

    /// Like [`Self::any_dies`]; kills some of them as the work goes on, and brings nobody back.
    pub(crate) async fn kill_some(&mut self, progress: &Progress) -> Fault {
        let spare = self.children.iter().any(|(name, _)| *name == SPARE);
        for (victim, percent) in VICTIMS.into_iter().filter(|_| spare) {
            let is_time = async {
                while progress.percent() < percent {
                    pause(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                biased;
                died = self.any_dies() => return died,
                () = is_time => {}
            }
            if let Err(fault) = self.kill(victim, progress).await {
                return fault;
            }
        }
        self.any_dies().await
    }

    async fn kill(&mut self, victim: &'static str, progress: &Progress) -> Result<(), Fault> {
        let at = self.children.iter().position(|(name, _)| *name == victim);
        let Some(at) = at else {
            return Ok(());
        };
        let (_, mut child) = self.children.remove(at);
        let pid = child.id().unwrap_or_default();
        child.kill().await?;
        self.kills.push(Kill {
            role: victim,
            pid,
            in_flight: Vec::new(),
            done: progress.done(),
        });
        Ok(())
    }

    /// Asks all servers to stop and waits for it; kills who does not within some seconds.
    pub(crate) async fn stop(mut self) {
        for (_, child) in &self.children {
            signal(child, Signal::TERM);
        }
        for _ in 0..100 {
            if self
                .children
                .iter_mut()
                .all(|(_, child)| matches!(child.try_wait(), Ok(Some(_))))
            {
                return;
            }
            pause(Duration::from_millis(50)).await;
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

/// This binary as the `milonga` command.
fn milonga() -> Result<Command, Fault> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(BE_MILONGA);
    Ok(command)
}

/// Sends a signal, if the process still runs.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, signal);
    }
}
