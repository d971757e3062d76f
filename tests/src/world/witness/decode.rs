//! What an entry's payload says, read by mirrors of the format: nothing here is shared with the product.

use serde::{Deserialize, Serialize};

/// A record of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Holds in any case.
    Update(Update),
    /// Holds if nothing was changed that was read.
    Commit(Commit),
    /// A verdict, written down.
    Decision {
        /// Of the commit record in this entry,
        position: u64,
        /// this one.
        record: u32,
        /// What it is.
        committed: bool,
    },
}

/// One operation on one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The object's stream.
    pub stream: u64,
    /// What it changes.
    pub touches: Touched,
    /// Version of the operation's encoding.
    pub op_version: u16,
    /// The operation.
    pub op: Vec<u8>,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// It saw everything below.
    pub snapshot: u64,
    /// It aborts if the snapshot is more than this below it.
    pub window: u64,
    /// What it read: stream, and what of it.
    pub reads: Vec<(u64, ReadOf)>,
    /// What it changes.
    pub updates: Vec<Update>,
}

/// What was read of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOf {
    /// These keys.
    Keys(Vec<Vec<u8>>),
    /// All of it.
    Whole,
}

/// What an update changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Touched {
    /// No key.
    None,
    /// One key.
    One(Vec<u8>),
    /// Several.
    Many(Vec<Vec<u8>>),
    /// Anything.
    Whole,
}

impl Touched {
    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[Vec<u8>] {
        match self {
            Self::None | Self::Whole => &[],
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

/// The records of a payload; `None`: it is none.
#[must_use]
pub fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let [b'O', 1, rest @ ..] = payload else {
        return None;
    };
    let mut rest = rest.get(8..)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (record, after) = postcard::take_from_bytes(rest).ok()?;
        records.push(record);
        rest = after;
    }
    Some(records)
}

/// A payload of these records.
#[must_use]
pub fn encode(tag: u64, records: &[Record]) -> Vec<u8> {
    let mut payload = vec![b'O', 1];
    payload.extend_from_slice(&tag.to_le_bytes());
    for record in records {
        payload = postcard::to_extend(record, payload).unwrap_or_default();
    }
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_payload_reads_the_same_here() {
        let golden = include_bytes!("../../../../objects/golden/payload-v1.bin");
        let records = decode(golden).expect("a payload");
        assert_eq!(encode(0x0123_4567_89ab_cdef, &records), golden);
        assert_eq!(records.len(), 4);
        let Record::Commit(commit) = &records[2] else {
            panic!("{records:?}");
        };
        assert_eq!((commit.snapshot, commit.window), (70_000, 1 << 18));
        assert_eq!(commit.reads[1], (18, ReadOf::Whole));
        assert_eq!(commit.updates[2].touches.keys().len(), 2);
        assert_eq!(decode(b"rubbish"), None);
    }
}
