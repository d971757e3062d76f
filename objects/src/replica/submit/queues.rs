//! What waits for the log, and what is under way. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Limits, Time};

use super::batch::{Batch, Forming, Item};
use crate::error::UpdateError;

/// Most entries of unknown outcome that are remembered, in case they turn up.
const UNKNOWN_REMEMBERED: usize = 1_024;

pub(super) struct Queues {
    pub(super) next_tag: u64,
    pub(super) lanes: BTreeMap<u64, Lane>,
    /// Lanes that are not busy and have records, each once; taking turns.
    pub(super) ready: VecDeque<u64>,
    /// Beyond the bound: sent, in order, when there is room.
    pub(super) overflow: BTreeMap<u64, Item>,
    pub(super) next_overflow: u64,
    /// Weight of all but the overflow.
    pub(super) weight: usize,
    /// Entries that were not played yet.
    pub(super) pending: BTreeMap<u64, Arc<Batch>>,
    /// Of these, those whose append ended without an outcome, oldest first.
    pub(super) unknown: VecDeque<u64>,
    pub(super) stopped: Option<UpdateError>,
    /// Records that surely were not appended, although they were submitted.
    pub(super) failed: usize,
}

#[derive(Default)]
pub(super) struct Lane {
    pub(super) waiting: VecDeque<Item>,
    /// A record of it is in an entry that is being appended.
    pub(super) busy: bool,
}

impl Queues {
    pub(super) fn take_tag(&mut self) -> u64 {
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        tag
    }

    pub(super) fn is_idle(&self) -> bool {
        // What is unknown stays unknown, perhaps for ever.
        let drained = self.overflow.is_empty()
            && self.lanes.is_empty()
            && self.pending.len() <= self.unknown.len();
        drained || self.stopped.is_some()
    }

    pub(super) fn place(&mut self, item: Item) {
        self.weight += item.weight();
        let number = item.lane;
        let lane = self.lanes.entry(number).or_default();
        if lane.waiting.is_empty() && !lane.busy {
            self.ready.push_back(number);
        }
        lane.waiting.push_back(item);
    }

    /// The entry with a record of this lane has ended.
    pub(super) fn free(&mut self, number: u64) {
        let Some(lane) = self.lanes.get_mut(&number) else {
            return;
        };
        lane.busy = false;
        if lane.waiting.is_empty() {
            self.lanes.remove(&number);
        } else {
            self.ready.push_back(number);
        }
    }

    /// An entry of what waits, lane by lane, as much as fits.
    pub(super) fn form(&mut self, limits: &Limits) -> Option<Batch> {
        let mut forming = Forming::new(limits);
        let mut lanes = Vec::new();
        while let Some(number) = self.ready.pop_front() {
            let lane = self
                .lanes
                .get_mut(&number)
                .expect("a ready lane has records");
            let before = forming.items.len();
            while lane.waiting.front().is_some_and(|next| forming.takes(next)) {
                if lane.waiting.len() > 1 && plants::acts(Plant::LaneReordered, 10) {
                    lane.waiting.swap(0, 1);
                }
                forming.add(lane.waiting.pop_front().expect("just seen"));
            }
            if forming.items.len() > before {
                lane.busy = true;
                lanes.push(number);
            } else {
                self.ready.push_front(number);
                break;
            }
        }
        if forming.items.is_empty() {
            return None;
        }
        Some(forming.into_batch(self.take_tag(), lanes))
    }

    /// Nobody knows whether the entry is in the log: it makes room for others, and is remembered in case it turns up.
    pub(super) fn remember(&mut self, batch: &Batch, max_weight: usize) {
        // Unless it has turned up already.
        let Some(batch) = self.pending.remove(&batch.tag) else {
            return;
        };
        self.release(&batch, max_weight);
        self.pending.insert(batch.tag, Arc::new(batch.remembered()));
        self.unknown.push_back(batch.tag);
        if self.unknown.len() > UNKNOWN_REMEMBERED
            && let Some(oldest) = self.unknown.pop_front()
        {
            self.pending.remove(&oldest);
        }
    }

    pub(super) fn release(&mut self, batch: &Batch, max_weight: usize) {
        self.unknown.retain(|tag| *tag != batch.tag);
        self.weight = self.weight.saturating_sub(batch.weight);
        self.admit(max_weight);
    }

    /// Lets in what waits for room.
    pub(super) fn admit(&mut self, max_weight: usize) {
        while let Some(first) = self.overflow.first_entry() {
            if self.weight > 0 && self.weight + first.get().weight() > max_weight {
                return;
            }
            let item = first.remove();
            self.place(item);
        }
    }

