//! Damage is found, never served, and never taken for "unwritten".

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{Epoch, Position};

use super::rig::*;
use crate::sim::SimDisk;
use crate::{OpenError, UnitConfig};

fn small() -> UnitConfig {
    let mut config = config();
    config.segment_bytes = 8 << 10;
    config.batch_bytes = 1 << 10;
    config
}

/// What each position holds.
type Contents = BTreeMap<u64, (UnitReadAnswer, Bytes)>;

/// A directory with one full and one active segment, what it holds, and where the last batch lies.
fn directory() -> (SimDisk, Contents, u64) {
    let mut rig = Rig::on(SimDisk::new(1), small(), 1);
    rig.open_epoch(1, 0);
    let (mut contents, mut position) = (Contents::new(), 0);
    while rig.fact("segments") != "2" || position % 8 != 0 {
        let entry = entry(position, position, &[5 + position % 2], 30);
        let written = rig.write_values(1, &[(position, Some(entry.clone()))]);
        assert_eq!(answers(&written), [WriteAnswer::Durable]);
        rig.fill(1, position + 1, position + 2);
        let data = UnitReadAnswer::Data {
            len: u32::try_from(entry.len()).unwrap(),
        };
        contents.insert(position, (data, entry.bytes().clone()));
        contents.insert(position + 1, (UnitReadAnswer::Junk, Bytes::new()));
        position += 2;
    }
    let last = contents.len() as u64 - 1;
    (rig.disk, contents, last)
}

/// Opens a damaged directory in a new epoch and compares: exact, lost, or (if `may_cut`) unwritten.
/// Gives the numbers of lost and of cut positions.
fn compare(disk: SimDisk, contents: &Contents, may_cut: Option<u64>, what: &str) -> (usize, usize) {
    let mut rig = Rig::on(disk, small(), 2);
    rig.hello()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let high = rig.seal(2).high.0;
    assert_eq!(rig.open_epoch(2, high), ok(UnitResponse::Done), "{what}");
    let positions: Vec<u64> = contents.keys().copied().collect();
    let (mut lost, mut cut) = (Vec::new(), 0);
    // Twice: what was found out stays.
    for _ in 0..2 {
        (lost, cut) = (Vec::new(), 0);
        let Response::Unit(UnitResponse::Values { answers, .. }) = rig.read_full(2, &positions).0
        else {
            panic!("{what}");
        };
        for (position, answer) in positions.iter().zip(answers) {
            match answer {
                UnitReadAnswer::Lost => lost.push(*position),
                UnitReadAnswer::Unwritten if Some(*position) == may_cut => cut += 1,
                answer => assert_eq!(answer, contents[position].0, "{what}: position {position}"),
            }
        }
    }
    let (_, body) = rig.read_full(2, &positions);
    let expected = contents
        .iter()
        .filter(|(p, _)| !lost.contains(p) && (may_cut != Some(**p) || cut == 0));
    let expected: Vec<u8> = expected
        .flat_map(|(_, (_, bytes))| bytes.to_vec())
        .collect();
    assert_eq!(body, expected, "{what}: other bytes were served");
    // Streams: nothing is complete past a lost position, whatever stream it was of.
    let end = contents.len() as u64;
    let (entries, complete, _) = rig.streams(2, &[5, 6], 0, end);
    let first = lost
        .first()
        .copied()
        .unwrap_or(if cut > 0 { end - 1 } else { end });
    assert_eq!(complete, first, "{what}: {lost:?} {entries:?}");
    (lost.len(), cut)
}

/// Bits to flip: all of bytes that mean something, some of the zeros.
fn bits(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.iter().enumerate().flat_map(|(at, byte)| {
        let all = *byte != 0 || (at > 0 && bytes[at - 1] != 0);
        let (at, count) = (at as u64, if all { 8 } else { u64::from(at % 256 == 0) });
        (0..count).map(move |bit| at * 8 + bit)
    })
}

