//! Failing, full and foreign disks.

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{EncodedEntry, Entry, EntryId, Epoch, Position, WriterId};

use super::rig::*;
use crate::sim::SimDisk;
use crate::{DiskDone, DiskError, OpId, OpenError, UnitConfig, UnitEffect};

const FIRST: &str = "segment-0000000000000001.log";

fn is_poisoned(response: &Response) -> bool {
    matches!(response, Response::Refused(Refusal::Poisoned { .. }))
}

#[test]
fn a_failed_write_or_sync_poisons() {
    for (seed, sync) in (0..16).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut rig = Rig::open(seed);
        let safe = rig.put(1, 0, 5);
        if sync {
            rig.disk.fail_sync(0);
        } else {
            rig.disk.fail_write(0);
        }
        let entry = entry(1, 1, &[5], 900);
        let failed = rig.write_values(1, &[(1, Some(entry.clone()))]);
        assert!(is_poisoned(&failed), "{failed:?}");
        assert!(is_poisoned(
            &rig.write_values(1, &[(1, Some(entry.clone()))])
        ));
        assert!(is_poisoned(&rig.trim(1, 1)));
        // What is sure is served; what was on its way is neither unwritten nor gone for good.
        assert_eq!(rig.read_one(1, 0).1, safe.bytes());
        assert_eq!(rig.read_one(1, 1).0, UnitReadAnswer::Pending);
        assert_eq!(rig.read_one(1, 2).0, UnitReadAnswer::Unwritten);
        let confirmed = rig.ask(UnitRequest::Confirm { epoch: Epoch(1) });
        assert_eq!(marks(&confirmed).settled, Position(1));
        let (entries, complete, _) = rig.streams(1, &[5], 0, 9);
        assert_eq!((entries.len(), complete), (2, 1), "{entries:?}");
        assert_eq!(rig.seal(2).high, Position(2));
        assert!(is_poisoned(&rig.open_epoch(2, 2)));
        assert_eq!(rig.fact("state"), "poisoned");
        // A restart looks at the disk. What it shows from then on, it shows for ever, also after a loss of power:
        // what the system had in memory and never wrote is written again first.
        let mut again = rig.restarted(seed);
        again.open_epoch(2, 2);
        let shown = again.read_one(2, 1);
        assert!(matches!(
            shown.0,
            UnitReadAnswer::Data { .. } | UnitReadAnswer::Unwritten
        ));
        let mut later = again.after_crash(seed);
        later.open_epoch(3, 2);
        assert_eq!(later.read_one(3, 1), shown, "seed {seed}");
        assert_eq!(later.read_one(3, 0).1, safe.bytes());
    }
}

#[test]
fn a_last_batch_that_cannot_be_written_again_is_lost() {
    let mut rig = Rig::open(1);
    rig.put(1, 0, 5);
    rig.put(1, 1, 5);
    let mut disk = rig.disk.kill(1);
    disk.fail_write(0);
    let mut rig = Rig::on(disk, config(), 1);
    assert_eq!(rig.fact("state"), "poisoned");
    assert_eq!(rig.seal(2).high, Position(2));
    assert_eq!(rig.fact("lost"), "1");
}

fn reserved(position: u64) -> EncodedEntry {
    let entry = Entry {
        id: EntryId {
            writer: WriterId(9),
            sequence: position,
        },
        links: vec![],
        payload: Bytes::from_static(&[7; 300]),
    };
    EncodedEntry::encode(Position(position), &entry, true)
}

#[test]
fn a_full_disk_refuses_ordinary_data_until_there_is_space_again() {
    let mut rig = Rig::open(2);
    let ordinary = |rig: &mut Rig, position| {
        let entry = entry(position, 1, &[5], 300);
        answers(&rig.write_values(1, &[(position, Some(entry))]))[0]
    };
    let mut position = 0;
    for round in 0..5 {
        assert_eq!(
            ordinary(&mut rig, position),
            WriteAnswer::Durable,
            "round {round}"
        );
        position += 1;
        // Below the soft reserve: found out within a second of writing.
        rig.disk.set_free(1000);
        rig.pass(1_100);
        ordinary(&mut rig, position);
        position += 1;
        assert_eq!(
            ordinary(&mut rig, position),
            WriteAnswer::Full,
            "round {round}"
        );
        assert_eq!(rig.fact("state"), "full");
        // Junk and flagged entries go on, so does the unit's own state.
        let answer = rig.write_values(1, &[(position, Some(reserved(position)))]);
        assert_eq!(answers(&answer), [WriteAnswer::Durable]);
        assert_eq!(rig.fill(1, position + 1, position + 3).len(), 2);
        position += 3;
        assert!(matches!(
            rig.trim(1, round),
            Response::Unit(UnitResponse::Trimmed { .. })
        ));
        rig.disk.set_free(1 << 30);
        rig.pass(300);
        rig.pass(300);
    }
    assert_eq!(ordinary(&mut rig, position), WriteAnswer::Durable);
}

