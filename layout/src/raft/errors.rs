//! Why a member does not start, and why a call to it has no answer.

use super::MemberId;
use super::messages::CHANGE_BYTES;
use super::store::RaftStoreError;

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its own number is missing among the members.
    #[error("member {id} is not among the layout's members; list it in every configuration")]
    NotAMember {
        /// Its number.
        id: MemberId,
    },
    /// The cluster was made of other members. Who counts for a majority must be the same everywhere.
    #[error(
        "the layout was made of the members {made_of:?}, this process is configured with {configured:?}; configure the same everywhere"
    )]
    Members {
        /// Their numbers.
        made_of: Vec<u64>,
        /// Those in the configuration.
        configured: Vec<u64>,
    },
    /// The configured times contradict each other.
    #[error("the times of the layout's raft contradict each other: {0}")]
    Config(String),
    /// Its store is not its own.
    #[error(transparent)]
    Store(#[from] RaftStoreError),
    /// Its store or its raft fails.
    #[error("the layout's member {id} cannot run: {why}")]
    Failed {
        /// Its number.
        id: MemberId,
        /// What happened.
        why: String,
    },
}

/// Why a change has no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This member does not lead. If it did when the change was proposed, its fate is open: look at the history.
    #[error("this member of the layout does not lead; the leader is {}", leader.map_or("unknown".to_owned(), |id| id.to_string()))]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<MemberId>,
    },
    /// No majority confirmed it in time, or this member has stopped. The change's fate is open: it may still be
    /// committed later, or never. Look at the history.
    #[error("the layout has no verdict: {why}")]
    Unavailable {
        /// What happened.
        why: String,
    },
    /// A change may have that many bytes; nothing was done.
    #[error("a change of {bytes} bytes is over the limit of {CHANGE_BYTES}")]
    TooLarge {
        /// Bytes of the change.
        bytes: usize,
    },
}

/// Why a leadership is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotConfirmed {
    /// This member does not lead.
    #[error("this member of the layout does not lead")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<MemberId>,
    },
    /// No majority answered in time, or this member has stopped. It may lead, or not.
    #[error("no majority of the layout answered: {why}")]
    Unavailable {
        /// What happened.
        why: String,
    },
}
