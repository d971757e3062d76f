//! The real environment: tokio's clock and tasks, randomness of the operating system.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use milonga_protocol::env::{BoxFuture, Env, Task, Time};
use milonga_protocol::sync::Mutex;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::Instrument;

/// Longer than any process runs; keeps clock arithmetic away from overflow.
const FAR: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Clock, randomness and tasks of the tokio runtime it was made in, current-thread or multi-thread. Follows a
/// paused clock. Its futures and tasks work from any thread; they end with the runtime.
pub struct TokioEnv {
    runtime: Handle,
    start: Instant,
    sleep: Asleep,
    random: Mutex<Generator>,
}

/// There is no tokio runtime here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no tokio runtime here: call this from async code under tokio (`#[tokio::main]`, `#[tokio::test]`, \
     `Runtime::block_on`), or enter one first"
)]
pub struct NoRuntime;

impl TokioEnv {
    /// The environment of the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime; [`TokioEnv::try_new`] does not.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::try_new().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The environment of the current runtime.
    ///
    /// # Errors
    /// [`NoRuntime`] outside a tokio runtime.
    pub fn try_new() -> Result<Arc<Self>, NoRuntime> {
        let mut seed = [0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .expect("the operating system has randomness");
        Self::with(Generator::from_bytes(&seed), asleep)
    }

    /// The environment of the current runtime with reproducible randomness, for tests.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn seeded(seed: u64) -> Arc<Self> {
        Self::with(Generator::from_seed(seed), asleep).unwrap_or_else(|error| panic!("{error}"))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the clock that everybody else asks"
    )]
    fn with(random: Generator, asleep: fn() -> Duration) -> Result<Arc<Self>, NoRuntime> {
        let runtime = Handle::try_current().map_err(|_| NoRuntime)?;
        Ok(Arc::new(Self {
            runtime,
            start: Instant::now(),
            sleep: Asleep::since_now(asleep),
            random: Mutex::new(random),
        }))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the clock and the spawner that everybody else asks"
)]
impl Env for TokioEnv {
    fn now(&self) -> Time {
        let awake = Instant::now().saturating_duration_since(self.start);
        Time::from_start(awake + self.sleep.so_far())
    }

    fn wall_clock(&self) -> Duration {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since_1970.unwrap_or_default()
    }

    fn sleep_until(&self, deadline: Time) -> BoxFuture<'static, ()> {
        // The timer belongs to this runtime, whoever polls it. Its clock stands still while the machine sleeps: what is set
        // before fires as much later. Nobody relies on a timer to be in time.
        let _inside = self.runtime.enter();
        let awake = deadline.since_start().saturating_sub(self.sleep.known());
        let at = self.start + awake.min(FAR);
        Box::pin(tokio::time::sleep_until(at))
    }

    fn random(&self) -> u64 {
        self.random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next()
    }

    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Task {
        let span = tracing::trace_span!("task", name);
        let task = self.runtime.spawn(future.instrument(span));
        Task::new(move || task.abort())
    }
}

impl fmt::Debug for TokioEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokioEnv")
    }
}

/// How long the machine has been asleep since this was made. tokio's clock does not count that; leases need it (rule 20).
struct Asleep {
    /// How long the machine has been asleep since it was started, or less.
    read: fn() -> Duration,
    before: Duration,
    /// In milliseconds: two clocks are never read at the same moment.
    since: AtomicU64,
}

impl Asleep {
    fn since_now(read: fn() -> Duration) -> Self {
        // Whoever is interrupted between two clocks reads less than there is.
        let readings = std::array::from_fn::<_, 4, _>(|_| read());
        Self {
            read,
            before: readings.into_iter().max().unwrap_or_default(),
            since: AtomicU64::new(0),
        }
    }

    /// Never falls.
    fn so_far(&self) -> Duration {
        let now = (self.read)().saturating_sub(self.before).as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        if now > self.since.load(Ordering::Relaxed) {
            self.since.fetch_max(now, Ordering::Relaxed);
        }
        self.known()
    }

