//! Transactions whose steps are noted.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use milonga_objects::{
    Counter, CounterOp, Handle, KeyBytes, Map, MapOp, Outcome, Queue, Settled, TransactionError,
    Tx, UpdateError,
};

use super::{Hand, Lists, ListsOp, op_bytes, why};
use crate::world::history::{CallId, Cell, Deed, End, Query, Step, Value, mark};

/// A transaction under way, and what it did so far.
pub(in crate::world::workloads) struct Steps<'a> {
    tx: &'a mut Tx,
    steps: Vec<Step>,
    call: CallId,
    marks: u64,
}

impl Steps<'_> {
    /// A mark that no other update has.
    pub(in crate::world::workloads) fn mark(&mut self) -> u64 {
        self.marks += 1;
        mark(self.call, self.marks - 1)
    }

    fn read(&mut self, name: &str, query: Query, value: Value) {
        self.steps.push(Step::Read(name.into(), query, value));
    }

    /// The value of a key.
    pub(in crate::world::workloads) fn get(
        &mut self,
        map: &Map<u64, Cell>,
        key: u64,
    ) -> Option<Cell> {
        let cell = self.tx.get(map, &key);
        self.read(name(map), Query::Get(key), Value::Cell(cell));
        cell
    }

    /// Whether a key has a value.
    pub(in crate::world::workloads) fn contains(&mut self, map: &Map<u64, Cell>, key: u64) -> bool {
        let contains = self.tx.contains(map, &key);
        self.read(name(map), Query::Contains(key), Value::Bool(contains));
        contains
    }

    /// The whole map.
    pub(in crate::world::workloads) fn entries(
        &mut self,
        map: &Map<u64, Cell>,
    ) -> Vec<(u64, Cell)> {
        let all: Vec<_> = self.tx.entries(map).collect();
        self.read(name(map), Query::State, Value::Cells(all.clone()));
        all
    }

    /// Sets a key's value, with a new mark.
    pub(in crate::world::workloads) fn insert(
        &mut self,
        map: &Map<u64, Cell>,
        key: u64,
        value: i64,
    ) {
        let value = (value, self.mark());
        self.tx.insert(map, key, value);
        let key = KeyBytes::of(&key);
        self.wrote(name(map), op_bytes(&MapOp::Insert { key, value }));
    }

    fn wrote(&mut self, name: &str, op: Vec<u8>) {
        self.steps.push(Step::Write(name.into(), op));
    }

    /// Adds to a counter.
    pub(in crate::world::workloads) fn add(&mut self, counter: &Counter, n: i64) {
        self.tx.add(counter, n);
        self.wrote(name(counter), op_bytes(&CounterOp::Add(n)));
    }

    /// A counter's value.
    pub(in crate::world::workloads) fn value(&mut self, counter: &Counter) -> i64 {
        let value = self.tx.value(counter);
        self.read(name(counter), Query::State, Value::Number(value));
        value
    }

    /// Takes one of the first items.
    pub(in crate::world::workloads) fn pop(&mut self, queue: &Queue<u64>) -> Option<u64> {
        let item = self.tx.pop(queue);
        self.steps.push(Step::Pop(name(queue).into(), item));
        item
    }

    /// One list.
    pub(in crate::world::workloads) fn list(
        &mut self,
        lists: &Handle<Lists>,
        key: u64,
    ) -> Vec<u64> {
        let state = self.tx.read_key(lists, KeyBytes::of(&key));
        let list = state
            .and_then(|lists| lists.0.get(&key).cloned())
            .unwrap_or_default();
        self.read(lists.name(), Query::List(key), Value::List(list.clone()));
        list
    }

    /// Appends a new value to a list.
    pub(in crate::world::workloads) fn append(&mut self, lists: &Handle<Lists>, key: u64) {
        let op = ListsOp::Append(key, self.mark());
        self.wrote(lists.name(), op_bytes(&op));
        self.tx.update(lists, op);
    }
}

fn name<H: milonga_objects::Opened>(object: &H) -> &str {
    object.handle().name()
}

impl Hand {
    /// Runs a transaction, sometimes slowly.
    pub(in crate::world::workloads) async fn transaction(
        &self,
        body: impl Fn(&mut Steps<'_>) + Clone + Send + Sync,
    ) -> bool {
        let call = self.history.next_call();
        let begun = self.begin(Deed::Transaction);
        let polls = self.polls();
        let nap = Duration::from_micros(self.client.draw(|rng| *rng.pick(&[0, 0, 0, 500, 5_000])));
        let env = self.client.env();
        let run = self.replica.transaction(async |tx| {
            if nap > Duration::ZERO {
                env.sleep(nap).await;
            }
            let mut steps = Steps {
                tx,
                steps: Vec::new(),
                call,
                marks: 0,
            };
            body(&mut steps);
            self.history.tried(call, steps.steps.clone());
            Ok::<_, Infallible>(steps.steps)
        });
        let end = match self.client.drop_after(polls, run).await {
            None => End::Dropped(polls),
            Some(Ok(outcome)) => told(outcome),
            Some(Err(error)) => self.no_verdict(error).await,
        };
        self.end(begun, end)
    }

    async fn no_verdict(&self, error: TransactionError<Infallible>) -> End {
        match &error {
            TransactionError::Commit {
                source: UpdateError::OutcomeUnknown { ticket, .. },
            } => match self.replica.settle::<()>(ticket).await {
                Settled::Applied { position, .. } => End::Committed {
                    position,
                    steps: None,
                },
                Settled::Never => End::Failed(format!("settled as never: {}", why(&error))),
                _ => End::Unknown(why(&error)),
            },
            TransactionError::Read { source } => {
                self.must_go_on(source);
                End::Failed(why(&error))
            }
            _ => End::Failed(why(&error)),
        }
    }
}

fn told(outcome: Outcome<Vec<Step>>) -> End {
    match outcome {
        Outcome::Committed { value, position } => End::Committed {
            position,
            steps: Some(value),
        },
        Outcome::Conflict {
            object,
            position,
            winner,
            attempts,
            ..
        } => End::Conflict {
            object: Arc::clone(&object),
            position,
            winner,
            attempts,
        },
        other => End::Unknown(format!("an outcome that no workload knows: {other:?}")),
    }
}
