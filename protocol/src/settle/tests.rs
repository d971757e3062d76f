use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::entry::{BackPointers, Entry, StreamLink, Value};
use crate::frame::Message;
use crate::ids::{ClusterId, EntryId, Incarnation, StreamId, UnitId, WriterId};
use crate::layout::{Joining, Redundancy, Segment, SequencerRef, UnitRange, UnitRef};
use crate::limits::Limits;
use crate::messages::{Body, Marks, UnitReadAnswer, UnitResponse, WireValue, WriteAnswer, body_of};

const EPOCH: Epoch = Epoch(3);

fn layout(start: u64, chains: u16, replicas: u16) -> Layout {
    let units = (0..chains * replicas).map(|u| UnitRef {
        name: format!("u{u}").as_str().into(),
        id: UnitId(u.into()),
    });
    let chain = |c| (0..replicas).map(|r| UnitIndex(c * replicas + r)).collect();
    Layout {
        cluster: ClusterId(1),
        epoch: EPOCH,
        start: Position(start),
        starts: vec![(EPOCH, Position(start))],
        segments: vec![Segment::new(
            Position(0),
            Position(0),
            (0..chains).map(chain).collect(),
        )],
        units: units.collect(),
        redundancy: Redundancy::of(replicas),
        sequencer: SequencerRef {
            name: "s".into(),
            incarnation: Incarnation(1),
        },
        limits: Limits::default(),
    }
}

fn entry(position: Position) -> EncodedEntry {
    let id = EntryId {
        writer: WriterId(9),
        sequence: position.0,
    };
    let links = vec![StreamLink {
        stream: StreamId(5),
        back: BackPointers::EMPTY,
    }];
    let payload = Bytes::from(vec![7; 1 + (position.0 % 5) as usize]);
    EncodedEntry::encode(position, &Entry { id, links, payload }, false)
}

/// What a unit holds; nothing = unwritten.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    Value(Value),
    Lost,
}

#[derive(Debug)]
struct Unit {
    range: UnitRange,
    cells: BTreeMap<Position, Cell>,
    trimmed: Position,
    settled: Position,
    start: Position,
    /// Most positions of one answer; above, `Busy`.
    most: usize,
    full: bool,
}

impl Unit {
    fn serve(&mut self, request: UnitRequest, body: Bytes) -> (Response, Bytes) {
        match request {
            UnitRequest::Read { positions, .. } if positions.len() > self.most => busy(),
            UnitRequest::Read { positions, .. } => self.read(&positions),
            UnitRequest::Fill { from, to, .. } => self.fill(from, to),
            UnitRequest::Write { items, .. } => self.write(items, body),
            other => panic!("a settler never sends {other:?}"),
        }
    }

    fn marks(&self) -> Marks {
        Marks {
            settled: self.settled,
            trimmed: self.trimmed,
        }
    }

    fn read(&self, positions: &[Position]) -> (Response, Bytes) {
        let mut data = Vec::new();
        let answer = |p: &Position| match self.cells.get(p) {
            _ if *p < self.trimmed => UnitReadAnswer::Trimmed,
            None => UnitReadAnswer::Unwritten,
            Some(Cell::Lost) => UnitReadAnswer::Lost,
            Some(Cell::Value(Value::Junk)) => UnitReadAnswer::Junk,
            Some(Cell::Value(Value::Data(entry))) => {
                data.push(entry.clone());
                let len = u32::try_from(entry.len()).unwrap();
                UnitReadAnswer::Data { len }
            }
        };
        let response = UnitResponse::Values {
            answers: positions.iter().map(answer).collect(),
            marks: self.marks(),
        };
        (Response::Unit(response), body_of(&data))
    }

    fn fill(&mut self, from: Position, to: Position) -> (Response, Bytes) {
        assert!(self.range.is_head() && from >= self.start);
        let (mut winners, mut data) = (Vec::new(), Vec::new());
        let own = self.range.positions(from.max(self.trimmed), to);
        for position in own.take(self.most) {
            if !self.cells.contains_key(&position) && self.full {
                break;
            }
            let cell = self.cells.entry(position);
            match cell.or_insert(Cell::Value(Value::Junk)) {
                Cell::Lost => {}
                Cell::Value(Value::Junk) => winners.push((position, WireValue::Junk)),
                Cell::Value(Value::Data(entry)) => {
                    let len = u32::try_from(entry.len()).unwrap();
                    winners.push((position, WireValue::Data { len }));
                    data.push(entry.clone());
                }
            }
        }
        let marks = self.marks();
        let response = UnitResponse::Filled { winners, marks };
        (Response::Unit(response), body_of(&data))
    }

