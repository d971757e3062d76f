//! What one position holds, and how it is stored: encoded once by the writer, stored and served as received.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::Reader;
use crate::ids::{EntryId, Position, StreamId, WriterId};
use crate::limits::{BACKPOINTERS, MAX_ENTRY_BYTES, MAX_STREAMS_PER_ENTRY};

/// Version of the entry encoding.
pub const ENTRY_VERSION: u8 = 1;
const FIXED: usize = 40;
const FLAG_RESERVED_SPACE: u8 = 1;

/// What lies beyond the last pointer of a list. Never inferred from a short list (rule 24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ListEnd {
    /// Nothing: the list names every entry of the stream.
    Beginning,
    /// Only entries below the trim mark.
    BelowTrim,
    /// There may be more.
    Unknown,
}

/// The last positions of a stream, newest first, at most [`BACKPOINTERS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackPointers {
    len: u8,
    positions: [Position; BACKPOINTERS],
    end: ListEnd,
}

impl BackPointers {
    /// The list of a stream of which nothing was written.
    pub const EMPTY: Self = Self::none(ListEnd::Beginning);

    /// A list without pointers.
    #[must_use]
    pub const fn none(end: ListEnd) -> Self {
        Self {
            len: 0,
            positions: [Position::ZERO; BACKPOINTERS],
            end,
        }
    }

    /// Makes a list from positions, newest first. What does not fit is dropped and the end becomes `Unknown`.
    #[must_use]
    pub fn new(newest_first: impl IntoIterator<Item = Position>, end: ListEnd) -> Self {
        let mut list = Self::none(end);
        for position in newest_first {
            if usize::from(list.len) >= BACKPOINTERS {
                list.end = ListEnd::Unknown;
                break;
            }
            list.positions[usize::from(list.len)] = position;
            list.len += 1;
        }
        list
    }

    /// The pointers, newest first.
    #[must_use]
    pub fn positions(&self) -> &[Position] {
        &self.positions[..usize::from(self.len).min(BACKPOINTERS)]
    }

    /// What lies beyond them.
    #[must_use]
    pub const fn end(&self) -> ListEnd {
        self.end
    }

    /// The newest position of the stream, if the list names one.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.positions().first().copied()
    }

    /// The list as it may be believed if everything below `lost` (exclusive; 0 = nothing) may hide entries of the
    /// stream: it names the last of those positions, ends `Unknown` there, and says nothing of what lies below.
    ///
    /// So whoever reads up to the newest position looks at what was lost, also if nothing else is known of the
    /// stream.
    #[must_use]
    pub fn down_to_lost(self, lost: Position) -> Self {
        let Some(last_lost) = lost.0.checked_sub(1).map(Position) else {
            return self;
        };
        let positions = self.positions();
        // A list that ends `Unknown` above says nothing of what lies between.
        let hides = |oldest: Option<&Position>| oldest.is_none_or(|p| *p > last_lost);
        if self.end == ListEnd::Unknown && hides(positions.last()) {
            return self;
        }
        let above = positions.iter().copied().take_while(|p| *p > last_lost);
        Self::new(above.chain([last_lost]), ListEnd::Unknown)
    }

    /// Adds a newer position in front; the oldest falls off a full list.
    pub fn push(&mut self, newest: Position) {
        if usize::from(self.len) >= BACKPOINTERS {
            self.end = ListEnd::Unknown;
        } else {
            self.len += 1;
        }
        self.positions.rotate_right(1);
        self.positions[0] = newest;
    }
}

impl std::fmt::Debug for BackPointers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}…{:?}", self.positions(), self.end)
    }
}

/// Membership of an entry in a stream, with the way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamLink {
    /// The stream.
    pub stream: StreamId,
    /// The stream's entries before this one, as the sequencer granted them (some may be holes or junk).
    pub back: BackPointers,
}

/// The data that one position holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose write this is.
    pub id: EntryId,
    /// The streams it belongs to.
    pub links: Vec<StreamLink>,
    /// The application's bytes.
    pub payload: Bytes,
}

