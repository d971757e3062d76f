//! Leaving and entering chains: what is forgotten, what is lacking, what is given (rules 10, 11, 19).

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{ClusterId, Epoch, Joining, Layout, Position, Segment, UnitIndex};

use super::rig::*;

const ME: UnitIndex = UnitIndex(0);
const OTHER: UnitIndex = UnitIndex(1);

/// The head of a chain of two with positions 0 to 5, of which those below 3 are settled.
fn head(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.open_layout(layout(1, 0, 1, 2, 0, 0), vec![(Epoch(1), Position(0))]);
    for position in 0..6 {
        rig.put(1, position, 5);
    }
    let (epoch, settled) = (Epoch(1), Position(3));
    let told = rig.ask(UnitRequest::Told { epoch, settled });
    assert_eq!(told, ok(UnitResponse::Done));
    // The mark is stored with the next batch.
    rig.put(1, 6, 5);
    rig
}

fn rejoin(rig: &mut Rig, epoch: u64) -> Response {
    rejoin_below(rig, epoch, u64::MAX)
}

fn rejoin_below(rig: &mut Rig, epoch: u64, below: u64) -> Response {
    rig.ask(request(epoch, below))
}

fn request(epoch: u64, below: u64) -> UnitRequest {
    UnitRequest::Rejoin {
        cluster: CLUSTER,
        epoch: Epoch(epoch),
        below: Position(below),
    }
}

/// The unit after a crash so many steps after it was asked to rejoin.
fn crashed_while_rejoining(mut rig: Rig, step: u64, seed: u64) -> Rig {
    rig.send(request(3, u64::MAX), Bytes::new());
    for _ in 0..step {
        rig.step();
    }
    rig.after_crash(seed)
}

/// Epochs 2 and 3 began at 5 and 8; this unit enters epoch 3 behind the other one.
fn joining() -> Layout {
    let mut layout = layout(3, 8, 1, 2, 0, 0);
    layout.starts = vec![(Epoch(2), Position(5)), (Epoch(3), Position(8))];
    let zero = Position(0);
    let mut closed = Segment::new(zero, zero, vec![vec![OTHER]]);
    closed.joining = vec![Joining { chain: 0, unit: ME }];
    let active = Segment::new(Position(8), zero, vec![vec![OTHER, ME]]);
    layout.segments = vec![closed, active];
    layout.validate().expect("made valid");
    layout
}

/// The same chains, complete.
fn joined() -> Layout {
    let mut layout = joining();
    let (epoch, start) = (Epoch(4), Position(9));
    (layout.epoch, layout.start) = (epoch, start);
    layout.starts.push((epoch, start));
    let zero = Position(0);
    layout.segments = vec![Segment::new(zero, zero, vec![vec![OTHER, ME]])];
    layout.validate().expect("made valid");
    layout
}

fn lacking(rig: &mut Rig, from: u64, limit: u32) -> (Vec<u64>, Position) {
    let request = UnitRequest::Lacking {
        epoch: Epoch(3),
        from: Position(from),
        limit,
    };
    match rig.ask(request) {
        Response::Unit(UnitResponse::Lacking { positions, through }) => {
            (positions.iter().map(|p| p.0).collect(), through)
        }
        other => panic!("{other:?}"),
    }
}

fn give(rig: &mut Rig, position: u64, value: Option<u64>) -> WriteAnswer {
    let value = value.map(|writer| entry(position, writer, &[5], 20));
    let (wire, body) = match &value {
        Some(entry) => {
            let len = u32::try_from(entry.len()).expect("small");
            (WireValue::Data { len }, entry.bytes().clone())
        }
        None => (WireValue::Junk, Bytes::new()),
    };
    let request = UnitRequest::Repair {
        epoch: Epoch(3),
        settled: Position(0),
        items: vec![(Position(position), wire)],
    };
    answers(&rig.ask_with(request, body).0)[0]
}

fn enter(rig: &mut Rig) {
    assert_eq!(rejoin(rig, 3), ok(UnitResponse::Done));
    let layout = joining();
    let starts = layout.starts.clone();
    assert_eq!(rig.open_layout(layout, starts), ok(UnitResponse::Done));
}

#[test]
fn who_rejoins_forgets_what_is_not_settled_for_good() {
    let mut rig = head(1);
    assert_eq!(rejoin(&mut rig, 3), ok(UnitResponse::Done));
    assert_eq!(rig.hello().unwrap().serving, Epoch(0));
    // A repetition is harmless, an old one is refused.
    assert_eq!(rejoin(&mut rig, 3), ok(UnitResponse::Done));
    let sealed = |response| matches!(response, Response::Refused(Refusal::Sealed { .. }));
    assert!(sealed(rejoin(&mut rig, 2)));
    assert!(sealed(
        rig.write_values(1, &[(7, Some(entry(7, 7, &[5], 9)))])
    ));
    // Not even a crash brings it back.
    for mut rig in [rig.after_crash(2), rig.restarted(3)] {
        let report = rig.seal(3);
        assert_eq!(report.high, Position(3));
        let tails = rig.tails(3, 100);
        assert_eq!(tails[0].last.positions(), [2, 1, 0].map(Position));
    }
}

