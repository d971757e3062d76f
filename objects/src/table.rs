//! A map from key bytes to positions, for tables of millions that grow by one for every change that is played.
//!
//! Buckets hold the hash and, up to 22 bytes, the key itself: growing never looks at a key again, and most keys need
//! no allocation. Two keys of one hash are told apart: the second one lives in a map of its own.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::hash::{BuildHasherDefault, Hasher};

use milonga_protocol::Position;

/// Positions by key.
#[derive(Default)]
pub(crate) struct Table {
    /// By hash. Its iteration order is never looked at: it is only dropped in it.
    first: HashMap<u64, Slot, BuildHasherDefault<AsIs>>,
    /// Keys whose hash was taken.
    others: BTreeMap<Box<[u8]>, Position>,
}

struct Slot {
    key: StoredKey,
    position: Position,
}

const INLINE: usize = 22;

enum StoredKey {
    Inline(u8, [u8; INLINE]),
    Heap(Box<[u8]>),
}

impl StoredKey {
    fn new(key: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        match (inline.get_mut(..key.len()), u8::try_from(key.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(key);
                Self::Inline(len, inline)
            }
            _ => Self::Heap(key.into()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Table {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Position> {
        let slot = self.first.get(&hash(key))?;
        if slot.key.as_slice() == key {
            return Some(slot.position);
        }
        self.others.get(key).copied()
    }

    pub(crate) fn set(&mut self, key: &[u8], position: Position) {
        self.set_hashed(hash(key), key, position);
    }

    fn set_hashed(&mut self, hash: u64, key: &[u8], position: Position) {
        match self.first.entry(hash) {
            hash_map::Entry::Vacant(vacant) => {
                let key = StoredKey::new(key);
                vacant.insert(Slot { key, position });
            }
            hash_map::Entry::Occupied(mut taken) if taken.get().key.as_slice() == key => {
                taken.get_mut().position = position;
            }
            hash_map::Entry::Occupied(_) => {
                self.others.insert(key.into(), position);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Keys held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.others.len()
    }

    /// To be dropped a little at a time.
    pub(crate) fn retire(self) -> Retired {
        Retired(self.first.into_iter())
    }
}

/// What is left of a table that is no longer needed.
pub(crate) struct Retired(hash_map::IntoIter<u64, Slot>);

impl Retired {
    /// Drops `keys` keys. Whether there are more.
    pub(crate) fn drop_some(&mut self, keys: usize) -> bool {
        self.0.by_ref().take(keys).count() == keys
    }
}

/// The keys of the hash map are hashes.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("hashes are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Multiply and fold, eight bytes at a time. Keys come from those who may write to the log anyway, so there is
/// nobody to defend against.
fn hash(key: &[u8]) -> u64 {
    let (words, rest) = key.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let seed = (key.len() as u64).wrapping_add(0xa076_1d64_78bd_642f);
    let state = words
        .iter()
        .fold(seed, |state, word| mix(state, u64::from_le_bytes(*word)));
    mix(mix(state, u64::from_le_bytes(last)), 0xe703_7ed1_a0b4_28db)
}

fn mix(state: u64, word: u64) -> u64 {
    let factors = (state ^ word, state.rotate_left(29) ^ 0x9e37_79b9_7f4a_7c15);
    let product = u128::from(factors.0) * u128::from(factors.1 | 1);
    let (low, high) = (product & u128::from(u64::MAX), product >> 64);
    u64::try_from(low ^ high).expect("both below 2^64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_table_is_a_map(
            sets in prop::collection::vec(("[ab]{0,30}", any::<u64>()), 0..60)
        ) {
            let (mut table, mut model) = (Table::default(), BTreeMap::new());
            for (key, position) in sets {
                table.set(key.as_bytes(), Position(position));
                model.insert(key, Position(position));
            }
            for (key, position) in &model {
                prop_assert_eq!(table.get(key.as_bytes()), Some(*position));
            }
            prop_assert_eq!(table.len(), model.len());
        }
    }

    #[test]
    fn two_keys_of_one_hash_are_told_apart() {
        let mut table = Table::default();
        // As if "b" hashed like "a".
        table.set_hashed(hash(b"b"), b"a", Position(1));
        table.set(b"b", Position(2));
        assert_eq!(table.get(b"b"), Some(Position(2)));
        table.set(b"b", Position(3));
        assert_eq!(table.get(b"b"), Some(Position(3)));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn similar_keys_spread() {
        let hashes: std::collections::BTreeSet<_> = (0..100_000_u64)
            .map(|n| hash(&n.to_be_bytes()) >> 32)
            .collect();
        assert!(hashes.len() > 99_000, "{}", hashes.len());
    }

    #[test]
    fn a_retired_table_is_dropped_bit_by_bit() {
        let mut table = Table::default();
        (0..10_u64).for_each(|n| table.set(&n.to_be_bytes(), Position(n)));
        let mut retired = table.retire();
        assert!(retired.drop_some(4) && retired.drop_some(4));
        assert!(!retired.drop_some(4));
    }
}
