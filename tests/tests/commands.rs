//! The `milonga` command, as a person at a shell uses it.

#![expect(
    clippy::disallowed_methods,
    reason = "real processes live in real time"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_child"));
    command
        .arg("server")
        .args(words)
        .env_remove("MILONGA_CONFIG");
    command
}

/// Exit code and everything that was said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    said(&command.output().expect("it can be run"))
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn milonga(words: &[&str]) -> (Option<i32>, String) {
    run(&mut command(words))
}

#[track_caller]
fn fails(words: &[&str], code: i32, with: &str) {
    let (found, text) = milonga(words);
    assert!(
        found == Some(code) && text.contains(with),
        "{words:?}: {found:?}: {text}"
    );
}

#[track_caller]
fn works(words: &[&str]) -> String {
    let (code, text) = milonga(words);
    assert_eq!(code, Some(0), "{words:?}: {text}");
    text
}

fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("plain").to_owned();
    (folder, path)
}

fn stop(child: Child, signal: &str) -> (Option<i32>, String) {
    let kill = format!("kill -{signal} {}", child.id());
    let killed = Command::new("sh").args(["-c", &kill]).status();
    assert!(killed.expect("there is a shell").success());
    said(&child.wait_with_output().expect("it ends"))
}

/// Starts a command and waits for its first line.
fn begin(words: &[&str]) -> (Child, String) {
    let mut command = command(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be run");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("readable");
    (child, line)
}

fn configurations(dir: &str) -> Vec<(String, String)> {
    let files = fs::read_dir(dir).expect("readable").flatten();
    let tomls = files.filter(|file| file.path().extension().is_some_and(|end| end == "toml"));
    let mut all: Vec<_> = tomls
        .map(|file| {
            let text = fs::read_to_string(file.path()).expect("readable");
            (file.file_name().to_string_lossy().into_owned(), text)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_server_has_a_name() {
    let empty = "this is empty; name a process";
    fails(&["cluster", "add-unit", ""], 2, empty);
    fails(&["cluster", "add-chain", "unit-3a", " "], 2, empty);
}

#[test]
fn what_a_running_dev_has_written_stays_as_it_is() {
    let (_folder, dir) = folder();
    let (dev, line) = begin(&["dev", "--data", &dir]);
    assert!(line.starts_with("ready:"), "{line}");
    let before = configurations(&dir);
    assert_eq!(before.len(), 3);
    fails(&["dev", "--data", &dir], 1, "in use");
    fails(&["dev", "--data", &dir, "--chains", "2"], 1, "in use");
    fails(&["init", "--out", &dir, "--force"], 1, "in use");
    assert_eq!(configurations(&dir), before);
    let config = format!("{dir}/client.toml");
    works(&[
        "--config",
        &config,
        "map",
        "put",
        "greetings",
        "en",
        "hello",
    ]);
    assert_eq!(stop(dev, "TERM").0, Some(0));

    fails(
        &["dev", "--data", &dir, "--chains", "2"],
        1,
        "of the chains [unit-1a]",
    );
    fails(
        &["init", "--out", &dir, "--force"],
        1,
        "of the chains [unit-1a]",
    );
    assert_eq!(configurations(&dir), before);

    // A port that somebody has taken meanwhile is exchanged, in the client's configuration, too.
    let taken = before.iter().find_map(|(_, text)| {
        let line = text.lines().find(|line| line.starts_with("listen"))?;
        line.split('"').nth(1).map(str::to_owned)
    });
    let taken = std::net::UdpSocket::bind(taken.expect("some server listens")).expect("free");
    let (dev, _) = begin(&["dev", "--data", &dir]);
    assert_ne!(configurations(&dir), before);
    assert_eq!(
        works(&["--config", &config, "map", "get", "greetings", "en"]),
        "hello\n"
    );
    assert_eq!(stop(dev, "INT").0, Some(0));
    drop(taken);
}

#[test]
fn a_cluster_is_not_mixed_with_other_files() {
    let (_folder, dir) = folder();
    fs::create_dir_all(&dir).expect("made");
    fs::write(Path::new(&dir).join("superblock"), "a unit's").expect("written");
    for options in [&[][..], &["--force"], &["--keep"]] {
        let init = [&["init", "--out", &dir], options].concat();
        fails(&init, 1, "holds other files, such as superblock");
    }
    assert!(!Path::new(&dir).join("client.toml").exists());
}

#[test]
fn files_are_overwritten_only_if_that_is_asked_for() {
    let (_folder, dir) = folder();
    works(&["init", "--out", &dir, "--port", "0"]);
    let before = configurations(&dir);
    fails(
        &["init", "--out", &dir],
        1,
        "layout-1.toml is there already",
    );
    works(&["init", "--out", &dir, "--keep"]);
    works(&["cluster", "init", "--out", &dir, "--keep"]);
    assert_eq!(configurations(&dir), before);
    fails(
        &["init", "--out", &dir, "--keep", "--chains", "3"],
        1,
        "of the chains",
    );
    fails(
        &["init", "--out", &dir, "--keep", "--spares", "2"],
        1,
        "the spares sequencer-2, unit-3, not of",
    );
    works(&["init", "--out", &dir, "--force", "--chains", "3"]);
    let certs = format!("{dir}/certs");
    fails(
        &["certs", "--out", &certs, "--server", "unit-1a"],
        1,
        "unit-1a.pem is there already",
    );
    works(&["certs", "--out", &certs, "--server", "unit-1a", "--force"]);
}

#[test]
fn a_new_cluster_has_a_layout_server_and_spares() {
    let names = |dir: &str| -> Vec<String> {
        let files = configurations(dir).into_iter();
        files.map(|(name, _)| name.replace(".toml", "")).collect()
    };
    let (_folder, dir) = folder();
    works(&["init", "--out", &dir, "--chains", "1", "--port", "0"]);
    assert_eq!(
        names(&dir),
        [
            "client",
            "layout-1",
            "sequencer-1",
            "sequencer-2",
            "unit-1a",
            "unit-1b",
            "unit-2"
        ]
    );
    let layout = &configurations(&dir)[1].1;
    assert!(
        layout.contains("spare_sequencers = [\"sequencer-2\"]")
            && layout.contains("spare_units = [\"unit-2\"]"),
        "{layout}"
    );
    let (_folder, dir) = folder();
    let small = ["--chains", "1", "--replicas", "1", "--spares", "0"];
    works(&[&["init", "--out", &dir, "--port", "0"][..], &small].concat());
    assert_eq!(
        names(&dir),
        ["client", "layout-1", "sequencer-1", "unit-1a"]
    );
    let (_folder, several) = folder();
    works(&["init", "--out", &several, "--layouts", "3", "--port", "0"]);
    let members = names(&several);
    let members: Vec<_> = members
        .iter()
        .filter(|n| n.starts_with("layout-"))
        .collect();
    assert_eq!(members, ["layout-1", "layout-2", "layout-3"]);
    for member in members {
        let mark = Path::new(&several).join(member).join("NEW-LAYOUT");
        assert!(mark.exists(), "{}", mark.display());
    }
    fails(
        &["init", "--out", &several, "--keep", "--layouts", "5"],
        1,
        "3 members of the layout",
    );
    works(&["init", "--out", &several, "--keep"]);
    fails(
        &["init", "--out", &several, "--layouts", "2"],
        2,
        "1, 3 or 5",
    );
    // `dev` uses what it finds.
    let (dev, line) = begin(&["dev", "--data", &dir]);
    assert!(line.starts_with("ready:"), "{line}");
    let config = format!("{dir}/client.toml");
    let (code, status) = json(&["--config", &config, "status"]);
    assert_eq!(
        (code, &status["servers"][0]["name"], &status["epoch"]),
        (Some(0), &"layout-1".into(), &1.into())
    );
    assert_eq!(stop(dev, "TERM").0, Some(0));
    // Whatever else is asked for, a history stays with the server that holds it.
    works(&[&["init", "--out", &dir, "--force"][..], &small].concat());
    fails(&["init", "--out", &dir, "--force"], 1, "of the chains");
}

#[test]
fn the_status_of_an_embedded_log_has_no_servers() {
    let (_folder, dir) = folder();
    works(&["log", "append", "--dir", &dir, "something"]);
    let text = works(&["status", "--dir", &dir]);
    assert!(
        text.contains("redundancy  none: 1 chain of 1 unit") && !text.contains("NAME"),
        "{text}"
    );
    let (code, value) = json(&["status", "--dir", &dir]);
    assert_eq!(
        (code, &value["redundancy"]["full"], &value["out"]),
        (Some(0), &true.into(), &Value::Array(Vec::new()))
    );
}

#[test]
fn what_is_missing_of_a_log_is_said_at_once() {
    for (part, why) in [
        ("unit", "empty directory"),
        ("layout-raft.redb", "the history of layouts is empty"),
    ] {
        let (_folder, dir) = folder();
        works(&["log", "append", "--dir", &dir, "something"]);
        let part = Path::new(&dir).join(part);
        let aside = Path::new(&dir).join("aside");
        fs::rename(&part, &aside).expect("it is there");
        let began = Instant::now();
        fails(&["log", "tail", "--dir", &dir], 1, why);
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }
}

#[test]
fn only_writes_make_a_log_and_only_where_nothing_else_lies() {
    let (folder, dir) = folder();
    let none = folder.path().join("none");
    for words in [
        &["status"][..],
        &["log", "tail"],
        &["log", "read"],
        &["log", "follow", "1"],
        &["map", "get", "m", "k"],
        &["counter", "get", "c"],
        &["queue", "len", "q"],
        &["queue", "pop", "q"],
    ] {
        let none = none.to_str().expect("plain");
        fails(&[words, &["--dir", none]].concat(), 3, "no log in");
        fails(&[words, &["--dir", &dir]].concat(), 3, "no log in");
    }
    assert!(!none.exists());
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), 0);
    let file = folder.path().join("README.md");
    fs::write(&file, "text").expect("writable");
    fails(
        &["counter", "add", "c", "--dir", &dir],
        1,
        "other files, such as README.md",
    );
    let file = file.to_str().expect("plain");
    fails(&["counter", "add", "c", "--dir", file], 1, "is a file");
    fails(&["counter", "get", "c", "--dir", file], 1, "is a file");
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), 1);
}

