//! The job itself: what producer and workers do with the objects. The same on an embedded log and on a cluster.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milonga::{Counter, Map, Milonga, Outcome, Queue, TransactionError, Tx};
use serde::{Deserialize, Serialize};

use crate::compare::Found;
use crate::control::{Package, Place};
use crate::input;
use crate::say;

/// Anything that went wrong on the way.
pub(crate) type Fault = Box<dyn Error + Send + Sync>;

/// Bytes of stanzas that one transaction pushes at most, beyond the first.
const BATCH_BYTES: usize = 128 << 10;
/// How often an error that may pass is borne before it is given up.
const PATIENCE: u32 = 3;
/// Key of the only producer's progress.
const PRODUCER: &str = "producer";

/// A stanza on its way through the queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Item {
    line: u64,
    text: String,
}

/// What the map `packages` holds for a name and an architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Indexed {
    version: String,
    section: String,
    line: u64,
}

/// How far the producer is. It moves in the transaction that pushes what it moved over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    fingerprint: u64,
    stanzas: u64,
    offset: u64,
    line: u64,
    is_done: bool,
}

/// Both ways of an edge: `(DEPENDS, package, name)` and `(NEEDED, name, package)`.
type Edge = (u8, String, String);
const DEPENDS: u8 = 0;
const NEEDED: u8 = 1;

/// What a task does, as it does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A transaction is about to commit.
    InFlight { task: u32, line: u64, what: String },
    /// It ended, after so many runs; so many stanzas were done by it.
    Ended { task: u32, runs: u64, stanzas: u64 },
}

/// Who is told.
pub(crate) type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// The opened objects.
pub(crate) struct Job {
    milonga: Milonga,
    queue: Queue<Item>,
    packages: Map<(String, String), Indexed>,
    edges: Map<Edge, ()>,
    total: Counter,
    progress: Map<String, Progress>,
    sections: Mutex<BTreeMap<String, Counter>>,
}

/// What the producer is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Production {
    /// The input's, so that one log never takes two inputs.
    pub(crate) fingerprint: u64,
    /// Stanzas of one transaction.
    pub(crate) batch: usize,
    /// Stanzas in the queue above which it waits.
    pub(crate) backlog: u64,
}

impl Production {
    /// For an input of so many stanzas: the producer stays a little ahead of the workers, not more.
    pub(crate) fn new(fingerprint: u64, stanzas: u64) -> Self {
        let batch = usize::try_from(stanzas / 64)
            .unwrap_or(usize::MAX)
            .clamp(1, 64);
        let backlog = (stanzas / 4).clamp(16, 4_096);
        Self {
            fingerprint,
            batch,
            backlog,
        }
    }
}

/// Why a worker's closure ends without a commit.
#[derive(Debug)]
enum Refusal {
    /// The section has no counter yet in this process.
    Section(String),
    Stanza(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Section(name) => write!(f, "the counter of section {name:?} is not open"),
            Self::Stanza(why) => write!(f, "a stanza in the queue is malformed: {why}"),
        }
    }
}

impl Error for Refusal {}

enum Step {
    Took,
    Nothing,
    AllDone,
}

impl Job {
    /// Opens or makes the objects.
    pub(crate) async fn open(milonga: Milonga) -> Result<Self, Fault> {
        Ok(Self {
            queue: milonga.queue("stanzas").await?,
            packages: milonga.map("packages").await?,
            edges: milonga.map("edges").await?,
            total: milonga.counter("total").await?,
            progress: milonga.map("progress").await?,
            sections: Mutex::default(),
            milonga,
        })
    }

    /// Stanzas done so far.
    pub(crate) async fn done(&self) -> Result<u64, Fault> {
        Ok(u64::try_from(self.total.get().await?)?)
    }

    /// Refuses to go on with a log that holds the job of another input.
    pub(crate) async fn check_input(&self, fingerprint: u64) -> Result<(), Fault> {
        match self.progress.get(PRODUCER).await? {
            Some(progress) if progress.fingerprint != fingerprint => {
                Err("the directory holds the work of another input; pass another --dir".into())
            }
            _ => Ok(()),
        }
    }

