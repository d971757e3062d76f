//! The reference objects: as small and as plain as can be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::world::history::{Cell, Query, Value};
use crate::world::witness::decode::Touched;

/// Where an update is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Position.
    pub position: u64,
    /// Record of the entry.
    pub record: u32,
    /// Update of the record.
    pub index: u32,
}

/// A reference object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// `Map<u64, Cell>`.
    Map(BTreeMap<u64, Cell>),
    /// `Counter`.
    Counter(i64),
    /// `Queue<u64>`.
    Queue(BTreeMap<At, u64>),
    /// `Lists`.
    Lists(BTreeMap<u64, Vec<u64>>),
    /// `Fragile`.
    Fragile(i64),
}

#[derive(Serialize, Deserialize)]
enum MapOp {
    Insert(Bytes, Cell),
    Remove(Bytes),
    Clear,
}

/// Bytes, as serde's `serialize_bytes` writes them.
type Bytes = Vec<u8>;

#[derive(Deserialize)]
enum CounterOp {
    Add(i64),
}

#[derive(Deserialize)]
enum QueueOp {
    Push(u64),
    Pop,
    PopItem(u64, u32, u32),
}

#[derive(Deserialize)]
enum ListsOp {
    Append(u64, u64),
}

#[derive(Deserialize)]
enum FragileOp {
    Add(i64),
    Break,
}

/// An operation of any of them.
enum Op {
    Insert(u64, Cell),
    Remove(u64),
    Clear,
    Add(i64),
    Push(u64),
    Pop,
    PopItem(At),
    Append(u64, u64),
    Break,
}

/// What an operation did; `None`: the object cannot take it, and halts.
pub(super) type Applied = Option<Value>;