    /// As of the last time that somebody looked.
    fn known(&self) -> Duration {
        Duration::from_millis(self.since.load(Ordering::Relaxed))
    }
}

/// How long the machine has been asleep since it was started, or less.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn asleep() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order, so that what passes in between makes it less.
    let all = read(ClockId::Boottime);
    all.saturating_sub(read(ClockId::Monotonic))
}

/// Other systems' clocks are not known here: switch leases off on machines that sleep.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn asleep() -> Duration {
    Duration::ZERO
}

/// xoshiro256++: fast and uniform, not for secrets.
struct Generator([u64; 4]);

impl Generator {
    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, part) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(part.try_into().expect("chunks of 8"));
        }
        // The all-zero state would stay zero.
        words[0] |= 1;
        Self(words)
    }

    /// Spreads the seed over the state with splitmix64.
    fn from_seed(mut seed: u64) -> Self {
        Self(std::array::from_fn(|_| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use milonga_protocol::env::SharedEnv;

    use super::*;

    #[test]
    fn outside_a_runtime_the_error_says_what_to_do() {
        let error = TokioEnv::try_new().expect_err("no runtime");
        assert!(error.to_string().contains("tokio::main"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_a_paused_clock() {
        let env: SharedEnv = TokioEnv::seeded(1);
        let before = env.now();
        env.sleep(Duration::from_secs(3_600)).await;
        assert_eq!(env.now().since(before), Duration::from_secs(3_600));
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_machine_sleeps_time_passes() {
        static ASLEEP: AtomicU64 = AtomicU64::new(7_000);
        let read = || Duration::from_millis(ASLEEP.load(Ordering::Relaxed));
        let env: SharedEnv = TokioEnv::with(Generator::from_seed(1), read).expect("a runtime");
        let begin = env.now();
        let passed = || env.now().since(begin).as_millis();
        assert_eq!(passed(), 0, "what was before does not count");
        env.sleep(Duration::from_millis(100)).await;
        ASLEEP.store(8_000, Ordering::Relaxed);
        assert_eq!(passed(), 1_100);
        ASLEEP.store(7_500, Ordering::Relaxed);
        assert_eq!(passed(), 1_100, "whoever reads less goes not back");
        env.sleep(Duration::from_millis(100)).await;
        assert_eq!(passed(), 1_200, "timers count from what has passed");
    }

    #[test]
    fn timers_and_tasks_work_from_a_thread_without_a_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let env: SharedEnv = {
            let _inside = runtime.enter();
            TokioEnv::new()
        };
        let far = env.sleep_until(Time::from_start(Duration::MAX));
        drop(far);
        let (tx, rx) = std::sync::mpsc::channel();
        let sleep = env.sleep(Duration::from_millis(1));
        env.spawn(
            "test",
            Box::pin(async move {
                sleep.await;
                tx.send(()).expect("the test waits");
            }),
        )
        .detach();
        rx.recv().expect("the task ran");
    }

    #[tokio::test]
    async fn dropping_a_task_stops_it() {
        let env: SharedEnv = TokioEnv::new();
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        let task = env.spawn(
            "test",
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(tx);
            }),
        );
        drop(task);
        assert!(rx.await.is_err(), "its future was dropped");
    }

    #[tokio::test]
    async fn seeds_are_reproducible_and_the_system_is_not() {
        let draw = |env: Arc<TokioEnv>| (0..8).map(|_| env.random()).collect::<Vec<_>>();
        assert_eq!(draw(TokioEnv::seeded(7)), draw(TokioEnv::seeded(7)));
        assert_ne!(draw(TokioEnv::seeded(7)), draw(TokioEnv::seeded(8)));
        let many: BTreeSet<u64> = (0..1_000).map(|_| TokioEnv::new().random()).collect();
        assert_eq!(many.len(), 1_000);
    }
}
