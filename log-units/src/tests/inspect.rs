//! An inspection sees all damage, takes nothing for damage that a crash left, and counts as the unit does.

use bytes::Bytes;
use milonga_protocol::messages::{UnitRequest, UnitResponse, WriteAnswer};
use milonga_protocol::{Epoch, Position};

use super::crashes::run_trace;
use super::rig::*;
use crate::format::HEADER_BYTES;
use crate::inspect::inspect;
use crate::sim::SimDisk;
use crate::{Affected, SegmentState, UnitConfig, UnitReport};

fn small() -> UnitConfig {
    let mut config = config();
    config.segment_bytes = 8 << 10;
    config.batch_bytes = 1 << 10;
    config
}

/// Two full segments, the active one and a spare: data, junk, a void, a trim that removes nothing.
fn directory() -> Rig {
    let mut rig = Rig::on(SimDisk::new(1), small(), 1);
    rig.open_epoch(1, 0);
    let mut position = 0;
    while rig.fact("segments") != "2" {
        rig.put(1, position, 5 + position % 2);
        rig.fill(1, position + 1, position + 2);
        position += 2;
    }
    rig.seal(2);
    let layout = layout(2, position - 1, 1, 1, 0, 0);
    let starts = vec![(Epoch(1), Position(0)), (Epoch(2), Position(position - 1))];
    rig.open_layout(layout, starts);
    for step in 0..20 {
        // Bodies of any length: some records are padded.
        let at = position - 1 + step;
        let entry = entry(at, at, &[5 + at % 2], 30 + usize::try_from(step).unwrap());
        rig.write_values(2, &[(at, Some(entry))]);
    }
    while rig.file_names().len() < 6 {
        position += 1;
        rig.put(2, position + 20, 9);
    }
    rig.put(2, position + 40, 9);
    rig.trim(2, 3);
    rig
}

fn look(disk: &SimDisk) -> UnitReport {
    let files: Vec<_> = disk
        .files()
        .into_iter()
        .map(|(name, bytes)| (name, Bytes::from(bytes)))
        .collect();
    inspect(&files).unwrap_or_else(|error| panic!("{error}"))
}

fn lines(report: &UnitReport) -> Vec<String> {
    let lines = report.damage.iter();
    lines
        .map(|d| format!("{}:{}: {}; {}", d.file, d.offset, d.expected, d.affected))
        .collect()
}

#[test]
fn an_untouched_directory_is_whole_and_counted_as_the_unit_counts() {
    let rig = directory();
    let report = look(&rig.disk);
    assert_eq!((lines(&report), &report.remarks[..]), (vec![], &[][..]));
    let states: Vec<_> = report.segments.iter().map(|s| s.state).collect();
    assert_eq!(
        states,
        [
            SegmentState::Sealed,
            SegmentState::Sealed,
            SegmentState::Active,
            SegmentState::Spare
        ]
    );
    assert_eq!((report.unit, report.cluster), (Some(ME), Some(CLUSTER)));
    assert_eq!(report.name.as_deref(), Some("unit-1a"));
    let state = report.state.expect("there is one");
    assert_eq!((state.epoch, state.trim), (Epoch(2), Position(3)));
    assert_eq!(report.high.to_string(), rig.fact("high"));
    // The unit counts what is below the trim mark as well, as long as its segment is there: positions 0 and 2.
    assert_eq!((report.entries + 2).to_string(), rig.fact("entries"));
    assert_eq!(report.batches.to_string(), rig.fact("batches"));
    assert_eq!(report.records.to_string(), rig.fact("records"));
    assert_eq!(report.streams, 3);
    let by_segment = report.segments.iter().map(|s| s.records).sum::<u64>();
    assert_eq!(by_segment, report.records);
    assert!(report.lost.is_empty());
    assert_eq!(report.segments[0].positions.unwrap().0, Position(0));
}

