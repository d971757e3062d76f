//! Records of many tasks become entries: at once while few are in flight, in larger ones while many are.
//!
//! ```text
//!   submit -> overflow (no room) -> its lane's queue -> entry in flight -> outcome
//!                                   (lanes take turns)   (pending, by tag)
//! ```
//!
//! A *lane* is the order of one handle: its records wait while an earlier one is in an entry that is still being
//! appended, because two appends in flight may land in either order. All that waited goes together.

mod batch;
#[cfg(all(test, milonga_loom))]
mod models;
mod queues;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use milonga_protocol::sync::{Mutex, MutexGuard, Notify};
use milonga_protocol::{AppendError, Limits, NewEntry, Position, Time};

use crate::error::UpdateError;
use crate::replica::sync::Reach;
use crate::replica::{Shared, tick, until};
use crate::slot::Outcome;
use queues::{Lane, Queues};

pub(crate) use batch::{Batch, Item};

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
                failed: 0,
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
            Err(AppendError::OutcomeUnknown { .. }) => queues.remember(batch, self.max_weight),
            Err(error) => {
                // Not ours any more if it was stopped meanwhile.
                if queues.pending.remove(&batch.tag).is_some() {
                    queues.release(batch, self.max_weight);
                    queues.failed += batch.slots.len();
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
        queues.failed += unsent.len();
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

    /// How things stand, for [`Self::unfinished_since`].
    pub(crate) fn standing(&self) -> Standing {
        let queues = self.lock();
        let unknown = queues.unknown.iter().copied().collect();
        Standing {
            failed: queues.failed,
            unknown: match queues.stopped {
                Some(_) => queues.pending.keys().copied().collect(),
                None => unknown,
            },
        }
    }

    /// Records that were under way at `then` or came later, and were not played: not sent, refused, or of unknown
    /// outcome.
    pub(crate) fn unfinished_since(&self, then: &Standing) -> usize {
        let queues = self.lock();
        let pending = queues.pending.iter();
        let unknown = pending.filter(|(tag, _)| !then.unknown.contains(*tag));
        let unknown: usize = unknown.map(|(_, batch)| batch.slots.len()).sum();
        unknown + (queues.failed - then.failed)
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

/// What had ended badly at some time.
pub(crate) struct Standing {
    failed: usize,
    /// Entries that had no outcome and were not waited for any more.
    unknown: BTreeSet<u64>,
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

/// Perhaps the entry is in the log already, or somebody finishes it: then playing through all that was granted tells.
/// Else nobody knows.
async fn settle_unknown(shared: &Shared, batch: &Batch) {
    // Whatever this ends with, the slots tell.
    let _ = shared.syncs.sync(Reach::Granted).await;
    for slot in &batch.slots {
        slot.give_up(shared.submit.waited_ms);
    }
}
