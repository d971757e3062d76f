//! The directory: the object that names all others. Its stream is fixed, and every replica hosts it.

use std::fmt;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use milonga_protocol::{Position, StreamId};
use serde::{Deserialize, Serialize};

use crate::key::KeyBytes;
use crate::object::{Context, Object, Touches};

/// Longest name of an object.
pub(crate) const MAX_NAME_BYTES: usize = 1_024;
/// Streams below belong to Milonga itself.
const FIRST_STREAM: u64 = 16;

/// An object's type as the directory keeps it: enough for tools to show what they were not compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ObjectKind {
    /// Name of the type: `map`, `counter`, `queue`, or [`Object::TYPE`].
    pub name: String,
    /// Name of the keys' encoding: `str`, `u64`, `(str,i64)`, ….
    pub key: Option<String>,
    /// Name of the values' encoding: `str`, `i64`, `bytes`, or `postcard` (any other type).
    pub value: Option<String>,
}

impl ObjectKind {
    pub(crate) fn of<O: Object>() -> Self {
        Self {
            name: O::TYPE.into(),
            key: O::key_encoding().map(Into::into),
            value: O::value_encoding().map(Into::into),
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match (&self.key, &self.value) {
            (Some(key), Some(value)) => write!(f, "<{key}, {value}>"),
            (Some(one), None) | (None, Some(one)) => write!(f, "<{one}>"),
            (None, None) => Ok(()),
        }
    }
}

/// A registered object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its stream.
    pub stream: StreamId,
    /// Its type.
    pub kind: ObjectKind,
    /// Where it was registered: all its entries lie above.
    pub registered: Position,
}

/// An update of the directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum DirectoryOp {
    /// Registers a name; changes nothing if the name exists.
    Register { name: String, kind: ObjectKind },
}

/// Names of objects. An object's stream is told by the position of its registration, not by how many came before: if a
/// registration is lost and given up, nobody else's stream moves. The odd streams are for checkpoints.
#[derive(Clone, Default)]
pub(crate) struct Directory {
    objects: OrdMap<Arc<str>, ObjectInfo>,
    streams: OrdSet<StreamId>,
}

impl Directory {
    pub(crate) fn get(&self, name: &str) -> Option<&ObjectInfo> {
        self.objects.get(name)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &ObjectInfo> {
        self.objects.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// All streams that a replica plays.
    pub(crate) fn streams(&self) -> Arc<[StreamId]> {
        let objects = self.streams.iter().copied();
        std::iter::once(StreamId::DIRECTORY)
            .chain(objects)
            .collect()
    }
}

impl Object for Directory {
    const TYPE: &'static str = "directory";
    /// Version 1 told an object's stream by the number of registrations before: its names mean other streams.
    const OP_VERSION: u16 = 2;
    const OLDEST_OP_VERSION: u16 = 2;
    type Op = DirectoryOp;
    type Output = ObjectInfo;

    fn apply(&mut self, op: DirectoryOp, context: &Context) -> ObjectInfo {
        let DirectoryOp::Register { name, kind } = op;
        if let Some(existing) = self.objects.get(name.as_str()) {
            return existing.clone();
        }
        let stream = stream_of(context.position);
        if self.streams.contains(&stream) {
            // Two registrations in one entry: only a foreign writer makes such, and one stream has one object.
            let mut taken = self.objects.values().filter(|info| info.stream == stream);
            return taken.next().expect("it is somebody's").clone();
        }
        let name: Arc<str> = name.into();
        let info = ObjectInfo {
            name: Arc::clone(&name),
            stream,
            kind,
            registered: context.position,
        };
        self.streams.insert(stream);
        self.objects.insert(name, info.clone());
        info
    }

    fn touches(op: &DirectoryOp) -> Touches {
        let DirectoryOp::Register { name, .. } = op;
        Touches::key(KeyBytes::of(name.as_str()))
    }
}

/// The stream of the object that is registered at `position`.
fn stream_of(position: Position) -> StreamId {
    StreamId(FIRST_STREAM.saturating_add(position.0.saturating_mul(2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(directory: &mut Directory, name: &str, position: u64) -> ObjectInfo {
        let op = DirectoryOp::Register {
            name: name.into(),
            kind: ObjectKind {
                name: "map".into(),
                key: Some("str".into()),
                value: Some("i64".into()),
            },
        };
        directory.apply(op, &Context::new(Position(position), 0, 0))
    }

    #[test]
    fn a_name_is_registered_once_and_streams_are_even() {
        let mut directory = Directory::default();
        let first = register(&mut directory, "b", 3);
        let second = register(&mut directory, "a", 4);
        assert_eq!((first.stream, second.stream), (StreamId(22), StreamId(24)));
        assert_eq!(register(&mut directory, "b", 9), first);
        assert_eq!(first.kind.to_string(), "map<str, i64>");
        assert_eq!(directory.get("a"), Some(&second));
        assert_eq!(
            *directory.streams(),
            [StreamId::DIRECTORY, StreamId(22), StreamId(24)]
        );
        // Had the first registration been lost, the second would still be what it is.
        let mut without = Directory::default();
        assert_eq!(register(&mut without, "a", 4), second);
        // A stream never has two objects.
        assert_eq!(register(&mut directory, "c", 4), second);
        assert_eq!(directory.get("c"), None);
    }
}
