//! One hosted object, whose type is forgotten.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Entry, Position, StreamId};

use super::Output;
use crate::error::Halt;
use crate::object::{Context, Object};
use crate::record::{self, Record, Update};

/// A state and whether it still goes on.
pub(crate) struct Hosted {
    name: Arc<str>,
    state: Box<dyn State>,
    halted: Option<Halt>,
}

impl Hosted {
    pub(crate) fn new<O: Object>(name: Arc<str>) -> Self {
        Self {
            name,
            state: Box::new(Live(O::default())),
            halted: None,
        }
    }

    pub(crate) fn state<O: Object>(&self) -> Option<&O> {
        self.state.as_any().downcast_ref()
    }

    /// Name of the Rust type, for people.
    pub(crate) fn type_name(&self) -> &'static str {
        self.state.type_name()
    }

    pub(super) fn freeze(&self) -> Result<Arc<dyn Any + Send + Sync>, Halt> {
        match &self.halted {
            Some(halt) => Err(halt.clone()),
            None => Ok(self.state.freeze()),
        }
    }

    pub(crate) fn halted(&self) -> Option<&Halt> {
        self.halted.as_ref()
    }

    pub(super) fn apply(
        &mut self,
        context: Context,
        update: &Update<'_>,
        wanted: bool,
    ) -> Result<Option<Output>, Halt> {
        if let Some(halt) = &self.halted {
            return Err(halt.clone());
        }
        let state = &mut self.state;
        // After a panic the state is never looked at again.
        let applied = catch_unwind(AssertUnwindSafe(|| {
            state.apply(update.op_version, update.op, &context, wanted)
        }));
        match applied {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(why)) => Err(self.halt(context, why)),
            Err(panic) => Err(self.halt(context, format!("apply panicked: {}", text_of(&*panic)))),
        }
    }

    pub(super) fn halt(&mut self, context: Context, why: String) -> Halt {
        let halt = self.halted.get_or_insert_with(|| Halt {
            object: Arc::clone(&self.name),
            position: context.position,
            record: context.record,
            why,
        });
        tracing::error!(object = &*self.name, position = %halt.position, why = %halt.why, "object halted");
        halt.clone()
    }

    /// Feeds one entry of `stream` to an object that is loaded apart from the others, under verdicts reached before.
    pub(crate) fn load(
        &mut self,
        stream: StreamId,
        position: Position,
        entry: &Entry,
        is_aborted: impl Fn(u32) -> bool,
    ) {
        let payload = match record::decode_entry(entry) {
            Ok(payload) => payload,
            Err(error) => {
                let why = match error {
                    record::PayloadError::Malformed(why) => why,
                    record::PayloadError::Newer(version) => format!("payload version {version}"),
                };
                self.halt(Context::new(position, 0, 0), why);
                return;
            }
        };
        for (index, record) in (0..).zip(&payload.records) {
            let updates = match record {
                Record::Commit(_)
                    if is_aborted(index) && !plants::active(Plant::LoadedWithoutVerdicts) =>
                {
                    &[]
                }
                record => record.updates(),
            };
            for (nth, update) in (0..).zip(updates) {
                // As played: the directory never changes in transactions.
                let counts = stream != StreamId::DIRECTORY || matches!(record, Record::Update(_));
                if update.stream == stream && counts {
                    // A halt is kept inside.
                    let _ = self.apply(Context::new(position, index, nth), update, false);
                }
            }
        }
    }
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// An object whose type is forgotten.
trait State: Send + Sync {
    fn apply(
        &mut self,
        op_version: u16,
        op: &[u8],
        context: &Context,
        wanted: bool,
    ) -> Result<Option<Output>, String>;

    fn freeze(&self) -> Arc<dyn Any + Send + Sync>;

    fn as_any(&self) -> &dyn Any;

    fn type_name(&self) -> &'static str;
}

struct Live<O>(O);

impl<O: Object> State for Live<O> {
    fn apply(
        &mut self,
        op_version: u16,
        op: &[u8],
        context: &Context,
        wanted: bool,
    ) -> Result<Option<Output>, String> {
        let op = decode_op::<O>(op_version, op)?;
        let output = self.0.apply(op, context);
        Ok(wanted.then(|| Box::new(output) as Output))
    }

    fn freeze(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::new(self.0.clone())
    }

    fn as_any(&self) -> &dyn Any {
        &self.0
    }

    fn type_name(&self) -> &'static str {
        std::any::type_name::<O>()
    }
}

fn decode_op<O: Object>(version: u16, bytes: &[u8]) -> Result<O::Op, String> {
    if version > O::OP_VERSION {
        return Err(format!(
            "operation version {version} is newer than version {} of this build; upgrade it",
            O::OP_VERSION
        ));
    }
    if version < O::OLDEST_OP_VERSION {
        return Err(format!(
            "operation version {version} is older than version {}, the first that this build takes; read the log \
             with the build that wrote it, or begin a new one",
            O::OLDEST_OP_VERSION
        ));
    }
    match postcard::take_from_bytes(bytes) {
        Ok((op, [])) => Ok(op),
        Ok((_, rest)) => Err(format!("{} bytes behind the operation", rest.len())),
        Err(error) => Err(format!("the operation cannot be decoded: {error}")),
    }
}