    /// Flushes and closes the log.
    pub(crate) async fn close(&self) -> Result<(), Fault> {
        Ok(self.milonga.close().await?)
    }

    fn section(&self, name: &str) -> Option<Counter> {
        let sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        sections.get(name).cloned()
    }

    async fn open_section(&self, name: String) -> Result<(), Fault> {
        let counter = self.milonga.counter(&format!("section/{name}")).await?;
        self.sections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, counter);
        Ok(())
    }
}

/// Pushes every stanza of the file at `path`, going on where the log says that a producer has come.
pub(crate) async fn produce(
    job: &Job,
    path: &Path,
    production: Production,
    observe: &Observer,
) -> Result<(), Fault> {
    let mut failures = 0;
    loop {
        match produce_from_progress(job, path, production, observe).await {
            Ok(()) => return Ok(()),
            // Whether the last push took effect or not: the progress in the log knows.
            Err(fault) if failures < PATIENCE => {
                failures += 1;
                say::note(format_args!(
                    "producer: {fault}; going on from the recorded progress"
                ));
            }
            Err(fault) => return Err(fault),
        }
    }
}

async fn produce_from_progress(
    job: &Job,
    path: &Path,
    production: Production,
    observe: &Observer,
) -> Result<(), Fault> {
    let fingerprint = production.fingerprint;
    let start = Progress {
        fingerprint,
        ..Progress::default()
    };
    let mut progress = job.progress.get(PRODUCER).await?.unwrap_or(start);
    let mut reader = input::resume(
        path,
        Place {
            offset: progress.offset,
            line: progress.line,
        },
    )?;
    while !progress.is_done {
        while job.queue.len().await? as u64 > production.backlog {
            pause(Duration::from_millis(5)).await;
        }
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut next = progress;
        while items.len() < production.batch && bytes < BATCH_BYTES {
            let Some(stanza) = reader.next_stanza()? else {
                next.is_done = true;
                break;
            };
            // Malformed stanzas were told of before.
            let Ok(stanza) = stanza else { continue };
            bytes += stanza.text.len();
            items.push(Item {
                line: stanza.line,
                text: stanza.text,
            });
        }
        next.stanzas += items.len() as u64;
        (next.offset, next.line) = (reader.place().offset, reader.place().line);
        if !push(job, items, progress, next, observe).await? {
            return Err("another producer has moved on".into());
        }
        progress = next;
    }
    Ok(())
}

/// Pushes and moves the progress, both or neither; `false` if the progress is not where this producer left it.
async fn push(
    job: &Job,
    items: Vec<Item>,
    from: Progress,
    to: Progress,
    observe: &Observer,
) -> Result<bool, Fault> {
    let runs = AtomicU64::new(0);
    let (runs, items) = (&runs, &items);
    let outcome = job
        .milonga
        .transaction(async |tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            if tx
                .get(&job.progress, PRODUCER)
                .is_some_and(|now| now != from)
            {
                return Ok::<_, Infallible>(false);
            }
            for item in items {
                tx.push(&job.queue, item.clone());
            }
            tx.insert(&job.progress, PRODUCER.to_owned(), to);
            observe(Event::InFlight {
                task: 0,
                line: items.first().map_or(to.line, |item| item.line),
                what: format!(
                    "push of {} stanzas, progress {} to {}",
                    items.len(),
                    from.stanzas,
                    to.stanzas
                ),
            });
            Ok(true)
        })
        .await;
    observe(Event::Ended {
        task: 0,
        runs: runs.load(Ordering::Relaxed),
        stanzas: 0,
    });
    match outcome? {
        Outcome::Committed { value, .. } => Ok(value),
        conflict => Err(format!("the push met {conflict:?}").into()),
    }
}

