//! The process configuration: what may differ between processes. What all share lies in the layout.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use milonga_protocol::limits::{LONGEST_LEASE_MS, SHORTEST_LEASE_MS};
use milonga_protocol::{Limits, ServerName};
use milonga_transport::Peer;
use serde::{Deserialize, Serialize};

/// Configuration of one server process, as TOML.
///
/// ```toml
/// name = "unit-1a"                     # equal to the name in the certificate
/// listen = "0.0.0.0:7101"
/// advertise = "unit-1a.example:7101"   # where others reach it; default: the address it listens on
/// data = "data"                        # needed by [unit] and [layout]; relative to this file
/// layout_servers = [{ name = "sequencer-1", address = "seq.example:7100" }]
///
/// [tls]                                # made by `milonga certs`
/// ca = "certs/ca.pem"
/// cert = "certs/unit-1a.pem"
/// key = "certs/unit-1a.key"
///
/// [unit]                               # this process holds a log unit
/// segment_bytes = 67108864
/// ```
///
/// A process with `[sequencer]` can be the sequencer. One with `[layout]` is a member of the layout: it lists the chains, the
/// sequencer and the shared limits, which become part of the layout at its first start. `layout_servers` lists all members,
/// one, three or five, the same in every configuration; with three the layout outlives one of them, with five two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProcessConfig {
    /// Name of the process, as in its certificate.
    pub name: ServerName,
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address under which others reach it, `host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Directory of what has to survive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// The members of the layout.
    pub layout_servers: Vec<ServerAddress>,
    /// Certificates.
    pub tls: TlsPaths,
    /// Holds a log unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<UnitSettings>,
    /// Can be the sequencer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<SequencerSettings>,
    /// Is a member of the layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutSettings>,
}

/// Certificate files, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsPaths {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// This process's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl TlsPaths {
    /// The files that `milonga certs` makes in `directory` for the process `name`.
    #[must_use]
    pub fn of(directory: &Path, name: &str) -> Self {
        Self {
            ca: directory.join("ca.pem"),
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }
}

/// Local settings of a log unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct UnitSettings {
    /// Size of one segment file, in bytes.
    pub segment_bytes: u64,
    /// Free bytes below which ordinary appends are refused, so that trims, junk and checkpoints go on.
    pub reserve_bytes: u64,
    /// Memory for entries that were read or written lately, in bytes.
    pub cache_bytes: usize,
    /// Most bytes of entries that are read in a second to find damage before somebody needs them; 0 for none.
    pub scrub_bytes_per_second: u64,
}

impl Default for UnitSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            reserve_bytes: 256 << 20,
            cache_bytes: 256 << 20,
            scrub_bytes_per_second: 4 << 20,
        }
    }
}

/// Local settings of a sequencer: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SequencerSettings {}

/// What the layout is made of at its first start. Later starts must name the same servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LayoutSettings {
    /// The chains, each from head to tail, by the names of the units' processes.
    pub chains: Vec<Vec<String>>,
    /// The sequencer's process.
    pub sequencer: String,
    /// Processes with `[sequencer]` that take its place, in this order, when it has said nothing for half a second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_sequencers: Vec<String>,
    /// Processes with `[unit]` in no chain. One of them takes the place of a unit that is gone for ten seconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_units: Vec<String>,
    /// A chain goes on without a unit that is gone if it keeps so many others; 1 if left out. Counts when the cluster is
    /// made, as the limits do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u16>,
    /// Most bytes that are copied in a second to a unit that comes back; unlimited if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes_per_second: Option<u64>,
    /// How long a lease lasts under which the sequencer's tail answers count without a confirmation by log units, in
    /// milliseconds; 300 if left out, 0 for none, else 100 to 400. The leader's counts. Switch leases off on machines that
    /// get paused from outside: there clocks do not count the time of the pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u32>,
    /// Shared limits; those left out have their defaults.
    #[serde(default)]
    pub limits: LimitSettings,
}

impl LayoutSettings {
    /// These chains and this sequencer, with default limits.
    #[must_use]
    pub fn new(chains: Vec<Vec<String>>, sequencer: &str) -> Self {
        Self {
            chains,
            sequencer: sequencer.to_owned(),
            spare_sequencers: Vec::new(),
            spare_units: Vec::new(),
            min_replicas: None,
            copy_bytes_per_second: None,
            lease_ms: None,
            limits: LimitSettings::default(),
        }
    }
}

/// Shared limits; see [`Limits`] for their meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct LimitSettings {
    /// [`Limits::entry_bytes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry_bytes: Option<u32>,
    /// [`Limits::streams_per_entry`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams_per_entry: Option<u32>,
    /// [`Limits::conflict_window`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict_window: Option<u64>,
    /// [`Limits::positions_ahead`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions_ahead: Option<u64>,
    /// [`Limits::streams`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u64>,
}

