//! What is to happen later: sleepers to wake, and deliveries to make.

use std::collections::BTreeMap;
use std::task::Waker;

use super::ProcessId;
use crate::world::trace::Moment;

/// When, then a tie drawn by the seed, then the order of arrival.
pub(crate) type TimerKey = (Moment, u32, u64);

/// What a timer does when its moment has come.
pub(crate) enum Action {
    /// Wakes a sleeper.
    Wake(Waker),
    /// Does something to the process: a message arrives, a disk operation ends.
    Call(Box<dyn FnOnce() + Send>),
}

/// One of them, and whose it is.
pub(crate) struct Timer {
    pub(crate) process: ProcessId,
    pub(crate) action: Action,
}

/// All of them, by moment.
#[derive(Default)]
pub(crate) struct Timers {
    queue: BTreeMap<TimerKey, Timer>,
    next: u64,
}

impl Timers {
    pub(crate) fn insert(&mut self, at: Moment, tie: u32, timer: Timer) -> TimerKey {
        self.next += 1;
        let key = (at, tie, self.next);
        self.queue.insert(key, timer);
        key
    }

    pub(crate) fn get(&mut self, key: TimerKey) -> Option<&mut Timer> {
        self.queue.get_mut(&key)
    }

    pub(crate) fn remove(&mut self, key: TimerKey) -> Option<Timer> {
        self.queue.remove(&key)
    }

    pub(crate) fn first(&self) -> Option<Moment> {
        self.queue.first_key_value().map(|(key, _)| key.0)
    }

    pub(crate) fn pop(&mut self) -> Option<Timer> {
        self.queue.pop_first().map(|(_, timer)| timer)
    }

    /// Takes out those for which `which` holds, in their order.
    pub(crate) fn take(&mut self, which: impl Fn(&Timer) -> bool) -> Vec<Timer> {
        let all = self.queue.iter().filter(|(_, timer)| which(timer));
        let keys: Vec<_> = all.map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.remove(*key)).collect()
    }
}
