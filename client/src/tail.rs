//! Tail checks, shared among concurrent callers.
//!
//! One check is under way at a time; callers that come meanwhile collect for the next, because a check that was sent
//! before a call began may have missed an append that returned before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::future::{try_join, try_join_all};
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::{
    Lease, SequencerRequest, SequencerResponse, TailAnswer, UnitRequest, UnitResponse,
};
use milonga_protocol::{BackPointers, Epoch, LogError, Position, StreamId, Tail, TailOf, Time};
use tokio::sync::Notify;

use crate::cluster::{Cluster, View, garbage};
use crate::retry::{Attempts, Failure};

/// The tail checks of one client.
pub(crate) struct TailChecks {
    cluster: Arc<Cluster>,
    state: Mutex<State>,
    /// There is a generation to run.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    collecting: Option<Arc<Generation>>,
    running: Option<Arc<Generation>>,
    closed: bool,
}

/// Callers that share one check.
struct Generation {
    /// The earliest call's: nobody waits longer.
    deadline: Time,
    wishes: Mutex<Wishes>,
    answer: OnceLock<Result<Answer, LogError>>,
    answered: Notify,
}

/// The streams of all callers, one list behind the other; equal lists are there once.
#[derive(Default)]
struct Wishes {
    offsets: BTreeMap<Arc<[StreamId]>, usize>,
    streams: Vec<StreamId>,
}

