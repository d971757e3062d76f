//! The background tasks of one client: owned here, so that dropping the client stops them all.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milonga_protocol::{SharedEnv, Task};

pub(crate) struct Tasks {
    env: SharedEnv,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    /// `None` while a task is being started.
    tasks: BTreeMap<u64, Option<Task>>,
    stopped: bool,
}

impl Tasks {
    pub(crate) fn new(env: SharedEnv) -> Arc<Self> {
        Arc::new(Self {
            env,
            running: Mutex::default(),
        })
    }

    /// Runs `future` until it ends or the client stops; drops it at once if the client has stopped.
    pub(crate) fn spawn(
        self: &Arc<Self>,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        let number = {
            let mut running = self.lock();
            if running.stopped {
                return;
            }
            let number = running.next;
            running.next += 1;
            running.tasks.insert(number, None);
            number
        };
        let listed = Listed {
            tasks: Arc::clone(self),
            number,
        };
        // Not under the lock: a runtime that is shutting down drops the future, and with it `listed`, at once.
        let task = self.env.spawn(
            name,
            Box::pin(async move {
                let _listed = listed;
                future.await;
            }),
        );
        let stopped = {
            let mut running = self.lock();
            match running.tasks.get_mut(&number) {
                Some(place) => {
                    *place = Some(task);
                    return;
                }
                None => running.stopped,
            }
        };
        if stopped {
            drop(task);
        } else {
            // It has ended already.
            task.detach();
        }
    }

    /// Stops all tasks; later ones do not start.
    pub(crate) fn stop(&self) {
        let stopped = {
            let mut running = self.lock();
            running.stopped = true;
            std::mem::take(&mut running.tasks)
        };
        // Outside the lock: a stopped task takes itself off the list when it is dropped.
        drop(stopped);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        // Every change is complete before anything can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task off the list when it ends, however it ends.
struct Listed {
    tasks: Arc<Tasks>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let task = self.tasks.lock().tasks.remove(&self.number);
        if let Some(task) = task.flatten() {
            task.detach();
        }
    }
}