#[test]
fn when_even_the_reserve_is_full_nothing_is_forgotten() {
    let mut rig = Rig::open(3);
    rig.put(1, 0, 5);
    rig.disk.set_free(0);
    rig.pass(1_100);
    let mut durable = 1;
    loop {
        let answer = rig.write_values(1, &[(durable, Some(reserved(durable)))]);
        match answers(&answer)[..] {
            [WriteAnswer::Durable] => durable += 1,
            [WriteAnswer::Full] => break,
            ref other => panic!("{other:?}"),
        }
        assert!(durable < 1_000);
    }
    // Two segments' worth: the active one and the prepared one.
    assert!(durable > 40, "{durable}");
    assert_eq!(rig.read_one(1, durable).0, UnitReadAnswer::Unwritten);
    assert!(rig.fill(1, durable, durable + 2).len() <= 2);
    // A trim frees whole segments, and all goes on.
    assert!(matches!(
        rig.trim(1, durable - 2),
        Response::Unit(UnitResponse::Trimmed { .. })
    ));
    for _ in 0..4 {
        rig.pass(300);
    }
    let answer = rig.write_values(1, &[(durable + 5, Some(reserved(durable + 5)))]);
    assert_eq!(answers(&answer), [WriteAnswer::Durable]);
    assert_eq!(
        rig.read_one(1, durable - 1).1,
        reserved(durable - 1).bytes()
    );
    let mut rig = rig.restarted(4);
    rig.open_epoch(2, durable + 6);
    assert_eq!(
        rig.read_one(2, durable - 1).1,
        reserved(durable - 1).bytes()
    );
    assert_eq!(rig.fact("lost_span"), "0");
}

#[test]
fn a_disk_without_room_for_a_segment_says_so() {
    let mut rig = Rig::new(5);
    rig.disk.set_free(6_000);
    let answer = rig.open_epoch(1, 0);
    assert!(
        matches!(answer, Response::Refused(Refusal::Busy { .. })),
        "{answer:?}"
    );
    rig.disk.set_free(1 << 30);
    rig.pass(300);
    assert_eq!(rig.open_epoch(1, 0), ok(UnitResponse::Done));
}

#[test]
fn an_unreadable_file_is_lost_not_unwritten() {
    let mut rig = uncached(100);
    let broken = DiskError::Io("a broken disk".to_owned());
    rig.disk.fail_reads(FIRST, 0..u64::MAX, broken);
    assert_eq!(rig.read_one(2, 3).0, UnitReadAnswer::Lost);
    assert!(matches!(rig.read_one(2, 99).0, UnitReadAnswer::Data { .. }));
    assert_eq!(rig.fact("lost_on_read"), "1");
    let (entries, complete, _) = rig.streams(2, &[5], 3, 100);
    assert_eq!((entries[0], complete), ((3, 0), 3));
}

/// A unit in epoch 2 with so many entries, none in memory.
fn uncached(entries: u64) -> Rig {
    let mut rig = Rig::open(6);
    for position in 0..entries {
        rig.put(1, position, 5);
    }
    let mut config = config();
    config.cache_bytes = 0;
    let mut rig = Rig::on(rig.disk.kill(1), config, 6);
    rig.open_epoch(2, entries);
    rig
}

/// Ten entries in one segment, none in memory; where the one at `position` lies.
fn ten_uncached(position: u64) -> (Rig, u64) {
    let rig = uncached(10);
    let entry = entry(position, position, &[5], 40);
    let files = rig.disk.files();
    let (_, bytes) = files.iter().find(|f| f.0 == FIRST).unwrap();
    let mut windows = bytes.windows(entry.len());
    let at = windows.position(|w| w == &entry.bytes()[..]).unwrap();
    (rig, at as u64)
}

