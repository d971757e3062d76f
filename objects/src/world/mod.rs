//! The hosted objects' states at one position. Pure; changed by one writer, under a lock that readers share.

mod frozen;
mod hosted;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use milonga_protocol::{Position, StreamId};

use crate::directory::Directory;
use crate::error::{Halt, ReadError};
use crate::object::{Context, Object};
use crate::playback::{Content, Plan};
use crate::record::{Decision, Record, Update};
use crate::versions::{Clash, Verdict};

pub(crate) use frozen::Frozen;
pub(crate) use hosted::Hosted;

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
        match hosted.halted() {
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
        if let Some(halt) = hosted.halted() {
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
        let freeze = |(stream, hosted): (&StreamId, &Hosted)| (*stream, hosted.freeze());
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

fn missing(name: &Arc<str>) -> ReadError {
    ReadError::NotInSnapshot {
        object: Arc::clone(name),
    }
}
