//! Calls that wait for an answer: a table by call number, with one timer for all deadlines.
//!
//! A call number is `generation << 32 | slot`: a slot is used again under the next generation, so an answer that
//! comes after its call has ended finds nobody.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use milonga_protocol::env::{SharedEnv, Time};
use milonga_protocol::frame::Message;
use milonga_protocol::sync::{Mutex, Notify, Weakness, weakened};
use tokio::sync::oneshot;

use crate::lock::lock;

const NEVER: Time = Time::from_start(Duration::MAX);

/// Why a call in the table got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    TimedOut,
    /// The service dropped it or the connection was lost.
    Dropped(Arc<str>),
}

type Answer = Result<Message, NoAnswer>;

/// The table. [`InFlight::sweep`] must run beside it.
#[derive(Default)]
pub(crate) struct InFlight {
    table: Mutex<Table>,
    /// The sweeper has to look again: an earlier deadline, or the end.
    changed: Notify,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// When the sweeper wakes up; never later than the earliest deadline.
    wake_at: Time,
    /// Set once: nothing is taken in any more.
    closed: Option<Arc<str>>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    call: Option<Waiting>,
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    deadline: Time,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            wake_at: NEVER,
            closed: None,
        }
    }
}

impl Table {
    fn insert(&mut self, call: Waiting) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("bounded far below by bytes in flight")
        });
        let place = &mut self.slots[slot as usize];
        place.call = Some(call);
        u64::from(place.generation) << 32 | u64::from(slot)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a call number is made of two halves"
    )]
    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let (generation, slot) = ((number >> 32) as u32, number as u32);
        let place = self.slots.get_mut(slot as usize)?;
        if place.generation != generation && !weakened(Weakness::ForgetBySlot) {
            return None;
        }
        let call = place.call.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        Some(call)
    }

    /// Takes out all calls whose deadline has come and sets `wake_at` to the earliest that is left.
    fn expire(&mut self, now: Time) -> Vec<Waiting> {
        let mut late = Vec::new();
        let mut next = NEVER;
        for slot in 0..self.slots.len() {
            let place = &self.slots[slot];
            let Some(call) = &place.call else { continue };
            if call.deadline > now {
                next = next.min(call.deadline);
                continue;
            }
            let number = u64::from(place.generation) << 32 | slot as u64;
            late.extend(self.remove(number));
        }
        self.wake_at = next;
        late
    }
}

impl InFlight {
    /// Whether no call waits.
    pub(crate) fn is_empty(&self) -> bool {
        let table = lock(&self.table);
        table.free.len() == table.slots.len()
    }

    /// Takes a call in.
    ///
    /// # Errors
    /// Why the table was closed.
    pub(crate) fn register(self: &Arc<Self>, deadline: Time) -> Result<Pending, Arc<str>> {
        let (answer, receiver) = oneshot::channel();
        let mut table = lock(&self.table);
        if let Some(why) = &table.closed {
            return Err(why.clone());
        }
        let number = table.insert(Waiting { answer, deadline });
        let earlier = deadline < table.wake_at;
        if earlier {
            table.wake_at = deadline;
        }
        drop(table);
        if earlier {
            self.changed.notify_one();
        }
        Ok(Pending {
            table: Arc::clone(self),
            number,
            answer: receiver,
            done: false,
        })
    }

    /// Completes calls; answers to calls that have ended are dropped.
    pub(crate) fn complete(&self, answers: &mut Vec<(u64, Answer)>) {
        let mut table = lock(&self.table);
        let ready: Vec<_> = answers
            .drain(..)
            .filter_map(|(number, answer)| Some((table.remove(number)?.answer, answer)))
            .collect();
        drop(table);
        for (waiting, answer) in ready {
            // The caller may have gone meanwhile.
            let _ = waiting.send(answer);
        }
    }

    /// Completes one call.
    pub(crate) fn complete_one(&self, number: u64, answer: Answer) {
        let call = lock(&self.table).remove(number);
        if let Some(call) = call {
            let _ = call.answer.send(answer);
        }
    }

