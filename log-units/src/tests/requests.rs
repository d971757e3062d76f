//! What each request does, one rule at a time.

use bytes::Bytes;
use milonga_protocol::limits::STREAM_TAILS_PER_PAGE;
use milonga_protocol::messages::WriteAnswer::{Durable, NotMine, Occupied, Refused, TooFar};
use milonga_protocol::messages::*;
use milonga_protocol::{EncodedEntry, Epoch, ListEnd, Position, StreamId, UnitId};

use super::rig::*;

fn confirm(epoch: u64) -> UnitRequest {
    UnitRequest::Confirm {
        epoch: Epoch(epoch),
    }
}

#[test]
fn a_new_directory_becomes_a_unit_when_opened() {
    let mut rig = Rig::new(1);
    let hello = rig.hello().unwrap();
    assert!(hello.empty && hello.id == ME && hello.cluster.is_none());
    assert_eq!(rig.ask(confirm(1)), Response::Refused(Refusal::NotOpen));
    assert_eq!(rig.open_epoch(1, 0), ok(UnitResponse::Done));
    let hello = rig.hello().unwrap();
    assert_eq!(
        (hello.cluster, hello.persisted, hello.serving),
        (Some(CLUSTER), Epoch(1), Epoch(1))
    );
    assert!(!hello.empty);
    // Said again it is acknowledged and changes nothing.
    assert_eq!(rig.open_epoch(1, 0), ok(UnitResponse::Done));
    assert!(
        rig.file_names().contains(&"superblock".to_owned()),
        "{:?}",
        rig.file_names()
    );
}

#[test]
fn requests_are_fenced_by_the_epoch() {
    let mut rig = Rig::open(2);
    rig.seal(3);
    assert_eq!(rig.open_epoch(3, 0), ok(UnitResponse::Done));
    assert_eq!(
        rig.ask(confirm(2)),
        Response::Refused(Refusal::Sealed { epoch: Epoch(2) })
    );
    assert_eq!(
        rig.ask(confirm(4)),
        Response::Refused(Refusal::NotYet { epoch: Epoch(3) })
    );
    assert!(matches!(
        rig.ask(confirm(3)),
        Response::Unit(UnitResponse::Serving { .. })
    ));
    rig.seal(5);
    for request in [
        confirm(3),
        write(3, &[(9, None)]).0,
        UnitRequest::Fill {
            epoch: Epoch(3),
            from: Position(0),
            to: Position(9),
        },
        UnitRequest::Trim {
            epoch: Epoch(3),
            below: Position(0),
        },
        streams_request(3, &[1], 0, 9, 0),
        UnitRequest::Read {
            epoch: Epoch(3),
            settled: Position(0),
            positions: vec![Position(0)],
        },
    ] {
        assert_eq!(
            rig.ask(request),
            Response::Refused(Refusal::Sealed { epoch: Epoch(4) })
        );
    }
    // Sealing is repeatable, never lowered.
    rig.seal(5);
    let lower = rig.ask(UnitRequest::Seal { epoch: Epoch(4) });
    assert_eq!(
        lower,
        Response::Refused(Refusal::Sealed { epoch: Epoch(4) })
    );
    assert_eq!(
        rig.open_epoch(4, 0),
        Response::Refused(Refusal::Sealed { epoch: Epoch(4) })
    );
    assert_eq!(rig.open_epoch(5, 0), ok(UnitResponse::Done));
}

#[test]
fn a_restart_seals_up_to_the_persisted_epoch() {
    let mut rig = Rig::open(3);
    let entry = rig.put(1, 0, 7);
    let mut rig = rig.restarted(4);
    let hello = rig.hello().unwrap();
    assert_eq!((hello.persisted, hello.serving), (Epoch(1), Epoch::NONE));
    let sealed = Response::Refused(Refusal::Sealed { epoch: Epoch(1) });
    assert_eq!(rig.ask(confirm(1)), sealed);
    assert_eq!(rig.open_epoch(1, 0), sealed, "a repeated open, too");
    assert_eq!(rig.seal(2).high, Position(1));
    assert_eq!(rig.open_epoch(2, 1), ok(UnitResponse::Done));
    assert_eq!(rig.read_one(2, 0).1, entry.bytes());
}

