//! What a transaction can do.

use std::any::Any;
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Position, StreamId, Time};

use super::pop::choose;
use super::record::{Name, Reads, Written, encode_reads, encode_update, writer_at};
use super::{Limit, Outcome, Verdict};
use crate::counter::{Counter, CounterOp};
use crate::error::{ReadError, TransactionError, UpdateError};
use crate::handle::{Handle, Opened, encode_op};
use crate::key::{EncodeKey, Key, KeyBytes, show};
use crate::map::{Entries, Map, MapOp, MapState};
use crate::object::{Context, Object, Touches, Value};
use crate::queue::{ItemKey, Queue, QueueOp, QueueState};
use crate::record::{Commit, HEADER_BYTES, Record};
use crate::replica::submit::Item;
use crate::replica::{Replica, Shared, lock};
use crate::slot::{Outcome as RecordOutcome, Slot};
use crate::update::Update as UpdateFuture;
use crate::versions::Clash;
use crate::world::Frozen;

/// A transaction under way: reads a frozen world and its own writes.
///
/// If an object cannot be read (it halted, or was opened after the transaction began), or all items of a queue are in
/// the hands of other transactions of this replica, a read returns a placeholder (`None`, zero, empty), and the
/// transaction is run again or fails, whatever the closure makes of it.
pub struct Tx {
    shared: Arc<Shared>,
    world: Arc<Frozen>,
    reads: BTreeMap<StreamId, (Arc<Name>, Reads)>,
    updates: Vec<Written>,
    /// Private states of the objects written, by stream: an `Overlay` of the object's type.
    overlays: BTreeMap<StreamId, Box<dyn Any + Send>>,
    /// Why the transaction cannot count.
    pub(super) obstacle: Option<ReadError>,
    pub(super) unwritable: Option<UpdateError>,
    /// Items that no other local transaction should take meanwhile.
    claimed: Vec<(StreamId, ItemKey)>,
    pub(super) crowd: Crowd,
}

/// What a pop does when other local transactions have taken all items that it sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowd {
    /// It makes the transaction wait for them.
    Wait,
    /// It takes one of theirs: one of the two will conflict.
    Push,
    /// It found a crowd: the transaction has to be run again.
    Met,
}

/// A private state. What was written is applied when it is read.
struct Overlay<O: Object> {
    state: Option<O>,
    unapplied: Vec<(O::Op, u32)>,
}

impl Tx {
    pub(super) fn new(shared: Arc<Shared>, crowd: Crowd) -> Self {
        Self {
            world: shared.freeze(),
            shared,
            reads: BTreeMap::new(),
            updates: Vec::new(),
            overlays: BTreeMap::new(),
            obstacle: None,
            unwritable: None,
            claimed: Vec::new(),
            crowd,
        }
    }

    /// Everything below it is visible.
    #[must_use]
    pub fn snapshot(&self) -> Position {
        self.world.position
    }

    /// The value of `key`.
    pub fn get<K, V, Q>(&mut self, map: &Map<K, V>, key: &Q) -> Option<V>
    where
        K: Key + Borrow<Q>,
        V: Value,
        Q: EncodeKey + ?Sized,
    {
        let state = self.read_key(map, KeyBytes::of(key))?;
        state.get(key).cloned()
    }

    /// Whether `key` has a value.
    pub fn contains<K, V, Q>(&mut self, map: &Map<K, V>, key: &Q) -> bool
    where
        K: Key + Borrow<Q>,
        V: Value,
        Q: EncodeKey + ?Sized,
    {
        let state = self.read_key(map, KeyBytes::of(key));
        state.is_some_and(|state| state.get(key).is_some())
    }

    /// Sets the value of `key`, blindly: it conflicts with nobody.
    pub fn insert<K: Key, V: Value>(&mut self, map: &Map<K, V>, key: K, value: V) {
        let key = KeyBytes::of(&key);
        self.update(map, MapOp::Insert { key, value });
    }

