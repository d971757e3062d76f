//! Nothing on a disk and nothing in a request makes a unit panic, or serve what was not written.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{Epoch, Position, StreamId};

use super::rig::*;
use crate::files::mix;
use crate::sim::SimDisk;
use crate::{OpenError, inspect};

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % n.max(1)
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len)
            .map(|_| u8::try_from(self.below(256)).unwrap())
            .collect()
    }
}

/// Garbage, zeros, a misdirected or a stale write, at sectors of the segments.
fn damage(draw: &mut Draw, disk: &mut SimDisk, old: &BTreeMap<String, Vec<u8>>) {
    let files = disk.files();
    let segments: Vec<_> = files
        .iter()
        .filter(|f| f.0.starts_with("segment"))
        .collect();
    let pick = usize::try_from(draw.below(segments.len() as u64)).unwrap();
    let (name, bytes) = segments[pick];
    let sectors = bytes.len() as u64 / 512;
    let (at, from) = (draw.below(sectors) * 512, draw.below(sectors) * 512);
    let sector = |bytes: &[u8], at: u64| {
        let at = usize::try_from(at).unwrap();
        bytes.get(at..at + 512).unwrap_or_default().to_vec()
    };
    let new = match draw.below(4) {
        0 => draw.bytes(512),
        1 => vec![0; 512],
        2 => sector(bytes, from),
        _ => old.get(name).map(|old| sector(old, at)).unwrap_or_default(),
    };
    disk.overwrite(name, at, &new);
}

