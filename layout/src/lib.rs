//! The layout: its history, and the reconfiguration that makes the next one.
//!
//! ```text
//!   Hello, Get, ReportSealed --> LayoutCore (pure) --> Send to units and sequencer, Store, Reply
//!                                   |       |
//!                     planner: (plan, history, observations) -> next layout, or why not
//!                                   |
//!                     History <-- compare-and-set -- LayoutStore (redb, or memory)
//! ```
//!
//! Every start, of the embedded log or of a cluster, and every return of a restarted server is a reconfiguration
//! (rule 15): intent, seal, collect, commit, open and bootstrap, publish, settle. Crash recovery and failover are one
//! path. Everything after the commit is derived from the committed layout and what the sealed units reported; a leader
//! that crashes in between leaves nothing but an intent or a layout in the store, and its successor begins anew: one
//! layout per epoch, epochs only rise.
//!
//! Nothing in here knows of sockets, tasks or clocks; [`LayoutStore`] alone touches a disk. The host drives
//! [`LayoutCore`]: it carries out effects and feeds back what came of them.

mod algebra;
mod change;
mod copying;
mod core;
mod courier;
mod effect;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod gets;
mod heard;
mod history;
mod joining;
mod opening;
mod phase;
mod plan;
mod planner;
mod policy;
mod raft;
mod reconfigure;
#[cfg(test)]
mod samples;
mod settling;
mod store;
mod suspicion;
mod tails;
mod words;

#[cfg(test)]
mod tests;

pub use core::LayoutCore;
pub use effect::{LayoutEffect, StoreId};
pub use history::{History, HistoryError, StoreChange};
pub use milonga_protocol::settle::{SendId, SendOutcome};
pub use plan::{ClusterPlan, PlanError, SPARE_AFTER};
pub use policy::Policy;
pub use raft::{
    Leadership, MESSAGE_BYTES, Member, MemberId, NotConfirmed, ProposeError, RAFT_STORE_VERSION,
    RaftCarrier, RaftConfig, RaftDecodeError, RaftDisk, RaftJob, RaftRequest, RaftResponse,
    RaftStore, RaftStoreError, Replica, StartError,
};
pub use store::{LayoutStore, STORE_VERSION, StoreError};
