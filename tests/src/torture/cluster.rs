//! The servers: processes of this very binary over QUIC on loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use milonga_client::{ClientOptions, LogClient};
use milonga_node::{
    LayoutSettings, NEW_LAYOUT, ProcessConfig, SequencerSettings, ServerAddress, TlsPaths,
    UnitSettings,
};
use milonga_protocol::{Incarnation, ServerName, SharedEnv};
use milonga_transport::{Identity, Peer, QuicNetwork, Role, SharedNetwork, certs};
use rustix::process::{Pid, Signal, kill_process};

use crate::LoopDisk;

use super::schedule::{CHAINS, LAYOUTS, NAMES, SPARE};
use super::{AnyError, pause};

/// First argument that makes this binary the `milonga` command.
pub(super) const SERVER: &str = "server";
/// Of the disk that all units share, sparse.
const DISK: u64 = 8 << 30;
/// The kernel needs no longer for a signal.
const SIGNAL_TAKES: Duration = Duration::from_secs(2);

/// Running servers; killed when dropped.
pub(super) struct Cluster {
    dir: PathBuf,
    layouts: Vec<ServerAddress>,
    running: BTreeMap<&'static str, Child>,
    /// Where the data of all units is, if its power can be cut.
    disk: Option<LoopDisk>,
}

impl Cluster {
    /// Makes certificates and configurations in `dir`, and starts all servers. The units' power can be cut if it `has_disk`.
    pub(super) fn start(dir: &Path, has_disk: bool) -> Result<Self, AnyError> {
        fs::create_dir_all(dir.join("logs"))?;
        let disk = has_disk.then(|| LoopDisk::make(dir, DISK)).transpose();
        let disk = disk.map_err(|why| {
            format!(
                "power cuts need ext4 on a loop device: {why}; run as root, or without --power-cuts"
            )
        })?;
        certs::make_ca(&dir.join("certs"))?;
        certs::make_leaf(&dir.join("certs"), &ServerName::new("client"), Role::Client)?;
        // All at once, so that they differ.
        let sockets = NAMES.map(|_| UdpSocket::bind("127.0.0.1:0"));
        let mut addresses = Vec::new();
        for socket in sockets {
            addresses.push(socket?.local_addr()?);
        }
        let mut cluster = Self {
            dir: dir.to_owned(),
            layouts: (NAMES.iter().zip(&addresses))
                .filter(|(name, _)| LAYOUTS.contains(name))
                .map(|(name, at)| ServerAddress::new(name, &at.to_string()))
                .collect(),
            running: BTreeMap::new(),
            disk,
        };
        for (name, listen) in NAMES.into_iter().zip(addresses) {
            let server = ServerName::new(name);
            certs::make_leaf(&dir.join("certs"), &server, Role::Server)?;
            let tls = TlsPaths::of(&dir.join("certs"), name);
            let mut config = ProcessConfig::new(name, listen, tls);
            config.data = Some(cluster.data(name));
            config.layout_servers.clone_from(&cluster.layouts);
            give_role(&mut config, name);
            if LAYOUTS.contains(&name) {
                fs::create_dir(cluster.data(name))?;
                fs::write(cluster.data(name).join(NEW_LAYOUT), "")?;
            }
            fs::write(cluster.config(name), config.to_toml())?;
        }
        for name in NAMES {
            cluster.spawn(name)?;
        }
        Ok(cluster)
    }

    fn config(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    fn data(&self, name: &str) -> PathBuf {
        match &self.disk {
            Some(disk) if name.starts_with("unit-") => disk.folder().join(name),
            _ => self.dir.join(name),
        }
    }

    /// Starts a server; what it says goes to its log.
    pub(super) fn spawn(&mut self, name: &'static str) -> Result<(), AnyError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(name))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([SERVER, "serve", "--config"]);
        command.arg(self.config(name));
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(log).spawn()?;
        self.running.insert(name, child);
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// A line beside the servers' logs, for who looks for what happened.
    pub(super) fn note(&self, line: &str) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log("torture"));
        // It only helps to understand what is reported anyway.
        let _ = log.and_then(|mut log| writeln!(log, "{line}"));
    }