impl Entry {
    /// The streams this entry belongs to.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.links.iter().map(|link| link.stream)
    }
}

/// What a settled position holds for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An entry.
    Data(EncodedEntry),
    /// Nothing: the hole was filled.
    Junk,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Fewer bytes than the entry says it has, or more.
    #[error("the entry has {got} bytes where its header says {want}")]
    Length {
        /// Bytes present.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// The checksum does not match: damaged on the way or on disk.
    #[error("the entry's checksum does not match its bytes")]
    Checksum,
    /// Written by a version that this one does not know.
    #[error("entry format version {0} is unknown to this build; upgrade it")]
    Version(u8),
    /// The header's fields contradict each other or a limit.
    #[error("the entry's header is malformed: {0}")]
    Malformed(&'static str),
}

/// An entry as it travels and is stored: checksum computed once, by the writer.
///
/// ```text
/// 0   u32  CRC-32C of everything behind it
/// 4   u8   version   5  u8 flags   6  u8 number of links   7  u8 zero
/// 8   u32  payload length          12 u32 length of the links
/// 16  u128 writer                  32 u64 sequence
/// 40  links: stream (LEB128), a byte {count: 3 bits, end: 2 bits, absolute: 1 bit},
///     pointers as u16 distances below the entry's own position, or as u64
/// ..  payload
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedEntry(Bytes);

impl EncodedEntry {
    /// Encodes `entry` for `position` (backpointers are stored relative to it).
    ///
    /// # Panics
    /// If the entry exceeds [`MAX_ENTRY_BYTES`] or [`MAX_STREAMS_PER_ENTRY`]: callers check the layout's
    /// limits, which are never above these.
    #[must_use]
    pub fn encode(position: Position, entry: &Entry, reserved_space: bool) -> Self {
        let payload_len = u32::try_from(entry.payload.len()).unwrap_or(u32::MAX);
        let count = u8::try_from(entry.links.len()).unwrap_or(u8::MAX);
        assert!(
            payload_len <= MAX_ENTRY_BYTES,
            "limit is checked at submission"
        );
        assert!(
            u32::from(count) <= MAX_STREAMS_PER_ENTRY,
            "limit is checked at submission"
        );
        let mut out = BytesMut::with_capacity(FIXED + entry.links.len() * 24 + entry.payload.len());
        out.put_u32_le(0);
        out.put_u8(ENTRY_VERSION);
        out.put_u8(if reserved_space {
            FLAG_RESERVED_SPACE
        } else {
            0
        });
        out.put_u8(count);
        out.put_u8(0);
        out.put_u32_le(payload_len);
        out.put_u32_le(0);
        out.put_u128_le(entry.id.writer.0);
        out.put_u64_le(entry.id.sequence);
        for link in &entry.links {
            encode_link(&mut out, position, link);
        }
        let links_len = u32::try_from(out.len() - FIXED).expect("64 links of at most 43 bytes");
        out[12..16].copy_from_slice(&links_len.to_le_bytes());
        out.put_slice(&entry.payload);
        let crc = crc32c::crc32c(&out[4..]);
        out[0..4].copy_from_slice(&crc.to_le_bytes());
        Self(out.freeze())
    }

    /// Takes bytes for an entry after checking length, checksum, version and links.
    ///
    /// # Errors
    /// [`EntryError`] says what is wrong with them.
    pub fn check(bytes: Bytes) -> Result<Self, EntryError> {
        let fixed = Fixed::read(&bytes)?;
        if bytes.len() != fixed.total() {
            return Err(EntryError::Length {
                got: bytes.len(),
                want: fixed.total(),
            });
        }
        if crc32c::crc32c(&bytes[4..]) != fixed.crc {
            return Err(EntryError::Checksum);
        }
        let encoded = Self(bytes);
        // A pointer relative to a too low position is the only thing that depends on the position.
        encoded.decode(Position::MAX)?;
        Ok(encoded)
    }

    /// The stored bytes, checksum included.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Number of stored bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: an entry has a header at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose write this is.
    #[must_use]
    pub fn id(&self) -> EntryId {
        let mut r = Reader(&self.0[16..FIXED]);
        EntryId {
            writer: WriterId(r.u128().unwrap_or_default()),
            sequence: r.u64().unwrap_or_default(),
        }
    }

    /// Whether the writer flagged the entry to go on from the reserve when the disk is full
    /// (checkpoint and directory entries, rule 29).
    #[must_use]
    pub fn reserved_space(&self) -> bool {
        self.0[5] & FLAG_RESERVED_SPACE != 0
    }

    /// The streams the entry belongs to.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamId> {
        self.decode(Position::MAX)
            .map(|entry| entry.streams().collect())
            .unwrap_or_default()
    }

    /// Decodes the entry that `position` holds; the payload shares these bytes.
    ///
    /// # Errors
    /// [`EntryError::Malformed`] if a link cannot be decoded. (The checksum is not computed again.)
    pub fn decode(&self, position: Position) -> Result<Entry, EntryError> {
        let fixed = Fixed::read(&self.0)?;
        let payload_at = FIXED + fixed.links_len;
        let mut r = Reader(
            self.0
                .get(FIXED..payload_at)
                .ok_or(EntryError::Malformed("links"))?,
        );
        let mut links = Vec::with_capacity(fixed.link_count);
        for _ in 0..fixed.link_count {
            links
                .push(decode_link(&mut r, position).ok_or(EntryError::Malformed("a stream link"))?);
        }
        if !r.0.is_empty() {
            return Err(EntryError::Malformed("bytes behind the links"));
        }
        Ok(Entry {
            id: self.id(),
            links,
            payload: self.0.slice(payload_at..),
        })
    }
}

