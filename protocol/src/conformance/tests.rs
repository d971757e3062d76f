//! The suite passes on the memory log, and broken logs fail it.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::env::BoxFuture;
use crate::ids::{EntryId, Epoch, WriterId};
use crate::limits::Limits;
use crate::log::*;
use crate::memory::MemoryLog;

/// What a broken log does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    DeliverPastHole,
    LostIsUnwritten,
    TrimmedIsJunk,
    JunkIsUnwritten,
    AppendTwice,
    AckUnwritten,
    StaleTail,
    ForgetLinks,
    ReadReversed,
    SkipTrimmed,
    IgnoreMaxBytes,
    TakeAnything,
    ReadFills,
    DropEveryThird,
}

const FAULTS: [Fault; 14] = [
    Fault::DeliverPastHole,
    Fault::LostIsUnwritten,
    Fault::TrimmedIsJunk,
    Fault::JunkIsUnwritten,
    Fault::AppendTwice,
    Fault::AckUnwritten,
    Fault::StaleTail,
    Fault::ForgetLinks,
    Fault::ReadReversed,
    Fault::SkipTrimmed,
    Fault::IgnoreMaxBytes,
    Fault::TakeAnything,
    Fault::ReadFills,
    Fault::DropEveryThird,
];

struct Memory {
    log: MemoryLog,
    fault: Fault,
}

impl LogUnderTest for Memory {
    fn log(&self, n: usize) -> SharedLog {
        let inner = self.log.handle(WriterId(n as u128 + 1));
        Arc::new(Broken {
            inner,
            fault: self.fault,
        })
    }

    fn make_hole(&self, streams: Vec<StreamId>) -> BoxFuture<'_, Position> {
        Box::pin(async move { self.log.take_hole(&streams) })
    }

    fn write_late(&self, hole: Position, payload: Bytes) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async move {
            let written = self.log.write_hole(hole, WriterId(99), payload);
            Some(written.is_some())
        })
    }

    fn lose(&self, position: Position) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.log.lose(position) })
    }
}

#[derive(Debug)]
struct Broken {
    inner: SharedLog,
    fault: Fault,
}

impl Log for Broken {
    fn writer(&self) -> WriterId {
        self.inner.writer()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn append(&self, mut entry: NewEntry) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (inner, fault) = (Arc::clone(&self.inner), self.fault);
        Box::pin(async move {
            match fault {
                Fault::AppendTwice => drop(inner.append(entry.clone()).await),
                Fault::TakeAnything => {
                    entry.streams.dedup();
                    entry.streams.sort();
                    entry.streams.dedup();
                    entry.streams.truncate(64);
                    let limit = inner.limits().entry_bytes as usize;
                    entry.payload.truncate(limit);
                }
                Fault::AckUnwritten => {
                    return Ok(Appended {
                        position: inner.tail(TailOf::Log).await.unwrap().next,
                        id: EntryId {
                            writer: inner.writer(),
                            sequence: 0,
                        },
                    });
                }
                _ => {}
            }
            inner.append(entry).await
        })
    }