#[test]
fn a_bad_sector_costs_its_entry_and_no_neighbour() {
    let (mut rig, at) = ten_uncached(4);
    let broken = DiskError::Io("a bad sector".to_owned());
    rig.disk.fail_reads(FIRST, at..at + 8, broken);
    let all: Vec<u64> = (0..10).collect();
    let Response::Unit(UnitResponse::Values { answers, .. }) = rig.read_full(2, &all).0 else {
        panic!("no values");
    };
    let lost = |answer: &UnitReadAnswer| *answer == UnitReadAnswer::Lost;
    assert_eq!(answers.len(), 10);
    assert_eq!(answers.iter().position(lost), Some(4));
    assert_eq!(rig.fact("lost_on_read"), "1");
}

/// A disk that is gone has lost nothing that is known of: else, where the power fails for all, all would say `Lost`.
#[test]
fn what_a_dead_disk_does_not_give_is_not_lost() {
    for settled in [false, true] {
        let (mut rig, _) = ten_uncached(4);
        if settled {
            rig.seal(3);
        }
        rig.disk.die();
        let read = UnitRequest::Read {
            epoch: Epoch(2),
            settled: Position(10),
            positions: (0..10).map(Position).collect(),
        };
        for _ in 0..2 {
            let answer = rig.ask(read.clone());
            let Response::Refused(Refusal::Poisoned { why }) = &answer else {
                panic!("{answer:?}");
            };
            assert!(why.contains("death of the disk"), "{why}");
        }
        assert!(rig.hello().unwrap().poisoned);
        assert_eq!(rig.fact("lost_on_read"), "0");

        let mut rig = rig.after_crash(7);
        rig.open_epoch(4, 10);
        for position in 0..10 {
            let (answer, _) = rig.read_one(4, position);
            assert!(matches!(answer, UnitReadAnswer::Data { .. }), "{answer:?}");
        }
    }
}

#[test]
fn what_a_second_read_gives_is_not_lost() {
    let (mut rig, _) = ten_uncached(4);
    let broken = DiskError::Io("the path is gone for a moment".to_owned());
    rig.disk.fail_reads(FIRST, 0..u64::MAX, broken);
    let call = rig.send(reading(2, &[4]), Bytes::new());
    assert!(rig.step(), "the read");
    rig.disk.heal();
    rig.run();
    let answer = &rig.replies[&call].0;
    let Response::Unit(UnitResponse::Values { answers, .. }) = answer else {
        panic!("{answer:?}");
    };
    assert!(matches!(answers[..], [UnitReadAnswer::Data { .. }]));
    assert_eq!(rig.fact("lost_on_read"), "0");
}

#[test]
fn a_poisoned_unit_gives_what_lies_before_a_bad_sector_and_after_it() {
    let (mut rig, at) = ten_uncached(4);
    let settled = UnitRequest::Told {
        epoch: Epoch(2),
        settled: Position(10),
    };
    rig.ask(settled);
    rig.disk.fail_sync(0);
    let failed = rig.write_values(2, &[(10, Some(entry(10, 10, &[5], 40)))]);
    assert!(is_poisoned(&failed), "{failed:?}");
    let broken = DiskError::Io("a bad sector".to_owned());
    rig.disk.fail_reads(FIRST, at..at + 8, broken);
    let mut read = |from: u64| {
        let positions: Vec<u64> = (from..10).collect();
        rig.read_full(2, &positions).0
    };
    for (from, given) in [(0, 4), (5, 5)] {
        let answer = read(from);
        let Response::Unit(UnitResponse::Values { answers, .. }) = &answer else {
            panic!("{answer:?}");
        };
        assert_eq!(answers.len(), given);
    }
    assert!(is_poisoned(&read(4)));
    // Who reads streams looks for it elsewhere.
    let (entries, complete, _) = rig.streams(2, &[5], 0, 10);
    assert_eq!((entries.len(), entries[4], complete), (10, (4, 0), 10));
    // What is found could not be given back, so nothing is looked for.
    let reads = rig.fact("disk_reads");
    rig.pass(120_000);
    rig.pass(1_000);
    assert_eq!(rig.fact("disk_reads"), reads);
}