    /// Sets the value of `key` and returns the one it had, which is a read.
    pub fn replace<K: Key, V: Value>(&mut self, map: &Map<K, V>, key: K, value: V) -> Option<V> {
        let old = self.read_encoded(map, &key);
        self.insert(map, key, value);
        old
    }

    /// Removes `key`, blindly.
    pub fn remove<K: Key, V: Value>(&mut self, map: &Map<K, V>, key: K) {
        let key = KeyBytes::of(&key);
        self.update(map, MapOp::Remove { key });
    }

    /// Removes `key` and returns the value it had, which is a read.
    pub fn take<K: Key, V: Value>(&mut self, map: &Map<K, V>, key: K) -> Option<V> {
        let old = self.read_encoded(map, &key);
        self.remove(map, key);
        old
    }

    fn read_encoded<K: Key, V: Value>(&mut self, map: &Map<K, V>, key: &K) -> Option<V> {
        let state = self.read_key(map, KeyBytes::of(key))?;
        state.get::<K>(key).cloned()
    }

    /// Removes all keys, blindly.
    pub fn clear<K: Key, V: Value>(&mut self, map: &Map<K, V>) {
        self.update(map, MapOp::Clear);
    }

    /// All keys and values, in order: a read of the whole map.
    pub fn entries<K: Key, V: Value>(&mut self, map: &Map<K, V>) -> Entries<K, V> {
        let empty = || MapState::default().entries();
        self.read_whole(map).map_or_else(empty, MapState::entries)
    }

    /// Number of entries of a map or items of a queue: a read of the whole object.
    pub fn len<H: Opened<State: Len>>(&mut self, object: &H) -> usize {
        self.read_whole(object).map_or(0, Len::count)
    }

    /// Whether a map or queue is empty: a read of the whole object.
    pub fn is_empty<H: Opened<State: Len>>(&mut self, object: &H) -> bool {
        self.len(object) == 0
    }

    /// Adds to a counter, blindly.
    pub fn add(&mut self, counter: &Counter, n: i64) {
        self.update(counter, CounterOp::Add(n));
    }

    /// A counter's value.
    pub fn value(&mut self, counter: &Counter) -> i64 {
        self.read_whole(counter).map_or(0, |state| state.value())
    }

    /// Adds an item at the end of a queue, blindly.
    pub fn push<T: Value>(&mut self, queue: &Queue<T>, item: T) {
        self.update(queue, QueueOp::Push(item));
    }

    /// Takes one of the first items of a queue: not always the first, so that concurrent transactions take different
    /// ones. `None` if the queue is empty, which is a read of the whole queue.
    pub fn pop<T: Value>(&mut self, queue: &Queue<T>) -> Option<T> {
        let stream = queue.handle().stream();
        let random = self.shared.env.random();
        let shared = Arc::clone(&self.shared);
        let mut claims = lock(&shared.claims);
        let claimed = claims.entry(stream).or_default();
        let chosen = self
            .state(queue.handle())
            .and_then(|state| choose(state, claimed, random));
        let Some(key) = chosen else {
            drop(claims);
            let _ = self.read_whole(queue);
            return None;
        };
        if claimed.contains(&key) && self.crowd != Crowd::Push {
            self.crowd = Crowd::Met;
            return None;
        }
        if claimed.insert(key) {
            self.claimed.push((stream, key));
        }
        drop(claims);
        let item = if key.is_own() || plants::active(Plant::ItemKeyNotRead) {
            self.state(queue.handle())?.get(key).cloned()
        } else {
            self.read_key(queue, KeyBytes::of(&key))?.get(key).cloned()
        };
        self.update(queue, QueueOp::PopItem(key));
        item
    }

