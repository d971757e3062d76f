//! One member's copy of the history, and its part in changing it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::SharedEnv;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use openraft::{AsyncRuntime, Raft, ServerState};
use tokio::sync::watch;

use super::config::RaftConfig;
use super::home::Home;
use super::leadership::{Leadership, follow};
use super::log::Log;
use super::machine::{Applied, Machine};
use super::messages::{CHANGE_BYTES, RaftRequest, RaftResponse, Request, Response, SNAPSHOT_BYTES};
use super::network::{Connections, RaftCarrier};
use super::runtime::EnvRuntime;
use super::store::{RaftStore, RaftStoreError};
use super::{Member, MemberId, TypeConfig};
use crate::history::{History, HistoryError, StoreChange};

/// A member of the layout. Dropping it stops it at the next await of whatever it does; [`Self::shutdown`] waits for
/// that. Every call ends within [`RaftConfig::patience`].
pub struct Replica {
    id: MemberId,
    members: BTreeMap<MemberId, Member>,
    patience: Duration,
    home: Arc<Home>,
    raft: Raft<TypeConfig>,
    applied: watch::Receiver<Applied>,
    leadership: watch::Receiver<Leadership>,
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its own number is missing among the members.
    #[error("member {id} is not among the layout's members; list it in every configuration")]
    NotAMember {
        /// Its number.
        id: MemberId,
    },
    /// The configured times contradict each other.
    #[error("the times of the layout's raft contradict each other: {0}")]
    Config(String),
    /// Its store is not its own.
    #[error(transparent)]
    Store(#[from] RaftStoreError),
    /// Its store or its raft fails.
    #[error("the layout's member {id} cannot run: {why}")]
    Failed {
        /// Its number.
        id: MemberId,
        /// What happened.
        why: String,
    },
}

/// Why a change has no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This member does not lead. If it did when the change was proposed, its fate is open: look at the history.
    #[error("this member of the layout does not lead; the leader is {}", leader.map_or("unknown".to_owned(), |id| id.to_string()))]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<MemberId>,
    },
    /// No majority confirmed it in time, or this member has stopped. The change's fate is open: it may still be
    /// committed later, or never. Look at the history.
    #[error("the layout has no verdict: {why}")]
    Unavailable {
        /// What happened.
        why: String,
    },
    /// A change may have that many bytes; nothing was done.
    #[error("a change of {bytes} bytes is over the limit of {CHANGE_BYTES}")]
    TooLarge {
        /// Bytes of the change.
        bytes: usize,
    },
}

/// Why a leadership is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotConfirmed {
    /// This member does not lead.
    #[error("this member of the layout does not lead")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<MemberId>,
    },
    /// No majority answered in time, or this member has stopped. It may lead, or not.
    #[error("no majority of the layout answered: {why}")]
    Unavailable {
        /// What happened.
        why: String,
    },
}

impl Replica {
    /// Starts member `id` on its store. A member that has been in a cluster goes on there; a new one waits for
    /// [`Self::initialize`], of itself or of another. A lone member leads at once, without waiting for a time-out.
    ///
    /// # Errors
    /// [`StartError`]: the configuration contradicts itself, the store is another's, or cannot be read.
    pub async fn start(
        id: MemberId,
        members: BTreeMap<MemberId, Member>,
        store: RaftStore,
        carrier: Arc<dyn RaftCarrier>,
        env: &SharedEnv,
        config: &RaftConfig,
    ) -> Result<Self, StartError> {
        if !members.contains_key(&id) {
            return Err(StartError::NotAMember { id });
        }
        let openraft = config.to_openraft().map_err(StartError::Config)?;
        store.claim(id)?;
        let failed = |why: String| StartError::Failed { id, why };
        let machine = Machine::load(&store).await.map_err(failed)?;
        let applied = machine.subscribe();
        let home = Home::new(env);
        let connections = Connections {
            carrier,
            members: members.clone(),
        };
        let raft = home.within(Raft::new(id, openraft, connections, Log(store), machine));
        let raft = raft.await.map_err(|error| failed(error.to_string()))?;
        let (shown, leadership) = watch::channel(Leadership::default());
        home.spawn(follow(raft.metrics(), shown));
        let replica = Self {
            id,
            members,
            patience: config.patience,
            home,
            raft,
            applied,
            leadership,
        };
        replica.lead_alone().await.map_err(failed)?;
        Ok(replica)
    }

