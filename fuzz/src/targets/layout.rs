//! The layout, and the records of the layout's store.

use milonga_protocol::{Layout, Position};

pub(crate) fn records(data: &[u8]) {
    if let Some(layout) = milonga_layout::fuzz::records(data) {
        ask(&layout);
    }
}

/// A layout that was accepted answers for every position.
fn ask(layout: &Layout) {
    for position in [0, 1, layout.start.0, u64::MAX - 1, u64::MAX].map(Position) {
        for unit in layout.chain(position) {
            let held = layout.ranges_of(layout.unit(*unit).id);
            // The last position is the end of the last range, and so of none.
            assert!(position == Position::MAX || held.iter().any(|range| range.owns(position)));
            for range in held {
                let next = range.first_at_or_above(position);
                assert!(next >= position || position > range.to);
            }
        }
    }
    for segment in 0..layout.segments.len() {
        let chains = layout.segments[segment].chains.len();
        assert_eq!(layout.ranges(segment).count(), chains);
    }
    let _ = layout.start_after(layout.epoch);
}