impl std::fmt::Debug for EncodedEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncodedEntry({}, {} bytes)", self.id(), self.len())
    }
}

struct Fixed {
    crc: u32,
    link_count: usize,
    payload_len: usize,
    links_len: usize,
}

impl Fixed {
    fn read(bytes: &[u8]) -> Result<Self, EntryError> {
        let short = EntryError::Length {
            got: bytes.len(),
            want: FIXED,
        };
        if bytes.len() < FIXED {
            return Err(short);
        }
        let mut r = Reader(bytes);
        let crc = r.u32().ok_or(short)?;
        let version = r.u8().ok_or(short)?;
        let flags = r.u8().ok_or(short)?;
        let link_count = r.u8().ok_or(short)?;
        let zero = r.u8().ok_or(short)?;
        let payload_len = r.u32().ok_or(short)?;
        let links_len = r.u32().ok_or(short)?;
        if version != ENTRY_VERSION {
            return Err(EntryError::Version(version));
        }
        if flags & !FLAG_RESERVED_SPACE != 0 || zero != 0 {
            return Err(EntryError::Malformed("unknown flags"));
        }
        if payload_len > MAX_ENTRY_BYTES || u32::from(link_count) > MAX_STREAMS_PER_ENTRY {
            return Err(EntryError::Malformed("over a hard limit"));
        }
        if links_len > MAX_STREAMS_PER_ENTRY * 64 {
            return Err(EntryError::Malformed("links too long"));
        }
        Ok(Self {
            crc,
            link_count: usize::from(link_count),
            payload_len: payload_len as usize,
            links_len: links_len as usize,
        })
    }

    const fn total(&self) -> usize {
        FIXED + self.links_len + self.payload_len
    }
}

const ABSOLUTE: u8 = 1 << 5;

