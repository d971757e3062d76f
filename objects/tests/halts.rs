//! Records that cannot be taken: one object stops, the others go on.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod support;

use std::convert::Infallible;

use milonga_objects::{
    Context, Handle, Object, Outcome, ReadError, ReplicaHalt, Touches, TransactionError,
    UpdateError,
};
use milonga_protocol::{MemoryLog, NewEntry, Position, WriterId};
use serde::{Deserialize, Serialize};
use support::{replica, replica_with, short};

/// An object in two builds: the newer one knows more operations.
macro_rules! build {
    ($name:ident, $version:literal) => {
        #[derive(Clone, Default)]
        struct $name(u64);

        impl Object for $name {
            const TYPE: &'static str = "fragile";
            const OP_VERSION: u16 = $version;
            type Op = Op;
            type Output = u64;

            fn apply(&mut self, op: Op, _: &Context) -> u64 {
                match op {
                    Op::Add(n) => self.0 += n,
                    Op::Panic => panic!("told to"),
                }
                self.0
            }

            fn touches(_: &Op) -> Touches {
                Touches::Whole
            }
        }
    };
}

#[derive(Clone, Serialize, Deserialize)]
enum Op {
    Add(u64),
    Panic,
}

build!(Old, 1);
build!(New, 2);

fn halted(error: &ReadError) -> (&str, Position) {
    assert!(!error.is_retryable());
    (error.object().unwrap(), error.position().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_operation_of_a_newer_build_halts_its_object_alone() {
    let log = MemoryLog::new();
    let (a, b) = (replica(&log, 1), replica(&log, 2));
    let old: Handle<Old> = a.object("fragile").await.unwrap();
    let new: Handle<New> = b.object("fragile").await.unwrap();
    let here = a.map::<u64, u64>("map").await.unwrap();
    let there = b.map::<u64, u64>("map").await.unwrap();
    assert_eq!(old.update(Op::Add(1)).await.unwrap(), 1);
    let (_, position) = new.update(Op::Add(2)).with_position().await.unwrap();

    let error = old.read(|_| ()).await.unwrap_err();
    assert_eq!(halted(&error), ("fragile", position));
    assert!(
        error
            .to_string()
            .contains("newer than version 1 of this build; upgrade it"),
        "{error}"
    );
    let error = old.update(Op::Add(1)).await.unwrap_err();
    assert!(
        matches!(error, UpdateError::Halted { written: None, .. }),
        "{error}"
    );
    let error = a
        .transaction(async |tx| {
            let value = tx.read_whole(&old).map_or(0, |state| state.0);
            tx.insert(&here, 1, value);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap_err();
    assert!(
        matches!(&error, TransactionError::Read { source } if source.position() == Some(position)),
        "{error}"
    );
    let snapshot = a.snapshot().await.unwrap();
    assert!(snapshot.of(&old).is_err() && snapshot.of(&here).is_ok());

    // The object still decides: `b` reads it, and `a` finds the same verdicts.
    let outcome = b
        .transaction(async |tx| {
            let value = tx.read_whole(&new).unwrap().0;
            new.update(Op::Add(1)).await.unwrap();
            tx.insert(&there, 1, value);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(
        matches!(outcome, Outcome::Conflict { key: None, .. }),
        "{outcome:?}"
    );
    let outcome = b
        .transaction(async |tx| {
            let value = tx.read_whole(&new).unwrap().0;
            tx.insert(&there, 2, value);
            Ok::<_, Infallible>(())
        })
        .await
        .unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }));
    let all: Vec<_> = here.entries().await.unwrap().collect();
    assert_eq!(all, there.entries().await.unwrap().collect::<Vec<_>>());
    assert_eq!(all.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_apply_halts_the_object_and_the_update_says_where() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let object: Handle<Old> = a.object("fragile").await.unwrap();
    let counter = a.counter("counter").await.unwrap();
    let error = object.update(Op::Panic).await.unwrap_err();
    let UpdateError::Halted {
        written: Some(position),
        source,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (source.position, &*source.why),
        (position, "apply panicked: told to")
    );
    assert_eq!(counter.add(1).await.unwrap(), 1);
    // Opened late it halts at the same record.
    let b = replica(&log, 2);
    b.counter("counter").await.unwrap().add(1).await.unwrap();
    let late: Handle<Old> = b.object("fragile").await.unwrap();
    let error = late.read(|_| ()).await.unwrap_err();
    assert_eq!(halted(&error), ("fragile", position));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_entry_halts_the_objects_of_its_streams_and_counts_as_a_change() {
    let log = MemoryLog::new();
    let a = replica(&log, 1);
    let map = a.map::<u64, u64>("map").await.unwrap();
    let counter = a.counter("counter").await.unwrap();
    let raw = log.handle(WriterId(77));
    let stream = milonga_objects::Opened::handle(&map).stream();
    let outcome = a
        .transaction(async |tx| {
            tx.get(&map, &1);
            raw.append(NewEntry::new([stream], "rubbish"))
                .await
                .unwrap();
            tx.add(&counter, 1);
            Ok::<_, Infallible>(())
        })
        .await;
    assert!(
        matches!(outcome, Err(TransactionError::Read { .. })),
        "{outcome:?}"
    );
    let error = map.get(&1).await.unwrap_err();
    assert!(
        error.to_string().contains("not written by an object"),
        "{error}"
    );
    assert_eq!(counter.get().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_newer_payload_a_trim_or_a_loss_stops_the_replica_with_a_reason() {
    let log = MemoryLog::new();
    let a = replica_with(&log, 1, short());
    let counter = a.counter("counter").await.unwrap();
    let stream = milonga_objects::Opened::handle(&counter).stream();
    let (_, position) = counter.add(1).with_position().await.unwrap();
    let raw = log.handle(WriterId(77));
    raw.append(NewEntry::new(
        [stream],
        vec![b'O', 9, 0, 0, 0, 0, 0, 0, 0, 0],
    ))
    .await
    .unwrap();
    let error = counter.get().await.unwrap_err();
    assert!(matches!(
        error,
        ReadError::ReplicaHalted(ReplicaHalt::Newer { version: 9, .. })
    ));
    assert!(matches!(
        counter.add(1).await.unwrap_err(),
        UpdateError::ReplicaHalted { .. }
    ));
    assert!(a.counter("another").await.is_err());
    // It does not hold up who closes it.
    a.close().await;

    let log = MemoryLog::new();
    let raw = log.handle(WriterId(77));
    let (b, c) = (
        replica_with(&log, 2, short()),
        replica_with(&log, 3, short()),
    );
    let here = b.counter("counter").await.unwrap();
    here.add(1).await.unwrap();
    let there = c.counter("counter").await.unwrap();
    raw.trim(position).await.unwrap();
    let error = there.get().await.unwrap_err();
    assert!(
        matches!(&error, ReadError::ReplicaHalted(ReplicaHalt::Log { .. })),
        "{error}"
    );
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(here.get().await.unwrap(), 1, "it had played that");

    let (_, position) = here.add(1).with_position().await.unwrap();
    let d = replica_with(&log, 4, short());
    assert!(log.lose(position));
    assert!(
        d.counter("counter").await.is_err(),
        "the directory is trimmed"
    );
    assert_eq!(here.get().await.unwrap(), 2);
}
