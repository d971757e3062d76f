//! shuttle's view of the disk threads, and of group commit over them: real files, every switch between threads drawn.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_log_units::{Unit, UnitConfig, UnitEffect};
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    CallId, Response, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::sync::{Still, block_on, explore, find};
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits,
    Position, Redundancy, Segment, StreamId, StreamLink, Time, UnitId, UnitIndex, UnitRef,
    WriterId,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

fn open(path: &Path) -> (FileDisk, UnboundedReceiver<Completion>) {
    let env: SharedEnv = Arc::new(Still(Time::default()));
    let (sender, done) = unbounded_channel();
    let disk = FileDisk::open(&env, path, &sender).expect("an empty directory");
    (disk, done)
}

fn write(name: &str) -> DiskOp {
    DiskOp::WriteAt {
        name: name.into(),
        offset: 0,
        data: vec![Bytes::from_static(b"tango")],
        sync: false,
    }
}

/// A large file is made and written at once, small ones beside it; two submit.
fn lanes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (disk, mut done) = open(folder.path());
    let mut other = disk.handle();
    let beside = thread::spawn(move || {
        let (name, size) = ("small".to_owned(), 8);
        other.submit(OpId(10), DiskOp::Create { name, size });
        other.submit(OpId(11), write("small"));
    });
    let mut mine = disk.handle();
    let (from, to) = ("new".to_owned(), "segment".to_owned());
    let create = DiskOp::Create {
        name: from.clone(),
        size: LARGE,
    };
    let ops = [
        create,
        write("new"),
        DiskOp::Rename { from, to },
        write("segment"),
    ];
    for (id, op) in (0..).zip(ops) {
        mine.submit(OpId(id), op);
    }
    let mut ended = Vec::new();
    while ended.len() < 6 {
        let (id, result) = block_on(done.recv()).expect("the threads live");
        assert_eq!(result, Ok(DiskDone::Done), "out of order: {id:?}");
        ended.push(id.0);
    }
    for lane in [0..4, 10..12] {
        let of_lane: Vec<_> = ended
            .iter()
            .copied()
            .filter(|id| lane.contains(id))
            .collect();
        assert!(of_lane.is_sorted(), "out of order: {ended:?}");
    }
    beside.join().expect("no panic");
    assert!(
        disk.shared.waiting().prepare.is_empty(),
        "counted to the end"
    );
    assert!(disk.shared.waiting().write.is_empty(), "counted to the end");
}

#[test]
fn operations_on_one_name_keep_their_order() {
    explore(150, lanes);
}

#[test]
fn lanes_by_kind_are_found() {
    find(Weakness::LaneByKind, "out of order", 150, lanes);
}

/// The disk is dropped while somebody submits, whose handle lives on.
fn stopping() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (disk, _done) = open(folder.path());
    let mut other = disk.handle();
    let submitter = thread::spawn(move || {
        for nth in 0..4 {
            let (name, size) = (format!("f{nth}"), 8);
            other.submit(OpId(nth), DiskOp::Create { name, size });
        }
        other
    });
    drop(disk);
    std::fs::remove_dir_all(folder.path()).expect("it is there");
    let mut other = submitter.join().expect("no panic");
    other.submit(OpId(9), write("f9"));
    assert!(!folder.path().exists(), "somebody touches the directory");
}

#[test]
fn a_dropped_disk_touches_nothing_any_more() {
    explore(1_000, stopping);
}

#[test]
fn a_stop_that_wakes_nobody_is_found() {
    find(Weakness::StopByFlag, "deadlock", 1_000, stopping);
}

const EPOCH: Epoch = Epoch(1);

/// A unit on the real disk, driven by hand.
struct Server {
    unit: Unit,
    disk: DiskHandle,
    done: UnboundedReceiver<Completion>,
    answers: BTreeMap<u64, Response>,
}

impl Server {
    fn start(disk: &FileDisk, done: UnboundedReceiver<Completion>) -> Self {
        let mut config = UnitConfig::new(UnitId(7), "unit-1a".into());
        config.segment_bytes = 8 << 10;
        config.soft_reserve_bytes = 0;
        let mut server = Self {
            unit: Unit::start(config, 1),
            disk: disk.handle(),
            done,
            answers: BTreeMap::new(),
        };
        server.run(|server| server.unit.hello().is_some());
        server
    }

    fn ask(&mut self, call: u64, request: UnitRequest, body: Bytes) {
        let now = Time::default();
        self.unit.handle(now, CallId(call), request, body);
    }

