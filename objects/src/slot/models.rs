//! loom's view of slots: who waits for an outcome, who brings it, who gives up, who inherits.

use std::future::poll_fn;

use milonga_protocol::sync::atomic::{AtomicUsize, Ordering};
use milonga_protocol::sync::{Weakness, block_on, explore, find, thread};

use super::*;

fn applied() -> Outcome {
    Outcome::Applied {
        position: Position(3),
        output: Some(Box::new(7_i64)),
    }
}

fn waiting() {
    let slot = Slot::new(None, None);
    let player = {
        let slot = Arc::clone(&slot);
        thread::spawn(move || slot.resolve(applied()))
    };
    let outcome = block_on(poll_fn(|cx| slot.poll(cx)));
    let Ok(Outcome::Applied { output, .. }) = outcome else {
        panic!("it was applied");
    };
    assert!(output.is_some_and(|output| output.is::<i64>()));
    player.join().expect("no panic");
}

#[test]
fn an_outcome_reaches_who_waits() {
    explore(3, waiting);
}

#[test]
fn looking_and_waiting_in_two_steps_is_found() {
    find(Weakness::SplitPoll, "deadlock", 3, waiting);
}

/// The deadline passes while the outcome comes: told either way, the output is given once, by the update or later.
#[test]
fn an_output_is_given_once_also_to_who_gave_up() {
    explore(3, || {
        let slot = Slot::new(None, None);
        let player = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.resolve(applied()))
        };
        let sweeper = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || slot.give_up(10))
        };
        let settled = match block_on(poll_fn(|cx| slot.poll(cx))) {
            Ok(Outcome::Applied { output, .. }) => output.is_some(),
            Err(UpdateError::OutcomeUnknown { ticket, .. }) => {
                let settled = block_on(ticket.0.settled::<i64>());
                matches!(
                    settled,
                    Settled::Applied {
                        output: Some(7),
                        ..
                    }
                )
            }
            _ => false,
        };
        assert!(settled);
        player.join().expect("no panic");
        sweeper.join().expect("no panic");
    });
}

fn inheriting() {
    let slot = Slot::new(None, None);
    let (given, expected) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(1)));
    let player = {
        let slot = Arc::clone(&slot);
        thread::spawn(move || slot.resolve(applied()))
    };
    let sweeper = {
        let slot = Arc::clone(&slot);
        thread::spawn(move || slot.give_up(10))
    };
    let heir = {
        let given = Arc::clone(&given);
        move |_| {
            given.fetch_add(1, Ordering::Relaxed);
        }
    };
    slot.bequeath(Box::new(heir), Box::new(Expected(Arc::clone(&expected))));
    player.join().expect("no panic");
    sweeper.join().expect("no panic");
    assert_eq!(given.load(Ordering::Relaxed), 1, "inherited once");
    assert_eq!(expected.load(Ordering::Relaxed), 0, "not expected any more");
}

struct Expected(Arc<AtomicUsize>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn an_heir_inherits_once() {
    explore(3, inheriting);
}
