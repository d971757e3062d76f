//! Waiting: for deadlines, between attempts, for others.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::{BoxFuture, SharedEnv, Time};

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How often deadlines are looked at: often enough to be late by little.
pub(crate) fn tick(deadline: Duration) -> Duration {
    (deadline / 16).clamp(Duration::from_millis(2), Duration::from_secs(1))
}

/// Waits for what is there; for ever if nothing is.
pub(crate) fn until<'a>(
    future: &'a mut Option<BoxFuture<'static, ()>>,
) -> impl Future<Output = ()> + 'a {
    std::future::poll_fn(|cx| match future {
        Some(future) => future.as_mut().poll(cx),
        None => std::task::Poll::Pending,
    })
}

/// Lets other tasks run.
pub(super) fn pause() -> impl Future<Output = ()> {
    let mut paused = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut paused, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
}

/// When a call ends, whatever it waits for.
pub(crate) struct Deadline {
    env: SharedEnv,
    pub(crate) at: Time,
    /// How long that is from its begin on.
    pub(crate) waited_ms: u64,
}

impl Deadline {
    pub(crate) fn new(env: &SharedEnv, patience: Duration) -> Self {
        Self {
            env: Arc::clone(env),
            at: env.now().after(patience),
            waited_ms: millis(patience),
        }
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.env.now() >= self.at
    }

    /// Waits for `work`; `None` if the deadline passes, or has.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if self.has_passed() {
            return None;
        }
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.env.sleep_until(self.at) => None,
        }
    }
}

/// Waits between attempts: doubling, jittered, bounded.
pub(crate) struct Backoff {
    pub(super) env: SharedEnv,
    pub(super) next: Duration,
    pub(super) most: Duration,
}

impl Backoff {
    pub(crate) fn new(env: &SharedEnv) -> Self {
        Self::between(env, Duration::from_millis(5), Duration::from_millis(500))
    }

    pub(crate) fn between(env: &SharedEnv, first: Duration, most: Duration) -> Self {
        Self {
            env: Arc::clone(env),
            next: first,
            most,
        }
    }

    /// The next pause: between half and one and a half times its base.
    pub(crate) fn next(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(self.most);
        let micros = u64::try_from(base.as_micros()).unwrap_or(u64::MAX).max(1);
        base / 2 + Duration::from_micros(self.env.random() % micros)
    }

    /// Pauses.
    pub(crate) fn sleep(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let pause = self.next();
        self.env.sleep(pause)
    }
}
