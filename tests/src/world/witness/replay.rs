//! Plays the log through the reference objects, and judges every transaction by looking at everything it may clash
//! with.

use std::collections::BTreeMap;

use milonga_protocol::{Entry, EntryId, StreamId, WriterId};

use crate::world::history::{Book, CallId, Value, call_of};
use crate::world::witness::decode::{Commit, Record, Touched, Update, decode};
use crate::world::witness::model::At;
use crate::world::witness::state::World;
use crate::world::witness::verdict::{Change, Verdict, judge};
use crate::world::witness::{Findings, Rule, transactions};

/// The directory's stream.
const DIRECTORY: u64 = 1;

/// An update that is a record of its own, as it was applied.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where.
    pub position: u64,
    /// The record within the entry.
    pub record: u32,
    /// By whom.
    pub writer: WriterId,
    /// Of which object.
    pub stream: u64,
    /// The operation.
    pub op: Vec<u8>,
    /// What it answered: [`Value::Halted`] if the object has halted.
    pub output: Value,
}

/// A commit record, as it was judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Where.
    pub position: u64,
    /// The record within the entry.
    pub record: u32,
    /// By whom.
    pub writer: WriterId,
    /// The call whose marks it carries.
    pub call: Option<CallId>,
    /// The verdict.
    pub verdict: Verdict,
}

/// The reference.
#[derive(Debug)]
pub struct Reference<'a> {
    book: &'a Book,
    /// The objects after everything that was played.
    pub world: World,
    /// Everything that committed records touched, in order.
    pub changes: Vec<Change>,
    /// All updates outside of transactions.
    pub written: Vec<Written>,
    /// All transactions.
    pub judged: Vec<Judged>,
    /// Who wrote which entry.
    pub ids: BTreeMap<u64, EntryId>,
    /// Entries that no object can read.
    pub rubbish: Vec<(u64, WriterId)>,
}

impl<'a> Reference<'a> {
    /// A reference that has played nothing.
    #[must_use]
    pub fn new(book: &'a Book) -> Self {
        Self {
            book,
            world: World::default(),
            changes: Vec::new(),
            written: Vec::new(),
            judged: Vec::new(),
            ids: BTreeMap::new(),
            rubbish: Vec::new(),
        }
    }

    /// Plays the next entry.
    pub fn play(&mut self, position: u64, entry: &Entry, found: &mut Findings) {
        self.ids.insert(position, entry.id);
        let streams: Vec<_> = entry.streams().filter(|s| s.is_object()).collect();
        if streams.is_empty() {
            return;
        }
        let records = decode(&entry.payload).filter(|records| are_linked(records, &streams));
        let Some(records) = records else {
            self.rubbish.push((position, entry.id.writer));
            for stream in streams {
                self.touch(position, stream.0, Touched::Whole);
                self.world.halt(stream.0, position);
            }
            return;
        };
        for (record, number) in records.iter().zip(0..) {
            let at = At {
                position,
                record: number,
                index: 0,
            };
            match record {
                Record::Update(update) => self.update(update, at, entry.id.writer, found),
                Record::Commit(commit) => self.commit(commit, at, entry.id.writer, found),
                Record::Decision {
                    position,
                    record,
                    committed,
                } => self.decision((*position, *record), *committed, found),
            }
        }
    }

    fn touch(&mut self, position: u64, stream: u64, touches: Touched) {
        self.changes.push(Change {
            position,
            stream,
            touches,
        });
    }

    fn update(&mut self, update: &Update, at: At, writer: WriterId, found: &mut Findings) {
        self.touch(at.position, update.stream, update.touches.clone());
        if update.stream == DIRECTORY {
            return self.world.register(&update.op, at, found);
        }
        let output = self.world.apply(update, at, found);
        self.written.push(Written {
            position: at.position,
            record: at.record,
            writer,
            stream: update.stream,
            op: update.op.clone(),
            output,
        });
    }

    fn commit(&mut self, commit: &Commit, at: At, writer: WriterId, found: &mut Findings) {
        let verdict = judge(commit, at.position, &self.changes);
        let call = self.caller(commit);
        if self.book.window.is_some_and(|most| commit.window > most) {
            found.add(Rule::Records, || {
                format!("{at:?} is judged by a window of {}", commit.window)
            });
        }
        if verdict.is_committed() {
            for update in &commit.updates {
                self.touch(at.position, update.stream, update.touches.clone());
            }
            let steps = call.and_then(|call| transactions::steps_at(self.book, call, at.position));
            match steps {
                Some(steps) => {
                    transactions::walk(&mut self.world, steps, commit, at, found);
                }
                None => transactions::apply_all(&mut self.world, commit, at, found),
            }
        }
        self.judged.push(Judged {
            position: at.position,
            record: at.record,
            writer,
            call,
            verdict,
        });
    }

    /// The call whose mark an update of the transaction carries.
    fn caller(&self, commit: &Commit) -> Option<CallId> {
        commit.updates.iter().find_map(|update| {
            let object = self.world.object(update.stream)?;
            call_of(object.model.mark(&update.op)?)
        })
    }

    fn decision(&self, of: (u64, u32), committed: bool, found: &mut Findings) {
        let own = self.judged.iter().find(|j| (j.position, j.record) == of);
        if own.is_some_and(|own| own.verdict.is_committed() != committed) {
            found.add(Rule::Verdicts, || {
                format!("a decision record says {committed} of {of:?}, the reference does not")
            });
        }
    }

    /// Positions in `from..to` that changed a stream.
    #[must_use]
    pub fn changed(&self, stream: u64, from: u64, to: u64) -> Option<u64> {
        let begin = self
            .changes
            .partition_point(|change| change.position < from);
        let later = self.changes[begin..].iter();
        later
            .take_while(|change| change.position < to)
            .find(|change| change.stream == stream)
            .map(|change| change.position)
    }
}

fn are_linked(records: &[Record], streams: &[StreamId]) -> bool {
    let updates = records.iter().flat_map(|record| match record {
        Record::Update(update) => std::slice::from_ref(update),
        Record::Commit(commit) => &commit.updates,
        Record::Decision { .. } => &[],
    });
    let mut changed = updates.map(|update| StreamId(update.stream));
    changed.all(|stream| streams.contains(&stream))
}
