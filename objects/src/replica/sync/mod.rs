//! Tail checks, shared: everybody who asks before a check is sent waits for that check; whoever asks later waits for
//! the next. Playing to its target does not hold up the next check.

#[cfg(all(test, milonga_loom))]
mod models;
mod round;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::sync::{Mutex, MutexGuard, Notify, Weakness, weakened};
use milonga_protocol::{
    BoxFuture, Epoch, LogError, Position, SharedEnv, Tail, TailOf, Target, Time,
};

use crate::error::ReadError;
use crate::replica::{Shared, tick, until};
use round::{Playing, Round, Targets};

pub(crate) use round::Reach;

/// Streams that one tail check may name; beyond, the whole log is asked.
const STREAMS_PER_CHECK: usize = 64;

/// All syncs of a replica.
pub(crate) struct Syncs {
    state: Mutex<State>,
    /// A round was begun.
    begun: Notify,
    env: SharedEnv,
    deadline: Duration,
}

#[derive(Default)]
struct State {
    /// Not sent yet: may be joined.
    forming: Option<Arc<Round>>,
    /// Sent, not answered yet.
    checking: Option<Arc<Round>>,
    /// Checked, not yet played to.
    playing: Vec<Playing>,
    /// Must be played as well: own appends. Exclusive, and settled, so never lowered.
    appended: Position,
    /// Newest epoch heard of.
    epoch: Epoch,
    stopped: Option<ReadError>,
}