    fn answer(&mut self, call: u64) -> Response {
        self.run(|server| server.answers.contains_key(&call));
        self.answers.remove(&call).expect("just seen")
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.unit.poll_effect() {
            match effect {
                UnitEffect::Disk(id, op) => self.disk.submit(id, op),
                UnitEffect::Reply(call, response, _) => {
                    self.answers.insert(call.0, response);
                }
            }
        }
    }

    fn run(&mut self, until: impl Fn(&Self) -> bool) {
        self.carry_out();
        while !until(self) {
            let (id, result) = block_on(self.done.recv()).expect("the threads live");
            self.unit.disk_done(Time::default(), id, result);
            self.carry_out();
        }
    }

    fn enter(&mut self, epoch: Epoch, start: Position) {
        let layout = Layout {
            cluster: ClusterId(1),
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
                id: UnitId(7),
            }],
            redundancy: Redundancy::of(1),
            sequencer: SequencerRef {
                name: "sequencer-1".into(),
                incarnation: Incarnation(1),
            },
            limits: Limits::default(),
        };
        let starts = vec![(epoch, start)];
        let open = UnitRequest::Open {
            layout,
            persisted: Epoch::NONE,
            starts,
        };
        self.ask(1_000, open, Bytes::new());
        let opened = self.answer(1_000);
        assert_eq!(opened, Response::Unit(UnitResponse::Done));
    }

    fn put(&mut self, position: u64) {
        let link = StreamLink {
            stream: StreamId(16),
            back: BackPointers::EMPTY,
        };
        let entry = Entry {
            id: EntryId {
                writer: WriterId(1),
                sequence: position,
            },
            links: vec![link],
            payload: Bytes::from_static(b"tango"),
        };
        let entry = EncodedEntry::encode(Position(position), &entry, false);
        let len = u32::try_from(entry.len()).expect("small");
        let write = UnitRequest::Write {
            epoch: EPOCH,
            settled: Position::ZERO,
            items: vec![(Position(position), WireValue::Data { len })],
        };
        self.ask(position, write, entry.bytes().clone());
        self.carry_out();
    }
}

/// Writes are committed in groups while others come; the process ends somewhere; what was acknowledged is there.
fn committing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (disk, done) = open(folder.path());
    let mut server = Server::start(&disk, done);
    server.enter(EPOCH, Position::ZERO);
    (0..3).for_each(|position| server.put(position));
    let first = server.answer(0);
    (3..5).for_each(|position| server.put(position));
    server.answers.insert(0, first);
    // Whatever else was acknowledged by now, in this order of the threads.
    while let Ok((id, result)) = server.done.try_recv() {
        server.unit.disk_done(Time::default(), id, result);
        server.carry_out();
    }
    let durable = |response: &Response| match response {
        Response::Unit(UnitResponse::Written { answers, .. }) => {
            answers[..] == [WriteAnswer::Durable]
        }
        _ => false,
    };
    let acknowledged: Vec<_> = std::mem::take(&mut server.answers)
        .into_iter()
        .filter_map(|(call, response)| durable(&response).then_some(Position(call)))
        .collect();
    assert!(!acknowledged.is_empty());
    drop((disk, server));

    let (disk, done) = open(folder.path());
    let mut server = Server::start(&disk, done);
    let next = EPOCH.next();
    server.ask(1, UnitRequest::Seal { epoch: next }, Bytes::new());
    let Response::Unit(UnitResponse::Sealed(report)) = server.answer(1) else {
        panic!("a unit that started can be sealed");
    };
    server.enter(next, report.high);
    let read = UnitRequest::Read {
        epoch: next,
        settled: Position::ZERO,
        positions: acknowledged.clone(),
    };
    server.ask(2, read, Bytes::new());
    let Response::Unit(UnitResponse::Values { answers, .. }) = server.answer(2) else {
        panic!("acknowledged and gone");
    };
    let there = |answer: &UnitReadAnswer| matches!(answer, UnitReadAnswer::Data { .. });
    assert!(
        answers.len() == acknowledged.len() && answers.iter().all(there),
        "acknowledged and gone: {answers:?}"
    );
}

#[test]
fn what_was_acknowledged_survives_the_end_of_the_threads() {
    explore(100, committing);
}

#[test]
fn completions_before_their_write_are_found() {
    find(
        Weakness::EarlyCompletion,
        "acknowledged and gone",
        300,
        committing,
    );
}
