//! What one epoch's sequencer knows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use milonga_protocol::messages::{TailAnswer, Token};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{BackPointers, Epoch, ListEnd, Position, StreamId, StreamLink, Time};

use crate::lease::Held;

/// Never iterated, so its order does not matter; hashed alike in every run.
pub(crate) type Streams = HashMap<StreamId, BackPointers, BuildHasherDefault<DefaultHasher>>;

/// What came of a wish for tokens.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) tokens: Vec<Token>,
    /// Indexes of the wants that got none.
    pub(crate) refused: Vec<u32>,
    pub(crate) limit: u64,
}

/// Soft state of one epoch, made by a bootstrap.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) epoch: Epoch,
    /// First position not granted yet.
    pub(crate) next: Position,
    /// Pointers below it mean nothing any more; they are dropped when their stream is looked at.
    pub(crate) trimmed: Position,
    /// Everything below it may hide entries of any stream, unless it was trimmed.
    pub(crate) lost: Position,
    pub(crate) lease: Held,
    pub(crate) stream_limit: u64,
    pub(crate) last: Streams,
}

impl State {
    /// Number of streams known.
    pub(crate) fn streams(&self) -> usize {
        self.last.len()
    }

    /// One token for each want (checked by the caller) that makes no more streams than there may be.
    pub(crate) fn grant(&mut self, wants: &[Vec<StreamId>]) -> Granted {
        let mut granted = Granted {
            tokens: Vec::with_capacity(wants.len()),
            refused: Vec::new(),
            limit: self.stream_limit,
        };
        for (index, want) in (0..).zip(wants) {
            if !self.has_room(want) {
                granted.refused.push(index);
                continue;
            }
            let position = self.next;
            self.next = position.next();
            let links = want.iter().map(|stream| self.link(*stream, position));
            let links = links.collect();
            granted.tokens.push(Token { position, links });
        }
        granted
    }

    /// Whether the streams of `want` (distinct) that do not exist yet may.
    fn has_room(&self, want: &[StreamId]) -> bool {
        let room = self.stream_limit.saturating_sub(self.last.len() as u64);
        if want.len() as u64 <= room {
            return true;
        }
        let new = want.iter().filter(|stream| !self.last.contains_key(stream));
        new.count() as u64 <= room
    }

    fn link(&mut self, stream: StreamId, position: Position) -> StreamLink {
        let back = self.list(stream);
        let mut last = back;
        last.push(position);
        if !plants::acts(Plant::GrantForgotten, 200) {
            self.last.insert(stream, last);
        }
        StreamLink { stream, back }
    }

    /// What is known of a stream now.
    fn list(&self, stream: StreamId) -> BackPointers {
        let list = match self.last.get(&stream) {
            Some(last) => above(*last, self.trimmed),
            None => absent(self.trimmed),
        };
        if self.lost > self.trimmed {
            list.down_to_lost(self.lost)
        } else {
            list
        }
    }

    /// The tail, and the last positions of `streams`, for a query that was read at `now`.
    pub(crate) fn tail(&self, now: Time, streams: &[StreamId]) -> TailAnswer {
        TailAnswer {
            next: self.next,
            trimmed: self.trimmed,
            lease: self.lease.at(now),
            streams: streams.iter().map(|stream| self.list(*stream)).collect(),
        }
    }

    /// Whether a stream (any at all, if none is named) has a position at or above `from`.
    pub(crate) fn grew(&self, streams: &[StreamId], from: Position) -> bool {
        let last = |stream| self.last.get(stream).and_then(BackPointers::last);
        if streams.is_empty() {
            self.next > from
        } else {
            streams.iter().any(|s| last(s).is_some_and(|p| p >= from))
        }
    }
}

/// The list of a stream that was never seen: nothing above the trim mark (rule 22).
fn absent(trimmed: Position) -> BackPointers {
    if trimmed == Position::ZERO {
        BackPointers::EMPTY
    } else {
        BackPointers::none(ListEnd::BelowTrim)
    }
}

/// `list` without what was trimmed.
fn above(list: BackPointers, trimmed: Position) -> BackPointers {
    if list.positions().last().is_none_or(|p| *p >= trimmed) {
        return list;
    }
    let kept = list.positions().iter().copied();
    BackPointers::new(kept.take_while(|p| *p >= trimmed), ListEnd::BelowTrim)
}