    /// Makes a new cluster of the members that all were started with. Nothing happens where there is one already, so
    /// every member may call it, and again. Only for a cluster that never was: a member that lost its disk must not.
    ///
    /// # Errors
    /// [`StartError::Failed`]: the store failed, or this member has stopped.
    pub async fn initialize(&self) -> Result<(), StartError> {
        let result = self.call(self.raft.initialize(self.members.clone())).await;
        let why = match result {
            Ok(Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_)))) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(why) => why,
        };
        Err(StartError::Failed { id: self.id, why })
    }

    /// Answers another member. What the answer promises is durable.
    pub async fn handle(&self, request: RaftRequest) -> RaftResponse {
        let sender = request.sender();
        if !self.members.contains_key(&sender) {
            return RaftResponse::failed(format!("{sender} is not a member of this layout"));
        }
        let answer = match request.0 {
            Request::Append {
                vote,
                previous,
                entries,
                committed,
            } => {
                let request = AppendEntriesRequest {
                    vote: vote.into(),
                    prev_log_id: previous.map(Into::into),
                    entries: entries.into_iter().map(Into::into).collect(),
                    leader_commit: committed.map(Into::into),
                };
                let answer = self.call(self.raft.append_entries(request)).await;
                answer.map(|answer| answer.map(Response::from).map_err(|e| e.to_string()))
            }
            Request::Vote { vote, last } => {
                let request = VoteRequest::new(vote.into(), last.map(Into::into));
                let answer = self.call(self.raft.vote(request)).await;
                answer.map(|answer| answer.map(Response::from).map_err(|e| e.to_string()))
            }
            Request::Snapshot {
                vote,
                meta,
                offset,
                data,
                done,
            } => {
                if offset.saturating_add(data.len() as u64) > SNAPSHOT_BYTES {
                    let why = format!("a snapshot over the limit of {SNAPSHOT_BYTES} bytes");
                    return RaftResponse::failed(why);
                }
                let request = InstallSnapshotRequest {
                    vote: vote.into(),
                    meta: meta.into(),
                    offset,
                    data,
                    done,
                };
                let answer = self.call(self.raft.install_snapshot(request)).await;
                answer.map(|answer| match answer {
                    Ok(taken) => Ok(Ok(taken).into()),
                    Err(RaftError::APIError(error)) => Ok(Err(error).into()),
                    Err(error) => Err(error.to_string()),
                })
            }
        };
        match answer {
            Ok(Ok(response)) => RaftResponse(response),
            Ok(Err(why)) | Err(why) => RaftResponse::failed(why),
        }
    }

    /// Proposes a change. The inner result is the history's verdict, the same on every member: when this returns, the
    /// change (or its refusal) is durable on a majority, and [`Self::history`] shows it.
    ///
    /// # Errors
    /// [`ProposeError`]: there is no verdict; what became of the change is open, except where it says otherwise.
    pub async fn propose(
        &self,
        change: StoreChange,
    ) -> Result<Result<(), HistoryError>, ProposeError> {
        let bytes = milonga_protocol::messages::encode(&change).len();
        if bytes > CHANGE_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        match self.call(self.raft.client_write(change)).await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader {
                    leader: forward.leader_id,
                })
            }
            Ok(Err(error)) => Err(ProposeError::Unavailable {
                why: error.to_string(),
            }),
            Err(why) => Err(ProposeError::Unavailable { why }),
        }
    }

    /// Who leads, now and as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Asks a majority. `Ok`: this member led at some time after this was called, and [`Self::history`] holds all that
    /// was committed by anybody before that.
    ///
    /// # Errors
    /// [`NotConfirmed`]: it does not lead, or nobody can tell.
    pub async fn confirm_leadership(&self) -> Result<(), NotConfirmed> {
        let mut applied = self.applied.clone();
        let confirm = async {
            let (read, _) = self.raft.get_read_log_id().await?;
            // Nobody applies any more if it fails: then the core has stopped.
            let _ = applied.wait_for(|applied| applied.last >= read).await;
            Ok(())
        };
        match self.call(confirm).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(NotConfirmed::NotLeader {
                    leader: forward.leader_id,
                })
            }
            Ok(Err(error)) => Err(NotConfirmed::Unavailable {
                why: RaftError::<MemberId, _>::to_string(&error),
            }),
            Err(why) => Err(NotConfirmed::Unavailable { why }),
        }
    }

    /// What this member has applied: a prefix of what is committed.
    #[must_use]
    pub fn history(&self) -> Arc<History> {
        Arc::clone(&self.applied.borrow().history)
    }

    /// Stops the member; its store is closed when this returns. Calls afterwards fail.
    pub async fn shutdown(&self) {
        if let Ok(Err(error)) = self.call(self.raft.shutdown()).await {
            tracing::error!(member = %self.id, %error, "the layout's raft ended badly");
        }
        self.home.close().await;
    }

    /// A lone member that was not yet elected need not wait for anybody's silence.
    async fn lead_alone(&self) -> Result<(), String> {
        if self.members.len() > 1 {
            return Ok(());
        }
        let elect = async {
            // Its answer comes behind the core's first look around.
            let has_past = self.raft.is_initialized().await?;
            let leads = self.raft.metrics().borrow().state == ServerState::Leader;
            if has_past && !leads {
                self.raft.trigger().elect().await?;
            }
            Ok(())
        };
        let elected = self.call(elect).await?;
        elected.map_err(|error: openraft::error::Fatal<MemberId>| error.to_string())
    }

    /// Runs a call to openraft where it belongs, for as long as patience lasts.
    async fn call<F: Future + Send>(&self, call: F) -> Result<F::Output, String> {
        let patience = self.patience;
        let call = async move { EnvRuntime::timeout(patience, call).await };
        let result = self.home.within(call).await;
        result.map_err(|_| format!("no majority answered within {patience:?}"))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.home.stop();
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({})", self.id)
    }
}
