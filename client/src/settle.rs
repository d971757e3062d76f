//! Settling: drives the pure procedure of `milonga_protocol::settle` over the network.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use milonga_protocol::messages::{Request, Response};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::settle::{SendId, Settle, SettleEnd, SettleSend, Winner};
use milonga_protocol::{Epoch, Layout, LogError, Position, Target, Time};
use tokio::sync::Notify;

use crate::cluster::{Cluster, View};
use crate::retry::{Attempts, Failure};
use crate::trim::{settled, tell_settled};

/// A target by the rules of `layout`: when its epoch has ended it is lowered to the next one's start, for what lies
/// above may be granted again (rule 23).
pub(crate) fn lowered(layout: &Layout, target: Target) -> Target {
    if layout.epoch <= target.epoch {
        return target;
    }
    let later = layout.starts.iter().find(|(e, _)| *e > target.epoch);
    let start = layout
        .start_after(target.epoch)
        // Too long ago to be listed: the first start that is listed is not below the one that counts.
        .or_else(|| later.map(|(_, start)| *start))
        .unwrap_or(layout.start);
    let start = if plants::active(Plant::TargetNotLowered) {
        Position::MAX
    } else if plants::active(Plant::TargetLoweredTooFar) {
        start.minus(1)
    } else {
        start
    };
    Target {
        epoch: layout.epoch,
        to: target.to.min(start),
    }
}

/// What to settle: positions that were granted in or before an epoch.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// Holes in here, whoever fills them.
    Range(Position, Position),
    /// All of it, also what was settled before.
    Everything(Position, Position),
    /// Ascending.
    Positions(Vec<Position>),
    /// Ascending. What every replica has lost of them becomes junk.
    GiveUp(Vec<Position>),
}

impl What {
    fn span(&self) -> (Position, Position) {
        match self {
            Self::Range(from, to) | Self::Everything(from, to) => (*from, *to),
            Self::Positions(positions) | Self::GiveUp(positions) => (
                positions.first().copied().unwrap_or_default(),
                positions.last().map_or(Position::ZERO, |last| last.next()),
            ),
        }
    }

    fn begin(&self, layout: &Layout, to: Position) -> Settle {
        match self {
            Self::Range(from, _) | Self::Everything(from, _) => Settle::new(layout, *from, to),
            Self::Positions(positions) => {
                Settle::positions(layout, positions.iter().copied().filter(|p| *p < to))
            }
            Self::GiveUp(positions) => {
                Settle::giving_up(layout, positions.iter().copied().filter(|p| *p < to))
            }
        }
    }
}

/// Settles for one client; of overlapping wishes only one is under way at a time.
pub(crate) struct Settler {
    cluster: Arc<Cluster>,
    ranges: Mutex<Ranges>,
    changed: Notify,
}

/// Most lost positions that one run remembers, the lowest ones.
const MOST_LOST: usize = 65_536;

/// Ranges that [`Ranges::done`] remembers.
const REMEMBERED: usize = 64;

#[derive(Default)]
struct Ranges {
    busy: Vec<(Position, Position)>,
    /// Settled lately, in whole, with the number of the claim.
    done: VecDeque<(Position, Position, u64)>,
    /// Claims made so far.
    claims: u64,
}

impl Settler {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            ranges: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Settles `what`, as far as it is still valid, known from `known.epoch`. Answers the first position that is
    /// lost on every replica, if there is one.
    pub(crate) async fn settle(
        &self,
        what: What,
        epoch: Epoch,
        deadline: Time,
    ) -> Result<Option<Position>, LogError> {
        Ok(self.find(what, epoch, deadline).await?.lost.pop_first())
    }

