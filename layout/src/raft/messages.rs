//! What members say to each other.

use std::fmt;

use bytes::Bytes;
use milonga_protocol::messages::{self, DecodeError};
use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::records::{EntryRecord, LogIdRecord, MetaRecord, VoteRecord};
use super::{LogId, MemberId, TypeConfig};

/// Most bytes of an encoded request or response.
pub const MESSAGE_BYTES: usize = 4 << 20;
/// Most bytes of an encoded change.
pub(super) const CHANGE_BYTES: usize = 1 << 20;
/// Bytes of entries from which on no further one is added to a request.
pub(super) const ENTRIES_BYTES: usize = 1 << 20;
/// Bytes of a piece of a snapshot.
pub(super) const PIECE_BYTES: u64 = 1 << 20;
/// Most bytes of a snapshot.
pub(super) const SNAPSHOT_BYTES: u64 = 64 << 20;

/// A request of one member's raft to another's; opaque to who carries it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftRequest(pub(super) Request);

/// The answer to a [`RaftRequest`]; opaque to who carries it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftResponse(pub(super) Response);

/// Why bytes are not what members say to each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RaftDecodeError {
    /// Something else, or another version's.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// Larger than anything that a member sends.
    #[error("a raft message of {bytes} bytes is over the limit of {MESSAGE_BYTES}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
}

/// New variants go at the end only (postcard numbers them).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Request {
    Append {
        vote: VoteRecord,
        previous: Option<LogIdRecord>,
        entries: Vec<EntryRecord>,
        committed: Option<LogIdRecord>,
    },
    Vote {
        vote: VoteRecord,
        last: Option<LogIdRecord>,
    },
    Snapshot {
        vote: VoteRecord,
        meta: MetaRecord,
        offset: u64,
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        done: bool,
    },
}

/// New variants go at the end only (postcard numbers them).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Response {
    Appended,
    /// The entry before the first one is not there.
    Conflict,
    /// Somebody else was promised a later term.
    HigherVote(VoteRecord),
    Vote {
        vote: VoteRecord,
        granted: bool,
        last: Option<LogIdRecord>,
    },
    /// A piece of a snapshot was taken, if `vote` is not above the sender's.
    Snapshot {
        vote: VoteRecord,
    },
    /// Not the next piece: begin again.
    SnapshotMismatch,
    /// Nothing was done, and why.
    Failed(String),
}

impl RaftRequest {
    /// Encodes it; at most [`MESSAGE_BYTES`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        messages::encode(self)
    }

    /// Decodes what [`Self::encode`] made.
    ///
    /// # Errors
    /// [`RaftDecodeError`]: it is something else, or too large.
    pub fn decode(bytes: &[u8]) -> Result<Self, RaftDecodeError> {
        decode("raft request", bytes)
    }

    /// What it is, for people.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match &self.0 {
            Request::Append { entries, .. } if entries.is_empty() => "heartbeat",
            Request::Append { .. } => "append",
            Request::Vote { .. } => "vote",
            Request::Snapshot { .. } => "snapshot",
        }
    }

    /// Who says this. Whoever receives it MUST have proof of that: compare the process's certificate with
    /// [`Replica::member`](super::Replica::member).
    #[must_use]
    pub const fn sender(&self) -> MemberId {
        match &self.0 {
            Request::Append { vote, .. }
            | Request::Vote { vote, .. }
            | Request::Snapshot { vote, .. } => vote.member,
        }
    }
}

impl Request {
    /// Whether a member could have said this. openraft takes it for granted.
    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Append { vote, .. } | Self::Snapshot { vote, .. } if !vote.committed => {
                Err("only a leader sends entries".to_owned())
            }
            Self::Vote { vote, .. } if vote.committed => Err("a leader needs no vote".to_owned()),
            Self::Append {
                previous, entries, ..
            } => {
                let mut before = *previous;
                for EntryRecord { id, .. } in entries {
                    if !id.follows(before) {
                        return Err(format!("{id:?} cannot follow {before:?}"));
                    }
                    before = Some(*id);
                }
                Ok(())
            }
            Self::Snapshot { offset, data, .. }
                if offset.saturating_add(data.len() as u64) > SNAPSHOT_BYTES =>
            {
                Err(format!(
                    "a snapshot over the limit of {SNAPSHOT_BYTES} bytes"
                ))
            }
            Self::Vote { .. } | Self::Snapshot { .. } => Ok(()),
        }
    }
}

impl RaftResponse {
    /// Encodes it; at most [`MESSAGE_BYTES`].
    #[must_use]
    pub fn encode(&self) -> Bytes {
        messages::encode(self)
    }

    /// Decodes what [`Self::encode`] made.
    ///
    /// # Errors
    /// [`RaftDecodeError`]: it is something else, or too large.
    pub fn decode(bytes: &[u8]) -> Result<Self, RaftDecodeError> {
        decode("raft response", bytes)
    }

    pub(super) fn failed(why: impl fmt::Display) -> Self {
        Self(Response::Failed(why.to_string()))
    }
}

fn decode<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, RaftDecodeError> {
    if bytes.len() > MESSAGE_BYTES {
        let bytes = bytes.len();
        return Err(RaftDecodeError::TooLarge { bytes });
    }
    Ok(messages::decode(what, bytes)?)
}

impl fmt::Debug for RaftRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RaftResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn id(id: Option<LogId>) -> Option<LogIdRecord> {
    id.map(Into::into)
}

impl From<AppendEntriesRequest<TypeConfig>> for Request {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self::Append {
            vote: request.vote.into(),
            previous: id(request.prev_log_id),
            entries: request.entries.into_iter().map(Into::into).collect(),
            committed: id(request.leader_commit),
        }
    }
}

impl From<VoteRequest<MemberId>> for Request {
    fn from(request: VoteRequest<MemberId>) -> Self {
        Self::Vote {
            vote: request.vote.into(),
            last: id(request.last_log_id),
        }
    }
}

impl From<InstallSnapshotRequest<TypeConfig>> for Request {
    fn from(request: InstallSnapshotRequest<TypeConfig>) -> Self {
        Self::Snapshot {
            vote: request.vote.into(),
            meta: request.meta.into(),
            offset: request.offset,
            data: request.data,
            done: request.done,
        }
    }
}

impl From<AppendEntriesResponse<MemberId>> for Response {
    fn from(response: AppendEntriesResponse<MemberId>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Appended,
            AppendEntriesResponse::PartialSuccess(_) => Self::Failed("took only a part".into()),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

impl From<VoteResponse<MemberId>> for Response {
    fn from(response: VoteResponse<MemberId>) -> Self {
        Self::Vote {
            vote: response.vote.into(),
            granted: response.vote_granted,
            last: id(response.last_log_id),
        }
    }
}

impl From<Result<InstallSnapshotResponse<MemberId>, InstallSnapshotError>> for Response {
    fn from(response: Result<InstallSnapshotResponse<MemberId>, InstallSnapshotError>) -> Self {
        match response {
            Ok(response) => Self::Snapshot {
                vote: response.vote.into(),
            },
            Err(InstallSnapshotError::SnapshotMismatch(_)) => Self::SnapshotMismatch,
        }
    }
}
