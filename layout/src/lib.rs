//! The layout: its history, and the reconfiguration that makes the next one.
//!
//! ```text
//!   Hello, Get, ReportSealed --> LayoutCore (pure) --> Send to units and sequencer, Store, Reply
//!                                   |       |
//!                     planner: (plan, history, observations) -> next layout, or why not
//!                                   |
//!                     History <-- compare-and-set -- Replica (raft: openraft, redb)
//! ```
//!
//! A [`LayoutMember`] follows, or leads with a [`LayoutCore`] of its own, begun from the history of its [`Replica`].
//!
//! Every start, of the embedded log or of a cluster, and every return of a restarted server is a reconfiguration
//! (rule 15): intent, seal, collect, commit, open and bootstrap, publish, settle. Crash recovery and failover are one
//! path. Everything after the commit is derived from the committed layout and what the sealed units reported; a leader
//! that crashes in between leaves nothing but an intent or a layout in the store, and its successor begins anew: one
//! layout per epoch, epochs only rise. Only an epoch at rest goes on under another leader of several.
//!
//! The cores know no sockets, tasks or clocks; [`RaftStore`] alone touches a disk ([`LayoutStore`] reads what was kept before
//! there was raft). The host drives a [`LayoutMember`]: it carries out effects and feeds back what came of them.

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
mod lease;
mod member;
mod opening;
mod phase;
mod plan;
mod planner;
mod policy;
mod raft;
mod reconfigure;
mod restless;
mod resuming;
#[cfg(test)]
mod samples;
mod settling;
mod slowness;
mod store;
mod suspicion;
mod tails;
mod took;
mod words;

#[cfg(test)]
mod tests;

pub use core::LayoutCore;
pub use effect::{ConfirmId, LayoutEffect, StoreId};
pub use history::{History, HistoryError, StoreChange};
pub use member::{LayoutMember, Reign};
pub use milonga_protocol::settle::{SendId, SendOutcome};
pub use plan::{ClusterPlan, PlanError, SPARE_AFTER};
pub use policy::Policy;
pub use raft::{
    Histories, Leadership, MESSAGE_BYTES, Member, MemberId, NotConfirmed, ProposeError,
    RAFT_STORE_VERSION, RaftCarrier, RaftConfig, RaftDecodeError, RaftDisk, RaftJob, RaftRequest,
    RaftResponse, RaftStore, RaftStoreError, Replica, StartError,
};
pub use store::{LayoutStore, STORE_VERSION, StoreError};
