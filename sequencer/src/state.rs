//! What one epoch's sequencer knows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use milonga_protocol::messages::{Lease, Refusal, TailAnswer, Token};
use milonga_protocol::{BackPointers, Epoch, ListEnd, Position, StreamId, StreamLink};

/// Never iterated, so its order does not matter; hashed alike in every run.
pub(crate) type Streams = HashMap<StreamId, BackPointers, BuildHasherDefault<DefaultHasher>>;

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
    pub(crate) lease: Lease,
    pub(crate) stream_limit: u64,
    pub(crate) last: Streams,
}

impl State {
    /// Number of streams known.
    pub(crate) fn streams(&self) -> usize {
        self.last.len()
    }

    /// One token for each want (checked by the caller), or none at all.
    pub(crate) fn grant(&mut self, wants: &[Vec<StreamId>]) -> Result<Vec<Token>, Refusal> {
        self.check_room(wants)?;
        let mut tokens = Vec::with_capacity(wants.len());
        for want in wants {
            let position = self.next;
            self.next = position.next();
            let links = want.iter().map(|stream| self.link(*stream, position));
            tokens.push(Token {
                position,
                links: links.collect(),
            });
        }
        Ok(tokens)
    }

    /// Refuses, before anything is granted, what would make too many streams.
    fn check_room(&self, wants: &[Vec<StreamId>]) -> Result<(), Refusal> {
        let links: usize = wants.iter().map(Vec::len).sum();
        let room = self.stream_limit.saturating_sub(self.last.len() as u64);
        if links as u64 <= room {
            return Ok(());
        }
        let new = wants.iter().flatten().copied();
        let mut new: Vec<_> = new.filter(|s| !self.last.contains_key(s)).collect();
        new.sort_unstable();
        new.dedup();
        if new.len() as u64 <= room {
            return Ok(());
        }
        let what = format!("{} streams (a layout limit)", self.stream_limit);
        Err(Refusal::Busy { what })
    }

    fn link(&mut self, stream: StreamId, position: Position) -> StreamLink {
        let back = self.list(stream);
        let mut last = back;
        last.push(position);
        self.last.insert(stream, last);
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

    /// The tail, and the last positions of `streams`.
    pub(crate) fn tail(&self, streams: &[StreamId]) -> TailAnswer {
        TailAnswer {
            next: self.next,
            trimmed: self.trimmed,
            lease: self.lease,
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