#[test]
fn every_flipped_bit_of_a_segment_is_found() {
    let (disk, contents, last) = directory();
    let (mut flipped, mut lost, mut cut) = (0, 0, 0);
    for (name, bytes) in disk.files() {
        if !name.starts_with("segment-") {
            continue;
        }
        for bit in bits(&bytes) {
            let mut damaged = disk.clone();
            damaged.flip_bit(&name, bit);
            let what = format!("bit {bit} (byte {}) of {name}", bit / 8);
            let (l, c) = compare(damaged, &contents, Some(last), &what);
            assert!(l + c <= contents.len(), "{what}");
            (flipped, lost, cut) = (flipped + 1, lost + l, cut + c);
        }
    }
    println!("{flipped} bits flipped: {lost} positions lost, {cut} cut");
    assert!(flipped > 15_000 && lost > 1_000 && cut > 100);
}

#[test]
fn every_flipped_bit_of_superblock_and_state_is_found() {
    let (disk, contents, _) = directory();
    for (name, bytes) in disk.files() {
        if name != "state" && name != "superblock" {
            continue;
        }
        for bit in bits(&bytes) {
            let mut damaged = disk.clone();
            damaged.flip_bit(&name, bit);
            let what = format!("bit {bit} (byte {}) of {name}", bit / 8);
            let rig = Rig::on(damaged.clone(), small(), 2);
            match rig.hello() {
                // The state has two copies: one flipped bit changes nothing.
                Ok(hello) => {
                    assert_eq!(hello.persisted, Epoch(1), "{what}");
                    compare(damaged, &contents, None, &what);
                }
                Err(error) => {
                    assert_eq!(name, "superblock", "{what}: {error}");
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn a_lost_segment_is_lost_and_not_unwritten() {
    let mut rig = Rig::open(3);
    let mut contents = BTreeMap::new();
    for position in 0..150 {
        contents.insert(position, rig.put(1, position, 5));
    }
    let segments: Vec<String> = rig
        .file_names()
        .into_iter()
        .filter(|n| n.ends_with(".log"))
        .collect();
    assert!(segments.len() >= 4, "{segments:?}");
    for (at, name) in segments.iter().enumerate() {
        for how in 0..3 {
            let mut disk = rig.disk.clone();
            match how {
                0 => assert!(disk.lose_file(name)),
                1 => disk.overwrite(name, 0, &[0xff; 6_000]),
                _ => disk.truncate(name, 5_000),
            }
            let mut after = Rig::on(disk, config(), 4);
            let what = format!("{name}, damage {how}");
            // The last one with records has nothing behind it to tell what it held, nor has an empty one.
            let hello = match after.hello() {
                Ok(hello) => hello,
                Err(error) => {
                    assert!(at + 2 >= segments.len(), "{what}: {error}");
                    assert!(
                        matches!(error, OpenError::Damaged { .. }),
                        "{what}: {error}"
                    );
                    continue;
                }
            };
            assert_eq!(hello.persisted, Epoch(1));
            let high = after.seal(2).high.0;
            assert_eq!(high, 150, "{what}");
            after.open_epoch(2, high);
            let mut lost = 0;
            for (position, entry) in &contents {
                match after.read_one(2, *position) {
                    (UnitReadAnswer::Lost, _) => lost += 1,
                    (UnitReadAnswer::Data { .. }, body) => assert_eq!(body, entry.bytes()),
                    other => panic!("{what}: {other:?} at {position}"),
                }
            }
            let (_, complete, _) = after.streams(2, &[5], 0, 150);
            assert!(complete < 150 || lost == 0, "{what}");
            // A settler that finds the value elsewhere repairs, and that survives.
            for (position, entry) in &contents {
                let answer = after.write_values(2, &[(*position, Some(entry.clone()))]);
                assert_eq!(answers(&answer), [WriteAnswer::Durable], "{what}");
            }
            let mut repaired = after.restarted(5);
            repaired.seal(3);
            repaired.open_epoch(3, high);
            for (position, entry) in &contents {
                assert_eq!(repaired.read_one(3, *position).1, entry.bytes(), "{what}");
            }
        }
    }
}

/// Once nothing is lacking, what a lost segment may have held is no damage any more.
#[test]
fn what_was_given_back_is_lost_no_more() {
    let mut rig = Rig::open(60);
    let entries: Vec<_> = (0..150).map(|p| rig.put(1, p, 5)).collect();
    let mut disk = rig.disk.clone();
    assert!(disk.lose_file("segment-0000000000000002.log"));
    let mut rig = Rig::on(disk, config(), 61);
    for epoch in 2..4 {
        assert!(rig.hello().unwrap().damaged);
        assert!(rig.seal(epoch).lost > Position(60));
        rig.open_epoch(epoch, 150);
        let (epoch, below) = (Epoch(epoch), Position(150));
        rig.ask(UnitRequest::Settled { epoch, below });
        let lacking = |rig: &mut Rig, from| {
            let (from, limit) = (Position(from), 1_000);
            match rig.ask(UnitRequest::Lacking { epoch, from, limit }) {
                Response::Unit(UnitResponse::Lacking { positions, .. }) => positions,
                other => panic!("{other:?}"),
            }
        };
        assert!(lacking(&mut rig, 149).is_empty());
        assert!(rig.hello().unwrap().damaged, "not all was looked at");
        for position in lacking(&mut rig, 0) {
            let entry = &entries[usize::try_from(position.0).unwrap()];
            assert_eq!(
                rig.repair(epoch.0, position.0, entry),
                [WriteAnswer::Durable]
            );
        }
        assert!(lacking(&mut rig, 0).is_empty());
        assert!(!rig.hello().unwrap().damaged);
        assert_eq!(rig.fact("lost_span"), "0");
        assert_eq!(rig.seal(epoch.0 + 1).lost, Position::ZERO);
        // A restart does not know its positions before it enters an epoch, and is looked through again.
        rig = rig.restarted(62);
    }
}

#[test]
fn tails_do_not_lead_over_what_is_lost() {
    let mut rig = Rig::open(6);
    for position in 0..150 {
        rig.put(1, position, 5);
    }
    let mut disk = rig.disk.clone();
    disk.lose_file("segment-0000000000000002.log");
    let mut rig = Rig::on(disk, config(), 7);
    let report = rig.seal(2);
    assert!(report.lost > Position(60) && report.lost <= report.high);
    let tails = rig.tails(2, 60);
    // The last of what was lost may be the stream's, and nothing is said of what lies below.
    let last = tails[0].last;
    assert_eq!(last.end(), milonga_protocol::ListEnd::Unknown);
    assert_eq!(last.positions(), [Position(59)], "{tails:?}");
}

/// Nobody lists a stream whose only entries are lost: the report alone says that something is missing.
#[test]
fn what_was_lost_with_its_streams_is_reported_until_it_is_trimmed() {
    let mut rig = Rig::open(17);
    for position in 0..60 {
        let rare = (20..40).contains(&position);
        rig.put(1, position, if rare { 9 } else { 5 });
    }
    assert_eq!(rig.restarted(18).seal(2).lost, Position::ZERO);
    let mut disk = rig.disk.kill(19);
    let name = "segment-0000000000000001.log";
    let (_, bytes) = disk.files().into_iter().find(|f| f.0 == name).unwrap();
    // The records of the rare stream, and no batch of others that says more of them.
    let (mut low, mut high) = (usize::MAX, 0);
    for at in 20..40 {
        let entry = entry(at, at, &[9], 40);
        let found = bytes
            .windows(entry.len())
            .position(|w| w == &entry.bytes()[..]);
        let found = found.expect("in the first segment");
        (low, high) = (low.min(found), high.max(found + entry.len()));
    }
    disk.overwrite(name, low as u64, &vec![0xff; high - low]);
    // The footer knows the streams.
    disk.overwrite(name, SEGMENT - 64, &[0; 64]);
    let mut rig = Rig::on(disk, config(), 20);
    let report = rig.seal(2);
    assert!(report.lost >= Position(40), "{report:?}");
    let tails = rig.tails(2, 60);
    assert!(tails.iter().all(|t| t.stream.0 == 5), "{tails:?}");
    rig.open_epoch(2, 60);
    assert_eq!(rig.read_one(2, 39).0, UnitReadAnswer::Lost);
    // A read of that stream stops there, and says that it is lost.
    let (entries, complete, _) = rig.streams(2, &[9], 0, 60);
    assert_eq!(entries, [(complete, 0)]);
    let below = Position(60);
    let epoch = Epoch(2);
    rig.ask(UnitRequest::Settled { epoch, below });
    let mut again = rig.restarted(21);
    assert_eq!(again.seal(3).lost, report.lost, "it stays known");
    assert_eq!(rig.trim(2, 60), ok(UnitResponse::Trimmed { below }));
    assert_eq!(rig.restarted(22).seal(3).lost, Position::ZERO);
}

/// The head of a chain of two with entries at 0 to 3, all below 2 told as settled, and the entry at `damaged` unreadable.
fn damaged_head(damaged: u64) -> Rig {
    let mut uncached = config();
    uncached.cache_bytes = 0;
    let mut rig = Rig::on(SimDisk::new(23), uncached, 23);
    rig.open_layout(layout(1, 0, 1, 2, 0, 0), Vec::new());
    for position in 0..4 {
        rig.put(1, position, 5);
    }
    let (epoch, settled, positions) = (Epoch(1), Position(2), vec![Position(0)]);
    rig.ask(UnitRequest::Read {
        epoch,
        settled,
        positions,
    });
    let entry = entry(damaged, damaged, &[5], 40);
    let bytes = entry.bytes();
    let files = rig.disk.files().into_iter();
    let found = files.filter_map(|(name, file)| {
        let at = file.windows(bytes.len()).position(|w| w == &bytes[..])?;
        Some((name, at as u64))
    });
    let (name, at) = found.last().expect("on the disk");
    rig.disk.overwrite(&name, at, &vec![0xff; bytes.len()]);
    rig
}

#[test]
fn damage_that_nobody_reads_is_found_named_and_mended() {
    let mut rig = damaged_head(1);
    assert!(!rig.hello().unwrap().damaged);
    rig.pass(1_000);
    rig.run();
    assert!(rig.hello().unwrap().damaged);
    assert_eq!(
        (rig.fact("lost"), rig.fact("lost_on_scrub")),
        ("1".into(), "1".into())
    );
    let lacking = UnitRequest::Lacking {
        epoch: Epoch(1),
        from: Position(0),
        limit: 9,
    };
    let answer = |positions: &[u64]| {
        ok(UnitResponse::Lacking {
            positions: positions.iter().copied().map(Position).collect(),
            through: Position::MAX,
        })
    };
    assert_eq!(rig.ask(lacking.clone()), answer(&[1]));
    let entry = entry(1, 1, &[5], 40);
    let len = u32::try_from(entry.len()).unwrap();
    let repair = UnitRequest::Repair {
        epoch: Epoch(1),
        settled: Position(2),
        items: vec![(Position(1), WireValue::Data { len })],
    };
    let mended = rig.ask_with(repair, entry.bytes().clone()).0;
    assert_eq!(answers(&mended), [WriteAnswer::Durable]);
    assert_eq!(rig.ask(lacking), answer(&[]));
    assert!(!rig.hello().unwrap().damaged);
    assert_eq!(rig.fact("repaired"), "1");
    // The damaged record is not found again.
    rig.pass(60_000);
    rig.run();
    rig.pass(60_000);
    rig.run();
    assert_eq!(rig.fact("lost_on_scrub"), "1");
    assert_ne!(rig.fact("scrub_passes"), "0");
}

/// Rule 11: only the next epoch asks the other replicas.
#[test]
fn a_head_that_lost_what_may_be_undecided_seals_itself() {
    let sealed = Response::Refused(Refusal::Sealed { epoch: Epoch(1) });
    let fill = UnitRequest::Fill {
        epoch: Epoch(1),
        from: Position(3),
        to: Position(4),
    };
    let read = UnitRequest::Read {
        epoch: Epoch(1),
        settled: Position(0),
        positions: vec![Position(3)],
    };
    for request in [fill, read] {
        let mut rig = damaged_head(3);
        assert_eq!(rig.hello().unwrap().serving, Epoch(1));
        assert_eq!(rig.ask(request), sealed);
        assert_eq!(rig.hello().unwrap().serving, Epoch(0));
        let confirm = UnitRequest::Confirm { epoch: Epoch(1) };
        assert_eq!(rig.ask(confirm), sealed, "no tail check counts on it");
        let report = rig.seal(2);
        assert_eq!(
            (report.high, report.marks.settled),
            (Position(4), Position(3))
        );
        assert_eq!(
            rig.open_layout(layout(2, 4, 1, 2, 0, 0), Vec::new()),
            ok(UnitResponse::Done)
        );
        assert_eq!(
            rig.read_one(2, 3).0,
            UnitReadAnswer::Lost,
            "others may have it"
        );
    }
}

#[test]
fn a_head_that_lost_what_is_settled_goes_on() {
    let mut rig = damaged_head(1);
    assert_eq!(rig.read_one(1, 1).0, UnitReadAnswer::Lost);
    assert_eq!(rig.hello().unwrap().serving, Epoch(1));
    rig.put(1, 4, 5);
    // Whose value a writer brings it cannot tell any more; who read it elsewhere gives it back.
    let lost = entry(1, 1, &[5], 40);
    let other = rig.write_values(1, &[(1, Some(entry(1, 9, &[5], 40)))]);
    let Response::Unit(UnitResponse::Written { answers, .. }) = other else {
        panic!("the other items of a message must not suffer: {other:?}");
    };
    assert_eq!(answers, [WriteAnswer::Refused]);
    assert_eq!(rig.repair(1, 3, &lost), [WriteAnswer::Refused], "undecided");
    assert_eq!(rig.repair(1, 1, &lost), [WriteAnswer::Durable]);
    assert_eq!(rig.repair(1, 1, &lost), [WriteAnswer::Durable], "again");
    let mut rig = rig.restarted(24);
    rig.seal(2);
    rig.open_layout(layout(2, 5, 1, 2, 0, 0), Vec::new());
    assert_eq!(rig.read_one(2, 1).1, lost.bytes());
}

/// "Pending" would say that it never was settled.
#[test]
fn what_is_being_repaired_is_lost_until_it_is_durable() {
    let mut rig = damaged_head(1);
    assert_eq!(rig.read_one(1, 1).0, UnitReadAnswer::Lost);
    let lost = entry(1, 1, &[5], 40);
    let repair = rig.send(repairing(1, 1, &lost), lost.bytes().clone());
    let read = UnitRequest::Read {
        epoch: Epoch(1),
        settled: Position(0),
        positions: vec![Position(1)],
    };
    let read = rig.send(read, Bytes::new());
    rig.poll();
    assert!(!rig.replies.contains_key(&repair), "not durable yet");
    let Response::Unit(UnitResponse::Values { answers: said, .. }) = &rig.replies[&read].0 else {
        panic!("{:?}", rig.replies[&read]);
    };
    assert_eq!(said, &[UnitReadAnswer::Lost]);
    rig.run();
    assert_eq!(answers(&rig.replies[&repair].0), [WriteAnswer::Durable]);
    assert_eq!(rig.read_one(1, 1).1, lost.bytes());
}

#[test]
fn an_index_by_footer_and_one_by_scan_are_equal() {
    let mut rig = Rig::open(8);
    for position in 0..250 {
        if position % 7 == 3 {
            rig.fill(1, position, position + 1);
        } else {
            rig.put(1, position, 5 + position % 3);
        }
    }
    let by_footer = rig.restarted(9);
    let mut disk = rig.disk.kill(10);
    for name in rig.file_names() {
        if name.ends_with(".log") {
            disk.overwrite(&name, SEGMENT - 64, &[0; 64]);
        }
    }
    let by_scan = Rig::on(disk, config(), 9);
    assert!(by_footer.unit.index.sealed.len() >= 3);
    let footers = |rig: &Rig| -> Vec<_> {
        rig.unit
            .index
            .sealed
            .iter()
            .map(crate::segment_index::Sealed::to_footer)
            .collect()
    };
    assert_eq!(footers(&by_footer), footers(&by_scan));
    assert_eq!(by_footer.unit.index.high, by_scan.unit.index.high);
}

#[test]
fn an_index_takes_sixteen_bytes_per_entry_and_stream() {
    let mut active = crate::segment_index::Active::new(1, 1);
    for position in 0..100_000_u64 {
        let stream = milonga_protocol::StreamId(position % 50);
        active.add_data(Position(position * 3), 4_096 + position * 200, &[stream]);
    }
    let sealed = active.seal(Position(300_000), &[]);
    let bytes = sealed.memory();
    assert!(bytes <= 16 * 100_000 + 12 * 50 + 64, "{bytes} bytes");
}

#[test]
fn what_was_cut_counts_as_possibly_held() {
    let mut rig = Rig::open(11);
    rig.put(1, 0, 5);
    rig.put(1, 1, 5);
    let mut disk = rig.disk.clone();
    let (_, bytes) = disk.files().remove(0);
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    disk.flip_bit("segment-0000000000000001.log", (end - 3) * 8);
    let mut rig = Rig::on(disk, config(), 12);
    assert!(
        rig.fact("cut_at_start").contains("1 of 1 records"),
        "{}",
        rig.fact("cut_at_start")
    );
    assert_eq!(
        rig.seal(2).high,
        Position(2),
        "position 1 is not granted again"
    );
    rig.open_epoch(2, 2);
    assert_eq!(rig.read_one(2, 1).0, UnitReadAnswer::Unwritten);
    let settled = rig.write_values(2, &[(1, None)]);
    assert_eq!(answers(&settled), [WriteAnswer::Durable]);
}

#[test]
fn evidence_of_damage_outlives_a_trim() {
    let mut rig = Rig::open(13);
    for position in 0..150 {
        rig.put(1, position, 5);
    }
    let mut disk = rig.disk.clone();
    disk.lose_file("segment-0000000000000003.log");
    let mut rig = Rig::on(disk, config(), 14);
    rig.open_epoch(2, 150);
    let lost: Vec<u64> = (0..150)
        .filter(|p| rig.read_one(2, *p).0 == UnitReadAnswer::Lost)
        .collect();
    let middle = lost[lost.len() / 2];
    // Settled as far as that goes: some replica gave up on what nobody has.
    let settled = UnitRequest::Settled {
        epoch: Epoch(2),
        below: Position(150),
    };
    rig.ask(settled);
    assert_eq!(
        rig.trim(2, middle),
        ok(UnitResponse::Trimmed {
            below: Position(middle)
        })
    );
    let mut rig = rig.restarted(15);
    rig.open_epoch(3, 150);
    for position in lost {
        let expected = if position < middle {
            UnitReadAnswer::Trimmed
        } else {
            UnitReadAnswer::Lost
        };
        assert_eq!(rig.read_one(3, position).0, expected, "position {position}");
    }
    // Above all damage it can go.
    let files = rig.file_names().len();
    rig.ask(UnitRequest::Settled {
        epoch: Epoch(3),
        below: Position(150),
    });
    rig.trim(3, 149);
    assert!(rig.file_names().len() < files);
    let mut rig = rig.restarted(16);
    rig.open_epoch(4, 150);
    assert!(matches!(
        rig.read_one(4, 149).0,
        UnitReadAnswer::Data { .. }
    ));
    assert_eq!(rig.fact("lost_span"), "0");
}
