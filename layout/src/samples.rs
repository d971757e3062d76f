//! Layouts for tests.

use std::collections::BTreeMap;

use milonga_protocol::change::Origin;
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::{
    ClusterId, Epoch, Incarnation, Layout, Limits, Position, Redundancy, Segment, ServerName,
    UnitId, UnitIndex, UnitRef,
};

use crate::history::History;
use crate::policy::{Added, Policy};

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

/// When and why an epoch came about.
pub(crate) fn origin(epoch: u64) -> Origin {
    Origin::new(
        1_900_000_000 + epoch,
        "unit-1a says nothing any more".into(),
        "",
    )
}

/// A unit that was added by command.
pub(crate) fn added(name: &str, id: u128, home: Option<u16>) -> BTreeMap<ServerName, Added> {
    let id = UnitId(id);
    [(name.into(), Added { id, home })].into()
}

/// Some decisions of operators.
pub(crate) fn policy() -> Policy {
    let mut all = added("unit-3a", 9, Some(2));
    all.extend(added("unit-4", 10, None));
    all.extend(added("unit-5", 11, Some(0)));
    Policy {
        added: all,
        retired: [
            ("unit-1b".into(), Some("unit-5".into())),
            ("unit-9".into(), None),
        ]
        .into(),
        chains: vec![vec!["unit-3a".into()]],
    }
}
