//! The words, messages, formats and contracts that every part of Milonga shares.
//!
//! ```text
//!   objects      client      node hosts: sequencer   log-units   layout
//!      \           |  \                      |           |          |
//!       `----------+---`------ transport ----+-----------+----------'
//!                  |                         |
//!                  `------- protocol --------'     (this crate: nothing below it)
//! ```
//!
//! This crate is pure: no clock, no task, no socket, no file, no randomness of its own. What needs
//! those takes them from [`mod@env`]. Ranges of positions are half-open everywhere: `from..to`, and a
//! *mark* such as [`Tail::next`] or a settled mark is the first position that is *not* included.
//!
//! Start with [`log`]: it is the contract that clients implement and objects use.

pub mod change;
mod codec;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod entry;
pub mod env;
pub mod frame;
mod ids;
pub mod layout;
pub mod limits;
pub mod log;
pub mod memory;
pub mod messages;
pub mod plants;
pub mod settle;
pub mod sync;

pub use entry::{BackPointers, EncodedEntry, Entry, EntryError, ListEnd, StreamLink, Value};
pub use env::{BoxFuture, Env, SharedEnv, Task, Time};
pub use ids::{
    ClusterId, EntryId, Epoch, Incarnation, Position, ServerName, StreamId, UnitId, WriterId,
};
pub use layout::{Joining, Layout, Published, Redundancy, Segment, UnitIndex, UnitRange, UnitRef};
pub use limits::Limits;
pub use log::{
    AppendError, Appended, Log, LogError, NewEntry, ReadAnswer, SharedLog, StreamPart, StreamRead,
    Tail, TailOf, Target, Written,
};
pub use memory::MemoryLog;
