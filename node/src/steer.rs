//! Carries out what the layout wants done: calls to servers, and changes of the history.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use milonga_layout::{LayoutEffect, Reign, Replica, SendId, StoreChange, StoreId};
use milonga_protocol::messages::{Request, Response};
use milonga_protocol::{SharedEnv, Task};
use milonga_transport::{Peer, SharedNetwork};
use tokio::sync::mpsc::UnboundedSender;

use crate::roles::LayoutEvent;

/// Longest wait for an answer: a seal drains what a slow disk still has to do, a page of stream tails is large.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls under way: dropped with the layout's host.
type Calls = Arc<Mutex<BTreeMap<(Reign, SendId), Task>>>;

/// Carries out effects and reports how they ended.
pub(crate) struct Steering {
    env: SharedEnv,
    network: SharedNetwork,
    events: UnboundedSender<LayoutEvent>,
    replica: Arc<Replica>,
    anew: UnboundedSender<()>,
    calls: Calls,
    /// The last change that was proposed; there is at most one at a time.
    proposal: Option<Task>,
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
            calls: Calls::default(),
            proposal: None,
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
            let done = calls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            // The task ends here anyway; stopping it from inside would be in vain.
            if let Some(task) = done {
                task.detach();
            }
        };
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.insert(id, self.env.spawn("layout call", Box::pin(task)));
    }

    fn propose(&mut self, reign: Reign, id: StoreId, change: StoreChange) {
        let (replica, events) = (Arc::clone(&self.replica), self.events.clone());
        let task = async move {
            let outcome = match replica.propose(change).await {
                Ok(verdict) => verdict.map_err(|refused| refused.to_string()),
                Err(none) => Err(none.to_string()),
            };
            let _ = events.send(LayoutEvent::Stored(reign, id, outcome));
        };
        self.proposal = Some(self.env.spawn("layout change", Box::pin(task)));
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        // Each call holds the table that holds its task: without this they would go on to their deadlines.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = std::mem::take(&mut *calls);
        drop(calls);
    }
}
