//! The clusters that `milonga init`, `milonga dev` and the examples make: names, configurations and certificates.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use milonga_node::{
    DirectoryLock, EmbeddedNode, LOCK_FILE, LayoutSettings, NEW_LAYOUT, ProcessConfig,
    SequencerSettings, ServerAddress, TlsPaths, UnitSettings,
};
use milonga_protocol::ServerName;
use milonga_transport::{Role, certs};

use super::output::Failure;
use crate::ClientConfig;

/// The first process that is a member of the layout and nothing else.
const LAYOUT: &str = "layout-1";
/// The first sequencer; in a small cluster it holds the layout, too.
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

/// Which processes a cluster has, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The members of the layout: [`LAYOUT`] and others of its kind, or [`SEQUENCER`] alone.
    layouts: Vec<String>,
    /// The sequencer, then those that can take its place.
    sequencers: Vec<String>,
    /// The units of each chain: chain 1 is `unit-1a`, `unit-1b`, …
    chains: Vec<Vec<String>>,
    /// Units in no chain.
    spare_units: Vec<String>,
    /// Whether somebody asked for so many spares: then a cluster that has others is not what was asked for.
    spares_matter: bool,
    /// The same for the members of the layout.
    layouts_matter: bool,
}

impl Shape {
    /// One process holds layout and sequencer, and there are no spares.
    pub(super) fn small(chains: usize, replicas: usize) -> Self {
        let replica = |chain, letter: u8| format!("unit-{chain}{}", char::from(b'a' + letter));
        let letters = 0..u8::try_from(replicas.min(26)).unwrap_or(26);
        let chain = |chain| letters.clone().map(move |letter| replica(chain, letter));
        Self {
            layouts: vec![SEQUENCER.to_owned()],
            sequencers: vec![SEQUENCER.to_owned()],
            chains: (1..=chains).map(|number| chain(number).collect()).collect(),
            spare_units: Vec::new(),
            spares_matter: false,
            layouts_matter: false,
        }
    }

    /// The members of the layout are processes of their own, one if it was not asked for more, and there are spare
    /// sequencers and spare units: as many as asked for, else one of each.
    pub(super) fn with_spares(
        chains: usize,
        replicas: usize,
        spares: Option<usize>,
        layouts: Option<usize>,
    ) -> Self {
        let count = spares.unwrap_or(1);
        let more = (2..2 + count).map(|number| format!("sequencer-{number}"));
        Self {
            layouts: (1..=layouts.unwrap_or(1))
                .map(|number| format!("layout-{number}"))
                .collect(),
            sequencers: std::iter::once(SEQUENCER.to_owned()).chain(more).collect(),
            spare_units: (chains + 1..=chains + count)
                .map(|number| format!("unit-{number}"))
                .collect(),
            spares_matter: spares.is_some(),
            layouts_matter: layouts.is_some(),
            ..Self::small(chains, replicas)
        }
    }

    /// What lies in the folder, with the file that says so.
    fn found(dir: &Path) -> Result<Option<(Self, PathBuf)>, Failure> {
        for owner in [LAYOUT, SEQUENCER] {
            let file = dir.join(format!("{owner}.toml"));
            if !file.exists() {
                continue;
            }
            let config = ProcessConfig::read(&file)?;
            if let Some(layout) = config.layout {
                let members = config.layout_servers.into_iter();
                let first = std::iter::once(layout.sequencer);
                let shape = Self {
                    layouts: members.map(|server| server.name).collect(),
                    sequencers: first.chain(layout.spare_sequencers).collect(),
                    chains: layout.chains,
                    spare_units: layout.spare_units,
                    spares_matter: false,
                    layouts_matter: false,
                };
                return Ok(Some((shape, file)));
            }
        }
        Ok(None)
    }

    /// All processes, the members of the layout first.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.layouts.iter().map(String::as_str).collect();
        let others = self.sequencers.iter();
        let others = others.filter(|name| !self.layouts.contains(name));
        let units = self.chains.iter().flatten().chain(&self.spare_units);
        names.extend(others.chain(units).map(String::as_str));
        names
    }

    /// Whether this is a cluster of the chains of `wanted`, and of its spares and members of the layout if those matter.
    fn is(&self, wanted: &Self) -> bool {
        let spares = |shape: &Self| (shape.sequencers.len(), shape.spare_units.clone());
        let layouts = |shape: &Self| shape.layouts.len();
        self.chains == wanted.chains
            && (!wanted.spares_matter || spares(self) == spares(wanted))
            && (!wanted.layouts_matter || layouts(self) == layouts(wanted))
    }

    /// In words.
    fn list(&self) -> String {
        let chains: Vec<_> = self.chains.iter().map(|chain| chain.join(", ")).collect();
        let mut chains = format!("[{}]", chains.join("], ["));
        if let several @ 2.. = self.layouts.len() {
            chains.push_str(&format!(", {several} members of the layout"));
        }
        let spares = self.sequencers.iter().skip(1).chain(&self.spare_units);
        let spares: Vec<_> = spares.map(String::as_str).collect();
        match spares.as_slice() {
            [] => format!("the chains {chains} and no spares"),
            spares => format!("the chains {chains} and the spares {}", spares.join(", ")),
        }
    }

    /// Whether some member of the layout has data.
    fn has_history(&self, dir: &Path) -> bool {
        let mut members = self.layouts.iter();
        members.any(|name| EmbeddedNode::exists(&dir.join(name)))
    }

    fn layout_settings(&self) -> LayoutSettings {
        let (first, spares) = self.sequencers.split_at(1);
        let mut settings = LayoutSettings::new(self.chains.clone(), &first[0]);
        settings.spare_sequencers = spares.to_vec();
        settings.spare_units.clone_from(&self.spare_units);
        settings
    }
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

