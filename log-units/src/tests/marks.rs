//! The settled mark: what it may be raised by, over several ranges and over what is lost.

use milonga_protocol::messages::*;
use milonga_protocol::{Epoch, Layout, Position, Segment, UnitIndex};

use super::rig::*;

/// Two chains' worth of life: head of the closed segment below 10, tail of the active one from there on.
fn two_segments(epoch: u64) -> Layout {
    let mut layout = layout(epoch, 10, 1, 2, 0, 0);
    let (me, other) = (UnitIndex(0), UnitIndex(1));
    layout.segments = vec![
        Segment::new(Position(0), Position(0), vec![vec![me, other]]),
        Segment::new(Position(10), Position(10), vec![vec![other, me]]),
    ];
    layout.validate().expect("made valid");
    layout
}

fn settled(rig: &mut Rig, epoch: u64, below: u64) {
    let (epoch, below) = (Epoch(epoch), Position(below));
    let done = rig.ask(UnitRequest::Settled { epoch, below });
    assert_eq!(done, ok(UnitResponse::Done));
}

#[test]
fn the_last_range_does_not_settle_the_ranges_before_it() {
    let mut rig = Rig::new(1);
    rig.open_layout(layout(1, 0, 1, 2, 0, 0), vec![(Epoch(1), Position(0))]);
    for position in 0..4 {
        rig.put(1, position, 5);
    }
    rig.seal(2);
    let starts = vec![(Epoch(2), Position(10))];
    assert_eq!(
        rig.open_layout(two_segments(2), starts),
        ok(UnitResponse::Done)
    );
    // The tail of the active segment knows that all it has is settled there.
    let (request, body) = write(2, &[(10, Some(entry(10, 10, &[5], 9)))]);
    let written = rig.ask_with(request, body).0;
    assert_eq!(marks(&written).settled, Position(11));
    // A client tells the mark of the active chain.
    let (mut request, body) = write(2, &[(11, Some(entry(11, 11, &[5], 9)))]);
    if let UnitRequest::Write { settled, .. } = &mut request {
        *settled = Position(11);
    }
    rig.ask_with(request, body);
    // Position 3 may be here only: nobody may be shown it who does not serve the epoch.
    assert_eq!(rig.fact("settled"), "0");
    assert!(matches!(
        rig.trim(2, 8),
        Response::Refused(Refusal::Busy { .. })
    ));
    let (refused, _) = rig.read_full(1, &[3]);
    assert!(
        matches!(refused, Response::Refused(Refusal::Sealed { .. })),
        "{refused:?}"
    );
    let report = rig.seal(3);
    assert_eq!(
        report.marks.settled,
        Position(4),
        "settling begins with the first hole"
    );

    let starts = vec![(Epoch(3), Position(12))];
    let mut next = two_segments(3);
    (next.start, next.starts) = (Position(12), starts.clone());
    assert_eq!(rig.open_layout(next, starts), ok(UnitResponse::Done));
    for position in 4..10 {
        rig.write_values(3, &[(position, None)]);
    }
    assert_eq!(rig.fact("settled"), "0", "the head cannot know");
    // What the tails of the last segment say, says nothing of the closed one.
    let (epoch, told) = (Epoch(3), Position(12));
    let done = rig.ask(UnitRequest::Told {
        epoch,
        settled: told,
    });
    assert_eq!(done, ok(UnitResponse::Done));
    assert_eq!(
        rig.fact("settled"),
        "0",
        "nobody has settled the closed part"
    );
    settled(&mut rig, 3, 12);
    assert_eq!(
        rig.fact("settled"),
        "12",
        "both ranges are settled as far as that"
    );
    assert!(matches!(rig.read_one(1, 3).0, UnitReadAnswer::Data { .. }));
    assert_eq!(
        rig.trim(3, 8),
        ok(UnitResponse::Trimmed { below: Position(8) })
    );
}

#[test]
fn what_is_lost_for_good_stops_neither_marks_nor_writes_nor_trims() {
    let mut rig = Rig::open(2);
    for position in 0..150 {
        rig.put(1, position, 5);
    }
    let mut disk = rig.disk.clone();
    disk.lose_file("segment-0000000000000002.log");
    let mut rig = Rig::on(disk, config(), 3);
    rig.seal(2);
    rig.open_epoch(2, 150);
    let confirm = UnitRequest::Confirm { epoch: Epoch(2) };
    let lost = (0..150).find(|p| rig.read_one(2, *p).0 == UnitReadAnswer::Lost);
    let lost = lost.expect("a whole segment is gone");
    // The settler gave up on what nobody has.
    settled(&mut rig, 2, 150);
    assert_eq!(marks(&rig.ask(confirm.clone())).settled, Position(150));
    let ahead = limits().positions_ahead;
    for from in (150..150 + 3 * ahead).step_by(100) {
        let values: Vec<_> = (from..from + 100)
            .map(|p| (p, Some(entry(p, p, &[5], 9))))
            .collect();
        let written = rig.write_values(2, &values);
        let durable = answers(&written).iter().all(|a| *a == WriteAnswer::Durable);
        assert!(durable, "from {from}: {written:?}");
    }
    let end = 150 + 3 * ahead;
    assert_eq!(marks(&rig.ask(confirm)).settled, Position(end));
    // It is lost all the same.
    assert_eq!(rig.read_one(2, lost).0, UnitReadAnswer::Lost);
    let (entries, complete, _) = rig.streams(2, &[5], lost, end);
    assert_eq!((entries[0], complete), ((lost, 0), lost));
    let below = Position(end);
    assert_eq!(rig.trim(2, end), ok(UnitResponse::Trimmed { below }));
}

/// Else the sequencer would be told that nothing was trimmed, and take a stream that nobody lists for an empty one.
#[test]
fn a_seal_reports_the_trim_mark_by_which_streams_are_listed() {
    let mut rig = Rig::open(4);
    rig.put(1, 0, 9);
    rig.put(1, 1, 5);
    let below = Position(1);
    let trim = UnitRequest::Trim {
        epoch: Epoch(1),
        below,
    };
    let trim = rig.send(trim, bytes::Bytes::new());
    rig.poll();
    let report = rig.seal(2);
    let listed: Vec<_> = rig.tails(2, 2).iter().map(|t| t.stream.0).collect();
    assert_eq!((report.marks.trimmed, listed), (below, vec![5]));
    let trimmed = ok(UnitResponse::Trimmed { below });
    assert_eq!(rig.replies.remove(&trim).map(|r| r.0), Some(trimmed));
}
