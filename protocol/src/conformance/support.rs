//! What the checks share.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::LogUnderTest;
use crate::entry::Entry;
use crate::env::BoxFuture;
use crate::ids::{Position, StreamId};
use crate::log::{
    Appended, LogError, NewEntry, ReadAnswer, SharedLog, StreamPart, StreamRead, Tail, TailOf,
    Target,
};

/// More parts than any check needs: a read that makes no progress is a failure, not an endless loop.
const MOST_PARTS: usize = 10_000;

/// The log of one check: where it began, and streams that nobody used before.
pub(super) struct World {
    pub(super) under: Arc<dyn LogUnderTest>,
    pub(super) start: Position,
}

impl World {
    pub(super) async fn new(under: Arc<dyn LogUnderTest>) -> Self {
        let tail = under.log(0).tail(TailOf::Log).await;
        let start = tail.expect("the first tail check answers").next;
        Self { under, start }
    }

    pub(super) fn log(&self, client: usize) -> SharedLog {
        self.under.log(client)
    }

    /// The `n`-th stream of this check, `n < 256`.
    pub(super) const fn stream(&self, n: u64) -> StreamId {
        StreamId::raw((self.start.0 << 8) | n)
    }

    pub(super) fn streams(&self, n: u64) -> Vec<StreamId> {
        (0..n).map(|n| self.stream(n)).collect()
    }

    pub(super) async fn hole(&self, streams: &[StreamId]) -> Position {
        self.under.make_hole(streams.to_vec()).await
    }

    pub(super) async fn append(
        &self,
        client: usize,
        streams: &[StreamId],
        payload: impl Into<Bytes>,
    ) -> Appended {
        let result = self.log(client).append(NewEntry::new(streams, payload));
        result.await.expect("an append without faults succeeds")
    }

    pub(super) async fn tail(&self, client: usize, streams: &[StreamId]) -> Tail {
        let of = TailOf::Streams(streams.into());
        let tail = self.log(client).tail(of).await;
        let tail = tail.expect("a tail check without faults answers");
        assert_eq!(
            tail.streams.len(),
            streams.len(),
            "a tail check answers for each stream asked"
        );
        tail
    }

    pub(super) async fn read(&self, client: usize, positions: &[Position]) -> Vec<ReadAnswer> {
        let answers = self.log(client).read(positions.to_vec()).await;
        let answers = answers.expect("a read without faults answers");
        assert_eq!(
            answers.len(),
            positions.len(),
            "a read answers for each position asked"
        );
        answers
    }

    pub(super) async fn read_one(&self, client: usize, position: Position) -> ReadAnswer {
        self.read(client, &[position]).await.remove(0)
    }

    pub(super) async fn data(&self, client: usize, position: Position) -> Entry {
        match self.read_one(client, position).await {
            ReadAnswer::Data(entry) => entry,
            other => panic!("position {position} holds an acknowledged entry, but reads {other:?}"),
        }
    }

    /// Reads streams from `from` to the tail, part by part.
    pub(super) async fn play(
        &self,
        client: usize,
        streams: &[StreamId],
        from: Position,
    ) -> Vec<(Position, Entry)> {
        let target = self.tail(client, streams).await.target();
        self.play_to(client, streams, from, target)
            .await
            .expect("streams without faults can be read")
    }

    pub(super) async fn play_to(
        &self,
        client: usize,
        streams: &[StreamId],
        from: Position,
        target: Target,
    ) -> Result<Vec<(Position, Entry)>, LogError> {
        let mut read = StreamRead {
            streams: streams.into(),
            from,
            target,
            max_bytes: 1 << 20,
        };
        let mut entries = Vec::new();
        for _ in 0..MOST_PARTS {
            if read.from >= read.target.to {
                return Ok(entries);
            }
            let part = self.part(client, &read).await?;
            (read.from, read.target) = (part.complete, part.target);
            entries.extend(part.entries);
        }
        panic!("reading {streams:?} from {from} does not reach {target:?}");
    }

    /// One part, checked for what every part must be.
    pub(super) async fn part(
        &self,
        client: usize,
        read: &StreamRead,
    ) -> Result<StreamPart, LogError> {
        let part = self.log(client).read_streams(read.clone()).await?;
        assert!(
            part.complete >= read.from,
            "complete went back from {} to {}",
            read.from,
            part.complete
        );
        assert!(
            part.target.to <= read.target.to,
            "a target is lowered, never raised: {:?} to {:?}",
            read.target,
            part.target
        );
        let positions: Vec<_> = part.entries.iter().map(|(p, _)| *p).collect();
        assert!(
            positions.is_sorted_by(|a, b| a < b),
            "entries come in order of position, once each: {positions:?}"
        );
        for (position, entry) in &part.entries {
            assert!(
                (read.from..part.complete).contains(position),
                "{position} was delivered outside of {}..{}",
                read.from,
                part.complete
            );
            assert!(
                entry.streams().any(|s| read.streams.contains(&s)),
                "{position} belongs to none of the streams asked"
            );
        }
        Ok(part)
    }
}

/// Runs all at the same time on this task.
pub(super) async fn join_all<'a, T>(futures: Vec<BoxFuture<'a, T>>) -> Vec<T> {
    enum Slot<'a, T> {
        Running(BoxFuture<'a, T>),
        Done(Option<T>),
    }
    let mut slots: Vec<_> = futures.into_iter().map(Slot::Running).collect();
    std::future::poll_fn(move |context| {
        let mut running = false;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *slot = Slot::Done(Some(value)),
                    Poll::Pending => running = true,
                }
            }
        }
        if running {
            return Poll::Pending;
        }
        let done = slots.iter_mut().filter_map(|slot| match slot {
            Slot::Running(_) => None,
            Slot::Done(value) => value.take(),
        });
        Poll::Ready(done.collect())
    })
    .await
}

/// Polls once and drops.
pub(super) async fn poll_once<T>(future: BoxFuture<'_, T>) -> Option<T> {
    let mut future = future;
    std::future::poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut future).poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}
