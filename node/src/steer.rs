//! Carries out what the layout wants done: calls to servers, and changes of the history.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use milonga_layout::{ConfirmId, LayoutEffect, Reign, Replica, SendId, StoreChange, StoreId};
use milonga_protocol::messages::{Request, Response};
use milonga_protocol::{SharedEnv, Task};
use milonga_transport::{Peer, SharedNetwork};
use tokio::sync::mpsc::UnboundedSender;

use crate::roles::LayoutEvent;

/// Longest wait for an answer: a seal drains what a slow disk still has to do, a page of stream tails is large.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is under way: dropped with the layout's host. A task takes itself out when it ends.
type UnderWay<Id> = Arc<Mutex<BTreeMap<(Reign, Id), Task>>>;

/// Carries out effects and reports how they ended.
pub(crate) struct Steering {
    env: SharedEnv,
    network: SharedNetwork,
    events: UnboundedSender<LayoutEvent>,
    replica: Arc<Replica>,
    anew: UnboundedSender<()>,
    calls: UnderWay<SendId>,
    /// Changes that were proposed: a phase's, and perhaps an operator's beside it.
    proposals: UnderWay<StoreId>,
    confirmations: UnderWay<ConfirmId>,
}

impl Steering {
    pub(crate) fn new(
        env: &SharedEnv,
        network: &SharedNetwork,
        events: &UnboundedSender<LayoutEvent>,
        replica: &Arc<Replica>,
        anew: UnboundedSender<()>,
    ) -> Self {
        Self {
            env: Arc::clone(env),
            network: Arc::clone(network),
            events: events.clone(),
            replica: Arc::clone(replica),
            anew,
            calls: UnderWay::default(),
            proposals: UnderWay::default(),
            confirmations: UnderWay::default(),
        }
    }

    pub(crate) fn carry_out(&mut self, reign: Reign, effect: LayoutEffect) {
        match effect {
            LayoutEffect::Send {
                id,
                to,
                request,
                body,
            } => self.send((reign, id), to, request, body),
            LayoutEffect::Store { id, change } => self.propose(reign, id, change),
            LayoutEffect::Confirm { id } => self.confirm((reign, id)),
            LayoutEffect::BeginAnew { .. } => {
                // Who is gone has nothing to begin.
                let _ = self.anew.send(());
            }
            other => tracing::error!(?other, "an effect that this host does not know"),
        }
    }

    fn send(&self, id: (Reign, SendId), to: Peer, request: Request, body: Bytes) {
        let deadline = self.env.now().after(PATIENCE);
        let call = self.network.call(&to, request.into_message(body), deadline);
        let (events, calls) = (self.events.clone(), Arc::clone(&self.calls));
        let task = async move {
            let result = match call.await {
                Ok(message) => Response::decode(&message)
                    .map(|response| (response, message.body))
                    .map_err(|error| format!("{to}: {error}")),
                Err(error) => Err(error.to_string()),
            };
            let _ = events.send(LayoutEvent::Sent(id.0, id.1, Box::new(result)));
            ended(&calls, id);
        };
        let task = self.env.spawn("layout call", Box::pin(task));
        lock(&self.calls).insert(id, task);
    }

    fn propose(&self, reign: Reign, id: StoreId, change: StoreChange) {
        let (replica, events) = (Arc::clone(&self.replica), self.events.clone());
        let proposals = Arc::clone(&self.proposals);
        let task = async move {
            let outcome = match replica.propose(change).await {
                Ok(verdict) => verdict.map_err(|refused| refused.to_string()),
                Err(none) => Err(none.to_string()),
            };
            let _ = events.send(LayoutEvent::Stored(reign, id, outcome));
            ended(&proposals, (reign, id));
        };
        let task = self.env.spawn("layout change", Box::pin(task));
        lock(&self.proposals).insert((reign, id), task);
    }

    /// The majority is asked after this was called, and so after whatever was to be confirmed had arrived.
    fn confirm(&self, id: (Reign, ConfirmId)) {
        let (replica, events) = (Arc::clone(&self.replica), self.events.clone());
        let confirmations = Arc::clone(&self.confirmations);
        let task = async move {
            let leads = replica.confirm_leadership().await;
            let leads_at = leads.ok().map(|()| replica.history().epoch());
            let _ = events.send(LayoutEvent::Confirmed(id.0, id.1, leads_at));
            ended(&confirmations, id);
        };
        let task = self.env.spawn("layout confirmation", Box::pin(task));
        lock(&self.confirmations).insert(id, task);
    }
}

fn lock<Id>(under_way: &UnderWay<Id>) -> MutexGuard<'_, BTreeMap<(Reign, Id), Task>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task ends here anyway; stopping it from inside would be in vain.
fn ended<Id: Ord>(under_way: &UnderWay<Id>, id: (Reign, Id)) {
    let done = lock(under_way).remove(&id);
    if let Some(task) = done {
        task.detach();
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // Each task holds the table that holds it: without this they would go on to their deadlines.
        let calls = std::mem::take(&mut *lock(&self.calls));
        let proposals = std::mem::take(&mut *lock(&self.proposals));
        let confirmations = std::mem::take(&mut *lock(&self.confirmations));
        drop((calls, proposals, confirmations));
    }
}
