//! The queue.

mod pop;
mod state;

use std::fmt;
use std::sync::Arc;

use milonga_protocol::sync::{
    Mutex, Notify,
    atomic::{AtomicUsize, Ordering},
};
use milonga_protocol::{LogError, Position};

use crate::error::{ReadError, UpdateError};
use crate::handle::{Handle, Opened};
use crate::object::Value;
use crate::replica::Backoff;
use crate::replica::sync::Reach;
use crate::update::Update;
use crate::world::Output;
use pop::Pops;

pub use pop::Pop;
pub use state::{ItemKey, QueueOp, QueueOutput, QueueState};

/// A replicated queue. Every item is popped once.
///
/// Plain pops are first in, first out. A pop inside a transaction ([`Tx::pop`](crate::Tx::pop)) takes *one of the
/// first* items, so that concurrent transactions take different ones; with it, processing is exactly-once.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/env.rs")); }
/// # use milonga_objects::{Replica, ReplicaOptions};
/// # use milonga_protocol::MemoryLog;
/// # support::run(async |env| {
/// # let replica = Replica::start(env, MemoryLog::single(), ReplicaOptions::default());
/// let jobs = replica.queue::<String>("jobs").await?;
/// let done = replica.counter("done").await?;
/// jobs.push("first".into()).await?;
/// jobs.push("second".into()).await?;
/// assert_eq!(jobs.pop().await?.as_deref(), Some("first"));
/// replica
///     .transaction(async |tx| {
///         if tx.pop(&jobs).is_some() {
///             tx.add(&done, 1);
///         }
///         Ok::<_, std::convert::Infallible>(())
///     })
///     .await?;
/// assert_eq!((jobs.len().await?, done.get().await?), (0, 1));
/// # Ok(()) });
/// ```
pub struct Queue<T> {
    handle: Handle<QueueState<T>>,
    pops: Arc<Pops<T>>,
}

impl<T: Value> Queue<T> {
    pub(crate) fn new(handle: Handle<QueueState<T>>) -> Self {
        Self {
            handle,
            pops: Arc::new(Pops {
                handed: Mutex::default(),
                under_way: AtomicUsize::new(0),
                changed: Notify::new(),
            }),
        }
    }

    /// Adds an item at the end; resolves to its key.
    pub fn push(&self, item: T) -> Update<ItemKey> {
        let key_of = |output: Output| match output.downcast::<QueueOutput<T>>() {
            Ok(output) => match *output {
                QueueOutput::Pushed(key) => Box::new(key) as Output,
                other @ QueueOutput::Popped(_) => Box::new(other),
            },
            Err(output) => output,
        };
        self.handle.update_as(QueueOp::Push(item), Some(key_of))
    }

    /// Takes the first item; resolves to `None` at once if there is none.
    ///
    /// If the future is dropped after its first poll, what it pops goes to the next pop of this handle or a clone.
    pub fn pop(&self) -> Pop<T> {
        Pop {
            update: self.submit_pop(),
            pops: Arc::clone(&self.pops),
            under_way: None,
        }
    }

    fn submit_pop(&self) -> Update<Option<T>> {
        let item_of = |output: Output| match output.downcast::<QueueOutput<T>>() {
            Ok(output) => match *output {
                QueueOutput::Popped(item) => Box::new(item) as Output,
                other @ QueueOutput::Pushed(_) => Box::new(other),
            },
            Err(output) => output,
        };
        self.handle.update_as(QueueOp::Pop, Some(item_of))
    }

    /// Takes the first item, waiting until there is one, without a deadline and without polling.
    ///
    /// If the future is dropped, what it may have popped goes to the next pop of this handle or a clone.
    ///
    /// # Errors
    /// [`UpdateError`]; never because of the wait alone.
    pub async fn pop_wait(&self) -> Result<T, UpdateError> {
        let replica = self.handle.replica();
        let mut backoff = Backoff::new(&replica.shared().env);
        let mut reach = Reach::Hosted;
        loop {
            // Made before looking, so that no change in between is missed.
            let changed = self.pops.changed.notified();
            if let Some(item) = self.pops.take_handed() {
                return Ok(item);
            }
            let looked = self
                .handle
                .look_after(reach, QueueState::len)
                .await
                .map_err(|source| UpdateError::Read { source });
            let (len, seen) = match looked {
                Ok(looked) => looked,
                Err(error) if error.is_retryable() => {
                    backoff.sleep().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if len > self.pops.under_way.load(Ordering::Acquire) {
                if let Some(item) = self.pop().await? {
                    return Ok(item);
                }
                continue;
            }
            tokio::select! {
                biased;
                () = changed => {}
                grown = self.grown(seen) => match grown {
                    Ok(()) => {
                        backoff = Backoff::new(&replica.shared().env);
                        // What woke this may still be on its way: wait for it there, not by asking again.
                        reach = Reach::Granted;
                    }
                    Err(LogError::Closed) => return Err(UpdateError::Closed),
                    Err(_) => backoff.sleep().await,
                }
            }
        }
    }

    /// Returns when the queue's stream may have grown beyond `seen`.
    async fn grown(&self, seen: Position) -> Result<(), LogError> {
        let streams = Arc::from([self.handle.stream()]);
        self.handle.replica().shared().log.wait(streams, seen).await
    }

    /// Number of items, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn len(&self) -> Result<usize, ReadError> {
        Ok(self
            .handle
            .look_after(Reach::Hosted, QueueState::len)
            .await?
            .0)
    }

    /// Whether there is no item, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn is_empty(&self) -> Result<bool, ReadError> {
        Ok(self
            .handle
            .look_after(Reach::Hosted, QueueState::is_empty)
            .await?
            .0)
    }

    /// The first item as this replica knows it now; see [`Handle::peek`].
    ///
    /// # Errors
    /// As [`Handle::peek`].
    pub fn peek(&self) -> Result<Option<T>, ReadError> {
        Ok(self
            .handle
            .look(|queue| queue.iter().next().map(|(_, item)| item.clone()))?
            .0)
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            pops: Arc::clone(&self.pops),
        }
    }
}

impl<T: Value> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

impl<T: Value> Opened for Queue<T> {
    type State = QueueState<T>;

    fn handle(&self) -> &Handle<Self::State> {
        &self.handle
    }
}
