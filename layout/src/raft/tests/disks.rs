//! What the members' stores run on.

use std::time::Duration;

use milonga_protocol::Task;
use tokio::sync::mpsc;

use super::*;

/// A disk that takes its time. What it has not begun when its task is dropped is lost, as when the power goes.
pub(super) struct SlowDisk(mpsc::UnboundedSender<RaftJob>);

impl SlowDisk {
    pub(super) fn new(env: &SharedEnv) -> (Self, Task) {
        let (sender, mut jobs) = mpsc::unbounded_channel::<RaftJob>();
        let clock = Arc::clone(env);
        let serve = async move {
            while let Some(job) = jobs.recv().await {
                let sync = Duration::from_micros(clock.random() % 8_000);
                clock.sleep(sync).await;
                job();
            }
        };
        (Self(sender), env.spawn("disk", Box::pin(serve)))
    }
}

impl RaftDisk for SlowDisk {
    fn run(&self, job: RaftJob) {
        // Without power the job is dropped.
        let _ = self.0.send(job);
    }
}

/// Jobs on a thread that ends with the last handle.
pub(super) struct DiskThread(std::sync::mpsc::Sender<RaftJob>);

impl DiskThread {
    pub(super) fn new() -> Self {
        let (sender, jobs) = std::sync::mpsc::channel::<RaftJob>();
        let serve = move || jobs.into_iter().for_each(|job| job());
        std::thread::Builder::new().spawn(serve).unwrap();
        Self(sender)
    }
}

impl RaftDisk for DiskThread {
    fn run(&self, job: RaftJob) {
        self.0.send(job).unwrap();
    }
}
