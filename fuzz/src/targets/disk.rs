//! What a log unit finds on its disk.

use bytes::Bytes;
use milonga_log_units::inspect;
use milonga_log_units::sim::SimDisk;
use milonga_protocol::messages::{Response, UnitRequest, UnitResponse};
use milonga_protocol::{Epoch, Position};

use super::cores::UnitRig;

/// A directory as this version writes it.
pub(crate) const GOLDEN: [(&str, &[u8]); 4] = [
    (
        "superblock",
        include_bytes!("../../../log-units/golden/superblock"),
    ),
    (
        "state",
        include_bytes!("../../../log-units/golden/state-v2"),
    ),
    (
        "segment-0000000000000001.log",
        include_bytes!("../../../log-units/golden/segment-0000000000000001.log"),
    ),
    (
        "segment-0000000000000002.log",
        include_bytes!("../../../log-units/golden/segment-0000000000000002.log"),
    ),
];

pub(crate) const STATE_VERSION_1: &[u8] = include_bytes!("../../../log-units/golden/state");

/// As they are, and under checksums that are right.
pub(crate) fn blocks(data: &[u8]) {
    milonga_log_units::fuzz::blocks(data);
    let mut sealed = data.to_vec();
    milonga_log_units::fuzz::reseal(&mut sealed);
    milonga_log_units::fuzz::blocks(&sealed);
}

/// Batches behind an empty header block.
pub(crate) fn segment(data: &[u8]) {
    let mut file = vec![0; 4_096];
    file.extend_from_slice(data);
    milonga_log_units::fuzz::segment(&Bytes::from(file.clone()));
    milonga_log_units::fuzz::reseal(&mut file);
    milonga_log_units::fuzz::segment(&Bytes::from(file));
}

/// The golden directory with changes: a byte says in which file, two where (in units of 8 bytes), one how many bytes
/// follow. The unit refuses the directory, or serves each position or says that it cannot.
pub(crate) fn directory(data: &[u8]) {
    let Some((mode, mut rest)) = data.split_first() else {
        return;
    };
    let mut files = GOLDEN.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    while let [file, low, high, len, after @ ..] = rest {
        let (piece, after) = after.split_at(after.len().min(usize::from(*len)));
        let (name, bytes) = &mut files[usize::from(*file) % GOLDEN.len()];
        let at = usize::from(u16::from_le_bytes([*low, *high])) * 8 % bytes.len();
        let end = (at + piece.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&piece[..end - at]);
        if piece.is_empty() && name.starts_with("segment") {
            bytes.truncate(at);
            bytes.resize(at.max(8), 0);
        }
        rest = after;
    }
    if mode & 1 != 0 {
        for (_, bytes) in &mut files {
            milonga_log_units::fuzz::reseal(bytes);
        }
    }
    let shown = files
        .clone()
        .map(|(name, bytes)| (name, Bytes::from(bytes)));
    let _report = inspect(&shown);
    serve(SimDisk::with_files(1, files));
}

fn serve(disk: SimDisk) {
    let mut unit = UnitRig::on(disk);
    let hello = unit.unit.hello().expect("recovery ends");
    let Ok(hello) = hello else {
        return;
    };
    let Some(epoch) = hello.persisted.0.checked_add(1).map(Epoch) else {
        return;
    };
    let sealed = unit.ask(UnitRequest::Seal { epoch });
    let Some(Response::Unit(UnitResponse::Sealed(report))) = sealed else {
        return;
    };
    unit.open(epoch, report.high);
    for position in 0..23 {
        let request = UnitRequest::Read {
            epoch,
            settled: Position::ZERO,
            positions: vec![Position(position)],
        };
        assert!(unit.ask(request).is_some(), "every read is answered");
    }
}
