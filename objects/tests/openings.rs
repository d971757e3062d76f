//! Openings end by their deadline, whatever they wait for.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use milonga_objects::{OpenError, ReadError, Replica};
use milonga_protocol::{Env, MemoryLog};
use support::{TestEnv, pause, replica, replica_with, short, spawn};

/// Of [`short`], and how late a timer may be.
const DEADLINE: u64 = 200;
const LATE: u64 = 20;

/// Every call of the log takes at least so many milliseconds.
fn slow(log: &MemoryLog, millis: u64) {
    let env = TestEnv::seeded(9);
    log.set_gate(Some(Arc::new(move |_| {
        env.sleep(Duration::from_millis(millis))
    })));
}

fn is_late(error: &ReadError) -> bool {
    matches!(error, ReadError::Unavailable { waited_ms, .. } if *waited_ms == DEADLINE)
        && error.is_retryable()
}

fn opening_is_late(error: &OpenError) -> bool {
    assert!(error.is_retryable(), "{error:?}");
    matches!(error, OpenError::Read { source, .. } if is_late(source))
}

/// How long `call` takes.
async fn timed<T>(env: &dyn Env, call: impl Future<Output = T>) -> (T, u64) {
    let begun = env.now();
    let result = call.await;
    let took = env.now().since(begun);
    (result, u64::try_from(took.as_millis()).unwrap())
}

/// Whoever queues behind a call that hangs has a deadline of their own, from their own call on.
#[tokio::test(start_paused = true)]
async fn openings_that_queue_end_by_their_deadlines() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    slow(&log, 60_000);
    let call = |n: u64, a: Replica| {
        spawn(async move {
            let env = TestEnv::seeded(n);
            pause(n * 7).await;
            let (result, took) = timed(&*env, async {
                match n % 2 {
                    0 => a.counter("queued").await.map(drop).map_err(|error| {
                        assert!(opening_is_late(&error), "{error:?}");
                    }),
                    _ => a.directory().await.map(drop).map_err(|error| {
                        assert!(is_late(&error), "{error:?}");
                    }),
                }
            })
            .await;
            assert!(result.is_err(), "the log answers nothing");
            assert!(took <= DEADLINE + LATE, "call {n} took {took} ms");
        })
    };
    let calls: Vec<_> = (0..8).map(|n| call(n, a.clone())).collect();
    for call in calls {
        call.await.unwrap();
    }
    // A call that hung holds up nobody once the log answers.
    log.set_gate(None);
    a.counter("queued").await.unwrap();
}

/// Tail check, append, tail check, read: each of them is in time.
#[tokio::test(start_paused = true)]
async fn all_steps_of_an_opening_share_one_deadline() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let env = TestEnv::seeded(1);
    slow(&log, 75);
    let (opened, took) = timed(&*env, a.counter("new")).await;
    let error = opened.unwrap_err();
    assert!(opening_is_late(&error), "{error:?}");
    assert!(error.to_string().contains("new"), "{error}");
    assert!(took <= DEADLINE + LATE, "took {took} ms");
    log.set_gate(None);
    a.counter("new").await.unwrap();
    assert_eq!(a.directory().await.unwrap().len(), 1);
}

/// Else an object that takes longer to load than a deadline could never be opened.
#[tokio::test(start_paused = true)]
async fn what_was_loaded_by_the_deadline_is_kept() {
    let log = MemoryLog::new();
    let (a, mut options) = (replica(&log, 1), short());
    options.part_bytes = 1;
    let b = replica_with(&log, 2, options);
    let known = b.counter("known").await.unwrap();
    let late = a.counter("late").await.unwrap();
    for _ in 0..100 {
        late.add(1).await.unwrap();
    }
    // Its stream is played, and it is not open there.
    b.directory().await.unwrap();
    b.sync().await.unwrap();
    assert_eq!(known.peek().unwrap(), 0);
    slow(&log, 10);
    let env = TestEnv::seeded(2);
    let mut calls = 0;
    let opened = loop {
        calls += 1;
        assert!(calls < 20, "it never opens");
        let (opened, took) = timed(&*env, b.counter("late")).await;
        assert!(took <= DEADLINE + LATE, "took {took} ms");
        match opened {
            Ok(opened) => break opened,
            Err(error) => assert!(opening_is_late(&error), "{error:?}"),
        }
    };
    assert!(calls > 2, "it took a call only");
    assert_eq!(opened.get().await.unwrap(), 100);
}
