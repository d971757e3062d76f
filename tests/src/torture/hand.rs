//! What a client of the sample does, and what came of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_objects::{
    Counter, CounterOp, CounterState, KeyBytes, Map, MapOp, MapState, Opened, Outcome, Queue,
    QueueOp, QueueState, ReadError, Replica, Settled, Snapshot, TransactionError, Update,
    UpdateError,
};
use milonga_protocol::WriterId;
use serde::Serialize;

use super::pause;
use crate::world::Rng;
use crate::world::history::{CallId, Cell, Deed, End, History, Query, Step, Value, mark};
use crate::world::witness::Rule;
use crate::world::workloads::why;

const KEYS: u64 = 6;

/// One client's way to the objects of the sample.
#[derive(Clone)]
pub(super) struct Hand {
    pub(super) map: Map<u64, Cell>,
    pub(super) counter: Counter,
    pub(super) queue: Queue<u64>,
    pub(super) replica: Replica,
    pub(super) history: History,
    pub(super) writer: WriterId,
    pub(super) number: usize,
}

fn op_bytes(op: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(op).expect("plain data into memory")
}

fn cells(map: &MapState<u64, Cell>) -> Value {
    Value::Cells(map.iter().map(|(key, cell)| (key, *cell)).collect())
}

fn items(queue: &QueueState<u64>) -> Value {
    Value::Items(queue.iter().map(|(_, item)| *item).collect())
}

