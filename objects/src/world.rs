//! The hosted objects' states at one position. Pure; changed by one writer, under a lock that readers share.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use milonga_protocol::{Entry, Position, StreamId};

use crate::directory::Directory;
use crate::error::{Halt, ReadError};
use crate::object::{Context, Object};
use crate::playback::{Content, Plan};
use crate::record::{self, Decision, Record, Update};
use crate::versions::{Clash, Verdict};

/// An output on its way to the task that submitted the update.
pub(crate) type Output = Box<dyn Any + Send>;

/// What became of one record of this replica's own.
pub(crate) enum RecordOutcome {
    /// An update took effect; no output if the object is not hosted.
    Applied(Option<Output>),
    /// A transaction took effect.
    Committed,
    /// A transaction did not.
    Aborted(Clash),
    /// An update that its object cannot take here.
    Halted(Halt),
}

/// Every state, as of [`Self::applied`].
pub(crate) struct World {
    applied: Position,
    hosted: BTreeMap<StreamId, Hosted>,
    /// Streams of which an entry was played: who joins them must load them first.
    seen: BTreeSet<StreamId>,
    /// The commit records that did not hold, in order: verdicts for objects that are opened later (rule 32).
    aborted: Vec<(Position, u32)>,
    /// Counts what changes the world without moving `applied`.
    joins: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            applied: Position::ZERO,
            hosted: BTreeMap::new(),
            seen: BTreeSet::new(),
            aborted: Vec::new(),
            joins: 0,
        };
        let directory = Hosted::new::<Directory>(Directory::TYPE.into());
        world.hosted.insert(StreamId::DIRECTORY, directory);
        world
    }

    /// Every entry below it has taken effect: a true prefix.
    pub(crate) const fn applied(&self) -> Position {
        self.applied
    }

    /// Nothing more lies below `position`.
    pub(crate) fn complete(&mut self, position: Position) {
        self.applied = self.applied.max(position);
    }

    /// The directory as played, unless it halted.
    pub(crate) fn directory(&self) -> Result<&Directory, Halt> {
        let hosted = &self.hosted[&StreamId::DIRECTORY];
        match &hosted.halted {
            Some(halt) => Err(halt.clone()),
            None => Ok(hosted.state().expect("hosted as that type from the start")),
        }
    }

    /// The streams whose objects are open.
    pub(crate) fn hosted_streams(&self) -> impl Iterator<Item = StreamId> {
        self.hosted.keys().copied()
    }

    pub(crate) fn get(&self, stream: StreamId) -> Option<&Hosted> {
        self.hosted.get(&stream)
    }

    pub(crate) fn state<O: Object>(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<&O, ReadError> {
        let hosted = self.hosted.get(&stream).ok_or_else(|| missing(name))?;
        if let Some(halt) = &hosted.halted {
            return Err(halt.clone().into());
        }
        hosted.state().ok_or_else(|| missing(name))
    }

    /// Joins an object of whose stream nothing was played yet. `false`: it must be loaded first.
    pub(crate) fn join_new(&mut self, stream: StreamId, hosted: Hosted) -> bool {
        let new = !self.seen.contains(&stream);
        if new {
            self.join_loaded(stream, hosted);
        }
        new
    }

    /// Joins an object that was loaded up to exactly [`Self::applied`] (rule 39).
    pub(crate) fn join_loaded(&mut self, stream: StreamId, hosted: Hosted) {
        self.hosted.entry(stream).or_insert(hosted);
        self.joins += 1;
    }

    /// Whether the commit record did not hold. Only for positions below [`Self::applied`].
    pub(crate) fn is_aborted(&self, position: Position, record: u32) -> bool {
        self.aborted.binary_search(&(position, record)).is_ok()
    }

    /// The commit records in `from..to` that did not hold.
    pub(crate) fn aborted_between(&self, from: Position, to: Position) -> Vec<(Position, u32)> {
        let start = self
            .aborted
            .partition_point(|(position, _)| *position < from);
        let end = self.aborted.partition_point(|(position, _)| *position < to);
        self.aborted[start..end].to_vec()
    }

    /// Applies a decided entry as a whole. What became of each record, if somebody here waits for it.
    pub(crate) fn apply(&mut self, plan: &Plan<'_>, wanted: bool) -> Vec<RecordOutcome> {
        for stream in &plan.streams {
            if !self.seen.contains(stream) {
                self.seen.insert(*stream);
            }
        }
        let mut outcomes = Vec::new();
        match &plan.content {
            Content::Malformed(why) => self.halt_all(plan, 0, why),
            Content::Records(records) => {
                for (index, (record, verdict)) in records.iter().enumerate() {
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let outcome = self.apply_record(plan, index, record, verdict, wanted);
                    if wanted {
                        outcomes.push(outcome);
                    }
                }
            }
        }
        self.applied = plan.position.next();
        outcomes
    }

    fn apply_record(
        &mut self,
        plan: &Plan<'_>,
        index: u32,
        record: &Record<'_>,
        verdict: &Verdict,
        wanted: bool,
    ) -> RecordOutcome {
        match record {
            Record::Update(update) => {
                let Some(hosted) = self.hosted.get_mut(&update.stream) else {
                    return RecordOutcome::Applied(None);
                };
                match hosted.apply(Context::new(plan.position, index, 0), update, wanted) {
                    Ok(output) => RecordOutcome::Applied(output),
                    Err(halt) => RecordOutcome::Halted(halt),
                }
            }
            Record::Commit(commit) => {
                if let Verdict::Aborted(clash) = verdict {
                    self.aborted.push((plan.position, index));
                    return RecordOutcome::Aborted(clash.clone());
                }
                for (nth, update) in commit_updates(&commit.updates) {
                    if let Some(hosted) = self.hosted.get_mut(&update.stream) {
                        // A halted object is left behind; the others take their part.
                        let _ =
                            hosted.apply(Context::new(plan.position, index, nth), update, false);
                    }
                }
                RecordOutcome::Committed
            }
            Record::Decision(decision) => {
                self.check_decision(plan, index, *decision);
                RecordOutcome::Applied(None)
            }
        }
    }

    /// A decision that differs from the own verdict: somebody decides wrongly, so stop loudly (rule 35).
    fn check_decision(&mut self, plan: &Plan<'_>, index: u32, decision: Decision) {
        let own = !self.is_aborted(decision.position, decision.record);
        if decision.position < plan.position && own != decision.committed {
            let why = format!(
                "a decision record says committed = {} of position {}, record {}, and this replica found {own}; \
                 report this",
                decision.committed, decision.position, decision.record
            );
            self.halt_all(plan, index, &why);
        }
    }

    fn halt_all(&mut self, plan: &Plan<'_>, record: u32, why: &str) {
        for stream in &plan.streams {
            if let Some(hosted) = self.hosted.get_mut(stream) {
                let _ = hosted.halt(Context::new(plan.position, record, 0), why.to_owned());
            }
        }
    }

    /// All states, cloned.
    pub(crate) fn freeze(&self) -> Frozen {
        let freeze = |(stream, hosted): (&StreamId, &Hosted)| {
            let state = match &hosted.halted {
                Some(halt) => Err(halt.clone()),
                None => Ok(hosted.state.freeze()),
            };
            (*stream, state)
        };
        Frozen {
            position: self.applied,
            joins: self.joins,
            objects: self.hosted.iter().map(freeze).collect(),
        }
    }

    /// Whether a frozen world is what [`Self::freeze`] would return now.
    pub(crate) fn is_as_frozen(&self, frozen: &Frozen) -> bool {
        self.applied == frozen.position && self.joins == frozen.joins
    }
}

