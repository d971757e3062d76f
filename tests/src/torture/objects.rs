//! What all clients work with, and how it is recognised afterwards.

use std::sync::Arc;
use std::time::Duration;

use milonga_client::LogClient;
use milonga_objects::{Counter, Map, Queue, Replica, ReplicaOptions};
use milonga_protocol::{SharedEnv, StreamId};

use super::AnyError;
use super::ledger::Id;

/// The objects that all lanes share.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    /// Keys and values are ids of inserts.
    pub(super) kept: Map<u64, u64>,
    /// The number of adds.
    pub(super) count: Counter,
    /// Ids of pushes.
    pub(super) items: Queue<u64>,
    /// What was in the queue, and the id of the move.
    pub(super) moved: Map<u64, u64>,
    /// The number of moves.
    pub(super) moves: Counter,
}

impl Objects {
    pub(super) async fn open(replica: &Replica) -> Result<Self, AnyError> {
        Ok(Self {
            kept: replica.map("kept").await?,
            count: replica.counter("count").await?,
            items: replica.queue("items").await?,
            moved: replica.map("moved").await?,
            moves: replica.counter("moves").await?,
        })
    }

    /// The same, if its calls may end too soon.
    pub(super) async fn open_patiently(replica: &Replica) -> Result<Self, AnyError> {
        for _ in 0..20 {
            if let Ok(objects) = Self::open(replica).await {
                return Ok(objects);
            }
        }
        Self::open(replica).await
    }
}

/// A replica whose calls end in time.
pub(super) fn replica(env: &SharedEnv, log: &Arc<LogClient>, deadline: Duration) -> Replica {
    let mut options = ReplicaOptions::default();
    options.deadline = deadline;
    Replica::start(Arc::clone(env), Arc::clone(log) as _, options)
}

/// The payload of a raw append.
pub(super) fn payload(id: Id) -> Vec<u8> {
    let mut bytes = b"raw ".to_vec();
    bytes.extend(id.to_le_bytes());
    bytes
}

/// The stream of a lane of raw appends.
pub(super) const fn stream(lane: usize) -> StreamId {
    StreamId::raw(lane as u64 + 1)
}
