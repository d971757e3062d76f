//! Pops as futures, and items popped for futures that were dropped.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::UpdateError;
use crate::object::Value;
use crate::replica::lock;
use crate::update::Update;
use milonga_protocol::sync::{
    Mutex, Notify,
    atomic::{AtomicUsize, Ordering},
};

/// What the clones of a handle share.
pub(super) struct Pops<T> {
    /// Items popped for futures that were dropped: the next pops get them.
    pub(super) handed: Mutex<VecDeque<T>>,
    /// Pops under way: so many items are as good as gone.
    pub(super) under_way: AtomicUsize,
    /// An item was handed on, or a pop ended.
    pub(super) changed: Notify,
}

/// Counts one pop under way, until it is dropped.
pub(super) struct UnderWay<T>(pub(super) Arc<Pops<T>>);

impl<T> UnderWay<T> {
    pub(super) fn begin(pops: &Arc<Pops<T>>) -> Self {
        pops.under_way.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pops))
    }
}

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

impl<T> Pops<T> {
    pub(super) fn take_handed(&self) -> Option<T> {
        lock(&self.handed).pop_front()
    }

    pub(super) fn hand(&self, item: T) {
        lock(&self.handed).push_back(item);
        self.changed.notify_waiters();
    }
}

/// See [`Queue::pop`](crate::Queue::pop).
#[must_use = "a pop does nothing until it is awaited"]
pub struct Pop<T: Value> {
    pub(super) update: Update<Option<T>>,
    pub(super) pops: Arc<Pops<T>>,
    /// Set at the first poll, until the end.
    pub(super) under_way: Option<UnderWay<T>>,
}

impl<T: Value> Future for Pop<T> {
    type Output = Result<Option<T>, UpdateError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.under_way.is_none() {
            if let Some(item) = self.pops.take_handed() {
                return Poll::Ready(Ok(Some(item)));
            }
            self.under_way = Some(UnderWay::begin(&self.pops));
        }
        let popped = std::task::ready!(Pin::new(&mut self.update).poll(cx));
        self.under_way = None;
        Poll::Ready(popped)
    }
}

impl<T: Value> Drop for Pop<T> {
    fn drop(&mut self) {
        let Some(under_way) = self.under_way.take() else {
            return;
        };
        let pops = Arc::clone(&self.pops);
        let heir = move |item| {
            if let Some(item) = item {
                pops.hand(item);
            }
        };
        self.update.bequeath(heir, under_way);
    }
}

impl<T: Value> fmt::Debug for Pop<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pop")
    }
}

#[cfg(all(test, milonga_loom))]
mod models {
    use milonga_protocol::sync::{Weakness, block_on, explore, find, thread};

    use super::*;

    /// As `Queue::pop_wait` does: an item that another pop has as good as taken is waited for.
    fn handing() {
        let pops = Arc::new(Pops {
            handed: Mutex::default(),
            under_way: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        let under_way = UnderWay::begin(&pops);
        let dropped = {
            let pops = Arc::clone(&pops);
            thread::spawn(move || {
                pops.hand(7);
                drop(under_way);
            })
        };
        let item = loop {
            let changed = pops.changed.notified();
            if let Some(item) = pops.take_handed() {
                break item;
            }
            block_on(changed);
        };
        assert_eq!(item, 7);
        dropped.join().expect("no panic");
        assert_eq!(pops.under_way.load(Ordering::Acquire), 0);
    }

    #[test]
    fn an_item_of_a_dropped_pop_reaches_who_waits() {
        explore(3, handing);
    }

    #[test]
    fn waiting_from_the_first_poll_on_is_found() {
        find(Weakness::LateWaiters, "deadlock", 3, handing);
    }
}
