//! The world is what it claims to be: the same bytes for the same seed, in every process.

use std::process::Command;

use milonga_tests::world::{Plan, run};

/// Seeds that are run in two processes each.
const SEEDS: u64 = 6;

fn trace_of(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_world"))
        .args(["--seed", &seed.to_string()])
        .output()
        .expect("the world runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let trace = text.lines().find(|line| line.starts_with("trace "));
    trace.expect("the hash is printed").to_owned()
}

#[test]
fn a_seed_is_the_same_in_two_processes() {
    let mut all = Vec::new();
    for seed in 1_000..1_000 + SEEDS {
        let (first, second) = (trace_of(seed), trace_of(seed));
        assert_eq!(first, second, "seed {seed}");
        all.push(first);
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len() as u64, SEEDS, "different seeds differ");
}

#[test]
fn a_seed_over_quic_is_the_same_in_two_processes_and_nothing_fails() {
    let seed = (1_000..).find(|seed| Plan::draw(*seed).quic).expect("some");
    assert_eq!(trace_of(seed), trace_of(seed), "seed {seed}");
    let mut plan = Plan::draw(seed);
    plan.faults.clear();
    assert_eq!(run(&plan, seed, false).failure, None);
}

#[test]
fn a_changed_delay_changes_the_trace() {
    let plan = Plan::draw(1_000);
    let mut slower = plan.clone();
    slower.network.delay += 1_000;
    assert_eq!(run(&plan, 1_000, false).hash, run(&plan, 1_000, true).hash);
    assert_ne!(
        run(&plan, 1_000, false).hash,
        run(&slower, 1_000, false).hash
    );
}
