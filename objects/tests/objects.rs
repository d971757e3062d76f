//! Handles as applications use them, over the memory log.

mod support;

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use milonga_objects::{
    Counter, Handle, Map, MapState, ObjectKind, OpenError, Outcome, Queue, ReadError, Replica,
    ReplicaOptions, Settled, Snapshot, Ticket, Tx, Update, UpdateError, View,
};
use milonga_protocol::memory::AppendFault;
use milonga_protocol::{AppendError, MemoryLog, StreamId};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use support::{replica, replica_with, settle_down, short, spawn};

assert_impl_all!(Replica: Send, Sync, Clone, std::fmt::Debug);
assert_impl_all!(Map<String, u64>: Send, Sync, Clone, std::fmt::Debug);
assert_impl_all!(Counter: Send, Sync, Clone);
assert_impl_all!(Queue<String>: Send, Sync, Clone);
assert_impl_all!(Handle<MapState<u64, u64>>: Send, Sync, Clone);
assert_impl_all!(Update<Option<u64>>: Send, Sync, Unpin);
assert_impl_all!(milonga_objects::Pop<u64>: Send, Sync, Unpin);
assert_impl_all!(Snapshot: Send, Sync, Clone);
assert_impl_all!(View<MapState<u64, u64>>: Send, Sync, Clone);
assert_impl_all!(Ticket: Send, Sync, Clone);
assert_impl_all!(UpdateError: Send, Sync, std::error::Error, Clone);
assert_impl_all!(Tx: Send);
assert_not_impl_any!(Tx: Clone);

#[tokio::test(start_paused = true)]
async fn outputs_and_positions_are_those_of_apply() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<String, u64>("map").await.unwrap();
    assert_eq!(map.insert("k".into(), 1).await.unwrap(), None);
    let (old, position) = map.insert("k".into(), 2).with_position().await.unwrap();
    assert_eq!(old, Some(1));
    let (value, read_at) = map.get_with_position("k").await.unwrap();
    assert_eq!(value, Some(2));
    assert!(read_at > position);
    assert_eq!(map.remove("k".into()).await.unwrap(), Some(2));
    assert_eq!(map.remove("k".into()).await.unwrap(), None);
    assert!(map.is_empty().await.unwrap());

    let queue = a.queue::<u32>("queue").await.unwrap();
    let (first, position) = queue.push(7).with_position().await.unwrap();
    assert_eq!(first.position, position);
    let second = queue.push(8).await.unwrap();
    assert!(second > first);
    assert_eq!(queue.len().await.unwrap(), 2);
    assert_eq!(queue.peek().unwrap(), Some(7));
    assert_eq!(queue.pop().await.unwrap(), Some(7));
    assert_eq!(queue.pop().await.unwrap(), Some(8));
    assert_eq!(queue.pop().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn another_replica_sees_what_returned() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let here = a.map::<u64, String>("map").await.unwrap();
    let there = b.map::<u64, String>("map").await.unwrap();
    for n in 0..50 {
        here.insert(n, n.to_string()).await.unwrap();
        assert_eq!(there.get(&n).await.unwrap(), Some(n.to_string()));
    }
    assert_eq!(there.len().await.unwrap(), 50);
    let entries: Vec<_> = there.entries().await.unwrap().map(|(k, _)| k).collect();
    assert_eq!(entries, (0..50).collect::<Vec<_>>());
    assert_eq!(here.peek(&3).unwrap().as_deref(), Some("3"));
}