    fn tail(&self, of: TailOf) -> BoxFuture<'static, Result<Tail, LogError>> {
        let (inner, fault) = (Arc::clone(&self.inner), self.fault);
        Box::pin(async move {
            let mut tail = inner.tail(of).await?;
            if fault == Fault::StaleTail {
                tail.next = tail.next.minus(1);
            }
            Ok(tail)
        })
    }

    fn read(
        &self,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<Vec<ReadAnswer>, LogError>> {
        let (inner, fault) = (Arc::clone(&self.inner), self.fault);
        Box::pin(async move {
            if fault == Fault::ReadFills
                && let Some(last) = positions.iter().max()
            {
                inner.settle(Position::ZERO, last.next()).await?;
            }
            let mut answers = inner.read(positions).await?;
            for answer in &mut answers {
                match (fault, &mut *answer) {
                    (Fault::LostIsUnwritten, ReadAnswer::Lost)
                    | (Fault::JunkIsUnwritten, ReadAnswer::Junk) => *answer = ReadAnswer::Unwritten,
                    (Fault::TrimmedIsJunk, ReadAnswer::Trimmed) => *answer = ReadAnswer::Junk,
                    (Fault::ForgetLinks, ReadAnswer::Data(entry)) => entry.links.clear(),
                    _ => {}
                }
            }
            if fault == Fault::ReadReversed {
                answers.reverse();
            }
            Ok(answers)
        })
    }

    fn read_streams(
        &self,
        mut read: StreamRead,
    ) -> BoxFuture<'static, Result<StreamPart, LogError>> {
        let (inner, fault) = (Arc::clone(&self.inner), self.fault);
        Box::pin(async move {
            match fault {
                Fault::DeliverPastHole => return past_holes(&inner, read).await,
                Fault::SkipTrimmed => {
                    let mark = inner.tail(TailOf::Log).await?.trimmed;
                    read.from = read.from.max(mark);
                }
                Fault::IgnoreMaxBytes => read.max_bytes = usize::MAX,
                _ => {}
            }
            let mut part = inner.read_streams(read).await?;
            if fault == Fault::DropEveryThird {
                part.entries.retain(|(position, _)| position.0 % 3 != 2);
            }
            Ok(part)
        })
    }

    fn wait(
        &self,
        streams: Arc<[StreamId]>,
        from: Position,
    ) -> BoxFuture<'static, Result<(), LogError>> {
        self.inner.wait(streams, from)
    }

    fn settle(&self, from: Position, to: Position) -> BoxFuture<'static, Result<(), LogError>> {
        self.inner.settle(from, to)
    }

    fn trim(&self, below: Position) -> BoxFuture<'static, Result<Position, LogError>> {
        self.inner.trim(below)
    }
}

/// Delivers what is there and leaves out what is not.
async fn past_holes(inner: &SharedLog, read: StreamRead) -> Result<StreamPart, LogError> {
    let positions: Vec<_> = (read.from.0..read.target.to.0).map(Position).collect();
    let answers = inner.read(positions.clone()).await?;
    let mut entries = Vec::new();
    for (position, answer) in positions.into_iter().zip(answers) {
        if let ReadAnswer::Data(entry) = answer
            && entry.streams().any(|s| read.streams.contains(&s))
        {
            entries.push((position, entry));
        }
    }
    Ok(StreamPart {
        entries,
        complete: read.target.to,
        target: Target {
            epoch: Epoch(1),
            ..read.target
        },
    })
}

fn memory(fault: Fault) -> Arc<dyn LogUnderTest> {
    Arc::new(Memory {
        log: MemoryLog::new(),
        fault,
    })
}

#[tokio::test]
async fn the_memory_log_conforms() {
    let mut not_supported = Vec::new();
    run_all(
        async || memory(Fault::None),
        |check, outcome| {
            if outcome == Outcome::NotSupported {
                not_supported.push(check.name);
            }
        },
    )
    .await;
    // It has neither servers nor replicas.
    assert_eq!(not_supported.len(), 4, "{not_supported:?}");
}

#[tokio::test]
async fn checks_can_share_one_log() {
    let under = memory(Fault::None);
    // Without those that lose something for good: reads from before the loss would stop there.
    let checks = checks().into_iter().filter(|c| !c.name.contains("lost"));
    for check in checks {
        check.run(Arc::clone(&under)).await;
    }
}

#[tokio::test]
async fn each_clause_and_each_answer_has_a_check() {
    for clause in 1..=6 {
        assert!(checks().iter().any(|check| check.clause == clause));
    }
    for answer in ["data", "junk", "unwritten", "trimmed", "lost"] {
        let mut reads = checks().into_iter().filter(|check| check.clause == 5);
        assert!(reads.any(|check| check.name.contains(answer)), "{answer}");
    }
}

#[tokio::test]
async fn every_broken_log_fails() {
    for fault in FAULTS {
        let mut found = Vec::new();
        // A broken log may make these wait for ever, and there is no clock here.
        let waiting = ["wait_wakes_up", "a_reader_follows_a_writer"];
        for check in checks().into_iter().filter(|c| !waiting.contains(&c.name)) {
            let mut task = tokio::task::JoinSet::new();
            task.spawn(async move { check.run(memory(fault)).await });
            if task.join_next().await.unwrap().is_err() {
                found.push(check.name);
            }
        }
        println!("{fault:?}: found by {found:?}");
        assert!(!found.is_empty(), "{fault:?} passes the whole suite");
    }
}