impl LimitSettings {
    /// The limits, with defaults for what was left out.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.entry_bytes = self.entry_bytes.unwrap_or(limits.entry_bytes);
        limits.streams_per_entry = self.streams_per_entry.unwrap_or(limits.streams_per_entry);
        limits.conflict_window = self.conflict_window.unwrap_or(limits.conflict_window);
        limits.positions_ahead = self.positions_ahead.unwrap_or(limits.positions_ahead);
        limits.streams = self.streams.unwrap_or(limits.streams);
        limits
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerAddress {
    /// Its name, as in its certificate.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl ServerAddress {
    /// A server's name and address.
    #[must_use]
    pub fn new(name: &str, address: &str) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
        }
    }

    /// As the transport wants it.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer {
            name: ServerName::new(&self.name),
            address: self.address.as_str().into(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}; pass an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML, lacks a key or has an unknown one.
    #[error("{}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, key and what is wrong.
        problem: String,
    },
    /// A key has a value that cannot work.
    #[error("{}: key `{key}`: {problem}; {remedy}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

impl ProcessConfig {
    /// A process without any role yet; set the fields for those it has.
    #[must_use]
    pub fn new(name: &str, listen: SocketAddr, tls: TlsPaths) -> Self {
        Self {
            name: ServerName::new(name),
            listen,
            advertise: None,
            data: None,
            tls,
            unit: None,
            sequencer: None,
            layout: None,
            layout_servers: Vec::new(),
        }
    }

    /// Reads and checks a file. Relative paths in it are relative to it.
    ///
    /// # Errors
    /// [`ConfigError`] names file, key and remedy.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text, path)?;
        if let Some(base) = path.parent() {
            let tls = &mut config.tls;
            let paths = [&mut tls.ca, &mut tls.cert, &mut tls.key];
            for path in paths.into_iter().chain(config.data.as_mut()) {
                *path = base.join(&*path);
            }
        }
        Ok(config)
    }

    /// Parses and checks `text`; `path` is for the error messages only.
    ///
    /// # Errors
    /// [`ConfigError`] names file, key and remedy.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            problem: error.to_string().trim_end().to_owned(),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// The configuration as TOML, for [`Self::read`]; paths as they are.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Checks what must hold between the keys.
    ///
    /// # Errors
    /// [`ConfigError::Value`], with `path` as the file.
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong = |key, problem: String, remedy| {
            Err(ConfigError::Value {
                path: path.to_owned(),
                key,
                problem,
                remedy,
            })
        };
        if self.name.as_str().is_empty() {
            let remedy = "use the name in this process's certificate, such as \"unit-1a\"";
            return wrong("name", "is empty".into(), remedy);
        }
        if self.unit.is_none() && self.sequencer.is_none() && self.layout.is_none() {
            let remedy = "add one of [unit], [sequencer], [layout]";
            return wrong("unit", "this process has no role".into(), remedy);
        }
        if self.data.is_none() && (self.unit.is_some() || self.layout.is_some()) {
            let remedy = "name a directory on a disk that survives restarts";
            return wrong(
                "data",
                "is missing; [unit] and [layout] need it".into(),
                remedy,
            );
        }
        if self.layout_servers.is_empty() {
            let remedy = "list the process that has the section [layout], with its address";
            return wrong("layout_servers", "is empty".into(), remedy);
        }
        self.check_members(&wrong)?;
        if let Some(unit) = &self.unit
            && unit.segment_bytes < SMALLEST_SEGMENT
        {
            let problem = format!("{} bytes are too few", unit.segment_bytes);
            let remedy = "use at least 8388608 (64 MiB is the default)";
            return wrong("unit.segment_bytes", problem, remedy);
        }
        match &self.layout {
            Some(layout) => layout.check(&wrong),
            None => Ok(()),
        }
    }
}