    /// Fails all calls, and every later [`InFlight::register`].
    pub(crate) fn close(&self, why: &Arc<str>) {
        let mut table = lock(&self.table);
        if table.closed.is_some() {
            return;
        }
        table.closed = Some(why.clone());
        let all: Vec<_> = std::mem::take(&mut table.slots)
            .into_iter()
            .filter_map(|slot| slot.call)
            .collect();
        table.free.clear();
        drop(table);
        for call in all {
            let _ = call.answer.send(Err(NoAnswer::Dropped(why.clone())));
        }
        self.changed.notify_one();
    }

    /// Ends calls at their deadlines, until the table is closed.
    pub(crate) async fn sweep(self: Arc<Self>, env: SharedEnv) {
        loop {
            let wake_at = {
                let table = lock(&self.table);
                if table.closed.is_some() {
                    return;
                }
                table.wake_at
            };
            tokio::select! {
                biased;
                () = self.changed.notified() => continue,
                () = env.sleep_until(wake_at) => {}
            }
            let late = lock(&self.table).expire(env.now());
            for call in late {
                let _ = call.answer.send(Err(NoAnswer::TimedOut));
            }
        }
    }

    fn forget(&self, number: u64) {
        lock(&self.table).remove(number);
    }
}

/// The wait for the answer to one call. Dropping it takes the call out of the table.
#[must_use]
pub(crate) struct Pending {
    table: Arc<InFlight>,
    number: u64,
    answer: oneshot::Receiver<Answer>,
    done: bool,
}

impl Pending {
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }
}

impl Future for Pending {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        self.done = true;
        Poll::Ready(answer.unwrap_or_else(|_| Err(NoAnswer::Dropped("the table is gone".into()))))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.done {
            self.table.forget(self.number);
        }
    }
}

#[cfg(all(test, milonga_loom))]
mod models;

#[cfg(test)]
mod tests {
    use milonga_protocol::env::Env;

    use super::*;
    use crate::env::TokioEnv;

    fn table(env: &Arc<TokioEnv>) -> Arc<InFlight> {
        let table = Arc::new(InFlight::default());
        env.spawn("sweep", Box::pin(table.clone().sweep(env.clone())))
            .detach();
        table
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_ends_at_its_own_deadline() {
        let env = TokioEnv::seeded(1);
        let table = table(&env);
        let after = |ms| env.now().after(Duration::from_millis(ms));
        // A later deadline first: the sweeper has to be woken for the earlier one.
        let late = table.register(after(5_000)).expect("open");
        let early = table.register(after(20)).expect("open");
        assert_eq!(early.await, Err(NoAnswer::TimedOut));
        assert_eq!(env.now().since_start(), Duration::from_millis(20));
        assert_eq!(late.await, Err(NoAnswer::TimedOut));
        assert_eq!(env.now().since_start(), Duration::from_millis(5_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_does_not_reach_the_next_call_in_its_slot() {
        let env = TokioEnv::seeded(1);
        let table = table(&env);
        let soon = env.now().after(Duration::from_secs(1));
        let first = table.register(soon).expect("open");
        let old = first.number();
        drop(first);
        let second = table.register(soon).expect("open");
        assert_ne!(old, second.number());
        table.complete(&mut vec![(old, Ok(Message::default()))]);
        assert_eq!(second.await, Err(NoAnswer::TimedOut));
    }

    #[tokio::test]
    async fn closing_fails_what_waits_and_what_comes() {
        let env = TokioEnv::seeded(1);
        let table = table(&env);
        let later = env.now().after(Duration::from_secs(60));
        let call = table.register(later).expect("open");
        let why: Arc<str> = "gone".into();
        table.close(&why);
        assert_eq!(call.await, Err(NoAnswer::Dropped(why.clone())));
        assert_eq!(table.register(later).map(|_| ()), Err(why));
    }
}
