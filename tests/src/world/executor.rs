//! One thread, virtual time, and an order of everything that the seed draws.
//!
//! ```text
//!   woken tasks ──> runnable ──(drawn by seed)──> poll ──┐
//!        ^                                               │  nothing runnable: time jumps to the next timer
//!        └──────────────── timers (moment, tie by seed) <┘
//! ```
//!
//! Every task and timer belongs to a *process*. A dead process's tasks are gone, and what was to happen to it does
//! not; a paused one's wait until it resumes. Only the world's driver, between polls, kills, pauses and resumes.

mod clock;
mod env;
mod tasks;
#[cfg(test)]
mod tests;
mod timers;

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use milonga_protocol::{BoxFuture, SharedEnv, Task, Time};

use crate::world::panics;
use crate::world::rng::Rng;
use crate::world::trace::{Moment, Trace};
use clock::{Clock, NOMINAL};
use env::WorldEnv;
use tasks::{TaskId, Tasks};
use timers::{Action, Timer, TimerKey, Timers};

/// So many polls without any progress of time are an endless loop.
const MOST_POLLS: u64 = 2_000_000;

/// One run of one process: a restarted process has a new number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// In which order runnable tasks run. Swarm: bugs differ in the order they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// First woken, first run.
    Fifo,
    /// Last woken, first run.
    Lifo,
    /// Drawn.
    Random,
}

/// Why a run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// Product code panicked.
    Panicked {
        /// Process and task.
        task: String,
        /// The panic's words.
        message: String,
    },
    /// Tasks keep each other busy without end.
    Runaway {
        /// Process and task polled last.
        task: String,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { task, message } => write!(f, "{task} panicked: {message}"),
            Self::Runaway { task } => {
                write!(
                    f,
                    "{task} was polled {MOST_POLLS} times while no time passed"
                )
            }
        }
    }
}

/// The executor; clones share it.
#[derive(Clone)]
pub struct Executor(Arc<Mutex<State>>);

pub(crate) struct State {
    now: Moment,
    order: Order,
    /// Most nanoseconds that a sleeper is woken late.
    lateness: u64,
    rng: Rng,
    tasks: Tasks,
    runnable: VecDeque<TaskId>,
    timers: Timers,
    processes: Vec<Process>,
    /// Futures of stopped tasks: dropped between polls, when nobody holds a lock.
    doomed: Vec<BoxFuture<'static, ()>>,
    trace: Trace,
    /// Since time last moved.
    polls: u64,
}

struct Process {
    name: Arc<str>,
    life: Life,
    clock: Clock,
    rng: Rng,
    held_tasks: Vec<TaskId>,
    held_actions: Vec<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Paused,
    Dead,
}

/// What the executor itself adds to the trace.
#[derive(Hash)]
enum Step {
    Poll(TaskId),
    Timer(ProcessId),
    Spawn(ProcessId, &'static str),
}

impl Executor {
    /// An executor without processes.
    #[must_use]
    pub fn new(seed: u64, order: Order, lateness: Duration, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Moment::default(),
            order,
            lateness: u64::try_from(lateness.as_nanos()).unwrap_or(u64::MAX),
            rng: Rng::new(seed, "executor"),
            tasks: Tasks::default(),
            runnable: VecDeque::new(),
            timers: Timers::default(),
            processes: Vec::new(),
            doomed: Vec::new(),
            trace,
            polls: 0,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world's time.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.lock().now
    }

    /// Starts a process whose clock shows `shown` now and runs at `rate` millionths of the world's.
    #[must_use]
    pub fn start(&self, seed: u64, name: &str, shown: Duration, rate: u64) -> ProcessId {
        let mut state = self.lock();
        let id = ProcessId(u32::try_from(state.processes.len()).expect("far fewer processes"));
        let clock = Clock::new(state.now, shown, rate);
        state.processes.push(Process {
            name: name.into(),
            life: Life::Running,
            clock,
            rng: Rng::new(seed, &format!("{name} {}", id.0)),
            held_tasks: Vec::new(),
            held_actions: Vec::new(),
        });
        id
    }

    /// What a process sees.
    #[must_use]
    pub fn env(&self, process: ProcessId) -> SharedEnv {
        WorldEnv::shared(self, process)
    }

    /// Whether the process has not been killed.
    #[must_use]
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.lock().process(process).life != Life::Dead
    }

    /// Adds an event to the trace.
    pub fn trace(&self, event: &(impl Hash + fmt::Debug)) {
        let state = &mut *self.lock();
        state.trace.event(state.now, event);
    }

    /// Looks at the trace.
    pub fn with_trace<T>(&self, look: impl FnOnce(&mut Trace) -> T) -> T {
        look(&mut self.lock().trace)
    }

