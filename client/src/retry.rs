//! The one retry policy: what a failure calls for, and how long to wait before the next attempt.

use std::time::Duration;

use milonga_protocol::messages::Refusal;
use milonga_protocol::{Epoch, LogError, ServerName, SharedEnv, Time};
use milonga_transport::{CallError, Peer};

use crate::cluster::Cluster;

/// Why one message to one server did not get the answer it wanted.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server did nothing, and said why.
    #[error("{server} refused: {refusal}")]
    Refused {
        server: ServerName,
        refusal: Refusal,
    },
    #[error("{error}")]
    Call {
        server: ServerName,
        error: CallError,
    },
    /// The answer makes no sense; the request may have been served.
    #[error("{server} gave a wrong answer: {why}")]
    Garbage {
        server: ServerName,
        why: &'static str,
    },
    /// A newer layout came before the answer; the request may have been served.
    #[error("{server} had not answered when a newer layout came")]
    Superseded { server: ServerName },
}

/// What a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The server has left the epoch, or never was in it: only a newer layout helps.
    NewLayout,
    /// The server has not reached the epoch yet.
    Patience,
    /// Try again, a little later.
    TryAgain,
    /// Waiting does not help.
    GiveUp,
}

impl Failure {
    pub(crate) const fn remedy(&self) -> Remedy {
        match self {
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Sealed { .. }
                | Refusal::NotOpen
                | Refusal::Identity { .. }
                | Refusal::NoSuchRole { .. } => Remedy::NewLayout,
                Refusal::NotYet { .. } => Remedy::Patience,
                Refusal::Busy { .. } | Refusal::Poisoned { .. } | Refusal::NotLeader { .. } => {
                    Remedy::TryAgain
                }
                Refusal::NotAllowed { .. }
                | Refusal::Malformed { .. }
                | Refusal::Declined { .. } => Remedy::GiveUp,
            },
            Self::Call { error, .. } if !error.is_retryable() => Remedy::GiveUp,
            Self::Superseded { .. } => Remedy::NewLayout,
            Self::Call { .. } | Self::Garbage { .. } => Remedy::TryAgain,
        }
    }

    /// Whether the request may have had an effect.
    pub(crate) const fn may_have_been_served(&self) -> bool {
        match self {
            // A write that failed may have left its bytes: a restarted unit can find and report them.
            Self::Refused { refusal, .. } => matches!(refusal, Refusal::Poisoned { .. }),
            Self::Call { error, .. } => error.may_have_been_served(),
            Self::Garbage { .. } | Self::Superseded { .. } => true,
        }
    }

    /// Whether the server is merely overloaded: a smaller request may do.
    pub(crate) const fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                refusal: Refusal::Busy { .. },
                ..
            }
        )
    }

    pub(crate) const fn server(&self) -> &ServerName {
        match self {
            Self::Refused { server, .. }
            | Self::Call { server, .. }
            | Self::Garbage { server, .. }
            | Self::Superseded { server } => server,
        }
    }

    /// The member of the layout that the server names instead of itself.
    pub(crate) fn leader(&self) -> Option<Peer> {
        let Self::Refused {
            refusal:
                Refusal::NotLeader {
                    leader: Some((name, address)),
                },
            ..
        } = self
        else {
            return None;
        };
        Some(Peer {
            name: name.clone(),
            address: address.as_str().into(),
        })
    }

    /// The server's words, without its name.
    fn why(&self) -> String {
        match self {
            Self::Refused { refusal, .. } => refusal.to_string(),
            Self::Call { error, .. } => error.to_string(),
            Self::Garbage { why, .. } => (*why).to_owned(),
            Self::Superseded { .. } => self.to_string(),
        }
    }

    pub(crate) fn into_refused(self) -> LogError {
        LogError::Refused {
            server: self.server().to_string(),
            why: self.why(),
        }
    }
}

