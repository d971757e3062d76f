//! The load: appends, one after the other in each of 64 tasks, and how long none was acknowledged.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use milonga::{Milonga, NewEntry};
use tokio::task::JoinSet;

use crate::AnyError;

const TASKS: u64 = 64;

/// Appends that go on until they are stopped.
pub(crate) struct Appends {
    pub(crate) done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    last: Arc<Mutex<(Instant, Duration)>>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), AnyError>>>,
}

impl Appends {
    pub(crate) fn start(milonga: &Milonga, bytes: usize) -> Self {
        let (done, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let last = Arc::new(Mutex::new((Instant::now(), Duration::ZERO)));
        let log = milonga.log();
        let tasks = (0..TASKS).map(|_| {
            let (log, done, stop) = (Arc::clone(&log), Arc::clone(&done), Arc::clone(&stop));
            let last = Arc::clone(&last);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let payload = Bytes::from(vec![0xAB; bytes]);
                    log.append(NewEntry::new(Vec::new(), payload)).await?;
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    last.1 = last.1.max(last.0.elapsed());
                    last.0 = Instant::now();
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Self {
            done,
            stop,
            last,
            tasks,
        }
    }

    /// The longest pause between two that were acknowledged, since it was asked last; the one that is under way counts as
    /// far as it is.
    pub(crate) fn longest(&self) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut last.1).max(last.0.elapsed())
    }

    pub(crate) async fn stop(self) -> Result<(), AnyError> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}

/// Appends all of these, many at once.
pub(crate) async fn fill(
    milonga: &Milonga,
    entries: impl Iterator<Item = NewEntry>,
) -> Result<(), AnyError> {
    let (log, mut under_way) = (milonga.log(), JoinSet::new());
    for entry in entries {
        if under_way.len() >= 256
            && let Some(done) = under_way.join_next().await
        {
            done??;
        }
        let log = Arc::clone(&log);
        under_way.spawn(async move { log.append(entry).await });
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(())
}
