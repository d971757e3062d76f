//! The map.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::marker::PhantomData;

use imbl::OrdMap;
use milonga_protocol::Position;
use serde::{Deserialize, Serialize};

use crate::error::ReadError;
use crate::handle::{Handle, Opened};
use crate::key::{EncodeKey, Key, KeyBytes};
use crate::object::{Context, Object, Touches, Value, value_encoding};
use crate::update::Update;

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
        self.0.read(|map| map.get(key).cloned()).await
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
        self.0.read_with_position(|map| map.get(key).cloned()).await
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
        self.0.read(|map| map.get(key).is_some()).await
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
        self.0.peek(|map| map.get(key).cloned())
    }

    /// Number of keys, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn len(&self) -> Result<usize, ReadError> {
        self.0.read(MapState::len).await
    }

    /// Whether there is no key, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn is_empty(&self) -> Result<bool, ReadError> {
        self.0.read(MapState::is_empty).await
    }

    /// All keys and values at one position, linearizable, in order. Costs nothing but iterating.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn entries(&self) -> Result<Entries<K, V>, ReadError> {
        self.0.read(MapState::entries).await
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

/// State of a [`Map`]: keys encoded (one shared allocation each), values decoded, in imbl's B-tree, of which a clone
/// costs nothing.
pub struct MapState<K, V> {
    entries: OrdMap<KeyBytes, V>,
    key: PhantomData<fn() -> K>,
}

impl<K: Key, V: Value> MapState<K, V> {
    /// The value of `key`.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: EncodeKey + ?Sized,
    {
        key.with_bytes(|bytes| self.entries.get(bytes))
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        // Keys were encoded by a type of the same encoding's name.
        let decode =
            |(key, value): (&KeyBytes, _)| Some((K::from_key_bytes(key.as_slice())?, value));
        self.entries.iter().filter_map(move |(k, v)| decode((k, v)))
    }

    /// Keys and values, in order, on their own.
    #[must_use]
    pub fn entries(&self) -> Entries<K, V> {
        Entries {
            entries: self.entries.clone().into_iter(),
            key: PhantomData,
        }
    }
}

impl<K, V: Clone> Clone for MapState<K, V> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            key: PhantomData,
        }
    }
}

impl<K, V> Default for MapState<K, V> {
    fn default() -> Self {
        Self {
            entries: OrdMap::new(),
            key: PhantomData,
        }
    }
}

impl<K, V> fmt::Debug for MapState<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MapState({} keys)", self.entries.len())
    }
}

/// Keys and values of a map at one position, in order.
pub struct Entries<K, V> {
    entries: imbl::ordmap::ConsumingIter<KeyBytes, V, imbl::shared_ptr::DefaultSharedPtr>,
    key: PhantomData<fn() -> K>,
}

impl<K: Key, V: Value> Iterator for Entries<K, V> {
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        loop {
            let (key, value) = self.entries.next()?;
            if let Some(key) = K::from_key_bytes(key.as_slice()) {
                return Some((key, value));
            }
        }
    }
}

impl<K, V> fmt::Debug for Entries<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entries")
    }
}

/// An update of a [`Map`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MapOp<V> {
    /// Sets a value; outputs the old one.
    Insert {
        /// The key.
        key: KeyBytes,
        /// Its value.
        value: V,
    },
    /// Removes a key; outputs its value.
    Remove {
        /// The key.
        key: KeyBytes,
    },
    /// Removes all keys; outputs nothing.
    Clear,
}

impl<K: Key, V: Value> Object for MapState<K, V> {
    const TYPE: &'static str = "map";
    const OP_VERSION: u16 = 1;
    type Op = MapOp<V>;
    type Output = Option<V>;

    fn apply(&mut self, op: MapOp<V>, _: &Context) -> Option<V> {
        match op {
            MapOp::Insert { key, value } => self.entries.insert(key, value),
            MapOp::Remove { key } => self.entries.remove(key.as_slice()),
            MapOp::Clear => {
                self.entries.clear();
                None
            }
        }
    }

    fn touches(op: &MapOp<V>) -> Touches {
        match op {
            MapOp::Insert { key, .. } | MapOp::Remove { key } => Touches::key(key.clone()),
            MapOp::Clear => Touches::Whole,
        }
    }

    fn key_encoding() -> Option<Cow<'static, str>> {
        Some(K::encoding())
    }

    fn value_encoding() -> Option<Cow<'static, str>> {
        Some(value_encoding::<V>())
    }
}