#[test]
fn a_head_arbitrates() {
    let mut rig = Rig::open(5);
    let (mine, other) = (entry(3, 1, &[1], 9), entry(3, 2, &[1], 9));
    let first = rig.send(write(1, &[(3, Some(mine.clone()))]).0, mine.bytes().clone());
    rig.poll();
    // In flight: pending to readers, the same again waits, another one has lost.
    let reading = rig.send(
        UnitRequest::Read {
            epoch: Epoch(1),
            settled: Position(0),
            positions: vec![Position(3)],
        },
        Bytes::new(),
    );
    let again = rig.send(write(1, &[(3, Some(mine.clone()))]).0, mine.bytes().clone());
    let lost = rig.send(
        write(1, &[(3, Some(other.clone()))]).0,
        other.bytes().clone(),
    );
    rig.poll();
    let Response::Unit(UnitResponse::Values { answers: read, .. }) = &rig.replies[&reading].0
    else {
        panic!("a read of what is in memory is answered at once");
    };
    assert_eq!(read, &[UnitReadAnswer::Pending]);
    // What is not durable may be taken back for want of space: nobody has lost before it is.
    for call in [first, again, lost] {
        assert!(!rig.replies.contains_key(&call));
    }
    rig.run();
    assert_eq!(answers(&rig.replies[&lost].0), [Occupied]);
    assert_eq!(answers(&rig.replies[&first].0), [Durable]);
    assert_eq!(answers(&rig.replies[&again].0), [Durable]);
    assert_eq!(rig.read_one(1, 3).1, mine.bytes());
    // Junk is not written to an active head, and everything else is judged item by item.
    let mixed = rig.write_values(
        1,
        &[
            (2, None),
            (3, Some(mine.clone())),
            (3, Some(other)),
            (4, Some(entry(4, 1, &[1], 5_000))),
            (5, Some(entry(5, 1, &[1, 2, 3, 4, 5], 1))),
            (1_001, Some(entry(1_001, 1, &[], 1))),
            (6, Some(entry(6, 1, &[], 1))),
        ],
    );
    assert_eq!(
        answers(&mixed),
        [
            Refused, Durable, Occupied, Refused, Refused, TooFar, Durable
        ]
    );
}

#[test]
fn damaged_and_misshapen_writes_are_refused() {
    let mut rig = Rig::open(6);
    let entry = entry(0, 1, &[], 9);
    let mut bytes = entry.bytes().to_vec();
    bytes[30] ^= 1;
    let (request, _) = write(1, &[(0, Some(entry.clone()))]);
    let (answer, _) = rig.ask_with(request.clone(), bytes.into());
    assert_eq!(answers(&answer), [Refused]);
    let (short, _) = rig.ask_with(request.clone(), entry.bytes().slice(..20));
    assert!(matches!(
        short,
        Response::Refused(Refusal::Malformed { .. })
    ));
    let (long, _) = rig.ask_with(request, vec![0; 200].into());
    assert!(matches!(long, Response::Refused(Refusal::Malformed { .. })));
}

