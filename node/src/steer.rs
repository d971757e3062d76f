//! Carries out what the layout wants done: calls to servers, and durable changes of its store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use milonga_layout::{History, LayoutEffect, LayoutStore, SendId, StoreChange, StoreId};
use milonga_protocol::messages::{Request, Response};
use milonga_protocol::{SharedEnv, Task};
use milonga_transport::{Peer, SharedNetwork};
use tokio::sync::mpsc::UnboundedSender;

use crate::error::NodeError;
use crate::lock::DirectoryError;
use crate::machine::StoreDone;
use crate::roles::LayoutEvent;

/// Longest wait for an answer: a seal drains what a slow disk still has to do, a page of stream tails is large.
const PATIENCE: Duration = Duration::from_secs(2);

/// Calls under way: dropped with the layout's host.
type Calls = Arc<Mutex<BTreeMap<SendId, Task>>>;

/// Carries out effects and reports how they ended.
pub(crate) struct Steering {
    env: SharedEnv,
    network: SharedNetwork,
    events: UnboundedSender<LayoutEvent>,
    store: Box<dyn FnMut(StoreId, StoreChange) + Send>,
    calls: Calls,
}

impl Steering {
    pub(crate) fn new(
        env: &SharedEnv,
        network: &SharedNetwork,
        events: &UnboundedSender<LayoutEvent>,
        store: Box<dyn FnMut(StoreId, StoreChange) + Send>,
    ) -> Self {
        Self {
            env: Arc::clone(env),
            network: Arc::clone(network),
            events: events.clone(),
            store,
            calls: Calls::default(),
        }
    }

    pub(crate) fn carry_out(&mut self, effect: LayoutEffect) {
        match effect {
            LayoutEffect::Send {
                id,
                to,
                request,
                body,
            } => self.send(id, to, request, body),
            LayoutEffect::Store { id, change } => (self.store)(id, change),
            other => tracing::error!(?other, "an effect that this host does not know"),
        }
    }

    fn send(&self, id: SendId, to: Peer, request: Request, body: Bytes) {
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
            let _ = events.send(LayoutEvent::Sent(id, result));
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
}

impl Drop for Steering {
    fn drop(&mut self) {
        // Each call holds the table that holds its task: without this they would go on to their deadlines.
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = std::mem::take(&mut *calls);
        drop(calls);
    }
}

/// The layout's store on a thread of its own, because it blocks. Dropping it finishes the change under way and
/// returns when the file is closed.
pub(crate) struct StoreThread {
    jobs: mpsc::Sender<StoreJob>,
    thread: Option<JoinHandle<()>>,
}

enum StoreJob {
    Apply(StoreId, StoreChange),
    Stop,
}

impl StoreThread {
    /// Opens the store and gives its history. Blocks for as long as the disk takes.
    pub(crate) fn open(path: &Path, done: StoreDone) -> Result<(Self, History), NodeError> {
        let (mut store, history) = LayoutStore::open(path)?;
        let (jobs, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("milonga-layout".to_owned())
            .spawn(move || serve(&mut store, &receiver, &done))
            .map_err(DirectoryError::io(path, "starting the store's thread"))?;
        let thread = Some(thread);
        Ok((Self { jobs, thread }, history))
    }

    /// A way to begin changes.
    pub(crate) fn submit(&self) -> Box<dyn FnMut(StoreId, StoreChange) + Send> {
        let jobs = self.jobs.clone();
        Box::new(move |id, change| {
            // A store that is gone belongs to a node that is being stopped.
            let _ = jobs.send(StoreJob::Apply(id, change));
        })
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        let _ = self.jobs.send(StoreJob::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the layout store's thread panicked");
        }
    }
}

fn serve(store: &mut LayoutStore, jobs: &mpsc::Receiver<StoreJob>, done: &StoreDone) {
    while let Ok(StoreJob::Apply(id, change)) = jobs.recv() {
        let result = store.apply(&change);
        if let Err(error) = &result {
            tracing::error!(%error, "the layout's store failed");
        }
        if !done(id, result) {
            return;
        }
    }
}
