//! loom's view of the queues: who submits, who sends, who waits for the end.

use milonga_protocol::StreamId;
use milonga_protocol::sync::atomic::{AtomicU64, Ordering};
use milonga_protocol::sync::{Weakness, block_on, explore, find, thread};

use super::*;
use crate::replica::ReplicaOptions;
use crate::slot::Slot;

fn item(lane: u64) -> Item {
    Item {
        record: vec![0; 10],
        streams: vec![StreamId(16)],
        slot: Slot::new(None, None),
        lane,
        deadline: Time::default(),
    }
}

/// Two submit, one sends what there is, one waits until all of it was played.
fn flushing() {
    let submit = Arc::new(Submit::new(&ReplicaOptions::default(), 0));
    let played = Arc::new(AtomicU64::new(0));
    let sender = {
        let (submit, played) = (submit.clone(), played.clone());
        thread::spawn(move || {
            let mut sent = 0;
            while sent < 2 {
                let Some(batch) = submit.next_batch(&Limits::default()) else {
                    block_on(submit.wake.notified());
                    continue;
                };
                sent += batch.slots.len() as u64;
                submit.appended(&batch, &Ok(Position(sent)));
                played.store(sent, Ordering::Relaxed);
                assert!(submit.played(batch.tag).is_some());
            }
        })
    };
    let other = {
        let submit = submit.clone();
        thread::spawn(move || assert_eq!(submit.push(item(1)).expect("open"), None))
    };
    assert_eq!(submit.push(item(2)).expect("open"), None);
    block_on(submit.flushed());
    let seen = played.load(Ordering::Relaxed);
    assert!(seen >= 1, "flushed before it was played");
    other.join().expect("no panic");
    sender.join().expect("no panic");
    assert!(submit.lock().is_idle());
}

#[test]
fn what_was_submitted_is_sent_and_flushed() {
    explore(2, flushing);
}

#[test]
fn a_sender_that_is_not_woken_is_found() {
    find(Weakness::NoPermits, "deadlock", 2, flushing);
}

#[test]
fn a_flush_that_looks_once_is_found() {
    find(Weakness::LateWaiters, "deadlock", 2, flushing);
}