/// Growing, jittered waits.
#[derive(Debug, Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(4);
    const DOUBLINGS: u32 = 6;

    pub(crate) fn next(&mut self, env: &SharedEnv) -> Duration {
        let longest = Self::FIRST * (1 << self.0.min(Self::DOUBLINGS));
        self.0 = self.0.saturating_add(1);
        // Half of it for sure, the other half at random: clients that failed together come back apart.
        let half = longest / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(env.random() % micros)
    }

    pub(crate) const fn is_long(&self) -> bool {
        self.0 > Self::DOUBLINGS
    }

    pub(crate) const fn reset(&mut self) {
        self.0 = 0;
    }
}

/// How long others wait for a newer layout before they report that their epoch is over (rule 2).
const REPORT_AFTER: Duration = Duration::from_millis(200);

/// Waits as `failure`, met in `epoch`, calls for: at most until `until`, and never past a newer layout.
pub(crate) async fn pause(
    cluster: &Cluster,
    failure: &Failure,
    epoch: Epoch,
    backoff: &mut Backoff,
    until: Time,
) {
    let wait = match failure.remedy() {
        Remedy::NewLayout => REPORT_AFTER,
        Remedy::Patience | Remedy::TryAgain | Remedy::GiveUp => backoff.next(&cluster.env),
    };
    let wait_until = until.min(cluster.env.now().after(wait));
    if cluster.newer_than(epoch, wait_until).await {
        backoff.reset();
        return;
    }
    let report = match failure.remedy() {
        Remedy::NewLayout => true,
        Remedy::Patience => backoff.is_long(),
        Remedy::TryAgain | Remedy::GiveUp => false,
    };
    if report {
        cluster.report_sealed(epoch, until).await;
    }
}

/// The attempts of one call that has a deadline.
pub(crate) struct Attempts<'a> {
    cluster: &'a Cluster,
    began: Time,
    deadline: Time,
    backoff: Backoff,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(cluster: &'a Cluster, deadline: Time) -> Self {
        Self {
            began: cluster.env.now(),
            cluster,
            deadline,
            backoff: Backoff::default(),
        }
    }

    /// When the next message is given up.
    pub(crate) fn call_deadline(&self) -> Time {
        self.cluster.call_deadline(self.deadline)
    }

    /// After a failure in `epoch`: `Ok` when the next attempt may begin.
    pub(crate) async fn after(&mut self, epoch: Epoch, failure: Failure) -> Result<(), LogError> {
        if failure.remedy() == Remedy::GiveUp {
            return Err(failure.into_refused());
        }
        self.check(&failure)?;
        pause(
            self.cluster,
            &failure,
            epoch,
            &mut self.backoff,
            self.deadline,
        )
        .await;
        self.check(&failure)
    }

    /// Whether there is time left; `what` says what is waited for.
    pub(crate) fn check(&self, what: &dyn std::fmt::Display) -> Result<(), LogError> {
        if self.cluster.is_closed() {
            return Err(LogError::Closed);
        }
        let now = self.cluster.env.now();
        if now < self.deadline {
            return Ok(());
        }
        Err(LogError::Unavailable {
            what: what.to_string(),
            waited_ms: millis(now.since(self.began)),
        })
    }

    /// Waits a little before asking again for what is not there yet.
    pub(crate) async fn wait_a_little(&mut self, epoch: Epoch) {
        let wait = self.backoff.next(&self.cluster.env);
        let until = self.deadline.min(self.cluster.env.now().after(wait));
        self.cluster.newer_than(epoch, until).await;
    }
}

/// Whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_failed_to_write_may_have_written() {
        let refused = |refusal| Failure::Refused {
            server: "unit-1a".into(),
            refusal,
        };
        let why = "writing a batch: EIO".to_owned();
        assert!(refused(Refusal::Poisoned { why }).may_have_been_served());
        assert!(!refused(Refusal::NotOpen).may_have_been_served());
    }
}