/// The updates that a commit record makes, numbered. The directory never changes in transactions, so that it can be
/// read ahead without verdicts.
fn commit_updates<'r, 'a>(
    updates: &'r [Update<'a>],
) -> impl Iterator<Item = (u32, &'r Update<'a>)> {
    (0..)
        .zip(updates)
        .filter(|(_, update)| update.stream != StreamId::DIRECTORY)
}

/// States at one position, and nothing changes them any more.
pub(crate) struct Frozen {
    /// Exclusive: they include every entry below.
    pub(crate) position: Position,
    joins: u64,
    objects: BTreeMap<StreamId, Result<Arc<dyn Any + Send + Sync>, Halt>>,
}

impl Frozen {
    fn any(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<&Arc<dyn Any + Send + Sync>, ReadError> {
        let state = self.objects.get(&stream).ok_or_else(|| missing(name))?;
        state.as_ref().map_err(|halt| halt.clone().into())
    }

    pub(crate) fn state<O: Object>(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<&O, ReadError> {
        let state = self.any(stream, name)?.downcast_ref();
        state.ok_or_else(|| missing(name))
    }

    pub(crate) fn share<O: Object>(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<Arc<O>, ReadError> {
        let state = Arc::clone(self.any(stream, name)?);
        state.downcast().map_err(|_| missing(name))
    }
}

fn missing(name: &Arc<str>) -> ReadError {
    ReadError::NotInSnapshot {
        object: Arc::clone(name),
    }
}

/// A state and whether it still goes on.
pub(crate) struct Hosted {
    name: Arc<str>,
    state: Box<dyn State>,
    halted: Option<Halt>,
}

impl Hosted {
    pub(crate) fn new<O: Object>(name: Arc<str>) -> Self {
        Self::with_state(name, O::default())
    }

    pub(crate) fn with_state<O: Object>(name: Arc<str>, state: O) -> Self {
        Self {
            name,
            state: Box::new(Live(state)),
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

    pub(crate) fn halted(&self) -> Option<&Halt> {
        self.halted.as_ref()
    }

    fn apply(
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

    fn halt(&mut self, context: Context, why: String) -> Halt {
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
        let payload = match record::decode(&entry.payload) {
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
                Record::Update(update) => std::slice::from_ref(update),
                Record::Commit(commit) if !is_aborted(index) => &commit.updates,
                Record::Commit(_) | Record::Decision(_) => &[],
            };
            for (nth, update) in (0..).zip(updates) {
                if update.stream == stream {
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
    match postcard::take_from_bytes(bytes) {
        Ok((op, [])) => Ok(op),
        Ok((_, rest)) => Err(format!("{} bytes behind the operation", rest.len())),
        Err(error) => Err(format!("the operation cannot be decoded: {error}")),
    }
}
