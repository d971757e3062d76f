//! One operation each. `polls`: drop the future after so many polls.

use std::future::Future;

use bytes::Bytes;
use milonga_protocol::{
    AppendError, Log as _, LogError, NewEntry, Position, ReadAnswer, StreamId, StreamRead, TailOf,
    Target,
};

use super::{HIGH, STREAMS, TRIMMED, Worker};
use crate::world::journal::{Operation, Outcome, Seen, Tail};

/// Most bytes of one reading of streams.
const PART_BYTES: usize = 16 << 10;

impl Worker {
    /// Whether it was appended.
    pub(super) async fn append(&mut self, polls: Option<u64>) -> bool {
        self.number += 1;
        let (name, run) = (self.client.name(), self.client.run());
        let padding = self
            .client
            .draw(|rng| *rng.pick(&[0, 0, 50, 50, 400, 3_000]));
        let text = format!(
            "{name}/{run}/{}/{}/{:.>padding$}",
            self.task, self.number, ""
        );
        let payload = Bytes::from(text.into_bytes());
        let streams = self.some_streams();
        let id = self.client.invoke(Operation::Append {
            streams: streams.clone(),
            payload: payload.clone(),
        });
        let append = self.log.append(NewEntry::new(streams, payload));
        let outcome = match self.at_most(polls, append).await {
            None => Outcome::Unknown("dropped".to_owned()),
            Some(Ok(appended)) => {
                let high = appended.position.next().0;
                self.client.shared().raise(HIGH, high);
                Outcome::Appended(appended.position)
            }
            Some(Err(error @ AppendError::OutcomeUnknown { .. })) => {
                Outcome::Unknown(error.to_string())
            }
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        let worked = matches!(outcome, Outcome::Appended(_));
        self.client.finish(id, outcome);
        worked
    }

    fn some_streams(&self) -> Vec<StreamId> {
        self.client.draw(|rng| {
            let per_million = match rng.below(20) {
                0 => return Vec::new(),
                1..14 => return vec![StreamId(rng.between(1, STREAMS))],
                _ => 500_000,
            };
            let all = 1..=STREAMS;
            let some = all.filter(|_| rng.happens(per_million));
            some.map(StreamId).collect()
        })
    }

    async fn at_most<T>(&self, polls: Option<u64>, work: impl Future<Output = T>) -> Option<T> {
        match polls {
            Some(polls) => self.client.drop_after(polls, work).await,
            None => Some(work.await),
        }
    }

    pub(super) async fn read(&self, polls: Option<u64>) {
        let high = self.client.shared().get(HIGH);
        let position = self.client.draw(|rng| match rng.below(3) {
            0 => rng.below(high),
            1 => high.saturating_sub(rng.between(1, 20)),
            // Perhaps granted, perhaps not.
            _ => high.saturating_add(rng.below(4)).saturating_sub(2),
        });
        let position = Position(position);
        let id = self.client.invoke(Operation::Read { position });
        let read = self.log.read(vec![position]);
        let outcome = match self.at_most(polls, read).await {
            None => Outcome::Unknown("dropped".to_owned()),
            Some(answers) => outcome_of(answers),
        };
        self.client.finish(id, outcome);
    }

    /// Reads its streams to the target of a tail check. Whether that worked.
    pub(super) async fn sync(&mut self, polls: Option<u64>) -> bool {
        let (streams, from) = (self.streams.clone(), self.from);
        let id = self.client.invoke(Operation::Sync {
            streams: streams.clone(),
            from,
        });
        let sync = async {
            let tail = self.tail_of(&streams).await?;
            let mut target = tail.target();
            let (mut entries, mut at) = (Vec::new(), from);
            while at < target.to {
                let (new, complete, lowered) = self.part(&streams, at, target).await?;
                entries.extend(new);
                (at, target) = (complete, lowered);
            }
            Ok((entries, at.max(from)))
        };
        let synced = self.at_most(polls, sync).await;
        let (outcome, next) = self.seen(synced);
        self.from = next.unwrap_or(self.from);
        let worked = matches!(outcome, Outcome::Entries(..));
        self.client.finish(id, outcome);
        worked
    }

    /// Reads on in its streams, as followers do: once, as far as it goes.
    pub(super) async fn follow(&mut self, polls: Option<u64>) {
        let (streams, from) = (self.streams.clone(), self.from);
        let id = self.client.invoke(Operation::Follow {
            streams: streams.clone(),
            from,
        });
        let follow = async {
            let granted = self.tail_of(&streams).await?.granted();
            let (entries, complete, _) = self.part(&streams, from, granted).await?;
            Ok((entries, complete))
        };
        let followed = self.at_most(polls, follow).await;
        let (outcome, next) = self.seen(followed);
        self.from = next.unwrap_or(self.from);
        self.client.finish(id, outcome);
    }

    fn seen(
        &self,
        seen: Option<Result<(Vec<Seen>, Position), LogError>>,
    ) -> (Outcome, Option<Position>) {
        match seen {
            None => (Outcome::Unknown("dropped".to_owned()), None),
            Some(Ok((entries, complete))) => (Outcome::Entries(entries, complete), Some(complete)),
            Some(Err(error)) => {
                let next = match error {
                    LogError::Trimmed { below, .. } => Some(below.max(self.from)),
                    _ => None,
                };
                (Outcome::Failed(error.to_string()), next)
            }
        }
    }

    async fn tail_of(&self, streams: &[StreamId]) -> Result<milonga_protocol::Tail, LogError> {
        self.log.tail(TailOf::Streams(streams.into())).await
    }

    async fn part(
        &self,
        streams: &[StreamId],
        from: Position,
        target: Target,
    ) -> Result<(Vec<Seen>, Position, Target), LogError> {
        let read = StreamRead {
            streams: streams.into(),
            from,
            target,
            max_bytes: PART_BYTES,
        };
        let part = self.log.read_streams(read).await?;
        let entries = part.entries.into_iter().map(|(position, entry)| Seen {
            position,
            streams: entry.streams().collect(),
            payload: entry.payload,
        });
        Ok((entries.collect(), part.complete, part.target))
    }

    pub(super) async fn tail(&self, polls: Option<u64>) {
        let streams = self.streams.clone();
        let id = self.client.invoke(Operation::Tail {
            streams: streams.clone(),
        });
        let checked = self.at_most(polls, self.tail_of(&streams)).await;
        let outcome = match checked {
            None => Outcome::Unknown("dropped".to_owned()),
            Some(Ok(tail)) => Outcome::Tail(Tail {
                epoch: tail.epoch,
                next: tail.next,
                written: tail.written_end(),
                target: tail.target().to,
            }),
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        self.client.finish(id, outcome);
    }

    /// Settles around the tail: races with writers.
    pub(super) async fn settle(&self, polls: Option<u64>) {
        let high = self.client.shared().get(HIGH);
        let (below, above) = self.client.draw(|rng| (rng.below(20), rng.below(30)));
        let (from, to) = (high.saturating_sub(below), high.saturating_add(above));
        // What was not granted is left out: so nobody can say what must be decided now.
        let noted = Operation::Other(format!("settle from {from} to {to}"));
        let (from, to) = (Position(from), Position(to));
        self.settle_range(polls, noted, from, to).await;
    }

    /// Settles everything that was granted. Whether that worked.
    pub(super) async fn settle_all(&self) -> bool {
        let Ok(tail) = self.log.tail(TailOf::Log).await else {
            return false;
        };
        let (from, to) = (tail.trimmed, tail.next);
        let noted = Operation::Settle { from, to };
        self.settle_range(None, noted, from, to).await
    }

    async fn settle_range(
        &self,
        polls: Option<u64>,
        noted: Operation,
        from: Position,
        to: Position,
    ) -> bool {
        let id = self.client.invoke(noted);
        let settled = self.at_most(polls, self.log.settle(from, to)).await;
        let outcome = match settled {
            None => Outcome::Unknown("dropped".to_owned()),
            Some(Ok(())) => Outcome::Done,
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        let worked = outcome == Outcome::Done;
        self.client.finish(id, outcome);
        worked
    }

    pub(super) async fn trim(&self, polls: Option<u64>) {
        let high = self.client.shared().get(HIGH);
        let kept = self.client.draw(|rng| *rng.pick(&[5, 50, 400, 400]));
        let below = Position(high.saturating_sub(kept));
        let id = self.client.invoke(Operation::Trim { below });
        let trimmed = self.at_most(polls, self.log.trim(below)).await;
        let outcome = match trimmed {
            None => Outcome::Unknown("dropped".to_owned()),
            Some(Ok(mark)) => {
                self.client.shared().raise(TRIMMED, mark.0);
                Outcome::Mark(mark)
            }
            Some(Err(error)) => Outcome::Failed(error.to_string()),
        };
        self.client.finish(id, outcome);
    }
}

/// The outcome of a read of one position.
pub(super) fn outcome_of(answers: Result<Vec<ReadAnswer>, LogError>) -> Outcome {
    match answers.map(|answers| answers.into_iter().next()) {
        Ok(Some(ReadAnswer::Data(entry))) => Outcome::Data(entry.payload),
        Ok(Some(ReadAnswer::Junk)) => Outcome::Junk,
        Ok(Some(ReadAnswer::Unwritten)) => Outcome::Unwritten,
        Ok(Some(ReadAnswer::Trimmed)) => Outcome::Trimmed,
        Ok(Some(ReadAnswer::Lost)) => Outcome::Lost,
        Ok(None) => Outcome::Failed("no answer for a position".to_owned()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}
