//! The job on an embedded log: producer and workers are tasks of this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use milonga::Milonga;
use tokio::task::JoinSet;

use crate::bar::{Bar, Clock};
use crate::compare::Found;
use crate::input::{Checked, Input};
use crate::job::{Event, Fault, Job, Observer, Production, look, produce, work};
use crate::report::Work;

/// Does the whole job with so many workers.
pub(crate) async fn run(
    input: &Input,
    checked: Checked,
    dir: &Path,
    workers: u32,
) -> Result<(Found, Work), Fault> {
    let job = Arc::new(Job::open(Milonga::embedded(dir).await?).await?);
    job.check_input(checked.fingerprint).await?;
    let clock = Clock::start();
    let bar = Bar::new(checked.stanzas, job.done().await?);
    let tally = Arc::new(Tally::default());
    let observe: Observer = {
        let (bar, tally) = (bar.clone(), Arc::clone(&tally));
        Arc::new(move |event| {
            if let Event::Ended { runs, stanzas, .. } = event {
                bar.add(stanzas);
                tally.add(runs, stanzas);
            }
        })
    };
    let mut tasks = JoinSet::new();
    for task in 1..=workers {
        let (job, observe) = (Arc::clone(&job), Arc::clone(&observe));
        tasks.spawn(async move { work(&job, task, &observe).await });
    }
    let (producer, path) = (Arc::clone(&job), input.path.clone());
    let production = Production::new(checked.fingerprint, checked.stanzas);
    let silent: Observer = Arc::new(|_| {});
    tasks.spawn(async move { produce(&producer, &path, production, &silent).await });
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let took = clock.elapsed();
    bar.finish();
    let found = look(&job).await?;
    job.close().await?;
    let (committed, runs) = tally.get();
    Ok((
        found,
        Work {
            committed,
            runs,
            took,
            kills: Vec::new(),
        },
    ))
}

#[derive(Default)]
struct Tally {
    committed: AtomicU64,
    runs: AtomicU64,
}

impl Tally {
    fn add(&self, runs: u64, committed: u64) {
        self.committed.fetch_add(committed, Ordering::Relaxed);
        self.runs.fetch_add(runs, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64) {
        (
            self.committed.load(Ordering::Relaxed),
            self.runs.load(Ordering::Relaxed),
        )
    }
}