    /// Settles what lies in `from..to` and turns into junk what every replica has lost there. Answers what that was:
    /// nothing that a replica has found again meanwhile, and nothing that somebody else may still judge.
    pub(crate) async fn give_up(
        &self,
        from: Position,
        to: Position,
        epoch: Epoch,
        deadline: Time,
    ) -> Result<BTreeSet<Position>, LogError> {
        let (mut given_up, mut asked) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let found = self
                .find(What::Everything(from, to), epoch, deadline)
                .await?;
            let mut lost = found.lost;
            // Those of the active part wait for an epoch that closes them.
            let again = lost.iter().find(|position| asked.contains(*position));
            if let Some(position) = again.copied() {
                return Err(LogError::Lost { position });
            }
            if lost.is_empty() {
                return Ok(given_up);
            }
            let what = What::GiveUp(self.note_given_up(&lost, deadline).await?);
            let found = self.find(what, epoch, deadline).await?;
            given_up.extend(found.junk_at.intersection(&lost));
            asked.append(&mut lost);
        }
    }

    /// Units that are out may still have what is given up, and may not bring it back: the layout has to know before anybody
    /// turns it into junk. Answers what it knows now, that is what is closed.
    async fn note_given_up(
        &self,
        lost: &BTreeSet<Position>,
        deadline: Time,
    ) -> Result<Vec<Position>, LogError> {
        let mut attempts = Attempts::new(&self.cluster, deadline);
        loop {
            let view = self.cluster.view();
            let closed = lost.iter().copied().filter(|p| view.layout().is_closed(*p));
            let closed: Vec<_> = closed.collect();
            let (Some(from), Some(last)) = (closed.first(), closed.last()) else {
                return Ok(closed);
            };
            let deadline = attempts.call_deadline();
            match self
                .cluster
                .note_given_up(*from, last.next(), deadline)
                .await
            {
                Ok(()) => return Ok(closed),
                Err(failure) => attempts.after(view.epoch(), failure).await?,
            }
        }
    }

    /// Settles, and answers what that brought to light.
    async fn find(&self, what: What, epoch: Epoch, deadline: Time) -> Result<Found, LogError> {
        let (from, end) = what.span();
        let mut attempts = Attempts::new(&self.cluster, deadline);
        // A hole that was filled stays filled. Whether all is still there, only who looks from now on knows.
        let since = match what {
            What::Range(..) => 0,
            _ => self.lock().claims,
        };
        let claim = self.claim((from, end), since, &attempts, deadline);
        let Some(claim) = claim.await? else {
            return Ok(Found::default());
        };
        metrics::counter!("milonga_client_settles_total").increment(1);
        tracing::debug!(%from, to = %end, "settling");
        loop {
            let view = self.cluster.view();
            let target = lowered(view.layout(), Target { epoch, to: end });
            let mut core = what.begin(view.layout(), target.to);
            let mut found = Found::of(&what);
            match self.drive(&view, &mut core, &mut found, deadline).await {
                Ok(()) => {
                    metrics::counter!("milonga_client_junk_filled_total").increment(found.junk);
                    let whole = matches!(what, What::Range(..) | What::Everything(..));
                    if whole && found.lost.is_empty() {
                        self.settled(&view, from, target.to);
                        claim.done(target.to);
                    }
                    return Ok(found);
                }
                Err(Stop::NewLayout) => {}
                Err(Stop::Failed(failure)) => attempts.after(view.epoch(), failure).await?,
                Err(Stop::Error(error)) => return Err(error),
            }
            attempts.check(&"settling of holes")?;
        }
    }

    /// One run by one layout.
    async fn drive(
        &self,
        view: &View,
        core: &mut Settle,
        found: &mut Found,
        deadline: Time,
    ) -> Result<(), Stop> {
        let mut attempts = Attempts::new(&self.cluster, deadline);
        let mut calls = FuturesUnordered::new();
        let mut last = None;
        loop {
            while let Some(send) = core.poll_send() {
                calls.push(self.send(view, send, attempts.call_deadline()));
            }
            found.take(core.take_winners());
            if let Some(end) = core.end() {
                return ended(view, end, last);
            }
            if let Some((id, outcome)) = calls.next().await {
                core.handle(
                    id,
                    match outcome {
                        Ok(answer) => Ok(answer),
                        Err(failure) => {
                            let outcome = as_outcome(&failure);
                            last = Some(failure);
                            outcome
                        }
                    },
                );
                continue;
            }
            // Everything that is left failed.
            if core.may_be_too_far() {
                self.tell_marks(view, attempts.call_deadline()).await;
            }
            match last.take() {
                Some(failure) => attempts
                    .after(view.epoch(), failure)
                    .await
                    .map_err(Stop::Error)?,
                None => {
                    let why = core.waiting().map(|(_, why)| why.to_owned()).next();
                    let why = why.unwrap_or_else(|| "settling of holes".into());
                    attempts.check(&why).map_err(Stop::Error)?;
                    attempts.wait_a_little(view.epoch()).await;
                }
            }
            if self.cluster.view().epoch() > view.epoch() {
                return Err(Stop::NewLayout);
            }
            core.retry();
        }
    }

    /// Replicas before the tails learn what is settled from appends; where none goes through, as on a full disk, they
    /// have to hear it from whoever fills.
    async fn tell_marks(&self, view: &View, deadline: Time) {
        match settled(&self.cluster, view, deadline).await {
            Ok(mark) => tell_settled(&self.cluster, view, mark, deadline).await,
            Err(failure) => tracing::debug!(%failure, "marks not known"),
        }
    }

    async fn send(
        &self,
        view: &View,
        send: SettleSend,
        deadline: Time,
    ) -> (SendId, Result<(Response, Bytes), Failure>) {
        let message = Request::Unit(send.request).into_message(send.body);
        let unit = view.unit(send.unit);
        let answer = self
            .cluster
            .unit_message(view.epoch(), unit, message, deadline)
            .await;
        (
            send.id,
            answer.map(|(response, body)| (Response::Unit(response), body)),
        )
    }

    /// Everything in `from..to` is settled: chains that were settled up to `from` are now settled up to `to`.
    fn settled(&self, view: &View, from: Position, to: Position) {
        let segment = view.last_segment();
        for chain in 0..view.layout().segments[segment].chains.len() {
            if self.cluster.settled(view, segment, chain) >= from {
                self.cluster.raise_settled(view, segment, chain, to);
            }
        }
    }

    /// Waits until nobody else settles any of the range; `None` if there is nothing in it, or if somebody has settled all of
    /// it after claim number `since`.
    async fn claim(
        &self,
        (from, to): (Position, Position),
        since: u64,
        attempts: &Attempts<'_>,
        deadline: Time,
    ) -> Result<Option<Claim<'_>>, LogError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            {
                let mut ranges = self.lock();
                let mut done = ranges.done.iter().filter(|(.., claim)| *claim > since);
                if from >= to || done.any(|(f, t, _)| *f <= from && to <= *t) {
                    return Ok(None);
                }
                if !ranges.busy.iter().any(|(f, t)| *f < to && from < *t) {
                    ranges.busy.push((from, to));
                    ranges.claims += 1;
                    return Ok(Some(Claim {
                        settler: self,
                        number: ranges.claims,
                        range: (from, to),
                    }));
                }
            }
            attempts.check(&"settling of holes by another call of this client")?;
            tokio::select! {
                biased;
                () = changed => {}
                () = self.cluster.env.sleep_until(deadline) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ranges> {
        // Every change is complete before anything can panic.
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that is being settled; dropped with the call, so a dropped call holds up nobody.
struct Claim<'a> {
    settler: &'a Settler,
    number: u64,
    range: (Position, Position),
}

impl Claim<'_> {
    fn done(&self, to: Position) {
        let mut ranges = self.settler.lock();
        if ranges.done.len() >= REMEMBERED {
            ranges.done.pop_front();
        }
        ranges.done.push_back((self.range.0, to, self.number));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut ranges = self.settler.lock();
        if let Some(at) = ranges.busy.iter().position(|range| *range == self.range) {
            ranges.busy.swap_remove(at);
        }
        drop(ranges);
        self.settler.changed.notify_waiters();
    }
}

