//! The small cluster that `milonga dev` and the examples start: its names, configurations and certificates.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use milonga_node::{
    LayoutSettings, ProcessConfig, SequencerSettings, ServerAddress, TlsPaths, UnitSettings,
};
use milonga_protocol::ServerName;
use milonga_transport::{Role, certs};

use super::output::Failure;
use crate::ClientConfig;

/// The process that holds the layout and the sequencer.
pub(super) const SEQUENCER: &str = "sequencer-1";

/// Files of a cluster in one folder: `certs/`, one TOML file and one data folder for each process, `client.toml`.
#[derive(Debug)]
pub(super) struct ClusterFiles {
    pub(super) servers: Vec<ProcessConfig>,
    pub(super) client: PathBuf,
    pub(super) certs: PathBuf,
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

/// Writes everything a cluster of these chains needs below `dir`, on ports of loopback; keeps what is there.
/// `ports`: one for each process, the sequencer first.
pub(super) fn write(
    dir: &Path,
    chains: &[Vec<String>],
    ports: &[u16],
) -> Result<ClusterFiles, Failure> {
    let certs_dir = dir.join("certs");
    std::fs::create_dir_all(&certs_dir)?;
    if !certs_dir.join("ca.pem").exists() {
        certs::make_ca(&certs_dir)?;
    }
    let names = std::iter::once(SEQUENCER).chain(chains.iter().flatten().map(String::as_str));
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let layout_at = address(ports.first().copied().unwrap_or_default()).to_string();
    let mut servers = Vec::new();
    for (name, port) in names.zip(ports) {
        if !certs_dir.join(format!("{name}.pem")).exists() {
            certs::make_leaf(&certs_dir, &ServerName::new(name), Role::Server)?;
        }
        let mut config = ProcessConfig::new(name, address(*port), TlsPaths::of(&certs_dir, name));
        config.data = Some(dir.join(name));
        config.layout_servers = vec![ServerAddress::new(SEQUENCER, &layout_at)];
        if name == SEQUENCER {
            config.sequencer = Some(SequencerSettings::default());
            config.layout = Some(LayoutSettings::new(chains.to_vec(), SEQUENCER));
        } else {
            config.unit = Some(UnitSettings::default());
        }
        std::fs::write(dir.join(format!("{name}.toml")), toml::to_string(&config)?)?;
        servers.push(config);
    }
    if !certs_dir.join("client.pem").exists() {
        certs::make_leaf(&certs_dir, &ServerName::new("client"), Role::Client)?;
    }
    let client = dir.join("client.toml");
    let client_config = ClientConfig::new(&certs_dir, "client", [(SEQUENCER, layout_at.as_str())]);
    std::fs::write(&client, toml::to_string(&client_config)?)?;
    Ok(ClusterFiles {
        servers,
        client,
        certs: certs_dir,
    })
}

/// Free UDP ports of loopback at this moment.
pub(super) fn free_ports(n: usize) -> Result<Vec<u16>, Failure> {
    let sockets: Result<Vec<_>, _> = (0..n)
        .map(|_| std::net::UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))))
        .collect();
    let ports: Result<Vec<_>, _> = sockets?
        .iter()
        .map(|s| s.local_addr().map(|a| a.port()))
        .collect();
    Ok(ports?)
}