fn encode_link(out: &mut BytesMut, position: Position, link: &StreamLink) {
    let mut stream = link.stream.0;
    while stream >= 0x80 {
        out.put_u8((stream & 0x7f) as u8 | 0x80);
        stream >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.put_u8(stream as u8);
    let pointers = link.back.positions();
    let distance = |p: &Position| {
        position
            .0
            .checked_sub(p.0)
            .and_then(|d| u16::try_from(d).ok())
    };
    let absolute = pointers.iter().any(|p| distance(p).is_none());
    let end = match link.back.end() {
        ListEnd::Beginning => 0,
        ListEnd::BelowTrim => 1,
        ListEnd::Unknown => 2,
    };
    let count = u8::try_from(pointers.len()).expect("at most BACKPOINTERS");
    out.put_u8(count | end << 3 | if absolute { ABSOLUTE } else { 0 });
    for pointer in pointers {
        match distance(pointer) {
            Some(near) if !absolute => out.put_u16_le(near),
            _ => out.put_u64_le(pointer.0),
        }
    }
}

fn decode_link(r: &mut Reader<'_>, position: Position) -> Option<StreamLink> {
    let mut stream = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = r.u8()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        stream |= bits << shift;
        if byte & 0x80 == 0 {
            break;
        }
        if shift == 63 {
            return None;
        }
    }
    let head = r.u8()?;
    let end = match head >> 3 & 3 {
        0 => ListEnd::Beginning,
        1 => ListEnd::BelowTrim,
        2 => ListEnd::Unknown,
        _ => return None,
    };
    let count = usize::from(head & 7);
    if count > BACKPOINTERS || head & 0b1100_0000 != 0 {
        return None;
    }
    let mut pointers = [Position::ZERO; BACKPOINTERS];
    for pointer in &mut pointers[..count] {
        *pointer = if head & ABSOLUTE == 0 {
            Position(position.0.checked_sub(u64::from(r.u16()?))?)
        } else {
            Position(r.u64()?)
        };
    }
    Some(StreamLink {
        stream: StreamId(stream),
        back: BackPointers::new(pointers[..count].iter().copied(), end),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_link() -> impl Strategy<Value = StreamLink> {
        (
            any::<u64>(),
            prop::collection::vec(0..1_u64 << 40, 0..=4),
            0..3_usize,
        )
            .prop_map(|(stream, pointers, end)| StreamLink {
                stream: StreamId(stream),
                back: BackPointers::new(
                    pointers.into_iter().map(Position),
                    [ListEnd::Beginning, ListEnd::BelowTrim, ListEnd::Unknown][end],
                ),
            })
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            position in 1_u64 << 40..1 << 41, near in 0_u64..70_000, writer: u128, sequence: u64,
            mut links in prop::collection::vec(any_link(), 0..=64), payload: Vec<u8>,
        ) {
            let position = Position(position);
            if let Some(link) = links.first_mut() {
                link.back.push(position.minus(near));
            }
            let id = EntryId { writer: WriterId(writer), sequence };
            let entry = Entry { id, links, payload: payload.into() };
            let encoded = EncodedEntry::encode(position, &entry, false);
            prop_assert_eq!(encoded.id(), id);
            let checked = EncodedEntry::check(encoded.bytes().clone()).expect("just encoded");
            prop_assert_eq!(checked.decode(position).expect("just encoded"), entry);
        }

        #[test]
        fn any_changed_bit_is_found(payload: Vec<u8>, bit: prop::sample::Index) {
            let id = EntryId { writer: WriterId(7), sequence: 9 };
            let links = vec![StreamLink { stream: StreamId(5), back: BackPointers::EMPTY }];
            let entry = Entry { id, links, payload: payload.into() };
            let encoded = EncodedEntry::encode(Position(3), &entry, true);
            let mut bytes = encoded.bytes().to_vec();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(EncodedEntry::check(bytes.into()).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = EncodedEntry::check(bytes.into());
        }
    }

    #[test]
    fn a_full_list_forgets_its_oldest_and_says_so() {
        let mut list = BackPointers::EMPTY;
        for p in 0..4 {
            list.push(Position(p));
            assert_eq!(list.end(), ListEnd::Beginning);
        }
        list.push(Position(4));
        assert_eq!(list.positions(), [4, 3, 2, 1].map(Position));
        assert_eq!(list.end(), ListEnd::Unknown);
    }
}
