//! Entries: what writers send, units store and readers get.

use bytes::Bytes;
use milonga_protocol::{EncodedEntry, Position};

/// As it is, and under a checksum that is right.
pub(crate) fn entry(data: &[u8]) {
    check(Bytes::copy_from_slice(data));
    let mut sealed = data.to_vec();
    if let Some((crc, covered)) = sealed.split_first_chunk_mut::<4>() {
        *crc = crc32c::crc32c(covered).to_le_bytes();
        check(sealed.into());
    }
}

fn check(bytes: Bytes) {
    let Ok(entry) = EncodedEntry::check(bytes) else {
        return;
    };
    // Relative pointers may reach below position 0: refused, not wrapped.
    let _ = entry.decode(Position(3));
    let position = Position(1 << 40);
    let decoded = entry.decode(position).expect("its links were checked");
    assert_eq!(entry.streams(), decoded.streams().collect::<Vec<_>>());
    assert_eq!(entry.id(), decoded.id);
    let again = EncodedEntry::encode(position, &decoded, entry.reserved_space());
    assert_eq!(again.decode(position), Ok(decoded));
    assert_eq!(EncodedEntry::check(again.bytes().clone()), Ok(again));
}
