//! The layout's place in a process: a raft replica of the history on a disk of its own, and the core that decides while
//! this member leads.
//!
//! ```text
//!   other members ──> Door ──> Replica ──> Carrier ──> other members
//!                               │  ^
//!        who leads, what grows  v  │ propose
//!                 Supervisor ──> Host: LayoutRole ──> Steering ──> units, sequencers
//! ```

mod carrier;
mod door;
mod store;
mod supervisor;

use std::collections::BTreeMap;

use milonga_layout::{ClusterPlan, Member, MemberId, RaftConfig};
use milonga_protocol::ServerName;
use milonga_transport::Peer;

pub(crate) use carrier::Carrier;
pub(crate) use door::Door;
pub use store::NEW_LAYOUT;
pub(crate) use store::{exists, open, remove_mark};
pub(crate) use supervisor::Supervisor;

/// The layout, as one of its members has it configured.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayoutPlan {
    /// Chains, sequencers, spares and limits; the same on all members.
    pub cluster: ClusterPlan,
    /// All members, this one included; the same on all members. Their order does not matter: a member's number is its
    /// place among the names.
    pub members: Vec<Peer>,
    /// How fast the members notice that one of them is gone.
    pub raft: RaftConfig,
}

impl LayoutPlan {
    /// A layout with these members.
    #[must_use]
    pub fn new(cluster: ClusterPlan, members: Vec<Peer>) -> Self {
        Self {
            cluster,
            members,
            raft: RaftConfig::default(),
        }
    }

    /// The members by number.
    pub(crate) fn members(&self) -> BTreeMap<MemberId, Member> {
        let named: BTreeMap<_, _> = (self.members.iter())
            .map(|peer| (&peer.name, &peer.address))
            .collect();
        let member = |(name, address): (&ServerName, &std::sync::Arc<str>)| Member {
            name: name.clone(),
            address: address.to_string(),
        };
        (1..)
            .map(MemberId)
            .zip(named.into_iter().map(member))
            .collect()
    }
}
