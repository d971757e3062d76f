//! A directory of format version 1, and a state of version 2, committed: what was written once is read for ever.

use milonga_protocol::messages::*;
use milonga_protocol::{Epoch, Position};

use super::rig::*;
use crate::UnitConfig;
use crate::sim::SimDisk;

const FILES: [(&str, &[u8]); 4] = [
    (
        "segment-0000000000000001.log",
        include_bytes!("../../golden/segment-0000000000000001.log"),
    ),
    (
        "segment-0000000000000002.log",
        include_bytes!("../../golden/segment-0000000000000002.log"),
    ),
    ("state", include_bytes!("../../golden/state-v2")),
    ("superblock", include_bytes!("../../golden/superblock")),
];

/// The state of the same directory, before it named voids.
const STATE_VERSION_1: &[u8] = include_bytes!("../../golden/state");

fn golden_config() -> UnitConfig {
    let mut config = config();
    config.segment_bytes = 8 << 10;
    config
}

/// The directory as this build makes it: epochs 1 and 2, data and junk, a void, a trim, one full segment.
fn make() -> Rig {
    let mut rig = Rig::on(SimDisk::new(1), golden_config(), 1);
    rig.open_epoch(1, 0);
    for position in 0..12 {
        rig.put(1, position, 5 + position % 3);
    }
    rig.fill(1, 12, 16);
    rig.seal(2);
    rig.open_epoch(2, 14);
    for position in 14..22 {
        rig.put(2, position, 5 + position % 3);
    }
    rig.trim(2, 3);
    assert_eq!(rig.fact("segments"), "2");
    rig
}

#[test]
fn the_directory_is_read() {
    let rig = is_read(FILES);
    assert_eq!(rig.unit.state.durable.voids.len(), 1);
}

#[test]
fn a_state_of_version_1_is_read_and_becomes_one_of_version_2() {
    let mut files = FILES;
    files[2].1 = STATE_VERSION_1;
    let rig = is_read(files);
    assert!(rig.unit.state.durable.voids.is_empty());
    let (_, state) = rig
        .disk
        .files()
        .into_iter()
        .find(|f| f.0 == "state")
        .unwrap();
    assert_eq!([STATE_VERSION_1[8], state[8], state[4_096 + 8]], [1, 2, 2]);
}

fn is_read(files: [(&str, &[u8]); 4]) -> Rig {
    let files = files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    let mut rig = Rig::on(SimDisk::with_files(1, files), golden_config(), 2);
    let hello = rig.hello().expect("opens");
    assert_eq!(
        (hello.id, hello.cluster, hello.persisted),
        (ME, Some(CLUSTER), Epoch(2))
    );
    assert_eq!(rig.unit.index.sealed.len(), 1, "by its footer");
    assert_eq!(rig.seal(3).high, Position(22));
    rig.open_epoch(3, 22);
    for position in 0..22 {
        let (answer, body) = rig.read_one(3, position);
        match position {
            0..3 => assert_eq!(answer, UnitReadAnswer::Trimmed),
            12..14 => assert_eq!(answer, UnitReadAnswer::Junk),
            _ => assert_eq!(
                body,
                entry(position, position, &[5 + position % 3], 40).bytes()
            ),
        }
    }
    let listed = rig.streams(3, &[6], 3, 22).0;
    let expected = (3..22).filter(|p| p % 3 == 1 && !(12..14).contains(p));
    assert!(listed.iter().map(|e| e.0).eq(expected), "{listed:?}");
    rig
}

#[test]
fn the_directory_is_written_alike() {
    for (name, bytes) in make().disk.files() {
        let golden = FILES.iter().find(|f| f.0 == name);
        match golden {
            Some((_, golden)) => assert!(
                bytes == *golden,
                "{name} is written otherwise now: a new format version?"
            ),
            None => assert_eq!(name, "segment-0000000000000003.log", "prepared ahead"),
        }
    }
}

/// Writes the files. Only for a new format version, and then beside the old ones.
#[test]
#[ignore = "writes into the source tree"]
fn write_golden_files() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    std::fs::create_dir_all(directory).unwrap();
    for (name, bytes) in make().disk.files() {
        let name = if name == "state" { "state-v2" } else { &name };
        if !name.ends_with("3.log") {
            std::fs::write(format!("{directory}/{name}"), bytes).unwrap();
        }
    }
}
