//! Power failures: the file system is shut down under a running log, unsynced data is gone after the remount.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use milonga::{Milonga, Position, ReadAnswer};
use milonga_tests::LoopDisk;

const CUTS: usize = 5;

#[test]
fn power_cuts_lose_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let disk = match LoopDisk::make(dir.path(), 1 << 30) {
        Ok(disk) => disk,
        Err(why) => {
            println!("SKIPPED power cuts: no loop-mounted ext4 here ({why}); run as root");
            return;
        }
    };
    let mut acked = Vec::new();
    for cut in 1..=CUTS {
        let new = append_until_power_fails(&disk);
        assert!(
            new.len() >= 100,
            "only {} entries were acknowledged before cut {cut}",
            new.len()
        );
        acked.extend(new);
        disk.remount()
            .expect("nobody uses it, and the journal replays");
        check(&disk.folder().join("log"), &acked);
        println!(
            "power cut {cut}: all {} acknowledged entries are there",
            acked.len()
        );
    }
}

/// Starts the appender, cuts the power under it, and gives what it had acknowledged.
fn append_until_power_fails(disk: &LoopDisk) -> Vec<(Position, String)> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_child"))
        .args([
            "append",
            disk.folder()
                .join("log")
                .to_str()
                .expect("temporary paths are text"),
            "32",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts");
    let stdout = child.stdout.take().expect("piped");
    let (sender, lines) = mpsc::channel();
    #[expect(
        clippy::disallowed_methods,
        reason = "a pipe of a real process is read on a real thread"
    )]
    let reader = std::thread::spawn(move || {
        // The line at which the process dies may be cut off: it was not acknowledged to anybody.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut acked = Vec::new();
    while acked.len() < 400 {
        let line = lines
            .recv_timeout(Duration::from_secs(60))
            .expect("the child goes on");
        acked.extend(parse(&line));
    }
    disk.cut_power().expect("ext4 can be shut down");
    // Whatever is acknowledged from now on lies about its durability.
    while let Ok(line) = lines.recv_timeout(Duration::from_millis(300)) {
        acked.extend(parse(&line));
    }
    child.kill().expect("still ours");
    child.wait().expect("ends");
    reader.join().expect("does not panic");
    acked.extend(lines.try_iter().filter_map(|line| parse(&line)));
    acked
}

fn parse(line: &str) -> Option<(Position, String)> {
    let (position, payload) = line.strip_prefix("acked ")?.split_once(' ')?;
    Some((Position(position.parse().ok()?), payload.to_owned()))
}

fn check(log: &Path, acked: &[(Position, String)]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let milonga = Milonga::embedded(log)
            .await
            .expect("opens after a power cut");
        for some in acked.chunks(256) {
            let positions = some.iter().map(|(position, _)| *position).collect();
            let answers = milonga.log().read(positions).await.expect("readable");
            for ((position, payload), answer) in some.iter().zip(answers) {
                match answer {
                    ReadAnswer::Data(entry) => {
                        assert_eq!(entry.payload, payload.as_bytes(), "at {position}")
                    }
                    other => panic!("acknowledged {payload} at {position}, now {other:?}"),
                }
            }
        }
        milonga.close().await.expect("closes");
    });
}