/// A seal waits for no write that only asks whether the disk works.
#[test]
fn a_bad_sector_holds_up_no_seal() {
    let (mut rig, ..) = doubted();
    disk_op(&mut rig);
    let call = rig.send(UnitRequest::Seal { epoch: Epoch(3) }, Bytes::new());
    rig.poll();
    assert!(rig.replies.contains_key(&call));
}

/// The write that proves that the disk works has to begin after the read failed.
#[test]
fn a_write_that_began_before_proves_nothing() {
    let (mut rig, _) = ten_uncached(4);
    let (request, body) = write(2, &[(10, Some(entry(10, 10, &[5], 40)))]);
    rig.send(request, body);
    let batch = disk_op(&mut rig);
    let call = rig.send(reading(2, &[4]), Bytes::new());
    let read = disk_op(&mut rig);
    rig.unit.disk_done(rig.now, read, broken());
    let state = disk_op(&mut rig);
    rig.unit.disk_done(rig.now, batch, Ok(DiskDone::Done));
    rig.poll();
    assert!(!rig.replies.contains_key(&call));
    rig.unit.disk_done(rig.now, state, broken());
    rig.poll();
    assert!(is_poisoned(&rig.replies[&call].0));
}

/// A disk that dies between the two reads has lost nothing.
#[test]
fn a_second_read_that_fails_proves_nothing_by_itself() {
    let (mut rig, call, read) = doubted();
    let state = disk_op(&mut rig);
    rig.unit.disk_done(rig.now, state, Ok(DiskDone::Done));
    // The read again, and the other copy of the state.
    let [again, copy] = disk_ops(&mut rig)[..] else {
        panic!("a read and a write");
    };
    assert_ne!(again, read);
    rig.unit.disk_done(rig.now, again, broken());
    rig.unit.disk_done(rig.now, copy, Ok(DiskDone::Done));
    let state = disk_op(&mut rig);
    assert!(!rig.replies.contains_key(&call));
    rig.unit.disk_done(rig.now, state, broken());
    rig.poll();
    assert!(is_poisoned(&rig.replies[&call].0));
    assert_eq!(rig.fact("lost_on_read"), "0");
}

/// A full disk may say so without having been asked for anything.
#[test]
fn a_full_disk_proves_nothing() {
    let (mut rig, call, _) = doubted();
    let state = disk_op(&mut rig);
    rig.unit.disk_done(rig.now, state, Err(DiskError::Full));
    rig.poll();
    let answer = &rig.replies[&call].0;
    assert!(
        matches!(answer, Response::Refused(Refusal::Busy { .. })),
        "{answer:?}"
    );
    assert_eq!(rig.fact("lost_on_read"), "0");
    rig.run();
    assert!(matches!(rig.read_one(2, 4).0, UnitReadAnswer::Data { .. }));
}

/// A unit whose read of one entry failed; who asked for it, and the read.
fn doubted() -> (Rig, u64, OpId) {
    let (mut rig, _) = ten_uncached(4);
    let call = rig.send(reading(2, &[4]), Bytes::new());
    let read = disk_op(&mut rig);
    rig.unit.disk_done(rig.now, read, broken());
    (rig, call, read)
}

fn broken() -> Result<DiskDone, DiskError> {
    Err(DiskError::Io("broken".to_owned()))
}

/// The one operation that the unit wants next, which stays under way.
fn disk_op(rig: &mut Rig) -> OpId {
    let ids = disk_ops(rig);
    let [id] = ids[..] else {
        panic!("{ids:?}");
    };
    id
}

/// The operations that the unit wants next, which stay under way.
fn disk_ops(rig: &mut Rig) -> Vec<OpId> {
    let effects = std::iter::from_fn(|| rig.unit.poll_effect());
    let ids = effects.map(|effect| match effect {
        UnitEffect::Disk(id, _) => id,
        other => panic!("{other:?}"),
    });
    ids.collect()
}

