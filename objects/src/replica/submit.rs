//! Records of many tasks become entries: at once while few are in flight, in larger ones while many are.
//!
//! ```text
//!   submit -> overflow (no room) -> its lane's queue -> entry in flight -> outcome
//!                                   (lanes take turns)   (pending, by tag)
//! ```
//!
//! A *lane* is the order of one handle: its records wait while an earlier one is in an entry that is still being
//! appended, because two appends in flight may land in either order. All that waited goes together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use milonga_protocol::{AppendError, Limits, NewEntry, Position, StreamId, Time};
use tokio::sync::Notify;

use super::{Shared, tick, until};
use crate::error::UpdateError;
use crate::record::{HEADER_BYTES, begin_payload};
use crate::update::{Outcome, Slot};

/// Most records of one entry: they are applied as a whole, and readers wait meanwhile.
const RECORDS_PER_ENTRY: usize = 1_024;
/// Most entries of unknown outcome that are remembered, in case they turn up.
const UNKNOWN_REMEMBERED: usize = 1_024;
/// What a waiting record costs beside its bytes.
const RECORD_OVERHEAD: usize = 192;

/// A record that wants to be appended.
pub(crate) struct Item {
    pub(crate) record: Vec<u8>,
    pub(crate) streams: Vec<StreamId>,
    pub(crate) slot: Arc<Slot>,
    /// Whose order it keeps.
    pub(crate) lane: u64,
    /// Set at submission.
    pub(crate) deadline: Time,
}

impl Item {
    fn weight(&self) -> usize {
        self.record.len() + RECORD_OVERHEAD
    }
}

/// The queues before the log.
pub(crate) struct Submit {
    queues: Mutex<Queues>,
    /// There may be something to send.
    wake: Notify,
    /// Something has ended.
    ended: Notify,
    max_weight: usize,
    entries_in_flight: usize,
    waited_ms: u64,
}

struct Queues {
    next_tag: u64,
    lanes: BTreeMap<u64, Lane>,
    /// Lanes that are not busy and have records, each once; taking turns.
    ready: VecDeque<u64>,
    /// Beyond the bound: sent, in order, when there is room.
    overflow: BTreeMap<u64, Item>,
    next_overflow: u64,
    /// Weight of all but the overflow.
    weight: usize,
    /// Entries that were not played yet.
    pending: BTreeMap<u64, Arc<Batch>>,
    /// Of these, those whose append ended without an outcome, oldest first.
    unknown: VecDeque<u64>,
    stopped: Option<UpdateError>,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Item>,
    /// A record of it is in an entry that is being appended.
    busy: bool,
}

/// An entry under way.
pub(crate) struct Batch {
    tag: u64,
    pub(crate) slots: Vec<Arc<Slot>>,
    deadlines: Vec<Time>,
    lanes: Vec<u64>,
    streams: Vec<StreamId>,
    payload: Bytes,
    weight: usize,
}