#[test]
fn the_command_line_comes_before_the_environment() {
    let (_folder, dir) = folder();
    let mut command = command(&["counter", "add", "c", "--dir", &dir]);
    let (code, text) = run(command.env("MILONGA_CONFIG", "/nonexistent"));
    assert_eq!((code, text.as_str()), (Some(0), "1\n"));
    fails(
        &["status", "--dir", &dir, "--config", "x"],
        2,
        "cannot be used with",
    );
    fails(
        &["--dir", &dir, "log", "tail", "--config", "x"],
        2,
        "two logs",
    );
    for words in [
        &["dev"][..],
        &["init", "--out", "x"],
        &["certs"],
        &["serve"],
    ] {
        fails(&[words, &["--dir", &dir]].concat(), 2, "no --dir");
        assert!(!works(&[words, &["--help"]].concat()).contains("--dir"));
    }
}

#[test]
fn a_reader_that_has_seen_enough_and_a_full_disk_are_no_panics() {
    let (_folder, dir) = folder();
    works(&["map", "put", "m", "key", "value", "--dir", &dir]);
    let mut dump = command(&["map", "dump", "m", "--dir", &dir]);
    dump.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = dump.spawn().expect("it can be run");
    drop(child.stdout.take());
    let ended = said(&child.wait_with_output().expect("it ends"));
    assert_eq!(ended, (Some(141), String::new()));
    let full = fs::File::options().write(true).open("/dev/full");
    let mut dump = command(&["map", "dump", "m", "--dir", &dir]);
    let (code, text) = run(dump.stdout(full.expect("Linux has it")));
    assert_eq!(code, Some(1));
    assert!(
        text.contains("cannot write standard output: No space"),
        "{text}"
    );
}

