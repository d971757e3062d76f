//! The small cluster that `milonga dev` and the examples start: its names, configurations and certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use milonga_node::{
    DirectoryLock, EmbeddedNode, LayoutSettings, ProcessConfig, SequencerSettings, ServerAddress,
    TlsPaths, UnitSettings,
};
use milonga_protocol::ServerName;
use milonga_transport::{Role, certs};

use super::output::Failure;
use crate::ClientConfig;

/// The process that holds the layout and the sequencer.
const SEQUENCER: &str = "sequencer-1";
/// Who the clients are.
const CLIENT: &str = "client";

/// Files of a cluster in one folder: `certs/`, one TOML file and one data folder for each process, `client.toml`.
#[derive(Debug)]
pub(super) struct ClusterFiles {
    pub(super) servers: Vec<ProcessConfig>,
    pub(super) client: PathBuf,
    pub(super) certs: PathBuf,
    /// Nobody else prepares or runs this cluster as long as it is held.
    pub(super) lock: DirectoryLock,
}

/// Names of the units: chain 1 is `unit-1a`, `unit-1b`, …
pub(super) fn chains(chains: usize, replicas: usize) -> Vec<Vec<String>> {
    let replica = |chain, letter: u8| format!("unit-{chain}{}", char::from(b'a' + letter));
    let letters = 0..u8::try_from(replicas.min(26)).unwrap_or(26);
    (1..=chains)
        .map(|chain| {
            letters
                .clone()
                .map(|letter| replica(chain, letter))
                .collect()
        })
        .collect()
}

/// What becomes of configurations that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    /// They are used; only ports that somebody else has taken meanwhile are exchanged.
    Keep,
    /// An error.
    Refuse,
    /// They are overwritten, unless they are those of a cluster of another shape that has data.
    Replace,
}

/// Makes sure that everything a cluster of these chains needs lies below `dir`, on loopback: on free ports, or on `port`
/// and those behind it. Certificates that are there are kept. Nothing is written before it is sure that nobody uses the
/// folder and that what is there fits.
pub(super) fn prepare(
    dir: &Path,
    chains: &[Vec<String>],
    port: Option<u16>,
    existing: Existing,
) -> Result<ClusterFiles, Failure> {
    if EmbeddedNode::exists(dir) {
        let dir = dir.display();
        return Err(Failure::failed(format!(
            "{dir} holds an embedded log; name another folder for a cluster"
        )));
    }
    let lock = DirectoryLock::take(dir)?;
    let dir = dir.canonicalize()?;
    check_shape(&dir, chains, existing)?;
    let names = std::iter::once(SEQUENCER).chain(chains.iter().flatten().map(String::as_str));
    let names: Vec<_> = names.collect();
    let file = |name: &str| dir.join(format!("{name}.toml"));
    let files: Vec<_> = names
        .iter()
        .chain(&[CLIENT])
        .map(|name| file(name))
        .collect();
    if let Some(there) = files.iter().find(|file| file.exists())
        && existing == Existing::Refuse
    {
        return Err(Failure::failed(format!(
            "{} is there already; pass --force to overwrite it, or another folder",
            there.display()
        )));
    }
    let kept = if existing == Existing::Keep && files.iter().all(|file| file.exists()) {
        let kept = names.iter().map(|name| ProcessConfig::read(&file(name)));
        Some(kept.collect::<Result<Vec<_>, _>>()?)
    } else {
        None
    };
    let certs = dir.join("certs");
    let servers = match kept {
        Some(kept) if kept.iter().all(can_listen) => kept,
        kept => {
            let ports = ports(names.len(), port)?;
            let kept = kept.unwrap_or_else(|| fresh(&dir, &names, chains));
            write(&dir, kept, &ports)?
        }
    };
    Ok(ClusterFiles {
        servers,
        client: file(CLIENT),
        certs,
        lock,
    })
}