/// No byte means nothing. What is seen, but is no damage, lies where a torn write may have left it: in the last batch,
/// behind it, in the gap before an index, and in a spare.
#[test]
fn every_flipped_bit_is_reported() {
    let rig = directory();
    let clean = look(&rig.disk);
    let batches = batches(&rig.disk);
    let last_batch = |name: &str| {
        let last = batches.iter().rev().find(|(file, _)| file == name);
        last.map_or(0, |(_, at)| *at)
    };
    let (mut flipped, mut torn) = (0, 0);
    for (name, bytes) in rig.disk.files() {
        let segment = clean.segments.iter().find(|s| s.name == name);
        let may_be_torn = segment.map_or(u64::MAX, |s| match s.state {
            SegmentState::Sealed => s.used,
            SegmentState::Active => last_batch(&name),
            _ => HEADER_BYTES,
        });
        for (at, byte) in bytes.iter().enumerate() {
            let (at, all) = (at as u64, *byte != 0);
            // Every bit of bytes that are not zero, one of those that are.
            let bits = if all { 0..8 } else { at % 8..at % 8 + 1 };
            for bit in bits {
                let mut disk = rig.disk.clone();
                disk.flip_bit(&name, at * 8 + bit);
                let report = look(&disk);
                flipped += 1;
                if report.damage.is_empty() {
                    torn += 1;
                    let what = format!("bit {bit} of byte {at} of {name}");
                    assert!(!report.remarks.is_empty(), "{what} is not seen");
                    assert!(at >= may_be_torn, "{what}: {:?}", report.remarks);
                } else {
                    let here = report.damage.iter().any(|d| d.file == name);
                    assert!(here, "byte {at} of {name}: {:?}", lines(&report));
                }
            }
        }
    }
    println!("{flipped} bits flipped, {torn} of them where a torn write may lie");
    assert!(flipped > 50_000);
}

/// After any loss of power, before and after the unit has started again.
#[test]
fn what_a_crash_leaves_is_no_damage() {
    let (mut moments, mut remarks) = (0, 0);
    for seed in 0..24 {
        for (at, (disk, _)) in run_trace(seed, 60).into_iter().enumerate() {
            moments += 1;
            let seed = seed * 100_000 + at as u64;
            let disk = match seed % 3 {
                0 => disk.kill(seed),
                _ => disk.crash(seed),
            };
            let report = look(&disk);
            assert_eq!(lines(&report), [""; 0], "seed {seed}");
            assert!(report.lost.is_empty(), "seed {seed}: {:?}", report.lost);
            remarks += report.remarks.len();
            if at % 3 == 0 {
                let after = Rig::on(disk, config(), seed);
                let report = look(&after.disk);
                assert_eq!(lines(&report), [""; 0], "seed {seed}, restarted");
                assert_eq!(report.high.to_string(), after.fact("high"), "seed {seed}");
            }
        }
    }
    println!("{moments} moments, {remarks} remarks");
    assert!(remarks > 100);
}

/// What is copied to a unit lies below its settled mark.
#[test]
fn a_segment_of_copied_entries_costs_positions_as_well() {
    let mut rig = Rig::on(SimDisk::new(1), small(), 1);
    rig.open_epoch(1, 1_000);
    let below = Position(1_000);
    let epoch = Epoch(1);
    assert_eq!(
        rig.ask(UnitRequest::Settled { epoch, below }),
        ok(UnitResponse::Done)
    );
    let mut position = 0;
    while rig.fact("segments") != "4" {
        let entry = entry(position, position, &[5], 200);
        assert_eq!(rig.repair(1, position, &entry), [WriteAnswer::Durable]);
        position += 1;
    }
    rig.put(1, 1_000, 5);
    let clean = look(&rig.disk);
    let (first, last) = clean.segments[1].positions.unwrap();
    let name = crate::format::segment_name(2);
    let covers = |report: &UnitReport| {
        let (from, to) = report.lost[0];
        from <= first && last < to && !report.lost_is_unknown()
    };

    let mut disk = rig.disk.clone();
    assert!(disk.lose_file(&name));
    let lost = look(&disk);
    assert!(covers(&lost), "{:?}", lines(&lost));
    assert!(lines(&lost)[0].contains("it is missing; positions"));
    let mut disk = rig.disk.clone();
    disk.truncate(&name, 4_100);
    assert!(covers(&look(&disk)));
}

