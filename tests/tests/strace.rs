//! The system calls of one append: the record is written, synced, and only then acknowledged.

use std::process::Command;

#[test]
fn the_sync_lies_between_the_write_and_the_acknowledgement() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-s",
            "256",
            "-e",
            "trace=pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync",
            "-o",
        ])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_child"))
        .arg("append-one")
        .arg(dir.path().join("log"))
        .output();
    let Ok(output) = output else {
        println!("SKIPPED the order of system calls: no strace here");
        return;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let trace =
        String::from_utf8_lossy(&std::fs::read(&trace).expect("strace wrote it")).into_owned();
    let lines: Vec<&str> = trace.lines().collect();
    let find = |from: usize, what: &dyn Fn(&str) -> bool| {
        lines[from..]
            .iter()
            .position(|line| what(line))
            .map(|at| from + at)
    };
    let in_segment = |line: &str| line.contains("segment-");
    let write = find(0, &|line| {
        line.contains("write") && in_segment(line) && line.contains("the traced entry")
    })
    .unwrap_or_else(|| panic!("the record is never written:\n{trace}"));
    let sync = find(write, &|line| {
        line.contains("fdatasync(") && in_segment(line)
    })
    .unwrap_or_else(|| panic!("the record is never synced:\n{trace}"));
    let ack = find(0, &|line| {
        line.contains("acked ") && line.contains("the traced entry") && !in_segment(line)
    })
    .unwrap_or_else(|| panic!("the append is never acknowledged:\n{trace}"));
    let synced = if lines[sync].contains("unfinished") {
        let thread = lines[sync].split_whitespace().next().unwrap_or_default();
        find(sync + 1, &|line| {
            line.starts_with(thread) && line.contains("fdatasync resumed")
        })
        .expect("the sync ends")
    } else {
        sync
    };
    assert!(
        write < sync && synced < ack,
        "acknowledged before it was durable:\n{trace}"
    );
    assert!(
        lines[synced].trim_end().ends_with("= 0"),
        "the sync failed: {}",
        lines[synced]
    );
}