impl ProcessConfig {
    fn check_members(
        &self,
        wrong: &impl Fn(&'static str, String, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        const KEY: &str = "layout_servers";
        let mut names: Vec<_> = self.layout_servers.iter().map(|s| &s.name).collect();
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let remedy = "list each member of the layout once";
            return wrong(KEY, format!("{:?} is named twice", twice[0]), remedy);
        }
        if !MEMBERS.contains(&names.len()) {
            let remedy = "list one, three or five: a majority of them decides, so one more than an odd number outlives no more failures";
            return wrong(KEY, format!("lists {} members", names.len()), remedy);
        }
        if self.layout.is_some() && !names.iter().any(|name| **name == self.name.as_str()) {
            let remedy = "list every process that has the section [layout], this one too";
            let problem = format!("does not list {}, which has [layout]", self.name);
            return wrong(KEY, problem, remedy);
        }
        Ok(())
    }
}

/// How many members a layout may have.
const MEMBERS: [usize; 3] = [1, 3, 5];

/// Smaller segments spend their time in being made, and do not hold the largest entry that any layout can permit.
const SMALLEST_SEGMENT: u64 = 8 << 20;
const _: () = assert!(SMALLEST_SEGMENT >= 2 * milonga_protocol::limits::MAX_ENTRY_BYTES as u64);

