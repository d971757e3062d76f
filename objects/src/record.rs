//! What the payload of an entry holds: the records of one or more tasks, as bytes.
//!
//! ```text
//! 0  u8  magic 'O'    1  u8  version    2  u64 LE  tag: the writing replica's number for this entry
//! 10 records, postcard, one behind the other, up to the end
//! ```
//!
//! Rules that every build must keep, because verdicts must be alike everywhere:
//! * A payload of a *newer version* stops the whole replica: it cannot know what else it would decide wrongly.
//! * A payload that is *no payload at all* (another magic, undecodable in this version, or with a record of a stream that
//!   it was not appended to) has no records: it halts the objects of the streams it was appended to, and counts as a
//!   change of everything in them.

use milonga_protocol::{Entry, Position, StreamId};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes as Slice;

use crate::object::Touches;

/// First byte of every payload.
const MAGIC: u8 = b'O';
/// Version of the payload.
const VERSION: u8 = 1;
/// Bytes before the first record.
pub(crate) const HEADER_BYTES: usize = 10;

/// One thing that an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record<'a> {
    /// An update that holds in any case.
    Update(#[serde(borrow)] Update<'a>),
    /// Updates that hold if nothing was changed that the transaction read.
    Commit(#[serde(borrow)] Commit<'a>),
    /// The verdict on a commit record, for those who cannot decide it alone.
    Decision(Decision),
}

/// One operation on one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Update<'a> {
    pub(crate) stream: StreamId,
    #[serde(borrow)]
    pub(crate) touches: TouchedKeys<'a>,
    pub(crate) op_version: u16,
    #[serde(borrow)]
    pub(crate) op: &'a Slice,
}

/// A transaction: judged at its own position by what is between `snapshot` and there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commit<'a> {
    /// S, exclusive: the transaction saw everything below it.
    pub(crate) snapshot: Position,
    /// w: the transaction aborts if S is more than this below its position.
    pub(crate) window: u64,
    #[serde(borrow)]
    pub(crate) reads: Vec<Read<'a>>,
    #[serde(borrow)]
    pub(crate) updates: Vec<Update<'a>>,
}

/// What a transaction read of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Read<'a> {
    pub(crate) stream: StreamId,
    #[serde(borrow)]
    pub(crate) what: ReadKeys<'a>,
}

/// Keys, or all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ReadKeys<'a> {
    Keys(#[serde(borrow)] Vec<&'a Slice>),
    Whole,
}

/// What an update touches. Four forms, so that the common ones decode without an allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TouchedKeys<'a> {
    /// No key: only readers of the whole object notice.
    None,
    One(#[serde(borrow)] &'a Slice),
    Many(#[serde(borrow)] Vec<&'a Slice>),
    Whole,
}

impl<'a> TouchedKeys<'a> {
    /// Number of keys named.
    pub(crate) const fn count(&self) -> usize {
        match self {
            Self::None | Self::Whole => 0,
            Self::One(_) => 1,
            Self::Many(keys) => keys.len(),
        }
    }

    pub(crate) fn new(touches: &'a Touches) -> Self {
        match touches {
            Touches::Whole => Self::Whole,
            Touches::Keys(keys) => match keys.as_slice() {
                [] => Self::None,
                [key] => Self::One(Slice::new(key.as_slice())),
                keys => Self::Many(keys.iter().map(|key| Slice::new(key.as_slice())).collect()),
            },
        }
    }
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) position: Position,
    pub(crate) record: u32,
    pub(crate) committed: bool,
}

impl<'a> Record<'a> {
    /// The updates it makes, if it holds.
    pub(crate) fn updates(&self) -> &[Update<'a>] {
        match self {
            Self::Update(update) => std::slice::from_ref(update),
            Self::Commit(commit) => &commit.updates,
            Self::Decision(_) => &[],
        }
    }

    /// Appends the record's bytes.
    pub(crate) fn encode(&self, out: Vec<u8>) -> Vec<u8> {
        postcard::to_extend(self, out).expect("plain data into memory")
    }
}

/// Begins a payload.
pub(crate) fn begin_payload(tag: u64, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + capacity);
    out.extend_from_slice(&[MAGIC, VERSION]);
    out.extend_from_slice(&tag.to_le_bytes());
    out
}

/// Why a payload has no records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PayloadError {
    /// Written by a newer build.
    Newer(u8),
    /// Not written by Milonga's objects, or damaged before it was appended.
    Malformed(String),
}

/// A payload's tag and records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    pub(crate) tag: u64,
    pub(crate) records: Vec<Record<'a>>,
}