/// What is there must be of these chains, unless it may be replaced because it has no history.
fn check_shape(dir: &Path, chains: &[Vec<String>], existing: Existing) -> Result<(), Failure> {
    let file = dir.join(format!("{SEQUENCER}.toml"));
    let has_history = EmbeddedNode::exists(&dir.join(SEQUENCER));
    if !file.exists() || (existing == Existing::Replace && !has_history) {
        return Ok(());
    }
    let there = ProcessConfig::read(&file)?.layout;
    let there = there.map(|layout| layout.chains).unwrap_or_default();
    if there == chains {
        return Ok(());
    }
    let list = |chains: &[Vec<String>]| {
        let chains: Vec<_> = chains.iter().map(|chain| chain.join(", ")).collect();
        format!("[{}]", chains.join("], ["))
    };
    Err(Failure::failed(format!(
        "{} describes a cluster of the chains {}, not {}; ask for those, or name another folder",
        file.display(),
        list(&there),
        list(chains)
    )))
}

/// Configurations that are not written yet, without ports.
fn fresh(dir: &Path, names: &[&str], chains: &[Vec<String>]) -> Vec<ProcessConfig> {
    let certs = dir.join("certs");
    let one = |name: &&str| {
        let tls = TlsPaths::of(&certs, name);
        let mut config = ProcessConfig::new(name, loopback(0), tls);
        config.data = Some(dir.join(name));
        if *name == SEQUENCER {
            config.sequencer = Some(SequencerSettings::default());
            config.layout = Some(LayoutSettings::new(chains.to_vec(), SEQUENCER));
        } else {
            config.unit = Some(UnitSettings::default());
        }
        config
    };
    names.iter().map(one).collect()
}

/// Writes the configurations with these ports, one for each server, the sequencer's first. None of the servers may run.
fn write(
    dir: &Path,
    mut servers: Vec<ProcessConfig>,
    ports: &[u16],
) -> Result<Vec<ProcessConfig>, Failure> {
    let data = servers.iter().filter_map(|server| server.data.as_deref());
    let data = data.filter(|data| data.exists());
    let _stopped = data
        .map(DirectoryLock::take)
        .collect::<Result<Vec<_>, _>>()?;
    let certs_dir = dir.join("certs");
    std::fs::create_dir_all(&certs_dir)?;
    if !certs_dir.join("ca.pem").exists() {
        certs::make_ca(&certs_dir)?;
    }
    let leaf = |name: &str, role| {
        if certs_dir.join(format!("{name}.pem")).exists() {
            return Ok(());
        }
        certs::make_leaf(&certs_dir, &ServerName::new(name), role).map(drop)
    };
    let layout_at = loopback(ports.first().copied().unwrap_or_default()).to_string();
    for (config, port) in servers.iter_mut().zip(ports) {
        let name = config.name.as_str();
        leaf(name, Role::Server)?;
        config.listen = loopback(*port);
        config.layout_servers = vec![ServerAddress::new(SEQUENCER, &layout_at)];
        std::fs::write(dir.join(format!("{name}.toml")), config.to_toml())?;
    }
    leaf(CLIENT, Role::Client)?;
    let client = ClientConfig::new(&certs_dir, CLIENT, [(SEQUENCER, layout_at.as_str())]);
    std::fs::write(
        dir.join(format!("{CLIENT}.toml")),
        toml::to_string(&client)?,
    )?;
    Ok(servers)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Whether nobody has taken its port. One that is meant for others keeps it in any case.
fn can_listen(server: &ProcessConfig) -> bool {
    !server.listen.ip().is_loopback() || UdpSocket::bind(server.listen).is_ok()
}

fn ports(n: usize, first: Option<u16>) -> Result<Vec<u16>, Failure> {
    let Some(first) = first else {
        return free_ports(n);
    };
    let ports: Vec<_> = (first..=u16::MAX).take(n).collect();
    if ports.len() < n {
        return Err(Failure::usage(format!(
            "--port {first} leaves no room for {n} servers"
        )));
    }
    Ok(ports)
}

/// Free UDP ports of loopback at this moment.
fn free_ports(n: usize) -> Result<Vec<u16>, Failure> {
    let sockets: Result<Vec<_>, _> = (0..n)
        .map(|_| UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))))
        .collect();
    let ports: Result<Vec<_>, _> = sockets?
        .iter()
        .map(|s| s.local_addr().map(|a| a.port()))
        .collect();
    Ok(ports?)
}
