//! The queue as a state machine.

use std::borrow::Cow;
use std::fmt;

use imbl::OrdMap;
use milonga_protocol::Position;
use serde::{Deserialize, Serialize};

use crate::key::{EncodeKey, Key, KeyBytes};
use crate::object::{Context, Object, Touches, Value, value_encoding};

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

/// State of a [`Queue`](crate::Queue).
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

/// An update of a [`Queue`](crate::Queue).
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

/// What an update of a [`Queue`](crate::Queue) answers.
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