    fn write(&mut self, items: Vec<(Position, WireValue)>, body: Bytes) -> (Response, Bytes) {
        let mut body = Body::of(&Message {
            header: Bytes::new(),
            body,
        });
        let mut answers = Vec::new();
        for (position, value) in items {
            assert!(self.range.owns(position));
            let new = match value {
                WireValue::Junk => Value::Junk,
                WireValue::Data { len } => {
                    Value::Data(EncodedEntry::check(body.take(len).unwrap()).unwrap())
                }
            };
            let active_head = self.range.is_head() && position >= self.start;
            answers.push(match self.cells.get(&position) {
                _ if position < self.trimmed => WriteAnswer::Trimmed,
                None if self.full => WriteAnswer::Full,
                Some(Cell::Value(old)) if *old == new => WriteAnswer::Durable,
                Some(Cell::Value(_)) => WriteAnswer::Occupied,
                _ if active_head => WriteAnswer::Refused,
                None | Some(Cell::Lost) => {
                    self.cells.insert(position, Cell::Value(new));
                    WriteAnswer::Durable
                }
            });
        }
        let marks = self.marks();
        (
            Response::Unit(UnitResponse::Written { answers, marks }),
            Bytes::new(),
        )
    }
}

fn busy() -> (Response, Bytes) {
    let what = "bytes of an answer".into();
    (Response::Refused(Refusal::Busy { what }), Bytes::new())
}

fn units(layout: &Layout, most: usize) -> Vec<Unit> {
    let unit = |unit: &UnitRef| Unit {
        range: layout.ranges_of(unit.id)[0],
        cells: BTreeMap::new(),
        trimmed: Position(0),
        settled: Position(0),
        start: layout.start,
        most,
        full: false,
    };
    layout.units.iter().map(unit).collect()
}

/// One settler over the model: requests wait in `sends`, answers in `answers`.
struct Settler {
    settle: Settle,
    answers: Vec<(SendId, SendOutcome)>,
    winners: BTreeMap<Position, Winner>,
}

impl Settler {
    fn new(settle: Settle) -> Self {
        Self {
            settle,
            answers: Vec::new(),
            winners: BTreeMap::new(),
        }
    }

    /// One step, as `dice` says: serve a request (and perhaps lose the request or the answer), give an answer, retry.
    fn step(&mut self, units: &mut [Unit], dice: usize) {
        if dice.is_multiple_of(3) && !self.answers.is_empty() {
            let (id, outcome) = self.answers.remove(dice / 3 % self.answers.len());
            self.settle.handle(id, outcome);
        } else if let Some(send) = self.settle.poll_send() {
            let fate = dice / 3 % 6;
            if fate == 0 {
                self.answers.push((send.id, Err("request lost".into())));
            } else {
                let answer = units[usize::from(send.unit.0)].serve(send.request, send.body);
                let lost = Err("answer lost".into());
                self.answers
                    .push((send.id, if fate == 1 { lost } else { Ok(answer) }));
            }
        } else if self.answers.is_empty() {
            self.settle.retry();
        }
        self.winners.extend(self.settle.take_winners());
    }
}

/// What the replicas of one position hold at first: an optional value, and for each replica what became of it.
fn any_cells(replicas: u16) -> impl Strategy<Value = (bool, Vec<u8>)> {
    let fate = 0..5_u8;
    (
        any::<bool>(),
        prop::collection::vec(fate, usize::from(replicas)),
    )
}