/// The answer to all callers.
struct Answer {
    epoch: Epoch,
    next: Position,
    trimmed: Position,
    /// In the order of [`Wishes::streams`].
    streams: Vec<BackPointers>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TailChecks {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            state: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// A tail check that begins after this call.
    pub(crate) async fn tail(&self, of: TailOf) -> Result<Tail, LogError> {
        let (generation, at, count) = self.join(&of)?;
        loop {
            let answered = generation.answered.notified();
            tokio::pin!(answered);
            // From here on the answer is not missed.
            answered.as_mut().enable();
            if let Some(answer) = generation.answer.get() {
                let answer = answer.as_ref().map_err(Clone::clone)?;
                let streams = answer.streams[at..at + count].to_vec();
                return Ok(Tail::new(
                    answer.epoch,
                    answer.next,
                    answer.trimmed,
                    streams,
                ));
            }
            answered.await;
        }
    }

    /// Joins the generation that collects; says where in its answer the caller's streams are.
    fn join(&self, of: &TailOf) -> Result<(Arc<Generation>, usize, usize), LogError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(LogError::Closed);
        }
        let generation = match &state.collecting {
            Some(generation) => Arc::clone(generation),
            None => {
                let generation = Arc::new(Generation {
                    deadline: self.cluster.deadline(),
                    wishes: Mutex::default(),
                    answer: OnceLock::new(),
                    answered: Notify::new(),
                });
                state.collecting = Some(Arc::clone(&generation));
                self.wanted.notify_one();
                generation
            }
        };
        // Under the state's lock: a generation that runs collects no more.
        let (at, count) = match of {
            TailOf::Streams(streams) => (lock(&generation.wishes).add(streams), streams.len()),
            _ => (0, 0),
        };
        Ok((generation, at, count))
    }

    /// Runs generation after generation; runs until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        // Chains take turns in confirming, so that each has a share of the work.
        let mut turn = 0_usize;
        // What the sequencer said last stands for a lease. Only spares messages: every answer says it again.
        let mut lease = Lease::None;
        loop {
            self.wanted.notified().await;
            let generation = {
                let mut state = lock(&self.state);
                state.running = state.collecting.take();
                state.running.clone()
            };
            let Some(generation) = generation else {
                continue;
            };
            let streams = std::mem::take(&mut lock(&generation.wishes).streams);
            let answer = self
                .check(&streams, generation.deadline, &mut turn, &mut lease)
                .await;
            generation.finish(answer);
            lock(&self.state).running = None;
        }
    }

    /// Ends all waiting: the client is closed.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let generations = [state.collecting.take(), state.running.take()];
        drop(state);
        for generation in generations.into_iter().flatten() {
            generation.finish(Err(LogError::Closed));
        }
    }

    async fn check(
        &self,
        streams: &[StreamId],
        deadline: Time,
        turn: &mut usize,
        lease: &mut Lease,
    ) -> Result<Answer, LogError> {
        metrics::counter!("milonga_client_tail_checks_total").increment(1);
        let mut attempts = Attempts::new(&self.cluster, deadline);
        attempts.check(&"the tail check before this one")?;
        loop {
            let view = self.cluster.view();
            *turn = turn.wrapping_add(1);
            let call_by = attempts.call_deadline();
            match self.attempt(&view, streams, *turn, lease, call_by).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.after(view.epoch(), failure).await?,
            }
        }
    }

    /// Asks the sequencer and, unless something stands for a lease, a chain (rule 21).
    ///
    /// Why both may be asked at once. Both requests leave after every caller's call began. Let A be an append that
    /// returned before that. A newer epoch is committed only when at least one replica of every chain was sealed;
    /// each replica of our chain said that it was unsealed at some time after the calls began, so no newer epoch
    /// had been committed by then, and A was not written under one. So A's token was granted before A returned, by
    /// this epoch's sequencer, whose answer was given later and counts it, or in an earlier epoch, and then A lies
    /// below this epoch's start. It does not matter which of the two was served first.
    async fn attempt(
        &self,
        view: &View,
        streams: &[StreamId],
        turn: usize,
        lease: &mut Lease,
        deadline: Time,
    ) -> Result<Answer, Failure> {
        let asked = self.ask_sequencer(view, streams, deadline);
        let (answers, confirmed) = if *lease == Lease::None {
            let (answers, ()) = try_join(asked, self.confirm(view, turn, deadline)).await?;
            (answers, true)
        } else {
            (asked.await?, false)
        };
        let unleased = answers.iter().any(|answer| answer.lease == Lease::None);
        if unleased && !confirmed {
            self.confirm(view, turn, deadline).await?;
        }
        *lease = if unleased {
            Lease::None
        } else {
            Lease::DirectoryLock
        };
        let first = answers.iter().map(|answer| answer.next).min();
        let trimmed = answers.iter().map(|answer| answer.trimmed).max();
        Ok(Answer {
            epoch: view.epoch(),
            // Of several answers the lowest: every list of streams is at least as new as it.
            next: first.unwrap_or_default(),
            trimmed: trimmed.unwrap_or_default(),
            streams: answers.into_iter().flat_map(|a| a.streams).collect(),
        })
    }

    /// One answer for each message that the streams fill, at least one.
    async fn ask_sequencer(
        &self,
        view: &View,
        streams: &[StreamId],
        deadline: Time,
    ) -> Result<Vec<TailAnswer>, Failure> {
        let none = [&[][..]];
        let chunks = streams.chunks(ITEMS_PER_MESSAGE);
        let chunks = chunks.chain(none.into_iter().filter(|_| streams.is_empty()));
        try_join_all(chunks.map(async |chunk| {
            let request = SequencerRequest::Tail {
                epoch: view.epoch(),
                streams: chunk.to_vec(),
            };
            match self.cluster.sequencer(view, request, deadline).await? {
                SequencerResponse::Tail(answer) if answer.streams.len() == chunk.len() => {
                    Ok(answer)
                }
                _ => Err(garbage(view.sequencer(), "no tail to a tail query")),
            }
        }))
        .await
    }

    /// Whether all replicas of one chain still serve the epoch.
    async fn confirm(&self, view: &View, turn: usize, deadline: Time) -> Result<(), Failure> {
        let segment = view.last_segment();
        let chains = view.layout().segments[segment].chains.len();
        let chain = turn % chains;
        let units = view.chain(segment, chain);
        try_join_all(units.iter().enumerate().map(async |(place, unit)| {
            let unit = view.unit(*unit);
            let request = UnitRequest::Confirm {
                epoch: view.epoch(),
            };
            match self.cluster.unit(unit, request, deadline).await? {
                (UnitResponse::Serving { marks }, _) => {
                    if place + 1 == units.len() {
                        let key = view.key(segment, chain);
                        self.cluster.marks.raise(key, marks.settled);
                    }
                    Ok(())
                }
                _ => Err(garbage(unit, "no confirmation")),
            }
        }))
        .await
        .map(drop)
    }
}

impl Generation {
    fn finish(&self, answer: Result<Answer, LogError>) {
        // Only the first answer counts: closing may come in between.
        let _ = self.answer.set(answer);
        self.answered.notify_waiters();
    }
}

impl Wishes {
    fn add(&mut self, streams: &Arc<[StreamId]>) -> usize {
        if let Some(offset) = self.offsets.get(streams) {
            return *offset;
        }
        let offset = self.streams.len();
        self.streams.extend_from_slice(streams);
        self.offsets.insert(Arc::clone(streams), offset);
        offset
    }
}