#[test]
fn damage_says_where_it_is_and_what_it_costs() {
    let rig = directory();
    let name = |n: u64| crate::format::segment_name(n);
    let look_after = |change: &dyn Fn(&mut SimDisk)| {
        let mut disk = rig.disk.clone();
        change(&mut disk);
        look(&disk)
    };
    let clean = look(&rig.disk);
    let second = clean.segments[1].positions.unwrap();

    let lost = look_after(&|disk| assert!(disk.lose_file(&name(2))));
    assert_eq!(lines(&lost).len(), 1, "{:?}", lines(&lost));
    assert!(lines(&lost)[0].starts_with(&format!(
        "{}:0: this file: it is missing; positions",
        name(2)
    )));
    let Affected::Positions(from, to) = lost.damage[0].affected else {
        panic!("{:?}", lines(&lost));
    };
    assert!(
        from <= second.0.max(Position(3)) && to > second.1,
        "{from}..{to}, {second:?}"
    );
    assert_eq!(lost.lost, [(from, to)]);

    let last = look_after(&|disk| assert!(disk.lose_file(&name(3)) && disk.lose_file(&name(4))));
    assert!(lines(&last)[0].ends_with("the segment before it is full; unknown positions"));

    let cut = look_after(&|disk| disk.truncate(&name(1), 5_000));
    assert!(
        lines(&cut)
            .iter()
            .any(|l| l.contains(":5000: 8192 bytes: the file was cut short; positions")),
        "{:?}",
        lines(&cut)
    );

    let foreign = look_after(&|disk| disk.overwrite(&name(2), 4_096 + 104, &[0; 40]));
    assert!(
        lines(&foreign)[0].contains(":4200: a record of batch "),
        "{:?}",
        lines(&foreign)
    );

    let no_superblock = look_after(&|disk| assert!(disk.lose_file("superblock")));
    assert_eq!(
        lines(&no_superblock),
        ["superblock:0: this file: without it the unit does not start; no position is affected"]
    );
    assert_eq!(
        no_superblock.entries, clean.entries,
        "the state says whose it is"
    );

    // A footer with a right checksum that is not that of these records.
    let mut other = Rig::on(SimDisk::new(1), small(), 1);
    other.open_epoch(1, 0);
    let mut position = 0;
    while other.fact("segments") != "2" {
        other.put(1, position, 7);
        other.fill(1, position + 1, position + 2);
        position += 2;
    }
    let files = other.disk.files();
    let (_, theirs) = files.iter().find(|f| f.0 == name(1)).unwrap();
    let index = look_after(&|disk| {
        let used = usize::try_from(clean.segments[0].used).unwrap();
        disk.overwrite(&name(1), used as u64, &theirs[used..]);
    });
    assert!(
        lines(&index)
            .iter()
            .any(|l| l.contains("an index that fits the records: it lists other streams")),
        "{:?}",
        lines(&index)
    );
}

#[test]
fn what_is_not_there_yet_is_no_damage() {
    assert!(inspect(&[]).unwrap().damage.is_empty());
    let rig = Rig::new(1);
    let report = look(&rig.disk);
    assert!(
        report.damage.is_empty() && report.cluster.is_none(),
        "{report:?}"
    );
    let report = look(&Rig::open(2).disk);
    assert!(
        report.damage.is_empty() && report.entries == 0,
        "{report:?}"
    );
    let foreign = inspect(&[("notes.txt".to_owned(), Bytes::new())]).unwrap();
    assert!(foreign.damage[0].expected.starts_with("no such file"));
}

#[test]
fn what_nothing_says_is_not_known() {
    let name = |n: u64| crate::format::segment_name(n);
    let mut disk = directory().disk;
    disk.overwrite("superblock", 0, &[0xff; 64]);
    let report = look(&disk);
    let says = (report.unit, report.cluster, report.name);
    assert_eq!(says, (Some(ME), Some(CLUSTER), None), "the state does");
    let mut less = disk.clone();
    assert!(less.lose_file(&name(2)));
    let report = look(&less);
    assert!(!report.lost.is_empty() && !report.lost_is_unknown());
    assert!(less.lose_file(&name(3)) && less.lose_file(&name(4)));
    assert!(look(&less).lost_is_unknown());
    disk.overwrite("state", 0, &[0xff; 8_192]);
    for number in 1..5 {
        disk.overwrite(&name(number), 0, &[0xff; 4_096]);
    }
    let report = look(&disk);
    assert_eq!((report.unit, report.cluster), (None, None));
}
