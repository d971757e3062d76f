//! What the workloads over objects share: an operation is done, perhaps dropped in the middle, and noted.

mod changes;
mod life;
mod own;
mod transaction;

use std::sync::Arc;

use milonga_client::LogClient;
use milonga_objects::{
    Counter, Handle, Map, Object, OpenError, Opened, Queue, ReadError, Replica, Snapshot,
};
use milonga_protocol::{Log as _, Position, WriterId};

use crate::world::history::{CallId, Cell, Deed, End, History, Query, Value};
use crate::world::journal::{Operation, OperationId, Outcome};
use crate::world::witness::Rule;
use crate::world::workload::Client;

pub(super) use changes::{Whole, key_of, op_bytes, state_of};
pub(super) use life::live;
pub(super) use own::{Fragile, FragileOp, Lists, ListsOp};
pub(super) use transaction::Steps;

/// One task's way to the objects of one replica.
#[derive(Clone)]
pub(super) struct Hand {
    pub(super) client: Client,
    pub(super) replica: Replica,
    pub(super) log: Arc<LogClient>,
    pub(super) history: History,
    number: usize,
    /// Futures of a million that are dropped before they end.
    drops: u32,
}

/// A call under way.
struct Begun(CallId, OperationId);

impl Hand {
    fn writer(&self) -> WriterId {
        self.log.writer()
    }

    /// A number below `end`.
    pub(super) fn below(&self, end: u64) -> u64 {
        self.client.draw(|rng| rng.below(end))
    }

    fn begin(&self, deed: Deed) -> Begun {
        self.begin_as(self.number, deed)
    }

    /// Begins what passes by the replica, or not.
    fn begin_as(&self, replica: usize, deed: Deed) -> Begun {
        let operation = self.client.invoke(Operation::Object(deed.clone()));
        let call = self.history.invoke(replica, self.writer(), deed);
        Begun(call, operation)
    }

    /// Whether it did what was asked.
    fn end(&self, Begun(call, operation): Begun, end: End) -> bool {
        let worked = !matches!(end, End::Failed(_) | End::Unknown(_) | End::Dropped(_));
        self.client
            .finish(operation, Outcome::Object(Box::new(end.clone())));
        self.history.finish(call, end);
        worked
    }

    /// After how many polls the next future is dropped.
    fn polls(&self) -> u64 {
        if self.client.is_over() {
            return u64::MAX;
        }
        let drops = self.drops;
        self.client.draw(|rng| {
            if rng.happens(drops) {
                *rng.pick(&[0, 1, 1, 2, 2, 3, 4, 5, 8, 13, 21])
            } else {
                u64::MAX
            }
        })
    }

    /// Opens a map.
    pub(super) async fn map(&self, name: &str) -> Map<u64, Cell> {
        self.open(name, || self.replica.map(name)).await
    }

    /// Opens a counter.
    pub(super) async fn counter(&self, name: &str) -> Counter {
        self.open(name, || self.replica.counter(name)).await
    }

    /// Opens a queue.
    pub(super) async fn queue(&self, name: &str) -> Queue<u64> {
        self.open(name, || self.replica.queue(name)).await
    }

    /// Opens an object of an own type.
    pub(super) async fn object<O: Object>(&self, name: &str) -> Handle<O> {
        self.open(name, || self.replica.object(name)).await
    }

    /// Opens an object, as often as it takes.
    async fn open<H: Opened, F: Future<Output = Result<H, OpenError>>>(
        &self,
        name: &str,
        open: impl Fn() -> F,
    ) -> H {
        loop {
            let begun = self.begin(Deed::Open(name.into()));
            let polls = self.polls();
            let result = self.client.drop_after(polls, open()).await;
            let end = match &result {
                None => End::Dropped(polls),
                Some(Err(error)) => End::Failed(why(error)),
                Some(Ok(opened)) => {
                    let info = opened.handle().info();
                    End::Opened {
                        stream: info.stream,
                        registered: info.registered,
                    }
                }
            };
            self.end(begun, end);
            match result {
                Some(Ok(opened)) => return opened,
                Some(Err(error)) if !error.is_retryable() => {
                    self.history.complain(
                        Rule::States,
                        format!("{name:?} cannot be opened: {}", why(&error)),
                    );
                    std::future::pending::<()>().await;
                }
                _ => self.client.rest().await,
            }
        }
    }

    /// Reads an object, linearizable, with the position.
    pub(super) async fn read<H: Opened>(
        &self,
        object: &H,
        query: Query,
        read: impl FnOnce(&H::State) -> Value,
    ) -> bool {
        let answer = async {
            let (value, position) = object.handle().read_with_position(read).await?;
            Ok((value, Some(position)))
        };
        self.ask(object, query, answer).await
    }

    /// Reads an object in a way that tells no position.
    pub(super) async fn get<H: Opened>(
        &self,
        object: &H,
        query: Query,
        read: impl Future<Output = Result<Value, ReadError>>,
    ) -> bool {
        let answer = async { Ok((read.await?, None)) };
        self.ask(object, query, answer).await
    }

    /// Reads an object and notes what it answers.
    pub(super) async fn ask<H: Opened>(
        &self,
        object: &H,
        query: Query,
        read: impl Future<Output = Result<(Value, Option<Position>), ReadError>>,
    ) -> bool {
        let begun = self.begin(Deed::Read {
            object: object.handle().name().into(),
            query,
            local: false,
        });
        let polls = self.polls();
        let end = match self.client.drop_after(polls, read).await {
            None => End::Dropped(polls),
            Some(result) => self.answered(result),
        };
        self.end(begun, end)
    }

    /// Looks at what the replica knows now.
    pub(super) fn peek<H: Opened>(
        &self,
        object: &H,
        query: Query,
        read: impl FnOnce(&H::State) -> Value,
    ) {
        let begun = self.begin(Deed::Read {
            object: object.handle().name().into(),
            query,
            local: true,
        });
        let looked = object.handle().peek_with_position(read);
        let end = self.answered(looked.map(|(value, position)| (value, Some(position))));
        self.end(begun, end);
    }

    fn answered(&self, result: Result<(Value, Option<Position>), ReadError>) -> End {
        match result {
            Ok((value, position)) => End::Answer { position, value },
            Err(ReadError::Halted(halt)) => End::Answer {
                position: None,
                value: Value::Halted(halt.position, halt.record),
            },
            Err(error) => {
                self.must_go_on(&error);
                End::Failed(why(&error))
            }
        }
    }

    /// No workload makes a whole replica stop.
    fn must_go_on(&self, error: &ReadError) {
        if let ReadError::ReplicaHalted(halt) = error {
            let text = format!("{}: {}", self.client.name(), why(halt));
            self.history.complain(Rule::Readable, text);
        }
    }

    /// Takes a snapshot and notes what `look` sees in it.
    pub(super) async fn snapshot(
        &self,
        look: impl FnOnce(&Snapshot) -> Vec<(Arc<str>, Value)>,
    ) -> bool {
        let begun = self.begin(Deed::Snapshot);
        let polls = self.polls();
        let snapshot = self.client.drop_after(polls, self.replica.snapshot()).await;
        let end = match snapshot {
            None => End::Dropped(polls),
            Some(Ok(snapshot)) => End::Seen {
                position: snapshot.position(),
                states: look(&snapshot),
            },
            Some(Err(error)) => {
                self.must_go_on(&error);
                End::Failed(why(&error))
            }
        };
        self.end(begun, end)
    }
}

/// An error with its causes.
pub(crate) fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
