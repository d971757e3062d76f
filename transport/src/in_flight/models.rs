//! loom's view of the table: callers, answers, the sweeper, the end.

use milonga_protocol::sync::{Still, block_on, explore, find, thread};

use super::*;

const NOW: Time = Time::from_start(Duration::from_secs(1));

fn why() -> Arc<str> {
    "gone".into()
}

/// A call is taken in while the sweeper sleeps until a later deadline: it ends at its own.
fn sweeping() {
    let table = Arc::new(InFlight::default());
    let sweeper = {
        let table = table.clone();
        thread::spawn(move || block_on(table.sweep(Arc::new(Still(NOW)))))
    };
    let later = table
        .register(NOW.after(Duration::from_secs(9)))
        .expect("open");
    let due = table.register(NOW).expect("open");
    assert_eq!(block_on(due), Err(NoAnswer::TimedOut));
    table.close(&why());
    assert_eq!(block_on(later), Err(NoAnswer::Dropped(why())));
    sweeper.join().expect("no panic");
}

#[test]
fn an_earlier_deadline_wakes_the_sweeper() {
    explore(2, sweeping);
}

#[test]
fn a_sweeper_that_is_not_woken_is_found() {
    find(Weakness::NoPermits, "deadlock", 2, sweeping);
}

/// An answer, the end and a new call at once: each call gets one answer, its own.
fn answering() {
    let table = Arc::new(InFlight::default());
    let first = table.register(NOW).expect("open");
    let number = first.number();
    let reader = {
        let table = table.clone();
        thread::spawn(move || {
            let mut answers = vec![(number, Ok(Message::default()))];
            table.complete(&mut answers);
            assert!(answers.is_empty());
        })
    };
    // Given up: its slot is used again.
    drop(first);
    let second = table.register(NOW).expect("open");
    let closer = {
        let table = table.clone();
        thread::spawn(move || table.close(&why()))
    };
    let answer = block_on(second);
    assert_eq!(answer, Err(NoAnswer::Dropped(why())), "another's answer");
    reader.join().expect("no panic");
    closer.join().expect("no panic");
    assert_eq!(table.register(NOW).map(|_| ()), Err(why()));
}

#[test]
fn no_call_gets_the_answer_of_another() {
    explore(3, answering);
}

#[test]
fn slots_without_generations_are_found() {
    find(Weakness::ForgetBySlot, "another's answer", 3, answering);
}
