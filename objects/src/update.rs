//! Updates as futures, and what happens when nobody knows their outcome.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use milonga_protocol::Position;

use crate::error::UpdateError;
use crate::replica::Replica;
use crate::replica::submit::Item;
use crate::slot::{Outcome, Slot};
use crate::world::Output;

/// An update that takes effect when it is first polled, and resolves to what the object's `apply` returned, after
/// this replica has applied it.
///
/// * Dropped before the first poll, or while it waits for room in the queues, it sends nothing; dropped later, it
///   still takes effect, once.
/// * Updates of one handle take effect in the order of their first polls.
/// * At the deadline ([`ReplicaOptions::deadline`](crate::ReplicaOptions::deadline)) it resolves to
///   [`UpdateError::OutcomeUnknown`] with a ticket for [`Replica::settle`].
#[must_use = "an update does nothing until it is awaited"]
pub struct Update<T> {
    replica: Replica,
    state: UpdateState,
    output: PhantomData<fn() -> T>,
}

enum UpdateState {
    New(Item),
    /// In some queue, in flight, or done.
    Sent(Arc<Slot>, Option<u64>),
    Failed(UpdateError),
    Done,
}

impl<T: Send + 'static> Update<T> {
    pub(crate) fn new(replica: Replica, item: Result<Item, UpdateError>) -> Self {
        Self {
            replica,
            state: item.map_or_else(UpdateState::Failed, UpdateState::New),
            output: PhantomData,
        }
    }

    /// Resolves to the output and the position of the update.
    pub fn with_position(self) -> WithPosition<T> {
        WithPosition(self)
    }

    /// Lets `heir` have the output that nobody waits for any more. Nothing happens if nothing was sent. `expecting`
    /// is dropped when the outcome is known, or given up.
    pub(crate) fn bequeath(
        &mut self,
        heir: impl FnOnce(T) + Send + 'static,
        expecting: impl Send + 'static,
    ) {
        if let UpdateState::Sent(slot, _) = &self.state {
            let heir = move |output: Output| {
                if let Ok(output) = output.downcast() {
                    heir(*output);
                }
            };
            slot.bequeath(Box::new(heir), Box::new(expecting));
        }
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<(T, Position), UpdateError>> {
        let outcome = std::task::ready!(self.poll_outcome(cx))?;
        let Outcome::Applied { position, output } = outcome else {
            unreachable!("an update's record is no commit record");
        };
        let output = output.and_then(|output| output.downcast().ok());
        let output = output.expect("a handle's object is hosted, as the handle's type");
        Poll::Ready(Ok((*output, position)))
    }

    /// Submits at the first poll.
    pub(crate) fn poll_outcome(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome, UpdateError>> {
        if let UpdateState::New(_) = &self.state {
            let UpdateState::New(item) = std::mem::replace(&mut self.state, UpdateState::Done)
            else {
                unreachable!("just matched");
            };
            let slot = Arc::clone(&item.slot);
            match self.replica.shared().submit_item(item) {
                Ok(overflow) => self.state = UpdateState::Sent(slot, overflow),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let result = match &self.state {
            UpdateState::Sent(slot, _) => std::task::ready!(slot.poll(cx)),
            UpdateState::Failed(error) => Err(error.clone()),
            UpdateState::New(_) | UpdateState::Done => {
                panic!("an update was polled after it ended")
            }
        };
        self.state = UpdateState::Done;
        Poll::Ready(result)
    }
}

impl<T> Drop for Update<T> {
    fn drop(&mut self) {
        // What is still waiting for room was not accepted: it would pile up without a bound.
        if let UpdateState::Sent(_, Some(overflow)) = &self.state {
            self.replica.shared().submit.withdraw(*overflow);
        }
    }
}

impl<T: Send + 'static> Future for Update<T> {
    type Output = Result<T, UpdateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_both(cx).map_ok(|(output, _)| output)
    }
}

impl<T> fmt::Debug for Update<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Update")
    }
}

/// See [`Update::with_position`].
#[must_use = "an update does nothing until it is awaited"]
#[derive(Debug)]
pub struct WithPosition<T>(Update<T>);

impl<T: Send + 'static> Future for WithPosition<T> {
    type Output = Result<(T, Position), UpdateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_both(cx)
    }
}

/// An update whose outcome was unknown at its deadline; for [`Replica::settle`].
#[derive(Clone)]
pub struct Ticket(pub(crate) Arc<Slot>);

impl Ticket {
    /// The object that was to be updated; `None` for a transaction.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.0.object.as_deref()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?})", self.object().unwrap_or("transaction"))
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Ticket {}

/// What became of an update whose outcome was unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settled<T> {
    /// It took effect.
    Applied {
        /// Where.
        position: Position,
        /// What `apply` returned: the first time it is asked for, and if `T` is its type.
        output: Option<T>,
    },
    /// It did not and never will (also: the transaction aborted).
    Never,
    /// Still nobody knows. Ask again later.
    Unknown,
}
