//! Event sequences that once went wrong.

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use milonga_objects::{MapState, OpenError, ReadError, ReplicaOptions, UpdateError};
use milonga_protocol::memory::{AppendFault, Gate};
use milonga_protocol::{BoxFuture, MemoryLog, WriterId};
use support::{pause, replica, replica_with, settle_down, short, spawn};

/// What `task` ends with; it has to end by itself, long after every deadline at the latest.
async fn ended<T>(task: tokio::task::JoinHandle<T>) -> T {
    pause(120_000).await;
    assert!(task.is_finished(), "nobody answers it");
    task.await.expect("it does not panic")
}

/// Lets calls at `gate` wait while the flag is up.
fn hold(log: &MemoryLog, gate: Gate) -> Arc<AtomicBool> {
    let held = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&held);
    log.set_gate(Some(Arc::new(move |at| -> BoxFuture<'static, ()> {
        let flag = Arc::clone(&flag);
        Box::pin(async move {
            while at == gate && flag.load(Ordering::Relaxed) {
                pause(1).await;
            }
        })
    })));
    held
}

/// A part read ahead for a smaller target was taken for the answer to a larger one, as if the epoch had ended.
#[tokio::test(start_paused = true)]
async fn a_part_read_ahead_for_a_smaller_target_ends_no_later_sync() {
    let log = MemoryLog::new();
    let mut options = ReplicaOptions::default();
    options.part_bytes = 1;
    let (writer, reader) = (replica(&log, 1), replica_with(&log, 2, options));
    let there = writer.counter("counter").await.unwrap();
    let here = reader.counter("counter").await.unwrap();
    assert_eq!(here.get().await.unwrap(), 0);
    there.add(1).await.unwrap();
    // Held is the first of two parts. Behind it the second will be read ahead, for the target of now.
    let held = hold(&log, Gate::BeforeRead);
    let first = spawn({
        let here = here.clone();
        async move { here.get().await.unwrap() }
    });
    settle_down().await;
    let added = spawn(async move { there.add(1).await.unwrap() });
    settle_down().await;
    let second = spawn(async move { here.get().await.unwrap() });
    settle_down().await;
    held.store(false, Ordering::Relaxed);
    assert!(first.await.unwrap() >= 1);
    assert_eq!(added.await.unwrap(), 2);
    assert_eq!(
        second.await.unwrap(),
        2,
        "it began after the second was written"
    );
}

