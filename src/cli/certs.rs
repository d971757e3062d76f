//! `milonga certs`: a certificate authority and leaves.

use std::path::{Path, PathBuf};

use clap::Args;
use milonga_protocol::ServerName;
use milonga_transport::{Role, certs};
use serde::Serialize;

use super::output::{self, Failure};

/// Makes `ca.pem` and `ca.key` in DIR unless they are there, and NAME.pem and NAME.key for each name.
#[derive(Debug, Args)]
pub(super) struct Certs {
    /// Where to put them; keep `ca.key` secret and off the servers.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// A server process, such as `unit-1a`; may be given several times.
    #[arg(long = "server", value_name = "NAME")]
    servers: Vec<String>,
    /// A client process; may be given several times. Default, without any name: `client`.
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// Overwrite certificates that are there. The authority is never overwritten.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Made {
    authority: PathBuf,
    certificates: Vec<PathBuf>,
}

impl Certs {
    pub(super) fn run(mut self, json: bool) -> Result<(), Failure> {
        if self.servers.is_empty() && self.clients.is_empty() {
            self.clients.push("client".to_owned());
        }
        let names = self.servers.iter().chain(&self.clients);
        let mut files = names.map(|name| self.out.join(format!("{name}.pem")));
        if let Some(there) = files.find(|file| file.exists())
            && !self.force
        {
            return Err(Failure::failed(format!(
                "{} is there already; pass --force to overwrite it, or another --out",
                there.display()
            )));
        }
        std::fs::create_dir_all(&self.out).map_err(|error| {
            Failure::failed(format!(
                "cannot make {}: {error}; pass another --out",
                self.out.display()
            ))
        })?;
        let authority = self.out.join("ca.pem");
        if !authority.exists() {
            certs::make_ca(&self.out)?;
        }
        let mut certificates = leaves(&self.out, &self.servers, Role::Server)?;
        certificates.extend(leaves(&self.out, &self.clients, Role::Client)?);
        output::result(
            json,
            &Made {
                authority,
                certificates,
            },
            |made| {
                let made = std::iter::once(&made.authority).chain(&made.certificates);
                made.map(|path| format!("{}\n", path.display())).collect()
            },
        )
    }
}

fn leaves(dir: &Path, names: &[String], role: Role) -> Result<Vec<PathBuf>, Failure> {
    let mut made = Vec::new();
    for name in names {
        certs::make_leaf(dir, &ServerName::new(name), role)?;
        made.push(dir.join(format!("{name}.pem")));
    }
    Ok(made)
}
