//! What clients did with objects and what came of it: typed, so that it can be compared with a reference.
//!
//! The journal counts operations and shows them; this keeps what the witness needs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milonga_protocol::{Entry, EntryId, Position, StreamId, WriterId};

use crate::world::witness::{Finding, Rule};

/// A map's value in every workload: what it says, and a mark that no other update has.
pub type Cell = (i64, u64);

/// Number of a call in its history.
pub type CallId = usize;

/// The replica of what is done without one.
pub const NO_REPLICA: usize = 0;

/// Values of one call that are unique to it: at most this many.
pub const MARKS: u64 = 16;

/// The `nth` mark of a call.
#[must_use]
pub const fn mark(call: CallId, nth: u64) -> u64 {
    (call as u64 + 1) * MARKS + nth % MARKS
}

/// The call that a mark belongs to.
#[must_use]
pub fn call_of(mark: u64) -> Option<CallId> {
    usize::try_from(mark / MARKS).ok()?.checked_sub(1)
}

/// What a read, an update or a part of a snapshot answered, whatever the object's type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// A flag.
    Bool(bool),
    /// A number of things.
    Count(usize),
    /// A counter's value, or another number.
    Number(i64),
    /// A map's value.
    Cell(Option<Cell>),
    /// A whole map.
    Cells(Vec<(u64, Cell)>),
    /// A queue's item.
    Item(Option<u64>),
    /// A whole queue.
    Items(Vec<u64>),
    /// The key of an item: position, record, index.
    Key(u64, u32, u32),
    /// One list.
    List(Vec<u64>),
    /// All lists.
    Lists(Vec<(u64, Vec<u64>)>),
    /// The object stopped there: position and record.
    Halted(Position, u32),
}

/// What is asked of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// The value of a key.
    Get(u64),
    /// Whether a key has a value.
    Contains(u64),
    /// How many keys or items.
    Len,
    /// Whether there is none.
    IsEmpty,
    /// The first item.
    First,
    /// One list.
    List(u64),
    /// All of it.
    State,
}

/// One step of a transaction's closure, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// It read, its own writes included.
    Read(Arc<str>, Query, Value),
    /// It wrote this operation, as bytes.
    Write(Arc<str>, Vec<u8>),
    /// It popped this item.
    Pop(Arc<str>, Option<u64>),
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// To open an object.
    Open(Arc<str>),
    /// To change an object, by this operation, as bytes.
    Update(Arc<str>, Vec<u8>),
    /// A pop that may also get what was popped for a dropped one before.
    Pop(Arc<str>),
    /// To read an object; `local`: as the replica knew it.
    Read {
        /// Its name.
        object: Arc<str>,
        /// What.
        query: Query,
        /// Whether it is a peek.
        local: bool,
    },
    /// To see several objects at once.
    Snapshot,
    /// A transaction; what it writes carries the call's marks.
    Transaction,
    /// Bytes that no object can read, into the streams of these.
    Rubbish(Vec<Arc<str>>, Vec<u8>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The object is open.
    Opened {
        /// Its stream.
        stream: StreamId,
        /// Where it was registered.
        registered: Position,
    },
    /// The update took effect.
    Updated {
        /// Where, if that was asked for.
        position: Option<Position>,
        /// What it answered; `None` if nobody knows any more.
        output: Option<Value>,
    },
    /// The update is in the log, but its object had halted.
    WrittenHalted {
        /// Where the update is.
        position: Position,
        /// The halt.
        halt: Value,
    },
    /// A read's answer.
    Answer {
        /// The end of what was visible, if that was asked for.
        position: Option<Position>,
        /// The answer.
        value: Value,
    },
    /// What a snapshot showed.
    Seen {
        /// The end of what was visible.
        position: Position,
        /// The objects' states.
        states: Vec<(Arc<str>, Value)>,
    },
    /// The transaction took effect.
    Committed {
        /// Its entry, or for one that wrote nothing the end of what it saw.
        position: Position,
        /// What its closure did, in the attempt that counted; `None` if only the verdict is known.
        steps: Option<Vec<Step>>,
    },
    /// Every attempt was overtaken.
    Conflict {
        /// The object that was changed.
        object: Arc<str>,
        /// Where.
        position: Position,
        /// By whom.
        winner: EntryId,
        /// How many attempts.
        attempts: u32,
    },
    /// Surely nothing happened.
    Failed(String),
    /// It may have happened, or may happen yet, once.
    Unknown(String),
    /// The future was dropped after so many polls.
    Dropped(u64),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Number of the replica in its world, or [`NO_REPLICA`].
    pub replica: usize,
    /// Under which identity it writes.
    pub writer: WriterId,
    /// When it began: events of a history are numbered.
    pub invoked: u64,
    /// When it ended, if it did: the client may have died.
    pub returned: Option<u64>,
    /// What it was.
    pub deed: Deed,
    /// How it ended.
    pub end: Option<End>,
    /// The call whose update was submitted before, through the same handle, without waiting for it.
    pub behind: Option<CallId>,
    /// What a transaction's closure did last, whatever came of it.
    pub tried: Vec<Step>,
}

