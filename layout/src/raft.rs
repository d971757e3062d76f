//! The history, replicated by raft (openraft) over the layout's members.
//!
//! ```text
//!   propose(change) --> Replica (leader) --> log on a majority's disks --> History::apply, everywhere alike
//!                          |      ^                                             |
//!        RaftCarrier <-- request  answer <-- Replica::handle of the others      +-- refused or not: the response
//! ```
//!
//! A change is a log entry whether or not the history takes it: [`History::apply`](crate::History::apply) is
//! deterministic, so all members refuse the same ones, and the refusal is the entry's response. What a member has
//! promised or acknowledged is on its disk before it says so.
//!
//! Nothing of openraft shows outside: what lies on disk and what travels are records of our own (`records.rs`), clock,
//! randomness and tasks are the environment's (`home.rs`). So members run in one thread on virtual time, and the same
//! seed gives the same run.

mod answers;
mod config;
mod errors;
mod header;
mod home;
mod leadership;
mod log;
mod machine;
mod messages;
mod network;
mod records;
mod replica;
mod runtime;
mod store;
mod tables;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Cursor;

use milonga_protocol::ServerName;
use serde::{Deserialize, Serialize};

use crate::history::{HistoryError, StoreChange};

pub use config::RaftConfig;
pub use errors::{NotConfirmed, ProposeError, StartError};
pub use leadership::Leadership;
pub use messages::{MESSAGE_BYTES, RaftDecodeError, RaftRequest, RaftResponse};
pub use network::RaftCarrier;
pub use replica::{Histories, Replica};
pub use store::{RAFT_STORE_VERSION, RaftDisk, RaftJob, RaftStore, RaftStoreError};

/// Number of a member of the layout; small, stable, never given to another machine or an emptied disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MemberId(pub u64);

impl From<u64> for MemberId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A member, as the others find it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its process.
    pub name: ServerName,
    /// Where that listens: `host:port` over QUIC, the name again in memory.
    pub address: String,
}

/// openraft fills gaps of a membership with this; ours have none.
impl Default for Member {
    fn default() -> Self {
        Self {
            name: "".into(),
            address: String::new(),
        }
    }
}

openraft::declare_raft_types!(
    /// openraft's types for the history.
    pub(crate) TypeConfig:
        D = StoreChange,
        R = Result<(), HistoryError>,
        NodeId = MemberId,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = runtime::EnvRuntime,
);

type Entry = openraft::Entry<TypeConfig>;
type LogId = openraft::LogId<MemberId>;
type Vote = openraft::Vote<MemberId>;
type Membership = openraft::Membership<MemberId, Member>;
type StoredMembership = openraft::StoredMembership<MemberId, Member>;
type SnapshotMeta = openraft::SnapshotMeta<MemberId, Member>;
type StorageError = openraft::StorageError<MemberId>;