fn seed_cells(layout: &Layout, units: &mut [Unit], seeds: &[(bool, Vec<u8>)]) {
    for (p, (junk, fates)) in seeds.iter().enumerate() {
        let position = Position(p as u64);
        let value = if *junk {
            Value::Junk
        } else {
            Value::Data(entry(position))
        };
        // In the active part a replica holds only what those before it hold, and only the head's damage is judged.
        let mut before = true;
        for (unit, fate) in layout.chain(position).iter().zip(fates) {
            let cell = match fate {
                0 | 1 => Some(Cell::Value(value.clone())),
                2 if layout.is_closed(position) => Some(Cell::Lost),
                _ => None,
            };
            if !layout.is_closed(position) {
                before &= cell.is_some();
                if !before {
                    break;
                }
            }
            if let Some(cell) = cell {
                units[usize::from(unit.0)].cells.insert(position, cell);
            }
        }
    }
}

/// What rule 9, 11 or 8 makes of a position.
fn expected(layout: &Layout, units: &[Unit], position: Position) -> Winner {
    let chain = layout.chain(position);
    let held: Vec<_> = chain
        .iter()
        .map(|u| units[usize::from(u.0)].cells.get(&position))
        .collect();
    let value = held.iter().find_map(|cell| match cell {
        Some(Cell::Value(Value::Data(entry))) => Some(Winner::Data(entry.clone())),
        Some(Cell::Value(Value::Junk)) => Some(Winner::Junk),
        _ => None,
    });
    value.unwrap_or_else(|| {
        if held.contains(&None) {
            Winner::Junk
        } else {
            Winner::Lost
        }
    })
}

/// SplitMix64.
fn dice(mut seed: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn all_settlers_decide_alike_and_every_replica_gets_it(
        (replicas, seeds) in (1_u16..=3).prop_flat_map(|r| (Just(r), prop::collection::vec(any_cells(r), 1..40))),
        chains in 1_u16..=3, start in 0_u64..40, most in 1_usize..12,
        seed: u64,
    ) {
        let layout = layout(start, chains, replicas);
        let mut units = units(&layout, most);
        seed_cells(&layout, &mut units, &seeds);
        let to = Position(seeds.len() as u64);
        let want: BTreeMap<_, _> = (0..to.0)
            .map(|p| (Position(p), expected(&layout, &units, Position(p))))
            .collect();
        let mut a = Settler::new(Settle::new(&layout, Position(0), to));
        let mut b = Settler::new(Settle::positions(&layout, (0..to.0).map(Position)));
        let mut dice = dice(seed);
        for steps in 0.. {
            prop_assert!(steps < 200_000, "does not end");
            let d = dice.next().unwrap();
            let who = if d.is_multiple_of(2) { &mut a } else { &mut b };
            who.step(&mut units, d / 2);
            if a.settle.end().is_some() && b.settle.end().is_some() {
                break;
            }
        }
        for settler in [&a, &b] {
            prop_assert_eq!(settler.settle.end(), Some(&SettleEnd::Settled));
            prop_assert_eq!(&settler.winners, &want);
        }
        for (position, winner) in &want {
            let cell = match winner {
                Winner::Data(entry) => Cell::Value(Value::Data(entry.clone())),
                Winner::Junk => Cell::Value(Value::Junk),
                _ => Cell::Lost,
            };
            for unit in layout.chain(*position) {
                prop_assert_eq!(units[usize::from(unit.0)].cells.get(position), Some(&cell));
            }
        }
    }
}

/// Runs without faults until it ends or only a retry would help.
fn run(settle: &mut Settle, units: &mut [Unit]) {
    while let Some(send) = settle.poll_send() {
        let answer = units[usize::from(send.unit.0)].serve(send.request, send.body);
        settle.handle(send.id, Ok(answer));
    }
}

#[test]
fn nothing_to_do_is_settled() {
    let layout = layout(5, 2, 2);
    let settle = Settle::new(&layout, Position(7), Position(7));
    assert_eq!(settle.end(), Some(&SettleEnd::Settled));
    assert_eq!(
        Settle::positions(&layout, []).end(),
        Some(&SettleEnd::Settled)
    );
}

#[test]
fn an_ended_epoch_ends_it() {
    let layout = layout(5, 1, 2);
    for refusal in [
        Refusal::Sealed { epoch: EPOCH },
        Refusal::NotYet { epoch: Epoch(2) },
    ] {
        let mut settle = Settle::new(&layout, Position(0), Position(9));
        let send = settle.poll_send().unwrap();
        settle.handle(send.id, Ok((Response::Refused(refusal), Bytes::new())));
        assert_eq!(settle.end(), Some(&SettleEnd::EpochOver));
        assert_eq!(settle.poll_send(), None);
    }
}

