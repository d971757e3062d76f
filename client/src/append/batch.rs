//! Appends on their way: who waits, groups that share their messages, parts of a group that lie on one chain.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use milonga_protocol::frame::Message;
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::{Request, Token, UnitRequest, WireValue};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{
    AppendError, Appended, EncodedEntry, Entry, EntryId, Limits, NewEntry, Position, StreamId,
    Time, WriterId,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::cluster::View;
use crate::options::ClientOptions;
use crate::retry::millis;

/// Most memberships of one group, so that its links fit a frame's header many times over.
const GROUP_STREAMS: usize = 16_384;

/// Who waits for the outcome of an append. Dropped unanswered, it answers for itself.
pub(super) struct Caller {
    answer: Option<oneshot::Sender<Result<Appended, AppendError>>>,
    _permit: OwnedSemaphorePermit,
    pub(super) since: Time,
    pub(super) deadline: Time,
    /// Of the last attempt.
    pub(super) id: EntryId,
    /// Whether the last attempt may have reached the head. True from before each send until its answer says no.
    pub(super) exposed: bool,
}

impl Caller {
    pub(super) const fn new(
        answer: oneshot::Sender<Result<Appended, AppendError>>,
        permit: OwnedSemaphorePermit,
        since: Time,
        deadline: Time,
        writer: WriterId,
    ) -> Self {
        Self {
            answer: Some(answer),
            _permit: permit,
            since,
            deadline,
            id: EntryId {
                writer,
                sequence: 0,
            },
            exposed: false,
        }
    }

    /// Answers, unless that has been done.
    pub(super) fn answer(&mut self, outcome: Result<Appended, AppendError>) {
        if let Some(answer) = self.answer.take() {
            // Nobody listens if the append's future was dropped.
            let _ = answer.send(outcome);
        }
    }

    pub(super) fn unknown(&mut self, what: &str) {
        let id = self.id;
        let what = what.to_owned();
        self.answer(Err(AppendError::OutcomeUnknown { id, what }));
    }

    pub(super) fn unavailable(&mut self, what: &str, now: Time) {
        let waited_ms = millis(now.since(self.since));
        let what = what.to_owned();
        self.answer(Err(AppendError::Unavailable { what, waited_ms }));
    }

    /// Whether somebody still waits for the outcome.
    pub(super) const fn is_waiting(&self) -> bool {
        self.answer.is_some()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if self.exposed && self.is_waiting() {
            self.unknown("the client was stopped");
        }
        // Otherwise nothing was written: the dropped sender says `Closed`.
    }
}

/// An append without a token.
pub(super) struct Waiting {
    pub(super) entry: NewEntry,
    pub(super) caller: Caller,
}

/// Appends without a token, oldest first, and how many groups may begin.
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    slots: usize,
}

impl Queue {
    pub(super) fn new(options: &ClientOptions) -> Self {
        Self {
            waiting: VecDeque::new(),
            slots: options.groups_in_flight.max(1),
        }
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Puts failed ones back, before all others.
    pub(super) fn push_front(&mut self, again: Vec<Waiting>) {
        for waiting in again.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
    }

    pub(super) fn free_slot(&mut self) {
        self.slots += 1;
    }

    /// When the oldest gives up, if there is one.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.waiting.front().map(|waiting| waiting.caller.deadline)
    }

    /// The next group, if one may begin: it holds a slot until [`Self::free_slot`].
    pub(super) fn take_group(&mut self, options: &ClientOptions) -> Option<Vec<Waiting>> {
        if self.slots == 0 || self.waiting.is_empty() {
            return None;
        }
        let most = options.group_entries.clamp(1, ITEMS_PER_MESSAGE);
        let (mut bytes, mut streams) = (0, 0);
        let fits = self.waiting.iter().take(most).take_while(|waiting| {
            let room = bytes < options.group_bytes.max(1) && streams < GROUP_STREAMS;
            bytes += waiting.entry.payload.len();
            streams += waiting.entry.streams.len();
            room
        });
        let count = fits.count();
        self.slots -= 1;
        Some(self.waiting.drain(..count).collect())
    }

    /// Takes out those at the front whose deadline has passed.
    pub(super) fn take_expired(&mut self, now: Time) -> Vec<Waiting> {
        let expired = |waiting: &&Waiting| waiting.caller.deadline <= now;
        let count = self.waiting.iter().take_while(expired).count();
        self.waiting.drain(..count).collect()
    }
}

/// An append with a token.
pub(super) struct Item {
    pub(super) position: Position,
    pub(super) entry: EncodedEntry,
    pub(super) caller: Caller,
    /// [`Caller::exposed`] before the send that is under way.
    pub(super) was_exposed: bool,
}

