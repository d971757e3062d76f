//! What a replica does when the layout changes under it: targets belong to their epoch (rule 23).

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use milonga_objects::{Replica, ReplicaOptions};
use milonga_protocol::{
    AppendError, Appended, BoxFuture, Epoch, Limits, Log, LogError, MemoryLog, NewEntry, Position,
    ReadAnswer, SharedLog, StreamId, StreamPart, StreamRead, Tail, TailOf, WriterId,
};
use support::TestEnv;
use tokio::sync::watch;

/// A memory log whose first epoch granted positions that were never written: they are void in the second.
#[derive(Debug)]
struct Epochs {
    log: SharedLog,
    /// The epoch, how many positions were granted in vain at its end, and where it began.
    epoch: watch::Sender<(u64, u64, u64)>,
    tails: AtomicU64,
}

impl Epochs {
    fn new(log: &MemoryLog, vain: u64) -> Arc<Self> {
        Arc::new(Self {
            log: log.handle(WriterId(1)),
            epoch: watch::channel((1, vain, 0)).0,
            tails: AtomicU64::new(0),
        })
    }
}

impl Log for Epochs {
    fn writer(&self) -> WriterId {
        self.log.writer()
    }

    fn limits(&self) -> Limits {
        self.log.limits()
    }

    fn append(&self, entry: NewEntry) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.log.append(entry)
    }

    fn tail(&self, of: TailOf) -> BoxFuture<'static, Result<Tail, LogError>> {
        self.tails.fetch_add(1, Ordering::Relaxed);
        let tail = self.log.tail(of);
        let (epoch, vain, _) = *self.epoch.borrow();
        Box::pin(async move {
            let mut tail = tail.await?;
            tail.epoch = Epoch(epoch);
            tail.next = tail.next.plus(vain);
            tail.written = None;
            for stream in &mut tail.streams {
                if vain > 0 {
                    stream.push(tail.next.minus(1));
                }
            }
            Ok(tail)
        })
    }

    fn read(
        &self,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<Vec<ReadAnswer>, LogError>> {
        self.log.read(positions)
    }

    fn read_streams(
        &self,
        mut read: StreamRead,
    ) -> BoxFuture<'static, Result<StreamPart, LogError>> {
        let log = Arc::clone(&self.log);
        let mut epoch = self.epoch.subscribe();
        Box::pin(async move {
            let asked = read.target;
            let (now, _, start) = *epoch.borrow();
            if asked.epoch.0 < now {
                read.target.to = asked.to.min(Position(start));
            }
            let part = log.read_streams(read).await?;
            if part.is_done() && part.target.to < asked.to {
                // What was granted in vain is waited for, until its epoch has ended.
                let _ = epoch.wait_for(|(now, _, _)| *now > asked.epoch.0).await;
            }
            Ok(part)
        })
    }

    fn wait(
        &self,
        streams: Arc<[StreamId]>,
        from: Position,
    ) -> BoxFuture<'static, Result<(), LogError>> {
        self.log.wait(streams, from)
    }

    fn settle(&self, from: Position, to: Position) -> BoxFuture<'static, Result<(), LogError>> {
        self.log.settle(from, to)
    }

    fn trim(&self, below: Position) -> BoxFuture<'static, Result<Position, LogError>> {
        self.log.trim(below)
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_positions_that_became_void_are_served_when_the_epoch_ends() {
    let memory = MemoryLog::new();
    let other = support::replica(&memory, 2);
    other
        .counter("counter")
        .await
        .unwrap()
        .add(5)
        .await
        .unwrap();
    let log = Epochs::new(&memory, 0);
    let replica = Replica::start(
        TestEnv::seeded(1),
        Arc::clone(&log) as SharedLog,
        ReplicaOptions::default(),
    );
    let counter = replica.counter("counter").await.unwrap();
    log.epoch.send_replace((1, 3, 0));
    let mut reads = Vec::new();
    for _ in 0..3 {
        let counter = counter.clone();
        reads.push(support::spawn(async move { counter.get().await }));
    }
    let transaction = support::spawn({
        let (replica, counter) = (replica.clone(), counter.clone());
        async move {
            let run = replica.transaction(async |tx| Ok::<_, ()>(tx.value(&counter)));
            run.await.unwrap().committed()
        }
    });
    support::settle_down().await;
    assert!(reads.iter().all(|read| !read.is_finished()) && !transaction.is_finished());
    log.epoch.send_replace((2, 0, 2));
    for read in reads {
        assert_eq!(read.await.unwrap(), Ok(5));
    }
    assert_eq!(transaction.await.unwrap(), Some(5));
    // And the next epoch is used for what comes now.
    assert_eq!(counter.add(1).await.unwrap(), 6);
    assert_eq!(counter.get().await.unwrap(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_own_append_of_a_new_epoch_is_played_without_a_read() {
    let memory = MemoryLog::new();
    let log = Epochs::new(&memory, 0);
    let replica = Replica::start(
        TestEnv::seeded(1),
        Arc::clone(&log) as SharedLog,
        ReplicaOptions::default(),
    );
    let counter = replica.counter("counter").await.unwrap();
    log.epoch.send_replace((7, 0, 1));
    assert_eq!(counter.add(1).await.unwrap(), 1);
    let tails = log.tails.load(Ordering::Relaxed);
    assert_eq!(tails, 3, "two to open, one to learn the epoch");
}