impl Model {
    /// A new object of the type that the directory names.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "map" => Self::Map(BTreeMap::new()),
            "counter" => Self::Counter(0),
            "queue" => Self::Queue(BTreeMap::new()),
            "lists" => Self::Lists(BTreeMap::new()),
            "fragile" => Self::Fragile(0),
            _ => return None,
        })
    }

    /// What it was before anything happened.
    #[must_use]
    pub const fn fresh(&self) -> Self {
        match self {
            Self::Map(_) => Self::Map(BTreeMap::new()),
            Self::Counter(_) => Self::Counter(0),
            Self::Queue(_) => Self::Queue(BTreeMap::new()),
            Self::Lists(_) => Self::Lists(BTreeMap::new()),
            Self::Fragile(_) => Self::Fragile(0),
        }
    }

    fn decode(&self, op: &[u8]) -> Option<Op> {
        fn all<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
            let (op, rest) = postcard::take_from_bytes(bytes).ok()?;
            rest.is_empty().then_some(op)
        }
        let key = |bytes: Bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        Some(match self {
            Self::Map(_) => match all(op)? {
                MapOp::Insert(bytes, cell) => Op::Insert(key(bytes)?, cell),
                MapOp::Remove(bytes) => Op::Remove(key(bytes)?),
                MapOp::Clear => Op::Clear,
            },
            Self::Counter(_) => match all(op)? {
                CounterOp::Add(n) => Op::Add(n),
            },
            Self::Queue(_) => match all(op)? {
                QueueOp::Push(item) => Op::Push(item),
                QueueOp::Pop => Op::Pop,
                QueueOp::PopItem(position, record, index) => Op::PopItem(At {
                    position,
                    record,
                    index,
                }),
            },
            Self::Lists(_) => match all(op)? {
                ListsOp::Append(key, value) => Op::Append(key, value),
            },
            Self::Fragile(_) => match all(op)? {
                FragileOp::Add(n) => Op::Add(n),
                FragileOp::Break => Op::Break,
            },
        })
    }

    /// Applies an operation.
    pub fn apply(&mut self, version: u16, op: &[u8], at: At) -> Applied {
        if version > 1 {
            return None;
        }
        let op = self.decode(op)?;
        Some(match (self, op) {
            (Self::Map(map), Op::Insert(key, cell)) => Value::Cell(map.insert(key, cell)),
            (Self::Map(map), Op::Remove(key)) => Value::Cell(map.remove(&key)),
            (Self::Map(map), Op::Clear) => {
                map.clear();
                Value::Cell(None)
            }
            (Self::Counter(value) | Self::Fragile(value), Op::Add(n)) => {
                *value = value.saturating_add(n);
                Value::Number(*value)
            }
            (Self::Queue(items), Op::Push(item)) => {
                items.insert(at, item);
                Value::Key(at.position, at.record, at.index)
            }
            (Self::Queue(items), Op::Pop) => Value::Item(items.pop_first().map(|(_, item)| item)),
            (Self::Queue(items), Op::PopItem(key)) => Value::Item(items.remove(&own(key, at))),
            (Self::Lists(lists), Op::Append(key, value)) => {
                let list = lists.entry(key).or_default();
                list.push(value);
                Value::Count(list.len())
            }
            _ => return None,
        })
    }

    /// What an operation may change (rule 31); `None` if it cannot be read.
    #[must_use]
    pub fn touches(&self, op: &[u8]) -> Option<Touched> {
        let key = |key: u64| Touched::One(key_bytes(key));
        Some(match self.decode(op)? {
            Op::Insert(k, _) | Op::Remove(k) | Op::Append(k, _) => key(k),
            Op::Clear | Op::Add(_) | Op::Pop | Op::Break => Touched::Whole,
            Op::Push(_) => Touched::None,
            Op::PopItem(at) if at.position == u64::MAX => Touched::None,
            Op::PopItem(at) => Touched::One(item_bytes(at)),
        })
    }

    /// The mark that an operation carries, if it carries one.
    #[must_use]
    pub fn mark(&self, op: &[u8]) -> Option<u64> {
        match self.decode(op)? {
            Op::Insert(_, (_, mark)) | Op::Push(mark) | Op::Append(_, mark) => Some(mark),
            _ => None,
        }
    }

    /// The item that a transaction's pop at `at` takes, and its key; `None` if the operation is something else.
    #[must_use]
    pub fn popped(&self, op: &[u8], at: At) -> Option<(Option<u64>, At)> {
        match (self, self.decode(op)?) {
            (Self::Queue(items), Op::PopItem(key)) => {
                Some((items.get(&own(key, at)).copied(), key))
            }
            _ => None,
        }
    }

    /// Answers a question.
    #[must_use]
    pub fn ask(&self, query: &Query) -> Option<Value> {
        Some(match (self, query) {
            (Self::Map(map), Query::Get(key)) => Value::Cell(map.get(key).copied()),
            (Self::Map(map), Query::Contains(key)) => Value::Bool(map.contains_key(key)),
            (Self::Map(map), Query::Len) => Value::Count(map.len()),
            (Self::Map(map), Query::IsEmpty) => Value::Bool(map.is_empty()),
            (Self::Map(map), Query::State) => {
                Value::Cells(map.iter().map(|(key, cell)| (*key, *cell)).collect())
            }
            (Self::Counter(value) | Self::Fragile(value), Query::State) => Value::Number(*value),
            (Self::Queue(items), Query::Len) => Value::Count(items.len()),
            (Self::Queue(items), Query::IsEmpty) => Value::Bool(items.is_empty()),
            (Self::Queue(items), Query::First) => Value::Item(items.values().next().copied()),
            (Self::Queue(items), Query::State) => Value::Items(items.values().copied().collect()),
            (Self::Lists(lists), Query::List(key)) => {
                Value::List(lists.get(key).cloned().unwrap_or_default())
            }
            (Self::Lists(lists), Query::State) => {
                Value::Lists(lists.iter().map(|(k, list)| (*k, list.clone())).collect())
            }
            _ => return None,
        })
    }
}

/// The key of an item that the same record pushed is known only when the record has a place.
const fn own(key: At, at: At) -> At {
    if key.position == u64::MAX {
        At {
            index: key.index,
            ..at
        }
    } else {
        key
    }
}

/// A number as a key's bytes: in order.
#[must_use]
pub(super) fn key_bytes(key: u64) -> Vec<u8> {
    key.to_be_bytes().to_vec()
}

/// An item's key as bytes.
#[must_use]
pub(super) fn item_bytes(at: At) -> Vec<u8> {
    let mut bytes = at.position.to_be_bytes().to_vec();
    bytes.extend_from_slice(&at.record.to_be_bytes());
    bytes.extend_from_slice(&at.index.to_be_bytes());
    bytes
}
