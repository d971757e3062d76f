//! Where the outcome of a record arrives.

#[cfg(all(test, milonga_loom))]
mod models;

use std::any::Any;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use milonga_protocol::Position;
use milonga_protocol::sync::{Mutex, MutexGuard, Weakness, weakened};

use crate::error::UpdateError;
use crate::update::{Settled, Ticket};
use crate::versions::Clash;
use crate::world::Output;

/// How a record ended.
pub(crate) enum Outcome {
    /// An update took effect. The output is `None` once it was taken, or if the object is not hosted.
    Applied {
        position: Position,
        output: Option<Output>,
    },
    Committed {
        position: Position,
    },
    Aborted {
        clash: Clash,
    },
    /// It did not, or did without an output.
    Failed(UpdateError),
}

type Heir = Box<dyn FnOnce(Box<dyn Any + Send>) + Send>;

/// Dropped when the outcome is known, or given up.
type Expecting = Box<dyn Any + Send>;

/// Where a record's outcome arrives.
pub(crate) struct Slot {
    pub(crate) object: Option<Arc<str>>,
    /// Makes of `apply`'s output what the caller was promised.
    convert: Option<Convert>,
    state: Mutex<SlotState>,
}

pub(crate) type Convert = fn(Output) -> Output;

#[derive(Default)]
struct SlotState {
    outcome: Option<Outcome>,
    /// The deadline passed after this many milliseconds; an outcome may still come.
    given_up: Option<u64>,
    waker: Option<Waker>,
    settlers: Settlers,
    heir: Option<Heir>,
    expecting: Option<Expecting>,
}

impl Slot {
    pub(crate) fn new(object: Option<Arc<str>>, convert: Option<Convert>) -> Arc<Self> {
        Arc::new(Self {
            object,
            convert,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome is known. The first one counts.
    pub(crate) fn resolve(&self, mut outcome: Outcome) {
        if let (Some(convert), Outcome::Applied { output, .. }) = (self.convert, &mut outcome) {
            *output = output.take().map(convert);
        }
        let mut state = self.lock();
        if state.outcome.is_some() {
            return;
        }
        let waker = state.waker.take();
        let settlers = std::mem::take(&mut state.settlers.wakers);
        let expecting = state.expecting.take();
        let mut inheritance = None;
        match (state.heir.take(), outcome) {
            (
                Some(heir),
                Outcome::Applied {
                    position,
                    output: Some(output),
                },
            ) => {
                inheritance = Some((heir, output));
                state.outcome = Some(Outcome::Applied {
                    position,
                    output: None,
                });
            }
            (_, outcome) => state.outcome = Some(outcome),
        }
        drop(state);
        if let Some((heir, output)) = inheritance {
            heir(output);
        }
        drop(expecting);
        let settlers = settlers.into_values();
        waker.into_iter().chain(settlers).for_each(Waker::wake);
    }

    /// The deadline has passed and nothing is known.
    pub(crate) fn give_up(&self, waited_ms: u64) {
        let mut state = self.lock();
        state.given_up.get_or_insert(waited_ms);
        let (waker, expecting) = (state.waker.take(), state.expecting.take());
        drop(state);
        drop(expecting);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Lets `heir` have the output, now or whenever it comes. `expecting` is dropped after that, but not later than
    /// the slot is given up: nobody should count on what may never come.
    pub(crate) fn bequeath(&self, heir: Heir, expecting: Expecting) {
        let mut state = self.lock();
        match &mut state.outcome {
            Some(Outcome::Applied { output, .. }) => {
                if let Some(output) = output.take() {
                    drop(state);
                    heir(output);
                }
            }
            Some(_) => {}
            None => {
                state.heir = Some(heir);
                if state.given_up.is_none() {
                    state.expecting = Some(expecting);
                }
            }
        }
    }

    pub(crate) fn poll(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<Outcome, UpdateError>> {
        let mut state = self.lock();
        match state.outcome.take() {
            Some(Outcome::Failed(error)) => return Poll::Ready(Err(error)),
            Some(outcome) => return Poll::Ready(Ok(outcome)),
            None => {}
        }
        if weakened(Weakness::SplitPoll) {
            drop(state);
            state = self.lock();
        }
        if let Some(waited_ms) = state.given_up {
            return Poll::Ready(Err(UpdateError::OutcomeUnknown {
                ticket: Ticket(Arc::clone(self)),
                waited_ms,
            }));
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// For `settle`: resolves when an outcome is known.
    pub(crate) fn settled<T: 'static>(&self) -> Settling<'_, T> {
        Settling {
            slot: self,
            number: None,
            output: PhantomData,
        }
    }
}

/// Calls of `settle` that wait for the outcome, each with a number.
#[derive(Default)]
struct Settlers {
    wakers: BTreeMap<u64, Waker>,
    next: u64,
}

/// A call that waits for an outcome, listed in the slot until it ends.
pub(crate) struct Settling<'a, T> {
    slot: &'a Slot,
    /// Among the slot's settlers.
    number: Option<u64>,
    output: PhantomData<fn() -> T>,
}

impl<T: 'static> Future for Settling<'_, T> {
    type Output = Settled<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Settled<T>> {
        let slot = self.slot;
        let mut state = slot.lock();
        let settled = match &mut state.outcome {
            None => {
                let settlers = &mut state.settlers;
                let number = *self.number.get_or_insert_with(|| {
                    settlers.next += 1;
                    settlers.next
                });
                settlers.wakers.insert(number, cx.waker().clone());
                return Poll::Pending;
            }
            Some(Outcome::Applied { position, output }) => Settled::Applied {
                position: *position,
                // Left there if it is of another type.
                output: output
                    .take_if(|output| output.is::<T>())
                    .and_then(|output| output.downcast().ok())
                    .map(|output| *output),
            },
            Some(Outcome::Committed { position }) => Settled::Applied {
                position: *position,
                output: None,
            },
            Some(Outcome::Failed(UpdateError::Halted {
                written: Some(position),
                ..
            })) => Settled::Applied {
                position: *position,
                output: None,
            },
            Some(Outcome::Aborted { .. } | Outcome::Failed(_)) => Settled::Never,
        };
        Poll::Ready(settled)
    }
}

impl<T> Drop for Settling<'_, T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = self.slot.lock().settlers.wakers.remove(&number);
            // Outside the lock.
            drop(waker);
        }
    }
}

#[cfg(all(test, not(milonga_loom)))]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A ticket may be asked about for ever, by ever new tasks.
    #[test]
    fn calls_of_settle_that_ended_leave_nothing_behind() {
        let slot = Slot::new(None, None);
        let mut waiting = slot.settled::<i64>();
        assert!((&mut waiting).now_or_never().is_none());
        for _ in 0..100 {
            assert!(slot.settled::<i64>().now_or_never().is_none());
        }
        assert_eq!(slot.lock().settlers.wakers.len(), 1);
        slot.resolve(Outcome::Committed {
            position: Position(3),
        });
        assert_eq!(
            waiting.now_or_never(),
            Some(Settled::Applied {
                position: Position(3),
                output: None,
            })
        );
        assert!(slot.lock().settlers.wakers.is_empty());
    }
}
