//! `scripts/cluster`, as a person at a shell uses it.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};

/// A folder for the cluster, and something that is called like the binary.
struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
}

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let program = env!("CARGO_BIN_EXE_child");
        let text = format!("#!/bin/sh\nexec '{program}' server \"$@\"\n");
        let binary = dir.path().join("milonga");
        fs::write(&binary, text).expect("writable");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("writable");
        Self {
            port: free_ports(3),
            dir,
        }
    }

    fn script(&self, words: &[&str]) -> Output {
        self.command().args(words).output().expect("it can be run")
    }

    fn command(&self) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("in the repository");
        let mut command = Command::new(root.join("scripts/cluster"));
        command
            .env("MILONGA_CLUSTER_DIR", self.dir.path().join("cluster"))
            .env("MILONGA_BIN", self.dir.path().join("milonga"))
            .env("CHAINS", "1")
            .env("REPLICAS", "2")
            .env("PORT", self.port.to_string());
        command
    }

    fn milonga(&self, words: &[&str]) -> Output {
        let config: PathBuf = self.dir.path().join("cluster/client.toml");
        let mut command = Command::new(self.dir.path().join("milonga"));
        command.env("MILONGA_CONFIG", config).args(words);
        command.output().expect("it can be run")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script(&["down"]);
    }
}

/// The first of `count` ports in a row that nobody uses just now.
fn free_ports(count: u16) -> u16 {
    let free = |port: &u16| UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    static TESTS: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    let start = start + 100 * TESTS.fetch_add(1, Ordering::Relaxed);
    let mut starts = (start..u16::MAX - count).step_by(usize::from(count));
    let found = starts.find(|first| (*first..first + count).all(|port| free(&port)));
    found.expect("some ports are free")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

#[test]
fn a_cluster_goes_up_loses_a_process_comes_back_and_goes_down() {
    let cluster = Cluster::new();
    assert!(ok(&cluster.script(&["up"])).contains("MILONGA_CONFIG="));
    ok(&cluster.milonga(&["map", "put", "greetings", "en", "hello"]));
    // Each name, many times over: which one was killed must not depend on luck.
    for name in ["sequencer-1", "unit-1a", "unit-1b"] {
        assert_eq!(
            ok(&cluster.script(&["kill", name])),
            format!("killed {name}\n")
        );
    }
    let again = cluster.script(&["kill", "unit-1a"]);
    assert_eq!(
        (again.status.code(), text(&again).contains("does not run")),
        (Some(3), true)
    );
    let nobody = cluster.script(&["kill", "unit-9z"]);
    assert_eq!(
        (nobody.status.code(), text(&nobody).contains("there are:")),
        (Some(3), true)
    );
    assert_eq!(cluster.script(&["kill"]).status.code(), Some(2));
    assert_eq!(cluster.script(&["up", "now"]).status.code(), Some(2));
    ok(&cluster.script(&["--help"]));
    ok(&cluster.script(&["up"]));
    let found = cluster.milonga(&["map", "get", "greetings", "en"]);
    assert_eq!(ok(&found), "hello\n");
    assert!(ok(&cluster.script(&["status"])).contains("unit-1b"));
    assert!(ok(&cluster.script(&["down"])).contains("down"));
    assert_eq!(cluster.script(&["kill", "unit-1a"]).status.code(), Some(3));
}

#[track_caller]
fn refused(output: &Output, code: i32, why: &str) {
    let text = text(output);
    assert!(
        output.status.code() == Some(code) && text.contains(why),
        "{text}"
    );
}

#[test]
fn up_means_that_all_of_it_is_up() {
    let cluster = Cluster::new();
    refused(&cluster.script(&["status"]), 3, "run: scripts/cluster up");
    let taken = UdpSocket::bind(("127.0.0.1", cluster.port + 2)).expect("free just now");
    let up = cluster.script(&["up"]);
    refused(&up, 1, "not up: unit-1b");
    refused(&up, 1, "cannot listen on");
    drop(taken);
    ok(&cluster.script(&["up"]));
    let mut more = cluster.command();
    refused(
        &more
            .args(["up"])
            .env("CHAINS", "3")
            .output()
            .expect("it runs"),
        1,
        "has CHAINS=1",
    );
    ok(&cluster.script(&["kill", "unit-1a"]));
    fs::remove_dir_all(cluster.dir.path().join("cluster/unit-1a")).expect("it was there");
    refused(
        &cluster.script(&["up"]),
        1,
        "unit-1a came with an empty directory",
    );
}