impl LayoutSettings {
    fn check(
        &self,
        wrong: &impl Fn(&'static str, String, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        const KEY: &str = "layout.chains";
        if self.chains.is_empty() || self.chains.iter().any(Vec::is_empty) {
            let remedy = "list the units of each chain, head first: [[\"unit-1a\", \"unit-1b\"]]";
            return wrong(KEY, "has no chains, or one without units".into(), remedy);
        }
        let mut units: Vec<_> = self.chains.iter().flatten().collect();
        units.sort();
        if let Some(twice) = units.windows(2).find(|pair| pair[0] == pair[1]) {
            let remedy = "a unit belongs to one place of one chain";
            return wrong(KEY, format!("{:?} is named twice", twice[0]), remedy);
        }
        if let Some(twice) = self.spare_units.iter().find(|name| units.contains(name)) {
            let remedy = "a spare is in no chain";
            return wrong(
                "layout.spare_units",
                format!("{twice:?} is in a chain"),
                remedy,
            );
        }
        let shortest = self.chains.iter().map(Vec::len).min().unwrap_or_default();
        let min_replicas = self.min_replicas.unwrap_or(1);
        if min_replicas == 0 || usize::from(min_replicas) > shortest {
            let remedy = "use at least 1 and at most as many as the shortest chain has";
            return wrong("layout.min_replicas", format!("is {min_replicas}"), remedy);
        }
        if self.copy_bytes_per_second == Some(0) {
            let remedy = "leave it out for no limit";
            return wrong("layout.copy_bytes_per_second", "is 0".into(), remedy);
        }
        let leases = SHORTEST_LEASE_MS..=LONGEST_LEASE_MS;
        let odd = |ms: &u32| *ms != 0 && !leases.contains(ms);
        if let Some(lease_ms) = self.lease_ms.filter(odd) {
            let remedy = "use 100 to 400, or 0 for no leases; leave it out for 300";
            return wrong("layout.lease_ms", format!("is {lease_ms}"), remedy);
        }
        if self.sequencer.is_empty() {
            let remedy = "name the process that has the section [sequencer]";
            return wrong("layout.sequencer", "is empty".into(), remedy);
        }
        let hard = Limits::default();
        if self.limits.limits().entry_bytes > milonga_protocol::limits::MAX_ENTRY_BYTES {
            let remedy = "use at most 4194304 (4 MiB)";
            return wrong(
                "layout.limits.entry_bytes",
                "is over the ceiling".into(),
                remedy,
            );
        }
        if self.limits.limits().streams_per_entry > hard.streams_per_entry {
            let remedy = "use at most 64";
            return wrong(
                "layout.limits.streams_per_entry",
                "is over the ceiling".into(),
                remedy,
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "sequencer-1"
        listen = "127.0.0.1:7100"
        data = "data"
        layout_servers = [{ name = "sequencer-1", address = "127.0.0.1:7100" }]
        [tls]
        ca = "ca.pem"
        cert = "/etc/seq.pem"
        key = "seq.key"
        [sequencer]
        [unit]
        segment_bytes = 8388608
        [layout]
        chains = [["unit-1a", "unit-1b"], ["unit-2a", "unit-2b"]]
        sequencer = "sequencer-1"
        limits = { entry_bytes = 4096 }
    "#;

    fn error(text: &str) -> String {
        let path = Path::new("conf/m.toml");
        ProcessConfig::parse(text, path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_with_paths_relative_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        std::fs::write(&path, GOOD).unwrap();
        let config = ProcessConfig::read(&path).unwrap();
        assert_eq!(config.tls.ca, dir.path().join("ca.pem"));
        assert_eq!(config.tls.cert, Path::new("/etc/seq.pem"));
        assert_eq!(config.data, Some(dir.path().join("data")));
        let layout = config.layout.unwrap();
        assert_eq!(layout.chains[1], ["unit-2a", "unit-2b"]);
        let limits = layout.limits.limits();
        assert_eq!(limits.entry_bytes, 4096);
        assert_eq!(limits.streams, Limits::default().streams);
        let unit = config.unit.unwrap();
        assert_eq!(unit.segment_bytes, 8 << 20);
        assert_eq!(unit.cache_bytes, UnitSettings::default().cache_bytes);
        let config = ProcessConfig::parse(GOOD, &path).unwrap();
        let again = ProcessConfig::parse(&config.to_toml(), &path).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn errors_name_file_key_and_remedy() {
        let cases = [
            ("data = \"data\"\n", "", "key `data`", "name a directory"),
            (
                "name = \"sequencer-1\"\n",
                "",
                "missing field `name`",
                "conf/m.toml",
            ),
            ("[sequencer]", "[sequencr]", "sequencr", "line"),
            ("entry_bytes", "entry_byte", "entry_byte", "line"),
            (
                "unit-2b",
                "unit-1b",
                "`layout.chains`: \"unit-1b\" is named twice",
                "one place",
            ),
            ("8388608", "100", "`unit.segment_bytes`", "at least"),
            (
                "= 4096",
                "= 999999999",
                "`layout.limits.entry_bytes`",
                "at most",
            ),
            (
                "sequencer = \"sequencer-1\"\n",
                "sequencer = \"sequencer-1\"\nlease_ms = 401\n",
                "`layout.lease_ms`: is 401",
                "100 to 400",
            ),
            ("7100\"\n", "x\"\n", "listen", "line"),
            (
                "{ name = \"sequencer-1\", ",
                "{ name = \"a\", address = \"b:1\" }, { name = \"sequencer-1\", ",
                "`layout_servers`: lists 2 members",
                "three",
            ),
            (
                "{ name = \"sequencer-1\", ",
                "{ name = \"other\", ",
                "does not list sequencer-1",
                "every process",
            ),
        ];
        for (from, to, what, more) in cases {
            assert!(GOOD.contains(from), "{from}");
            let text = error(&GOOD.replacen(from, to, 1));
            assert!(text.contains("conf/m.toml"), "{text}");
            assert!(text.contains(what) && text.contains(more), "{from}: {text}");
        }
        let none = error(&GOOD[..GOOD.find("[sequencer]").unwrap()]);
        assert!(
            none.contains("no role") && none.contains("[unit]"),
            "{none}"
        );
        let gone = ProcessConfig::read(Path::new("/no/such.toml")).unwrap_err();
        assert!(gone.to_string().contains("/no/such.toml"), "{gone}");
    }
}
