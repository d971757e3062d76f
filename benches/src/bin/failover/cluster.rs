//! The servers: processes of this very program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use milonga::{ClientConfig, Milonga};
use serde_json::Value;

use crate::AnyError;

/// A cluster that is not whole again after so long never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster of `milonga init`, with three members of the layout; killed when dropped.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    running: BTreeMap<String, Child>,
}

impl Cluster {
    /// So many chains of two replicas, and so many spare units and spare sequencers.
    pub(crate) fn start(chains: usize, spares: usize) -> Result<Self, AnyError> {
        let dir = tempfile::tempdir_in(std::env::current_dir()?.join("target"))?;
        let config = dir.path().join("cluster");
        let init = Command::new(std::env::current_exe()?)
            .args(["server", "init", "--replicas", "2", "--layouts", "3"])
            .args(["--port", "0", "--chains", &chains.to_string()])
            .args(["--spares", &spares.to_string(), "--out"])
            .arg(&config)
            .stdout(Stdio::null())
            .status()?;
        if !init.success() {
            return Err("`milonga init` failed".into());
        }
        let mut cluster = Self {
            dir,
            running: BTreeMap::new(),
        };
        for file in std::fs::read_dir(&config)? {
            let path = file?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            let name = name.unwrap_or_default();
            if path.extension().is_some_and(|e| e == "toml") && name != "client" {
                cluster.spawn(name)?;
            }
        }
        Ok(cluster)
    }

    fn config(&self, name: &str) -> PathBuf {
        let file = Path::new("cluster").join(format!("{name}.toml"));
        self.dir.path().join(file)
    }

    pub(crate) fn spawn(&mut self, name: &str) -> Result<(), AnyError> {
        let child = Command::new(std::env::current_exe()?)
            .args(["server", "serve", "--config"])
            .arg(self.config(name))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) -> Result<(), AnyError> {
        let child = self.running.remove(name);
        let mut child = child.ok_or_else(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// What `milonga …` prints, a JSON value.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Result<Value, AnyError> {
        let output = tokio::process::Command::new(std::env::current_exe()?)
            .arg("server")
            .args(arguments)
            .args(["--json", "--config"])
            .arg(self.config("client"))
            .output()
            .await?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{arguments:?}: {why}").into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// How many milliseconds the layout's leader says of its last reconfiguration in `fact`.
    pub(crate) async fn took(&self, fact: &str) -> Result<f64, AnyError> {
        let status = self.command(&["status"]).await?;
        let servers = status["servers"].as_array().cloned().unwrap_or_default();
        let leader = servers.iter().find_map(|server| {
            let said = server["roles"]["layout"][fact].as_str()?;
            said.strip_suffix(" ms")?.parse().ok()
        });
        leader.ok_or_else(|| format!("no member of the layout says what its {fact}").into())
    }

    pub(crate) async fn connect(&self) -> Result<Milonga, AnyError> {
        Ok(Milonga::connect(ClientConfig::read(self.config("client"))?).await?)
    }

    /// Waits until every chain has all its replicas.
    pub(crate) async fn whole(&self, milonga: &Milonga) -> Result<(), AnyError> {
        wait(|| {
            let layout = &milonga.client().layout().layout;
            let mut segments = layout.segments.iter();
            segments.all(|segment| {
                segment.joining.is_empty() && segment.chains.iter().all(|chain| chain.len() == 2)
            })
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until `is` so.
pub(crate) async fn wait(is: impl Fn() -> bool) -> Result<(), AnyError> {
    let give_up = Instant::now() + PATIENCE;
    while !is() {
        if Instant::now() > give_up {
            return Err("the cluster does not get on".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
