//! loom's view of syncs: who waits for a check, and who makes it.

use milonga_protocol::sync::atomic::{AtomicU64, Ordering};
use milonga_protocol::sync::{Still, Weakness, block_on, explore, find, thread};

use super::*;

fn tail(end: u64) -> Tail {
    Tail::new(Epoch(1), Position(end), Position::ZERO, Vec::new())
}

/// One waits for a target while the player reaches it. What was applied is then seen.
fn gate() {
    let applied = Arc::new(AtomicU64::new(0));
    let round = Arc::new(Round::new(Time::default()));
    round.want(Reach::Hosted);
    let player = {
        let (applied, round) = (Arc::clone(&applied), Arc::clone(&round));
        thread::spawn(move || {
            let playing = Playing {
                round,
                epoch: Epoch(1),
                targets: Targets::new(&tail(7)),
            };
            assert!(!playing.open_gates(Position(6)));
            applied.store(7, Ordering::Relaxed);
            assert!(playing.open_gates(Position(7)));
        })
    };
    assert_eq!(block_on(round.pass(Reach::Hosted)), Ok(()));
    let seen = applied.load(Ordering::Relaxed);
    assert_eq!(seen, 7, "passed before it was applied");
    player.join().expect("no panic");
}

#[test]
fn who_passes_a_gate_sees_what_opened_it() {
    explore(3, gate);
}

#[test]
fn a_gate_that_orders_nothing_is_found() {
    find(
        Weakness::RelaxedOnce,
        "passed before it was applied",
        3,
        gate,
    );
}

#[test]
fn a_gate_without_a_second_look_is_found() {
    find(Weakness::LateWaiters, "deadlock", 3, gate);
}

/// A reader syncs, and one that has just seen something written does: it gets what was written before it asked.
fn checks() {
    let syncs = Arc::new(Syncs::new(Arc::new(Still(Time::default())), Duration::MAX));
    let (written, played) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let checker = {
        let (syncs, written, played) = (syncs.clone(), written.clone(), played.clone());
        thread::spawn(move || {
            while syncs.check().is_ok() {
                if let Some(round) = syncs.close_forming() {
                    let end = written.load(Ordering::Acquire);
                    syncs.checked(round, &tail(end), Position::ZERO);
                    played.store(end, Ordering::Relaxed);
                    syncs.played(Position(end));
                } else {
                    block_on(syncs.begun.notified());
                }
            }
        })
    };
    let reader = {
        let syncs = syncs.clone();
        thread::spawn(move || {
            block_on(syncs.sync(Reach::Hosted)).expect("not stopped yet");
        })
    };
    written.store(5, Ordering::Release);
    block_on(syncs.sync(Reach::Hosted)).expect("not stopped yet");
    let seen = played.load(Ordering::Relaxed);
    assert_eq!(seen, 5, "a check from before it was asked for");
    reader.join().expect("no panic");
    syncs.stop(&ReadError::Closed);
    syncs.begun.notify_one();
    checker.join().expect("no panic");
    assert_eq!(block_on(syncs.sync(Reach::Hosted)), Err(ReadError::Closed));
}

#[test]
fn a_sync_sees_what_was_written_before_it() {
    explore(2, checks);
}

#[test]
fn joining_a_check_that_was_sent_is_found() {
    find(
        Weakness::JoinSentChecks,
        "a check from before it was asked for",
        2,
        checks,
    );
}

#[test]
fn a_checker_that_is_not_woken_is_found() {
    find(Weakness::NoPermits, "deadlock", 2, checks);
}

/// Stopping while somebody joins: nobody waits for ever.
fn stopping() {
    let syncs = Arc::new(Syncs::new(Arc::new(Still(Time::default())), Duration::MAX));
    let stopper = {
        let syncs = syncs.clone();
        thread::spawn(move || syncs.stop(&ReadError::Closed))
    };
    let checker = {
        let syncs = syncs.clone();
        thread::spawn(move || {
            if let Some(round) = syncs.close_forming() {
                syncs.checked(round, &tail(5), Position::ZERO);
            }
        })
    };
    assert_eq!(block_on(syncs.sync(Reach::Hosted)), Err(ReadError::Closed));
    stopper.join().expect("no panic");
    checker.join().expect("no panic");
}

#[test]
fn whoever_joins_is_told_of_the_end() {
    explore(3, stopping);
}

#[test]
fn an_end_that_misses_who_is_about_to_wait_is_found() {
    find(Weakness::LateWaiters, "deadlock", 3, stopping);
}
