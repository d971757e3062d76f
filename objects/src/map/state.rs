//! The map as a state machine.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::marker::PhantomData;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::key::{EncodeKey, Key, KeyBytes};
use crate::object::{Context, Object, Touches, Value, value_encoding};

/// State of a [`Map`](crate::Map): keys encoded (one shared allocation each), values decoded, in imbl's B-tree, of which a clone
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

/// An update of a [`Map`](crate::Map).
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
