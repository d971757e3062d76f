//! What clients do all the time: every lane does one kind of update, one after the other.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_client::LogClient;
use milonga_objects::{Outcome, Replica, Settled, Ticket, TransactionError, UpdateError};
use milonga_protocol::{AppendError, Log as _, NewEntry, Position, SharedEnv};

use super::cluster::Cluster;
use super::ledger::{Fate, Id, Kind, Ledger};
use super::objects::{Objects, payload, replica, stream};
use super::{AnyError, pause};
use crate::world::Rng;
use crate::world::workloads::why;

/// How long a call may take: of the patient client, and of one that is often told that nobody knows.
const DEADLINES: [Duration; 2] = [Duration::from_secs(8), Duration::from_millis(700)];
/// Between two updates of one lane, in milliseconds, on average: everything is remembered.
const REST_MS: u64 = 20;
/// How often it is asked what became of an update.
const QUESTIONS: usize = 6;

/// Lanes at work.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<Client>,
    lanes: Vec<tokio::task::JoinHandle<()>>,
}

/// What lanes share.
#[derive(Clone)]
struct Client {
    log: Arc<LogClient>,
    replica: Replica,
    objects: Objects,
}

impl Load {
    /// Starts them: every second lane of a kind is of the other client.
    pub(super) async fn start(
        cluster: &Cluster,
        env: &SharedEnv,
        ledger: &Arc<Ledger>,
        seed: u64,
    ) -> Result<Self, AnyError> {
        let mut load = Self {
            stop: Arc::default(),
            clients: Vec::new(),
            lanes: Vec::new(),
        };
        for deadline in DEADLINES {
            let log = cluster.connect(env, deadline).await?;
            let replica = replica(env, &log, deadline);
            load.clients.push(Client {
                objects: Objects::open_patiently(&replica).await?,
                log,
                replica,
            });
        }
        let all = Kind::ALL.into_iter();
        for (kind, lane) in all.flat_map(|kind| (0..kind.lanes()).map(move |lane| (kind, lane))) {
            let rng = Rng::new(seed, &format!("{kind:?} {lane}"));
            let lane = Lane {
                kind,
                lane,
                client: load.clients[lane % load.clients.len()].clone(),
                ledger: Arc::clone(ledger),
                stop: Arc::clone(&load.stop),
            };
            load.lanes.push(tokio::spawn(lane.live(rng)));
        }
        Ok(load)
    }

    /// Lets all of them finish.
    pub(super) async fn end(self) -> Result<(), AnyError> {
        self.stop.store(true, Ordering::Relaxed);
        let all = async {
            for lane in self.lanes {
                lane.await?;
            }
            for Client { replica, log, .. } in self.clients {
                replica.close().await;
                log.close().await;
            }
            Ok::<(), AnyError>(())
        };
        let patience = DEADLINES[0] * u32::try_from(QUESTIONS + 3).unwrap_or(1);
        match tokio::time::timeout(patience, all).await {
            Ok(ended) => ended,
            Err(_) => Err("calls do not end by their deadlines".into()),
        }
    }
}

struct Lane {
    kind: Kind,
    lane: usize,
    client: Client,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
}

