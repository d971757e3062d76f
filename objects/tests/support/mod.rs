//! What the tests of this crate share.

#![expect(dead_code, reason = "each test binary uses a part")]

pub(crate) mod env;

use std::sync::Arc;
use std::time::Duration;

use milonga_objects::{Replica, ReplicaOptions};
use milonga_protocol::{MemoryLog, WriterId};

pub(crate) use env::TestEnv;

/// A replica of its own writer over `log`.
pub(crate) fn replica(log: &MemoryLog, writer: u64) -> Replica {
    replica_with(log, writer, ReplicaOptions::default())
}

/// The same with options.
pub(crate) fn replica_with(log: &MemoryLog, writer: u64, options: ReplicaOptions) -> Replica {
    let handle = log.handle(WriterId(u128::from(writer) << 96));
    Replica::start(TestEnv::seeded(writer), handle, options)
}

/// Options with a short deadline.
pub(crate) fn short() -> ReplicaOptions {
    let mut options = ReplicaOptions::default();
    options.deadline = Duration::from_millis(200);
    options
}

/// Every call of the log takes up to 10 ms (tokio's timers tick in milliseconds), so that calls overtake each other.
pub(crate) fn jitter(log: &MemoryLog, seed: u64) {
    let env = TestEnv::seeded(seed);
    log.set_gate(Some(Arc::new(move |_| {
        let pause = Duration::from_millis(env.random() % 10);
        env.sleep(pause)
    })));
}

/// Lets everything run that can.
pub(crate) async fn settle_down() {
    pause(200).await;
}

/// Lets time pass.
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits on tokio's paused clock"
)]
pub(crate) async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Spawns a task of the test.
#[expect(clippy::disallowed_methods, reason = "the test's own tasks")]
pub(crate) fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}
