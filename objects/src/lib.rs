//! Replicated objects: deterministic state machines that live in the processes that use them, kept alike by
//! replaying one shared log.
//!
//! ```text
//!   Map  Counter  Queue  Handle<your Object>      Tx        Snapshot      handles and futures
//!          \       |       /                       |           |
//!           `---- Replica ---- submits, syncs, plays: three tasks
//!                    |
//!        Playback (verdicts, versions)  World (states)                    pure
//!                    |
//!               milonga_protocol::Log                                     MemoryLog, or a cluster's client
//! ```
//!
//! * [`Replica`] opens objects: [`Map`], [`Counter`], [`Queue`], or any [`Object`] through a [`Handle`].
//! * Updates are futures ([`Update`]) that resolve to what `apply` returned.
//! * Reads are linearizable (`get().await`), local (`peek()`), or of a frozen world ([`Replica::snapshot`]).
//! * [`Replica::transaction`] reads and changes several objects, strictly serializable; a conflict is an
//!   [`Outcome`], not an error.
//!
//! The crate is pure but for its handles: clock, randomness and tasks come from `milonga_protocol::Env`, entries
//! from `milonga_protocol::Log`. See [`Replica`] for an example.

mod counter;
mod directory;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod handle;
mod key;
mod map;
mod object;
mod playback;
mod queue;
mod record;
mod replica;
mod slot;
mod snapshot;
mod table;
mod transaction;
mod update;
mod versions;
mod world;

pub use counter::{Counter, CounterOp, CounterState};
pub use directory::{ObjectInfo, ObjectKind};
pub use error::{Halt, OpenError, ReadError, ReplicaHalt, TransactionError, UpdateError};
pub use handle::{Handle, Opened};
pub use key::{EncodeKey, Key, KeyBytes, show as show_key};
pub use map::{Entries, Map, MapOp, MapState};
pub use object::{Context, Object, Touches, Value};
pub use queue::{ItemKey, Pop, Queue, QueueOp, QueueOutput, QueueState};
pub use replica::{Replica, ReplicaOptions};
pub use snapshot::{Snapshot, View};
pub use transaction::{Len, Outcome, Tx};
pub use update::{Settled, Ticket, Update, WithPosition};
