//! A replica: the part of a client that plays the log and lets tasks read, update and transact.
//!
//! ```text
//!   handles, futures            tasks                                 pure
//!   update ----> submit queues --[submit]--> Log::append
//!   get, tx ---> syncs ----------[sync]----> Log::tail
//!                    ^                          | targets
//!        wake, outputs `------[player]----> Log::read_streams --> Playback --> World
//! ```
//!
//! The player is the only writer of the world; it applies whole entries, a slice at a time, under a lock that
//! readers share. No lock is held across an await.

mod open;
mod options;
mod pace;
mod player;
mod shared;
pub(crate) mod submit;
pub(crate) mod sync;

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use milonga_protocol::sync::{Mutex, MutexGuard, Notify, OnceLock, RwLock, atomic::AtomicU64};
use milonga_protocol::{Position, SharedEnv, SharedLog, StreamId, Task};

use crate::counter::Counter;
use crate::directory::ObjectInfo;
use crate::error::{OpenError, ReadError};
use crate::handle::Handle;
use crate::key::Key;
use crate::map::Map;
use crate::object::{Object, Value};
use crate::queue::Queue;
use crate::replica::submit::Submit;
use crate::replica::sync::{Reach, Syncs};
use crate::snapshot::Snapshot;
use crate::update::{Settled, Ticket};
use crate::world::World;
use open::Opener;
use pace::{millis, pause, tick, until};

pub use options::ReplicaOptions;
pub(crate) use pace::{Backoff, Deadline};
pub(crate) use shared::Shared;

/// Replicated objects over a log: opens them, reads and changes them, alone and together. Clones share it.
///
/// It begins to play the log when something is read or written, so that objects opened one after the other at the
/// start are played in one pass.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/env.rs")); }
/// use milonga_objects::{Outcome, Replica, ReplicaOptions};
/// use milonga_protocol::MemoryLog;
///
/// # support::run(async |env| {
/// let replica = Replica::start(env, MemoryLog::single(), ReplicaOptions::default());
/// let stock = replica.map::<String, i64>("stock").await?;
/// let sold = replica.counter("sold").await?;
///
/// assert_eq!(stock.insert("apples".into(), 3).await?, None);
/// let outcome = replica
///     .transaction(async |tx| {
///         let apples = tx.get(&stock, "apples").unwrap_or(0);
///         tx.insert(&stock, "apples".into(), apples - 1);
///         tx.add(&sold, 1);
///         Ok::<_, std::convert::Infallible>(apples - 1)
///     })
///     .await?;
/// assert!(matches!(outcome, Outcome::Committed { value: 2, .. }));
/// assert_eq!(stock.get("apples").await?, Some(2));
/// assert_eq!(sold.get().await?, 1);
/// assert_eq!(replica.close().await, 0, "all was flushed");
/// # Ok(()) });
/// ```
#[derive(Clone)]
pub struct Replica(Arc<Owner>);