    /// Does `action` to `process` at `at`; never if it is dead by then, later if it is paused.
    pub fn schedule(&self, at: Moment, process: ProcessId, action: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        if state.process(process).life == Life::Dead {
            // Not under the lock: what the action holds may want it.
            drop(state);
            drop(action);
            return;
        }
        let action = Action::Call(Box::new(action));
        state.insert(at, Timer { process, action });
    }

    /// Runs `future` in `process` until it ends or the task is dropped.
    pub fn spawn(
        &self,
        process: ProcessId,
        name: &'static str,
        future: BoxFuture<'static, ()>,
    ) -> Task {
        let mut state = self.lock();
        if state.process(process).life == Life::Dead {
            drop(state);
            drop(future);
            return Task::new(|| ());
        }
        let now = state.now;
        state.trace.quiet(now, &Step::Spawn(process, name));
        let id = state.tasks.insert(process, name, future);
        let executor = self.clone();
        Task::new(move || executor.stop(id))
    }

    fn stop(&self, id: TaskId) {
        let mut state = self.lock();
        if let Some(task) = state.tasks.remove(id) {
            state.doomed.extend(task.future);
        }
    }

    /// Kills a process: nothing of it runs any more, not even until its next await.
    pub fn kill(&self, process: ProcessId) {
        let (tasks, actions, timers) = {
            let mut state = self.lock();
            let dead = state.process_mut(process);
            dead.life = Life::Dead;
            dead.held_tasks.clear();
            let actions = std::mem::take(&mut dead.held_actions);
            let timers = state.timers.take(|timer| timer.process == process);
            (state.tasks.remove_all(process), actions, timers)
        };
        // Not under the lock: what they hold may want it when it is dropped.
        drop(tasks);
        drop(actions);
        drop(timers);
        self.bury();
    }

    /// Stops a process where it is, as SIGSTOP does.
    pub fn pause(&self, process: ProcessId) {
        let mut state = self.lock();
        let process = state.process_mut(process);
        if process.life == Life::Running {
            process.life = Life::Paused;
        }
    }

    /// Lets a paused process go on.
    pub fn resume(&self, process: ProcessId) {
        let mut state = self.lock();
        let paused = state.process_mut(process);
        if paused.life != Life::Paused {
            return;
        }
        paused.life = Life::Running;
        let tasks = std::mem::take(&mut paused.held_tasks);
        let actions = std::mem::take(&mut paused.held_actions);
        state.runnable.extend(tasks);
        let now = state.now;
        for action in actions {
            state.insert(now, Timer { process, action });
        }
    }

    /// Lets a process's clock jump forward and go on at another rate.
    pub fn change_clock(&self, process: ProcessId, jump: Duration, rate: u64) {
        let sleepers = {
            let mut state = self.lock();
            let now = state.now;
            state.process_mut(process).clock.change(now, jump, rate);
            let is_sleeper =
                |t: &Timer| t.process == process && matches!(t.action, Action::Wake(_));
            state.timers.take(is_sleeper)
        };
        // They look at the clock, and sleep on if it is too early.
        for timer in sleepers {
            if let Action::Wake(waker) = timer.action {
                waker.wake();
            }
        }
    }

    /// Lets a process's clock run as it should.
    pub fn heal_clock(&self, process: ProcessId) {
        self.change_clock(process, Duration::ZERO, NOMINAL);
    }

    /// Runs everything that happens until `until`.
    ///
    /// # Errors
    /// [`RunError`]: the run cannot go on.
    pub fn run_until(&self, until: Moment) -> Result<(), RunError> {
        loop {
            self.bury();
            let drawn = self.lock().draw();
            if let Some((id, future, waker)) = drawn {
                self.poll(id, future, &waker)?;
                continue;
            }
            let Some(action) = self.lock().advance(until) else {
                return Ok(());
            };
            match action {
                Action::Wake(waker) => waker.wake(),
                Action::Call(call) => self.guard(call)?,
            }
        }
    }