    pub(super) fn take_late(&mut self, now: Time, max_weight: usize) -> Vec<Item> {
        let is_late = |item: &Item| item.deadline <= now;
        let mut late = Vec::new();
        for lane in self.lanes.values_mut() {
            late.extend(take_if(&mut lane.waiting, is_late));
        }
        // An emptied lane that stayed in `ready` would be there twice with its next record, and be busy twice.
        let lanes = &mut self.lanes;
        self.ready.retain(|number| {
            lanes
                .get(number)
                .is_some_and(|lane| !lane.waiting.is_empty())
        });
        lanes.retain(|_, lane| lane.busy || !lane.waiting.is_empty());
        let freed: usize = late.iter().map(Item::weight).sum();
        self.weight = self.weight.saturating_sub(freed);
        // Not in order of deadlines: a transaction's begins before its submission.
        let overdue = self.overflow.iter().filter(|(_, item)| is_late(item));
        let overdue: Vec<_> = overdue.map(|(number, _)| *number).collect();
        let overdue = overdue
            .iter()
            .filter_map(|number| self.overflow.remove(number));
        late.extend(overdue);
        self.failed += late.len();
        self.admit(max_weight);
        late
    }
}

pub(super) fn take_if(queue: &mut VecDeque<Item>, wanted: impl Fn(&Item) -> bool) -> Vec<Item> {
    if !queue.iter().any(&wanted) {
        return Vec::new();
    }
    let (taken, kept) = queue.drain(..).partition::<Vec<_>, _>(wanted);
    queue.extend(kept);
    taken
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use milonga_protocol::StreamId;

    use super::*;
    use crate::slot::Slot;

    const ROOM: usize = 1 << 20;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    fn queues() -> Queues {
        Queues {
            next_tag: 0,
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            overflow: BTreeMap::new(),
            next_overflow: 0,
            weight: 0,
            pending: BTreeMap::new(),
            unknown: VecDeque::new(),
            stopped: None,
            failed: 0,
        }
    }

    fn item(lane: u64, deadline: u64) -> Item {
        Item {
            record: vec![0; 10],
            streams: vec![StreamId(16)],
            slot: Slot::new(None, None),
            lane,
            deadline: at(deadline),
        }
    }

    #[test]
    fn a_lane_whose_records_were_late_is_never_in_two_entries_at_once() {
        let mut queues = queues();
        let limits = Limits::default();
        queues.place(item(1, 10));
        assert_eq!(queues.take_late(at(10), ROOM).len(), 1);
        assert!(queues.is_idle() && queues.weight == 0);
        queues.place(item(1, 20));
        assert_eq!(queues.form(&limits).expect("one waits").lanes, [1]);
        queues.place(item(1, 30));
        assert!(
            queues.form(&limits).is_none(),
            "it would overtake the first"
        );
        // A busy lane stays busy when what waits behind it was late.
        assert_eq!(queues.take_late(at(30), ROOM).len(), 1);
        queues.place(item(1, 40));
        assert!(queues.form(&limits).is_none());
        queues.free(1);
        assert_eq!(queues.form(&limits).expect("its turn").lanes, [1]);
    }

    #[test]
    fn a_record_that_waits_for_room_is_late_by_its_own_deadline() {
        let mut queues = queues();
        queues.place(item(1, 90));
        for (number, deadline) in [(0, 50), (1, 20), (2, 50)] {
            queues.overflow.insert(number, item(2, deadline));
        }
        let late = queues.take_late(at(20), 1);
        assert_eq!(late.len(), 1);
        assert!(late[0].deadline == at(20));
        assert_eq!(queues.overflow.keys().copied().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_is_unknown_has_no_weight_and_what_was_played_is_not_unknown() {
        let mut queues = queues();
        for _ in 0..2 {
            queues.place(item(1, 10));
            let batch = Arc::new(queues.form(&Limits::default()).expect("one waits"));
            queues.free(1);
            queues.pending.insert(batch.tag, Arc::clone(&batch));
            queues.remember(&batch, ROOM);
            assert_eq!(queues.weight, 0);
            let remembered = queues.pending.remove(&batch.tag).expect("it may turn up");
            assert!(remembered.payload.is_empty() && remembered.slots.len() == 1);
            queues.release(&remembered, ROOM);
            // It has been played; then its append ends without an answer.
            queues.remember(&batch, ROOM);
            assert!(queues.unknown.is_empty() && queues.pending.is_empty() && queues.is_idle());
        }
    }
}
