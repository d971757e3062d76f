//! A cluster of real processes on loopback: for tests, examples and benchmarks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use milonga_node::DirectoryLock;

use super::cluster::{self, Existing, Shape};
use super::output::Failure;

/// Servers as child processes of this one. They end when it ends, however it ends.
///
/// The children run `program` with `arguments` in front of `serve --config …`: any binary that hands those on to
/// [`cli::run`](super::run) will do, such as the test or example itself.
#[derive(Debug)]
pub struct LocalCluster {
    dir: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    config: PathBuf,
    names: Vec<String>,
    children: BTreeMap<String, Child>,
    _lock: DirectoryLock,
}

/// Why a local cluster cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("local cluster: {0}")]
pub struct LocalClusterError(String);

impl From<Failure> for LocalClusterError {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

impl LocalCluster {
    /// Writes certificates and configurations below `dir` (what is there is kept) and starts all servers:
    /// `sequencer-1`, which holds the layout, too, and `unit-1a`, `unit-1b`, … for `chains` chains of `replicas` units.
    ///
    /// Returns when all listen; a client waits for the layout by itself.
    ///
    /// # Errors
    /// [`LocalClusterError`] names the server and what it said.
    pub fn start(
        dir: &Path,
        chains: usize,
        replicas: usize,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Self, LocalClusterError> {
        let shape = Shape::small(chains, replicas);
        let files = cluster::prepare(dir, &shape, None, Existing::Keep)?;
        let mut local = Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            arguments: arguments.iter().map(OsString::from).collect(),
            config: files.client,
            names: files
                .servers
                .iter()
                .map(|server| server.name.to_string())
                .collect(),
            children: BTreeMap::new(),
            _lock: files.lock,
        };
        for name in local.names.clone() {
            local.spawn(&name)?;
        }
        Ok(local)
    }

    /// The configuration file for clients.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Names of all servers, first the one that holds the layout.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Folder of a server's data.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Process id of a running server.
    #[must_use]
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.children.get(name).map(Child::id)
    }

    /// Starts a server that does not run.
    ///
    /// # Errors
    /// [`LocalClusterError`]: it runs already, or ends before it listens (its last words are in `NAME.log`).
    pub fn spawn(&mut self, name: &str) -> Result<(), LocalClusterError> {
        let error = |why: String| LocalClusterError(format!("{name}: {why}"));
        if self.children.contains_key(name) {
            return Err(error("runs already".to_owned()));
        }
        let log = self.dir.join(format!("{name}.log"));
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .args(["serve", "--until-stdin-closes", "--config"])
            .arg(self.dir.join(format!("{name}.toml")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.map_err(|e| error(e.to_string()))?)
            .spawn()
            .map_err(|e| error(format!("{}: {e}", self.program.display())))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        if !line.contains("listens on") {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error(format!("did not start; see {}", log.display())));
        }
        self.children.insert(name.to_owned(), child);
        Ok(())
    }

    /// SIGKILL, and waits until the process is gone.
    ///
    /// # Errors
    /// [`LocalClusterError`] if it does not run.
    pub fn kill(&mut self, name: &str) -> Result<(), LocalClusterError> {
        let Some(mut child) = self.children.remove(name) else {
            return Err(LocalClusterError(format!("{name}: does not run")));
        };
        let killed = child.kill().and_then(|()| child.wait());
        killed
            .map(|_| ())
            .map_err(|e| LocalClusterError(format!("{name}: {e}")))
    }

    /// SIGKILL to every server at once.
    pub fn kill_all(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
        }
        for (_, mut child) in std::mem::take(&mut self.children) {
            let _ = child.wait();
        }
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.kill_all();
    }
}