impl Item {
    /// Encodes the entry, once, for its token.
    pub(super) fn new(mut waiting: Waiting, token: Token, id: EntryId) -> Self {
        waiting.caller.id = id;
        waiting.caller.exposed = false;
        let entry = Entry {
            id,
            links: token.links,
            payload: waiting.entry.payload,
        };
        Self {
            position: token.position,
            entry: EncodedEntry::encode(token.position, &entry, waiting.entry.reserved_space),
            caller: waiting.caller,
            was_exposed: false,
        }
    }

    pub(super) fn done(&mut self) {
        self.caller.answer(Ok(Appended {
            position: self.position,
            id: self.caller.id,
        }));
    }

    /// The same append, for a new token and a new entry id; `None` if nobody waits for it any more: then the caller
    /// was told the id of this attempt and there must be no other one.
    pub(super) fn again(mut self) -> Option<Waiting> {
        self.caller.exposed = false;
        if !self.caller.is_waiting() {
            return None;
        }
        let entry = self.entry.decode(self.position);
        let entry = entry.expect("this client encoded it");
        Some(Waiting {
            entry: NewEntry {
                streams: entry.streams().collect(),
                payload: entry.payload,
                reserved_space: self.entry.reserved_space(),
            },
            caller: self.caller,
        })
    }
}

/// Appends of one group that lie on one chain.
pub(super) struct Part {
    /// The layout of the tokens' epoch.
    pub(super) view: Arc<View>,
    pub(super) chain: usize,
    pub(super) items: Vec<Item>,
    pub(super) granted: Time,
    /// After this even the background gives up.
    pub(super) finish_by: Time,
}

impl Part {
    /// The write of all items: the same for each replica.
    pub(super) fn message(&self, settled: Position) -> Message {
        let len = |item: &Item| WireValue::Data {
            len: u32::try_from(item.entry.len()).expect("an entry fits a frame"),
        };
        let request = Request::Unit(UnitRequest::Write {
            epoch: self.view.epoch(),
            settled,
            items: self.items.iter().map(|i| (i.position, len(i))).collect(),
        });
        request.into_message(self.body())
    }

    fn body(&self) -> Bytes {
        if let [only] = &self.items[..] {
            return only.entry.bytes().clone();
        }
        let bytes = self.items.iter().map(|item| item.entry.len()).sum();
        let mut body = BytesMut::with_capacity(bytes);
        for item in &self.items {
            body.extend_from_slice(item.entry.bytes());
        }
        body.freeze()
    }

    /// When the next message is given up: at the first deadline of a caller that still waits, else at the end.
    pub(super) fn deadline(&self) -> Time {
        deadline_of(&self.items).unwrap_or(self.finish_by)
    }
}

/// The first deadline of a caller that still waits.
pub(super) fn deadline_of(items: &[Item]) -> Option<Time> {
    let waiting = items.iter().map(|item| &item.caller);
    let waiting = waiting.filter(|caller| caller.is_waiting());
    waiting.map(|caller| caller.deadline).min()
}

/// Tells callers whose deadline has passed. Appends that may have been written stay, without a caller; the others
/// go: their positions are returned, nobody will write them.
pub(super) fn expire(items: &mut Vec<Item>, now: Time, what: &str) -> Vec<Position> {
    let mut unused = Vec::new();
    items.retain_mut(|item| {
        if item.caller.is_waiting() && item.caller.deadline > now {
            return true;
        }
        if item.caller.exposed
            && item.caller.is_waiting()
            && plants::acts(Plant::FailedThoughWritten, 2)
        {
            item.caller.unavailable(what, now);
        }
        if item.caller.exposed {
            item.caller.unknown(what);
            return true;
        }
        item.caller.unavailable(what, now);
        unused.push(item.position);
        false
    });
    unused
}

/// Whether an entry is within the limits.
pub(super) fn check(entry: &NewEntry, limits: &Limits) -> Result<(), AppendError> {
    let (size, limit) = (entry.payload.len(), limits.entry_bytes as usize);
    if size > limit {
        return Err(AppendError::TooLarge { size, limit });
    }
    let (streams, limit) = (entry.streams.len(), limits.streams_per_entry as usize);
    if streams > limit || !distinct(&entry.streams) {
        return Err(AppendError::Streams { streams, limit });
    }
    Ok(())
}

fn distinct(streams: &[StreamId]) -> bool {
    streams
        .iter()
        .enumerate()
        .all(|(n, stream)| !streams[..n].contains(stream))
}
