//! A directory of format version 1, committed: what was written once is read for ever.

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
    ("state", include_bytes!("../../golden/state")),
    ("superblock", include_bytes!("../../golden/superblock")),
];

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
fn format_version_1_is_read() {
    let files = FILES.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
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
}

#[test]
fn format_version_1_is_written() {
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
        if !name.ends_with("3.log") {
            std::fs::write(format!("{directory}/{name}"), bytes).unwrap();
        }
    }
}