#[test]
fn positions_that_make_no_sense_are_usage_errors_and_following_ends_well() {
    let (_folder, dir) = folder();
    works(&["log", "append", "--stream", "1", "--dir", &dir, "a"]);
    fails(
        &["log", "fill", "5", "3", "--dir", &dir],
        2,
        "holds no position",
    );
    let (_, tail) = milonga(&["log", "tail", "--json", "--dir", &dir]);
    let tail: Value = serde_json::from_str(&tail).expect("JSON");
    let tail = tail["tail"].as_u64().expect("a number");
    let words = format!(
        "position {tail} is not granted yet: the last that can be filled is {}",
        tail - 1
    );
    fails(
        &["log", "fill", &tail.to_string(), "--dir", &dir],
        2,
        &words,
    );
    let (follow, line) = begin(&["log", "follow", "1", "--from", "0", "--dir", &dir]);
    assert!(line.ends_with("a\n"), "{line}");
    assert_eq!(stop(follow, "INT"), (Some(0), String::new()));
}

#[test]
fn logs_that_go_into_a_file_are_plain_text() {
    let (_folder, dir) = folder();
    let mut add = command(&["counter", "add", "c", "--dir", &dir]);
    let (code, text) = run(add.env("RUST_LOG", "info"));
    assert_eq!(code, Some(0));
    assert!(
        text.contains("recovered") && !text.contains('\x1b'),
        "{text}"
    );
}