/// Makes sure that everything a cluster of this shape needs lies below `dir`, on loopback: on free ports, or on `port`
/// and those behind it. Certificates that are there are kept, and so is the shape of a cluster that is there: it must
/// have the same chains. Nothing is written before it is sure that nobody uses the folder and that what is there fits.
pub(super) fn prepare(
    dir: &Path,
    shape: &Shape,
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
    let shape = &decide(&dir, shape, existing)?;
    let names = shape.names();
    if let Some(other) = foreign(&dir, &names)? {
        return Err(Failure::failed(format!(
            "{} holds other files, such as {other}; name a folder for the cluster alone",
            dir.display()
        )));
    }
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
            if kept.is_none() {
                mark_new(&dir, shape)?;
            }
            let kept = kept.unwrap_or_else(|| fresh(&dir, shape));
            write(&dir, shape, kept, &ports)?
        }
    };
    Ok(ClusterFiles {
        servers,
        client: file(CLIENT),
        certs,
        lock,
    })
}

/// A file that is nothing of a cluster of these processes: somebody else's would be mixed with it.
fn foreign(dir: &Path, names: &[&str]) -> Result<Option<String>, Failure> {
    if Shape::found(dir)?.is_some() {
        return Ok(None);
    }
    let ours = |name: &str| {
        let bare = name.strip_suffix(".toml").unwrap_or(name);
        names.contains(&bare) || [CLIENT, "certs", "lost+found"].contains(&bare)
    };
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Hidden ones are notes of tools.
        if !ours(&name) && name != LOCK_FILE && !name.starts_with('.') {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The shape of the cluster that is there, which must be as wanted, unless it may be replaced because it has no history.
fn decide(dir: &Path, wanted: &Shape, existing: Existing) -> Result<Shape, Failure> {
    let Some((there, file)) = Shape::found(dir)? else {
        return Ok(wanted.clone());
    };
    if existing == Existing::Replace && !there.has_history(dir) {
        return Ok(wanted.clone());
    }
    if there.is(wanted) {
        return Ok(there);
    }
    Err(Failure::failed(format!(
        "{} describes a cluster of {}, not of {}; ask for those, or name another folder",
        file.display(),
        there.list(),
        wanted.list()
    )))
}

/// Tells the members of a layout that it is new, unless it is alone (then there is nobody to have promised anything to) or
/// has a past: a member that has lost its disk then must not take itself for new.
fn mark_new(dir: &Path, shape: &Shape) -> Result<(), Failure> {
    if shape.layouts.len() == 1 || shape.has_history(dir) {
        return Ok(());
    }
    for name in &shape.layouts {
        let data = dir.join(name);
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join(NEW_LAYOUT), "")?;
    }
    Ok(())
}

/// Configurations that are not written yet, without ports.
fn fresh(dir: &Path, shape: &Shape) -> Vec<ProcessConfig> {
    let certs = dir.join("certs");
    let one = |name: &str| {
        let mut config = ProcessConfig::new(name, loopback(0), TlsPaths::of(&certs, name));
        config.data = Some(dir.join(name));
        let is_member = shape.layouts.iter().any(|member| member == name);
        if is_member {
            config.layout = Some(shape.layout_settings());
        }
        if shape.sequencers.iter().any(|sequencer| sequencer == name) {
            config.sequencer = Some(SequencerSettings::default());
        } else if !is_member {
            config.unit = Some(UnitSettings::default());
        }
        config
    };
    shape.names().into_iter().map(one).collect()
}

/// Writes the configurations with these ports, one for each server, those of the layout first. None of the servers may run.
fn write(
    dir: &Path,
    shape: &Shape,
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
    let addresses = ports.iter().map(|port| loopback(*port).to_string());
    let members = shape.layouts.iter().zip(addresses);
    let members: Vec<_> = members
        .map(|(name, address)| ServerAddress::new(name, &address))
        .collect();
    for (config, port) in servers.iter_mut().zip(ports) {
        let name = config.name.as_str();
        leaf(name, Role::Server)?;
        config.listen = loopback(*port);
        config.layout_servers.clone_from(&members);
        std::fs::write(dir.join(format!("{name}.toml")), config.to_toml())?;
    }
    leaf(CLIENT, Role::Client)?;
    let members = members.iter().map(|m| (&*m.name, &*m.address));
    let client = ClientConfig::new(&certs_dir, CLIENT, members);
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
