//! What was done and seen, in order: what invariants are checked against.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milonga_protocol::{Epoch, Position, ServerName, StreamId};

use crate::world::history::{Deed, End};
use crate::world::network::Letter;
use crate::world::trace::Moment;

/// Number of an operation in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub usize);

/// What a client asked for. Workloads add what they need.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// An append of one entry.
    Append {
        /// Its streams.
        streams: Vec<StreamId>,
        /// Its bytes.
        payload: Bytes,
    },
    /// A read of one position.
    Read {
        /// Which.
        position: Position,
    },
    /// A tail check.
    Tail {
        /// Of these streams.
        streams: Vec<StreamId>,
    },
    /// A tail check, and then reads of streams up to its target.
    Sync {
        /// Which streams.
        streams: Vec<StreamId>,
        /// Everything below was seen.
        from: Position,
    },
    /// One reading of streams, as far as it goes.
    Follow {
        /// Which streams.
        streams: Vec<StreamId>,
        /// Everything below was seen.
        from: Position,
    },
    /// Deciding every hole in a range.
    Settle {
        /// First position.
        from: Position,
        /// End, exclusive.
        to: Position,
    },
    /// Trimming.
    Trim {
        /// Everything below.
        below: Position,
    },
    /// Something with objects.
    Object(Deed),
    /// Anything else, in words.
    Other(String),
}

/// How it ended, as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Appended there.
    Appended(Position),
    /// An entry with these bytes.
    Data(Bytes),
    /// Nothing, for ever.
    Junk,
    /// Nothing decided.
    Unwritten,
    /// Below the trim mark.
    Trimmed,
    /// No replica can give it.
    Lost,
    /// What a tail check found.
    Tail(Tail),
    /// Entries of streams in order, with their streams, and the end, exclusive, of what they are complete to.
    Entries(Vec<Seen>, Position),
    /// Trimmed below.
    Mark(Position),
    /// Done.
    Done,
    /// Surely nothing happened.
    Failed(String),
    /// It may have happened, or may happen yet.
    Unknown(String),
    /// What came of something with objects.
    Object(Box<End>),
    /// Done; anything else in words.
    Other(String),
}

/// What a tail check found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tail {
    /// Its epoch.
    pub epoch: Epoch,
    /// First position that was not granted.
    pub next: Position,
    /// Every append that returned before lies below it.
    pub written: Position,
    /// Of the streams asked, together, too.
    pub target: Position,
}

/// An entry of a stream, as a client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Where.
    pub position: Position,
    /// Its streams.
    pub streams: Vec<StreamId>,
    /// Its bytes.
    pub payload: Bytes,
}

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who.
    pub client: ServerName,
    /// When it began.
    pub invoked: Moment,
    /// What it was.
    pub operation: Operation,
    /// When and how it ended; `None`: not yet, or never, because the client died.
    pub returned: Option<(Moment, Outcome)>,
}

/// Something that happened, in order of time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Observed {
    /// A message arrived.
    Letter(Letter),
    /// A server gave this answer, which is on its way now.
    Answered(Letter),
    /// An operation began.
    Invoked(OperationId),
    /// An operation ended.
    Returned(OperationId),
    /// A process began to run.
    Started(Moment, ServerName),
    /// A process was killed.
    Killed(Moment, ServerName),
}

/// The journal of a world; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Pages>>);

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Pages {
    /// All operations so far, by their number.
    pub operations: Vec<Record>,
    news: Vec<Observed>,
    calls: u64,
}

impl Journal {
    /// Adds something that happened.
    pub fn push(&self, observed: Observed) {
        self.lock().news.push(observed);
    }

    /// A number for a call that has none in the network.
    pub(crate) fn next_call(&self) -> u64 {
        let mut pages = self.lock();
        pages.calls += 1;
        pages.calls
    }

    /// An operation begins.
    pub fn invoke(&self, at: Moment, client: &ServerName, operation: Operation) -> OperationId {
        let mut pages = self.lock();
        let id = OperationId(pages.operations.len());
        pages.operations.push(Record {
            client: client.clone(),
            invoked: at,
            operation,
            returned: None,
        });
        pages.news.push(Observed::Invoked(id));
        id
    }

    /// An operation ends.
    pub fn finish(&self, at: Moment, id: OperationId, outcome: Outcome) {
        let mut pages = self.lock();
        pages.operations[id.0].returned = Some((at, outcome));
        pages.news.push(Observed::Returned(id));
    }

    /// What happened since the last call.
    pub fn take_news(&self) -> Vec<Observed> {
        std::mem::take(&mut self.lock().news)
    }

    /// Looks at it.
    pub fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