#[tokio::test(start_paused = true)]
async fn a_name_keeps_its_type() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    a.map::<String, i64>("name").await.unwrap();
    let error = b.counter("name").await.unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(
        error.to_string(),
        "\"name\" is a map<str, i64>, not a counter; open it as what it is, or use another name"
    );
    let error = b.map::<String, String>("name").await.unwrap_err();
    assert!(error.to_string().contains("not a map<str, str>"), "{error}");
    // Two types of Rust under one name of an encoding, in one process.
    a.map::<u8, u32>("numbers").await.unwrap();
    let error = a.map::<u8, u16>("numbers").await.unwrap_err();
    assert!(matches!(error, OpenError::Type { .. }), "{error}");
    assert!(matches!(
        a.counter("").await.unwrap_err(),
        OpenError::Name { size: 0, .. }
    ));
    let names: Vec<_> = b.directory().await.unwrap();
    let names: Vec<_> = names
        .iter()
        .map(|info| (&*info.name, info.stream, info.kind.to_string()))
        .collect();
    assert_eq!(
        names,
        [
            ("name", StreamId(16), "map<str, i64>".to_owned()),
            ("numbers", StreamId(18), "map<u8, postcard>".to_owned())
        ]
    );
    let _: ObjectKind = b.directory().await.unwrap().remove(0).kind;
}