impl Call {
    /// Whether it may have an effect that nobody was told of, or have one yet.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        match &self.end {
            None | Some(End::Unknown(_)) => true,
            Some(End::Dropped(polls)) => *polls > 0,
            Some(_) => false,
        }
    }
}

/// A history; clones share it.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Book>>);

/// What a history holds.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// All calls, in the order of their beginning.
    pub calls: Vec<Call>,
    /// The whole log, as read when everything was over; `None` until then.
    pub log: Option<Vec<(Position, Entry)>>,
    /// The layout's conflict window, if it is known.
    pub window: Option<u64>,
    /// What clients themselves found wrong.
    pub complaints: Vec<Finding>,
    clock: u64,
    replicas: usize,
    running: BTreeMap<usize, bool>,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("History")
    }
}

impl History {
    /// Looks at it.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client began to run.
    pub fn started(&self, client: usize) {
        self.book().running.insert(client, true);
    }

    /// A client is done; whether it is the last.
    #[must_use]
    pub fn ended(&self, client: usize) -> bool {
        let mut book = self.book();
        book.running.insert(client, false);
        !book.running.values().any(|running| *running)
    }

    /// A number for a new replica.
    #[must_use]
    pub fn new_replica(&self) -> usize {
        let mut book = self.book();
        book.replicas += 1;
        book.replicas
    }

    /// A call begins.
    #[must_use]
    pub fn invoke(&self, replica: usize, writer: WriterId, deed: Deed) -> CallId {
        self.book().invoke(replica, writer, deed)
    }

    /// A call ends.
    pub fn finish(&self, call: CallId, end: End) {
        self.book().finish(call, end);
    }

    /// These calls were submitted one after the other through one handle.
    pub fn in_order(&self, calls: std::ops::Range<CallId>) {
        let mut book = self.book();
        for call in calls.skip(1) {
            book.calls[call].behind = Some(call - 1);
        }
    }

    /// A transaction's closure did this.
    pub fn tried(&self, call: CallId, steps: Vec<Step>) {
        self.book().calls[call].tried = steps;
    }

    /// A client saw what must not be.
    pub fn complain(&self, rule: Rule, text: String) {
        self.book().complaints.push(Finding { rule, text });
    }

    /// The number of the next call, for the marks of what it writes.
    #[must_use]
    pub fn next_call(&self) -> CallId {
        self.book().calls.len()
    }
}

impl Book {
    /// A call begins.
    pub fn invoke(&mut self, replica: usize, writer: WriterId, deed: Deed) -> CallId {
        self.clock += 1;
        self.calls.push(Call {
            replica,
            writer,
            invoked: self.clock,
            returned: None,
            deed,
            end: None,
            behind: None,
            tried: Vec::new(),
        });
        self.calls.len() - 1
    }

    /// A call ends.
    pub fn finish(&mut self, call: CallId, end: End) {
        self.clock += 1;
        let call = &mut self.calls[call];
        call.returned = Some(self.clock);
        call.end = Some(end);
    }
}