/// Names, contents and times of change of everything below a folder.
fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>, SystemTime)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(snapshot(&path));
        } else {
            let changed = entry.metadata().and_then(|meta| meta.modified());
            let bytes = fs::read(&path).expect("readable");
            let name = path.display().to_string();
            all.push((name, bytes, changed.expect("known")));
        }
    }
    all.sort();
    all
}

fn json(words: &[&str]) -> (Option<i32>, Value) {
    let output = command(words)
        .arg("--json")
        .output()
        .expect("it can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code(), value)
}

/// A log of three entries of two streams, and the directory of its unit.
fn small_log() -> (tempfile::TempDir, String, String) {
    let (folder, dir) = folder();
    for (stream, text) in [("7", "one"), ("7", "two"), ("8", "three")] {
        works(&["log", "append", "--dir", &dir, "--stream", stream, text]);
    }
    let unit = format!("{dir}/unit");
    (folder, dir, unit)
}

#[test]
fn a_unit_is_inspected_and_verified_and_nothing_changes() {
    let (_folder, dir, unit) = small_log();
    let before = snapshot(Path::new(&dir));
    let modes = |mode: u32| {
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mine");
        };
        for (file, ..) in snapshot(Path::new(&dir)) {
            set(Path::new(&file), 0o444 | (mode & 0o222));
        }
        set(Path::new(&unit), mode);
        set(Path::new(&dir), mode);
    };
    modes(0o555);
    let text = works(&["unit", "inspect", &unit]);
    assert!(
        text.contains("unit embedded (") && text.contains("not in use"),
        "{text}"
    );
    assert!(text.contains("3 entries of 2 streams"), "{text}");
    let (code, value) = json(&["unit", "inspect", &unit]);
    assert_eq!(code, Some(0));
    for (name, number) in [("entries", 3), ("streams", 2), ("high", 3), ("epoch", 3)] {
        assert_eq!(value[name], number, "{name}: {value}");
    }
    assert_eq!(
        (&value["in_use_by"], &value["damages"]),
        (&Value::Null, &0.into())
    );
    let segment = &value["segments"][0];
    assert_eq!(
        (&segment["state"], &segment["last"]),
        (&"active".into(), &2.into())
    );
    let text = works(&["unit", "verify", &unit]);
    assert!(
        text.lines()
            .last()
            .is_some_and(|last| last.starts_with("ok: ")),
        "{text}"
    );
    let (code, value) = json(&["unit", "verify", &unit]);
    assert_eq!(
        (code, &value["ok"], &value["records"]),
        (Some(0), &true.into(), &3.into())
    );
    modes(0o755);
    assert!(snapshot(Path::new(&dir)) == before, "something has changed");
    works(&["log", "append", "--dir", &dir, "and it goes on"]);
}