/// A process without descriptors or memory has not looked at the disk.
#[test]
fn what_cannot_be_read_now_is_not_lost() {
    let (mut rig, _) = ten_uncached(4);
    let busy = DiskError::Busy("too many open files".to_owned());
    rig.disk.fail_reads(FIRST, 0..u64::MAX, busy.clone());
    let answer = rig.ask(reading(2, &[4]));
    let Response::Refused(Refusal::Busy { what }) = &answer else {
        panic!("{answer:?}");
    };
    assert!(what.contains("too many open files"), "{what}");
    rig.disk.heal();
    assert!(matches!(rig.read_one(2, 4).0, UnitReadAnswer::Data { .. }));
    assert_eq!(rig.fact("lost_on_read"), "0");

    // Nor does a start take for damage what it could not read.
    let mut disk = rig.disk.kill(2);
    disk.fail_reads(FIRST, 0..u64::MAX, busy);
    let mut failed = Rig::on(disk, config(), 7);
    assert!(matches!(failed.hello(), Err(OpenError::Disk { .. })));
    failed.disk.heal();
    let mut rig = Rig::on(failed.disk.kill(3), config(), 8);
    rig.open_epoch(3, 10);
    assert!(matches!(rig.read_one(3, 4).0, UnitReadAnswer::Data { .. }));
}

/// Else a writer would be told that its value never will be there, and it could come after all.
#[test]
fn nobody_has_lost_against_junk_that_is_taken_back() {
    let mut rig = Rig::open(4);
    rig.put(1, 0, 5);
    rig.disk.set_free(0);
    rig.pass(1_100);
    let mut next = 1;
    while answers(&rig.write_values(1, &[(next, Some(reserved(next)))])) == [WriteAnswer::Durable] {
        next += 1;
    }
    // Junk is smaller.
    while !rig.fill(1, next, next + 1).is_empty() {
        next += 1;
    }
    let late = reserved(next);
    let fill = UnitRequest::Fill {
        epoch: Epoch(1),
        from: Position(next),
        to: Position(next + 1),
    };
    rig.send(fill, Bytes::new());
    let (request, body) = write(1, &[(next, Some(late))]);
    let call = rig.send(request, body);
    rig.run();
    assert_eq!(rig.read_one(1, next).0, UnitReadAnswer::Unwritten);
    assert_eq!(answers(&rig.replies[&call].0), [WriteAnswer::Full]);
}

/// An operator gives up what the active segment holds and cannot read.
#[test]
fn junk_over_lost_data_stays() {
    let mut rig = uncached(5);
    let entry = entry(2, 2, &[5], 40);
    let name = "segment-0000000000000001.log";
    let (_, bytes) = rig.disk.files().into_iter().find(|f| f.0 == name).unwrap();
    let at = bytes
        .windows(entry.len())
        .position(|w| w == &entry.bytes()[..]);
    rig.disk.overwrite(name, at.unwrap() as u64, &[0xff; 9]);
    assert_eq!(rig.read_one(2, 2).0, UnitReadAnswer::Lost);
    assert_eq!(
        answers(&rig.write_values(2, &[(2, None)])),
        [WriteAnswer::Durable]
    );
    for round in 0..2 {
        assert_eq!(rig.read_one(2 + round, 2).0, UnitReadAnswer::Junk);
        let (entries, complete, _) = rig.streams(2 + round, &[5], 0, 5);
        let positions: Vec<_> = entries.iter().map(|(p, _)| *p).collect();
        assert_eq!((positions, complete), (vec![0, 1, 3, 4], 5));
        rig = rig.restarted(9);
        assert_eq!(rig.seal(3 + round).marks.settled, Position(5));
        rig.open_epoch(3 + round, 5);
    }
}

