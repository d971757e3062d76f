//! Where one member's raft runs: its environment and its tasks.
//!
//! openraft asks static functions for clock, randomness and tasks, so the environment must be ambient: every future
//! that openraft runs in is polled [`Within`] its member's home. Nothing is ambient outside a poll, so any number of
//! members share a thread, as they do in the seeded world.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use milonga_protocol::{SharedEnv, Task};
use tokio::sync::mpsc;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Home>>> = const { RefCell::new(None) };
}

/// One member's environment, and what it has spawned.
pub(super) struct Home {
    env: SharedEnv,
    tasks: Mutex<Tasks>,
}

struct Tasks {
    next: u64,
    /// `None` while the task is being spawned.
    running: BTreeMap<u64, Option<Task>>,
    /// Each task holds a clone until it is dropped; gone when the home is stopped.
    alive: Option<mpsc::Sender<Infallible>>,
    ended: Option<mpsc::Receiver<Infallible>>,
}

impl Home {
    pub(super) fn new(env: &SharedEnv) -> Arc<Self> {
        let (alive, ended) = mpsc::channel(1);
        Arc::new(Self {
            env: Arc::clone(env),
            tasks: Mutex::new(Tasks {
                next: 0,
                running: BTreeMap::new(),
                alive: Some(alive),
                ended: Some(ended),
            }),
        })
    }

    /// The home of whoever is being polled.
    ///
    /// # Panics
    /// Outside of every home: a future of openraft is polled by somebody who did not wrap it.
    pub(super) fn current() -> Arc<Self> {
        let current = CURRENT.with_borrow(Clone::clone);
        current.expect("raft runs within a home")
    }

    pub(super) const fn env(&self) -> &SharedEnv {
        &self.env
    }

    /// Makes this the current home until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        let here = Some(Arc::clone(self));
        Entered(CURRENT.with_borrow_mut(|current| mem::replace(current, here)))
    }

    /// `future`, polled with this as the current home.
    pub(super) fn within<F: Future>(self: &Arc<Self>, future: F) -> Within<F> {
        Within {
            home: Arc::clone(self),
            future: Box::pin(future),
        }
    }

    /// Runs `future` in here until it ends or the home is stopped; at once dropped if it is stopped already.
    pub(super) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        let (id, alive) = {
            let mut tasks = self.lock();
            let Some(alive) = tasks.alive.clone() else {
                return;
            };
            let id = tasks.next;
            tasks.next += 1;
            tasks.running.insert(id, None);
            (id, alive)
        };
        let ended = Ended {
            home: Arc::clone(self),
            id,
            _alive: alive,
        };
        // Captured whole, so that it is dropped behind the future.
        let future = self.within(future);
        let task = async move {
            let ended = ended;
            future.await;
            drop(ended);
        };
        let task = self.env.spawn("raft", Box::pin(task));
        let mut tasks = self.lock();
        match tasks.running.get_mut(&id) {
            Some(place) => *place = Some(task),
            None => {
                // It has ended already, or the home was stopped meanwhile.
                let stopped = tasks.alive.is_none();
                drop(tasks);
                if !stopped {
                    task.detach();
                }
            }
        }
    }

    /// Stops all tasks at their next await; later ones do not begin.
    pub(super) fn stop(&self) {
        let stopped = {
            let mut tasks = self.lock();
            tasks.alive = None;
            mem::take(&mut tasks.running)
        };
        // Not under the lock: what they hold may want it when it is dropped.
        drop(stopped);
    }

    /// Stops all tasks and returns when nothing of them is left.
    pub(super) async fn close(&self) {
        self.stop();
        let ended = self.lock().ended.take();
        if let Some(mut ended) = ended {
            // Ends when the last sender is dropped.
            let _ = ended.recv().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task out of its home's list when it ends.
struct Ended {
    home: Arc<Home>,
    id: u64,
    _alive: mpsc::Sender<Infallible>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let task = self.home.lock().running.remove(&self.id);
        if let Some(Some(task)) = task {
            task.detach();
        }
    }
}

/// Restores the home that was current before.
pub(super) struct Entered(Option<Arc<Home>>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with_borrow_mut(|current| *current = before);
    }
}

/// A future that is polled in its home.
pub(super) struct Within<F> {
    home: Arc<Home>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let _entered = this.home.enter();
        this.future.as_mut().poll(cx)
    }
}
