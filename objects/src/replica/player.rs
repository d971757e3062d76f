//! The player: the single writer that plays all objects' streams in the order of the log.

use std::sync::Arc;

use milonga_protocol::{
    Entry, LogError, Position, SharedLog, StreamId, StreamPart, StreamRead, Target, Task,
};
use tokio::sync::oneshot;

use super::open::{Partly, Patience, load};
use super::submit::Batch;
use super::{Backoff, Shared, lock, pause};
use crate::error::{ReadError, ReplicaHalt, UpdateError};
use crate::playback::{Content, Plan, Playback};
use crate::slot::Outcome;
use crate::versions::Verdict;
use crate::world::RecordOutcome;

/// Records that are applied under one hold of the world's lock, about: readers wait for no more.
const RECORDS_PER_SLICE: usize = 128;

/// An object that was loaded apart and wants to join.
pub(crate) struct Join {
    pub(super) stream: StreamId,
    pub(super) loaded: Partly,
    pub(super) done: oneshot::Sender<Result<(), ReadError>>,
}

struct Player {
    shared: Arc<Shared>,
    playback: Playback,
    next_part: Option<Prefetch>,
    backoff: Backoff,
}

/// A part of the log that is read while the one before it is applied.
struct Prefetch {
    from: Position,
    streams: Arc<[StreamId]>,
    target: Target,
    part: oneshot::Receiver<Result<StreamPart, LogError>>,
    _task: Task,
}

/// Why playing ends.
enum Stop {
    Halted(ReplicaHalt),
    Closed,
}

/// Plays whatever is asked for, until the replica ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let window = shared.log.limits().conflict_window;
    let mut player = Player {
        playback: Playback::new(shared.log.writer(), window),
        next_part: None,
        backoff: Backoff::new(&shared.env),
        shared,
    };
    loop {
        player.finish_joins().await;
        match player.step().await {
            Ok(()) => {}
            Err(Stop::Halted(halt)) => return player.shared.halt(halt),
            Err(Stop::Closed) => {
                player.shared.syncs.stop(&ReadError::Closed);
                return player.shared.submit.stop(&UpdateError::Closed);
            }
        }
    }
}

impl Player {
    async fn step(&mut self) -> Result<(), Stop> {
        let applied = self.shared.world().applied();
        let Some(target) = self.shared.syncs.target(applied) else {
            self.shared.player.notified().await;
            return Ok(());
        };
        let streams = self.shared.played_streams();
        let read = StreamRead {
            streams: Arc::clone(&streams),
            from: applied,
            target,
            max_bytes: self.shared.options.part_bytes,
        };
        match self.read(read.clone()).await {
            Ok(part) => {
                self.backoff = Backoff::new(&self.shared.env);
                self.shared.set_obstacle("");
                if part.complete > applied && !part.is_done() {
                    self.prefetch(StreamRead {
                        from: part.complete,
                        ..read
                    });
                }
                self.apply_part(&part, &streams).await?;
                self.finish_part(target, &part).await;
                Ok(())
            }
            Err(error) => self.obstacle(applied, error).await,
        }
    }

    // A part read for a smaller target must not pass for a lowered one: that would end a sync too early.
    async fn read(&mut self, read: StreamRead) -> Result<StreamPart, LogError> {
        if let Some(next) = self.next_part.take()
            && next.from == read.from
            && next.target == read.target
            && Arc::ptr_eq(&next.streams, &read.streams)
            && let Ok(part) = next.part.await
        {
            return part;
        }
        self.shared.log.read_streams(read).await
    }

    fn prefetch(&mut self, read: StreamRead) {
        let (sender, part) = oneshot::channel();
        let log = Arc::clone(&self.shared.log);
        let (from, streams, target) = (read.from, Arc::clone(&read.streams), read.target);
        let task = self.shared.env.spawn(
            "milonga-prefetch",
            Box::pin(async move {
                // The player may have gone another way.
                let _ = sender.send(log.read_streams(read).await);
            }),
        );
        self.next_part = Some(Prefetch {
            from,
            streams,
            target,
            part,
            _task: task,
        });
    }

    /// Waits and tries again, or says why that is useless.
    async fn obstacle(&mut self, applied: Position, error: LogError) -> Result<(), Stop> {
        match error {
            LogError::Trimmed { .. } | LogError::Lost { .. } => {
                let source = error;
                return Err(Stop::Halted(ReplicaHalt::Log { applied, source }));
            }
            LogError::Closed => return Err(Stop::Closed),
            LogError::Unavailable { what, .. } => self.shared.set_obstacle(&what),
            source => {
                self.shared.set_obstacle(&source.to_string());
                self.shared.syncs.fail_all(&ReadError::Log { source });
            }
        }
        tracing::debug!(position = %applied, obstacle = self.shared.obstacle(), "playback waits");
        self.backoff.sleep().await;
        Ok(())
    }

    /// Applies a part, or as much of it as is complete: behind the registration of an object whose stream was not
    /// asked for, entries of that object may be missing.
    async fn apply_part(
        &mut self,
        part: &StreamPart,
        streams: &Arc<[StreamId]>,
    ) -> Result<(), Stop> {
        let span = tracing::debug_span!("play", from = %self.shared.world().applied(), to = %part.complete);
        let mut rest = part.entries.as_slice();
        while !rest.is_empty() {
            let done = {
                let _entered = span.enter();
                self.apply_slice(rest, streams)?
            };
            self.shared.syncs.played(self.shared.world().applied());
            if done.truncated {
                self.next_part = None;
                return Ok(());
            }
            rest = &rest[done.entries..];
            if !rest.is_empty() {
                pause().await;
            }
        }
        self.shared.world_mut().complete(part.complete);
        self.shared.syncs.played(part.complete);
        metrics::counter!("milonga_entries_played_total").increment(part.entries.len() as u64);
        Ok(())
    }

