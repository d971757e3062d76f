//! Transactions against a serial model: the log's order is the order.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use milonga_objects::{
    Context, Handle, KeyBytes, Object, Opened, Outcome, Replica, ReplicaOptions, Touches,
    TransactionError, Tx,
};
use milonga_protocol::{Env, MemoryLog, Position};
use serde::{Deserialize, Serialize};
use support::{TestEnv, replica, replica_with, spawn};

/// A map that remembers who wrote what, in order.
#[derive(Clone, Default)]
struct Book {
    values: imbl::OrdMap<u8, u64>,
    history: imbl::Vector<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    at: (Position, u32, u32),
    set: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Set {
    key: u8,
    value: u64,
    /// Who does it.
    id: u64,
}

impl Object for Book {
    const TYPE: &'static str = "book";
    const OP_VERSION: u16 = 1;
    type Op = Set;
    type Output = Option<u64>;

    fn apply(&mut self, set: Set, context: &Context) -> Option<u64> {
        self.history.push_back(Line {
            at: (context.position, context.record, context.index),
            set: set.clone(),
        });
        self.values.insert(set.key, set.value)
    }

    fn touches(set: &Set) -> Touches {
        Touches::key(KeyBytes::of(&set.key))
    }
}

const BOOKS: usize = 2;
const KEYS: u64 = 6;

/// What one transaction did, as it saw it.
#[derive(Clone, Debug, Default)]
struct Story {
    id: u64,
    /// Reads of what it had not written itself: book, key (`None`: number of keys), value.
    reads: Vec<(usize, Option<u8>, Option<u64>)>,
    writes: Vec<(usize, u8, u64)>,
    position: Position,
    committed: bool,
}

struct Random(Arc<dyn Env>);

impl Random {
    fn below(&self, n: u64) -> u64 {
        self.0.random() % n
    }
}

#[tokio::test(start_paused = true)]
async fn random_transactions_are_serializable_in_the_order_of_the_log() {
    for seed in 1..=60 {
        run_seed(seed).await;
    }
}

async fn run_seed(seed: u64) {
    let log = MemoryLog::new();
    support::jitter(&log, seed);
    let stories = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    let mut replicas = Vec::new();
    for writer in 1..=3_u64 {
        let mut options = ReplicaOptions::default();
        options.tx_attempts = 3;
        options.entries_in_flight = 1 + usize::try_from(seed % 4).unwrap();
        options.part_bytes = if seed.is_multiple_of(3) { 200 } else { 1 << 20 };
        let replica = replica_with(&log, seed * 10 + writer, options);
        let mut books: Vec<Handle<Book>> = Vec::new();
        for n in 0..BOOKS {
            books.push(replica.object(&format!("book-{n}")).await.unwrap());
        }
        for task in 0..4 {
            let (replica, books) = (replica.clone(), books.clone());
            let stories = Arc::clone(&stories);
            let first_id = writer * 1_000 + task * 100;
            let random = Random(TestEnv::seeded(seed ^ (first_id << 20)));
            tasks.push(spawn(async move {
                for n in 0..12 {
                    let story = one(&replica, &books, &random, first_id + n).await;
                    stories.lock().unwrap().push(story);
                }
            }));
        }
        replicas.push((replica, books));
    }
    for task in tasks {
        task.await
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let stories = std::mem::take(&mut *stories.lock().unwrap());
    let mut worlds = Vec::new();
    for (replica, books) in &replicas {
        let snapshot = replica.snapshot().await.unwrap();
        let views = books
            .iter()
            .map(|book| (*snapshot.of(book).unwrap()).clone());
        worlds.push(views.collect::<Vec<Book>>());
    }
    for world in &worlds {
        for (mine, first) in world.iter().zip(&worlds[0]) {
            assert_eq!(mine.history, first.history, "seed {seed}: replicas differ");
        }
    }
    check_serial(seed, &worlds[0], stories);
}

async fn one(replica: &Replica, books: &[Handle<Book>], random: &Random, id: u64) -> Story {
    if random.below(5) == 0 {
        let (book, key) = (random.below(BOOKS as u64), random.below(KEYS));
        let (book, key) = (usize::try_from(book).unwrap(), u8::try_from(key).unwrap());
        let set = Set { key, value: id, id };
        let (old, position) = books[book].update(set).with_position().await.unwrap();
        return Story {
            id,
            reads: vec![(book, Some(key), old)],
            writes: vec![(book, key, id)],
            position,
            committed: true,
        };
    }
    let plan: Vec<_> = (0..1 + random.below(5))
        .map(|_| {
            let book = usize::try_from(random.below(BOOKS as u64)).unwrap();
            (
                random.below(10),
                book,
                u8::try_from(random.below(KEYS)).unwrap(),
            )
        })
        .collect();
    let story = Mutex::new(Story::default());
    let outcome = replica
        .transaction(async |tx| {
            let mut mine = Story {
                id,
                ..Story::default()
            };
            for (step, (what, book, key)) in plan.iter().enumerate() {
                act(
                    tx,
                    &books[*book],
                    *book,
                    *what,
                    *key,
                    id + ((step as u64) << 32),
                    &mut mine,
                );
                tokio::task::yield_now().await;
            }
            *story.lock().unwrap() = mine;
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    let mut story = story.into_inner().unwrap();
    if let Outcome::Committed { position, .. } = outcome {
        story.committed = true;
        story.position = position;
    }
    story
}

fn act(
    tx: &mut Tx,
    book: &Handle<Book>,
    n: usize,
    what: u64,
    key: u8,
    value: u64,
    story: &mut Story,
) {
    let written = |story: &Story, key| {
        let mine = story.writes.iter().rev();
        mine.clone().find(|w| (w.0, w.1) == (n, key)).map(|w| w.2)
    };
    match what {
        0..5 => {
            let state = tx.read_key(book, KeyBytes::of(&key)).unwrap();
            let read = state.values.get(&key).copied();
            match written(story, key) {
                Some(own) => assert_eq!(read, Some(own), "its own write"),
                None => story.reads.push((n, Some(key), read)),
            }
        }
        5 => {
            let count = tx.read_whole(book).unwrap().values.len() as u64;
            if !story.writes.iter().any(|w| w.0 == n) {
                story.reads.push((n, None, Some(count)));
            }
        }
        _ => {
            let id = story.id;
            tx.update(book, Set { key, value, id });
            story.writes.push((n, key, value));
        }
    }
}

/// Replays what is in the objects' histories, one record after the other, and compares with what each saw.
fn check_serial(seed: u64, books: &[Book], stories: Vec<Story>) {
    let mut lines: Vec<(usize, &Line)> = Vec::new();
    for (n, book) in books.iter().enumerate() {
        lines.extend(book.history.iter().map(|line| (n, line)));
    }
    lines.sort_by_key(|(_, line)| line.at);
    let (readers, writers): (Vec<_>, Vec<_>) = stories
        .into_iter()
        .partition(|story| story.writes.is_empty());
    let aborted = writers.iter().filter(|story| !story.committed).count();
    let mut by_id: BTreeMap<u64, Story> = writers.into_iter().map(|s| (s.id, s)).collect();
    let mut readers = readers;
    readers.sort_by_key(|story| story.position);
    let mut readers = readers.into_iter().peekable();
    let mut model = vec![BTreeMap::<u8, u64>::new(); BOOKS];
    let check = |model: &[BTreeMap<u8, u64>], story: &Story| {
        for (book, key, value) in &story.reads {
            let expected = match key {
                Some(key) => model[*book].get(key).copied(),
                None => Some(model[*book].len() as u64),
            };
            assert_eq!(
                *value, expected,
                "seed {seed}: {story:?} read {book}/{key:?}"
            );
        }
    };
    for group in lines.chunk_by(|(_, a), (_, b)| (a.at.0, a.at.1) == (b.at.0, b.at.1)) {
        let (position, id) = (group[0].1.at.0, group[0].1.set.id);
        while let Some(reader) = readers.next_if(|reader| reader.position <= position) {
            check(&model, &reader);
        }
        let story = by_id
            .remove(&id)
            .unwrap_or_else(|| panic!("seed {seed}: {id} took effect twice"));
        assert!(story.committed, "seed {seed}: {story:?} was told otherwise");
        assert_eq!(story.position, position, "seed {seed}");
        check(&model, &story);
        let effect: Vec<_> = group
            .iter()
            .map(|(n, l)| (*n, l.set.key, l.set.value))
            .collect();
        assert_eq!(
            effect, story.writes,
            "seed {seed}: all or nothing, in order"
        );
        for (book, key, value) in effect {
            model[book].insert(key, value);
        }
    }
    readers.for_each(|reader| check(&model, &reader));
    assert!(
        by_id.values().all(|story| !story.committed),
        "seed {seed}: committed and not in the log"
    );
    assert_eq!(by_id.len(), aborted, "seed {seed}");
    for (book, values) in books.iter().zip(&model) {
        assert!(book.values.iter().eq(values.iter()), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_item_is_processed_once_by_concurrent_transactional_pops() {
    for seed in 1..=5 {
        let log = MemoryLog::new();
        support::jitter(&log, seed);
        let feeder = replica(&log, seed * 100);
        let jobs = feeder.queue::<u64>("jobs").await.unwrap();
        let pushes = (0..300).map(|n| jobs.push(n));
        futures_util::future::try_join_all(pushes).await.unwrap();
        let mut workers = Vec::new();
        for writer in 1..=3 {
            let replica = replica(&log, seed * 100 + writer);
            for _ in 0..4 {
                workers.push(spawn(work(replica.clone())));
            }
        }
        let mut conflicts = 0;
        for worker in workers {
            conflicts += worker.await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        let done = feeder.map::<u64, u64>("done").await.unwrap();
        let sum = feeder.counter("sum").await.unwrap();
        assert_eq!(done.len().await.unwrap(), 300, "seed {seed}");
        assert!(done.entries().await.unwrap().all(|(_, times)| times == 1));
        assert_eq!(sum.get().await.unwrap(), (0..300).sum::<i64>());
        assert!(jobs.is_empty().await.unwrap());
        assert!(conflicts < 100, "seed {seed}: {conflicts} gave up");
    }
}

async fn work(replica: Replica) -> u32 {
    let jobs = replica.queue::<u64>("jobs").await.unwrap();
    let done = replica.map::<u64, u64>("done").await.unwrap();
    let sum = replica.counter("sum").await.unwrap();
    let mut conflicts = 0;
    loop {
        let outcome = replica
            .transaction(async |tx| {
                let Some(job) = tx.pop(&jobs) else {
                    return Ok(false);
                };
                let times = tx.get(&done, &job).unwrap_or(0);
                tx.insert(&done, job, times + 1);
                tx.add(&sum, i64::try_from(job).unwrap());
                Ok::<_, Infallible>(true)
            })
            .await
            .unwrap();
        match outcome {
            Outcome::Committed { value: true, .. } => {}
            Outcome::Committed { value: false, .. } => return conflicts,
            _ => conflicts += 1,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_transactions_that_read_one_key_and_share_an_entry_do_not_both_commit() {
    let log = MemoryLog::new();
    let mut options = ReplicaOptions::default();
    options.entries_in_flight = 1;
    options.tx_attempts = 1;
    let a = replica_with(&log, 1, options);
    let map = a.map::<String, u64>("map").await.unwrap();
    map.insert("k".into(), 0).await.unwrap();
    let b = replica(&log, 2);
    let there = b.map::<String, u64>("map").await.unwrap();
    // One entry in flight holds up the others, so they share the next.
    let increment = async || {
        a.transaction(async |tx| {
            let value = tx.get(&map, "k").unwrap();
            tx.insert(&map, "k".into(), value + 1);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap()
    };
    let outcomes = futures_util::future::join_all((0..10).map(|_| increment())).await;
    let committed: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Committed { position, .. } => Some(*position),
            _ => None,
        })
        .collect();
    assert_eq!(committed.len(), 1, "{outcomes:?}");
    let shared = outcomes.iter().filter(|outcome| {
        matches!(outcome, Outcome::Conflict { position, .. } if *position == committed[0])
    });
    assert_eq!(shared.count(), 9, "{outcomes:?}");
    assert_eq!(there.get("k").await.unwrap(), Some(1));
    assert!(a.applied().0 < 9, "they did share entries");
}

/// Rule 31: verdicts need the versions of objects that were registered behind this replica's back.
#[tokio::test(start_paused = true)]
async fn a_replica_decides_alike_about_objects_that_it_has_never_heard_of() {
    let log = MemoryLog::new();
    let mut once = ReplicaOptions::default();
    once.tx_attempts = 1;
    let (a, b, c) = (
        replica(&log, 1),
        replica_with(&log, 2, once),
        replica(&log, 3),
    );
    let bystander = a.map::<u64, u64>("map").await.unwrap();
    assert_eq!(bystander.len().await.unwrap(), 0);
    let map = b.map::<u64, u64>("map").await.unwrap();
    for n in 0..3_u64 {
        let name = format!("new-{n}");
        let mine = b.map::<u64, u64>(&name).await.unwrap();
        let rival = c.map::<u64, u64>(&name).await.unwrap();
        let outcome = b
            .transaction(async |tx| {
                let value = tx.get(&mine, &1).unwrap_or(0);
                rival.insert(1, 1).await.unwrap();
                tx.insert(&map, n, value);
                Ok::<_, Infallible>(())
            })
            .await
            .unwrap();
        assert!(matches!(outcome, Outcome::Conflict { .. }), "{outcome:?}");
    }
    map.insert(9, 9).await.unwrap();
    assert_eq!(
        bystander.entries().await.unwrap().collect::<Vec<_>>(),
        [(9, 9)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_conflict_names_object_key_position_and_winner() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let map = a.map::<(String, u32), u64>("edges").await.unwrap();
    let rival = b.map::<(String, u32), u64>("edges").await.unwrap();
    let key = || (String::from("k"), 7_u32);
    let last = Mutex::new(Position::ZERO);
    let outcome = a
        .transaction(async |tx| {
            tx.get(&map, &key());
            let (_, position) = rival.insert(key(), 1).with_position().await.unwrap();
            *last.lock().unwrap() = position;
            tx.insert(&map, key(), 2);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    let Outcome::Conflict {
        object,
        key: shown,
        position,
        winner,
        attempts,
        ..
    } = outcome
    else {
        panic!("{outcome:?}");
    };
    assert_eq!(
        (&*object, shown.as_deref(), attempts),
        ("edges", Some(r#"("k", 7)"#), 16)
    );
    assert_eq!(position, *last.lock().unwrap());
    assert_eq!(winner.writer.0, 2 << 96);
    assert_eq!(rival.get(&key()).await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn read_only_and_write_only_transactions_never_conflict() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let rival = b.map::<u64, u64>("map").await.unwrap();
    rival.insert(1, 1).await.unwrap();
    let before = log_len(&log).await;
    let outcome = a
        .transaction(async |tx| {
            let first = tx.get(&map, &1);
            rival.insert(1, 2).await.unwrap();
            assert_eq!(tx.get(&map, &1), first, "the world is frozen");
            assert_eq!(tx.snapshot().0, before);
            Ok::<_, Infallible>((first, tx.len(&map)))
        })
        .await
        .unwrap();
    assert_eq!(
        outcome,
        Outcome::Committed {
            value: (Some(1), 1),
            position: Position(before)
        }
    );
    let outcome = a
        .transaction(async |tx| {
            rival.insert(1, 3).await.unwrap();
            tx.insert(&map, 1, 4);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    assert_eq!(rival.get(&1).await.unwrap(), Some(4));
}

async fn log_len(log: &MemoryLog) -> u64 {
    let handle = log.handle(milonga_protocol::WriterId(99));
    handle
        .tail(milonga_protocol::TailOf::Log)
        .await
        .unwrap()
        .next
        .0
}

#[tokio::test(start_paused = true)]
async fn own_writes_are_seen_and_reading_them_joins_the_read_set() {
    let log = MemoryLog::new();
    let mut options = ReplicaOptions::default();
    options.tx_attempts = 1;
    let (a, b) = (replica_with(&log, 1, options), replica(&log, 2));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let queue = a.queue::<u64>("queue").await.unwrap();
    let counter = a.counter("counter").await.unwrap();
    let rival = b.map::<u64, u64>("map").await.unwrap();
    let outcome = a
        .transaction(async |tx| {
            tx.insert(&map, 1, 10);
            assert_eq!(tx.replace(&map, 1, 11), Some(10));
            assert_eq!(tx.take(&map, 1), Some(11));
            assert!(!tx.contains(&map, &1) && tx.is_empty(&map));
            tx.insert(&map, 2, 20);
            assert_eq!(tx.entries(&map).collect::<Vec<_>>(), [(2, 20)]);
            tx.push(&queue, 5);
            tx.push(&queue, 6);
            let (one, other) = (tx.pop(&queue).unwrap(), tx.pop(&queue).unwrap());
            assert_eq!(one + other, 11);
            assert_eq!(tx.pop(&queue), None);
            tx.push(&queue, 7);
            tx.push(&queue, 8);
            assert!(tx.pop(&queue).is_some_and(|item| item > 6));
            tx.add(&counter, 3);
            assert_eq!(tx.value(&counter), 3);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    assert_eq!(map.entries().await.unwrap().collect::<Vec<_>>(), [(2, 20)]);
    assert_eq!(
        (queue.len().await.unwrap(), counter.get().await.unwrap()),
        (1, 3)
    );
    // Rule 34: read back, so no longer blind.
    let outcome = a
        .transaction(async |tx| {
            tx.insert(&map, 2, 21);
            assert_eq!(tx.get(&map, &2), Some(21));
            rival.insert(2, 0).await.unwrap();
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Conflict { .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_closure_writes_nothing_and_large_ones_are_refused() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<u64, Vec<u8>>("map").await.unwrap();
    let error = a
        .transaction(async |tx| {
            tx.insert(&map, 1, vec![1]);
            Err::<(), _>("no")
        })
        .await
        .unwrap_err();
    assert_eq!(error, TransactionError::Closure("no"));
    let error = a
        .transaction(async |tx| {
            (0..20).for_each(|n| tx.insert(&map, n, vec![0; 60_000]));
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransactionError::TooLarge { .. }),
        "{error}"
    );
    assert!(map.is_empty().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_object_opened_inside_a_transaction_renews_its_world() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let runs = std::sync::atomic::AtomicU32::new(0);
    let outcome = a
        .transaction(async |tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let map = a.map::<u64, u64>("inside").await.unwrap();
            tx.insert(&map, 1, 1);
            let value = tx
                .get(&map, &1)
                .expect("a placeholder panics here, and is run again");
            Ok::<_, Infallible>(value)
        })
        .await
        .unwrap();
    assert_eq!(outcome.committed(), Some(1));
    assert_eq!(runs.into_inner(), 2);
}

#[tokio::test(start_paused = true)]
async fn handles_of_another_replica_are_refused() {
    let (log, other_log) = (MemoryLog::new(), MemoryLog::new());
    let (a, b) = (replica(&log, 1), replica(&other_log, 2));
    let mine = a.map::<u64, u64>("map").await.unwrap();
    let foreign = b.map::<u64, u64>("map").await.unwrap();
    let error = a
        .transaction(async |tx| {
            tx.insert(&mine, 1, 1);
            tx.insert(&foreign, 1, 1);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap_err();
    assert!(matches!(error, TransactionError::Read { .. }), "{error}");
    assert!(a.snapshot().await.unwrap().of(&foreign).is_err());
    assert!(mine.is_empty().await.unwrap() && foreign.is_empty().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_older_than_the_window_aborts_and_a_fresh_one_commits() {
    let mut limits = milonga_protocol::Limits::default();
    limits.conflict_window = 5;
    let log = MemoryLog::new().with_limits(limits);
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let busy = b.counter("busy").await.unwrap();
    let slow = std::sync::atomic::AtomicU32::new(0);
    let outcome = a
        .transaction(async |tx| {
            let old = tx.get(&map, &1).unwrap_or(0);
            tx.insert(&map, 1, old + 1);
            if slow.fetch_add(1, Ordering::Relaxed) == 0 {
                for _ in 0..10 {
                    busy.add(1).await.unwrap();
                }
            }
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    assert_eq!(slow.into_inner(), 2);
    let error = a
        .transaction(async |tx| {
            let old = tx.get(&map, &1).unwrap_or(0);
            tx.insert(&map, 1, old + 1);
            for _ in 0..10 {
                busy.add(1).await.unwrap();
            }
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransactionError::TooSlow { window: 5, .. }),
        "{error}"
    );
    assert_eq!(map.get(&1).await.unwrap(), Some(1));
}

/// What an application's server does: closures that borrow, in spawned tasks.
#[tokio::test(start_paused = true)]
async fn closures_that_borrow_run_in_spawned_tasks() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<String, u64>("map").await.unwrap();
    let names: BTreeSet<String> = ["a", "b"].map(String::from).into();
    let task = spawn({
        let (a, map) = (a.clone(), map.clone());
        async move {
            let borrowed = &names;
            let step = 2;
            a.transaction(async |tx| {
                for name in borrowed {
                    let old = tx.get(&map, name.as_str()).unwrap_or(0);
                    tokio::task::yield_now().await;
                    tx.insert(&map, name.clone(), old + step);
                }
                Ok::<_, std::io::Error>(borrowed.len())
            })
            .await
        }
    });
    assert_eq!(task.await.unwrap().unwrap().committed(), Some(2));
    assert_eq!(map.get("b").await.unwrap(), Some(2));
    assert_eq!(map.handle().name(), "map");
}

/// However few items there are, the transactions of one process do not take them from each other.
#[tokio::test(start_paused = true)]
async fn transactional_pops_of_one_process_never_conflict() {
    const ITEMS: u64 = 200;
    let log = MemoryLog::new();
    support::jitter(&log, 9);
    let a = replica(&log, 1);
    let queue = a.queue::<u64>("queue").await.unwrap();
    let done = a.map::<u64, u64>("done").await.unwrap();
    let commits = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..32)
        .map(|_| {
            let (a, queue, done) = (a.clone(), queue.clone(), done.clone());
            let commits = Arc::clone(&commits);
            spawn(async move {
                while commits.load(Ordering::Relaxed) < ITEMS {
                    let outcome = a.transaction(async |tx| {
                        let item = tx.pop(&queue);
                        if let Some(item) = item {
                            tx.insert(&done, item, item);
                        }
                        Ok::<_, Infallible>(item.is_some())
                    });
                    match outcome.await.unwrap() {
                        Outcome::Committed { value, .. } => {
                            commits.fetch_add(u64::from(value), Ordering::Relaxed);
                        }
                        other => panic!("{other:?}"),
                    }
                    support::pause(1).await;
                }
            })
        })
        .collect();
    // Never more than a few at a time, for 32 workers.
    for n in 0..ITEMS {
        queue.push(n).await.unwrap();
    }
    for worker in workers {
        worker.await.unwrap();
    }
    assert_eq!(done.len().await.unwrap() as u64, ITEMS);
    let entries = a.applied().0;
    // An aborted transaction leaves its commit record in the log.
    assert!(entries <= 2 + 2 * ITEMS, "{entries} entries");
}

/// Of [`support::short`], and how late a timer may be.
const DEADLINE: u64 = 200;
const LATE: u64 = 20;

/// Attempts made by the deadline of [`support::short`], which a transaction must not outlive.
async fn attempts_in_time<F>(replica: &Replica, closure: F) -> u32
where
    F: AsyncFnOnce(&mut Tx) -> Result<(), Infallible> + Clone,
{
    let env = TestEnv::seeded(7);
    let begun = env.now();
    let error = replica.transaction(closure).await.unwrap_err();
    let took = env.now().since(begun).as_millis();
    assert!(took <= u128::from(DEADLINE + LATE), "took {took} ms");
    assert!(error.is_retryable(), "{error}");
    match error {
        TransactionError::Unavailable {
            attempts,
            waited_ms: DEADLINE,
            ..
        } => attempts,
        error => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn all_attempts_of_a_transaction_share_one_deadline() {
    let log = MemoryLog::new();
    let (a, b) = (replica_with(&log, 1, support::short()), replica(&log, 2));
    let map = a.map::<u64, u64>("map").await.unwrap();
    let rival = b.map::<u64, u64>("map").await.unwrap();
    let env = TestEnv::seeded(3);
    log.set_gate(Some(Arc::new(move |_| {
        env.sleep(std::time::Duration::from_millis(8))
    })));
    // Each attempt is overtaken, and well in time.
    let attempts = attempts_in_time(&a, async |tx| {
        let value = tx.get(&map, &1).unwrap_or(0);
        rival.insert(1, value + 1).await.unwrap();
        tx.insert(&map, 1, value);
        Ok(())
    });
    let attempts = attempts.await;
    assert!((1..16).contains(&attempts), "{attempts} attempts");
    log.set_gate(None);
    // What the closure waits for counts: nothing is written too late.
    let before = a.sync().await.unwrap();
    let attempts = attempts_in_time(&a, async |tx| {
        tx.insert(&map, 2, 2);
        support::pause(60_000).await;
        Ok(())
    });
    assert_eq!(attempts.await, 0);
    assert_eq!(a.sync().await.unwrap(), before);
}

/// It waits for an item that another one has taken, but not until it is too late to take it.
#[tokio::test(start_paused = true)]
async fn a_transaction_in_a_crowd_takes_an_item_before_its_deadline() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, support::short());
    let queue = a.queue::<u64>("queue").await.unwrap();
    queue.push(5).await.unwrap();
    let holder = {
        let (a, queue) = (a.clone(), queue.clone());
        spawn(async move {
            a.transaction(async |tx| {
                let item = tx.pop(&queue);
                support::pause(DEADLINE - 10).await;
                Ok::<_, Infallible>(item)
            })
            .await
        })
    };
    support::pause(5).await;
    let env = TestEnv::seeded(7);
    let begun = env.now();
    let outcome = a
        .transaction(async |tx| Ok::<_, Infallible>(tx.pop(&queue)))
        .await
        .unwrap();
    let waited = env.now().since(begun).as_millis();
    assert_eq!(outcome.committed(), Some(Some(5)));
    assert!((90..150).contains(&waited), "waited {waited} ms");
    // The holder's commit conflicts, and then there is nothing left.
    let held = holder.await.unwrap();
    assert!(!matches!(
        held,
        Ok(Outcome::Committed { value: Some(_), .. })
    ));
}
