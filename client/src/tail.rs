//! Tail checks, shared among concurrent callers.
//!
//! One check is under way at a time; callers that come meanwhile collect for the next, because a check that was sent
//! before a call began may have missed an append that returned before it.

mod sharing;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, join, join_all, select, try_join, try_join_all};
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::{
    Lease, SequencerRequest, SequencerResponse, TailAnswer, UnitRequest, UnitResponse,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{LogError, Position, StreamId, Tail, TailOf, Time, Written};

use crate::cluster::{Cluster, View, garbage};
use crate::retry::{Attempts, Failure};
use sharing::Sharing;

const REPLICAS: &str = "a validated layout's chain has replicas";

/// The tail checks of one client.
pub(crate) struct TailChecks {
    cluster: Arc<Cluster>,
    sharing: Sharing,
}

/// Which chain confirms. They take turns, so that each has a share of the work; after a failure the one that works is
/// kept for a while.
#[derive(Default)]
struct Turn {
    chain: usize,
    keep_until: Time,
}

/// What the checks before lead to expect. It only spares messages and waiting: every answer says again what it is worth.
struct Habit {
    /// What stands for a lease.
    lease: Lease,
    /// What was granted.
    next: Position,
    /// Until then somebody is taken to be writing.
    busy_until: Time,
}

/// So long after something was granted, more is expected to be.
const BUSY: Duration = Duration::from_secs(1);

impl Default for Habit {
    fn default() -> Self {
        Self {
            lease: Lease::None,
            next: Position::ZERO,
            busy_until: Time::default(),
        }
    }
}

impl Habit {
    fn answered(&mut self, now: Time, lease: Lease, next: Position) {
        if next > self.next {
            self.busy_until = now.after(BUSY);
        }
        (self.lease, self.next) = (lease, next);
    }
}

/// How long a chain is kept after another one failed.
const KEEP: Duration = Duration::from_secs(10);

impl Turn {
    fn worked(&mut self, now: Time) {
        if now >= self.keep_until {
            self.chain = self.chain.wrapping_add(1);
        }
    }

    fn failed(&mut self, now: Time) {
        self.chain = self.chain.wrapping_add(1);
        self.keep_until = now.after(KEEP);
    }
}

impl TailChecks {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            sharing: Sharing::default(),
        }
    }

    /// A tail check that begins after this call.
    pub(crate) async fn tail(&self, of: TailOf) -> Result<Tail, LogError> {
        let deadline = || self.cluster.deadline();
        self.sharing.answer(&of, deadline).await
    }

    /// Runs generation after generation; runs until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut turn = Turn::default();
        let mut habit = Habit::default();
        loop {
            let (generation, streams) = self.sharing.next().await;
            let answer = self
                .check(&streams, generation.deadline, &mut turn, &mut habit)
                .await;
            self.sharing.answered(&generation, answer);
        }
    }

    /// Ends all waiting: the client is closed.
    pub(crate) fn close(&self) {
        self.sharing.close();
    }

    async fn check(
        &self,
        streams: &[StreamId],
        deadline: Time,
        turn: &mut Turn,
        habit: &mut Habit,
    ) -> Result<Tail, LogError> {
        metrics::counter!("milonga_client_tail_checks_total").increment(1);
        let mut attempts = Attempts::new(&self.cluster, deadline);
        attempts.check(&"the tail check before this one")?;
        loop {
            let view = self.cluster.view();
            let call_by = attempts.call_deadline();
            let chain = turn.chain;
            match self.attempt(&view, streams, chain, habit, call_by).await {
                Ok(answer) => {
                    turn.worked(self.cluster.env.now());
                    return Ok(answer);
                }
                Err(failure) => {
                    // The sequencer's failure is no chain's.
                    if *failure.server() != view.sequencer().name {
                        turn.failed(self.cluster.env.now());
                    }
                    attempts.after(view.epoch(), failure).await?;
                }
            }
        }
    }

    /// Asks the sequencer and, unless something stands for a lease, the units (rule 21).
    ///
    /// Why all may be asked at once. All requests leave after every caller's call began. Let A be an append that
    /// returned before that. A newer epoch is committed only when at least one replica of every chain was sealed;
    /// each replica of one chain said that it was unsealed at some time after the calls began, so no newer epoch
    /// had been committed by then, and A was not written under one. So A's token was granted before A returned, by
    /// this epoch's sequencer, whose answer was given later and counts it, or in an earlier epoch, and then A lies
    /// below this epoch's start. It does not matter which of the two was served first.
    ///
    /// Why nobody else need be asked under a lease. It had not run out when the sequencer had read the query, so after every
    /// caller's call began; until then no later epoch has granted a token (rule 20), so A belongs to this epoch or an
    /// earlier one, and is counted as above. While others write, the tails are asked all the same, for where they end:
    /// nobody waits for them, but for an entry that is granted and not yet written one would wait longer.
    ///
    /// Why the tails' ends count, too: A was durable at the tail of its chain before it returned, so before that tail
    /// was asked, and at or above the start only this epoch's chains hold anything (decision 0007).
    async fn attempt(
        &self,
        view: &View,
        streams: &[StreamId],
        turn: usize,
        habit: &mut Habit,
        deadline: Time,
    ) -> Result<Tail, Failure> {
        let asked = self.ask_sequencer(view, streams, deadline);
        let busy = self.cluster.env.now() < habit.busy_until;
        let (answers, mut ends, confirmed) = match habit.lease {
            Lease::None => {
                let asked = try_join(asked, self.ask_units(view, streams, turn, deadline));
                let (answers, ends) = asked.await?;
                (answers, ends, true)
            }
            Lease::Renewed if busy => {
                let (answers, ends) = join(asked, self.ask_tails(view, streams, deadline)).await;
                (answers?, ends, false)
            }
            Lease::Renewed | Lease::DirectoryLock => (asked.await?, None, false),
        };
        // Answers to several messages: one that is not under a lease leaves all to be confirmed.
        let unleased = answers.iter().any(|answer| answer.lease == Lease::None);
        if unleased && !confirmed {
            ends = self.ask_units(view, streams, turn, deadline).await?;
        }
        let last = answers.last().map_or(Lease::None, |answer| answer.lease);
        let lease = if unleased { Lease::None } else { last };
        let first = answers.iter().map(|answer| answer.next).min();
        let trimmed = answers.iter().map(|answer| answer.trimmed).max();
        let now = self.cluster.env.now();
        habit.answered(now, lease, first.unwrap_or_default());
        let mut tail = Tail::new(
            view.epoch(),
            // Of several answers the lowest: every list of streams is at least as new as it.
            first.unwrap_or_default(),
            trimmed.unwrap_or_default(),
            answers.into_iter().flat_map(|a| a.streams).collect(),
        );
        // Below the start other chains may hold what counts, and everything is settled without waiting for anybody;
        // who is below the trim mark has to hear of it (rule 22).
        let least = view.layout().start.max(tail.trimmed);
        tail.written = ends.map(|ends| written(&tail, &ends, least));
        Ok(tail)
    }

    /// One answer for each message that the streams fill, at least one.
    async fn ask_sequencer(
        &self,
        view: &View,
        streams: &[StreamId],
        deadline: Time,
    ) -> Result<Vec<TailAnswer>, Failure> {
        try_join_all(chunks(streams).map(async |chunk| {
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

    /// Whether all replicas of one chain still serve the epoch; and, if all tails say so, where what they hold ends.
    async fn ask_units(
        &self,
        view: &View,
        streams: &[StreamId],
        confirming: usize,
        deadline: Time,
    ) -> Result<Option<Written>, Failure> {
        metrics::counter!("milonga_client_tail_confirmations_total").increment(1);
        let segment = view.last_segment();
        let chains = view.layout().segments[segment].chains.len();
        let confirming = confirming % chains;
        let others = (0..chains).filter(|chain| *chain != confirming);
        // One whole chain is enough, so failures of others are none of this check.
        let others = self.ask_each_tail(view, others, streams, deadline);
        let own = self.ask_whole_chain(view, confirming, streams, deadline);
        let (own, others) = match select(pin!(own), pin!(others)).await {
            Either::Left((own, others)) => (own?, self.within_grace(others).await),
            Either::Right((others, own)) => (own.await?, Some(others)),
        };
        let others = others.and_then(all_ends);
        // If a tail is silent, reads wait for what was granted.
        Ok(others.map(|others| others.into_iter().fold(own, higher)))
    }

    /// What comes soon: a server that hangs must not hold up those who can do without it.
    async fn within_grace<T>(&self, answers: impl Future<Output = T> + Unpin) -> Option<T> {
        let grace = self.cluster.env.sleep(self.cluster.options.hole_time);
        match select(answers, grace).await {
            Either::Left((answers, _)) => Some(answers),
            Either::Right(_) => None,
        }
    }

    /// Where what the tails hold ends, if all of them say so soon.
    async fn ask_tails(
        &self,
        view: &View,
        streams: &[StreamId],
        deadline: Time,
    ) -> Option<Written> {
        let chains = view.layout().segments[view.last_segment()].chains.len();
        let tails = self.ask_each_tail(view, 0..chains, streams, deadline);
        let ends = self.within_grace(pin!(tails)).await?;
        all_ends(ends)?.into_iter().reduce(higher)
    }

    /// Where what the tails of these chains hold ends; nothing from those that fail.
    async fn ask_each_tail(
        &self,
        view: &View,
        chains: impl Iterator<Item = usize>,
        streams: &[StreamId],
        deadline: Time,
    ) -> Vec<Option<Written>> {
        let asked = chains.map(async |chain| {
            let ends = self.ask_tail(view, chain, streams, deadline).await;
            ends.ok()
        });
        join_all(asked).await
    }

    /// Whether all replicas of the chain still serve the epoch, and where what its tail holds ends.
    async fn ask_whole_chain(
        &self,
        view: &View,
        chain: usize,
        streams: &[StreamId],
        deadline: Time,
    ) -> Result<Written, Failure> {
        let (_, others) = view
            .chain(view.last_segment(), chain)
            .split_last()
            .expect(REPLICAS);
        let confirmed = try_join_all(
            others
                .iter()
                .map(|unit| self.cluster.confirm(view, *unit, deadline)),
        );
        let (_, ends) = try_join(confirmed, self.ask_tail(view, chain, streams, deadline)).await?;
        Ok(ends)
    }

    /// Where what a chain's tail holds ends. It also confirms that the tail serves the epoch.
    async fn ask_tail(
        &self,
        view: &View,
        chain: usize,
        streams: &[StreamId],
        deadline: Time,
    ) -> Result<Written, Failure> {
        let segment = view.last_segment();
        let units = view.chain(segment, chain);
        let unit = view.unit(*units.last().expect(REPLICAS));
        let parts = try_join_all(chunks(streams).map(async |chunk| {
            let request = UnitRequest::Ends {
                epoch: view.epoch(),
                streams: chunk.to_vec(),
            };
            match self
                .cluster
                .unit(view.epoch(), unit, request, deadline)
                .await?
            {
                (
                    UnitResponse::Ends {
                        marks,
                        log,
                        streams,
                    },
                    _,
                ) if streams.len() == chunk.len() => {
                    self.cluster
                        .raise_settled(view, segment, chain, marks.settled);
                    Ok(Written { log, streams })
                }
                _ => Err(garbage(unit, "no ends to a query for them")),
            }
        }));
        let joined = parts.await?.into_iter().reduce(|mut all, part| {
            all.log = all.log.max(part.log);
            all.streams.extend(part.streams);
            all
        });
        Ok(joined.expect("at least one chunk"))
    }
}

/// What fits a message each; one empty chunk if there are no streams.
fn chunks(streams: &[StreamId]) -> impl Iterator<Item = &[StreamId]> {
    let none = streams.is_empty().then_some(&[][..]);
    none.into_iter().chain(streams.chunks(ITEMS_PER_MESSAGE))
}

/// What all chains said; `None` if one is silent.
fn all_ends(said: Vec<Option<Written>>) -> Option<Vec<Written>> {
    if plants::active(Plant::SilentChainHoldsNothing) {
        return Some(said.into_iter().flatten().collect());
    }
    said.into_iter().collect()
}

/// The higher of each end.
fn higher(mut one: Written, other: Written) -> Written {
    one.log = one.log.max(other.log);
    for (end, other) in one.streams.iter_mut().zip(other.streams) {
        *end = other.max(*end);
    }
    one
}

/// Lowers what was granted to what the tails hold, but to nothing below `least`.
fn written(tail: &Tail, ends: &Written, least: Position) -> Written {
    let lowered = |granted: Position, end: Position| granted.min(end.max(least));
    let streams = tail.streams.iter().zip(&ends.streams);
    Written {
        log: lowered(tail.next, ends.log),
        streams: streams
            .map(|(list, end)| lowered(tail.granted_end(list), *end))
            .collect(),
    }
}