#[test]
fn damage_at_the_active_head_is_reported_and_not_filled() {
    let layout = layout(0, 1, 2);
    for lost in [0, 1, 2] {
        let mut units = units(&layout, 100);
        units[0].cells.insert(Position(lost), Cell::Lost);
        let mut settle = Settle::new(&layout, Position(0), Position(3));
        run(&mut settle, &mut units);
        assert_eq!(settle.end(), Some(&SettleEnd::Settled));
        let winners: BTreeMap<_, _> = settle.take_winners().into_iter().collect();
        for p in 0..3 {
            let want = if p == lost {
                Winner::Lost
            } else {
                Winner::Junk
            };
            assert_eq!(winners[&Position(p)], want);
        }
        assert_eq!(units[1].cells.get(&Position(lost)), None);
    }
}

#[test]
fn what_was_trimmed_meanwhile_is_done() {
    let layout = layout(4, 1, 2);
    let mut units = units(&layout, 100);
    for unit in &mut units {
        unit.trimmed = Position(6);
    }
    let mut settle = Settle::new(&layout, Position(0), Position(8));
    run(&mut settle, &mut units);
    let winners: BTreeMap<_, _> = settle.take_winners().into_iter().collect();
    assert!((0..6).all(|p| winners[&Position(p)] == Winner::Trimmed));
    assert_eq!(winners[&Position(7)], Winner::Junk);
}

#[test]
fn a_full_disk_waits_and_goes_on() {
    let layout = layout(2, 1, 2);
    let mut units = units(&layout, 100);
    for unit in &mut units {
        unit.full = true;
    }
    let mut settle = Settle::new(&layout, Position(0), Position(4));
    run(&mut settle, &mut units);
    assert_eq!(settle.end(), None);
    let why: Vec<_> = settle.waiting().map(|(_, why)| why.to_owned()).collect();
    assert_eq!(
        why,
        [
            "the disk is full",
            "the head fills nothing: its disk is full, or it knows too little of what is settled"
        ]
    );
    for unit in &mut units {
        unit.full = false;
    }
    settle.retry();
    run(&mut settle, &mut units);
    assert_eq!(settle.end(), Some(&SettleEnd::Settled));
}

#[test]
fn replicas_that_differ_stop_it() {
    let layout = layout(2, 1, 2);
    let mut units = units(&layout, 100);
    let data = Cell::Value(Value::Data(entry(Position(1))));
    units[0].cells.insert(Position(1), data);
    units[1].cells.insert(Position(1), Cell::Value(Value::Junk));
    let mut settle = Settle::new(&layout, Position(0), Position(2));
    run(&mut settle, &mut units);
    let Some(SettleEnd::Broken { position, .. }) = settle.end() else {
        panic!("ended as {:?}", settle.end());
    };
    assert_eq!(*position, Position(1));
}

#[test]
fn a_damaged_answer_is_asked_again() {
    let layout = layout(2, 1, 1);
    let mut units = units(&layout, 100);
    let data = Cell::Value(Value::Data(entry(Position(1))));
    units[0].cells.insert(Position(1), data);
    let mut settle = Settle::new(&layout, Position(0), Position(2));
    let send = settle.poll_send().unwrap();
    let (response, body) = units[0].serve(send.request, send.body);
    let mut bytes = body.to_vec();
    bytes[20] ^= 1;
    settle.handle(send.id, Ok((response, bytes.into())));
    assert_eq!(settle.waiting().count(), 1);
    settle.retry();
    run(&mut settle, &mut units);
    let winners: BTreeMap<_, _> = settle.take_winners().into_iter().collect();
    assert_eq!(winners[&Position(1)], Winner::Data(entry(Position(1))));
}

