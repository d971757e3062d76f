//! One member's copy of the history, and its part in changing it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_protocol::SharedEnv;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{AsyncRuntime, Raft, ServerState};
use tokio::sync::watch;

use super::config::RaftConfig;
use super::errors::{NotConfirmed, ProposeError, StartError};
use super::home::Home;
use super::leadership::{Leadership, follow};
use super::log::Log;
use super::machine::{Applied, Machine};
use super::messages::CHANGE_BYTES;
use super::network::{Connections, RaftCarrier};
use super::runtime::EnvRuntime;
use super::store::RaftStore;
use super::{Member, MemberId, TypeConfig};
use crate::history::{History, HistoryError, StoreChange};

/// A member of the layout. Dropping it stops it at the next await of whatever it does; [`Self::shutdown`] waits for
/// that. Every call ends within [`RaftConfig::patience`].
pub struct Replica {
    id: MemberId,
    members: BTreeMap<MemberId, Member>,
    patience: Duration,
    home: Arc<Home>,
    pub(super) raft: Raft<TypeConfig>,
    applied: watch::Receiver<Applied>,
    leadership: watch::Receiver<Leadership>,
    /// It was there when its cluster was made, so its disk holds all that it ever promised.
    has_past: AtomicBool,
}

impl Replica {
    /// Starts member `id` on its store. A member that has been in a cluster goes on there; a new one takes part in
    /// nothing before [`Self::initialize`]. A lone member leads at once, without waiting for a time-out.
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
        home.spawn(follow(raft.metrics(), shown, config.election_max));
        let replica = Self {
            id,
            members,
            patience: config.patience,
            home,
            raft,
            applied,
            leadership,
            has_past: AtomicBool::new(false),
        };
        if let Err(error) = replica.resume().await {
            replica.shutdown().await;
            return Err(error);
        }
        Ok(replica)
    }

    /// Makes a new cluster of the members that all were started with, durably. Every member must be told, in any order
    /// and at any time; nothing happens to one that has a past. Only for a cluster that never was: whoever tells it to
    /// a member that has lost its disk lets it forget what it promised.
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

    /// What this member applies from now on.
    #[must_use]
    pub fn histories(&self) -> Histories {
        Histories(self.applied.clone())
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> MemberId {
        self.id
    }

    /// A member, as configured.
    #[must_use]
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Why this member has stopped; `None` while it runs. A failed store stops it: it must be started anew.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let state = metrics.borrow().running_state.clone();
        match state {
            Err(why) => Some(why.to_string()),
            // Nobody reports any more, and nobody said why.
            Ok(()) => metrics
                .has_changed()
                .err()
                .map(|_| "its raft has panicked".to_owned()),
        }
    }

    /// Facts for the status.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let number = |index: Option<u64>| index.map_or_else(|| "none".into(), |i| i.to_string());
        let fact = |name: &str, value: String| (format!("raft_{name}"), value);
        let mut facts = BTreeMap::from([
            fact("member", self.id.to_string()),
            fact("term", metrics.current_term.to_string()),
            fact("leader", number(metrics.current_leader.map(|id| id.0))),
            fact("log", number(metrics.last_log_index)),
            fact("applied", number(metrics.last_applied.map(|id| id.index))),
            fact("snapshot", number(metrics.snapshot.map(|id| id.index))),
        ]);
        facts.extend(self.failure().map(|why| fact("failure", why)));
        facts
    }

    /// Stops the member; its store is closed when this returns. Calls afterwards fail.
    pub async fn shutdown(&self) {
        if let Ok(Err(error)) = self.call(self.raft.shutdown()).await {
            tracing::error!(member = %self.id, %error, "the layout's raft ended badly");
        }
        self.home.close().await;
    }

    /// Stops the member at the next await of whatever it does, without waiting for that.
    pub fn stop(&self) {
        self.home.stop();
    }

    /// Looks at what the store has brought up. A lone member that was not yet elected need not wait for anybody's
    /// silence.
    async fn resume(&self) -> Result<(), StartError> {
        let failed = |why| StartError::Failed { id: self.id, why };
        if !self.has_past().await.map_err(failed)? {
            return Ok(());
        }
        let (leads, made_of) = {
            // Reported before the core answered the question above.
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let voters: Vec<_> = metrics
                .membership_config
                .voter_ids()
                .map(|id| id.0)
                .collect();
            (metrics.state == ServerState::Leader, voters)
        };
        let configured: Vec<_> = self.members.keys().map(|id| id.0).collect();
        if made_of != configured {
            return Err(StartError::Members {
                made_of,
                configured,
            });
        }
        if made_of.len() == 1 && !leads {
            let trigger = self.raft.trigger();
            let elected = self.call(trigger.elect()).await.map_err(failed)?;
            elected.map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Whether it was ever told of its cluster. If not, [`Self::initialize`] would make it one of a new cluster.
    ///
    /// # Errors
    /// What stopped this member.
    pub async fn has_past(&self) -> Result<bool, String> {
        if self.has_past.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let asked = self.call(self.raft.is_initialized()).await?;
        let has_past = asked.map_err(|error| error.to_string())?;
        self.has_past.fetch_or(has_past, Ordering::Relaxed);
        Ok(has_past)
    }

    /// Runs a call to openraft where it belongs, for as long as patience lasts.
    pub(super) async fn call<F: Future + Send>(&self, call: F) -> Result<F::Output, String> {
        let patience = self.patience;
        let call = async move { EnvRuntime::timeout(patience, call).await };
        let result = self.home.within(call).await;
        result.map_err(|_| format!("no majority answered within {patience:?}"))
    }
}

/// The history of a member, as it grows.
#[derive(Debug)]
pub struct Histories(watch::Receiver<Applied>);

impl Histories {
    /// Waits for a history that was not seen yet; `None` when the member has stopped.
    pub async fn next(&mut self) -> Option<Arc<History>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update().history))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({})", self.id)
    }
}