/// Decodes a payload; nothing is copied out of it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Payload<'_>, PayloadError> {
    let malformed = |why: &str| PayloadError::Malformed(why.into());
    match bytes {
        [MAGIC, version, ..] if *version > VERSION => return Err(PayloadError::Newer(*version)),
        [MAGIC, VERSION, ..] => {}
        _ => return Err(malformed("the entry was not written by an object")),
    }
    let Some(([_, _, tag @ ..], mut rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(malformed("the entry is shorter than its header"));
    };
    let mut records = Vec::with_capacity(rest.len() / 48 + 1);
    while !rest.is_empty() {
        let (record, after) = postcard::take_from_bytes(rest)
            .map_err(|error| PayloadError::Malformed(error.to_string()))?;
        records.push(record);
        rest = after;
    }
    Ok(Payload {
        tag: u64::from_le_bytes(*tag),
        records,
    })
}

/// Decodes what `entry` holds. A record that changes an object to whose stream the entry was not appended makes the
/// whole entry malformed: who reads that stream alone would never see it, and decide differently.
pub(crate) fn decode_entry(entry: &Entry) -> Result<Payload<'_>, PayloadError> {
    let payload = decode(&entry.payload)?;
    let updates = payload.records.iter().flat_map(Record::updates);
    for update in updates {
        if !entry.streams().any(|linked| linked == update.stream) {
            let why = format!(
                "a record changes {}, but its entry is not in that stream",
                update.stream
            );
            return Err(PayloadError::Malformed(why));
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyBytes;
    use proptest::prelude::*;

    fn slice(bytes: &[u8]) -> &Slice {
        Slice::new(bytes)
    }

    fn examples() -> Vec<Record<'static>> {
        let update = Update {
            stream: StreamId(16),
            touches: TouchedKeys::One(slice(b"key")),
            op_version: 1,
            op: slice(b"operation"),
        };
        let whole = Update {
            stream: StreamId(300),
            touches: TouchedKeys::Whole,
            op_version: 700,
            op: slice(b""),
        };
        let many = Update {
            touches: TouchedKeys::Many(vec![slice(b"a"), slice(b"")]),
            ..update.clone()
        };
        let none = Update {
            touches: TouchedKeys::None,
            ..update.clone()
        };
        vec![
            Record::Update(update.clone()),
            Record::Update(none),
            Record::Commit(Commit {
                snapshot: Position(70_000),
                window: 1 << 18,
                reads: vec![
                    Read {
                        stream: StreamId(16),
                        what: ReadKeys::Keys(vec![slice(b"x"), slice(b"y")]),
                    },
                    Read {
                        stream: StreamId(18),
                        what: ReadKeys::Whole,
                    },
                ],
                updates: vec![update, whole, many],
            }),
            Record::Decision(Decision {
                position: Position(69_999),
                record: 2,
                committed: true,
            }),
        ]
    }

    fn encode(tag: u64, records: &[Record<'_>]) -> Vec<u8> {
        records
            .iter()
            .fold(begin_payload(tag, 0), |out, record| record.encode(out))
    }

    #[test]
    fn golden_payload_is_still_read_and_written_alike() {
        let golden = include_bytes!("../golden/payload-v1.bin");
        let records = examples();
        let payload = decode(golden).expect("the golden payload");
        assert_eq!(payload.tag, 0x0123_4567_89ab_cdef);
        assert_eq!(payload.records, records);
        assert_eq!(encode(payload.tag, &records), golden);
    }

    #[test]
    fn newer_and_foreign_payloads_are_told_apart() {
        let mut bytes = encode(1, &examples());
        bytes[1] = 9;
        assert_eq!(decode(&bytes), Err(PayloadError::Newer(9)));
        bytes[0] = b'X';
        assert!(matches!(decode(&bytes), Err(PayloadError::Malformed(_))));
        assert!(matches!(decode(b"O"), Err(PayloadError::Malformed(_))));
    }

    #[test]
    fn truncated_payloads_never_decode_to_the_same() {
        let bytes = encode(5, &examples());
        for len in 0..bytes.len() {
            assert_ne!(
                decode(&bytes[..len]).ok().map(|p| p.records),
                Some(examples())
            );
        }
    }

    #[test]
    fn touches_take_their_shortest_form() {
        let key = |text: &str| KeyBytes::of(text);
        let none = Touches::Keys(vec![]);
        let one = Touches::Keys(vec![key("a")]);
        let two = Touches::Keys(vec![key("a"), key("b")]);
        assert_eq!(TouchedKeys::new(&none), TouchedKeys::None);
        assert_eq!(TouchedKeys::new(&one), TouchedKeys::One(slice(b"a")));
        assert_eq!(
            TouchedKeys::new(&two),
            TouchedKeys::Many(vec![slice(b"a"), slice(b"b")])
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<Vec<u8>>(), tail in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
            let mut framed = begin_payload(1, 0);
            framed.extend_from_slice(&tail);
            let _ = decode(&framed);
        }
    }
}