#[test]
fn whatever_the_disk_holds_nothing_wrong_is_served() {
    let (mut refused, mut lost, mut cut) = (0, 0, 0);
    let mut rig = Rig::open(1);
    let mut contents = BTreeMap::new();
    let mut old = BTreeMap::new();
    for position in 0..170 {
        contents.insert(position, rig.put(1, position, 5));
        if position == 90 {
            old = rig.disk.files().into_iter().collect();
        }
    }
    for seed in 0..3_000 {
        let mut draw = Draw(mix(seed));
        let mut disk = rig.disk.clone();
        for _ in 0..=draw.below(5) {
            damage(&mut draw, &mut disk, &old);
        }
        let shown = disk
            .files()
            .into_iter()
            .map(|(name, bytes)| (name, Bytes::from(bytes)));
        let seen = inspect(&shown.collect::<Vec<_>>());
        let is_seen = seen.is_err() || seen.is_ok_and(|report| !report.damage.is_empty());
        let mut after = Rig::on(disk, config(), seed);
        match after.hello() {
            Ok(_) => {}
            Err(OpenError::Damaged { .. } | OpenError::NewerVersion { .. }) => {
                assert!(is_seen, "seed {seed}: refused, though nothing was seen");
                refused += 1;
                continue;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
        let high = after.seal(2).high.0;
        after.open_epoch(2, high);
        let mut ended = false;
        for (position, entry) in &contents {
            match after.read_one(2, *position) {
                (UnitReadAnswer::Data { .. }, body) => {
                    assert!(body == entry.bytes(), "seed {seed}: position {position}");
                    assert!(!ended, "seed {seed}: position {position} behind a cut tail");
                }
                (UnitReadAnswer::Lost, _) => {
                    assert!(is_seen, "seed {seed}: position {position} is lost, unseen");
                    assert!(!ended, "seed {seed}: position {position} behind a cut tail");
                    lost += 1;
                }
                // Only at the very end: no valid batch follows.
                (UnitReadAnswer::Unwritten, _) => {
                    ended = true;
                    cut += 1;
                }
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }
    println!("seeds 0..3000: {refused} refused, {lost} positions lost, {cut} cut");
}

#[test]
fn small_files_may_hold_anything() {
    let mut rig = Rig::open(2);
    rig.put(1, 0, 5);
    for seed in 0..2_000 {
        let mut draw = Draw(mix(seed));
        let mut files = rig.disk.files();
        for (_, bytes) in &mut files {
            match draw.below(4) {
                0 => {
                    let len = draw.below(9_000);
                    *bytes = draw.bytes(len);
                }
                1 => bytes.truncate(usize::try_from(draw.below(5_000)).unwrap()),
                _ => {}
            }
        }
        let shown: Vec<_> = files
            .iter()
            .map(|f| (f.0.clone(), Bytes::from(f.1.clone())))
            .collect();
        let _report = inspect(&shown);
        let after = Rig::on(SimDisk::with_files(seed, files), config(), seed);
        assert!(after.unit.hello().is_some(), "seed {seed}");
    }
}

fn position(draw: &mut Draw) -> Position {
    match draw.below(8) {
        0 => Position(u64::MAX - draw.below(3)),
        1 => Position(draw.below(u64::MAX)),
        2 => Position(1_000 + draw.below(3)),
        _ => Position(draw.below(40)),
    }
}

fn epoch(draw: &mut Draw) -> Epoch {
    Epoch(match draw.below(10) {
        0 => draw.below(5),
        1 => u64::MAX,
        _ => 1,
    })
}

fn request(draw: &mut Draw) -> (UnitRequest, Bytes) {
    let (epoch, from, to) = (epoch(draw), position(draw), position(draw));
    let streams = vec![StreamId(draw.below(u64::MAX)), StreamId(5)];
    let settled = position(draw);
    let mut body = Bytes::new();
    let request = match draw.below(11) {
        0 | 1 => {
            let at = position(draw);
            let entry = entry(at.0, draw.below(3), &[5], 20);
            body = match draw.below(4) {
                0 => draw.bytes(30).into(),
                _ => entry.bytes().clone(),
            };
            let len = match draw.below(5) {
                0 => u32::MAX,
                _ => u32::try_from(entry.len()).unwrap(),
            };
            let items = vec![(at, WireValue::Data { len }), (from, WireValue::Junk)];
            if draw.below(4) == 0 {
                UnitRequest::Repair {
                    epoch,
                    settled,
                    items,
                }
            } else {
                UnitRequest::Write {
                    epoch,
                    settled,
                    items,
                }
            }
        }
        2 => UnitRequest::Fill { epoch, from, to },
        3 | 4 => UnitRequest::Read {
            epoch,
            settled,
            positions: vec![from, to, settled],
        },
        5 | 6 => {
            let (max_bytes, wait_ms) = (u32::try_from(draw.below(1 << 32)).unwrap(), 7);
            UnitRequest::ReadStreams {
                epoch,
                streams,
                from,
                to,
                max_bytes,
                wait_ms,
            }
        }
        7 => UnitRequest::Confirm { epoch },
        8 if draw.below(4) == 0 => UnitRequest::Trim { epoch, below: from },
        8 => UnitRequest::Settled { epoch, below: from },
        #[rustfmt::skip]
        9 => UnitRequest::Told { epoch, settled: from },
        _ if draw.below(20) == 0 => UnitRequest::Seal { epoch },
        _ if draw.below(20) == 0 => {
            let mut layout = layout(epoch.0, from.0, 2, 2, 1, 0);
            layout.segments[0].start = Position(draw.below(2));
            UnitRequest::Open {
                layout,
                persisted: Epoch(draw.below(3)),
                starts: vec![(epoch, to)],
            }
        }
        _ => UnitRequest::Collect {
            epoch,
            after: None,
            below: to,
        },
    };
    (request, body)
}

#[test]
fn whatever_is_asked_is_answered() {
    for seed in 0..300 {
        let mut draw = Draw(mix(seed));
        let mut rig = Rig::open(seed);
        let mut asked = 0;
        for _ in 0..200 {
            let (request, body) = request(&mut draw);
            rig.send(request, body);
            asked += 1;
            for _ in 0..draw.below(3) {
                rig.step();
            }
            if draw.below(10) == 0 {
                rig.pass(draw.below(20));
            }
        }
        rig.run();
        rig.pass(3_000);
        assert_eq!(rig.replies.len(), asked, "seed {seed}");
        assert!(!rig.unit.facts().is_empty());
        let after = rig.after_crash(seed);
        assert!(after.hello().is_ok(), "seed {seed}: {:?}", after.hello());
    }
}
