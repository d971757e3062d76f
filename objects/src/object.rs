//! What an object is: a deterministic state machine.

use std::borrow::Cow;

use bytes::Bytes;
use milonga_protocol::Position;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::key::KeyBytes;

/// A replicated object's type: a state machine whose updates are the entries of its stream.
///
/// Every replica applies the same operations in the same order, so [`Object::apply`] MUST be deterministic: no
/// clock, no randomness, no iteration over unordered collections that reaches the state or the output.
///
/// ```
/// use milonga_objects::{Context, Object, Touches};
/// use serde::{Deserialize, Serialize};
///
/// /// The largest value ever offered.
/// #[derive(Clone, Default)]
/// struct Highest(u64);
///
/// #[derive(Serialize, Deserialize)]
/// struct Offer(u64);
///
/// impl Object for Highest {
///     const TYPE: &'static str = "highest";
///     const OP_VERSION: u16 = 1;
///     type Op = Offer;
///     type Output = bool;
///
///     fn apply(&mut self, Offer(value): Offer, _: &Context) -> bool {
///         let higher = value > self.0;
///         self.0 = self.0.max(value);
///         higher
///     }
///
///     fn touches(_: &Offer) -> Touches {
///         Touches::Whole
///     }
/// }
/// ```
pub trait Object: Clone + Default + Send + Sync + 'static {
    /// Name of the type, kept in the directory: opening a name as another type is an error.
    const TYPE: &'static str;
    /// Version of [`Self::Op`]'s encoding. A record of a newer one halts the object here, until this build is
    /// upgraded. New enum variants go at the end.
    const OP_VERSION: u16;
    /// Oldest version of it that this build takes. A record of an older one halts the object: raise it only when what
    /// old records mean has changed, too, and better never.
    const OLDEST_OP_VERSION: u16 = 0;
    /// An update, as it is stored (postcard).
    type Op: Serialize + DeserializeOwned + Send + 'static;
    /// What [`Self::apply`] answers the task that submitted the update.
    type Output: Send + 'static;

    /// Takes one update. A panic halts the object on this replica, at this position.
    fn apply(&mut self, op: Self::Op, context: &Context) -> Self::Output;

    /// What `op` may change, from the op alone. Naming too much costs conflicts; naming too little lets
    /// transactions commit that read what has changed.
    fn touches(op: &Self::Op) -> Touches;

    /// Name of the encoding of its keys, if it has any; shown by tools and in conflicts.
    #[must_use]
    fn key_encoding() -> Option<Cow<'static, str>> {
        None
    }

    /// Name of the encoding of its values, if it has any.
    #[must_use]
    fn value_encoding() -> Option<Cow<'static, str>> {
        None
    }
}

/// What an update may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touches {
    /// Anything: conflicts with every transaction that read anything of the object.
    Whole,
    /// These keys. None at all conflicts only with transactions that read the whole object.
    Keys(Vec<KeyBytes>),
}

impl Touches {
    /// One key.
    #[must_use]
    pub fn key(key: KeyBytes) -> Self {
        Self::Keys(vec![key])
    }

    /// No key: only those who read the whole object notice.
    #[must_use]
    pub const fn no_key() -> Self {
        Self::Keys(Vec::new())
    }
}

/// Where in the log an update is: the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Context {
    /// The position; [`Position::MAX`] inside a transaction that has not committed.
    pub position: Position,
    /// The record within the entry.
    pub record: u32,
    /// The update within the record.
    pub index: u32,
}

impl Context {
    pub(crate) const fn new(position: Position, record: u32, index: u32) -> Self {
        Self {
            position,
            record,
            index,
        }
    }
}

/// A value of a map or queue: anything that serde can write and read, cheap enough to clone.
pub trait Value: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> Value for V {}

/// Name of a value's encoding: what a tool needs to know to read and write it. Everything is stored as postcard;
/// the name tells the types that a tool can know without the application.
pub(crate) fn value_encoding<V: Value>() -> Cow<'static, str> {
    use std::any::TypeId;
    let named = [
        (TypeId::of::<String>(), "str"),
        (TypeId::of::<std::sync::Arc<str>>(), "str"),
        (TypeId::of::<i64>(), "i64"),
        (TypeId::of::<Vec<u8>>(), "bytes"),
        (TypeId::of::<Bytes>(), "bytes"),
    ];
    let own = TypeId::of::<V>();
    let name = named
        .iter()
        .find(|(id, _)| *id == own)
        .map_or("postcard", |(_, name)| name);
    Cow::Borrowed(name)
}
