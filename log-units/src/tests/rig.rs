//! A unit on a simulated disk, and words to talk to it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::*;
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits,
    ListEnd, Position, Redundancy, Segment, StreamId, StreamLink, Time, UnitId, UnitIndex, UnitRef,
    WriterId,
};

use crate::sim::SimDisk;
use crate::{Disk, OpenError, Unit, UnitConfig, UnitEffect};

pub(super) const ME: UnitId = UnitId(0xface);
pub(super) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(super) const SEGMENT: u64 = 16 << 10;

/// A unit, its disk, and the answers so far.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) unit: Unit,
    pub(super) disk: SimDisk,
    pub(super) now: Time,
    pub(super) replies: BTreeMap<u64, (Response, Bytes)>,
    pub(super) next_call: u64,
}

pub(super) fn config() -> UnitConfig {
    let mut config = UnitConfig::new(ME, "unit-1a".into());
    config.segment_bytes = SEGMENT;
    config.soft_reserve_bytes = 1 << 20;
    config.batch_bytes = 2 << 10;
    config
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        Self::on(SimDisk::new(seed), config(), seed)
    }

    pub(super) fn on(disk: SimDisk, config: UnitConfig, seed: u64) -> Self {
        let mut rig = Self::recovering(disk, config, seed);
        rig.run();
        rig
    }

    pub(super) fn recovering(disk: SimDisk, config: UnitConfig, seed: u64) -> Self {
        Self {
            unit: Unit::start(config, seed),
            disk,
            now: Time::default(),
            replies: BTreeMap::new(),
            next_call: 0,
        }
    }

    /// A rig that serves epoch 1 of a log on this unit alone.
    pub(super) fn open(seed: u64) -> Self {
        let mut rig = Self::new(seed);
        assert_eq!(rig.open_epoch(1, 0), ok(UnitResponse::Done), "seed {seed}");
        rig
    }

    /// The unit as it starts again on this disk, unsynced writes still there.
    pub(super) fn restarted(&self, seed: u64) -> Self {
        Self::on(self.disk.kill(seed), config(), seed)
    }

    pub(super) fn after_crash(&self, seed: u64) -> Self {
        Self::on(self.disk.crash(seed), config(), seed)
    }

    /// Hands effects out until none comes.
    pub(super) fn poll(&mut self) {
        while let Some(effect) = self.unit.poll_effect() {
            match effect {
                UnitEffect::Disk(id, op) => self.disk.submit(id, op),
                UnitEffect::Reply(call, response, body) => {
                    let twice = self.replies.insert(call.0, (response, body));
                    assert!(twice.is_none(), "call {} answered twice", call.0);
                }
            }
        }
    }

    /// One operation of the disk. Whether there was one.
    pub(super) fn step(&mut self) -> bool {
        self.poll();
        let stepped = self.disk.step();
        for (id, result) in self.disk.take_completions() {
            self.unit.disk_done(self.now, id, result);
        }
        self.poll();
        stepped
    }

    /// Until nothing is left to do without time passing.
    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now = self.now.after(Duration::from_millis(ms));
        self.unit.handle_time(self.now);
        self.run();
    }

    pub(super) fn send(&mut self, request: UnitRequest, body: Bytes) -> u64 {
        self.next_call += 1;
        self.unit
            .handle(self.now, CallId(self.next_call), request, body);
        self.next_call
    }

    pub(super) fn ask_with(&mut self, request: UnitRequest, body: Bytes) -> (Response, Bytes) {
        let call = self.send(request, body);
        self.run();
        self.replies
            .remove(&call)
            .unwrap_or_else(|| panic!("call {call} was not answered"))
    }

    pub(super) fn ask(&mut self, request: UnitRequest) -> Response {
        self.ask_with(request, Bytes::new()).0
    }

    // --------------------------------------------------------------------------------------------- requests

    pub(super) fn open_layout(
        &mut self,
        layout: Layout,
        starts: Vec<(Epoch, Position)>,
    ) -> Response {
        let persisted = Epoch::NONE;
        self.ask(UnitRequest::Open {
            layout,
            persisted,
            starts,
        })
    }

    /// Opens an epoch of a log on this unit alone; each epoch before it had its start at 0.
    pub(super) fn open_epoch(&mut self, epoch: u64, start: u64) -> Response {
        let layout = layout(epoch, start, 1, 1, 0, 0);
        self.open_layout(layout, vec![(Epoch(epoch), Position(start))])
    }

    pub(super) fn seal(&mut self, epoch: u64) -> SealReport {
        match self.ask(UnitRequest::Seal {
            epoch: Epoch(epoch),
        }) {
            Response::Unit(UnitResponse::Sealed(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn write_values(
        &mut self,
        epoch: u64,
        values: &[(u64, Option<EncodedEntry>)],
    ) -> Response {
        let (request, body) = write(epoch, values);
        self.ask_with(request, body).0
    }

    /// Writes data of a stream; panics unless it is durable.
    pub(super) fn put(&mut self, epoch: u64, position: u64, stream: u64) -> EncodedEntry {
        let entry = entry(position, position, &[stream], 40);
        let answer = self.write_values(epoch, &[(position, Some(entry.clone()))]);
        assert_eq!(answers(&answer), [WriteAnswer::Durable], "{answer:?}");
        entry
    }

    /// Gives back what was lost.
    pub(super) fn repair(
        &mut self,
        epoch: u64,
        position: u64,
        entry: &EncodedEntry,
    ) -> Vec<WriteAnswer> {
        let request = repairing(epoch, position, entry);
        answers(&self.ask_with(request, entry.bytes().clone()).0)
    }

    pub(super) fn read_full(&mut self, epoch: u64, positions: &[u64]) -> (Response, Bytes) {
        self.ask_with(reading(epoch, positions), Bytes::new())
    }

    /// One answer, with the data if it is any.
    pub(super) fn read_one(&mut self, epoch: u64, position: u64) -> (UnitReadAnswer, Bytes) {
        match self.read_full(epoch, &[position]) {
            (Response::Unit(UnitResponse::Values { answers, .. }), body) => (answers[0], body),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn streams(
        &mut self,
        epoch: u64,
        streams: &[u64],
        from: u64,
        to: u64,
    ) -> (Vec<(u64, u32)>, u64, Bytes) {
        let request = streams_request(epoch, streams, from, to, 0);
        match self.ask_with(request, Bytes::new()) {
            (
                Response::Unit(UnitResponse::Entries {
                    entries, complete, ..
                }),
                body,
            ) => {
                let entries = entries.into_iter().map(|(p, len)| (p.0, len)).collect();
                (entries, complete.0, body)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn fill(&mut self, epoch: u64, from: u64, to: u64) -> Vec<(u64, Option<u32>)> {
        let request = UnitRequest::Fill {
            epoch: Epoch(epoch),
            from: Position(from),
            to: Position(to),
        };
        match self.ask(request) {
            Response::Unit(UnitResponse::Filled { winners, .. }) => winners
                .into_iter()
                .map(|(p, value)| match value {
                    WireValue::Junk => (p.0, None),
                    WireValue::Data { len } => (p.0, Some(len)),
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn trim(&mut self, epoch: u64, below: u64) -> Response {
        self.ask(UnitRequest::Trim {
            epoch: Epoch(epoch),
            below: Position(below),
        })
    }

    /// The first page of stream tails of a unit sealed for `epoch`.
    pub(super) fn tails(&mut self, epoch: u64, below: u64) -> Vec<StreamTail> {
        let collect = UnitRequest::Collect {
            epoch: Epoch(epoch),
            after: None,
            below: Position(below),
        };
        match self.ask(collect) {
            Response::Unit(UnitResponse::Tails { tails, .. }) => tails,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn hello(&self) -> Result<UnitHello, OpenError> {
        self.unit.hello().expect("recovered")
    }

    pub(super) fn fact(&self, name: &str) -> String {
        self.unit.facts().get(name).cloned().unwrap_or_default()
    }

    pub(super) fn file_names(&self) -> Vec<String> {
        self.disk
            .files()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }
}

/// Where batches lie on the disk, in their order.
pub(super) fn batches(disk: &SimDisk) -> Vec<(String, u64)> {
    let files = disk.files().into_iter();
    let found = files.flat_map(|(name, file)| {
        let windows = file.windows(4).enumerate();
        let headers = windows.filter(|(_, four)| four == b"MLGB");
        let offsets: Vec<_> = headers.map(|(at, _)| (name.clone(), at as u64)).collect();
        offsets
    });
    found.collect()
}

pub(super) fn ok(response: UnitResponse) -> Response {
    Response::Unit(response)
}

pub(super) fn answers(response: &Response) -> Vec<WriteAnswer> {
    match response {
        Response::Unit(UnitResponse::Written { answers, .. }) => answers.clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn marks(response: &Response) -> Marks {
    match response {
        Response::Unit(
            UnitResponse::Written { marks, .. }
            | UnitResponse::Serving { marks }
            | UnitResponse::Filled { marks, .. }
            | UnitResponse::Values { marks, .. }
            | UnitResponse::Entries { marks, .. },
        ) => *marks,
        other => panic!("{other:?}"),
    }
}

pub(super) fn reading(epoch: u64, positions: &[u64]) -> UnitRequest {
    UnitRequest::Read {
        epoch: Epoch(epoch),
        settled: Position::ZERO,
        positions: positions.iter().copied().map(Position).collect(),
    }
}

pub(super) fn repairing(epoch: u64, position: u64, entry: &EncodedEntry) -> UnitRequest {
    let len = u32::try_from(entry.len()).unwrap();
    UnitRequest::Repair {
        epoch: Epoch(epoch),
        settled: Position::ZERO,
        items: vec![(Position(position), WireValue::Data { len })],
    }
}

/// An entry by writer `writer`.
pub(super) fn entry(position: u64, writer: u64, streams: &[u64], bytes: usize) -> EncodedEntry {
    let entry = Entry {
        id: EntryId {
            writer: WriterId(writer.into()),
            sequence: position,
        },
        links: streams
            .iter()
            .map(|s| StreamLink {
                stream: StreamId(*s),
                back: BackPointers::none(ListEnd::Unknown),
            })
            .collect(),
        payload: vec![u8::try_from(writer % 251).unwrap(); bytes].into(),
    };
    EncodedEntry::encode(Position(position), &entry, false)
}

pub(super) fn write(epoch: u64, values: &[(u64, Option<EncodedEntry>)]) -> (UnitRequest, Bytes) {
    let items = values
        .iter()
        .map(|(position, value)| {
            let value = match value {
                Some(entry) => WireValue::Data {
                    len: u32::try_from(entry.len()).unwrap(),
                },
                None => WireValue::Junk,
            };
            (Position(*position), value)
        })
        .collect();
    let body = body_of(values.iter().filter_map(|(_, value)| value.as_ref()));
    let request = UnitRequest::Write {
        epoch: Epoch(epoch),
        settled: Position::ZERO,
        items,
    };
    (request, body)
}

pub(super) fn streams_request(
    epoch: u64,
    streams: &[u64],
    from: u64,
    to: u64,
    wait_ms: u32,
) -> UnitRequest {
    UnitRequest::ReadStreams {
        epoch: Epoch(epoch),
        streams: streams.iter().copied().map(StreamId).collect(),
        from: Position(from),
        to: Position(to),
        max_bytes: 1 << 20,
        wait_ms,
    }
}

/// One segment of `chains` chains of `replicas` units; this unit is at place `place` of chain `chain`.
pub(super) fn layout(
    epoch: u64,
    start: u64,
    chains: u16,
    replicas: u16,
    chain: u16,
    place: u16,
) -> Layout {
    let me = chain * replicas + place;
    let units = (0..chains * replicas)
        .map(|u| UnitRef {
            name: format!("unit-{u}").as_str().into(),
            id: if u == me { ME } else { UnitId(u.into()) },
        })
        .collect();
    let all = (0..chains).map(|c| (0..replicas).map(|r| UnitIndex(c * replicas + r)).collect());
    Layout {
        cluster: CLUSTER,
        epoch: Epoch(epoch),
        start: Position(start),
        starts: vec![(Epoch(epoch), Position(start))],
        segments: vec![Segment::new(Position::ZERO, Position::ZERO, all.collect())],
        units,
        redundancy: Redundancy::of(2),
        sequencer: SequencerRef {
            name: "sequencer-1".into(),
            incarnation: Incarnation(1),
        },
        limits: limits(),
    }
}

pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.positions_ahead = 1_000;
    limits.entry_bytes = 4_096;
    limits.streams_per_entry = 4;
    limits
}
