//! `scripts/cluster` and `milonga status`, as a person at a shell uses them.

#![expect(
    clippy::disallowed_methods,
    reason = "real processes live in real time"
)]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// All processes of a cluster of one chain of two units, with spares, in the order of their ports.
const NAMES: [&str; 6] = [
    "layout-1",
    "sequencer-1",
    "sequencer-2",
    "unit-1a",
    "unit-1b",
    "unit-2",
];

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
            port: free_ports(8),
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
            .env("LAYOUTS", "1")
            .env("PORT", self.port.to_string());
        command
    }

    fn milonga(&self, words: &[&str]) -> Output {
        self.call(words).output().expect("it can be run")
    }

    fn call(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("milonga"));
        command
            .env("MILONGA_CONFIG", self.path("client.toml"))
            .args(words);
        command
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("cluster").join(file)
    }

    /// `milonga status` as soon as it is as wanted.
    #[track_caller]
    fn status(&self, wanted: impl Fn(&Output, &str) -> bool) -> String {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let output = self.milonga(&["status"]);
            let text = text(&output);
            if wanted(&output, &text) {
                return text;
            }
            assert!(Instant::now() < until, "{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What a command says that waits for servers, and is interrupted: not the 30 s for which it would wait for their answers.
fn interrupted(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be run");
    std::thread::sleep(Duration::from_secs(1));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > until {
            child.kill().expect("it runs");
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait_with_output().expect("it has ended")
}

/// The line of one server.
fn row<'a>(status: &'a str, name: &str) -> &'a str {
    let mut lines = status.lines().skip_while(|line| !line.starts_with("NAME"));
    let found = lines.find(|line| line.split_whitespace().next() == Some(name));
    found.unwrap_or_else(|| panic!("no {name} in {status}"))
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
    for name in NAMES {
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

/// The layout that is made by default outlives one of its members, and then still gives up who is gone.
#[test]
fn a_layout_of_three_goes_on_without_its_leader() {
    let cluster = Cluster::new();
    let up = || {
        let mut command = cluster.command();
        let up = command.env_remove("LAYOUTS").arg("up").output();
        ok(&up.expect("it can be run"))
    };
    up();
    ok(&cluster.milonga(&["map", "put", "greetings", "en", "hello"]));
    let status = ok(&cluster.milonga(&["status"]));
    let members = ["layout-1", "layout-2", "layout-3"];
    let leads = |status: &str, name: &str| status.contains(&format!("{name} leads"));
    let leader = members.iter().find(|name| leads(&status, name));
    let leader = leader.unwrap_or_else(|| panic!("nobody leads: {status}"));
    ok(&cluster.script(&["kill", leader]));
    ok(&cluster.script(&["kill", "unit-1a"]));
    cluster.status(|_, text| {
        let other = members
            .iter()
            .any(|name| name != leader && leads(text, name));
        other && text.contains("chain 1 has 1 of 2 replicas")
    });
    let found = cluster.milonga(&["map", "get", "greetings", "en"]);
    assert_eq!(ok(&found), "hello\n");
    up();
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
    let taken = UdpSocket::bind(("127.0.0.1", cluster.port + 4)).expect("free just now");
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
        "unit-1a: came with an empty directory",
    );
}

#[test]
fn status_tells_a_unit_that_is_gone_from_one_that_is_missed() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    let status = cluster.status(|output, _| output.status.success());
    assert!(status.contains("full: 1 chain of 2 units"), "{status}");
    for (name, state) in NAMES.into_iter().zip([
        "layout     published",
        "serving epoch",
        "spare",
        "chain 1",
        "chain 1",
        "spare",
    ]) {
        assert!(row(&status, name).contains(state), "{name}: {status}");
    }
    assert!(status.lines().all(|line| line.chars().count() <= 100));
    ok(&cluster.milonga(&["map", "put", "greetings", "en", "hello"]));

    // Every member serves, though there is less redundancy.
    ok(&cluster.script(&["kill", "unit-1a"]));
    let status = cluster.status(|_, text| text.contains("REDUCED: chain 1 has 1 of 2 replicas"));
    assert!(row(&status, "unit-1a").ends_with("DOWN"), "{status}");
    assert!(
        status.contains("out         unit-1a: says nothing"),
        "{status}"
    );
    let output = cluster.milonga(&["status", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let redundancy = &value["redundancy"];
    assert_eq!(
        (&redundancy["full"], &redundancy["chains"][0]["least"]),
        (&false.into(), &1.into())
    );
    assert_eq!(value["out"][0]["name"], "unit-1a");
    assert_eq!(
        (&value["copying"], &value["waiting"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(value["servers"].as_array().map(Vec::len), Some(6));

    assert_eq!(
        ok(&cluster.script(&["start", "unit-1a"])),
        "started unit-1a\n"
    );
    refused(&cluster.script(&["start", "unit-1a"]), 1, "runs already");
    let status = cluster.status(|_, text| text.contains("full: 1 chain of 2 units"));
    assert!(row(&status, "unit-1a").contains("chain 1"), "{status}");
    let verbose = ok(&cluster.milonga(&["status", "-v"]));
    assert!(verbose.contains("  unit:     batches"), "{verbose}");
}

#[test]
fn a_spare_sequencer_takes_over_and_who_was_it_is_no_member_any_more() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    ok(&cluster.script(&["kill", "sequencer-1"]));
    let status = cluster
        .status(|output, text| output.status.success() && text.contains("sequencer   sequencer-2"));
    assert!(row(&status, "sequencer-1").ends_with("DOWN"), "{status}");
    ok(&cluster.script(&["kill", "layout-1"]));
    refused(&cluster.script(&["status"]), 1, "layout-1 does not run");
}

#[test]
fn a_process_is_paused_and_goes_on() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    let paused = cluster.script(&["pause", "unit-2", "0.5"]);
    assert_eq!(ok(&paused), "paused unit-2 for 0.5 s\n");
    ok(&cluster.script(&["pause", "unit-1b"]));
    cluster.status(|_, text| text.contains("out         unit-1b: says nothing"));
    assert_eq!(
        ok(&cluster.script(&["resume", "unit-1b"])),
        "resumed unit-1b\n"
    );
    let status = cluster.status(|output, text| output.status.success() && text.contains("full: "));
    assert!(row(&status, "unit-1b").contains("chain 1"), "{status}");
    // Its time was over long ago.
    assert!(row(&status, "unit-2").contains("spare"), "{status}");
    refused(&cluster.script(&["resume", "unit-2"]), 1, "is not paused");
    refused(&cluster.script(&["pause", "unit-1b", "long"]), 2, "SECONDS");
    refused(&cluster.script(&["pause", "unit-9"]), 3, "there are:");
    refused(&cluster.script(&["pause"]), 2, "one of: layout-1");
}

#[test]
fn a_process_is_slow_and_fast_again() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    let slowed = cluster.script(&["slow", "unit-2", "0.5"]);
    assert_eq!(ok(&slowed), "slowed unit-2 for 0.5 s\n");
    assert!(ok(&cluster.script(&["slow", "unit-1b"])).starts_with("slowed unit-1b; undo it: "));
    refused(&cluster.script(&["slow", "unit-1b"]), 1, "is slow already");
    refused(&cluster.script(&["pause", "unit-1b"]), 1, "is slow: ");
    refused(&cluster.script(&["status"]), 0, "unit-1b is slow");
    // It says hello, and is out of the way all the same. (On a busy machine it may have been silent before.)
    let status = cluster.status(|_, text| text.contains("unit-1b: is slow: it answers within"));
    assert!(status.contains("out         unit-1b: is slow"), "{status}");
    assert_eq!(ok(&cluster.script(&["heal"])), "healed unit-1b\n");
    refused(&cluster.script(&["resume", "unit-1b"]), 1, "is not paused");
    cluster.status(|_, text| text.contains("unit-1b: was slow") || text.contains("full: "));
    // Its time was over long ago.
    refused(&cluster.script(&["heal", "unit-2"]), 1, "is not cut off");
    ok(&cluster.script(&["slow", "unit-1a"]));
    ok(&cluster.script(&["kill", "unit-1a"]));
    refused(&cluster.script(&["slow", "unit-1a"]), 3, "does not run");
    ok(&cluster.script(&["slow", "unit-2"]));
    assert_eq!(ok(&cluster.script(&["down"])), "down\n");
}

#[test]
fn a_chain_of_which_nobody_is_left_is_not_served() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    ok(&cluster.script(&["pause", "unit-1a"]));
    ok(&cluster.script(&["pause", "unit-1b"]));
    refused(
        &cluster.script(&["pause", "unit-1b"]),
        1,
        "is paused already",
    );
    std::thread::sleep(Duration::from_secs(1));
    let status = cluster.script(&["status"]);
    refused(&status, 1, "NOT SERVING: unit-1a, unit-1b");
    refused(&status, 1, "unit-1a is paused");
    refused(&status, 1, "error: not serving: unit-1a, unit-1b");
    refused(
        &interrupted(cluster.call(&["log", "append", "word"])),
        1,
        "interrupted; ",
    );
    let change = ["move-sequencer", "sequencer-2", "--deadline", "3"];
    let busy =
        "not known to be under way within 3 s: layout-1: busy: a reconfiguration is under way: ";
    refused(
        &cluster.milonga(&[&["cluster"], &change[..]].concat()),
        1,
        busy,
    );
    ok(&cluster.script(&["resume", "unit-1a"]));
    ok(&cluster.script(&["up"]));
    cluster.status(|output, text| output.status.success() && text.contains("full: "));
    // Whoever is still stopped goes down as well.
    ok(&cluster.script(&["pause", "unit-2", "1000"]));
    assert_eq!(ok(&cluster.script(&["down"])), "down\n");
    refused(&cluster.script(&["pause", "unit-2"]), 3, "does not run");
}

#[test]
fn a_process_is_cut_off_and_heals() {
    let cluster = Cluster::new();
    ok(&cluster.script(&["up"]));
    // By the firewall, if there is one that may be used.
    let cut = ok(&cluster.script(&["partition", "unit-1a"]));
    assert!(cut.starts_with("cut off unit-1a ("), "{cut}");
    cluster.status(|_, text| text.contains("out         unit-1a: says nothing"));
    refused(&cluster.script(&["status"]), 0, "unit-1a is cut off");
    assert_eq!(ok(&cluster.script(&["heal"])), "healed unit-1a\n");
    cluster.status(|_, text| text.contains("full: "));
    ok(&cluster.script(&["partition", "unit-2", "0.5"]));
    cluster.status(|_, text| {
        row(text, "unit-2").contains("spare") && !cluster.path("unit-2.partition").exists()
    });
    refused(&cluster.script(&["heal", "unit-1a"]), 1, "is not cut off");

    let cut_by = |tool| {
        let mut command = cluster.command();
        command.env("PARTITION_BY", tool);
        command.args(["partition", "unit-1b"]);
        command.output().expect("it can be run")
    };
    refused(&cut_by("magic"), 2, "nft, iptables or socket");
    let cut = ok(&cut_by("socket"));
    assert!(cut.starts_with("cut off unit-1b (by itself)"), "{cut}");
    cluster.status(|_, text| text.contains("out         unit-1b: says nothing"));
    ok(&cluster.milonga(&["map", "put", "greetings", "en", "hello"]));
    assert_eq!(ok(&cluster.script(&["heal"])), "healed unit-1b\n");
    cluster.status(|_, text| text.contains("full: "));
}

#[test]
fn a_cluster_of_the_old_shape_goes_on_as_it_is() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path().join("cluster");
    let mut dev = Command::new(cluster.dir.path().join("milonga"));
    dev.args(["dev", "--replicas", "2", "--data"]).arg(&dir);
    let mut dev = dev.stdout(Stdio::piped()).spawn().expect("it can be run");
    let mut line = String::new();
    let stdout = dev.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("readable");
    ok(&cluster.milonga(&["map", "put", "greetings", "en", "hello"]));
    let term = Command::new("kill").arg(dev.id().to_string()).status();
    assert!(term.expect("there is kill").success() && dev.wait().expect("it ends").success());

    let script = |words: &[&str]| {
        let mut command = cluster.command();
        command.env_remove("PORT").args(words);
        command.output().expect("it can be run")
    };
    ok(&script(&["up"]));
    let found = cluster.milonga(&["map", "get", "greetings", "en"]);
    assert_eq!(ok(&found), "hello\n");
    let status = ok(&script(&["status"]));
    assert!(
        row(&status, "sequencer-1").contains("layout+sequencer"),
        "{status}"
    );
    refused(&script(&["kill", "layout-1"]), 3, "there are: sequencer-1");
    let mut more = cluster.command();
    more.env_remove("PORT").env("SPARES", "1").args(["up"]);
    refused(&more.output().expect("it runs"), 1, "SPARES=0");
}
