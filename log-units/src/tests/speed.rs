//! What the core costs, disk excluded. Run it with
//! `cargo test --release -p milonga-log-units -- --ignored --nocapture speed`.

use std::time::Instant;

use bytes::Bytes;
use milonga_protocol::messages::{CallId, UnitRequest};
use milonga_protocol::{Epoch, Time};

use super::rig::*;
use crate::{DiskDone, DiskOp, Unit, UnitConfig, UnitEffect};

/// A unit whose disk does everything at once, and keeps nothing.
fn turn(unit: &mut Unit, replies: &mut u64) {
    let mut done = Vec::new();
    loop {
        while let Some(effect) = unit.poll_effect() {
            match effect {
                UnitEffect::Reply(..) => *replies += 1,
                UnitEffect::Disk(id, op) => done.push((
                    id,
                    match op {
                        DiskOp::List => DiskDone::Files(Vec::new()),
                        DiskOp::Space => DiskDone::Space(1 << 40),
                        DiskOp::ReadAt { .. } => DiskDone::Read(Bytes::new()),
                        _ => DiskDone::Done,
                    },
                )),
            }
        }
        if done.is_empty() {
            return;
        }
        for (id, result) in done.drain(..) {
            unit.disk_done(Time::default(), id, Ok(result));
        }
    }
}

#[test]
#[ignore = "measures time"]
#[expect(clippy::disallowed_methods, reason = "measures time")]
fn speed() {
    const ENTRIES: u64 = 400_000;
    for (items, what) in [(1, "one entry a request"), (64, "64 entries a request")] {
        let mut unit = Unit::start(UnitConfig::new(ME, "unit-1a".into()), 1);
        let mut replies = 0;
        turn(&mut unit, &mut replies);
        let layout = layout(1, 0, 1, 1, 0, 0);
        let starts = vec![];
        let open = UnitRequest::Open {
            layout,
            persisted: Epoch::NONE,
            starts,
        };
        unit.handle(Time::default(), CallId(0), open, Bytes::new());
        turn(&mut unit, &mut replies);
        let requests: Vec<_> = (0..ENTRIES / items)
            .map(|r| {
                let positions = r * items..(r + 1) * items;
                let values: Vec<_> = positions
                    .map(|p| (p, Some(entry(p, p, &[p % 8], 128))))
                    .collect();
                write(1, &values)
            })
            .collect();
        let started = Instant::now();
        for (at, (request, body)) in requests.into_iter().enumerate() {
            unit.handle(Time::default(), CallId(at as u64 + 1), request, body);
            if (at as u64).is_multiple_of((256 / items).max(1)) {
                turn(&mut unit, &mut replies);
            }
        }
        turn(&mut unit, &mut replies);
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(replies, ENTRIES / items + 1);
        assert_eq!(unit.facts()["entries"], ENTRIES.to_string());
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = ENTRIES as f64 / seconds;
        println!("{what}: {rate:.0} entries of 128 B per second");
    }
}
