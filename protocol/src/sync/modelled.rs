//! The same cells, as loom or shuttle sees them.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

#[cfg(milonga_loom)]
pub use loom::{
    future::block_on,
    sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic, mpsc},
    thread,
};
#[cfg(all(milonga_shuttle, not(milonga_loom)))]
pub use shuttle::{
    future::block_on,
    sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic, mpsc},
    thread,
};
use tokio::sync::futures::Notified as Cellular;

use super::Weakness;
use crate::env::{BoxFuture, Env, Task, Time};
use atomic::{AtomicBool, Ordering};

thread_local! {
    static WEAKNESS: Cell<Option<Weakness>> = const { Cell::new(None) };
}

/// Runs `model` in every order that a computer with weak memory could, but for those with more than `effort` threads
/// interrupted where they need not be.
#[cfg(milonga_loom)]
pub fn explore(effort: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(effort);
    builder.max_branches = 100_000;
    builder.check(model);
}

/// Runs `model` in `effort` orders, drawn from a fixed seed.
#[cfg(not(milonga_loom))]
pub fn explore(effort: usize, model: impl Fn() + Send + Sync + 'static) {
    let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(1, effort);
    shuttle::Runner::new(scheduler, shuttle::Config::default()).run(model);
}

/// Names the test that a child process is to run with its weakness.
const CHILD: &str = "MILONGA_MODEL";

/// Runs `model` with a weakness, and checks that it fails saying `how`. To be called by a test, which then runs once
/// more in a process of its own: after a deadlock, threads cannot be unwound.
///
/// # Panics
/// If nothing is found, or something else.
pub fn find(by: Weakness, how: &str, effort: usize, model: impl Fn() + Send + Sync + 'static) {
    let thread = std::thread::current();
    let test = thread.name().expect("tests have names");
    if std::env::var(CHILD).is_ok_and(|named| named == test) {
        // All threads of a model run on this one.
        WEAKNESS.set(Some(by));
        return explore(effort, model);
    }
    let test_binary = std::env::current_exe().expect("a test is a program");
    let run = std::process::Command::new(test_binary)
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, test)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("it runs once more");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(
        !run.status.success() && said.contains(how),
        "{by:?} was not found as \"{how}\" but: {said}"
    );
}

/// An environment in which time stands still and nothing is spawned.
#[derive(Debug)]
pub struct Still(pub Time);

impl Env for Still {
    fn now(&self) -> Time {
        self.0
    }

    fn wall_clock(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, deadline: Time) -> BoxFuture<'static, ()> {
        if deadline <= self.0 {
            Box::pin(std::future::ready(()))
        } else {
            Box::pin(std::future::pending())
        }
    }

    fn random(&self) -> u64 {
        0
    }

    fn spawn(&self, _: &'static str, _: BoxFuture<'static, ()>) -> Task {
        unreachable!("a model spawns its threads itself")
    }
}

/// Whether the code is to be run with that weakness.
#[must_use]
pub fn weakened(by: Weakness) -> bool {
    WEAKNESS.get() == Some(by)
}

/// tokio's `Notify`; each call is one step.
#[derive(Debug, Default)]
pub struct Notify {
    step: Mutex<()>,
    cell: tokio::sync::Notify,
}

impl Notify {
    /// As tokio's.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As tokio's.
    pub fn notify_one(&self) {
        let _step = step(&self.step);
        if weakened(Weakness::NoPermits) {
            self.cell.notify_waiters();
        } else {
            self.cell.notify_one();
        }
    }

    /// As tokio's.
    pub fn notify_waiters(&self) {
        let _step = step(&self.step);
        self.cell.notify_waiters();
    }

    /// As tokio's.
    pub fn notified(&self) -> Notified<'_> {
        let mut notified = Notified {
            of: self,
            waiting: None,
        };
        if !weakened(Weakness::LateWaiters) {
            let _step = step(&self.step);
            notified.waiting();
        }
        notified
    }
}

/// tokio's `Notified`; each call is one step.
#[derive(Debug)]
pub struct Notified<'a> {
    of: &'a Notify,
    waiting: Option<Pin<Box<Cellular<'a>>>>,
}

impl<'a> Notified<'a> {
    fn waiting(&mut self) -> Pin<&mut Cellular<'a>> {
        let cell = &self.of.cell;
        self.waiting
            .get_or_insert_with(|| Box::pin(cell.notified()))
            .as_mut()
    }

    /// As tokio's.
    pub fn enable(mut self: Pin<&mut Self>) -> bool {
        if weakened(Weakness::LateWaiters) {
            return false;
        }
        let _step = step(&self.of.step);
        self.waiting().enable()
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _step = step(&self.of.step);
        self.waiting().poll(cx)
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            // Hands an unused permit on.
            let _step = (!std::thread::panicking()).then(|| step(&self.of.step));
            drop(waiting);
        }
    }
}

fn step(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().expect("a model ends with its first panic")
}

/// std's `OnceLock`: who finds it set sees what came before.
#[derive(Debug)]
pub struct OnceLock<T> {
    step: Mutex<()>,
    set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    /// As std's.
    #[must_use]
    pub fn new() -> Self {
        Self {
            step: Mutex::default(),
            set: AtomicBool::new(false),
            value: std::sync::OnceLock::new(),
        }
    }

    /// As std's.
    pub fn get(&self) -> Option<&T> {
        let ordering = if weakened(Weakness::RelaxedOnce) {
            Ordering::Relaxed
        } else {
            Ordering::Acquire
        };
        self.set
            .load(ordering)
            .then(|| self.value.get().expect("it was set"))
    }

    /// As std's.
    ///
    /// # Errors
    /// The value, if there was one already.
    pub fn set(&self, value: T) -> Result<(), T> {
        let _step = step(&self.step);
        self.value.set(value)?;
        self.set.store(true, Ordering::Release);
        Ok(())
    }

    /// As std's.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        let _step = step(&self.step);
        let value = self.value.get_or_init(make);
        self.set.store(true, Ordering::Release);
        value
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}