#[test]
fn who_rejoins_forgets_what_was_given_up_meanwhile() {
    let mut rig = head(4);
    assert_eq!(rejoin(&mut rig, 3), ok(UnitResponse::Done));
    assert_eq!(rejoin_below(&mut rig, 3, 1), ok(UnitResponse::Done));
    for mut rig in [rig.after_crash(5), rig.restarted(6), rig] {
        let layout = joining();
        let starts = layout.starts.clone();
        assert_eq!(rig.open_layout(layout, starts), ok(UnitResponse::Done));
        let lacks = lacking(&mut rig, 0, 99);
        assert_eq!(lacks, ((1..8).collect(), Position::MAX));
        // A replica to be says what it has, and never that something was not written.
        assert!(matches!(rig.read_one(3, 0).0, UnitReadAnswer::Data { .. }));
        assert_eq!(rig.read_one(3, 1).0, UnitReadAnswer::Lost);
        assert_eq!(give(&mut rig, 1, None), WriteAnswer::Durable);
        assert_eq!(rig.read_one(3, 1).0, UnitReadAnswer::Junk);
    }
}

/// Making a file takes long, and appends wait while an epoch is opened.
#[test]
fn who_was_asked_to_join_has_made_its_files_before_the_epoch_is_opened() {
    let mut rig = Rig::new(30);
    assert_eq!(rejoin(&mut rig, 3), ok(UnitResponse::Done));
    let hello = rig.hello().expect("it runs");
    assert_eq!((hello.cluster, hello.empty), (Some(CLUSTER), true));
    let files = |rig: &Rig| {
        rig.disk
            .files()
            .into_iter()
            .map(|(n, _)| n)
            .collect::<Vec<_>>()
    };
    let before = files(&rig);
    assert!(
        before.iter().any(|name| name.starts_with("segment-")),
        "{before:?}"
    );
    rig.open_layout(joining(), vec![(Epoch(3), Position(8))]);
    assert_eq!(before, files(&rig));
    assert!(!rig.hello().expect("it runs").empty);
}

#[test]
fn a_unit_joins_no_second_cluster() {
    let other = || UnitRequest::Rejoin {
        cluster: ClusterId(0xc2),
        epoch: Epoch(4),
        below: Position::MAX,
    };
    let mut rig = Rig::new(31);
    // Before anything is on the disk.
    rig.send(request(3, u64::MAX), Bytes::new());
    for _ in 0..2 {
        let answer = rig.ask(other());
        assert!(
            matches!(answer, Response::Refused(Refusal::Identity { .. })),
            "{answer:?}"
        );
    }
    assert_eq!(rejoin(&mut rig, 5), ok(UnitResponse::Done));
}

/// Nothing but the cluster and an empty file is left behind, at most.
#[test]
fn a_crash_while_a_new_unit_is_asked_to_join_leaves_what_can_join() {
    for step in 0..12 {
        let mut rig = crashed_while_rejoining(Rig::new(50 + step), step, 70 + step);
        assert!(rig.hello().expect("it starts").empty, "step {step}");
        assert_eq!(rejoin(&mut rig, 3), ok(UnitResponse::Done), "step {step}");
        rig.open_layout(joining(), vec![(Epoch(3), Position(8))]);
    }
}

#[test]
fn a_crash_at_any_step_of_rejoining_leaves_what_can_rejoin() {
    for step in 0..12 {
        let mut rig = crashed_while_rejoining(head(10 + step), step, 40 + step);
        enter(&mut rig);
        assert_eq!(
            lacking(&mut rig, 0, 99),
            (vec![3, 4, 5, 6, 7], Position::MAX)
        );
    }
}

