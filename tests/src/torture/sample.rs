//! A sample for the witness: two clients of their own work with objects of their own, and everything they do is kept.
//!
//! The witness compares it with the entries of these two writers: nobody else writes to these objects.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_client::LogClient;
use milonga_objects::Replica;
use milonga_protocol::{Log as _, SharedEnv, WriterId};

use super::AnyError;
use super::cluster::Cluster;
use super::hand::Hand;
use super::objects::replica;
use crate::world::Rng;
use crate::world::history::History;

/// Short, so that outcomes are unknown now and then.
const DEADLINE: Duration = Duration::from_secs(2);
const TASKS: usize = 2;
/// Between two calls of one task, in milliseconds, on average.
const REST_MS: u64 = 80;
/// Longer runs rest longer, so that the sample stays as large.
const USUAL_ROUNDS: u64 = 40;

/// The clients, at work.
pub(super) struct Sample {
    pub(super) history: History,
    pub(super) writers: Vec<WriterId>,
    clients: Vec<(Replica, Arc<LogClient>)>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Sample {
    pub(super) async fn start(
        cluster: &Cluster,
        env: &SharedEnv,
        seed: u64,
        rounds: u64,
    ) -> Result<Self, AnyError> {
        let mut sample = Self {
            history: History::default(),
            writers: Vec::new(),
            clients: Vec::new(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for client in 0..2 {
            let log = cluster.connect(env, DEADLINE).await?;
            let replica = replica(env, &log, DEADLINE);
            let hand = sample.open(&log, &replica).await?;
            for task in 0..TASKS {
                let rng = Rng::new(seed, &format!("sample {client} {task}"));
                let rest = REST_MS * rounds.max(USUAL_ROUNDS) / USUAL_ROUNDS;
                let work = hand.clone().live(rng, rest, Arc::clone(&sample.stop));
                sample.tasks.push(tokio::spawn(work));
            }
            sample.writers.push(log.writer());
            sample.clients.push((replica, log));
        }
        Ok(sample)
    }

    async fn open(&self, log: &LogClient, replica: &Replica) -> Result<Hand, AnyError> {
        Ok(Hand {
            map: replica.map("sample/map").await?,
            counter: replica.counter("sample/counter").await?,
            queue: replica.queue("sample/queue").await?,
            replica: replica.clone(),
            history: self.history.clone(),
            writer: log.writer(),
            number: self.history.new_replica(),
        })
    }

    /// Lets them finish. What is still open then stays open.
    pub(super) async fn end(self) -> Result<(History, Vec<WriterId>), AnyError> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            tokio::time::timeout(DEADLINE * 10, task).await??;
        }
        for (replica, log) in self.clients {
            replica.close().await;
            log.close().await;
        }
        Ok((self.history, self.writers))
    }
}
