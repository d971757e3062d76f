//! The environment seam: clock, randomness and spawning.
//!
//! Product code asks an [`Env`] and nothing else (clippy bans the rest), so that the whole system
//! can run in one thread on virtual time. The real one is `milonga_transport::TokioEnv`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// A boxed future that can cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A shared environment.
pub type SharedEnv = Arc<dyn Env>;

/// Monotonic time since the environment began, the time that the machine was asleep included (rule 20 counts on it).
/// Comparable only within one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(Duration);

impl Time {
    /// The time `since_start` after the environment began.
    #[must_use]
    pub const fn from_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// How long after the environment began.
    #[must_use]
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// This time plus `duration`, saturating.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long from `earlier` to this time; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t+{:?}", self.0)
    }
}

/// Where clock, randomness and tasks come from.
pub trait Env: Send + Sync + 'static {
    /// Now, monotonic. Goes on while the process is stopped and while the machine sleeps, and is at most one part in forty
    /// faster or slower than real time: leases are safe only with such a clock.
    fn now(&self) -> Time;

    /// What the clock on the wall shows: time since 1970 in UTC. It may jump, so it is for people's eyes only: nothing may be
    /// decided by it.
    fn wall_clock(&self) -> Duration;

    /// Completes at `deadline`, at once if it has passed.
    fn sleep_until(&self, deadline: Time) -> BoxFuture<'static, ()>;

    /// Uniformly random bits: for identities and jitter, never for secrets.
    fn random(&self) -> u64;

    /// Runs `future` in the background until it ends or the returned [`Task`] is dropped.
    /// `name` is static and shows in traces.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Task;
}

impl dyn Env {
    /// Completes after `duration`.
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now().after(duration))
    }

    /// 128 random bits: a new identity.
    pub fn random_id(&self) -> u128 {
        (u128::from(self.random()) << 64) | u128::from(self.random())
    }
}

/// A background task; dropping it stops the task at its next await.
#[must_use = "dropping a task stops it"]
pub struct Task(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Task {
    /// A task that `abort` stops.
    pub fn new(abort: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(abort)))
    }

    /// Lets the task run to its end.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(abort) = self.0.take() {
            abort();
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}