/// Epoch 3 voids what was forgotten before, and batches say it, too; but that is true whichever of them can be read.
#[test]
fn what_was_forgotten_stays_so_whatever_batches_are_damaged() {
    for step in 0..12 {
        let mut rig = crashed_while_rejoining(head(80 + step), step, 100 + step);
        let before = batches(&rig.disk).len();
        enter(&mut rig);
        assert_eq!(give(&mut rig, 3, Some(93)), WriteAnswer::Durable);
        rig.write_values(3, &[(8, Some(entry(8, 8, &[5], 9)))]);
        let after = batches(&rig.disk).split_off(before);
        for damaged in 1_u32..1 << after.len() {
            let mut disk = rig.disk.kill(120);
            for (at, (name, offset)) in after.iter().enumerate() {
                if damaged & 1 << at != 0 {
                    disk.overwrite(name, *offset, &[0xff; 8]);
                }
            }
            let mut rig = Rig::on(disk, config(), 121);
            let layout = joined();
            let starts = layout.starts.clone();
            assert_eq!(rig.open_layout(layout, starts), ok(UnitResponse::Done));
            let what = format!("step {step}, damaged {damaged:b}");
            for position in 4..8 {
                let (answer, _) = rig.read_one(4, position);
                // The end of the log is cut, which is no damage.
                let gone = matches!(answer, UnitReadAnswer::Lost | UnitReadAnswer::Unwritten);
                assert!(gone, "{what}: {answer:?} at {position}");
            }
            let (answer, body) = rig.read_one(4, 3);
            let held = matches!(answer, UnitReadAnswer::Data { .. });
            let given = body == *entry(3, 93, &[5], 20).bytes();
            assert!(given || !held, "{what}: {answer:?}");
        }
    }
}

#[test]
fn what_is_lacking_is_named_given_and_kept() {
    let mut rig = head(20);
    enter(&mut rig);
    assert_eq!(lacking(&mut rig, 0, 2), (vec![3, 4], Position(5)));
    assert_eq!(lacking(&mut rig, 5, 2), (vec![5, 6], Position(7)));
    assert_eq!(lacking(&mut rig, 7, 2), (vec![7], Position::MAX));
    // It is no replica yet: it says what it has, and takes nothing but what it is given.
    assert!(matches!(rig.read_one(3, 1).0, UnitReadAnswer::Data { .. }));
    assert_eq!(rig.read_one(3, 4).0, UnitReadAnswer::Lost);
    let value = Some(entry(4, 9, &[5], 20));
    let written = rig.write_values(3, &[(4, value)]);
    assert_eq!(answers(&written), [WriteAnswer::NotMine]);
    for position in [3, 5, 6] {
        assert_eq!(
            give(&mut rig, position, Some(90 + position)),
            WriteAnswer::Durable
        );
    }
    assert_eq!(give(&mut rig, 4, None), WriteAnswer::Durable);
    assert_eq!(
        give(&mut rig, 1, Some(99)),
        WriteAnswer::Durable,
        "it has its own"
    );
    // The active part is written as ever.
    let (request, body) = write(3, &[(8, Some(entry(8, 8, &[5], 9)))]);
    assert_eq!(
        answers(&rig.ask_with(request, body).0),
        [WriteAnswer::Durable]
    );
    assert_eq!(lacking(&mut rig, 0, 99), (vec![7], Position::MAX));

    // What was not given is lost, not unwritten, whatever happens before it is listed.
    for mut rig in [rig.after_crash(21), rig.restarted(22)] {
        let layout = joined();
        let starts = layout.starts.clone();
        rig.seal(4);
        assert_eq!(rig.open_layout(layout, starts), ok(UnitResponse::Done));
        let given = entry(3, 93, &[5], 20);
        assert_eq!(rig.read_one(4, 3).1, given.bytes());
        assert_eq!(rig.read_one(4, 4).0, UnitReadAnswer::Junk);
        assert_eq!(rig.read_one(4, 7).0, UnitReadAnswer::Lost);
        let (entries, complete, _) = rig.streams(4, &[5], 0, 7);
        let positions: Vec<_> = entries.iter().map(|e| e.0).collect();
        assert_eq!((positions, complete), (vec![0, 1, 2, 3, 5, 6], 7));
    }
}

#[test]
fn what_belongs_to_another_chain_is_not_listed() {
    let mut rig = Rig::new(30);
    // Chain 0 of two at first, chain 1 afterwards.
    rig.open_layout(layout(1, 0, 2, 1, 0, 0), vec![(Epoch(1), Position(0))]);
    for position in [0, 2, 4] {
        rig.put(1, position, 5);
    }
    rig.seal(2);
    let mut other = layout(2, 5, 2, 1, 0, 0);
    other.segments[0].chains.swap(0, 1);
    let starts = vec![(Epoch(2), Position(5))];
    (other.start, other.starts) = (Position(5), starts.clone());
    assert_eq!(rig.open_layout(other, starts), ok(UnitResponse::Done));
    for position in [1, 3] {
        rig.write_values(2, &[(position, Some(entry(position, position, &[5], 9)))]);
    }
    rig.put(2, 5, 5);
    let (entries, complete, _) = rig.streams(2, &[5], 0, 6);
    let positions: Vec<_> = entries.iter().map(|e| e.0).collect();
    assert_eq!((positions, complete), (vec![1, 3, 5], 6));
}