#[test]
fn fill_makes_every_hole_junk_and_gives_the_winners() {
    let mut rig = Rig::open(7);
    rig.put(1, 1, 5);
    // A write in flight wins, and the answer waits for it.
    let pending = entry(3, 1, &[5], 10);
    rig.send(
        write(1, &[(3, Some(pending.clone()))]).0,
        pending.bytes().clone(),
    );
    let winners = rig.fill(1, 0, 5);
    assert_eq!(
        winners.iter().map(|w| w.0).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert_eq!(
        winners.iter().map(|w| w.1.is_none()).collect::<Vec<_>>(),
        [true, false, true, false, true]
    );
    assert_eq!(rig.fill(1, 0, 5), winners, "repeatable");
    assert_eq!(rig.read_one(1, 0).0, UnitReadAnswer::Junk);
    let late = rig.write_values(1, &[(0, Some(entry(0, 9, &[], 1)))]);
    assert_eq!(answers(&late), [Occupied]);
    assert_eq!(marks(&late).settled, Position(5));
    let too_many = UnitRequest::Fill {
        epoch: Epoch(1),
        from: Position(0),
        to: Position(9_000),
    };
    assert!(matches!(
        rig.ask(too_many),
        Response::Refused(Refusal::Malformed { .. })
    ));
    // Long runs of junk are one record.
    let records = rig.fact("records").parse::<u64>().unwrap();
    rig.fill(1, 5, 905);
    assert_eq!(rig.fact("records").parse::<u64>().unwrap(), records + 1);
    let mut rig = rig.restarted(8);
    rig.open_epoch(2, 905);
    assert_eq!(rig.read_one(2, 904).0, UnitReadAnswer::Junk);
    assert_eq!(rig.read_one(2, 905).0, UnitReadAnswer::Unwritten);
    let closed = UnitRequest::Fill {
        epoch: Epoch(2),
        from: Position(904),
        to: Position(910),
    };
    assert!(matches!(
        rig.ask(closed),
        Response::Refused(Refusal::Malformed { .. })
    ));
}

#[test]
fn in_the_closed_part_the_settler_writes() {
    let mut rig = Rig::open(9);
    let there = rig.put(1, 0, 5);
    rig.seal(2);
    rig.open_epoch(2, 4);
    let repair = entry(1, 4, &[5], 10);
    let answer = rig.write_values(
        2,
        &[
            (0, Some(there)),
            (0, None),
            (1, Some(repair.clone())),
            (2, None),
            (2, None),
            (1, Some(entry(1, 5, &[5], 10))),
        ],
    );
    assert_eq!(
        answers(&answer),
        [Durable, Occupied, Durable, Durable, Durable, Occupied]
    );
    assert_eq!(rig.read_one(2, 1).1, repair.bytes());
    assert_eq!(rig.read_one(2, 2).0, UnitReadAnswer::Junk);
    let settled = UnitRequest::Settled {
        epoch: Epoch(2),
        below: Position(4),
    };
    assert_eq!(rig.ask(settled), ok(UnitResponse::Done));
}

#[test]
fn behind_the_head_the_winner_is_carried() {
    let mut rig = Rig::new(10);
    let layout = layout(1, 0, 2, 2, 1, 1);
    assert_eq!(rig.open_layout(layout, vec![]), ok(UnitResponse::Done));
    let answer = rig.write_values(1, &[(1, None), (2, None), (3, Some(entry(3, 1, &[], 1)))]);
    assert_eq!(answers(&answer), [Durable, NotMine, Durable]);
    assert_eq!(marks(&answer).settled, Position(5));
    assert_eq!(rig.read_one(1, 0).0, UnitReadAnswer::NotMine);
    assert_eq!(rig.read_one(1, 5).0, UnitReadAnswer::Unwritten);
    let fill = UnitRequest::Fill {
        epoch: Epoch(1),
        from: Position(0),
        to: Position(9),
    };
    assert!(matches!(
        rig.ask(fill),
        Response::Refused(Refusal::Malformed { .. })
    ));
}

#[test]
fn streams_are_read_in_order_up_to_the_first_hole() {
    let mut rig = Rig::open(11);
    for position in [0, 1, 2, 4] {
        rig.put(1, position, 5 + position % 2);
    }
    let (entries, complete, body) = rig.streams(1, &[5, 6], 0, 100);
    assert_eq!(
        entries.iter().map(|e| e.0).collect::<Vec<_>>(),
        [0, 1, 2, 4]
    );
    assert_eq!(complete, 3, "position 3 is not decided");
    assert_eq!(
        body.len(),
        entries.iter().map(|e| e.1 as usize).sum::<usize>()
    );
    assert_eq!(rig.streams(1, &[6], 0, 2).1, 2);
    assert_eq!(
        rig.streams(1, &[5], 1, 100)
            .0
            .iter()
            .map(|e| e.0)
            .collect::<Vec<_>>(),
        [2, 4]
    );
    // One byte is enough for one entry.
    let request = UnitRequest::ReadStreams {
        epoch: Epoch(1),
        streams: vec![StreamId(5)],
        from: Position(0),
        to: Position(9),
        max_bytes: 1,
        wait_ms: 0,
    };
    let Response::Unit(UnitResponse::Entries {
        entries, complete, ..
    }) = rig.ask(request)
    else {
        panic!("entries");
    };
    assert_eq!((entries.len(), complete), (1, Position(2)));
}

#[test]
fn readers_wait_for_the_next_part() {
    let mut rig = Rig::open(12);
    rig.put(1, 0, 5);
    let waiting = rig.send(streams_request(1, &[5], 1, 100, 500), Bytes::new());
    let other = rig.send(streams_request(1, &[9], 3, 100, 500), Bytes::new());
    let sealed = rig.send(streams_request(1, &[9], 7, 100, 2_000), Bytes::new());
    rig.run();
    assert!(rig.replies.is_empty());
    rig.put(1, 1, 5);
    let Response::Unit(UnitResponse::Entries {
        entries, complete, ..
    }) = &rig.replies[&waiting].0
    else {
        panic!("entries");
    };
    assert_eq!((entries.len(), *complete), (1, Position(2)));
    assert!(!rig.replies.contains_key(&other));
    assert!(rig.unit.next_time().is_some());
    rig.pass(500);
    let Response::Unit(UnitResponse::Entries {
        entries, complete, ..
    }) = &rig.replies[&other].0
    else {
        panic!("entries");
    };
    assert_eq!((entries.len(), *complete), (0, Position(3)));
    rig.seal(2);
    assert_eq!(
        rig.replies[&sealed].0,
        Response::Refused(Refusal::Sealed { epoch: Epoch(1) })
    );
}

#[test]
fn a_reader_at_a_hole_waits_though_there_are_entries_behind_it() {
    let mut rig = Rig::open(12);
    rig.put(1, 1, 5);
    let waiting = rig.send(streams_request(1, &[5], 0, 100, 500), Bytes::new());
    rig.run();
    rig.put(1, 2, 5);
    assert!(!rig.replies.contains_key(&waiting));
    rig.fill(1, 0, 1);
    let Response::Unit(UnitResponse::Entries {
        entries, complete, ..
    }) = &rig.replies[&waiting].0
    else {
        panic!("entries");
    };
    assert_eq!((entries.len(), *complete), (2, Position(3)));
}

#[test]
fn a_fill_below_the_trim_mark_is_answered_with_the_mark() {
    let mut rig = Rig::open(12);
    for position in 0..4 {
        rig.put(1, position, 5);
    }
    rig.trim(1, 3);
    let fill = |from, to| UnitRequest::Fill {
        epoch: Epoch(1),
        from: Position(from),
        to: Position(to),
    };
    for (from, to, given) in [(0, 3, 0), (1, 5, 2)] {
        let Response::Unit(UnitResponse::Filled { winners, marks }) = rig.ask(fill(from, to))
        else {
            panic!("filled");
        };
        assert_eq!((winners.len(), marks.trimmed), (given, Position(3)));
    }
}

#[test]
fn pages_of_stream_tails_go_on_behind_streams_that_were_trimmed_whole() {
    let mut config = config();
    config.segment_bytes = 64 << 20;
    let mut rig = Rig::on(crate::sim::SimDisk::new(12), config, 12);
    rig.open_epoch(1, 0);
    let pages = STREAM_TAILS_PER_PAGE as u64 / 4 + 1;
    let entries =
        (0..pages).map(|p| (p, entry(p, p, &[4 * p, 4 * p + 1, 4 * p + 2, 4 * p + 3], 0)));
    let entries: Vec<_> = entries.map(|(p, e)| (p, Some(e))).collect();
    for some in entries.chunks(500) {
        rig.write_values(1, some);
    }
    // One stream above all others has something above the mark, in the same segment file as some that have not.
    let last = entry(pages, pages, &[1 << 40], 0);
    rig.write_values(1, &[(pages, Some(last))]);
    rig.trim(1, pages);
    rig.seal(2);
    let response = rig.ask(UnitRequest::Collect {
        epoch: Epoch(2),
        after: None,
        below: Position(pages + 1),
    });
    let Response::Unit(UnitResponse::Tails { tails, done }) = response else {
        panic!("tails");
    };
    let streams: Vec<_> = tails.iter().map(|t| t.stream.0).collect();
    assert_eq!((streams, done), (vec![1 << 40], true));
}

#[test]
fn trim_is_durable_monotone_and_never_above_what_is_decided() {
    let mut rig = Rig::open(13);
    for position in 0..200 {
        rig.put(1, position, 5);
    }
    let before = rig.file_names().len();
    assert!(matches!(
        rig.trim(1, 201),
        Response::Refused(Refusal::Busy { .. })
    ));
    let trimmed = |below| {
        ok(UnitResponse::Trimmed {
            below: Position(below),
        })
    };
    assert_eq!(rig.trim(1, 150), trimmed(150));
    assert_eq!(rig.trim(1, 100), trimmed(150));
    assert!(rig.file_names().len() < before, "whole segments are gone");
    assert_eq!(rig.read_one(1, 149).0, UnitReadAnswer::Trimmed);
    assert!(matches!(
        rig.read_one(1, 150).0,
        UnitReadAnswer::Data { .. }
    ));
    assert_eq!(rig.ask(streams_request(1, &[5], 149, 300, 0)), trimmed(150));
    let answer = rig.write_values(1, &[(0, Some(entry(0, 0, &[5], 40)))]);
    assert_eq!(answers(&answer), [WriteAnswer::Trimmed]);
    let mut rig = rig.restarted(14);
    assert_eq!(rig.fact("cut_at_start"), "");
    rig.open_epoch(2, 200);
    assert_eq!(rig.read_one(2, 149).0, UnitReadAnswer::Trimmed);
    assert!(matches!(
        rig.read_one(2, 150).0,
        UnitReadAnswer::Data { .. }
    ));
    assert_eq!(rig.fact("lost_span"), "0");
    // And again, from a directory that does not begin with the first segment.
    assert_eq!(rig.trim(2, 190), trimmed(190));
    let mut rig = rig.restarted(15);
    rig.open_epoch(3, 200);
    assert!(matches!(
        rig.read_one(3, 199).0,
        UnitReadAnswer::Data { .. }
    ));
    assert_eq!(rig.fact("lost_span"), "0");
}

#[test]
fn what_is_settled_may_be_read_in_older_epochs() {
    let mut rig = Rig::open(16);
    let entry = rig.put(1, 0, 5);
    rig.put(1, 2, 5);
    rig.seal(2);
    assert_eq!(rig.read_one(1, 0).1, entry.bytes(), "sealed");
    assert!(matches!(
        rig.read_full(1, &[0, 2]).0,
        Response::Refused(Refusal::Sealed { .. })
    ));
    rig.open_epoch(2, 3);
    assert_eq!(rig.read_one(1, 0).1, entry.bytes(), "in the next epoch");
    assert!(matches!(
        rig.read_full(3, &[0]).0,
        Response::Refused(Refusal::NotYet { .. })
    ));
    assert!(matches!(
        rig.read_full(1, &[1]).0,
        Response::Refused(Refusal::Sealed { .. })
    ));
}

#[test]
fn an_epoch_voids_what_it_did_not_take_over() {
    let mut rig = Rig::open(17);
    for position in 0..8 {
        rig.put(1, position, 5);
    }
    rig.fill(1, 8, 12);
    assert_eq!(rig.seal(2).high, Position(12));
    // Only up to 5 was collected.
    rig.open_epoch(2, 5);
    assert_eq!(rig.read_one(2, 5).0, UnitReadAnswer::Unwritten);
    assert_eq!(rig.read_one(2, 9).0, UnitReadAnswer::Unwritten);
    let new = entry(5, 77, &[5], 10);
    assert_eq!(
        answers(&rig.write_values(2, &[(5, Some(new.clone()))])),
        [Durable]
    );
    let mut rig = rig.restarted(18);
    rig.seal(3);
    rig.open_epoch(3, 6);
    assert_eq!(rig.read_one(3, 5).1, new.bytes());
    assert_eq!(rig.read_one(3, 6).0, UnitReadAnswer::Unwritten);
    assert!(matches!(rig.read_one(3, 4).0, UnitReadAnswer::Data { .. }));
    assert_eq!(rig.streams(3, &[5], 0, 100).0.len(), 6);
}

#[test]
fn an_epoch_that_was_missed_voids_as_well() {
    let mut rig = Rig::open(19);
    for position in 0..8 {
        rig.put(1, position, 5);
    }
    let mut rig = rig.restarted(20);
    let starts = vec![(Epoch(2), Position(3)), (Epoch(3), Position(20))];
    assert_eq!(
        rig.open_layout(layout(3, 20, 1, 1, 0, 0), starts),
        ok(UnitResponse::Done)
    );
    assert_eq!(rig.read_one(3, 3).0, UnitReadAnswer::Unwritten);
    assert!(matches!(rig.read_one(3, 2).0, UnitReadAnswer::Data { .. }));
}

#[test]
fn tails_are_collected_from_a_sealed_unit() {
    let mut rig = Rig::open(21);
    for position in 0..150 {
        let stream = if position % 50 == 7 { 9 } else { 5 };
        rig.put(1, position, stream);
    }
    let collect = |epoch, after: Option<u64>, below| UnitRequest::Collect {
        epoch: Epoch(epoch),
        after: after.map(StreamId),
        below: Position(below),
    };
    assert!(matches!(
        rig.ask(collect(2, None, 200)),
        Response::Refused(Refusal::NotYet { .. })
    ));
    assert_eq!(rig.seal(2).streams, 2);
    let tails = |rig: &mut Rig, after, below| match rig.ask(collect(2, after, below)) {
        Response::Unit(UnitResponse::Tails { tails, done: true }) => tails
            .iter()
            .map(|t| {
                (
                    t.stream.0,
                    t.last.positions().iter().map(|p| p.0).collect::<Vec<_>>(),
                    t.last.end(),
                )
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let all = tails(&mut rig, None, 200);
    assert_eq!(all[0], (5, vec![149, 148, 147, 146], ListEnd::Unknown));
    assert_eq!(all[1], (9, vec![107, 57, 7], ListEnd::Beginning));
    assert_eq!(
        tails(&mut rig, Some(5), 107),
        [(9, vec![57, 7], ListEnd::Beginning)]
    );
    rig.open_epoch(2, 150);
    rig.trim(2, 20);
    rig.seal(3);
    let Response::Unit(UnitResponse::Tails { tails, .. }) = rig.ask(collect(3, Some(5), 200))
    else {
        panic!("tails");
    };
    assert_eq!(tails[0].last.end(), ListEnd::BelowTrim);
    assert_eq!(tails[0].last.positions(), [107, 57].map(Position));
}

#[test]
fn other_identities_are_refused() {
    let mut rig = Rig::open(22);
    let mut foreign = layout(2, 0, 1, 1, 0, 0);
    foreign.units[0].id = UnitId(3);
    assert!(matches!(
        rig.open_layout(foreign, vec![]),
        Response::Refused(Refusal::Identity { .. })
    ));
    let mut other = layout(2, 0, 1, 1, 0, 0);
    other.cluster.0 += 1;
    assert!(matches!(
        rig.open_layout(other, vec![]),
        Response::Refused(Refusal::Identity { .. })
    ));
    let mut config = config();
    config.cluster = Some(milonga_protocol::ClusterId(9));
    let rig = Rig::on(rig.disk.kill(1), config, 1);
    assert!(
        rig.hello()
            .unwrap_err()
            .to_string()
            .contains("belongs to cluster")
    );
}

#[test]
fn a_seal_drains_what_was_queued() {
    let mut rig = Rig::open(23);
    let mut calls = Vec::new();
    for position in 0..20 {
        let entry: EncodedEntry = entry(position, 1, &[5], 300);
        calls.push(rig.send(
            write(1, &[(position, Some(entry.clone()))]).0,
            entry.bytes().clone(),
        ));
    }
    rig.poll();
    let seal = rig.send(UnitRequest::Seal { epoch: Epoch(2) }, Bytes::new());
    let late = rig.send(write(1, &[(30, None)]).0, Bytes::new());
    while !rig.replies.contains_key(&seal) {
        assert!(rig.step());
    }
    let Response::Unit(UnitResponse::Sealed(report)) = &rig.replies[&seal].0 else {
        panic!("sealed");
    };
    assert_eq!(report.high, Position(20));
    for call in calls {
        assert_eq!(answers(&rig.replies[&call].0), [Durable]);
    }
    assert_eq!(
        rig.replies[&late].0,
        Response::Refused(Refusal::Sealed { epoch: Epoch(1) })
    );
}

#[test]
fn too_much_at_once_is_busy() {
    let mut config = config();
    config.queue_bytes = 4_000;
    let mut rig = Rig::on(crate::sim::SimDisk::new(1), config, 1);
    rig.open_epoch(1, 0);
    let mut busy = 0;
    for position in 0..40 {
        let entry = entry(position, 1, &[5], 500);
        rig.send(
            write(1, &[(position, Some(entry.clone()))]).0,
            entry.bytes().clone(),
        );
    }
    rig.run();
    for (response, _) in rig.replies.values() {
        match response {
            Response::Refused(Refusal::Busy { .. }) => busy += 1,
            other => assert_eq!(answers(other), [Durable]),
        }
    }
    assert!((1..40).contains(&busy), "{busy}");
}

#[test]
fn what_becomes_durable_while_the_disk_is_read_is_not_passed_over() {
    let mut stopped = 0;
    for seed in 0..200 {
        let mut config = config();
        config.cache_bytes = 0;
        let mut rig = Rig::on(crate::sim::SimDisk::new(seed), config, seed);
        rig.open_epoch(1, 0);
        rig.put(1, 0, 5);
        rig.put(1, 2, 5);
        let reading = rig.send(streams_request(1, &[5], 0, 9, 0), Bytes::new());
        let late = entry(1, 1, &[5], 40);
        rig.send(write(1, &[(1, Some(late.clone()))]).0, late.bytes().clone());
        rig.run();
        let Response::Unit(UnitResponse::Entries {
            entries, complete, ..
        }) = &rig.replies[&reading].0
        else {
            panic!("entries");
        };
        let listed = entries.iter().any(|e| e.0 == Position(1));
        assert!(
            listed || *complete <= Position(1),
            "seed {seed}: {entries:?}, complete {complete}"
        );
        stopped += u64::from(!listed);
    }
    assert!(stopped > 50);
}

/// Rule 28: between the seal and the opening its directory was exchanged for an older one.
#[test]
fn a_unit_that_has_less_than_it_had_does_not_enter() {
    let mut rig = Rig::open(1);
    let mut open = |epoch, persisted| {
        let persisted = Epoch(persisted);
        rig.ask(UnitRequest::Open {
            layout: layout(epoch, 0, 1, 1, 0, 0),
            persisted,
            starts: vec![(Epoch(epoch), Position::ZERO)],
        })
    };
    let Response::Refused(Refusal::Identity { why }) = open(5, 4) else {
        panic!("it entered");
    };
    let words = "unit-1a confirmed epoch 4 and comes with the state of epoch 1";
    assert!(why.starts_with(words), "{why}");
    for (epoch, persisted) in [(5, 1), (6, 5), (7, 0)] {
        let done = open(epoch, persisted);
        assert_eq!(done, Response::Unit(UnitResponse::Done), "{epoch}");
    }
}

#[test]
fn answers_are_bounded() {
    let mut layout = layout(1, 0, 1, 1, 0, 0);
    layout.limits.entry_bytes = 4 << 20;
    for cache in [0, 64 << 20] {
        let mut config = config();
        (config.segment_bytes, config.cache_bytes) = (64 << 20, cache);
        let mut rig = Rig::on(crate::sim::SimDisk::new(1), config, 1);
        rig.open_layout(layout.clone(), vec![]);
        for position in 0..5 {
            let entry = entry(position, position, &[5], 3 << 20);
            let written = rig.write_values(1, &[(position, Some(entry))]);
            assert_eq!(answers(&written), [Durable]);
        }
        // The answer stops early where it would be too large; each round gives something.
        let (mut left, mut rounds): (Vec<u64>, _) = ((0..5).collect(), 0);
        while !left.is_empty() {
            let (Response::Unit(UnitResponse::Values { answers, .. }), body) =
                rig.read_full(1, &left)
            else {
                panic!("values");
            };
            assert!(body.len() <= 13 << 20, "cache {cache}: {answers:?}");
            let given = |a: &UnitReadAnswer| matches!(a, UnitReadAnswer::Data { .. });
            assert!(
                !answers.is_empty() && answers.iter().all(given),
                "{answers:?}"
            );
            (left, rounds) = (left.split_off(answers.len()), rounds + 1);
        }
        assert!(rounds > 1);
        let (entries, complete, _) = rig.streams(1, &[5], 0, 9);
        assert_eq!(
            (entries.len(), complete),
            (1, 1),
            "one is given, however large"
        );
        // Sizes on disk are guessed before they are read, so how many fit differs; never none, never all.
        assert!((1..5).contains(&rig.fill(1, 0, 5).len()));
    }
}

/// However segments overlap: an end is never below a durable entry, and is exact for streams that are written now.
#[test]
fn ends_lie_above_everything_durable_and_are_exact_for_busy_streams() {
    let mut rig = Rig::open(77);
    let mut held: Vec<(u64, u64)> = Vec::new();
    let mut random = 7_u64;
    let mut exact = 0;
    for step in 0..400_u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        // Nearly in order, as writes arrive.
        let position = step ^ (random >> 61);
        if held.iter().any(|(p, _)| *p == position) {
            continue;
        }
        let stream = 1 + (random >> 40) % 3;
        rig.put(1, position, stream);
        held.push((position, stream));
        let request = UnitRequest::Ends {
            epoch: Epoch(1),
            streams: (1..=4).map(StreamId).collect(),
        };
        let Response::Unit(UnitResponse::Ends { log, streams, .. }) = rig.ask(request) else {
            panic!("no ends");
        };
        let end_of = |held: &mut dyn Iterator<Item = &(u64, u64)>| {
            Position(held.map(|(p, _)| p + 1).max().unwrap_or(0))
        };
        assert_eq!(log, end_of(&mut held.iter()));
        for (stream, end) in (1..=4).zip(streams) {
            let durable = end_of(&mut held.iter().filter(|(_, s)| *s == stream));
            assert!(durable <= end && end <= log, "{durable} {end} {log}");
            exact += u64::from(stream < 4 && durable == end);
        }
    }
    assert!(
        rig.fact("segments").parse::<u64>().unwrap() > 3,
        "it spans segments"
    );
    assert!(exact > 700, "{exact} of {}", held.len() * 3);
}

#[test]
fn ends_are_not_below_the_trim_mark() {
    let mut rig = Rig::open(78);
    for position in 0..4 {
        rig.put(1, position, 1);
    }
    rig.trim(1, 3);
    let request = UnitRequest::Ends {
        epoch: Epoch(1),
        streams: vec![StreamId(1), StreamId(2)],
    };
    for mut rig in [rig.restarted(79), rig] {
        if rig.hello().unwrap().serving == Epoch::NONE {
            rig.seal(2);
            rig.open_epoch(2, 4);
        }
        let request = match request.clone() {
            UnitRequest::Ends { streams, .. } => UnitRequest::Ends {
                epoch: rig.hello().unwrap().serving,
                streams,
            },
            other => other,
        };
        let Response::Unit(UnitResponse::Ends { log, streams, .. }) = rig.ask(request) else {
            panic!("no ends");
        };
        assert_eq!(log, Position(4));
        assert_eq!(streams[0], Position(4));
        assert!(
            streams[1] >= Position(3),
            "{}: of what was trimmed, who knows",
            streams[1]
        );
    }
}
