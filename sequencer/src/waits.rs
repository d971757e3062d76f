//! Parked waits, found by stream, by position and by time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use milonga_protocol::messages::{CallId, Refusal, Token};
use milonga_protocol::{Position, StreamId, Time};

use crate::LONGEST_WAIT;

/// Most waits parked at once.
const PARKED: usize = 65_536;
/// Most streams that parked waits may name together.
const PARKED_STREAMS: usize = 1 << 20;

/// A wait that cannot be answered yet.
#[derive(Debug)]
pub(crate) struct Wait {
    /// Which streams; none = any position at all.
    pub(crate) streams: Vec<StreamId>,
    /// First position of interest.
    pub(crate) from: Position,
    /// When it is answered anyway.
    pub(crate) until: Time,
}

/// The time that `wait_ms` of a request allows.
pub(crate) fn longest(wait_ms: u32) -> Duration {
    Duration::from_millis(wait_ms.into()).min(LONGEST_WAIT)
}

#[derive(Debug)]
pub(crate) struct Waits {
    parked: BTreeMap<CallId, Wait>,
    by_time: BTreeSet<(Time, CallId)>,
    by_stream: BTreeSet<(StreamId, Position, CallId)>,
    /// Those for any position at all.
    any: BTreeSet<(Position, CallId)>,
    streams: usize,
}

impl Waits {
    pub(crate) const fn new() -> Self {
        Self {
            parked: BTreeMap::new(),
            by_time: BTreeSet::new(),
            by_stream: BTreeSet::new(),
            any: BTreeSet::new(),
            streams: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(crate) fn next_time(&self) -> Option<Time> {
        self.by_time.first().map(|(time, _)| *time)
    }

    /// Parks a wait, within bounds.
    pub(crate) fn park(&mut self, call: CallId, wait: Wait) -> Result<(), Refusal> {
        if self.parked.len() >= PARKED || self.streams + wait.streams.len() > PARKED_STREAMS {
            let what = "parked waits".into();
            return Err(Refusal::Busy { what });
        }
        self.by_time.insert((wait.until, call));
        if wait.streams.is_empty() {
            self.any.insert((wait.from, call));
        }
        for stream in &wait.streams {
            self.by_stream.insert((*stream, wait.from, call));
        }
        self.streams += wait.streams.len();
        self.parked.insert(call, wait);
        Ok(())
    }

    /// Takes out the waits that `tokens` answer.
    pub(crate) fn granted(&mut self, tokens: &[Token]) -> Vec<(CallId, Wait)> {
        if self.parked.is_empty() {
            return Vec::new();
        }
        let mut calls = BTreeSet::new();
        for token in tokens {
            let through = (token.position, CallId(u64::MAX));
            calls.extend(self.any.range(..=through).map(|(_, call)| *call));
            for link in &token.links {
                let first = (link.stream, Position::ZERO, CallId(0));
                let last = (link.stream, token.position, CallId(u64::MAX));
                calls.extend(self.by_stream.range(first..=last).map(|(_, _, c)| *c));
            }
        }
        self.take(calls)
    }

    /// Takes out the waits whose time is up.
    pub(crate) fn expired(&mut self, now: Time) -> Vec<(CallId, Wait)> {
        let through = (now, CallId(u64::MAX));
        let calls = self.by_time.range(..=through).map(|(_, call)| *call);
        let calls = calls.collect();
        self.take(calls)
    }

    /// Takes out all.
    pub(crate) fn all(&mut self) -> Vec<(CallId, Wait)> {
        let calls = self.parked.keys().copied().collect();
        self.take(calls)
    }

    fn take(&mut self, calls: BTreeSet<CallId>) -> Vec<(CallId, Wait)> {
        let take = |call| self.remove(call).map(|wait| (call, wait));
        calls.into_iter().filter_map(take).collect()
    }

    fn remove(&mut self, call: CallId) -> Option<Wait> {
        let wait = self.parked.remove(&call)?;
        self.by_time.remove(&(wait.until, call));
        self.any.remove(&(wait.from, call));
        for stream in &wait.streams {
            self.by_stream.remove(&(*stream, wait.from, call));
        }
        self.streams -= wait.streams.len();
        Some(wait)
    }
}
