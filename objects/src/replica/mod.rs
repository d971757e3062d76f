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
mod player;
pub(crate) mod submit;
pub(crate) mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::time::Duration;

use milonga_protocol::{BoxFuture, Position, SharedEnv, SharedLog, StreamId, Task};
use tokio::sync::Notify;

use crate::counter::Counter;
use crate::directory::ObjectInfo;
use crate::error::{OpenError, ReadError, ReplicaHalt, UpdateError};
use crate::handle::Handle;
use crate::key::Key;
use crate::map::Map;
use crate::object::{Object, Value};
use crate::queue::{ItemKey, Queue};
use crate::snapshot::Snapshot;
use crate::update::{Settled, Ticket};
use crate::world::{Frozen, World};
use open::Opener;
use player::Join;
use submit::{Item, Submit};
use sync::{Reach, Syncs};

/// Settings of one replica. Start from the default and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaOptions {
    /// How long an update, read, snapshot, opening or transaction's read may take. Default 30 s.
    pub deadline: Duration,
    /// How often a transaction is tried before its conflict is the outcome. Default 16.
    pub tx_attempts: u32,
    /// Entries that may be in flight before updates wait for each other. Default 4.
    pub entries_in_flight: usize,
    /// Bytes of updates that may wait or be in flight (each counts 192 more); beyond, updates wait for room. Default
    /// 32 MiB.
    pub queue_bytes: usize,
    /// Bytes that one read of the log asks for. Default 1 MiB.
    pub part_bytes: usize,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            tx_attempts: 16,
            entries_in_flight: 4,
            queue_bytes: 32 << 20,
            part_bytes: 1 << 20,
        }
    }
}

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
/// replica.close().await;
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

/// What handles and tasks share.
pub(crate) struct Shared {
    pub(crate) env: SharedEnv,
    pub(crate) log: SharedLog,
    pub(crate) options: ReplicaOptions,
    world: RwLock<World>,
    /// The newest frozen world, as long as somebody uses it: keeping it longer would make every update copy.
    frozen: Mutex<Weak<Frozen>>,
    pub(crate) submit: Submit,
    pub(crate) syncs: Syncs,
    /// Wakes the player.
    player: Notify,
    joins: Mutex<Vec<Join>>,
    opener: Opener,
    /// Streams of open objects: what tail checks ask about.
    hosted: Mutex<Arc<[StreamId]>>,
    /// Streams of all registered objects: what is played.
    played: Mutex<Arc<[StreamId]>>,
    halted: OnceLock<ReplicaHalt>,
    /// What playback waits for, for error messages.
    obstacle: Mutex<String>,
    next_lane: AtomicU64,
    /// Queue items that local transactions under way have taken.
    pub(crate) claims: Mutex<BTreeMap<StreamId, BTreeSet<ItemKey>>>,
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
    /// [`OpenError::Type`] if the name belongs to an object of another type.
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
    /// [`ReadError`] if the directory cannot be read.
    pub async fn directory(&self) -> Result<Vec<ObjectInfo>, ReadError> {
        open::directory(self.shared()).await
    }

    /// Plays everything that was appended before this call; local reads see it afterwards. Returns the position
    /// below which everything was played.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be played.
    pub async fn sync(&self) -> Result<Position, ReadError> {
        self.shared().syncs.sync(Reach::Hosted).await?;
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
        self.shared().syncs.sync(Reach::Hosted).await?;
        Ok(Snapshot::new(self.shared()))
    }