#[tokio::test(start_paused = true)]
async fn closing_answers_those_whose_tail_check_is_under_way() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let counter = a.counter("counter").await.unwrap();
    let _held = hold(&log, Gate::BeforeTail);
    let checking = spawn({
        let counter = counter.clone();
        async move { counter.get().await }
    });
    settle_down().await;
    let forming = spawn(async move { counter.get().await });
    settle_down().await;
    a.close().await;
    assert_eq!(ended(checking).await, Err(ReadError::Closed));
    assert_eq!(ended(forming).await, Err(ReadError::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_loaded_when_the_replica_ends_is_refused() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let early = a.counter("early").await.unwrap();
    let late = a.counter("late").await.unwrap();
    // Enough for loading to be worth a round of its own.
    for _ in 0..20 {
        late.add(1).await.unwrap();
    }
    early.add(1).await.unwrap();
    // Played without being hosted, so it has to be loaded.
    assert_eq!(b.counter("early").await.unwrap().get().await.unwrap(), 1);
    let held = hold(&log, Gate::BeforeRead);
    let opening = spawn({
        let b = b.clone();
        async move { b.counter("late").await.err() }
    });
    settle_down().await;
    b.close().await;
    held.store(false, Ordering::Relaxed);
    let refused = ended(opening).await;
    assert!(
        matches!(
            refused,
            Some(OpenError::Read {
                source: ReadError::Closed,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn updates_of_unknown_outcome_make_room_for_others() {
    let log = MemoryLog::new();
    let mut options = short();
    options.queue_bytes = 1_000;
    let a = replica_with(&log, 1, options);
    let counter = a.counter("counter").await.unwrap();
    for fault in [AppendFault::UnknownLost, AppendFault::UnknownWritten] {
        log.set_faults(Some(Arc::new(move |_| fault.clone())));
        for _ in 0..20 {
            // One of them was written, and is found by playing on.
            let _ = counter.add(1).await;
        }
    }
    log.set_faults(None);
    let adds = (0..20).map(|_| counter.clone()).collect::<Vec<_>>();
    let adds = adds.iter().map(|counter| counter.add(1));
    for added in futures_util::future::join_all(adds).await {
        added.expect("there is room again");
    }
    assert_eq!(counter.get().await.unwrap(), 40);
    a.close().await;
}

/// A pop whose outcome nobody will ever know must not count as taking an item for ever.
#[tokio::test(start_paused = true)]
async fn a_dropped_pop_of_unknown_outcome_hides_no_item() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let queue = a.queue::<u64>("queue").await.unwrap();
    queue.push(7).await.unwrap();
    log.set_faults(Some(Arc::new(|_| AppendFault::UnknownLost)));
    let mut lost = queue.pop();
    assert!(futures_util::poll!(&mut lost).is_pending());
    drop(lost);
    pause(2_000).await;
    log.set_faults(None);
    let popped = spawn(async move { queue.pop_wait().await });
    pause(2_000).await;
    assert!(popped.is_finished(), "one item, and nobody who takes it");
    assert_eq!(popped.await.unwrap(), Ok(7));
}

/// What a waiting pop waits for is read where it will be, not asked for again and again.
#[tokio::test(start_paused = true)]
async fn a_waiting_pop_does_not_ask_again_and_again_while_a_push_is_being_written() {
    let log = MemoryLog::new().fill_holes(false);
    let a = replica(&log, 1);
    let queue = a.queue::<u64>("queue").await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    log.set_gate(Some(Arc::new(move |at| -> BoxFuture<'static, ()> {
        count.fetch_add(usize::from(at == Gate::BeforeTail), Ordering::Relaxed);
        Box::pin(async {})
    })));
    let waiting = spawn({
        let queue = queue.clone();
        async move { queue.pop_wait().await }
    });
    settle_down().await;
    let hole = log.take_hole(&[milonga_objects::Opened::handle(&queue).stream()]);
    settle_down().await;
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < 10, "{asked} tail checks");
    assert!(!waiting.is_finished());
    assert!(log.write_hole(hole, WriterId(9), "rubbish").is_some());
    let ended = waiting.await.unwrap();
    assert!(matches!(ended, Err(UpdateError::Read { .. })), "{ended:?}");
}

/// The player waits for no reader's closure, and so a closure that reads again waits for nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn playback_goes_on_while_a_closure_reads() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<u64, u64>("map").await.unwrap();
    let counter = a.counter("counter").await.unwrap();
    map.insert(1, 1).await.unwrap();
    let map = a.object::<MapState<u64, u64>>("map").await.unwrap();
    let (sender, added) = std::sync::mpsc::channel();
    let inner = map.peek(|state| {
        let inner = counter.clone();
        spawn(async move { sender.send(inner.add(1).await).unwrap() });
        let added = added.recv_timeout(Duration::from_secs(20));
        (
            state.len(),
            added.expect("played meanwhile"),
            counter.peek(),
        )
    });
    assert_eq!(inner.unwrap(), (1, Ok(1), Ok(1)));
}

/// A tail check asks about the objects that were open when it was sent.
#[tokio::test(start_paused = true)]
async fn a_snapshot_includes_what_was_there_of_an_object_opened_meanwhile() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let _y = a.counter("y").await.unwrap();
    b.counter("x").await.unwrap().add(1).await.unwrap();
    // Only the check of the snapshot is held.
    let (first, held) = (AtomicBool::new(true), Arc::new(AtomicBool::new(true)));
    let flag = Arc::clone(&held);
    log.set_gate(Some(Arc::new(move |at| -> BoxFuture<'static, ()> {
        let mine = at == Gate::BeforeTail && first.swap(false, Ordering::Relaxed);
        let flag = Arc::clone(&flag);
        Box::pin(async move {
            while mine && flag.load(Ordering::Relaxed) {
                pause(1).await;
            }
        })
    })));
    let snapshot = spawn({
        let a = a.clone();
        async move { a.snapshot().await.unwrap() }
    });
    settle_down().await;
    let x = a.counter("x").await.unwrap();
    held.store(false, Ordering::Relaxed);
    let snapshot = snapshot.await.unwrap();
    let seen = snapshot.of(&x).map(|x| x.value());
    assert!(
        !matches!(seen, Ok(0)),
        "{seen:?} at {}",
        snapshot.position()
    );
}

/// Giving back what it has taken must not wake a transaction that waits for what others have taken.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_waits_for_queue_items_does_not_wake_itself() {
    let log = MemoryLog::new();
    support::jitter(&log, 3);
    let a = replica(&log, 1);
    let free = a.queue::<u64>("free").await.unwrap();
    let busy = a.queue::<u64>("busy").await.unwrap();
    free.push(1).await.unwrap();
    busy.push(1).await.unwrap();
    let holder = spawn({
        let (a, busy) = (a.clone(), busy.clone());
        async move {
            let taken = a.transaction(async |tx| {
                let got = tx.pop(&busy);
                pause(900).await;
                Ok::<_, Infallible>(got)
            });
            taken.await
        }
    });
    pause(100).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let waiter = spawn({
        let runs = Arc::clone(&runs);
        async move {
            let taken = a.transaction(async |tx| {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>((tx.pop(&free), tx.pop(&busy)))
            });
            taken.await
        }
    });
    let held = holder.await.unwrap().unwrap().committed();
    assert_eq!(held, Some(Some(1)));
    assert_eq!(
        waiter.await.unwrap().unwrap().committed(),
        Some((Some(1), None))
    );
    let runs = runs.load(Ordering::Relaxed);
    // Each run waits for a tail check, up to 20 ms, and then about 5 ms.
    assert!(runs < 100, "{runs} runs");
}