    fn apply_slice(
        &mut self,
        entries: &[(Position, Entry)],
        streams: &[StreamId],
    ) -> Result<Slice, Stop> {
        let mut plans = Vec::new();
        let (mut records, mut registers) = (0, false);
        for (position, entry) in entries {
            let plan = self.playback.decide(*position, entry).map_err(Stop::Halted);
            let plan = match plan {
                Ok(plan) => plan,
                // What comes before it still counts.
                Err(_) if !plans.is_empty() => break,
                Err(stop) => return Err(stop),
            };
            records += match &plan.content {
                Content::Records(records) => records.len(),
                Content::Malformed(_) => 1,
            };
            registers = plan.streams.contains(&StreamId::DIRECTORY);
            plans.push(plan);
            if records >= RECORDS_PER_SLICE || registers {
                break;
            }
        }
        self.apply_plans(&plans);
        let truncated = registers && self.registered(streams)?;
        Ok(Slice {
            entries: plans.len(),
            truncated,
        })
    }

    fn apply_plans(&self, plans: &[Plan<'_>]) {
        let mut waited_for = Vec::new();
        let mut world = self.shared.world_mut();
        for plan in plans {
            let batch = plan.own_tag.and_then(|tag| self.shared.submit.played(tag));
            let outcomes = world.apply(plan, batch.is_some());
            if let Some(batch) = batch {
                waited_for.push((plan.position, batch, outcomes));
            }
        }
        drop(world);
        count(plans);
        for (position, batch, outcomes) in waited_for {
            resolve(position, &batch, outcomes);
        }
    }

    /// Objects may have been registered. `true`: the stream of one was not asked for.
    fn registered(&self, streams: &[StreamId]) -> Result<bool, Stop> {
        let directory = {
            let world = self.shared.world();
            world.directory().cloned()
        };
        let directory =
            directory.map_err(|source| Stop::Halted(ReplicaHalt::Directory { source }))?;
        // The directory's own stream is among them.
        let more = directory.len() + 1 > streams.len();
        if more {
            self.shared.registered(directory.streams());
        }
        Ok(more)
    }

    /// Follows the epoch: a lowered target lowers what syncs wait for (rule 23).
    async fn finish_part(&mut self, asked: Target, part: &StreamPart) {
        let applied = self.shared.world().applied();
        if part.target.to >= asked.to || applied < part.target.to {
            return;
        }
        self.shared.syncs.lowered(asked, part.target.to, applied);
        if self.shared.syncs.target(applied) == Some(asked) {
            // An own append of a later epoch: learn that epoch.
            match self.shared.log.tail(milonga_protocol::TailOf::Log).await {
                Ok(tail) => self.shared.syncs.heard_of(tail.epoch),
                Err(error) => tracing::debug!(%error, "tail check failed"),
            }
            self.backoff.sleep().await;
        }
    }

    /// Objects that were loaded join at exactly the common position: nothing is played meanwhile.
    async fn finish_joins(&self) {
        loop {
            let Some(mut join) = lock(&self.shared.joins).pop() else {
                return;
            };
            let applied = self.shared.world().applied();
            let mut patience = Patience::renewed(&self.shared);
            let loading = &mut join.loaded;
            let loaded = load(&self.shared, join.stream, loading, applied, &mut patience).await;
            let result = loaded.map(|()| {
                let mut world = self.shared.world_mut();
                world.join_loaded(join.stream, join.loaded.hosted);
            });
            if result.is_ok() {
                self.shared.hosted_changed();
            }
            // Whoever opens it may have gone.
            let _ = join.done.send(result);
        }
    }
}

struct Slice {
    entries: usize,
    truncated: bool,
}

fn count(plans: &[Plan<'_>]) {
    let (mut commits, mut aborts) = (0, 0);
    for plan in plans {
        let Content::Records(records) = &plan.content else {
            continue;
        };
        for (record, verdict) in records {
            if let (crate::record::Record::Commit(_), verdict) = (record, verdict) {
                match verdict {
                    Verdict::Committed => commits += 1,
                    Verdict::Aborted(_) => aborts += 1,
                }
            }
        }
    }
    if commits > 0 {
        metrics::counter!("milonga_transactions_committed_total").increment(commits);
    }
    if aborts > 0 {
        metrics::counter!("milonga_transactions_aborted_total").increment(aborts);
    }
}

fn resolve(position: Position, batch: &Batch, outcomes: Vec<RecordOutcome>) {
    // Own entries hold a record for each slot; should one ever not, nobody waits in vain.
    for slot in batch.slots.iter().skip(outcomes.len()) {
        slot.give_up(0);
    }
    for (slot, outcome) in batch.slots.iter().zip(outcomes) {
        slot.resolve(match outcome {
            RecordOutcome::Applied(output) => Outcome::Applied { position, output },
            RecordOutcome::Committed => Outcome::Committed { position },
            RecordOutcome::Aborted(clash) => Outcome::Aborted { clash },
            RecordOutcome::Halted(source) => Outcome::Failed(UpdateError::Halted {
                written: Some(position),
                source,
            }),
        });
    }
}

/// Reads one part of one stream, whoever the reader is.
pub(crate) async fn read_one(
    log: &SharedLog,
    stream: StreamId,
    from: Position,
    target: Target,
    max_bytes: usize,
) -> Result<StreamPart, LogError> {
    log.read_streams(StreamRead {
        streams: Arc::from([stream]),
        from,
        target,
        max_bytes,
    })
    .await
}
