//! Every bit of a segment of 64 KiB, flipped in turn. Takes minutes; `just long` runs it.

use bytes::BytesMut;
use milonga_protocol::EncodedEntry;
use milonga_protocol::messages::*;

use super::rig::*;
use crate::UnitConfig;
use crate::sim::SimDisk;

const SEGMENT_BYTES: u64 = 64 << 10;

fn config() -> UnitConfig {
    let mut config = super::rig::config();
    config.segment_bytes = SEGMENT_BYTES;
    config.batch_bytes = 8 << 10;
    config
}

/// A directory with one full segment and another one, and what they hold.
fn directory() -> (SimDisk, Vec<EncodedEntry>) {
    let mut rig = Rig::on(SimDisk::new(1).without_trace(), config(), 1);
    rig.open_epoch(1, 0);
    let mut entries = Vec::new();
    while rig.fact("segments") != "2" || entries.len() % 4 != 0 {
        let position = entries.len() as u64;
        let entry = entry(position, position, &[5], 900);
        let written = rig.write_values(1, &[(position, Some(entry.clone()))]);
        assert_eq!(answers(&written), [WriteAnswer::Durable]);
        entries.push(entry);
    }
    (rig.disk, entries)
}

/// Enters an epoch and reads everything; what is lost. Nothing else but what was written is served.
fn enter_and_read(rig: &mut Rig, epoch: u64, entries: &[EncodedEntry], what: &str) -> Vec<u64> {
    rig.hello()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    rig.seal(epoch);
    let opened = rig.open_epoch(epoch, entries.len() as u64);
    assert_eq!(opened, ok(UnitResponse::Done), "{what}");
    read(rig, epoch, entries, what)
}

fn read(rig: &mut Rig, epoch: u64, entries: &[EncodedEntry], what: &str) -> Vec<u64> {
    let positions: Vec<u64> = (0..entries.len() as u64).collect();
    let (response, body) = rig.read_full(epoch, &positions);
    let Response::Unit(UnitResponse::Values { answers, .. }) = response else {
        panic!("{what}: {response:?}");
    };
    assert_eq!(answers.len(), entries.len(), "{what}");
    let (mut lost, mut expected) = (Vec::new(), BytesMut::new());
    for ((position, answer), entry) in positions.iter().zip(answers).zip(entries) {
        if answer == UnitReadAnswer::Lost {
            lost.push(*position);
            continue;
        }
        let len = u32::try_from(entry.len()).expect("small");
        assert_eq!(answer, UnitReadAnswer::Data { len }, "{what}: {position}");
        expected.extend_from_slice(entry.bytes());
    }
    assert!(body == expected.freeze(), "{what}: other bytes were served");
    lost
}

#[test]
#[ignore = "takes minutes, in release"]
fn every_bit_of_a_segment_is_found_never_served_and_repaired() {
    let (disk, entries) = directory();
    let files = disk.files();
    let is_first = |name: &&str| name.starts_with("segment-");
    let name = files.iter().map(|(name, _)| &**name).find(is_first);
    let name = name.expect("a segment").to_owned();
    let (mut flipped, mut lost, mut harmless) = (0_u64, 0, 0);
    for bit in 0..SEGMENT_BYTES * 8 {
        let what = format!("bit {bit} (byte {}) of {name}", bit / 8);
        let mut damaged = disk.clone();
        assert!(damaged.flip_bit(&name, bit), "{what}");
        let mut rig = Rig::on(damaged, config(), 2);
        let missing = enter_and_read(&mut rig, 2, &entries, &what);
        (flipped, lost) = (flipped + 1, lost + missing.len());
        harmless += u64::from(missing.is_empty());
        for position in &missing {
            let entry = &entries[usize::try_from(*position).expect("small")];
            let answer = rig.repair(2, *position, entry);
            assert_eq!(answer, [WriteAnswer::Durable], "{what}: {position}");
        }
        if !missing.is_empty() {
            assert_eq!(read(&mut rig, 2, &entries, &what), [0; 0], "{what}");
            let mut rig = rig.restarted(3);
            let missing = enter_and_read(&mut rig, 3, &entries, &what);
            assert_eq!(missing, [0; 0], "{what}: after a restart");
        }
    }
    println!(
        "{flipped} bits flipped in turn: {lost} entries lost and repaired, {harmless} bits of zeros, headers and the footer \
         cost nothing"
    );
    assert!(lost as u64 > flipped / 2, "{lost} of {flipped}");
}