#[test]
fn damage_of_a_unit_is_named_with_its_positions() {
    let (_folder, dir, unit) = small_log();
    let file = format!("{unit}/segment-0000000000000001.log");
    let mut bytes = fs::read(&file).expect("readable");
    let at = bytes
        .windows(3)
        .position(|three| three == b"two")
        .expect("it is there");
    bytes[at] ^= 1;
    fs::write(&file, bytes).expect("writable");
    let (code, text) = milonga(&["unit", "verify", &unit]);
    assert_eq!(code, Some(1), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("segment-0000000000000001.log:") && lines[0].ends_with("; position 1"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("damaged: 1 place in 1 file, at most 1 position lost"),
        "{text}"
    );
    assert_eq!(lines.len(), 2, "{text}");
    let (code, value) = json(&["unit", "verify", &unit]);
    assert_eq!(
        (code, &value["ok"], &value["lost_span"]),
        (Some(1), &false.into(), &1.into())
    );
    let damage = &value["damage"][0];
    assert_eq!(
        (&damage["from"], &damage["to"]),
        (&1.into(), &2.into()),
        "{value}"
    );
    let text = works(&["unit", "inspect", &unit]);
    assert!(
        text.contains("at most 1 position, in 1..2") && text.contains("DAMAGED in 1 place"),
        "{text}"
    );
    let read = works(&["log", "read", "1", "--dir", &dir]);
    assert!(read.contains("lost"), "{read}");
}

#[test]
fn what_nothing_says_of_a_damaged_unit_is_not_known() {
    let (_folder, _dir, unit) = small_log();
    fs::remove_file(format!("{unit}/segment-0000000000000001.log")).expect("it is there");
    let text = works(&["unit", "inspect", &unit]);
    assert!(!text.contains("nothing\n"), "{text}");
    assert!(text.contains("how much is not known"), "{text}");
    let (_, value) = json(&["unit", "inspect", &unit]);
    assert_eq!(value["lost_unknown"], true, "{value}");
    let cluster = value["cluster"].as_str().expect("a cluster").to_owned();
    // The state still says whose it is.
    fs::write(format!("{unit}/superblock"), [0xff; 4_096]).expect("writable");
    let (_, value) = json(&["unit", "inspect", &unit]);
    assert_eq!(value["cluster"], cluster);
    fs::write(format!("{unit}/state"), [0xff; 8_192]).expect("writable");
    for file in fs::read_dir(&unit).expect("a directory") {
        let path = file.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::write(path, [0xff; 8_192]).expect("writable");
        }
    }
    let text = works(&["unit", "inspect", &unit]);
    assert!(text.contains("cluster    unknown"), "{text}");
}

#[test]
fn what_is_no_unit_is_not_found_and_one_in_use_is_only_inspected() {
    let (folder, dir, unit) = small_log();
    for what in ["inspect", "verify"] {
        fails(&["unit", what, &dir], 3, &format!("name {unit}"));
        fails(
            &["unit", what, &format!("{dir}/layout-raft.redb")],
            3,
            "is a file",
        );
        fails(&["unit", what, &format!("{dir}/none")], 3, "does not exist");
        fails(&["unit", what, &unit, "--dir", &dir], 2, "no --dir");
        fails(&["unit", what], 2, "<DIR>");
    }
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("writable");
    fails(
        &["unit", "verify", empty.to_str().expect("plain")],
        3,
        "is empty",
    );
    // It has printed the only entry, so it has the log open.
    let (follow, _) = begin(&["log", "follow", "8", "--from", "0", "--dir", &dir]);
    fails(&["unit", "verify", &unit], 1, "in use by process");
    let text = works(&["unit", "inspect", &unit]);
    assert!(text.contains("IN USE by process"), "{text}");
    let (_, value) = json(&["unit", "inspect", &unit]);
    assert_eq!(value["in_use_by"], follow.id().to_string());
    assert_eq!(stop(follow, "TERM").0, Some(0));
}