impl Lane {
    async fn live(self, mut rng: Rng) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = self.ledger.next(self.kind, self.lane);
            let fate = match self.kind {
                Kind::Raw => Some(self.append(id).await),
                Kind::Insert => Some(self.insert(id).await),
                Kind::Add => Some(self.add().await),
                Kind::Push => Some(self.push(id).await),
                Kind::Move => self.transfer(id).await,
            };
            match fate {
                Some(fate) => self.ledger.note(self.kind, self.lane, fate),
                None => self.ledger.nothing_to_do(self.kind),
            }
            pause(Duration::from_millis(rng.between(1, 2 * REST_MS))).await;
        }
    }

    fn complain(&self, what: &str) {
        let (lane, kind) = (self.lane, self.kind.name());
        self.ledger.complain(format!("{kind} {lane}: {what}"));
    }

    async fn append(&self, id: Id) -> Fate {
        let entry = NewEntry::new(vec![stream(self.lane)], payload(id));
        match self.client.log.append(entry).await {
            Ok(appended) => Fate::Acked(appended.position),
            Err(AppendError::OutcomeUnknown { .. }) => Fate::Unknown,
            Err(error) => {
                if !error.is_retryable() {
                    self.complain(&why(&error));
                }
                Fate::Failed
            }
        }
    }

    async fn insert(&self, id: Id) -> Fate {
        let updated = self
            .client
            .objects
            .kept
            .insert(id, id)
            .with_position()
            .await;
        let (fate, output) = self.fate(updated).await;
        if let Some(Some(old)) = output {
            self.complain(&format!("insert {id:x} found {old:x} at its own key"));
        }
        fate
    }

    async fn add(&self) -> Fate {
        let updated = self.client.objects.count.add(1).with_position().await;
        let (fate, output) = self.fate(updated).await;
        if let (Fate::Acked(position), Some(output)) = (fate, output) {
            let mut book = self.ledger.book();
            book.counted.entry(position).or_default().push(output);
        }
        fate
    }

    async fn push(&self, id: Id) -> Fate {
        let updated = self.client.objects.items.push(id).with_position().await;
        let (fate, key) = self.fate(updated).await;
        if let (Fate::Acked(position), Some(key)) = (fate, key)
            && key.position != position
        {
            self.complain(&format!("push {id:x} at {position} has the key {key:?}"));
        }
        fate
    }

    /// `None`: there was nothing to be moved.
    async fn transfer(&self, id: Id) -> Option<Fate> {
        let Objects {
            items,
            moved,
            moves,
            ..
        } = &self.client.objects;
        let run = self.client.replica.transaction(async |tx| {
            let item = tx.pop(items);
            if let Some(item) = item {
                tx.insert(moved, item, id);
                tx.add(moves, 1);
            }
            Ok::<_, Infallible>(item)
        });
        match run.await {
            Ok(Outcome::Committed {
                value: Some(item),
                position,
            }) => {
                let before = self.ledger.book().moved.insert(item, id);
                if let Some(before) = before {
                    self.complain(&format!("item {item:x} was moved by {before:x} and {id:x}"));
                }
                Some(Fate::Acked(position))
            }
            Ok(Outcome::Committed { value: None, .. }) => None,
            Ok(_) => Some(Fate::Failed),
            Err(error) => Some(self.no_verdict(error).await),
        }
    }

    async fn no_verdict(&self, error: TransactionError<Infallible>) -> Fate {
        match error {
            TransactionError::Commit {
                source: UpdateError::OutcomeUnknown { ticket, .. },
            } => self.settled::<()>(&ticket).await.0,
            error => {
                if !error.is_retryable() {
                    self.complain(&why(&error));
                }
                Fate::Failed
            }
        }
    }

    async fn fate<T: Send + 'static>(
        &self,
        updated: Result<(T, Position), UpdateError>,
    ) -> (Fate, Option<T>) {
        match updated {
            Ok((output, position)) => (Fate::Acked(position), Some(output)),
            Err(UpdateError::OutcomeUnknown { ticket, .. }) => self.settled(&ticket).await,
            Err(error) => {
                if !error.is_retryable() {
                    self.complain(&why(&error));
                }
                (Fate::Failed, None)
            }
        }
    }

    async fn settled<T: Send + 'static>(&self, ticket: &Ticket) -> (Fate, Option<T>) {
        for _ in 0..QUESTIONS {
            match self.client.replica.settle(ticket).await {
                Settled::Applied { position, output } => return (Fate::Acked(position), output),
                Settled::Never => return (Fate::Failed, None),
                _ => pause(Duration::from_millis(100)).await,
            }
        }
        (Fate::Unknown, None)
    }
}
