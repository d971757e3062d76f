//! Requests that have to be answered: repeated with back-off until they are, or until nobody wants them any more.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::Time;
use milonga_protocol::settle::SendId;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause before attempt `tries + 1`.
pub(crate) fn pause(tries: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.pow(tries.min(10))).min(LONGEST_PAUSE)
}

/// Errands under way and waiting. Ids are never used twice, so late replies to forgotten errands are recognised.
#[derive(Debug)]
pub(crate) struct Courier<T> {
    next: u64,
    in_flight: BTreeMap<SendId, (T, u32)>,
    waiting: BTreeMap<(Time, u64), Delayed<T>>,
}

#[derive(Debug)]
struct Delayed<T> {
    errand: T,
    tries: u32,
    why: String,
}

impl<T> Courier<T> {
    pub(crate) const fn new() -> Self {
        Self {
            next: 0,
            in_flight: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// An errand leaves, for the `tries + 1`st time.
    pub(crate) fn leave(&mut self, errand: T, tries: u32) -> SendId {
        let id = self.id();
        self.in_flight.insert(id, (errand, tries));
        id
    }

    /// An id for something that is sent once, and that nobody waits for.
    pub(crate) const fn id(&mut self) -> SendId {
        let id = SendId(self.next);
        self.next += 1;
        id
    }

    /// The errand whose reply came, unless it was forgotten.
    pub(crate) fn back(&mut self, id: SendId) -> Option<(T, u32)> {
        self.in_flight.remove(&id)
    }

    /// The errand failed: again after a pause.
    pub(crate) fn again(&mut self, now: Time, errand: T, tries: u32, why: String) {
        let key = (now.after(pause(tries)), self.next);
        self.next += 1;
        let delayed = Delayed { errand, tries, why };
        self.waiting.insert(key, delayed);
    }

    /// Errands whose pause is over, with the attempts made so far.
    pub(crate) fn due(&mut self, now: Time) -> Vec<(T, u32)> {
        let later = self.waiting.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut self.waiting, later);
        due.into_values().map(|d| (d.errand, d.tries + 1)).collect()
    }

    /// Ends all pauses.
    pub(crate) fn hurry(&mut self) -> Vec<(T, u32)> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_values().map(|d| (d.errand, 0)).collect()
    }

    /// Drops everything: replies still to come are ignored.
    pub(crate) fn forget(&mut self) {
        self.in_flight.clear();
        self.waiting.clear();
    }

    pub(crate) fn next_time(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|((time, _), _)| *time)
    }

    /// Whose last attempt failed, and why.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = (&T, &str)> {
        self.waiting.values().map(|d| (&d.errand, d.why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn errands_are_repeated_until_they_are_back() {
        let mut courier = Courier::new();
        let first = courier.leave("seal", 0);
        let (errand, tries) = courier.back(first).unwrap();
        assert_eq!(courier.back(first), None);
        courier.again(at(0), errand, tries, "lost".into());
        assert_eq!(courier.next_time(), Some(at(100)));
        assert_eq!(courier.due(at(99)), []);
        assert_eq!(courier.due(at(100)), [("seal", 1)]);
        let second = courier.leave("seal", 1);
        courier.forget();
        assert_eq!(courier.back(second), None);
        assert_eq!(pause(1), Duration::from_millis(200));
        assert_eq!(pause(40), LONGEST_PAUSE);
    }
}