impl Hand {
    /// Works until it is told to stop.
    pub(super) async fn live(self, mut rng: Rng, rest_ms: u64, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let key = rng.below(KEYS);
            match rng.below(14) {
                0..3 => self.insert(key).await,
                3 => self.remove(key).await,
                4..6 => self.add(rng.below(9)).await,
                6..8 => self.push().await,
                8..11 => self.together(key, rng.below(KEYS), rng.below(3)).await,
                11 => self.read(&self.map, cells).await,
                12 => self.read(&self.queue, items).await,
                _ => self.snapshot().await,
            }
            pause(Duration::from_millis(rng.between(1, 2 * rest_ms))).await;
        }
    }

    /// A call begins whose deed may carry its own mark.
    fn begin(&self, deed: impl FnOnce(u64) -> Deed) -> (CallId, u64) {
        // Looked at and begun at once: tasks run beside each other here.
        let mut book = self.history.book();
        let mark = mark(book.calls.len(), 0);
        (book.invoke(self.number, self.writer, deed(mark)), mark)
    }

    fn update(&self, name: &str, op: impl FnOnce(u64) -> Vec<u8>) -> (CallId, u64) {
        self.begin(|mark| Deed::Update(name.into(), op(mark)))
    }

    async fn insert(&self, key: u64) {
        let (call, mark) = self.update(self.map.handle().name(), |mark| {
            let (key, value) = (KeyBytes::of(&key), (1, mark));
            op_bytes(&MapOp::Insert { key, value })
        });
        self.change(call, self.map.insert(key, (1, mark)), Value::Cell)
            .await;
    }

    async fn remove(&self, key: u64) {
        let (call, _) = self.update(self.map.handle().name(), |_| {
            let key = KeyBytes::of(&key);
            op_bytes(&MapOp::<Cell>::Remove { key })
        });
        self.change(call, self.map.remove(key), Value::Cell).await;
    }

    async fn add(&self, n: u64) {
        let n = i64::try_from(n).unwrap_or(0) - 4;
        let (call, _) = self.update(self.counter.handle().name(), |_| {
            op_bytes(&CounterOp::Add(n))
        });
        self.change(call, self.counter.add(n), Value::Number).await;
    }

    async fn push(&self) {
        let (call, mark) = self.update(self.queue.handle().name(), |mark| {
            op_bytes(&QueueOp::Push(mark))
        });
        let key = |key: milonga_objects::ItemKey| Value::Key(key.position.0, key.record, key.index);
        self.change(call, self.queue.push(mark), key).await;
    }

    async fn change<T: Send + 'static>(
        &self,
        call: CallId,
        update: Update<T>,
        value: impl Fn(T) -> Value,
    ) {
        let end = match update.with_position().await {
            Ok((output, position)) => End::Updated {
                position: Some(position),
                output: Some(value(output)),
            },
            Err(UpdateError::OutcomeUnknown { ticket, .. }) => {
                match self.replica.settle::<T>(&ticket).await {
                    Settled::Applied { position, output } => End::Updated {
                        position: Some(position),
                        output: output.map(value),
                    },
                    Settled::Never => End::Failed("settled as never".into()),
                    _ => End::Unknown("not settled".into()),
                }
            }
            Err(error) => self.failed(&error, error.is_retryable()),
        };
        self.history.finish(call, end);
    }

    /// Nothing was done; whether that may be.
    fn failed(&self, error: &dyn std::error::Error, may_be: bool) -> End {
        if !may_be {
            let text = format!("replica {}: {}", self.number, why(error));
            self.history.complain(Rule::Readable, text);
        }
        End::Failed(why(error))
    }

    async fn read<H: Opened>(&self, object: &H, look: fn(&H::State) -> Value) {
        let (call, _) = self.begin(|_| Deed::Read {
            object: object.handle().name().into(),
            query: Query::State,
            local: false,
        });
        let end = match object.handle().read_with_position(look).await {
            Ok((value, position)) => End::Answer {
                position: Some(position),
                value,
            },
            Err(error) => self.failed(&error, error.is_retryable()),
        };
        self.history.finish(call, end);
    }

    async fn snapshot(&self) {
        let (call, _) = self.begin(|_| Deed::Snapshot);
        let seen = self.replica.snapshot().await;
        let end = match seen.and_then(|seen| Ok((seen.position(), self.states(&seen)?))) {
            Ok((position, states)) => End::Seen { position, states },
            Err(error) => self.failed(&error, error.is_retryable()),
        };
        self.history.finish(call, end);
    }

    fn states(&self, seen: &Snapshot) -> Result<Vec<(Arc<str>, Value)>, ReadError> {
        let (map, counter, queue) = (
            seen.of(&self.map)?,
            seen.of(&self.counter)?,
            seen.of(&self.queue)?,
        );
        let number = |counter: &CounterState| Value::Number(counter.value());
        Ok(vec![
            (self.map.handle().name().into(), cells(&map)),
            (self.counter.handle().name().into(), number(&counter)),
            (self.queue.handle().name().into(), items(&queue)),
        ])
    }

    /// A transaction that reads one key, writes another, and pops or counts.
    async fn together(&self, from: u64, to: u64, what: u64) {
        let (call, mark) = self.begin(|_| Deed::Transaction);
        let (map, counter, queue) = (&self.map, &self.counter, &self.queue);
        let run = self.replica.transaction(async |tx| {
            let name = |name: &str| Arc::<str>::from(name);
            let cell = tx.get(map, &from);
            let (map_name, seen) = (name(map.handle().name()), cell.map_or(0, |cell| cell.0));
            let read = Step::Read(Arc::clone(&map_name), Query::Get(from), Value::Cell(cell));
            let (key, value) = (KeyBytes::of(&to), (seen + 1, mark));
            tx.insert(map, to, value);
            let wrote = Step::Write(map_name, op_bytes(&MapOp::Insert { key, value }));
            let mut steps = vec![read, wrote];
            if what == 0 {
                steps.push(Step::Pop(name(queue.handle().name()), tx.pop(queue)));
            } else if what == 1 {
                tx.add(counter, seen);
                let op = op_bytes(&CounterOp::Add(seen));
                steps.push(Step::Write(name(counter.handle().name()), op));
            }
            self.history.tried(call, steps.clone());
            Ok::<_, Infallible>(steps)
        });
        let end = self.told(run.await).await;
        self.history.finish(call, end);
    }

    async fn told(&self, outcome: Result<Outcome<Vec<Step>>, TransactionError<Infallible>>) -> End {
        match outcome {
            Ok(Outcome::Committed { value, position }) => End::Committed {
                position,
                steps: Some(value),
            },
            Ok(Outcome::Conflict {
                object,
                position,
                winner,
                attempts,
                ..
            }) => End::Conflict {
                object,
                position,
                winner,
                attempts,
            },
            Ok(other) => End::Unknown(format!("{other:?}")),
            Err(TransactionError::Commit {
                source: UpdateError::OutcomeUnknown { ticket, .. },
            }) => match self.replica.settle::<()>(&ticket).await {
                Settled::Applied { position, .. } => End::Committed {
                    position,
                    steps: None,
                },
                Settled::Never => End::Failed("settled as never".into()),
                _ => End::Unknown("not settled".into()),
            },
            Err(error) => self.failed(&error, error.is_retryable()),
        }
    }
}
