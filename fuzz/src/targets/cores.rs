//! Requests that servers take from anybody: decoded, then carried out.

use std::time::Duration;

use bytes::Bytes;
use milonga_log_units::sim::SimDisk;
use milonga_log_units::{Disk, Unit, UnitConfig, UnitEffect};
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    Bootstrap, CallId, Lease, Request, Response, SequencerRequest, UnitRequest, decode,
};
use milonga_protocol::{
    ClusterId, Epoch, Incarnation, Layout, Limits, Position, Redundancy, Segment, Time, UnitId,
    UnitIndex, UnitRef,
};
use milonga_sequencer::Sequencer;

/// A unit on a simulated disk.
pub(crate) struct UnitRig {
    pub(crate) unit: Unit,
    disk: SimDisk,
    now: Time,
    asked: u64,
    answers: Vec<(CallId, Response)>,
}

impl UnitRig {
    pub(crate) fn on(disk: SimDisk) -> Self {
        let mut config = UnitConfig::new(UnitId(0xface), "unit-1a".into());
        config.segment_bytes = 8 << 10;
        config.soft_reserve_bytes = 1 << 20;
        config.batch_bytes = 2 << 10;
        let mut rig = Self {
            unit: Unit::start(config, 1),
            disk: disk.without_trace(),
            now: Time::default(),
            asked: 0,
            answers: Vec::new(),
        };
        rig.run();
        rig
    }

    fn run(&mut self) {
        loop {
            while let Some(effect) = self.unit.poll_effect() {
                match effect {
                    UnitEffect::Disk(id, op) => self.disk.submit(id, op),
                    UnitEffect::Reply(call, response, _) => self.answers.push((call, response)),
                }
            }
            if !self.disk.step() {
                return;
            }
            for (id, result) in self.disk.take_completions() {
                self.unit.disk_done(self.now, id, result);
            }
        }
    }

    fn send(&mut self, request: UnitRequest, body: Bytes) -> CallId {
        self.asked += 1;
        let call = CallId(self.asked);
        self.unit.handle(self.now, call, request, body);
        call
    }

    /// Asks; the answer, if it comes without time passing.
    pub(crate) fn ask(&mut self, request: UnitRequest) -> Option<Response> {
        let call = self.send(request, Bytes::new());
        self.run();
        let at = self
            .answers
            .iter()
            .position(|(answered, _)| *answered == call)?;
        Some(self.answers.swap_remove(at).1)
    }

    /// Opens `epoch` of a log on this unit alone, from `start`.
    pub(crate) fn open(&mut self, epoch: Epoch, start: Position) {
        let layout = layout(epoch, start);
        let starts = vec![(epoch, start)];
        let persisted = Epoch::NONE;
        self.ask(UnitRequest::Open {
            layout,
            persisted,
            starts,
        });
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.unit.handle_time(self.now);
        self.run();
    }
}

/// A log on one unit.
pub(crate) fn layout(epoch: Epoch, start: Position) -> Layout {
    Layout {
        cluster: ClusterId(0xc1),
        epoch,
        start,
        starts: vec![(epoch, start)],
        segments: vec![Segment::new(
            Position::ZERO,
            Position::ZERO,
            vec![vec![UnitIndex(0)]],
        )],
        units: vec![UnitRef {
            name: "unit-1a".into(),
            id: UnitId(0xface),
        }],
        redundancy: Redundancy::of(1),
        sequencer: SequencerRef {
            name: "sequencer-1".into(),
            incarnation: Incarnation(5),
        },
        limits: Limits::default(),
    }
}

/// Requests in `data`: two lengths (header, body), then both.
fn requests(mut data: &[u8]) -> impl Iterator<Item = (Request, Bytes)> {
    std::iter::from_fn(move || {
        loop {
            let [header_len, body_len, rest @ ..] = data else {
                return None;
            };
            let (header, rest) = rest.split_at(rest.len().min(usize::from(*header_len)));
            let (body, rest) = rest.split_at(rest.len().min(usize::from(*body_len)));
            data = rest;
            if let Ok(request) = decode::<Request>("request", header) {
                return Some((request, Bytes::copy_from_slice(body)));
            }
        }
    })
}

/// A unit answers every request, once.
pub(crate) fn unit(data: &[u8]) {
    let mut rig = UnitRig::on(SimDisk::new(1));
    rig.open(Epoch(1), Position::ZERO);
    rig.answers.clear();
    let before = rig.asked;
    for (request, body) in requests(data) {
        if let Request::Unit(request) = request {
            rig.send(request, body);
            rig.run();
        }
    }
    rig.pass(Duration::from_secs(3));
    let mut answered: Vec<_> = rig.answers.iter().map(|(call, _)| call.0).collect();
    answered.sort_unstable();
    assert_eq!(answered, (before + 1..=rig.asked).collect::<Vec<_>>());
    assert!(!rig.unit.facts().is_empty());
}

/// A sequencer answers every request, once, and grants no position twice.
pub(crate) fn sequencer(data: &[u8]) {
    let mut sequencer = Sequencer::new(Incarnation(5));
    let bootstrap = Bootstrap {
        epoch: Epoch(1),
        incarnation: Incarnation(5),
        cluster: ClusterId(0xc1),
        next: Position(10),
        trimmed: Position::ZERO,
        lost: Position::ZERO,
        lease: Lease::None,
        stream_limit: 8,
        page: 0,
        last: true,
        tails: Vec::new(),
    };
    let first = SequencerRequest::Bootstrap(bootstrap);
    let asked = requests(data).filter_map(|(request, _)| match request {
        Request::Sequencer(request) => Some(request),
        _ => None,
    });
    let mut calls = 0;
    for request in std::iter::once(first).chain(asked) {
        sequencer.handle(Time::default(), CallId(calls), request);
        calls += 1;
    }
    sequencer.handle_time(Time::from_start(Duration::from_secs(3)));
    let mut answered: Vec<_> = std::iter::from_fn(|| sequencer.poll_reply()).collect();
    answered.sort_unstable_by_key(|(call, _)| *call);
    let answered: Vec<_> = answered.iter().map(|(call, _)| call.0).collect();
    assert_eq!(answered, (0..calls).collect::<Vec<_>>());
    assert!(!sequencer.facts().is_empty());
}
