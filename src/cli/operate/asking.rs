//! Asks the layout, whichever of its servers answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::change::{ChangeReport, ClusterChange, HistoryReport};
use milonga_protocol::messages::{LayoutRequest, LayoutResponse, Refusal, Request, Response};
use milonga_protocol::{Epoch, SharedEnv, Time};
use milonga_transport::{Peer, SharedNetwork, TokioEnv};

use crate::ClientConfig;
use crate::cli::output::Failure;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// For a page of the history.
const HISTORY_WITHIN: Duration = Duration::from_secs(15);
/// Between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(200);

/// Who is asked.
pub(super) struct Asking {
    env: SharedEnv,
    network: SharedNetwork,
    servers: Vec<Peer>,
    /// Who answered last is asked first: others may be dead.
    first: AtomicUsize,
}

/// Why there is no answer to a question.
pub(super) enum Unanswered {
    /// Asking again is in vain.
    Declined(String),
    /// Nobody can say now.
    Later(String),
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Self {
        let (Unanswered::Declined(why) | Unanswered::Later(why)) = unanswered;
        Self::failed(why)
    }
}

impl Asking {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, Failure> {
        let env: SharedEnv = TokioEnv::try_new()?;
        let network = crate::milonga::network(config, &env)?;
        let servers = config.peers();
        Ok(Self {
            env,
            network,
            servers,
            first: AtomicUsize::new(0),
        })
    }

    pub(super) fn now(&self) -> Time {
        self.env.now()
    }

    pub(super) async fn pause(&self, duration: Duration) {
        self.env.sleep(duration).await;
    }

    /// Asks for the change; says how far it is.
    pub(super) async fn change(
        &self,
        change: &ClusterChange,
        dry_run: bool,
        until: Time,
    ) -> Result<ChangeReport, Unanswered> {
        let change = change.clone();
        let request = LayoutRequest::Change { change, dry_run };
        match self.ask(request, until).await? {
            LayoutResponse::Change(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Epochs after this one. Asks again while nobody can say.
    pub(super) async fn history(&self, after: Epoch) -> Result<HistoryReport, Unanswered> {
        let until = self.now().after(HISTORY_WITHIN);
        loop {
            match self.ask(LayoutRequest::History { after }, until).await {
                Ok(LayoutResponse::History(report)) => return Ok(report),
                Ok(other) => return Err(unexpected(&other)),
                Err(Unanswered::Later(_)) if self.now().after(PATIENCE) < until => {
                    self.pause(PAUSE).await;
                }
                Err(unanswered) => return Err(unanswered),
            }
        }
    }

    /// The first answer that is one.
    async fn ask(&self, request: LayoutRequest, until: Time) -> Result<LayoutResponse, Unanswered> {
        let message = Request::Layout(request).into_message(Bytes::new());
        let (mut said, mut follow, mut in_vain) = (Vec::new(), Vec::new(), true);
        let first = self.first.load(Ordering::Relaxed);
        let servers = self.servers.iter().enumerate().cycle().skip(first);
        for (left, (index, server)) in (1..=self.servers.len()).rev().zip(servers) {
            // Nobody takes the time of those who come after.
            let share = until.since(self.now()) / u32::try_from(left).unwrap_or(u32::MAX);
            let deadline = self.now().after(share.min(PATIENCE));
            let network = Arc::clone(&self.network);
            let answer = match network.call(server, message.clone(), deadline).await {
                Ok(answer) => Response::decode(&answer).map_err(|e| e.to_string()),
                Err(error) => {
                    in_vain &= !error.is_retryable();
                    Err(error.to_string())
                }
            };
            match answer {
                Ok(Response::Layout(answer)) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Response::Refused(
                    refusal @ (Refusal::Declined { .. }
                    | Refusal::NotAllowed { .. }
                    | Refusal::Malformed { .. }),
                )) => return Err(Unanswered::Declined(refusal.to_string())),
                Ok(Response::Refused(refusal)) => {
                    in_vain = false;
                    let follows = matches!(refusal, Refusal::NotLeader { .. });
                    let words = if follows { &mut follow } else { &mut said };
                    words.push(format!("{}: {refusal}", server.name));
                }
                Ok(other) => said.push(format!("{}: unexpected answer {other:?}", server.name)),
                Err(why) => said.push(why),
            }
        }
        // Who only follows says nothing of what the leader does.
        let said = if said.is_empty() { follow } else { said };
        let said = said.join("; ");
        Err(if in_vain {
            Unanswered::Declined(said)
        } else {
            Unanswered::Later(said)
        })
    }
}

fn unexpected(answer: &LayoutResponse) -> Unanswered {
    Unanswered::Declined(format!(
        "the layout server gave an unexpected answer: {answer:?}"
    ))
}