#[tokio::test(start_paused = true)]
async fn concurrent_openings_register_a_name_once() {
    let log = MemoryLog::new();
    let replicas: Vec<_> = (1..=4).map(|writer| replica(&log, writer)).collect();
    let opened = replicas
        .iter()
        .flat_map(|r| [r.counter("one"), r.counter("one")]);
    let counters = futures_util::future::try_join_all(opened).await.unwrap();
    for counter in &counters {
        counter.add(1).await.unwrap();
    }
    assert_eq!(counters[0].get().await.unwrap(), 8);
    assert_eq!(replicas[0].directory().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn records_of_concurrent_tasks_share_entries_and_keep_each_handles_order() {
    let log = MemoryLog::new();
    support::jitter(&log, 3);
    let a = replica(&log, 1);
    let map = a.map::<u64, u64>("map").await.unwrap();
    let queue = a.queue::<u64>("queue").await.unwrap();
    let pushes = (0..2_000).map(|n| queue.push(n));
    let inserts = (0..2_000).map(|n| {
        let map = map.clone();
        async move { map.insert(n, n).await }
    });
    let (pushed, inserted) = tokio::join!(
        futures_util::future::try_join_all(pushes),
        futures_util::future::try_join_all(inserts)
    );
    let keys = pushed.unwrap();
    inserted.unwrap();
    assert!(keys.is_sorted(), "one handle, one order");
    let entries = a.applied().0;
    assert!(entries < 100, "{entries} entries for 4,000 records");
    let b = replica(&log, 2);
    let there = b.queue::<u64>("queue").await.unwrap();
    let snapshot = b.snapshot().await.unwrap();
    let items: Vec<_> = snapshot
        .of(&there)
        .unwrap()
        .iter()
        .map(|(_, n)| *n)
        .collect();
    assert_eq!(items, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn updates_of_one_handle_keep_their_order_while_appends_overtake_each_other() {
    let log = MemoryLog::new();
    support::jitter(&log, 4);
    let a = replica(&log, 1);
    let queue = a.queue::<u64>("queue").await.unwrap();
    let mut pushes: Vec<_> = (0..600).map(|n| queue.push(n)).collect();
    for three in pushes.chunks_mut(3) {
        for push in three {
            assert!(futures_util::poll!(push).is_pending());
        }
        support::pause(1).await;
    }
    let keys = futures_util::future::join_all(pushes).await;
    assert!(keys.into_iter().map(Result::unwrap).is_sorted());
    assert!(a.applied().0 > 10, "many entries");
}

#[tokio::test(start_paused = true)]
async fn a_future_dropped_before_its_first_poll_sends_nothing_and_later_takes_effect_once() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let counter = a.counter("counter").await.unwrap();
    drop(counter.add(1));
    let mut polled = counter.add(10);
    assert!(futures_util::poll!(&mut polled).is_pending());
    drop(polled);
    settle_down().await;
    assert_eq!(counter.get().await.unwrap(), 10);
    a.close().await;
}

#[tokio::test(start_paused = true)]
async fn updates_wait_for_room_in_order_and_dropped_ones_are_not_sent() {
    let log = MemoryLog::new();
    let mut options = short();
    options.queue_bytes = 1_000;
    let a = replica_with(&log, 1, options);
    let queue = a.queue::<u64>("queue").await.unwrap();
    let mut pushes: Vec<_> = (0..100).map(|n| queue.push(n)).collect();
    for push in &mut pushes {
        assert!(futures_util::poll!(push).is_pending());
    }
    drop(pushes.drain(50..60));
    let keys = futures_util::future::try_join_all(pushes).await.unwrap();
    assert!(keys.is_sorted());
    let snapshot = a.snapshot().await.unwrap();
    let items: Vec<_> = snapshot
        .of(&queue)
        .unwrap()
        .iter()
        .map(|(_, n)| *n)
        .collect();
    let expected: Vec<_> = (0..50).chain(60..100).collect();
    assert_eq!(items, expected);
}

#[tokio::test(start_paused = true)]
async fn a_pop_whose_future_was_dropped_hands_its_item_to_the_next() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let queue = a.queue::<u64>("queue").await.unwrap();
    for n in 1..=3 {
        queue.push(n).await.unwrap();
    }
    let mut dropped = queue.pop();
    assert!(futures_util::poll!(&mut dropped).is_pending());
    drop(dropped);
    settle_down().await;
    assert_eq!(queue.len().await.unwrap(), 2, "it was popped");
    let mut late = queue.pop();
    assert!(
        futures_util::poll!(&mut late).is_ready(),
        "handed on at once"
    );
    drop(late);
    let mut done = Box::pin(queue.clone().pop());
    assert!(futures_util::poll!(&mut done).is_pending());
    settle_down().await;
    drop(done);
    assert_eq!(
        queue.clone().pop_wait().await.unwrap(),
        2,
        "finished, never looked at"
    );
    assert_eq!(queue.pop().await.unwrap(), Some(3));
    assert_eq!(queue.pop().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_pop_wakes_for_a_push_of_another_replica() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let queue = a.queue::<u64>("queue").await.unwrap();
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let queue = queue.clone();
            spawn(async move { queue.pop_wait().await.unwrap() })
        })
        .collect();
    settle_down().await;
    let before = a.applied();
    settle_down().await;
    assert_eq!(a.applied(), before, "no pops while there is nothing");
    let other = b.queue::<u64>("queue").await.unwrap();
    for n in 0..20 {
        other.push(n).await.unwrap();
    }
    let mut popped = Vec::new();
    for waiter in waiters {
        popped.push(waiter.await.unwrap());
    }
    popped.sort_unstable();
    assert_eq!(popped, (0..20).collect::<Vec<_>>());
    assert!(a.sync().await.unwrap().0 < 80, "few useless pops");
}

#[tokio::test(start_paused = true)]
async fn snapshots_do_not_move_and_cover_all_objects() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<u64, u64>("map").await.unwrap();
    let counter = a.counter("counter").await.unwrap();
    map.insert(1, 1).await.unwrap();
    counter.add(1).await.unwrap();
    let snapshot = a.snapshot().await.unwrap();
    map.insert(1, 2).await.unwrap();
    counter.add(1).await.unwrap();
    assert_eq!(snapshot.of(&map).unwrap().get(&1), Some(&1));
    assert_eq!(snapshot.of(&counter).unwrap().value(), 1);
    assert!(snapshot.position() < a.applied());
    let later = a.queue::<u64>("later").await.unwrap();
    let error = snapshot.of(&later).unwrap_err();
    assert!(matches!(error, ReadError::NotInSnapshot { .. }), "{error}");
    let fresh = a.snapshot().await.unwrap();
    assert!(fresh.of(&later).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_opened_late_equals_one_opened_early() {
    let log = MemoryLog::new();
    support::jitter(&log, 5);
    // Loading takes many reads, while playback goes on.
    let mut options = ReplicaOptions::default();
    options.part_bytes = 4_000;
    let (a, b) = (replica(&log, 1), replica_with(&log, 2, options));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let other = a.map::<u64, u64>("other").await.unwrap();
    let sum = a.counter("sum").await.unwrap();
    let first = b.counter("first").await.unwrap();
    let runs = AtomicU64::new(0);
    let increment = async |n: u64| {
        a.transaction(async |tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let old = tx.get(&map, &(n % 3)).unwrap_or(0);
            tx.insert(&map, n % 3, old + 1);
            tx.insert(&other, n, old);
            tx.add(&sum, 1);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap()
        .committed()
    };
    for n in 0..400_u64 {
        // Many of them abort, so that verdicts matter.
        let all = (0..8).map(|task| increment(n * 8 + task));
        futures_util::future::join_all(all).await;
        if n == 200 {
            first.add(1).await.unwrap();
        }
    }
    // `b` has played everything before it opens the maps, and goes on while they are loaded.
    first.add(1).await.unwrap();
    let busy = async {
        for n in 0..30 {
            futures_util::future::join_all((0..8).map(|task| increment(9_000 + n * 8 + task)))
                .await;
            first.add(1).await.unwrap();
        }
    };
    let (late, late_too, late_sum, ()) = tokio::join!(
        b.map::<u64, u64>("map"),
        b.map::<u64, u64>("other"),
        b.counter("sum"),
        busy
    );
    for (late, early) in [(late.unwrap(), &map), (late_too.unwrap(), &other)] {
        let early: Vec<_> = early.entries().await.unwrap().collect();
        assert_eq!(late.entries().await.unwrap().collect::<Vec<_>>(), early);
    }
    let late_sum = late_sum.unwrap().get().await.unwrap();
    assert_eq!(late_sum, sum.get().await.unwrap());
    let runs = runs.into_inner();
    assert!(
        runs > 4_500,
        "{runs} runs of 3,250 transactions: few aborted"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_settled_with_its_ticket() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let counter = a.counter("counter").await.unwrap();

    log.set_faults(Some(std::sync::Arc::new(|_| AppendFault::UnknownLost)));
    let error = counter.add(1).await.unwrap_err();
    let UpdateError::OutcomeUnknown { ticket, .. } = &error else {
        panic!("{error}");
    };
    assert!(!error.is_retryable());
    assert_eq!(error.object(), Some("counter"));
    log.set_faults(None);
    assert_eq!(a.settle::<i64>(ticket).await, Settled::Unknown);

    // It was written and played before the answer: no unknown outcome at all.
    log.set_faults(Some(std::sync::Arc::new(|_| AppendFault::UnknownWritten)));
    assert_eq!(counter.add(5).await.unwrap(), 5);

    let refused = AppendError::Unavailable {
        what: "a test".into(),
        waited_ms: 1,
    };
    log.set_faults(Some(std::sync::Arc::new(move |_| {
        AppendFault::Refused(refused.clone())
    })));
    let error = counter.add(1).await.unwrap_err();
    assert!(error.is_retryable());
    log.set_faults(None);
    assert_eq!(counter.get().await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_comes_after_the_deadline_is_settled() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let queue = a.queue::<u64>("queue").await.unwrap();
    // The append takes effect but does not answer.
    let held = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let gate = std::sync::Arc::clone(&held);
    log.set_gate(Some(std::sync::Arc::new(move |at| {
        let gate = std::sync::Arc::clone(&gate);
        Box::pin(async move {
            if at == milonga_protocol::memory::Gate::BeforeAppend {
                let _ = gate.acquire().await;
            }
        })
    })));
    let error = queue.push(3).await.unwrap_err();
    let UpdateError::OutcomeUnknown { ticket, waited_ms } = error else {
        panic!("{error}");
    };
    assert_eq!(waited_ms, 200);
    assert_eq!(a.settle::<u64>(&ticket).await, Settled::Unknown);
    held.add_permits(1_000);
    let settled = a.settle::<milonga_objects::ItemKey>(&ticket).await;
    let Settled::Applied {
        output: Some(key),
        position,
    } = settled
    else {
        panic!("{settled:?}");
    };
    assert_eq!(key.position, position);
    assert_eq!(queue.len().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn deadlines_end_every_wait() {
    let log = MemoryLog::new().fill_holes(false);
    let a = replica_with(&log, 1, short());
    let counter = a.counter("counter").await.unwrap();
    let hole = log.take_hole(&[counter_stream(&counter)]);
    assert_eq!(
        counter.get().await,
        Ok(0),
        "nothing that returned lies behind the hole"
    );
    let error = counter.add(1).await.unwrap_err();
    assert!(
        matches!(error, UpdateError::OutcomeUnknown { .. }),
        "{error}"
    );
    let error = counter.get().await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }) && error.is_retryable());
    let error = a
        .transaction(async |tx| Ok::<_, Infallible>(tx.value(&counter)))
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    // When the hole is decided everything goes on.
    log.handle(milonga_protocol::WriterId(9))
        .settle(hole, hole.next())
        .await
        .unwrap();
    assert_eq!(counter.get().await.unwrap(), 1);
}

fn counter_stream(counter: &Counter) -> StreamId {
    milonga_objects::Opened::handle(counter).stream()
}

#[tokio::test(start_paused = true)]
async fn too_large_updates_and_closed_replicas_say_so() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<u64, Vec<u8>>("map").await.unwrap();
    let error = map.insert(1, vec![0; 2 << 20]).await.unwrap_err();
    assert!(matches!(error, UpdateError::TooLarge { .. }), "{error}");
    let waiting = map.insert(1, vec![1]);
    let mut sent = map.insert(2, vec![2]);
    assert!(futures_util::poll!(&mut sent).is_pending());
    assert_eq!(a.close().await, 0);
    assert_eq!(
        sent.await.unwrap(),
        None,
        "close flushes what was submitted"
    );
    assert_eq!(waiting.await.unwrap_err(), UpdateError::Closed);
    assert_eq!(map.get(&1).await.unwrap_err(), ReadError::Closed);
    assert!(a.counter("other").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn closing_says_how_much_was_not_flushed() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let counter = a.counter("counter").await.unwrap();
    let slow = support::TestEnv::seeded(5);
    log.set_gate(Some(std::sync::Arc::new(move |_| {
        slow.sleep(std::time::Duration::from_secs(60))
    })));
    // One is in flight, and two wait behind it.
    let mut adds: Vec<_> = (0..3).map(|_| counter.add(1)).collect();
    for add in &mut adds {
        assert!(futures_util::poll!(add).is_pending());
    }
    assert_eq!(a.close().await, 3);
    for add in adds {
        assert!(add.await.is_err());
    }
    assert_eq!(a.close().await, 0, "it said so before");
}

#[tokio::test(start_paused = true)]
async fn more_objects_than_a_tail_check_names_still_work() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let mut here = Vec::new();
    let mut there = Vec::new();
    for n in 0..70 {
        here.push(a.counter(&format!("counter-{n}")).await.unwrap());
        there.push(b.counter(&format!("counter-{n}")).await.unwrap());
    }
    // One burst: more streams than an entry may have.
    let adds = here.iter().map(|counter| counter.add(1));
    futures_util::future::try_join_all(adds).await.unwrap();
    for counter in &there {
        assert_eq!(counter.get().await.unwrap(), 1);
    }
    let error = a
        .transaction(async |tx| {
            here.iter().for_each(|counter| tx.add(counter, 1));
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "a transaction that writes 70 objects is over the limit of 64; split it"
    );
    let outcome = a
        .transaction(async |tx| {
            here[..64].iter().for_each(|counter| tx.add(counter, 1));
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    assert_eq!(there[63].get().await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_works_on_several_threads() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let there = b.map::<u64, u64>("map").await.unwrap();
    let writers: Vec<_> = (0..8_u64)
        .map(|task| {
            let map = map.clone();
            spawn(async move {
                for n in 0..200 {
                    assert_eq!(map.insert(task * 1_000 + n, n).await.unwrap(), None);
                    assert_eq!(map.get(&(task * 1_000 + n)).await.unwrap(), Some(n));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(there.len().await.unwrap(), 1_600);
}
