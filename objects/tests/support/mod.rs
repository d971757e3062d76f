//! What the tests of this crate share.

#![expect(dead_code, reason = "each test binary uses a part")]

pub(crate) mod env;

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

/// Lets everything run that can.
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits on tokio's paused clock"
)]
pub(crate) async fn settle_down() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Spawns a task of the test.
#[expect(clippy::disallowed_methods, reason = "the test's own tasks")]
pub(crate) fn spawn<F>(task: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}
