//! The tasks, by number, and the list of those that were woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use milonga_protocol::BoxFuture;

use super::ProcessId;

/// Number of a task, never used twice: generation and slot.
pub(crate) type TaskId = u64;

/// Numbers of woken tasks, until the executor looks.
pub(crate) type Woken = Arc<Mutex<Vec<TaskId>>>;

/// A task between two polls.
pub(crate) struct Spawned {
    pub(crate) process: ProcessId,
    pub(crate) name: &'static str,
    pub(crate) future: Option<BoxFuture<'static, ()>>,
    pub(crate) waker: Arc<TaskWaker>,
}

/// Puts its task on the list, once for each poll.
pub(crate) struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    woken: Woken,
}

impl TaskWaker {
    /// The task is about to be polled: later wakes count.
    pub(crate) fn begin(self: &Arc<Self>) -> Waker {
        self.queued.store(false, Ordering::Relaxed);
        Waker::from(Arc::clone(self))
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken.push(self.id);
        }
    }
}

/// All tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<(u32, Option<Spawned>)>,
    free: Vec<u32>,
    woken: Woken,
}

impl Tasks {
    /// Takes a task in and wakes it.
    pub(crate) fn insert(
        &mut self,
        process: ProcessId,
        name: &'static str,
        future: BoxFuture<'static, ()>,
    ) -> TaskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("far fewer tasks")
        });
        let place = &mut self.slots[slot as usize];
        let id = u64::from(place.0) << 32 | u64::from(slot);
        let waker = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            woken: Arc::clone(&self.woken),
        });
        waker.wake_by_ref();
        place.1 = Some(Spawned {
            process,
            name,
            future: Some(future),
            waker,
        });
        id
    }

    pub(crate) fn get(&mut self, id: TaskId) -> Option<&mut Spawned> {
        let (generation, slot) = parts(id);
        let place = self.slots.get_mut(slot as usize)?;
        if place.0 == generation {
            place.1.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, id: TaskId) -> Option<Spawned> {
        let (generation, slot) = parts(id);
        let place = self.slots.get_mut(slot as usize)?;
        if place.0 != generation {
            return None;
        }
        let task = place.1.take()?;
        place.0 = place.0.wrapping_add(1);
        self.free.push(slot);
        Some(task)
    }

    /// Takes out all tasks of a process, in a fixed order.
    pub(crate) fn remove_all(&mut self, process: ProcessId) -> Vec<Spawned> {
        let slots = 0..u32::try_from(self.slots.len()).expect("far fewer tasks");
        let ids: Vec<_> = slots
            .filter_map(|slot| match &self.slots[slot as usize] {
                (generation, Some(task)) if task.process == process => {
                    Some(u64::from(*generation) << 32 | u64::from(slot))
                }
                _ => None,
            })
            .collect();
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// The tasks woken since the last call, in an order that does not depend on who woke them first within it.
    pub(crate) fn take_woken(&self, into: &mut Vec<TaskId>) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        // tokio's `watch` wakes its waiters in an order that differs from process to process.
        woken.sort_unstable();
        into.append(&mut woken);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an id is made of two halves"
)]
const fn parts(id: TaskId) -> (u32, u32) {
    ((id >> 32) as u32, id as u32)
}