impl Submit {
    pub(crate) fn new(options: &super::ReplicaOptions, first_tag: u64) -> Self {
        Self {
            queues: Mutex::new(Queues {
                next_tag: first_tag,
                ready: VecDeque::new(),
                lanes: BTreeMap::new(),
                overflow: BTreeMap::new(),
                next_overflow: 0,
                weight: 0,
                pending: BTreeMap::new(),
                unknown: VecDeque::new(),
                stopped: None,
            }),
            wake: Notify::new(),
            ended: Notify::new(),
            max_weight: options.queue_bytes,
            entries_in_flight: options.entries_in_flight.max(1),
            waited_ms: super::millis(options.deadline),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record. `Some`: there was no room, and [`Self::withdraw`] may take it back until there is.
    pub(crate) fn push(&self, item: Item) -> Result<Option<u64>, UpdateError> {
        let mut queues = self.lock();
        if let Some(stopped) = &queues.stopped {
            return Err(stopped.clone());
        }
        let full = queues.weight + item.weight() > self.max_weight && queues.weight > 0;
        if full || !queues.overflow.is_empty() {
            let number = queues.next_overflow;
            queues.next_overflow += 1;
            queues.overflow.insert(number, item);
            return Ok(Some(number));
        }
        queues.place(item);
        drop(queues);
        self.wake.notify_one();
        Ok(None)
    }

    /// Takes a record back that still waits for room.
    pub(crate) fn withdraw(&self, overflow: u64) {
        self.lock().overflow.remove(&overflow);
    }

    /// A number for an entry that is written past the queues.
    pub(crate) fn next_tag(&self) -> u64 {
        self.lock().take_tag()
    }

    /// Those who wait for the entry `tag`, which has just been played.
    pub(crate) fn played(&self, tag: u64) -> Option<Arc<Batch>> {
        let mut queues = self.lock();
        let batch = queues.pending.remove(&tag)?;
        queues.release(&batch, self.max_weight);
        drop(queues);
        self.wake.notify_one();
        self.ended.notify_waiters();
        Some(batch)
    }

    fn next_batch(&self, limits: &Limits) -> Option<Arc<Batch>> {
        let mut queues = self.lock();
        if queues.stopped.is_some() {
            return None;
        }
        let batch = Arc::new(queues.form(limits)?);
        queues.pending.insert(batch.tag, Arc::clone(&batch));
        Some(batch)
    }

    /// An append has ended. Its lanes go on; what is not in the log is told so.
    fn appended(&self, batch: &Arc<Batch>, result: &Result<Position, AppendError>) {
        let mut queues = self.lock();
        batch.lanes.iter().for_each(|lane| queues.free(*lane));
        match result {
            Ok(_) => {}
            Err(AppendError::OutcomeUnknown { .. }) => {
                queues.unknown.push_back(batch.tag);
                if queues.unknown.len() > UNKNOWN_REMEMBERED {
                    let oldest = queues.unknown.pop_front().expect("just pushed");
                    if let Some(batch) = queues.pending.remove(&oldest) {
                        queues.release(&batch, self.max_weight);
                    }
                }
            }
            Err(error) => {
                // Not ours any more if it was stopped meanwhile.
                if queues.pending.remove(&batch.tag).is_some() {
                    queues.release(batch, self.max_weight);
                }
                drop(queues);
                let source = error.clone();
                let failed = UpdateError::Append { source };
                batch
                    .slots
                    .iter()
                    .for_each(|slot| slot.resolve(Outcome::Failed(failed.clone())));
                self.ended.notify_waiters();
            }
        }
    }

    /// Nobody waits longer than their deadline.
    fn sweep(&self, now: Time) {
        let mut queues = self.lock();
        let late = queues.take_late(now, self.max_weight);
        let in_flight: Vec<_> = queues.pending.values().cloned().collect();
        drop(queues);
        let waited_ms = self.waited_ms;
        for item in late {
            let late = UpdateError::Unavailable { waited_ms };
            item.slot.resolve(Outcome::Failed(late));
        }
        for batch in in_flight {
            batch.give_up(now, waited_ms);
        }
        self.ended.notify_waiters();
    }

    /// Ends everything: what was not sent fails with `error`, what is in flight is unknown.
    pub(crate) fn stop(&self, error: &UpdateError) {
        let mut queues = self.lock();
        if queues.stopped.is_none() {
            queues.stopped = Some(error.clone());
        }
        let waiting = |lane: &mut Lane| std::mem::take(&mut lane.waiting);
        let mut unsent: Vec<_> = queues.lanes.values_mut().flat_map(waiting).collect();
        unsent.extend(std::mem::take(&mut queues.overflow).into_values());
        let in_flight: Vec<_> = queues.pending.values().cloned().collect();
        drop(queues);
        for item in unsent {
            item.slot.resolve(Outcome::Failed(error.clone()));
        }
        for batch in in_flight {
            batch.slots.iter().for_each(|slot| slot.give_up(0));
        }
        self.ended.notify_waiters();
        self.wake.notify_one();
    }

    /// Returns when nothing waits and nothing is in flight.
    pub(crate) async fn flushed(&self) {
        loop {
            let ended = self.ended.notified();
            if self.lock().is_idle() {
                return;
            }
            ended.await;
        }
    }
}

impl Batch {
    fn give_up(&self, now: Time, waited_ms: u64) {
        for (slot, deadline) in self.slots.iter().zip(&self.deadlines) {
            if *deadline <= now {
                slot.give_up(waited_ms);
            }
        }
    }
}

impl Queues {
    fn take_tag(&mut self) -> u64 {
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1);
        tag
    }

    fn is_idle(&self) -> bool {
        // What is unknown stays unknown, perhaps for ever.
        let drained = self.overflow.is_empty()
            && self.lanes.is_empty()
            && self.pending.len() <= self.unknown.len();
        drained || self.stopped.is_some()
    }

    fn place(&mut self, item: Item) {
        self.weight += item.weight();
        let number = item.lane;
        let lane = self.lanes.entry(number).or_default();
        if lane.waiting.is_empty() && !lane.busy {
            self.ready.push_back(number);
        }
        lane.waiting.push_back(item);
    }

    /// The entry with a record of this lane has ended.
    fn free(&mut self, number: u64) {
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
    fn form(&mut self, limits: &Limits) -> Option<Batch> {
        let mut forming = Forming::new(limits);
        let mut lanes = Vec::new();
        while let Some(number) = self.ready.pop_front() {
            let lane = self.lanes.entry(number).or_default();
            let before = forming.items.len();
            while lane.waiting.front().is_some_and(|next| forming.takes(next)) {
                forming.add(lane.waiting.pop_front().expect("just seen"));
            }
            if forming.items.len() > before {
                lane.busy = true;
                lanes.push(number);
            } else if lane.waiting.is_empty() {
                // Its records were late and are gone.
                self.lanes.remove(&number);
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

    fn release(&mut self, batch: &Batch, max_weight: usize) {
        self.unknown.retain(|tag| *tag != batch.tag);
        self.weight = self.weight.saturating_sub(batch.weight);
        self.admit(max_weight);
    }

    /// Lets in what waits for room.
    fn admit(&mut self, max_weight: usize) {
        while let Some(first) = self.overflow.first_entry() {
            if self.weight > 0 && self.weight + first.get().weight() > max_weight {
                return;
            }
            let item = first.remove();
            self.place(item);
        }
    }

    fn take_late(&mut self, now: Time, max_weight: usize) -> Vec<Item> {
        let is_late = |item: &Item| item.deadline <= now;
        let mut late = Vec::new();
        for lane in self.lanes.values_mut() {
            late.extend(take_if(&mut lane.waiting, is_late));
        }
        let freed: usize = late.iter().map(Item::weight).sum();
        self.weight = self.weight.saturating_sub(freed);
        // In order of submission, so in order of deadlines.
        while let Some(first) = self.overflow.first_entry() {
            if !is_late(first.get()) {
                break;
            }
            late.push(first.remove());
        }
        self.admit(max_weight);
        late
    }
}

fn take_if(queue: &mut VecDeque<Item>, wanted: impl Fn(&Item) -> bool) -> Vec<Item> {
    if !queue.iter().any(&wanted) {
        return Vec::new();
    }
    let (taken, kept) = queue.drain(..).partition::<Vec<_>, _>(wanted);
    queue.extend(kept);
    taken
}

/// The next entry.
struct Forming {
    items: Vec<Item>,
    bytes: usize,
    streams: Vec<StreamId>,
    room: usize,
    most_streams: usize,
}

impl Forming {
    fn new(limits: &Limits) -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
            streams: Vec::new(),
            room: (limits.entry_bytes as usize).saturating_sub(HEADER_BYTES),
            most_streams: limits.streams_per_entry as usize,
        }
    }

    /// The first record always goes in: the log says what is wrong with it.
    fn takes(&self, item: &Item) -> bool {
        let new_streams = item.streams.iter().filter(|s| !self.streams.contains(*s));
        self.items.is_empty()
            || (self.items.len() < RECORDS_PER_ENTRY
                && self.bytes + item.record.len() <= self.room
                && self.streams.len() + new_streams.count() <= self.most_streams)
    }

    fn add(&mut self, item: Item) {
        for stream in &item.streams {
            if !self.streams.contains(stream) {
                self.streams.push(*stream);
            }
        }
        self.bytes += item.record.len();
        self.items.push(item);
    }

    fn into_batch(self, tag: u64, lanes: Vec<u64>) -> Batch {
        let mut payload = begin_payload(tag, self.bytes);
        let weight = self.items.iter().map(Item::weight).sum();
        let mut slots = Vec::with_capacity(self.items.len());
        let mut deadlines = Vec::with_capacity(self.items.len());
        for item in self.items {
            payload.extend_from_slice(&item.record);
            slots.push(item.slot);
            deadlines.push(item.deadline);
        }
        Batch {
            tag,
            slots,
            deadlines,
            lanes,
            streams: self.streams,
            payload: payload.into(),
            weight,
        }
    }
}

/// Sends what is submitted, until the replica ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let submit = &shared.submit;
    let every = tick(shared.options.deadline);
    let mut appends = FuturesUnordered::new();
    let mut timer = None;
    loop {
        while appends.len() < submit.entries_in_flight {
            let Some(batch) = submit.next_batch(&shared.log.limits()) else {
                break;
            };
            appends.push(append(Arc::clone(&shared), batch));
        }
        if timer.is_none() && !submit.lock().is_idle() {
            timer = Some(shared.env.sleep(every));
        }
        tokio::select! {
            biased;
            Some(()) = appends.next() => {}
            () = submit.wake.notified() => {}
            () = until(&mut timer) => {
                timer = None;
                submit.sweep(shared.env.now());
            }
        }
    }
}

async fn append(shared: Arc<Shared>, batch: Arc<Batch>) {
    let entry = NewEntry::new(batch.streams.clone(), batch.payload.clone());
    metrics::counter!("milonga_updates_total").increment(batch.slots.len() as u64);
    #[expect(
        clippy::cast_precision_loss,
        reason = "at most a thousand records, exact in a float"
    )]
    metrics::histogram!("milonga_records_per_entry").record(batch.slots.len() as f64);
    let result = shared.log.append(entry).await.map(|done| done.position);
    tracing::debug!(
        tag = batch.tag,
        records = batch.slots.len(),
        ?result,
        "entry appended"
    );
    shared.submit.appended(&batch, &result);
    match result {
        Ok(position) => shared.play_through(position),
        Err(AppendError::OutcomeUnknown { .. }) => settle_unknown(&shared, &batch).await,
        Err(_) => {}
    }
}

/// Perhaps the entry is in the log already: then playing to the tail tells. Else nobody knows.
async fn settle_unknown(shared: &Shared, batch: &Batch) {
    // Whatever this ends with, the slots tell.
    let _ = shared.syncs.sync(super::sync::Reach::Whole).await;
    for slot in &batch.slots {
        slot.give_up(shared.submit.waited_ms);
    }
}