#[derive(Default)]
struct Found {
    junk: u64,
    /// Lost on every replica, at most [`MOST_LOST`].
    lost: BTreeSet<Position>,
    /// Junk by now, of what was to be given up.
    junk_at: BTreeSet<Position>,
    gives_up: bool,
}

impl Found {
    fn of(what: &What) -> Self {
        Self {
            gives_up: matches!(what, What::GiveUp(_)),
            ..Self::default()
        }
    }

    fn take(&mut self, winners: Vec<(Position, Winner)>) {
        for (position, winner) in winners {
            match winner {
                Winner::Junk => {
                    self.junk += 1;
                    if self.gives_up {
                        self.junk_at.insert(position);
                    }
                }
                Winner::Lost => {
                    self.lost.insert(position);
                    if self.lost.len() > MOST_LOST {
                        self.lost.pop_last();
                    }
                }
                _ => {}
            }
        }
    }
}

enum Stop {
    NewLayout,
    Failed(Failure),
    Error(LogError),
}

fn ended(view: &View, end: &SettleEnd, last: Option<Failure>) -> Result<(), Stop> {
    match end {
        SettleEnd::Settled => Ok(()),
        SettleEnd::EpochOver => Err(last.map_or(Stop::NewLayout, Stop::Failed)),
        SettleEnd::Broken {
            unit,
            position,
            why,
        } => {
            let server = view.unit(*unit).name.to_string();
            tracing::error!(%server, %position, why, "replicas disagree");
            Err(Stop::Error(LogError::Refused {
                server,
                why: format!("position {position}: {why}"),
            }))
        }
        _ => Err(Stop::Error(LogError::Refused {
            server: "settle".into(),
            why: "an end that this build does not know".into(),
        })),
    }
}

/// How the core wants to hear of a failure.
fn as_outcome(failure: &Failure) -> Result<(Response, Bytes), String> {
    match failure {
        Failure::Refused { refusal, .. } => Ok((Response::Refused(refusal.clone()), Bytes::new())),
        other => Err(other.to_string()),
    }
}