/// Ends the tasks when the last handle is gone.
struct Owner {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<Task>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Replica {
    /// Starts a replica over `log`. Several may share a log handle.
    #[must_use]
    pub fn start(env: SharedEnv, log: SharedLog, options: ReplicaOptions) -> Self {
        let first_tag = env.random();
        let shared = Arc::new(Shared {
            world: RwLock::new(World::new()),
            frozen: Mutex::default(),
            submit: Submit::new(&options, first_tag),
            syncs: Syncs::new(Arc::clone(&env), options.deadline),
            player: Notify::new(),
            joins: Mutex::default(),
            opener: Opener::new(),
            hosted: Mutex::new(Arc::from([])),
            played: Mutex::new(Arc::from([StreamId::DIRECTORY])),
            halted: OnceLock::new(),
            obstacle: Mutex::default(),
            next_lane: AtomicU64::new(0),
            claims: Mutex::default(),
            env: Arc::clone(&env),
            log,
            options,
        });
        let tasks = vec![
            env.spawn("milonga-submit", Box::pin(submit::run(Arc::clone(&shared)))),
            env.spawn("milonga-sync", Box::pin(sync::run(Arc::clone(&shared)))),
            env.spawn("milonga-player", Box::pin(player::run(Arc::clone(&shared)))),
        ];
        Self(Arc::new(Owner {
            shared,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Opens the map `name`, and registers it if nobody has.
    ///
    /// # Errors
    /// [`OpenError::Type`] if the name belongs to an object of another type; one that holds
    /// [`ReadError::Unavailable`] if it is not open by the deadline, which begins with the call. What was read by then
    /// is kept, so trying again goes on where this call ended.
    pub async fn map<K: Key, V: Value>(&self, name: &str) -> Result<Map<K, V>, OpenError> {
        Ok(Map(self.object(name).await?))
    }

    /// Opens the counter `name`, and registers it if nobody has.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub async fn counter(&self, name: &str) -> Result<Counter, OpenError> {
        Ok(Counter(self.object(name).await?))
    }

    /// Opens the queue `name`, and registers it if nobody has.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub async fn queue<T: Value>(&self, name: &str) -> Result<Queue<T>, OpenError> {
        Ok(Queue::new(self.object(name).await?))
    }

    /// Opens an object of an own type, and registers it if nobody has.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub async fn object<O: Object>(&self, name: &str) -> Result<Handle<O>, OpenError> {
        let info = open::open::<O>(self.shared(), name).await?;
        Ok(Handle::new(self.clone(), info))
    }

    /// All registered objects, linearizable.
    ///
    /// # Errors
    /// [`ReadError`] if the directory cannot be read by the deadline, which begins with the call.
    pub async fn directory(&self) -> Result<Vec<ObjectInfo>, ReadError> {
        open::directory(self.shared()).await
    }

    /// Plays everything that was appended before this call; local reads see it afterwards. Returns the position
    /// below which everything was played.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be played.
    pub async fn sync(&self) -> Result<Position, ReadError> {
        // Also of objects that are opened meanwhile.
        self.shared().syncs.sync(Reach::Written).await?;
        Ok(self.applied())
    }

    /// Everything below it has been played here: the position of local reads.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.shared().world().applied()
    }

    /// All open objects as they are at one position, linearizable: it includes every update that returned before
    /// this call. Costs O(open objects).
    ///
    /// # Errors
    /// [`ReadError`] if the log cannot be played; halted objects fail only when they are asked for.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        // An object that is opened meanwhile is in it, too, and the check did not name its stream.
        self.shared().syncs.sync(Reach::Written).await?;
        Ok(Snapshot::new(self.shared()))
    }

    /// What became of an update whose outcome was unknown. Waits for an answer until the deadline.
    pub async fn settle<T: Send + 'static>(&self, ticket: &Ticket) -> Settled<T> {
        let until = self
            .shared()
            .env
            .now()
            .after(self.shared().options.deadline);
        // The entry may be in the log already, or on its way; then playing through all that was granted finds it.
        let synced = self.shared().syncs.sync(Reach::Granted).await;
        let patience = match synced {
            Ok(()) => self.shared().env.sleep_until(until),
            Err(_) => self.shared().env.sleep(Duration::ZERO),
        };
        tokio::select! {
            biased;
            settled = ticket.0.settled() => settled,
            () = patience => Settled::Unknown,
        }
    }

    /// Waits until every submitted update has its outcome (at most until the deadline), then stops. What comes later
    /// fails as closed.
    ///
    /// Returns how many updates and transactions that were under way did not get an outcome from the log: they were
    /// not written, or nobody knows whether they were. Zero: everything was flushed. Whoever still waits for one of
    /// them is told which it is, each by its error.
    pub async fn close(&self) -> usize {
        let shared = self.shared();
        let then = shared.submit.standing();
        tokio::select! {
            biased;
            () = shared.submit.flushed() => {}
            () = shared.env.sleep(shared.options.deadline) => {}
        }
        shared.close();
        let tasks = std::mem::take(&mut *lock(&self.0.tasks));
        drop(tasks);
        shared.submit.unfinished_since(&then)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn next_lane(&self) -> u64 {
        self.shared().next_lane()
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("log", &self.shared().log)
            .field("applied", &self.applied())
            .finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