    /// What became of an update whose outcome was unknown. Waits for an answer until the deadline.
    pub async fn settle<T: Send + 'static>(&self, ticket: &Ticket) -> Settled<T> {
        // The entry may be in the log already; then playing to the tail finds it.
        let synced = self.shared().syncs.sync(Reach::Whole).await;
        let mut settled = std::pin::pin!(std::future::poll_fn(|cx| ticket.0.poll_settled(cx)));
        let patience = match synced {
            Ok(()) => self.shared().env.sleep(self.shared().options.deadline),
            Err(_) => self.shared().env.sleep(Duration::ZERO),
        };
        tokio::select! {
            biased;
            settled = &mut settled => settled,
            () = patience => Settled::Unknown,
        }
    }

    /// Waits until every submitted update has its outcome (at most until the deadline), then stops. What comes later
    /// fails as closed.
    pub async fn close(&self) {
        let shared = self.shared();
        tokio::select! {
            biased;
            () = shared.submit.flushed() => {}
            () = shared.env.sleep(shared.options.deadline) => {}
        }
        shared.close();
        let tasks = std::mem::take(&mut *lock(&self.0.tasks));
        drop(tasks);
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

impl Shared {
    pub(crate) fn world(&self) -> RwLockReadGuard<'_, World> {
        // Objects' panics are caught inside; the world is never left half changed.
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world as it is now, shared with whoever froze it at the same position.
    pub(crate) fn freeze(&self) -> Arc<Frozen> {
        let mut newest = lock(&self.frozen);
        let world = self.world();
        if let Some(frozen) = newest.upgrade().filter(|frozen| world.is_as_frozen(frozen)) {
            return frozen;
        }
        let frozen = Arc::new(world.freeze());
        *newest = Arc::downgrade(&frozen);
        frozen
    }

    /// Submits a record now, unless an object it changes cannot take it here.
    pub(crate) fn submit_item(&self, mut item: Item) -> Result<Option<u64>, UpdateError> {
        let world = self.world();
        for stream in &item.streams {
            if let Some(halt) = world.get(*stream).and_then(|hosted| hosted.halted()) {
                return Err(UpdateError::Halted {
                    written: None,
                    source: halt.clone(),
                });
            }
        }
        drop(world);
        item.deadline = self.env.now().after(self.options.deadline);
        self.submit.push(item)
    }

    /// A lane for a new handle or a single record.
    pub(crate) fn next_lane(&self) -> u64 {
        self.next_lane.fetch_add(1, Ordering::Relaxed)
    }

    /// An own entry is at `position`: play through it.
    fn play_through(&self, position: Position) {
        self.syncs.appended(position);
        self.player.notify_one();
    }

    pub(crate) fn hosted_streams(&self) -> Arc<[StreamId]> {
        Arc::clone(&lock(&self.hosted))
    }

    /// An object was opened.
    fn hosted_changed(&self) {
        // Under both locks, so that of two openings at once the later one counts.
        let mut hosted = lock(&self.hosted);
        let world = self.world();
        let opened = world.hosted_streams();
        *hosted = opened
            .filter(|stream| *stream != StreamId::DIRECTORY)
            .collect();
    }

    fn played_streams(&self) -> Arc<[StreamId]> {
        Arc::clone(&lock(&self.played))
    }

    /// Objects were registered. Directories are prefixes of each other: the longer one knows more.
    fn registered(&self, streams: Arc<[StreamId]>) {
        let mut played = lock(&self.played);
        if streams.len() > played.len() {
            *played = streams;
        }
    }

    fn set_obstacle(&self, what: &str) {
        what.clone_into(&mut lock(&self.obstacle));
    }

    fn obstacle(&self) -> String {
        let obstacle = lock(&self.obstacle);
        if obstacle.is_empty() {
            "entries below the tail that are not decided yet".into()
        } else {
            obstacle.clone()
        }
    }

    /// Whether the replica can go on.
    pub(crate) fn check_halted(&self) -> Result<(), ReadError> {
        match self.halted.get() {
            Some(halt) => Err(halt.clone().into()),
            None => Ok(()),
        }
    }

    fn halt(&self, halt: ReplicaHalt) {
        tracing::error!(position = %halt.position(), %halt, "replica halted");
        self.halted.get_or_init(|| halt.clone());
        self.syncs.stop(&halt.clone().into());
        self.submit
            .stop(&UpdateError::ReplicaHalted { source: halt });
        lock(&self.joins).clear();
    }

    fn close(&self) {
        self.syncs.stop(&ReadError::Closed);
        self.submit.stop(&UpdateError::Closed);
        lock(&self.joins).clear();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How often deadlines are looked at: often enough to be late by little.
fn tick(deadline: Duration) -> Duration {
    (deadline / 16).clamp(Duration::from_millis(2), Duration::from_secs(1))
}

/// Waits for what is there; for ever if nothing is.
fn until<'a>(future: &'a mut Option<BoxFuture<'static, ()>>) -> impl Future<Output = ()> + 'a {
    std::future::poll_fn(|cx| match future {
        Some(future) => future.as_mut().poll(cx),
        None => std::task::Poll::Pending,
    })
}

/// Lets other tasks run.
fn pause() -> impl Future<Output = ()> {
    let mut paused = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut paused, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
}

/// Waits between attempts: doubling, jittered, bounded.
pub(crate) struct Backoff {
    env: SharedEnv,
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub(crate) fn new(env: &SharedEnv) -> Self {
        Self::between(env, Duration::from_millis(5), Duration::from_millis(500))
    }

    pub(crate) fn between(env: &SharedEnv, first: Duration, most: Duration) -> Self {
        Self {
            env: Arc::clone(env),
            next: first,
            most,
        }
    }

    /// The next pause: between half and one and a half times its base.
    pub(crate) fn next(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.most);
        let micros = u64::try_from(base.as_micros()).unwrap_or(u64::MAX).max(1);
        base / 2 + Duration::from_micros(self.env.random() % micros)
    }

    /// Pauses.
    pub(crate) fn sleep(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let pause = self.next();
        self.env.sleep(pause)
    }
}
