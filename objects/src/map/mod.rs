//! The map.

mod state;

use std::borrow::Borrow;
use std::fmt;

use milonga_protocol::Position;

use crate::error::ReadError;
use crate::handle::{Handle, Opened};
use crate::key::{EncodeKey, Key, KeyBytes};
use crate::object::Value;
use crate::replica::sync::Reach;
use crate::update::Update;

pub use state::{Entries, MapOp, MapState};

/// A replicated map, in the order of its keys' encoding.
///
/// Lookups take the borrowed form of a key: `get("a")` for `Map<String, _>`.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/env.rs")); }
/// # use milonga_objects::{Replica, ReplicaOptions};
/// # use milonga_protocol::MemoryLog;
/// # support::run(async |env| {
/// # let replica = Replica::start(env, MemoryLog::single(), ReplicaOptions::default());
/// let edges = replica.map::<(String, u32), bool>("edges").await?;
/// edges.insert(("b".into(), 1), true).await?;
/// assert_eq!(edges.insert(("a".into(), 7), false).await?, None);
/// assert_eq!(edges.remove(("b".into(), 1)).await?, Some(true));
/// let all: Vec<_> = edges.entries().await?.collect();
/// assert_eq!(all, [(("a".into(), 7), false)]);
/// # Ok(()) });
/// ```
pub struct Map<K, V>(pub(crate) Handle<MapState<K, V>>);

impl<K: Key, V: Value> Map<K, V> {
    /// Sets the value of `key`; resolves to the one it had.
    pub fn insert(&self, key: K, value: V) -> Update<Option<V>> {
        self.0.update(MapOp::Insert {
            key: KeyBytes::of(&key),
            value,
        })
    }

    /// Removes `key`; resolves to the value it had.
    pub fn remove(&self, key: K) -> Update<Option<V>> {
        self.0.update(MapOp::Remove {
            key: KeyBytes::of(&key),
        })
    }

    /// Removes everything; resolves to `None`.
    pub fn clear(&self) -> Update<Option<V>> {
        self.0.update(MapOp::Clear)
    }

    /// The value of `key`, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, ReadError>
    where
        K: Borrow<Q>,
        Q: EncodeKey + ?Sized,
    {
        Ok(self
            .0
            .look_after(Reach::Hosted, |map| map.get(key).cloned())
            .await?
            .0)
    }

    /// As [`Self::get`], with the position that was read at: everything below it was visible.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn get_with_position<Q>(&self, key: &Q) -> Result<(Option<V>, Position), ReadError>
    where
        K: Borrow<Q>,
        Q: EncodeKey + ?Sized,
    {
        self.0
            .look_after(Reach::Hosted, |map| map.get(key).cloned())
            .await
    }

    /// Whether `key` has a value, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn contains<Q>(&self, key: &Q) -> Result<bool, ReadError>
    where
        K: Borrow<Q>,
        Q: EncodeKey + ?Sized,
    {
        Ok(self
            .0
            .look_after(Reach::Hosted, |map| map.get(key).is_some())
            .await?
            .0)
    }

    /// The value of `key` as this replica knows it now; see [`Handle::peek`].
    ///
    /// # Errors
    /// As [`Handle::peek`].
    pub fn peek<Q>(&self, key: &Q) -> Result<Option<V>, ReadError>
    where
        K: Borrow<Q>,
        Q: EncodeKey + ?Sized,
    {
        Ok(self.0.look(|map| map.get(key).cloned())?.0)
    }

    /// Number of keys, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn len(&self) -> Result<usize, ReadError> {
        Ok(self.0.look_after(Reach::Hosted, MapState::len).await?.0)
    }

    /// Whether there is no key, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn is_empty(&self) -> Result<bool, ReadError> {
        Ok(self
            .0
            .look_after(Reach::Hosted, MapState::is_empty)
            .await?
            .0)
    }

    /// All keys and values at one position, linearizable, in order. Costs nothing but iterating.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn entries(&self) -> Result<Entries<K, V>, ReadError> {
        Ok(self.0.look_after(Reach::Hosted, MapState::entries).await?.0)
    }
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Key, V: Value> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<K: Key, V: Value> Opened for Map<K, V> {
    type State = MapState<K, V>;

    fn handle(&self) -> &Handle<Self::State> {
        &self.0
    }
}
