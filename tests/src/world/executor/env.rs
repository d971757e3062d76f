//! The environment of one process: what product code sees of the executor.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use milonga_protocol::env::{BoxFuture, Env, SharedEnv, Task, Time};

use super::{Executor, ProcessId};
use crate::world::executor::timers::TimerKey;

/// Clock, randomness and tasks of one process of the world.
#[derive(Debug)]
pub(crate) struct WorldEnv {
    executor: Executor,
    process: ProcessId,
}

impl WorldEnv {
    pub(crate) fn shared(executor: &Executor, process: ProcessId) -> SharedEnv {
        Arc::new(Self {
            executor: executor.clone(),
            process,
        })
    }
}

/// When every world begins, on its clocks on the wall: 1 January 2030.
const BEGIN: Duration = Duration::from_secs(1_893_456_000);

impl Env for WorldEnv {
    fn now(&self) -> Time {
        self.executor.lock().time_of(self.process)
    }

    fn wall_clock(&self) -> Duration {
        BEGIN + self.now().since_start()
    }

    fn sleep_until(&self, deadline: Time) -> BoxFuture<'static, ()> {
        Box::pin(Sleep {
            executor: self.executor.clone(),
            process: self.process,
            deadline,
            key: None,
        })
    }

    fn random(&self) -> u64 {
        self.executor.lock().random_of(self.process)
    }

    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Task {
        self.executor.spawn(self.process, name, future)
    }
}

struct Sleep {
    executor: Executor,
    process: ProcessId,
    deadline: Time,
    key: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.executor.lock();
        if state.time_of(this.process) >= this.deadline {
            // A timer that is left in the queue wakes for nothing; dropping this takes it out.
            return Poll::Ready(());
        }
        if let Some(key) = this.key
            && state.rearm(key, cx.waker())
        {
            return Poll::Pending;
        }
        this.key = Some(state.arm(this.process, this.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let timer = self.executor.lock().disarm(key);
            drop(timer);
        }
    }
}
