//! The queue.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};

use imbl::OrdMap;
use milonga_protocol::{LogError, Position};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::error::{ReadError, UpdateError};
use crate::handle::{Handle, Opened};
use crate::key::{EncodeKey, Key, KeyBytes};
use crate::object::{Context, Object, Touches, Value, value_encoding};
use crate::replica::{Backoff, lock};
use crate::update::Update;
use crate::world::Output;

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

/// What the clones of a handle share.
struct Pops<T> {
    /// Items popped for futures that were dropped: the next pops get them.
    handed: Mutex<VecDeque<T>>,
    /// Pops under way: so many items are as good as gone.
    under_way: AtomicUsize,
    /// An item was handed on, or a pop ended.
    changed: Notify,
}

/// Counts one pop under way, until it is dropped.
struct UnderWay<T>(Arc<Pops<T>>);

impl<T> UnderWay<T> {
    fn begin(pops: &Arc<Pops<T>>) -> Self {
        pops.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pops))
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
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
        loop {
            // Made before looking, so that no change in between is missed.
            let changed = self.pops.changed.notified();
            if let Some(item) = self.pops.take_handed() {
                return Ok(item);
            }
            let looked = self
                .handle
                .read_with_position(QueueState::len)
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
                    Ok(()) => backoff = Backoff::new(&replica.shared().env),
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
        self.handle.read(QueueState::len).await
    }

    /// Whether there is no item, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn is_empty(&self) -> Result<bool, ReadError> {
        self.handle.read(QueueState::is_empty).await
    }

    /// The first item as this replica knows it now; see [`Handle::peek`].
    ///
    /// # Errors
    /// As [`Handle::peek`].
    pub fn peek(&self) -> Result<Option<T>, ReadError> {
        self.handle
            .peek(|queue| queue.iter().next().map(|(_, item)| item.clone()))
    }
}

impl<T> Pops<T> {
    fn take_handed(&self) -> Option<T> {
        lock(&self.handed).pop_front()
    }

    fn hand(&self, item: T) {
        lock(&self.handed).push_back(item);
        self.changed.notify_waiters();
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

/// See [`Queue::pop`].
#[must_use = "a pop does nothing until it is awaited"]
pub struct Pop<T: Value> {
    update: Update<Option<T>>,
    pops: Arc<Pops<T>>,
    /// Set at the first poll, until the end.
    under_way: Option<UnderWay<T>>,
}

impl<T: Value> Future for Pop<T> {
    type Output = Result<Option<T>, UpdateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if self.under_way.is_none() {
            if let Some(item) = self.pops.take_handed() {
                return Poll::Ready(Ok(Some(item)));
            }
            self.under_way = Some(UnderWay::begin(&self.pops));
        }
        let popped = std::task::ready!(Pin::new(&mut self.update).poll(cx));
        self.under_way = None;
        Poll::Ready(popped)
    }
}

impl<T: Value> Drop for Pop<T> {
    fn drop(&mut self) {
        let Some(under_way) = self.under_way.take() else {
            return;
        };
        let pops = Arc::clone(&self.pops);
        self.update.bequeath(move |item| {
            if let Some(item) = item {
                pops.hand(item);
            }
            drop(under_way);
        });
    }
}

impl<T: Value> fmt::Debug for Pop<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pop")
    }
}

/// Names an item of a queue: where it was pushed. Items are in the order of their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ItemKey {
    /// The position of the push; [`Position::MAX`] for one pushed by the transaction that looks.
    pub position: Position,
    /// The record within the entry.
    pub record: u32,
    /// The update within the record.
    pub index: u32,
}

impl ItemKey {
    const fn at(context: &Context) -> Self {
        Self {
            position: context.position,
            record: context.record,
            index: context.index,
        }
    }

    /// Whether the same transaction pushed it: nobody else can know it.
    pub(crate) fn is_own(self) -> bool {
        self.position == Position::MAX
    }
}

impl EncodeKey for ItemKey {
    fn encode(&self, out: &mut Vec<u8>, _: bool) {
        (self.position.0, self.record, self.index).encode(out, true);
    }
}

impl Key for ItemKey {
    fn encoding() -> Cow<'static, str> {
        <(u64, u32, u32)>::encoding()
    }

    fn decode(bytes: &mut &[u8], last: bool) -> Option<Self> {
        let (position, record, index) = Key::decode(bytes, last)?;
        Some(Self {
            position: Position(position),
            record,
            index,
        })
    }
}

/// State of a [`Queue`].
pub struct QueueState<T> {
    items: OrdMap<ItemKey, T>,
}

impl<T: Value> QueueState<T> {
    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The item of that key.
    #[must_use]
    pub fn get(&self, key: ItemKey) -> Option<&T> {
        self.items.get(&key)
    }

    /// Items, first one first.
    pub fn iter(&self) -> impl Iterator<Item = (ItemKey, &T)> {
        self.items.iter().map(|(key, item)| (*key, item))
    }
}

impl<T: Clone> Clone for QueueState<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
        }
    }
}

impl<T> Default for QueueState<T> {
    fn default() -> Self {
        Self {
            items: OrdMap::new(),
        }
    }
}

impl<T> fmt::Debug for QueueState<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueState({} items)", self.items.len())
    }
}

/// An update of a [`Queue`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum QueueOp<T> {
    /// Adds an item at the end.
    Push(T),
    /// Takes the first item.
    Pop,
    /// Takes this item; of a transaction, so the item is there if it commits.
    PopItem(ItemKey),
}

/// What an update of a [`Queue`] answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueOutput<T> {
    /// The new item's key.
    Pushed(ItemKey),
    /// The item, if there was one.
    Popped(Option<T>),
}

impl<T: Value> Object for QueueState<T> {
    const TYPE: &'static str = "queue";
    const OP_VERSION: u16 = 1;
    type Op = QueueOp<T>;
    type Output = QueueOutput<T>;

    fn apply(&mut self, op: QueueOp<T>, context: &Context) -> QueueOutput<T> {
        match op {
            QueueOp::Push(item) => {
                let key = ItemKey::at(context);
                self.items.insert(key, item);
                QueueOutput::Pushed(key)
            }
            QueueOp::Pop => {
                let first = self.items.get_min().map(|(key, _)| *key);
                QueueOutput::Popped(first.and_then(|key| self.items.remove(&key)))
            }
            QueueOp::PopItem(mut key) => {
                if key.is_own() {
                    // Pushed by the same record: it has a place only now.
                    key.position = context.position;
                    key.record = context.record;
                }
                QueueOutput::Popped(self.items.remove(&key))
            }
        }
    }

    fn touches(op: &QueueOp<T>) -> Touches {
        match op {
            // Its key is not known before it has a position; nobody can have read it.
            QueueOp::Push(_) => Touches::no_key(),
            QueueOp::Pop => Touches::Whole,
            QueueOp::PopItem(key) if key.is_own() => Touches::no_key(),
            QueueOp::PopItem(key) => Touches::key(KeyBytes::of(key)),
        }
    }

    fn key_encoding() -> Option<Cow<'static, str>> {
        Some(ItemKey::encoding())
    }

    fn value_encoding() -> Option<Cow<'static, str>> {
        Some(value_encoding::<T>())
    }
}