#[test]
fn foreign_and_newer_directories_are_refused() {
    type Files = Vec<(String, Vec<u8>)>;
    let rig = {
        let mut rig = Rig::open(7);
        rig.put(1, 0, 5);
        rig
    };
    let refused = |change: &dyn Fn(&mut Files)| {
        let mut files = rig.disk.files();
        change(&mut files);
        files.sort();
        let before = files.clone();
        let after = Rig::on(SimDisk::with_files(1, files), config(), 1);
        assert!(after.disk.files() == before, "nothing is changed");
        after.hello().expect_err("refused")
    };
    let error = refused(&|files| files.push(("photo.jpg".into(), vec![1])));
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    let error = refused(&|files| files.retain(|f| f.0 != "superblock"));
    assert!(error.to_string().contains("no superblock"), "{error}");
    let error = refused(&|files| files.retain(|f| f.0 != "state"));
    assert!(error.to_string().contains("missing"), "{error}");
    let error = refused(&|files| files.retain(|f| !f.0.ends_with(".log")));
    assert!(error.to_string().contains("missing"), "{error}");
    let error = refused(&|files| {
        let state = files.iter_mut().find(|f| f.0 == "state").unwrap();
        state.1.fill(0);
    });
    assert!(error.to_string().contains("old copy"), "{error}");
    let error = refused(&|files| {
        let superblock = files.iter_mut().find(|f| f.0 == "superblock").unwrap();
        let bytes = &mut superblock.1;
        bytes[8] = 2;
        let len = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c(&bytes[..len]);
        bytes[len..len + 4].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(error.to_string().contains("upgrade"), "{error}");
    let mut config: UnitConfig = config();
    config.name = "unit-2b".into();
    let other = Rig::on(rig.disk.kill(1), config, 1);
    assert!(other.hello().unwrap_err().to_string().contains("unit-1a"));
    // A segment of another unit never verifies, whatever its name.
    let mut stranger = crate::tests::rig::config();
    stranger.new_id.0 += 1;
    let mut stranger = Rig::on(SimDisk::new(1), stranger, 99);
    let mut theirs = layout(1, 0, 1, 1, 0, 0);
    theirs.units[0].id.0 = ME.0 + 1;
    stranger.open_layout(theirs, vec![]);
    stranger.put(1, 0, 5);
    let error = refused(&|files| {
        let theirs = stranger.disk.files();
        let segment = theirs.iter().find(|f| f.0.ends_with("1.log")).unwrap();
        files.iter_mut().find(|f| f.0 == segment.0).unwrap().1 = segment.1.clone();
    });
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn making_the_directory_may_be_interrupted_anywhere() {
    let mut steps = 0;
    for at in 0..60 {
        let mut rig = Rig::recovering(SimDisk::new(at), config(), at);
        let mut opening = false;
        for _ in 0..at {
            rig.step();
            if rig.unit.hello().is_some() && !opening {
                opening = true;
                rig.send(
                    UnitRequest::Open {
                        layout: layout(1, 0, 1, 1, 0, 0),
                        persisted: Epoch::NONE,
                        starts: vec![],
                    },
                    Bytes::new(),
                );
            }
        }
        for seed in 0..8 {
            steps += 1;
            let disk = if seed < 6 {
                rig.disk.crash(seed)
            } else {
                rig.disk.kill(seed)
            };
            let mut after = Rig::on(disk, config(), seed);
            let hello = after
                .hello()
                .unwrap_or_else(|error| panic!("{at}, {seed}: {error}"));
            let next = hello.persisted.0 + 1;
            assert_eq!(
                after.open_epoch(next, 0),
                ok(UnitResponse::Done),
                "{at}, {seed}"
            );
            after.put(next, 0, 5);
        }
    }
    println!("{steps} interrupted beginnings");
}

#[test]
fn requests_before_the_directory_is_read_are_refused() {
    let mut rig = Rig::recovering(SimDisk::new(1), config(), 1);
    let call = rig.send(UnitRequest::Confirm { epoch: Epoch(1) }, Bytes::new());
    rig.poll();
    assert_eq!(rig.replies[&call].0, Response::Refused(Refusal::NotOpen));
    assert!(rig.unit.hello().is_none());
}

#[test]
fn a_retry_is_compared_to_its_end_though_nothing_stays_in_the_cache() {
    for seed in 0..20 {
        let mut config = config();
        config.cache_bytes = 0;
        let mut rig = Rig::on(SimDisk::new(seed), config, seed);
        rig.open_epoch(1, 0);
        rig.put(1, 0, 7);
        // The second one becomes durable while the first is being read: then it has to be read, too.
        let (request, body) = write(1, &[(1, Some(entry(1, 1, &[7], 10)))]);
        rig.send(request, body);
        let both = [0, 1].map(|p| (p, Some(entry(p, 1, &[7], 10))));
        let (request, body) = write(1, &both);
        let retry = rig.send(request, body);
        for _ in 0..200 {
            rig.step();
        }
        assert!(rig.replies.contains_key(&retry), "seed {seed}");
    }
}