    fn poll(
        &self,
        id: TaskId,
        mut future: BoxFuture<'static, ()>,
        waker: &Waker,
    ) -> Result<(), RunError> {
        let mut cx = Context::from_waker(waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)));
        let mut state = self.lock();
        let Some(task) = state.tasks.get(id) else {
            drop(state);
            return match polled {
                Ok(_) => self.guard(move || drop(future)),
                Err(panic) => Err(panicked("a stopped task".into(), &*panic)),
            };
        };
        let process = task.process;
        match polled {
            Ok(Poll::Pending) => task.future = Some(future),
            Ok(Poll::Ready(())) => {
                let task = state.tasks.remove(id);
                drop(state);
                drop(task);
                return self.guard(move || drop(future));
            }
            Err(panic) => {
                let name = task.name;
                let task = format!("{} ({name})", state.process(process).name);
                return Err(panicked(task, &*panic));
            }
        }
        if state.polls > MOST_POLLS {
            let name = state.tasks.get(id).map_or("?", |task| task.name);
            let task = format!("{} ({name})", state.process(process).name);
            return Err(RunError::Runaway { task });
        }
        Ok(())
    }

    /// Calls product code that is no task.
    fn guard(&self, call: impl FnOnce()) -> Result<(), RunError> {
        catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
            let at = format!("something at {}", self.now());
            panicked(at, &*panic)
        })
    }

    /// Drops the futures of stopped tasks, and of those that are stopped by that.
    fn bury(&self) {
        loop {
            let doomed = std::mem::take(&mut self.lock().doomed);
            if doomed.is_empty() {
                return;
            }
            drop(doomed);
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Executor({})", self.now())
    }
}

impl State {
    fn process(&self, id: ProcessId) -> &Process {
        &self.processes[id.0 as usize]
    }

    fn process_mut(&mut self, id: ProcessId) -> &mut Process {
        &mut self.processes[id.0 as usize]
    }

    pub(crate) fn time_of(&self, process: ProcessId) -> Time {
        self.process(process).clock.read(self.now)
    }

    pub(crate) fn random_of(&mut self, process: ProcessId) -> u64 {
        self.process_mut(process).rng.next()
    }

    /// Sets a timer for a sleeper.
    pub(crate) fn arm(&mut self, process: ProcessId, deadline: Time, waker: Waker) -> TimerKey {
        let late = self.rng.below(self.lateness + 1);
        let at = self.process(process).clock.when(deadline).plus(late);
        let action = Action::Wake(waker);
        self.insert(at, Timer { process, action })
    }

    /// Whether the timer is still there; it then wakes `waker`.
    pub(crate) fn rearm(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.timers.get(key) {
            Some(timer) => {
                if let Action::Wake(old) = &mut timer.action {
                    old.clone_from(waker);
                }
                true
            }
            None => false,
        }
    }

    pub(crate) fn disarm(&mut self, key: TimerKey) -> Option<Timer> {
        self.timers.remove(key)
    }

    fn insert(&mut self, at: Moment, timer: Timer) -> TimerKey {
        let tie = u32::try_from(self.rng.next() >> 32).expect("32 bits");
        self.timers.insert(at.max(self.now), tie, timer)
    }

    /// The next task to poll.
    fn draw(&mut self) -> Option<(TaskId, BoxFuture<'static, ()>, Waker)> {
        let mut woken = Vec::new();
        self.tasks.take_woken(&mut woken);
        self.runnable.extend(woken);
        loop {
            let id = match self.order {
                Order::Fifo => self.runnable.pop_front(),
                Order::Lifo => self.runnable.pop_back(),
                Order::Random => {
                    let drawn = self.rng.index(self.runnable.len());
                    self.runnable.swap_remove_back(drawn)
                }
            }?;
            let Some(task) = self.tasks.get(id) else {
                continue;
            };
            let process = task.process;
            if self.process(process).life == Life::Paused {
                self.process_mut(process).held_tasks.push(id);
                continue;
            }
            self.polls += 1;
            self.trace.quiet(self.now, &Step::Poll(id));
            let task = self.tasks.get(id)?;
            let future = task.future.take().expect("not being polled");
            return Some((id, future, task.waker.begin()));
        }
    }

    /// Moves time to the next timer, if that is not after `until`, and takes it out.
    fn advance(&mut self, until: Moment) -> Option<Action> {
        loop {
            let Some(at) = self.timers.first().filter(|at| *at <= until) else {
                self.now = self.now.max(until);
                self.polls = 0;
                return None;
            };
            if at > self.now {
                self.now = at;
                self.polls = 0;
            }
            let timer = self.timers.pop()?;
            self.trace.quiet(self.now, &Step::Timer(timer.process));
            let process = self.process_mut(timer.process);
            match process.life {
                Life::Running => return Some(timer.action),
                Life::Paused => process.held_actions.push(timer.action),
                Life::Dead => unreachable!("a dead process has no timers"),
            }
        }
    }
}

fn panicked(task: String, panic: &(dyn Any + Send)) -> RunError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let message = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = message.unwrap_or("(no text)");
    let message = match panics::last_place() {
        Some(place) => format!("{message} at {place}"),
        None => message.to_owned(),
    };
    RunError::Panicked { task, message }
}