impl Syncs {
    pub(crate) fn new(env: SharedEnv, deadline: Duration) -> Self {
        Self {
            state: Mutex::default(),
            begun: Notify::new(),
            env,
            deadline,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the replica has played everything that had been appended before this call. Resolves by the
    /// deadline in any case: rounds expire, so that callers need no timer of their own.
    pub(crate) async fn sync(&self, reach: Reach) -> Result<(), ReadError> {
        self.join(reach)?.pass(reach).await
    }

    /// Whether syncs are still possible.
    pub(crate) fn check(&self) -> Result<(), ReadError> {
        self.lock().stopped.clone().map_or(Ok(()), Err)
    }

    fn join(&self, reach: Reach) -> Result<Arc<Round>, ReadError> {
        let mut state = self.lock();
        if let Some(stopped) = &state.stopped {
            return Err(stopped.clone());
        }
        if (plants::active(Plant::JoinsSentCheck) || weakened(Weakness::JoinSentChecks))
            && let Some(sent) = state.checking.clone()
        {
            sent.want(reach);
            return Ok(sent);
        }
        let round = match &state.forming {
            Some(round) => Arc::clone(round),
            None => {
                let deadline = self.env.now().after(self.deadline);
                let round = Arc::new(Round::new(deadline));
                state.forming = Some(Arc::clone(&round));
                self.begun.notify_one();
                round
            }
        };
        // Before anybody can look whether it is reached: the round is sent under the same lock.
        round.want(reach);
        Ok(round)
    }

    /// What was begun, to be sent now: nobody joins it any more.
    fn close_forming(&self) -> Option<Arc<Round>> {
        let mut state = self.lock();
        state.checking = state.forming.take();
        state.checking.clone()
    }

    fn checked(&self, round: Arc<Round>, tail: &Tail, applied: Position) {
        let mut state = self.lock();
        if let Some(stopped) = &state.stopped {
            round.fail(stopped);
            return;
        }
        state.checking = None;
        state.epoch = state.epoch.max(tail.epoch);
        state.playing.push(Playing {
            round,
            epoch: tail.epoch,
            targets: Targets::new(tail),
        });
        state.open_gates(applied);
    }

    /// An own entry is in the log at `position`.
    pub(crate) fn appended(&self, position: Position) {
        let mut state = self.lock();
        state.appended = state.appended.max(position.next());
    }

    /// What to play next, oldest epoch first, because a target belongs to its epoch (rule 23).
    pub(crate) fn target(&self, applied: Position) -> Option<Target> {
        let state = self.lock();
        let epoch = state.playing.iter().map(|p| p.epoch).min();
        let synced = epoch.and_then(|epoch| {
            let same = state.playing.iter().filter(|p| p.epoch == epoch);
            let to = same.map(Playing::wanted).max()?;
            (to > applied).then_some(Target { epoch, to })
        });
        let appended = (state.appended > applied).then_some(Target {
            epoch: state.epoch,
            to: state.appended,
        });
        match (synced, appended) {
            (Some(synced), Some(appended)) => Some(Target {
                epoch: synced.epoch,
                to: synced.to.max(appended.to),
            }),
            (one, other) => one.or(other),
        }
    }

    /// The replica has played everything below `applied`.
    pub(crate) fn played(&self, applied: Position) {
        self.lock().open_gates(applied);
    }

    /// A target was lowered because its epoch ended.
    pub(crate) fn lowered(&self, asked: Target, to: Position, applied: Position) {
        let mut state = self.lock();
        for playing in state.playing.iter_mut().filter(|p| p.epoch <= asked.epoch) {
            playing.targets.lower(to);
        }
        state.open_gates(applied);
    }

    pub(crate) fn heard_of(&self, epoch: Epoch) {
        let mut state = self.lock();
        state.epoch = state.epoch.max(epoch);
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// Fails those whose deadline has passed. Whether anybody is left.
    fn expire(&self, now: Time, what: &str) -> bool {
        let mut state = self.lock();
        let late = |round: &Round| round.deadline <= now;
        let forming = state.forming.take_if(|round| late(round));
        let playing = state.playing.extract_if(.., |playing| late(&playing.round));
        let expired: Vec<_> = forming
            .into_iter()
            .chain(playing.map(|playing| playing.round))
            .collect();
        let left = state.forming.is_some() || !state.playing.is_empty();
        drop(state);
        expired
            .iter()
            .for_each(|round| round.fail(&self.late(what)));
        left
    }

    fn late(&self, what: &str) -> ReadError {
        ReadError::Unavailable {
            what: what.to_owned(),
            waited_ms: super::millis(self.deadline),
        }
    }

    /// Fails everybody who waits for playback now.
    pub(crate) fn fail_all(&self, error: &ReadError) {
        for playing in self.lock().playing.drain(..) {
            playing.round.fail(error);
        }
    }

    /// Fails everybody, now and later.
    pub(crate) fn stop(&self, error: &ReadError) {
        let mut state = self.lock();
        state.stopped.get_or_insert_with(|| error.clone());
        // The task that makes the check may be gone before it is answered.
        let waiting = [state.forming.take(), state.checking.take()];
        drop(state);
        waiting.iter().flatten().for_each(|round| round.fail(error));
        self.fail_all(error);
    }
}

impl State {
    fn open_gates(&mut self, applied: Position) {
        let applied = if plants::active(Plant::AppliedIsMaximum) {
            applied.max(self.appended)
        } else {
            applied
        };
        self.playing.retain(|playing| !playing.open_gates(applied));
    }
}

/// Makes the tail checks, one at a time, until the replica ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let syncs = &shared.syncs;
    let every = tick(shared.options.deadline);
    let mut check: Option<BoxFuture<'static, ()>> = None;
    let mut timer = None;
    loop {
        tokio::select! {
            biased;
            () = until(&mut check) => check = None,
            () = syncs.begun.notified() => {}
            () = until(&mut timer) => {
                let left = syncs.expire(shared.env.now(), &shared.obstacle()) || check.is_some();
                timer = left.then(|| shared.env.sleep(every));
            }
        }
        if check.is_none()
            && let Some(round) = syncs.close_forming()
        {
            check = Some(Box::pin(check_tail(Arc::clone(&shared), round)));
        }
        if timer.is_none() && check.is_some() {
            timer = Some(shared.env.sleep(every));
        }
    }
}

fn of_hosted(shared: &Shared) -> TailOf {
    let hosted = shared.hosted_streams();
    if hosted.is_empty() || hosted.len() > STREAMS_PER_CHECK {
        return TailOf::Log;
    }
    TailOf::Streams(hosted)
}

async fn check_tail(shared: Arc<Shared>, round: Arc<Round>) {
    let mut backoff = crate::replica::Backoff::new(&shared.env);
    let mut expiry = shared.env.sleep_until(round.deadline);
    loop {
        metrics::counter!("milonga_tail_checks_total").increment(1);
        let tail = tokio::select! {
            biased;
            tail = shared.log.tail(of_hosted(&shared)) => tail,
            () = &mut expiry => return round.fail(&shared.syncs.late("a tail check")),
        };
        match tail {
            Ok(tail) => {
                let applied = shared.world().applied();
                shared.syncs.checked(round, &tail, applied);
                shared.player.notify_one();
                return;
            }
            Err(LogError::Unavailable { what, .. }) => {
                tracing::debug!(what, "tail check failed");
                shared.set_obstacle(&what);
                let now = shared.env.now();
                if now >= round.deadline {
                    return round.fail(&shared.syncs.late(&what));
                }
                let next = now.after(backoff.next()).min(round.deadline);
                shared.env.sleep_until(next).await;
            }
            Err(LogError::Closed) => return round.fail(&ReadError::Closed),
            Err(source) => return round.fail(&ReadError::Log { source }),
        }
    }
}