/// Takes stanzas from the queue until the producer is done and the queue empty.
pub(crate) async fn work(job: &Job, task: u32, observe: &Observer) -> Result<(), Fault> {
    let mut failures = 0;
    loop {
        match take_one(job, task, observe).await {
            Ok(Step::AllDone) => return Ok(()),
            Ok(Step::Took) => failures = 0,
            Ok(Step::Nothing) => pause(Duration::from_millis(10)).await,
            // Whether the transaction took effect or not: its stanza is in the queue if and only if it did not.
            Err(fault) if failures < PATIENCE => {
                failures += 1;
                say::note(format_args!("worker {task}: {fault}; going on"));
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// One stanza, in one transaction.
async fn take_one(job: &Job, task: u32, observe: &Observer) -> Result<Step, Fault> {
    let runs = AtomicU64::new(0);
    let runs = &runs;
    let outcome = job
        .milonga
        .transaction(async |tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            let Some(item) = tx.pop(&job.queue) else {
                let progress = tx.get(&job.progress, PRODUCER);
                let all_done = progress.is_some_and(|progress| progress.is_done);
                return Ok(if all_done {
                    Step::AllDone
                } else {
                    Step::Nothing
                });
            };
            let line = item.line;
            let what = index(job, tx, &item)?;
            observe(Event::InFlight { task, line, what });
            Ok(Step::Took)
        })
        .await;
    let (attempted, stanzas) = match &outcome {
        Ok(Outcome::Committed {
            value: Step::Took, ..
        }) => (true, 1),
        // A look at an empty queue and a closure that lacks a counter are no attempts.
        Ok(Outcome::Committed { .. }) | Err(TransactionError::Closure(_)) => (false, 0),
        _ => (true, 0),
    };
    let runs = runs.load(Ordering::Relaxed) - u64::from(!attempted);
    if runs > 0 {
        observe(Event::Ended {
            task,
            runs,
            stanzas,
        });
    }
    match outcome {
        Ok(Outcome::Committed { value, .. }) => Ok(value),
        // Others were faster, again and again: to the back of the crowd.
        Ok(_) => Ok(Step::Nothing),
        Err(TransactionError::Closure(Refusal::Section(name))) => {
            job.open_section(name).await?;
            Ok(Step::Took)
        }
        Err(TransactionError::Closure(refusal)) => Err(refusal.into()),
        Err(error) => Err(error.into()),
    }
}

/// Enters a stanza into every object; says what that is. It never looks whether a key is already there: that the
/// stanza was still in the queue is all it needs to know.
fn index(job: &Job, tx: &mut Tx, item: &Item) -> Result<String, Refusal> {
    let package = Package::parse(&item.text).map_err(|fault| Refusal::Stanza(fault.why))?;
    let Some(section) = job.section(&package.section) else {
        return Err(Refusal::Section(package.section));
    };
    let what = format!(
        "pop, package {} {}, {} edges both ways, section/{} and total",
        package.name,
        package.architecture,
        package.dependencies.len(),
        package.section,
    );
    let indexed = Indexed {
        version: package.version,
        section: package.section,
        line: item.line,
    };
    let key = (package.name.clone(), package.architecture);
    tx.insert(&job.packages, key, indexed);
    for name in package.dependencies {
        let there = (DEPENDS, package.name.clone(), name.clone());
        tx.insert(&job.edges, there, ());
        tx.insert(&job.edges, (NEEDED, name, package.name.clone()), ());
    }
    tx.add(&section, 1);
    tx.add(&job.total, 1);
    Ok(what)
}

/// Reads everything the objects hold, through the objects.
pub(crate) async fn look(job: &Job) -> Result<Found, Fault> {
    let mut found = Found {
        total: job.total.get().await?,
        queued: job.queue.len().await? as u64,
        ..Found::default()
    };
    for object in job.milonga.directory().await? {
        if let Some(section) = object.name.strip_prefix("section/") {
            let counter = job.milonga.counter(&object.name).await?;
            found
                .sections
                .insert(section.to_owned(), counter.get().await?);
        }
    }
    for (key, indexed) in job.packages.entries().await? {
        found.packages.insert(key, indexed.version);
    }
    for ((way, from, to), ()) in job.edges.entries().await? {
        let edges = if way == DEPENDS {
            &mut found.edges
        } else {
            &mut found.needed_by
        };
        edges.insert((from, to));
    }
    Ok(found)
}

/// Waits.
#[expect(
    clippy::disallowed_methods,
    reason = "an application lives in real time; only the product must not"
)]
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