#[test]
fn giving_up_makes_junk_of_what_all_have_lost_and_of_nothing_else() {
    let layout = layout(6, 1, 2);
    let mut units = units(&layout, 100);
    let data = |p| Cell::Value(Value::Data(entry(Position(p))));
    for unit in &mut units {
        unit.cells.insert(Position(0), data(0));
        unit.cells.insert(Position(1), Cell::Lost);
        unit.cells.insert(Position(7), Cell::Lost);
    }
    units[0].cells.insert(Position(2), Cell::Lost);
    units[1].cells.insert(Position(2), data(2));
    let all = (0..8).map(Position);
    let mut settle = Settle::giving_up(&layout, all);
    run(&mut settle, &mut units);
    assert_eq!(settle.end(), Some(&SettleEnd::Settled));
    let winners: BTreeMap<_, _> = settle.take_winners().into_iter().collect();
    assert_eq!(winners[&Position(1)], Winner::Junk);
    assert_eq!(winners[&Position(2)], Winner::Data(entry(Position(2))));
    assert!(!winners.contains_key(&Position(7)), "it is not closed");
    for unit in &units {
        assert_eq!(unit.cells[&Position(0)], data(0));
        assert_eq!(unit.cells[&Position(1)], Cell::Value(Value::Junk));
        assert_eq!(unit.cells[&Position(2)], data(2));
        assert_eq!(unit.cells[&Position(7)], Cell::Lost);
    }
}

/// A unit that is being given the closed part may have what all replicas have lost.
#[test]
fn what_a_joining_unit_still_has_is_not_given_up() {
    let mut layout = layout(6, 1, 3);
    let zero = Position(0);
    let mut closed = Segment::new(zero, zero, vec![[0, 1].map(UnitIndex).to_vec()]);
    closed.joining = vec![Joining {
        chain: 0,
        unit: UnitIndex(2),
    }];
    let active = Segment::new(Position(6), zero, layout.segments[0].chains.clone());
    layout.segments = vec![closed, active];
    layout.validate().expect("made valid");
    let mut units = units(&layout, 100);
    let data = |p| Cell::Value(Value::Data(entry(Position(p))));
    for unit in &mut units[..2] {
        unit.cells.insert(Position(1), Cell::Lost);
        unit.cells.insert(Position(2), Cell::Lost);
    }
    units[2].cells.insert(Position(1), data(1));
    units[2].cells.insert(Position(2), Cell::Lost);
    let mut settle = Settle::giving_up(&layout, [1, 2].map(Position));
    run(&mut settle, &mut units);
    assert_eq!(settle.end(), Some(&SettleEnd::Settled));
    for unit in &units[..2] {
        assert_eq!(unit.cells[&Position(1)], data(1));
        assert_eq!(unit.cells[&Position(2)], Cell::Value(Value::Junk));
    }
    assert_eq!(
        units[2].cells[&Position(2)],
        Cell::Lost,
        "it is copied there"
    );
}

/// The head lost to bit rot what it had settled: it is not lost as long as another replica has it.
#[test]
fn what_an_active_head_lost_of_the_settled_part_is_asked_elsewhere() {
    let layout = layout(0, 1, 3);
    let mut units = units(&layout, 4);
    for position in (0..12).map(Position) {
        let value = match position.0 {
            6 => Value::Junk,
            _ => Value::Data(entry(position)),
        };
        for (place, unit) in units.iter_mut().enumerate() {
            unit.settled = Position(8);
            // Two next to each other, the first of a batch, junk; what all have lost; what is not settled.
            let lost = match position.0 {
                0 | 3 | 4 | 6 => place == 0,
                5 => place < 2,
                7 => true,
                10 => place == 0,
                _ => false,
            };
            let cell = if lost {
                Cell::Lost
            } else {
                Cell::Value(value.clone())
            };
            unit.cells.insert(position, cell);
        }
    }
    let mut settler = Settler::new(Settle::new(&layout, Position(0), Position(12)));
    for dice in dice(1).take(10_000) {
        settler.step(&mut units, dice);
    }
    assert_eq!(settler.settle.end(), Some(&SettleEnd::Settled));
    for position in (0..12).map(Position) {
        let winner = match position.0 {
            6 => Winner::Junk,
            7 | 10 => Winner::Lost,
            _ => Winner::Data(entry(position)),
        };
        assert_eq!(settler.winners.get(&position), Some(&winner), "{position}");
    }
    // The middle replica has got back what it had lost, too.
    assert_eq!(
        units[1].cells[&Position(5)],
        Cell::Value(Value::Data(entry(Position(5))))
    );
}