    /// Changes an object of any type, blindly.
    pub fn update<H: Opened>(&mut self, object: &H, op: <H::State as Object>::Op) {
        let handle = object.handle();
        let info = handle.info();
        if self.check(handle).is_none() {
            return;
        }
        let encoded = match encode_op::<H::State>(&info.name, &op) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.unwritable.get_or_insert(error);
                return;
            }
        };
        let index = u32::try_from(self.updates.len()).unwrap_or(u32::MAX);
        self.updates.push(Written {
            stream: info.stream,
            touches: H::State::touches(&op),
            op_version: H::State::OP_VERSION,
            op: encoded,
        });
        let overlay = self.overlays.entry(info.stream).or_insert_with(|| {
            Box::new(Overlay::<H::State> {
                state: None,
                unapplied: Vec::new(),
            })
        });
        let overlay: &mut Overlay<H::State> = overlay.downcast_mut().expect("checked above");
        overlay.unapplied.push((op, index));
    }

    /// Changes an object of any type and returns what `apply` does: a read of the keys that `op` touches.
    /// `None` if the object cannot be read.
    pub fn apply<H: Opened>(
        &mut self,
        object: &H,
        op: <H::State as Object>::Op,
    ) -> Option<<H::State as Object>::Output>
    where
        <H::State as Object>::Op: Clone,
    {
        let mut copy = match H::State::touches(&op) {
            Touches::Keys(keys) if !keys.is_empty() => {
                for key in keys {
                    self.read_key(object, key)?;
                }
                self.state(object.handle())?.clone()
            }
            // What touches no key may depend on anything.
            Touches::Keys(_) | Touches::Whole => self.read_whole(object)?.clone(),
        };
        let index = u32::try_from(self.updates.len()).unwrap_or(u32::MAX);
        let output = copy.apply(op.clone(), &Context::new(Position::MAX, 0, index));
        self.update(object, op);
        Some(output)
    }

    /// The state of an object of any type, of which only what belongs to `key` may be looked at: anything else is not
    /// protected. `None` if the object cannot be read.
    pub fn read_key<H: Opened>(&mut self, object: &H, key: KeyBytes) -> Option<&H::State> {
        let info = object.handle().info();
        let written = self.overlays.contains_key(&object.handle().stream());
        let hidden = written && plants::active(Plant::OwnWritesHideReads);
        let (_, reads) = self.reads_of(object.handle());
        if let Reads::Keys(keys) = reads
            && !hidden
        {
            keys.insert(key);
        }
        tracing::trace!(object = &*info.name, "transaction read a key");
        self.state(object.handle())
    }

    /// The whole state of an object of any type. `None` if it cannot be read.
    pub fn read_whole<H: Opened>(&mut self, object: &H) -> Option<&H::State> {
        self.reads_of(object.handle()).1 = Reads::Whole;
        self.state(object.handle())
    }

    fn reads_of<O: Object>(&mut self, handle: &Handle<O>) -> &mut (Arc<Name>, Reads) {
        self.reads.entry(handle.stream()).or_insert_with(|| {
            let info = handle.info();
            let name = Name {
                name: Arc::clone(&info.name),
                key_encoding: info.kind.key.clone().unwrap_or_default(),
            };
            (Arc::new(name), Reads::Keys(BTreeSet::new()))
        })
    }

    /// Remembers why the transaction cannot count, if it cannot.
    fn check<O: Object>(&mut self, handle: &Handle<O>) -> Option<()> {
        let info = handle.info();
        let error = match self.world.state::<O>(info.stream, &info.name) {
            // A handle of another replica is refused: its stream may belong to another log.
            Ok(_) if Arc::ptr_eq(handle.replica().shared(), &self.shared) => return Some(()),
            Ok(_) => ReadError::NotInSnapshot {
                object: Arc::clone(&info.name),
            },
            Err(error) => error,
        };
        self.obstacle.get_or_insert(error);
        None
    }

    /// The state as this transaction sees it.
    fn state<O: Object>(&mut self, handle: &Handle<O>) -> Option<&O> {
        self.check(handle)?;
        let info = handle.info();
        let frozen = self.world.state::<O>(info.stream, &info.name).ok()?;
        let Some(overlay) = self.overlays.get_mut(&info.stream) else {
            return Some(frozen);
        };
        let overlay: &mut Overlay<O> = overlay.downcast_mut()?;
        let state = overlay.state.get_or_insert_with(|| frozen.clone());
        for (op, index) in overlay.unapplied.drain(..) {
            let _ = state.apply(op, &Context::new(Position::MAX, 0, index));
        }
        Some(state)
    }

    pub(super) async fn commit<E>(
        &mut self,
        replica: &Replica,
        limit: &Limit,
    ) -> Result<Verdict, TransactionError<E>> {
        if self.updates.is_empty() {
            return Ok(Verdict::Committed(self.world.position));
        }
        if limit.deadline.has_passed() {
            return Err(limit.late("its own closure"));
        }
        let item = self.record(limit.deadline.at)?;
        let mut update = UpdateFuture::<()>::new(replica.clone(), Ok(item));
        let outcome = std::future::poll_fn(|cx| update.poll_outcome(cx)).await;
        match outcome {
            Ok(RecordOutcome::Committed { position }) => Ok(Verdict::Committed(position)),
            Ok(RecordOutcome::Aborted { clash }) => Ok(Verdict::Aborted(clash)),
            Ok(_) => unreachable!("a commit record has a verdict"),
            // Not sent.
            Err(UpdateError::Unavailable { .. }) => Err(limit.late("earlier updates")),
            Err(source) => Err(TransactionError::Commit { source }),
        }
    }

    fn record<E>(&self, deadline: Time) -> Result<Item, TransactionError<E>> {
        let limits = self.shared.log.limits();
        let mut streams: Vec<_> = self.updates.iter().map(|update| update.stream).collect();
        streams.sort_unstable();
        streams.dedup();
        let (objects, limit) = (streams.len(), limits.streams_per_entry as usize);
        if objects > limit {
            return Err(TransactionError::TooManyObjects { objects, limit });
        }
        let commit = Commit {
            snapshot: if plants::active(Plant::SnapshotTooNew) {
                self.shared.world().applied()
            } else {
                self.world.position
            },
            window: limits.conflict_window,
            reads: self.reads.iter().map(encode_reads).collect(),
            updates: self.updates.iter().map(encode_update).collect(),
        };
        let record = Record::Commit(commit).encode(Vec::new());
        let (size, limit) = (record.len() + HEADER_BYTES, limits.entry_bytes as usize);
        if size > limit {
            return Err(TransactionError::TooLarge { size, limit });
        }
        Ok(Item {
            record,
            streams,
            slot: Slot::new(None, None),
            lane: self.shared.next_lane(),
            deadline,
        })
    }

    /// The outcome of the last attempt, for people.
    pub(super) async fn give_up<T, E>(
        &mut self,
        clash: Clash,
        limit: &Limit,
    ) -> Result<Outcome<T>, TransactionError<E>> {
        let attempts = limit.attempts;
        let (stream, key, at) = match clash {
            Clash::Changed { stream, key, at } => (stream, key, at),
            Clash::TooOld { window, .. } => {
                return Err(TransactionError::TooSlow { attempts, window });
            }
        };
        let (name, _) = &self.reads[&stream];
        let winner = writer_at(&self.shared, at);
        let winner = limit.within("the entry that won", winner).await?;
        Ok(Outcome::Conflict {
            object: Arc::clone(&name.name),
            key: key.map(|key| show(&name.key_encoding, key.as_slice())),
            position: at,
            winner: winner.map_err(|source| TransactionError::Read { source })?,
            attempts,
        })
    }
}

/// What can be counted as a whole.
pub trait Len {
    /// How many.
    fn count(&self) -> usize;
}

impl<K: Key, V: Value> Len for MapState<K, V> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl<T: Value> Len for QueueState<T> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if self.claimed.is_empty() {
            return;
        }
        let mut claims = lock(&self.shared.claims);
        for (stream, key) in &self.claimed {
            if let Some(of_stream) = claims.get_mut(stream) {
                of_stream.remove(key);
            }
        }
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("snapshot", &self.world.position)
            .field("updates", &self.updates.len())
            .finish_non_exhaustive()
    }
}
