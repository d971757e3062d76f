//! Decoders that are private, for `milonga-fuzz`.

use milonga_protocol::Layout;

/// Takes `bytes` for each of the store's records. What can be read must be written alike, and a layout that a history
/// accepts must answer every question.
pub fn records(bytes: &[u8]) -> Option<Layout> {
    crate::store::fuzz::records(bytes)
}

/// The bytes of a store's records of `layout`: header, layout, intent.
#[must_use]
pub fn encoded(layout: &Layout) -> [Vec<u8>; 3] {
    crate::store::fuzz::encoded(layout)
}
