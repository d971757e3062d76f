//! The shortest property test of a log unit: crash right after each acknowledgement.

use bytes::Bytes;
use milonga_log_units::sim::SimDisk;
use milonga_log_units::{Disk as _, Unit, UnitConfig, UnitEffect};
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    CallId, Response, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::{
    ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits, Position,
    Redundancy, Segment, Time, UnitId, UnitIndex, UnitRef, WriterId,
};

struct Machine {
    unit: Unit,
    disk: SimDisk,
    calls: u64,
}

fn layout(epoch: u64, start: u64) -> Layout {
    Layout {
        cluster: ClusterId(1),
        epoch: Epoch(epoch),
        start: Position(start),
        starts: vec![(Epoch(epoch), Position(start))],
        segments: vec![Segment::new(
            Position(0),
            Position(0),
            vec![vec![UnitIndex(0)]],
        )],
        units: vec![UnitRef {
            name: "unit-1a".into(),
            id: UnitId(7),
        }],
        redundancy: Redundancy::of(2),
        sequencer: SequencerRef {
            name: "sequencer-1".into(),
            incarnation: Incarnation(1),
        },
        limits: Limits::default(),
    }
}

impl Machine {
    fn start(disk: SimDisk, seed: u64) -> Self {
        let mut config = UnitConfig::new(UnitId(7), "unit-1a".into());
        config.segment_bytes = 64 << 10;
        config.soft_reserve_bytes = 0;
        let mut machine = Self {
            unit: Unit::start(config, seed),
            disk,
            calls: 0,
        };
        machine.run_until(|_| false);
        machine
    }

    /// Carries out effects until `stop` likes a reply, or nothing is left to do.
    fn run_until(&mut self, mut stop: impl FnMut(&Response) -> bool) -> Option<(Response, Bytes)> {
        loop {
            while let Some(effect) = self.unit.poll_effect() {
                match effect {
                    UnitEffect::Disk(id, op) => self.disk.submit(id, op),
                    UnitEffect::Reply(_, response, body) if stop(&response) => {
                        return Some((response, body));
                    }
                    UnitEffect::Reply(..) => {}
                }
            }
            if !self.disk.step() {
                return None;
            }
            for (id, result) in self.disk.take_completions() {
                self.unit.disk_done(Time::default(), id, result);
            }
        }
    }

    fn ask(&mut self, request: UnitRequest, body: Bytes) -> (Response, Bytes) {
        self.calls += 1;
        self.unit
            .handle(Time::default(), CallId(self.calls), request, body);
        self.run_until(|_| true).expect("every request is answered")
    }

    fn open(&mut self, epoch: u64, start: u64) {
        let starts = vec![(Epoch(epoch), Position(start))];
        let (response, _) = self.ask(
            UnitRequest::Open {
                layout: layout(epoch, start),
                persisted: Epoch::NONE,
                starts,
            },
            Bytes::new(),
        );
        assert_eq!(response, Response::Unit(UnitResponse::Done));
    }
}

fn entry(position: u64) -> EncodedEntry {
    let id = EntryId {
        writer: WriterId(5),
        sequence: position,
    };
    let payload = Bytes::from(vec![0x5A; 700]);
    EncodedEntry::encode(
        Position(position),
        &Entry {
            id,
            links: Vec::new(),
            payload,
        },
        false,
    )
}

/// # Panics
/// If an acknowledged entry is gone after a crash.
pub(crate) fn acknowledged_writes_survive_a_crash() {
    for seed in 0..20 {
        let mut machine = Machine::start(SimDisk::new(seed), seed);
        machine.open(1, 0);
        for position in 0..8 {
            let entry = entry(position);
            let len = u32::try_from(entry.len()).expect("small");
            let items = vec![(Position(position), WireValue::Data { len })];
            let write = UnitRequest::Write {
                epoch: Epoch(1),
                settled: Position(0),
                items,
            };
            let (response, _) = machine.ask(write, entry.bytes().clone());
            let Response::Unit(UnitResponse::Written { answers, .. }) = response else {
                panic!("seed {seed}: {response:?}")
            };
            assert_eq!(answers, [WriteAnswer::Durable], "seed {seed}");

            let mut after = Machine::start(machine.disk.crash(seed), seed + 1);
            after.open(2, position + 1);
            let positions: Vec<_> = (0..=position).map(Position).collect();
            let read = UnitRequest::Read {
                epoch: Epoch(2),
                settled: Position(0),
                positions,
            };
            let (response, _) = after.ask(read, Bytes::new());
            let Response::Unit(UnitResponse::Values { answers, .. }) = response else {
                panic!("seed {seed}: {response:?}")
            };
            let all_there = answers
                .iter()
                .all(|answer| matches!(answer, UnitReadAnswer::Data { .. }));
            assert!(
                all_there,
                "seed {seed}: acknowledged up to {position}, after a crash: {answers:?}"
            );
        }
    }
}
