//! The reference objects, by name and stream, and how updates change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use milonga_protocol::Position;
use serde::Deserialize;

use crate::world::history::{Query, Value};
use crate::world::witness::decode::Update;
use crate::world::witness::model::{At, Model};
use crate::world::witness::{Findings, Rule};

/// The reference objects at one position.
#[derive(Clone, Debug, Default)]
pub struct World {
    objects: BTreeMap<u64, Object>,
    names: BTreeMap<Arc<str>, u64>,
}

/// A registered object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its name.
    pub name: Arc<str>,
    /// Where it was registered.
    pub registered: u64,
    /// Its state.
    pub model: Model,
    /// Where it stopped: position and record.
    pub halted: Option<(u64, u32)>,
    /// How often it was changed.
    pub changes: u64,
}

/// The mirror of the directory's operation.
#[derive(Deserialize)]
enum DirectoryOp {
    Register(String, Kind),
}

#[derive(Deserialize)]
struct Kind {
    name: String,
    _key: Option<String>,
    _value: Option<String>,
}

impl World {
    /// The object of a stream.
    #[must_use]
    pub fn object(&self, stream: u64) -> Option<&Object> {
        self.objects.get(&stream)
    }

    /// The object of a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Object> {
        self.objects.get(self.names.get(name)?)
    }

    /// The stream of a name.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<u64> {
        self.names.get(name).copied()
    }

    /// What an object answers; `None` if there is none, or it cannot be asked that.
    #[must_use]
    pub fn ask(&self, name: &str, query: &Query) -> Option<Value> {
        let object = self.named(name)?;
        match object.halted {
            Some((position, record)) => Some(Value::Halted(Position(position), record)),
            None => object.model.ask(query),
        }
    }

    /// The state of a name's object.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        Some(&self.named(name)?.model)
    }

    pub(super) fn register(&mut self, op: &[u8], at: At, found: &mut Findings) {
        let Ok(DirectoryOp::Register(name, kind)) = postcard::from_bytes(op) else {
            return found.add(Rule::Records, || {
                format!("a registration at {at:?} cannot be read")
            });
        };
        let name: Arc<str> = name.into();
        if self.names.contains_key(&name) {
            return;
        }
        let Some(model) = Model::of(&kind.name) else {
            return found.add(Rule::Records, || {
                format!("no reference for a {}", kind.name)
            });
        };
        let stream = 16 + 2 * at.position;
        self.names.insert(Arc::clone(&name), stream);
        let object = Object {
            name,
            registered: at.position,
            model,
            halted: None,
            changes: 0,
        };
        self.objects.insert(stream, object);
    }

    /// Applies one update.
    pub(super) fn apply(&mut self, update: &Update, at: At, found: &mut Findings) -> Value {
        let Some(object) = self.objects.get_mut(&update.stream) else {
            found.add(Rule::Records, || {
                format!("{at:?} changes {}, which nobody registered", update.stream)
            });
            return Value::Bool(false);
        };
        object.changes += 1;
        if let Some(touches) = object.model.touches(&update.op)
            && update.op_version == 1
            && touches != update.touches
        {
            let name = Arc::clone(&object.name);
            found.add(Rule::Records, || {
                format!(
                    "{at:?} changes {touches:?} of {name:?} and says {:?}",
                    update.touches
                )
            });
        }
        if object.halted.is_none() {
            match object.model.apply(update.op_version, &update.op, at) {
                Some(output) => return output,
                None => object.halted = Some((at.position, at.record)),
            }
        }
        let (position, record) = object.halted.expect("just set or found");
        Value::Halted(Position(position), record)
    }

    pub(super) fn halt(&mut self, stream: u64, position: u64) {
        if let Some(object) = self.objects.get_mut(&stream) {
            object.changes += 1;
            object.halted.get_or_insert((position, 0));
        }
    }
}
