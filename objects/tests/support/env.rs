// An environment on tokio for tests and doctests, which reach nothing but this crate and the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use milonga_protocol::{BoxFuture, Env, SharedEnv, Task, Time};

/// Tokio's clock (real or paused) and tasks, and random bits from a seed.
pub(crate) struct TestEnv {
    start: tokio::time::Instant,
    random: AtomicU64,
}

impl TestEnv {
    /// An environment of the current runtime.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is an environment: product code asks it instead"
    )]
    pub(crate) fn seeded(seed: u64) -> SharedEnv {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
            random: AtomicU64::new(seed),
        })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is an environment: product code asks it instead"
)]
impl Env for TestEnv {
    fn now(&self) -> Time {
        Time::from_start(self.start.elapsed())
    }

    fn wall_clock(&self) -> Duration {
        self.now().since_start()
    }

    fn sleep_until(&self, deadline: Time) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(
            self.start + deadline.since_start(),
        ))
    }

    fn random(&self) -> u64 {
        // SplitMix64.
        let step = 0x9e37_79b9_7f4a_7c15;
        let mut z = self
            .random
            .fetch_add(step, Ordering::Relaxed)
            .wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn spawn(&self, _: &'static str, future: BoxFuture<'static, ()>) -> Task {
        let task = tokio::spawn(future);
        Task::new(move || task.abort())
    }
}

/// Runs an example.
pub(crate) fn run<F>(example: F)
where
    F: AsyncFnOnce(SharedEnv) -> Result<(), Box<dyn std::error::Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime
        .block_on(async { example(TestEnv::seeded(1)).await })
        .expect("the example");
}
