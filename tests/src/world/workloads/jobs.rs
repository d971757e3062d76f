//! Exactly-once processing: producers push, workers pop in a transaction and note what they did. Nothing is lost,
//! nothing is done twice.

use std::sync::atomic::{AtomicBool, Ordering};

use milonga_objects::{Counter, Map, Queue, QueueOp, QueueState};
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Steps, key_of, live, op_bytes, state_of};
use crate::world::history::{Cell, History, Query, Value, mark};
use crate::world::witness::{self, Model, Rule, World};
use crate::world::workload::{Client, Invariant, Workload};

/// A queue of jobs, a map of those done and their number; and a queue for blocking pops.
#[derive(Debug, Default)]
pub struct Jobs(History);

impl Workload for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, task| {
            Box::pin(work(hand, task))
        }))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        witness::invariants(&self.0, Some(law))
    }
}

/// As many are counted as were done.
fn law(world: &World) -> Result<(), String> {
    let (Some(Model::Map(done)), Some(Model::Counter(count))) =
        (world.model("done"), world.model("count"))
    else {
        return Ok(());
    };
    if i64::try_from(done.len()) != Ok(*count) {
        return Err(format!("{count} counted, {} done", done.len()));
    }
    let Some(Model::Queue(jobs)) = world.model("jobs") else {
        return Ok(());
    };
    match jobs.values().find(|job| done.contains_key(job)) {
        Some(job) => Err(format!("job {job} is done and waits")),
        None => Ok(()),
    }
}

struct Open {
    hand: Hand,
    jobs: Queue<u64>,
    done: Map<u64, Cell>,
    count: Counter,
    calls: Queue<u64>,
}

async fn work(hand: Hand, task: u64) {
    let open = Open {
        jobs: hand.queue("jobs").await,
        done: hand.map("done").await,
        count: hand.counter("count").await,
        calls: hand.queue("calls").await,
        hand,
    };
    while !open.hand.client.is_over() {
        open.one(task).await;
        open.hand.client.rest().await;
    }
    // What is left is done: by everybody, as there may be few.
    while !open.push(&open.jobs).await {}
    while !open.push(&open.calls).await {}
    while !open.hand.pop(&open.calls, false).await {}
    while !open.is_drained().await {
        open.process().await;
    }
}

impl Open {
    async fn one(&self, task: u64) {
        match (self.hand.below(8), task % 2) {
            (0..2, _) | (2..5, 0) => self.push(&self.jobs).await,
            (2..6, _) => self.process().await,
            (6, _) => self.call().await,
            _ => self.look().await,
        };
    }

    async fn push(&self, queue: &Queue<u64>) -> bool {
        let item = mark(self.hand.history.next_call(), 0);
        let op = op_bytes(&QueueOp::Push(item));
        let push = queue.push(item);
        self.hand.change(queue, op, push, |key| key_of(&key)).await
    }

    /// Pushes, and pops whatever comes first: it may be another's, so one of them may have to wait for the next push.
    async fn call(&self) -> bool {
        self.push(&self.calls).await && self.hand.pop(&self.calls, self.hand.below(2) == 0).await
    }

    async fn process(&self) -> bool {
        let (jobs, done, count) = (self.jobs.clone(), self.done.clone(), self.count.clone());
        let history = self.hand.history.clone();
        let process = move |tx: &mut Steps<'_>| {
            let Some(job) = tx.pop(&jobs) else {
                return;
            };
            if let Some(before) = tx.get(&done, job) {
                history.complain(Rule::Laws, format!("job {job} was done before: {before:?}"));
            }
            tx.insert(&done, job, 1);
            tx.add(&count, 1);
        };
        self.hand.transaction(process).await
    }

    async fn look(&self) -> bool {
        let look = |seen: &_| {
            let all = [
                state_of(seen, &self.jobs),
                state_of(seen, &self.done),
                state_of(seen, &self.count),
                state_of(seen, &self.calls),
            ];
            all.into_iter().flatten().collect()
        };
        self.hand.snapshot(look).await
    }

    async fn is_drained(&self) -> bool {
        let empty = AtomicBool::new(false);
        let read = |jobs: &QueueState<u64>| {
            empty.store(jobs.is_empty(), Ordering::Relaxed);
            Value::Bool(jobs.is_empty())
        };
        self.hand.read(&self.jobs, Query::IsEmpty, read).await && empty.load(Ordering::Relaxed)
    }
}
