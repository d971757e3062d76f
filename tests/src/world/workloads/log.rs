//! Everything that the log can, all at once: appends to several streams, reads of positions, followers, tail checks,
//! settling and trimming, with futures dropped at any await point; and an audit of all replicas at the end.

mod audit;
mod steps;

use std::sync::Arc;

use milonga_client::LogClient;
use milonga_protocol::{BoxFuture, Position, StreamId};

use crate::world::invariants::Reached;
use crate::world::workload::{Client, Invariant, Workload};

/// See the file's head.
#[derive(Clone, Copy, Debug)]
pub struct WholeLog;

/// Which of the shared numbers is the first position above all acknowledged ones.
const HIGH: usize = 0;
/// Which of the shared numbers is the highest trim mark that anybody was told.
const TRIMMED: usize = 1;
/// Streams that are in use, from 1 on.
const STREAMS: u64 = 5;
/// Tasks of one client.
const TASKS: u64 = 3;

impl Workload for WholeLog {
    fn name(&self) -> &'static str {
        "whole log"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let log = client.connect().await;
            let mut done = Vec::new();
            let mut tasks = Vec::new();
            for task in 0..TASKS {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                let mut worker = Worker::new(&client, &log, task);
                tasks.push(client.spawn(Box::pin(async move {
                    worker.live().await;
                    let _ = sender.send(());
                })));
                done.push(receiver);
            }
            for done in done {
                let _ = done.await;
            }
            log.close().await;
        })
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        vec![Box::<Reached>::default()]
    }
}

/// One task of one client.
struct Worker {
    client: Client,
    log: Arc<LogClient>,
    task: u64,
    number: u64,
    /// What it follows.
    streams: Vec<StreamId>,
    /// Everything below was seen.
    from: Position,
    trims: bool,
    /// It goes on reading positions while the others wait for somebody whom this client does not reach.
    only_reads: bool,
}

impl Worker {
    fn new(client: &Client, log: &Arc<LogClient>, task: u64) -> Self {
        let streams = client.draw(|rng| {
            let mut streams: Vec<_> = (1..=STREAMS).filter(|_| rng.happens(400_000)).collect();
            if streams.is_empty() {
                streams.push(rng.between(1, STREAMS));
            }
            streams.into_iter().map(StreamId).collect()
        });
        let first = client.number() == 0 && task == 0;
        // Whoever comes back reads on from somewhere, as applications do that remember where they were.
        let from = match client.run() {
            0 => 0,
            _ => client.draw(|rng| rng.below(client.shared().get(HIGH))),
        };
        let from = Position(from.max(client.shared().get(TRIMMED)));
        Self {
            client: client.clone(),
            log: Arc::clone(log),
            task,
            number: 0,
            streams,
            from,
            trims: first && client.draw(|rng| rng.happens(500_000)),
            only_reads: task + 1 == TASKS && client.number() % 2 == 1,
        }
    }

    async fn live(&mut self) {
        while !self.client.is_over() {
            self.step().await;
            self.client.rest().await;
        }
        // In a healthy cluster everything works.
        while !self.append(None).await {}
        while !self.sync(None).await {}
        while !self.settle_all().await {}
        if self.client.number() == 0 && self.task == 0 {
            self.audit().await;
        }
    }

    /// Reads a part of its streams once more; rarely all of it.
    fn go_back(&mut self) {
        let by = self
            .client
            .draw(|rng| *rng.pick(&[20, 20, 200, 200, 1 << 20]));
        let trimmed = self.client.shared().get(TRIMMED);
        self.from = self.from.minus(by).max(Position(trimmed));
    }

    async fn step(&mut self) {
        let (what, drops) = self
            .client
            .draw(|rng| (rng.below(100), rng.happens(100_000)));
        let polls = self.client.draw(|rng| rng.between(1, 8));
        let polls = drops.then_some(polls);
        match what {
            _ if self.only_reads => self.read(polls).await,
            0..45 => {
                self.append(polls).await;
            }
            45..63 => self.read(polls).await,
            63..78 => {
                self.sync(polls).await;
            }
            78..88 => self.tail(polls).await,
            88..95 => self.follow(polls).await,
            95..98 => self.settle(polls).await,
            _ if self.trims => self.trim(polls).await,
            _ => self.go_back(),
        }
    }
}
