//! Layouts for tests.

use milonga_protocol::layout::SequencerRef;
use milonga_protocol::{
    ClusterId, Epoch, Incarnation, Layout, Limits, Position, Redundancy, Segment, UnitId,
    UnitIndex, UnitRef,
};

use crate::history::History;

/// A layout of two chains of two units that continues `history`.
pub(crate) fn layout(epoch: u64, start: u64, history: &History) -> Layout {
    let (epoch, start) = (Epoch(epoch), Position(start));
    let unit = |(id, name): (u128, &str)| UnitRef {
        name: name.into(),
        id: UnitId(id),
    };
    // Stated one by one: the golden records must not follow the defaults.
    let mut limits = Limits::default();
    limits.entry_bytes = 1 << 20;
    limits.streams_per_entry = 64;
    limits.conflict_window = 1 << 18;
    limits.positions_ahead = 1 << 20;
    limits.streams = 4 << 20;
    let names = ["unit-1a", "unit-1b", "unit-2a", "unit-2b"];
    Layout {
        cluster: ClusterId(77),
        epoch,
        start,
        starts: history.starts_with(epoch, start),
        segments: vec![Segment::new(
            Position::ZERO,
            Position::ZERO,
            vec![
                vec![UnitIndex(0), UnitIndex(1)],
                vec![UnitIndex(2), UnitIndex(3)],
            ],
        )],
        units: (1..).zip(names).map(unit).collect(),
        redundancy: Redundancy::of(2),
        sequencer: SequencerRef {
            name: "sequencer-1".into(),
            incarnation: Incarnation(5),
        },
        limits,
    }
}
