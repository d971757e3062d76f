//! Updates and pops.

use std::time::Duration;

use milonga_objects::{
    CounterState, ItemKey, MapState, Opened, Queue, QueueState, ReadError, Settled, Snapshot,
    Update, UpdateError,
};
use milonga_protocol::{AppendError, Log as _, NewEntry};
use serde::Serialize;

use super::{Fragile, Hand, Lists, why};
use crate::world::history::{Cell, Deed, End, NO_REPLICA, Value};
use crate::world::witness::Rule;

/// An operation as it is stored.
pub(in crate::world::workloads) fn op_bytes(op: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(op).expect("plain data into memory")
}

/// A state as a whole.
pub(in crate::world::workloads) trait Whole {
    /// It.
    fn whole(&self) -> Value;
}

impl Whole for MapState<u64, Cell> {
    fn whole(&self) -> Value {
        Value::Cells(self.iter().map(|(key, cell)| (key, *cell)).collect())
    }
}

impl Whole for CounterState {
    fn whole(&self) -> Value {
        Value::Number(self.value())
    }
}

impl Whole for QueueState<u64> {
    fn whole(&self) -> Value {
        Value::Items(self.iter().map(|(_, item)| *item).collect())
    }
}

impl Whole for Lists {
    fn whole(&self) -> Value {
        Value::Lists(
            self.0
                .iter()
                .map(|(key, list)| (*key, list.clone()))
                .collect(),
        )
    }
}

impl Whole for Fragile {
    fn whole(&self) -> Value {
        Value::Number(self.0)
    }
}

/// A key as the history shows it.
pub(in crate::world::workloads) fn key_of(key: &ItemKey) -> Value {
    Value::Key(key.position.0, key.record, key.index)
}

/// One object in a snapshot; `None` if it was opened later.
pub(in crate::world::workloads) fn state_of<H: Opened<State: Whole>>(
    snapshot: &Snapshot,
    object: &H,
) -> Option<(std::sync::Arc<str>, Value)> {
    let value = match snapshot.of(object) {
        Ok(view) => view.whole(),
        Err(ReadError::Halted(halt)) => Value::Halted(halt.position, halt.record),
        Err(_) => return None,
    };
    Some((object.handle().name().into(), value))
}

impl Hand {
    /// Does an update whose operation, as bytes, is `op`.
    pub(in crate::world::workloads) async fn change<H: Opened, T: Send + 'static>(
        &self,
        object: &H,
        op: Vec<u8>,
        update: Update<T>,
        value: impl Fn(T) -> Value,
    ) -> bool {
        let begun = self.begin(Deed::Update(object.handle().name().into(), op));
        let polls = self.polls();
        let updated = self.client.drop_after(polls, update.with_position()).await;
        let end = match updated {
            None => End::Dropped(polls),
            Some(Ok((output, position))) => End::Updated {
                position: Some(position),
                output: Some(value(output)),
            },
            Some(Err(error)) => self.failed(error, value).await,
        };
        self.end(begun, end)
    }

    /// Pops by the plain calls, which may hand on what was popped for a dropped future.
    pub(in crate::world::workloads) async fn pop(&self, queue: &Queue<u64>, wait: bool) -> bool {
        let begun = self.begin(Deed::Pop(queue.handle().name().into()));
        let polls = self.polls();
        let popped = async {
            if !wait {
                return Some(queue.pop().await);
            }
            // There may be no item for a long time.
            let patience = self.client.env().sleep(Duration::from_millis(500));
            tokio::select! {
                biased;
                item = queue.pop_wait() => Some(item.map(Some)),
                () = patience => None,
            }
        };
        let end = match self.client.drop_after(polls, popped).await.flatten() {
            None => End::Dropped(polls),
            Some(Ok(item)) => End::Updated {
                position: None,
                output: Some(Value::Item(item)),
            },
            Some(Err(error)) => self.failed(error, Value::Item).await,
        };
        self.end(begun, end)
    }

    /// What an error says, after asking what became of the update if that was unknown.
    pub(super) async fn failed<T: Send + 'static>(
        &self,
        error: UpdateError,
        value: impl Fn(T) -> Value,
    ) -> End {
        match &error {
            UpdateError::OutcomeUnknown { ticket, .. } => {
                match self.replica.settle::<T>(ticket).await {
                    Settled::Applied { position, output } => End::Updated {
                        position: Some(position),
                        output: output.map(value),
                    },
                    Settled::Never => End::Failed(format!("settled as never: {}", why(&error))),
                    _ => End::Unknown(why(&error)),
                }
            }
            UpdateError::Halted {
                written: Some(position),
                source,
            } => End::WrittenHalted {
                position: *position,
                halt: Value::Halted(source.position, source.record),
            },
            UpdateError::ReplicaHalted { source } => {
                let text = format!("{}: {}", self.client.name(), why(source));
                self.history.complain(Rule::Readable, text);
                End::Failed(why(&error))
            }
            UpdateError::Read { source } => {
                self.must_go_on(source);
                End::Failed(why(&error))
            }
            _ => End::Failed(why(&error)),
        }
    }

    /// Appends bytes past the objects.
    pub(in crate::world::workloads) async fn append(&self, deed: Deed, entry: NewEntry) -> bool {
        let begun = self.begin_as(NO_REPLICA, deed);
        let end = match self.log.append(entry).await {
            Ok(appended) => End::Updated {
                position: Some(appended.position),
                output: None,
            },
            Err(error @ AppendError::OutcomeUnknown { .. }) => End::Unknown(why(&error)),
            Err(error) => End::Failed(why(&error)),
        };
        self.end(begun, end)
    }
}
