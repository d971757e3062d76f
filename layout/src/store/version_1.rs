//! Layouts as version 1 of the store wrote them: before units could join, and before the redundancy was a policy.

use milonga_protocol::layout::{SequencerRef, UnitRef};
use milonga_protocol::{ClusterId, Epoch, Limits, Position, Redundancy, UnitIndex};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Layout {
    cluster: ClusterId,
    epoch: Epoch,
    start: Position,
    starts: Vec<(Epoch, Position)>,
    segments: Vec<Segment>,
    units: Vec<UnitRef>,
    sequencer: SequencerRef,
    limits: Limits,
}

#[derive(Deserialize)]
struct Segment {
    start: Position,
    origin: Position,
    chains: Vec<Vec<UnitIndex>>,
}

impl From<Layout> for milonga_protocol::Layout {
    fn from(old: Layout) -> Self {
        let segments = old.segments.into_iter();
        let segments: Vec<_> = segments
            .map(|s| milonga_protocol::Segment::new(s.start, s.origin, s.chains))
            .collect();
        let chains = segments.iter().flat_map(|segment| &segment.chains);
        let longest = chains.map(Vec::len).max().unwrap_or(1);
        Self {
            cluster: old.cluster,
            epoch: old.epoch,
            start: old.start,
            starts: old.starts,
            segments,
            units: old.units,
            redundancy: Redundancy::of(u16::try_from(longest).unwrap_or(u16::MAX)),
            sequencer: old.sequencer,
            limits: old.limits,
        }
    }
}
