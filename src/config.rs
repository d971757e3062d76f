//! What a client process needs to find and trust a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::ServerName;
use milonga_transport::Peer;
use serde::{Deserialize, Serialize};

/// How to reach a cluster. Read from a TOML file with [`ClientConfig::read`], or made in code.
///
/// ```toml
/// layout_servers = [{ name = "sequencer-1", address = "127.0.0.1:7401" }]
///
/// [tls]                      # made by `milonga certs`
/// ca = "certs/ca.pem"
/// cert = "certs/client.pem"
/// key = "certs/client.key"
/// ```
///
/// Relative paths are relative to the file's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Certificates.
    pub tls: TlsPaths,
    /// Servers that know the layout; any one that answers is enough.
    pub layout_servers: Vec<ServerAddress>,
    /// How long a call may take before it fails with a typed error, in milliseconds.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
}

/// Certificate files, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPaths {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// This process's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerAddress {
    /// The name in its certificate.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl ServerAddress {
    /// Whether the address has a host and a port.
    fn is_complete(&self) -> bool {
        if self
            .address
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.port() != 0)
        {
            return true;
        }
        let parts = self.address.rsplit_once(':');
        parts.is_some_and(|(host, port)| {
            let port = port.parse::<u16>();
            !host.is_empty() && !host.contains([':', '/', ' ']) && port.is_ok_and(|port| port != 0)
        })
    }
}

const fn default_deadline_ms() -> u64 {
    30_000
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}; name another with --config or MILONGA_CONFIG")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path} is not a client configuration: {why}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// Nobody to ask.
    #[error(
        "{path} names no layout_servers; add one, such as {{ name = \"sequencer-1\", address = \"127.0.0.1:7401\" }}"
    )]
    NoServers {
        /// The file.
        path: PathBuf,
    },
    /// A key has a value that cannot work.
    #[error("{path}: key `{key}`: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The hosts of all layout servers are unknown.
    #[error("cannot resolve {address}, which `layout_servers` says is {server}: {why}")]
    Unresolved {
        /// The last of them.
        server: String,
        /// Its address.
        address: String,
        /// The resolver's words.
        why: String,
    },
}

impl ClientConfig {
    /// A configuration made in code: the files that `milonga certs` made in `certificates` for `name`, and
    /// layout servers as pairs of name and `host:port`.
    pub fn new<'a>(
        certificates: impl AsRef<Path>,
        name: &str,
        layout_servers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let certificates = certificates.as_ref();
        let server = |(name, address): (&str, &str)| ServerAddress {
            name: name.to_owned(),
            address: address.to_owned(),
        };
        Self {
            tls: TlsPaths {
                ca: certificates.join("ca.pem"),
                cert: certificates.join(format!("{name}.pem")),
                key: certificates.join(format!("{name}.key")),
            },
            layout_servers: layout_servers.into_iter().map(server).collect(),
            deadline_ms: default_deadline_ms(),
        }
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, what is wrong and where.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut config = Self::parse(&text, path)?;
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        for file in [
            &mut config.tls.ca,
            &mut config.tls.cert,
            &mut config.tls.key,
        ] {
            *file = folder.join(&*file);
        }
        Ok(config)
    }

    /// Parses `text`; paths stay as they are, and `path` is for the error messages only.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong and where.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            why: e.to_string(),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// Checks what a type cannot say; `path` is for the error messages only.
    pub(crate) fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let path = path.to_owned();
        if self.layout_servers.is_empty() {
            return Err(ConfigError::NoServers { path });
        }
        let wrong = |key, problem| Err(ConfigError::Value { path, key, problem });
        if let Some(ServerAddress { name, address }) = self
            .layout_servers
            .iter()
            .find(|server| !server.is_complete())
        {
            let problem = format!(
                "the address \"{address}\" of {name} should be `host:port`, such as \"127.0.0.1:7400\""
            );
            return wrong("layout_servers", problem);
        }
        if self.deadline_ms == 0 {
            let problem = "0 leaves no time for any call; leave it out for 30000".to_owned();
            return wrong("deadline_ms", problem);
        }
        Ok(())
    }

    /// Fails if none of the layout servers' hosts is known: waiting would hardly help.
    pub(crate) async fn resolve(&self) -> Result<(), ConfigError> {
        let mut failed = Ok(());
        for server in &self.layout_servers {
            let found = tokio::net::lookup_host(&server.address).await;
            let why = match found.map(|mut found| found.next()) {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => "it has no address".to_owned(),
                Err(error) => error.to_string(),
            };
            failed = Err(ConfigError::Unresolved {
                server: server.name.clone(),
                address: server.address.clone(),
                why,
            });
        }
        failed
    }

    /// The layout servers as the transport wants them.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let peer = |server: &ServerAddress| Peer {
            name: ServerName::new(&server.name),
            address: Arc::from(server.address.as_str()),
        };
        self.layout_servers.iter().map(peer).collect()
    }

    /// How long a call may take.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_config_reads_back_and_mistakes_are_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("client.toml");
        let config = ClientConfig::new("certs", "app", [("sequencer-1", "127.0.0.1:1")]);
        std::fs::write(&path, toml::to_string(&config).expect("plain data")).expect("writable");
        let read = ClientConfig::read(&path).expect("just written");
        assert_eq!(read.tls.key, dir.path().join("certs/app.key"));
        assert_eq!(read.layout_servers, config.layout_servers);

        std::fs::write(&path, "certificat = 1").expect("writable");
        let error = ClientConfig::read(&path).expect_err("misspelt").to_string();
        assert!(
            error.contains("client.toml") && error.contains("certificat"),
            "{error}"
        );
        let with = |address: &str, rest: &str| {
            let text = toml::to_string(&ClientConfig::new("certs", "app", [("seq", address)]));
            let text = text.expect("plain data").replace("30000", rest);
            ClientConfig::parse(&text, &path).map_err(|error| error.to_string())
        };
        for address in [
            "localhost",
            "1.2.3.4",
            ":7400",
            "host:",
            "host:0",
            "a:b:1",
            "quic://a:1",
            "host:70000",
        ] {
            let error = with(address, "1").expect_err(address);
            assert!(
                error.contains("`layout_servers`") && error.contains(address),
                "{error}"
            );
        }
        for address in ["localhost:1", "[::1]:7400", "unit-1a.example:7101"] {
            with(address, "1").expect(address);
        }
        let error = with("localhost:1", "0").expect_err("no time");
        assert!(error.contains("`deadline_ms`"), "{error}");
        let error = ClientConfig::read(dir.path().join("none"))
            .expect_err("absent")
            .to_string();
        assert!(error.contains("--config"), "{error}");
    }
}