    fn pid(&self, name: &str) -> Result<Pid, AnyError> {
        let child = self.running.get(name).ok_or("it does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(pid.ok_or("no process id")?)
    }

    /// Sends a signal and waits until `/proc` shows what it does.
    async fn signal(
        &self,
        name: &str,
        signal: Signal,
        shows: fn(char) -> bool,
    ) -> Result<(), AnyError> {
        let pid = self.pid(name)?;
        kill_process(pid, signal)?;
        let give_up = Instant::now() + SIGNAL_TAKES;
        loop {
            let state = state(pid)?;
            if shows(state) {
                return Ok(());
            }
            if Instant::now() > give_up {
                return Err(format!("{name} is still in state {state} after {signal:?}").into());
            }
            pause(Duration::from_millis(1)).await;
        }
    }

    /// SIGKILL; it is dead when this returns.
    pub(super) async fn kill(&mut self, name: &str) -> Result<(), AnyError> {
        self.signal(name, Signal::KILL, |state| matches!(state, 'Z' | 'X'))
            .await?;
        let mut child = self.running.remove(name).ok_or("it does not run")?;
        let status = child.wait()?;
        match status.signal() {
            Some(9) => Ok(()),
            _ => Err(format!("{name} ended with {status} before it was killed").into()),
        }
    }

    /// SIGSTOP.
    pub(super) async fn stop(&self, name: &str) -> Result<(), AnyError> {
        self.signal(name, Signal::STOP, |state| state == 'T').await
    }

    /// SIGCONT.
    pub(super) async fn go_on(&self, name: &str) -> Result<(), AnyError> {
        self.signal(name, Signal::CONT, |state| matches!(state, 'R' | 'S' | 'D'))
            .await
    }

    /// Cuts the power of all units: nothing that they write from now on is kept.
    pub(super) fn cut_power(&self) -> Result<(), AnyError> {
        let disk = self.disk.as_ref().ok_or("its power cannot be cut")?;
        Ok(disk.cut_power()?)
    }

    /// The units are gone, and start anew with what they had synced.
    pub(super) async fn power_is_back(&mut self) -> Result<(), AnyError> {
        let units = NAMES.into_iter().filter(|name| name.starts_with("unit-"));
        for unit in units.clone() {
            self.kill(unit).await?;
        }
        let disk = self.disk.as_ref().ok_or("its power cannot be cut")?;
        disk.remount()?;
        for unit in units {
            self.spawn(unit)?;
        }
        Ok(())
    }

    /// Says who does not run, though nobody killed it.
    pub(super) fn all_run(&mut self) -> Result<(), AnyError> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(self.dir.join("logs").join(format!("{name}.log")));
                let said = said.unwrap_or_default();
                let last: Vec<_> = said.lines().rev().take(3).collect();
                return Err(format!("{name} ended with {status}: {last:?}").into());
            }
        }
        match NAMES.iter().find(|name| !self.running.contains_key(*name)) {
            Some(name) => Err(format!("{name} does not run").into()),
            None => Ok(()),
        }
    }

    /// Tells all servers to stop; whoever does not within some seconds is killed, and named.
    pub(super) async fn end(&mut self) -> Result<(), AnyError> {
        for name in self.running.keys() {
            kill_process(self.pid(name)?, Signal::TERM)?;
        }
        let give_up = Instant::now() + Duration::from_secs(15);
        while !self.running.is_empty() {
            self.running
                .retain(|_, child| !matches!(child.try_wait(), Ok(Some(_))));
            if Instant::now() > give_up {
                let late: Vec<_> = self.running.keys().collect();
                return Err(format!("told to stop, {late:?} did not").into());
            }
            pause(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// `milonga unit verify` of every unit, when no server runs.
    pub(super) fn verify(&self) -> Result<(), AnyError> {
        for name in NAMES.iter().filter(|name| name.starts_with("unit-")) {
            let verify = Command::new(std::env::current_exe()?)
                .args([SERVER, "unit", "verify"])
                .arg(self.data(name).join("unit"))
                .output()?;
            if !verify.status.success() {
                let said = String::from_utf8_lossy(&verify.stdout).into_owned();
                let why = String::from_utf8_lossy(&verify.stderr).into_owned();
                return Err(format!("the disk of {name}: {said}{why}").into());
            }
        }
        Ok(())
    }

    /// A client's way in.
    pub(super) fn network(&self, env: &SharedEnv) -> Result<SharedNetwork, AnyError> {
        let name = ServerName::new("client");
        let tls = certs::read_tls(&self.dir.join("certs"), &name)?;
        let identity = Identity::new(name, Incarnation(env.random_id()));
        Ok(QuicNetwork::client(Arc::clone(env), &tls, identity))
    }

    /// Where the members of the layout are.
    pub(super) fn layouts(&self) -> Vec<Peer> {
        self.layouts.iter().map(ServerAddress::peer).collect()
    }

    /// A client that nothing of was there before. Its calls end after `deadline`; it may take longer to connect.
    pub(super) async fn connect(
        &self,
        env: &SharedEnv,
        deadline: Duration,
    ) -> Result<Arc<LogClient>, AnyError> {
        let mut options = ClientOptions::default();
        options.deadline = deadline;
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let (env, network) = (Arc::clone(env), self.network(env)?);
            let client = LogClient::connect(env, network, self.layouts(), options.clone());
            match client.await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > give_up => return Err(error.into()),
                Err(_) => pause(Duration::from_millis(50)).await,
            }
        }
    }
}

fn give_role(config: &mut ProcessConfig, name: &str) {
    if name.starts_with("unit-") {
        let mut unit = UnitSettings::default();
        // Small, so that segments change often, and little memory.
        unit.segment_bytes = 8 << 20;
        unit.cache_bytes = 16 << 20;
        config.unit = Some(unit);
    } else if name.starts_with("sequencer-") {
        config.sequencer = Some(SequencerSettings::default());
    } else {
        let chains = CHAINS.map(|chain| chain.map(str::to_owned).to_vec());
        let mut layout = LayoutSettings::new(chains.to_vec(), "sequencer-1");
        layout.spare_sequencers = vec!["sequencer-2".to_owned()];
        layout.spare_units = vec![SPARE.to_owned()];
        config.layout = Some(layout);
    }
}

/// The state of a process, as `/proc` names it.
fn state(pid: Pid) -> Result<char, AnyError> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    // Behind the name, which may hold anything.
    let behind = stat.rsplit_once(") ").map(|(_, behind)| behind);
    Ok(behind
        .and_then(|s| s.chars().next())
        .ok_or("no state in /proc")?)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
