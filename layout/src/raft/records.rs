//! What lies on disk and what travels: records of our own, converted from and to openraft's types.
//!
//! Every record on disk is a version (u16, little-endian) and postcard. So neither depends on how openraft derives its
//! serialisation, and a new version of it changes no format by accident.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::change::Origin;
use milonga_protocol::{ClusterId, Epoch, Layout, Position, UnitId, messages};
use openraft::{CommittedLeaderId, EntryPayload, LeaderId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Entry, LogId, Member, MemberId, Membership, SnapshotMeta, StoredMembership, Vote};
use crate::history::{History, StoreChange};
use crate::policy::Policy;

/// Version of the records.
pub(super) const RECORD_VERSION: u16 = 2;
/// The oldest version that can still be read; what is written is of the newest.
pub(super) const OLDEST_RECORD_VERSION: u16 = 1;

/// Encodes a record for the disk.
pub(super) fn encode(record: &impl Serialize) -> Vec<u8> {
    let mut bytes = RECORD_VERSION.to_le_bytes().to_vec();
    bytes.extend_from_slice(&messages::encode(record));
    bytes
}

/// Decodes a record from the disk; `what` is for the error.
pub(super) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, String> {
    let Some((version, rest)) = bytes.split_first_chunk() else {
        return Err(format!("a {what} is cut"));
    };
    let record = match u16::from_le_bytes(*version) {
        RECORD_VERSION => messages::decode(what, rest),
        // Version 1 knew no origins. They come last in what has them, and that there are none is one zero.
        1 => {
            messages::decode(what, rest).or_else(|_| messages::decode(what, &[rest, &[0]].concat()))
        }
        other => return Err(format!("a {what} of unknown version {other}")),
    };
    record.map_err(|error| error.to_string())
}

/// A promise, or a leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VoteRecord {
    pub(super) term: u64,
    pub(super) member: MemberId,
    pub(super) committed: bool,
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            member: vote.leader_id.node_id,
            committed: vote.committed,
        }
    }
}

impl From<VoteRecord> for Vote {
    fn from(record: VoteRecord) -> Self {
        Self {
            leader_id: LeaderId::new(record.term, record.member),
            committed: record.committed,
        }
    }
}

/// A place in the log, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogIdRecord {
    term: u64,
    member: MemberId,
    index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self {
            term: id.leader_id.term,
            member: id.leader_id.node_id,
            index: id.index,
        }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        let leader = CommittedLeaderId::new(record.term, record.member);
        Self::new(leader, record.index)
    }
}

impl LogIdRecord {
    /// Whether an entry can be the next one behind another, or the first of all.
    pub(super) fn follows(self, before: Option<Self>) -> bool {
        before.map_or(self.index == 0, |before| {
            let rises = (self.term, self.member) >= (before.term, before.member);
            rises && before.index.checked_add(1) == Some(self.index)
        })
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EntryRecord {
    pub(super) id: LogIdRecord,
    payload: PayloadRecord,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PayloadRecord {
    Blank,
    Change(StoreChange),
    Membership(MembershipRecord),
}

impl From<Entry> for EntryRecord {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => PayloadRecord::Blank,
            EntryPayload::Normal(change) => PayloadRecord::Change(change),
            EntryPayload::Membership(members) => PayloadRecord::Membership(members.into()),
        };
        let id = entry.log_id.into();
        Self { id, payload }
    }
}

impl From<EntryRecord> for Entry {
    fn from(record: EntryRecord) -> Self {
        let payload = match record.payload {
            PayloadRecord::Blank => EntryPayload::Blank,
            PayloadRecord::Change(change) => EntryPayload::Normal(change),
            PayloadRecord::Membership(members) => EntryPayload::Membership(members.into()),
        };
        let log_id = record.id.into();
        Self { log_id, payload }
    }
}

/// Who is asked for a majority: of each set, while one follows the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembershipRecord {
    sets: Vec<BTreeSet<MemberId>>,
    members: BTreeMap<MemberId, Member>,
}

impl From<Membership> for MembershipRecord {
    fn from(membership: Membership) -> Self {
        let members = membership.nodes();
        Self {
            sets: membership.get_joint_config().clone(),
            members: members.map(|(id, m)| (*id, m.clone())).collect(),
        }
    }
}

impl From<MembershipRecord> for Membership {
    fn from(record: MembershipRecord) -> Self {
        Self::new(record.sets, record.members)
    }
}

/// What a snapshot holds, besides the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MetaRecord {
    last: Option<LogIdRecord>,
    membership_at: Option<LogIdRecord>,
    membership: MembershipRecord,
    id: String,
}

impl From<SnapshotMeta> for MetaRecord {
    fn from(meta: SnapshotMeta) -> Self {
        let stored = &meta.last_membership;
        Self {
            last: meta.last_log_id.map(Into::into),
            membership_at: stored.log_id().map(Into::into),
            membership: stored.membership().clone().into(),
            id: meta.snapshot_id,
        }
    }
}

impl From<MetaRecord> for SnapshotMeta {
    fn from(record: MetaRecord) -> Self {
        let at = record.membership_at.map(Into::into);
        Self {
            last_log_id: record.last.map(Into::into),
            last_membership: StoredMembership::new(at, record.membership.into()),
            snapshot_id: record.id,
        }
    }
}

/// A whole history.
#[derive(Serialize, Deserialize)]
struct HistoryRecord {
    cluster: Option<ClusterId>,
    current: Option<Layout>,
    intent: Option<Epoch>,
    starts: BTreeMap<Epoch, Position>,
    opened: BTreeMap<UnitId, Epoch>,
    settled: Epoch,
    given_up: Option<(Position, Position)>,
    policy: Policy,
    origins: BTreeMap<Epoch, Origin>,
}

pub(super) fn encode_history(history: &History) -> Vec<u8> {
    let History {
        cluster,
        current,
        intent,
        starts,
        opened,
        settled,
        given_up,
        policy,
        origins,
    } = history.clone();
    encode(&HistoryRecord {
        cluster,
        current,
        intent,
        starts,
        opened,
        settled,
        given_up,
        policy,
        origins,
    })
}

/// Refuses what is no history.
pub(super) fn decode_history(bytes: &[u8]) -> Result<History, String> {
    let record: HistoryRecord = decode("snapshot", bytes)?;
    let history = History {
        cluster: record.cluster,
        current: record.current,
        intent: record.intent,
        starts: record.starts,
        opened: record.opened,
        settled: record.settled,
        given_up: record.given_up,
        policy: record.policy,
        origins: record.origins,
    };
    history.check()?;
    Ok(history)
}
