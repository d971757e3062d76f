//! Random traces against a small model, with a loss of power at every operation of the disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{EncodedEntry, Epoch, Position};

use super::rig::*;
use crate::files::mix;
use crate::sim::SimDisk;

/// What a position holds: the bytes of an entry, or junk.
type Held = Option<Bytes>;

/// What must be there, and what may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    /// Acknowledged as durable.
    sure: BTreeMap<u64, Held>,
    /// Sent.
    tried: BTreeMap<u64, Vec<Held>>,
    /// Trim marks, acknowledged and sent.
    trimmed: (u64, u64),
    /// Epochs, acknowledged and sent.
    epoch: (u64, u64),
    starts: Vec<(Epoch, Position)>,
}

/// A call that is not answered yet.
#[derive(Clone, Debug)]
enum Call {
    Write(Vec<(u64, Held)>),
    Fill,
    Trim,
    /// Positions that are read, and which of them must be there.
    Read(Vec<u64>, BTreeMap<u64, Held>),
}

struct Trace {
    seed: u64,
    random: u64,
    rig: Rig,
    model: Model,
    calls: BTreeMap<u64, Call>,
    writer: u64,
    /// The disk and what had been acknowledged, before each of its operations.
    moments: Option<Vec<(SimDisk, Model)>>,
}

impl Trace {
    fn draw(&mut self, below: u64) -> u64 {
        self.random = mix(self.random);
        self.random % below
    }

    /// One operation of the disk. Whether there was one.
    fn step(&mut self) -> bool {
        self.rig.poll();
        self.take_replies();
        if let Some(moments) = &mut self.moments {
            moments.push((self.rig.disk.clone(), self.model.clone()));
        }
        let stepped = self.rig.step();
        self.take_replies();
        stepped
    }

    fn run(&mut self) {
        while self.step() {}
        assert!(self.calls.is_empty(), "unanswered: {:?}", self.calls);
    }

    fn take_replies(&mut self) {
        for (call, (response, body)) in std::mem::take(&mut self.rig.replies) {
            if let Some(asked) = self.calls.remove(&call) {
                self.model.reply(asked, &response, body);
            } else {
                self.rig.replies.insert(call, (response, body));
            }
        }
    }

    fn call(&mut self, what: Call, request: UnitRequest, body: Bytes) {
        let call = self.rig.send(request, body);
        self.calls.insert(call, what);
    }

    /// A request, drawn.
    fn request(&mut self) {
        let epoch = self.model.epoch.0;
        let tail = self.model.tried.keys().next_back().map_or(0, |p| p + 1);
        match self.draw(20) {
            0..=9 => self.write(epoch, tail),
            10..=12 => {
                let from = tail.saturating_sub(self.draw(6)).max(self.start());
                let to = tail + self.draw(3);
                for position in from..to {
                    self.model.tried.entry(position).or_default().push(None);
                }
                let request = UnitRequest::Fill {
                    epoch: Epoch(epoch),
                    from: Position(from),
                    to: Position(to),
                };
                self.call(Call::Fill, request, Bytes::new());
            }
            13 => {
                let below = self.model.trimmed.0 + self.draw(20);
                self.model.trimmed.1 = self.model.trimmed.1.max(below);
                let (epoch, below) = (Epoch(epoch), Position(below));
                self.call(Call::Trim, UnitRequest::Trim { epoch, below }, Bytes::new());
            }
            14..=16 => {
                let positions: Vec<u64> = (0..3).map(|_| self.draw(tail + 2)).collect();
                let request = UnitRequest::Read {
                    epoch: Epoch(epoch),
                    settled: Position::ZERO,
                    positions: positions.iter().copied().map(Position).collect(),
                };
                let sure = self.model.sure.clone();
                self.call(Call::Read(positions, sure), request, Bytes::new());
            }
            17 => {
                self.run();
                self.check();
            }
            _ => {
                self.run();
                self.next_epoch(true);
            }
        }
    }

    fn start(&self) -> u64 {
        self.model.starts.last().map_or(0, |s| s.1.0)
    }

    fn write(&mut self, epoch: u64, tail: u64) {
        let mut items = Vec::new();
        for _ in 0..=self.draw(4) {
            let position = match self.draw(5) {
                0 => self.start() + self.draw(tail.saturating_sub(self.start()) + 3),
                _ => tail + self.draw(4),
            };
            self.writer += 1;
            let (stream, len) = (5 + self.draw(3), 20 + self.draw(400));
            let entry = entry(
                position,
                self.writer,
                &[stream],
                usize::try_from(len).unwrap(),
            );
            self.model
                .tried
                .entry(position)
                .or_default()
                .push(Some(entry.bytes().clone()));
            items.push((position, Some(entry)));
        }
        let (request, body) = write(epoch, &items);
        let held = |(p, e): (u64, Option<EncodedEntry>)| (p, e.map(|e| e.bytes().clone()));
        self.call(
            Call::Write(items.into_iter().map(held).collect()),
            request,
            body,
        );
    }

    /// Seals, and opens the next epoch: at the end of what is held, or (a rival's value was not collected) before it.
    fn next_epoch(&mut self, may_void: bool) {
        let epoch = self.model.epoch.1 + 1;
        let seal = self.rig.send(
            UnitRequest::Seal {
                epoch: Epoch(epoch),
            },
            Bytes::new(),
        );
        self.run();
        let sealed = self.rig.replies.remove(&seal);
        let Some((Response::Unit(UnitResponse::Sealed(report)), _)) = sealed else {
            panic!("seed {}: {sealed:?}", self.seed);
        };
        let mut start = report.high.0;
        if may_void && self.draw(3) == 0 {
            // Never below what was ever called settled, of which this unit alone is the judge here.
            start = start.min(report.marks.settled.0.max(self.start()) + self.draw(3));
        }
        self.model.epoch.1 = epoch;
        self.model.starts.push((Epoch(epoch), Position(start)));
        self.model.sure.split_off(&start);
        self.model.tried.split_off(&start);
        // Once opening begins, what lies above may be void already or still be there: neither may be seen later.
        let opened = self.rig.send(
            UnitRequest::Open {
                layout: layout(epoch, start, 1, 1, 0, 0),
                persisted: Epoch::NONE,
                starts: self.model.starts.clone(),
            },
            Bytes::new(),
        );
        self.run();
        let opened = self.rig.replies.remove(&opened);
        assert_eq!(
            opened.map(|o| o.0),
            Some(ok(UnitResponse::Done)),
            "seed {}",
            self.seed
        );
        self.model.epoch.0 = epoch;
    }

    /// Everything that is sure is there, and nothing that was never tried.
    fn check(&mut self) {
        let seed = self.seed;
        let epoch = self.model.epoch.0;
        let end = self.model.tried.keys().next_back().map_or(0, |p| p + 2);
        let mut data = Vec::new();
        for position in 0..end {
            let (answer, body) = self.rig.read_one(epoch, position);
            let held = self.model.judge(seed, position, answer, &body);
            if let Some(Some(bytes)) = held {
                data.push((position, bytes));
            }
        }
        let from = self.model.trimmed.0;
        let (entries, complete, body) = self.rig.streams(epoch, &[5, 6, 7], from, end + 5);
        let listed: Vec<u64> = entries.iter().map(|e| e.0).collect();
        let expected: Vec<u64> = data.iter().map(|d| d.0).collect();
        assert_eq!(listed, expected, "seed {seed}: streams list what is there");
        let bytes: Vec<u8> = data.iter().flat_map(|d| d.1.to_vec()).collect();
        assert_eq!(body, bytes, "seed {seed}");
        for position in from..complete {
            assert!(
                self.rig.read_one(epoch, position).0 != UnitReadAnswer::Unwritten,
                "seed {seed}"
            );
        }
    }

    /// Starts again on `disk`, and enters a new epoch.
    fn restart(seed: u64, disk: SimDisk, model: Model, writer: u64) -> Self {
        let mut trace = Self {
            seed,
            random: mix(seed),
            rig: Rig::on(disk, config(), seed),
            model,
            calls: BTreeMap::new(),
            writer,
            moments: None,
        };
        let hello = match trace.rig.hello() {
            Ok(hello) => hello,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        let persisted = hello.persisted.0;
        let (sure, sent) = trace.model.epoch;
        assert!(
            (sure..=sent).contains(&persisted),
            "seed {seed}: epoch {persisted} of {sure}..={sent}"
        );
        let trimmed: u64 = trace.rig.fact("trimmed").parse().unwrap();
        let (sure, sent) = trace.model.trimmed;
        assert!(
            (sure..=sent).contains(&trimmed),
            "seed {seed}: trim mark {trimmed} of {sure}..={sent}"
        );
        trace.model.trimmed = (trimmed, trimmed);
        if persisted > 0 {
            let again = trace.rig.open_epoch(persisted, 0);
            assert!(
                matches!(again, Response::Refused(Refusal::Sealed { .. })),
                "seed {seed}: {again:?}"
            );
        }
        trace.next_epoch(false);
        trace.check();
        // What recovery decided is decided: the values that are there now stay.
        let end = trace.model.tried.keys().next_back().map_or(0, |p| p + 1);
        for position in trimmed..end {
            let (answer, body) = trace.rig.read_one(trace.model.epoch.0, position);
            match trace.model.judge(seed, position, answer, &body) {
                Some(held) => {
                    trace.model.sure.insert(position, held.clone());
                    trace.model.tried.insert(position, vec![held]);
                }
                None => {
                    trace.model.tried.remove(&position);
                }
            }
        }
        trace
    }
}

impl Model {
    fn reply(&mut self, call: Call, response: &Response, body: Bytes) {
        match (call, response) {
            (Call::Write(items), Response::Unit(UnitResponse::Written { answers, .. })) => {
                for ((position, held), answer) in items.into_iter().zip(answers) {
                    match answer {
                        WriteAnswer::Durable => self.acknowledged(position, held),
                        WriteAnswer::Occupied => assert!(self.tried[&position].len() > 1),
                        WriteAnswer::Trimmed | WriteAnswer::TooFar => {}
                        other => panic!("{other:?} at {position}"),
                    }
                }
            }
            (Call::Fill, Response::Unit(UnitResponse::Filled { winners, .. })) => {
                let mut body = Body::of(&milonga_protocol::frame::Message {
                    header: Bytes::new(),
                    body,
                });
                for (position, value) in winners {
                    let held = match value {
                        WireValue::Junk => None,
                        WireValue::Data { len } => body.take(*len),
                    };
                    self.acknowledged(position.0, held);
                }
            }
            (Call::Fill, Response::Unit(UnitResponse::Trimmed { .. })) => {}
            (Call::Trim, Response::Unit(UnitResponse::Trimmed { below })) => {
                self.trimmed.0 = self.trimmed.0.max(below.0);
            }
            (Call::Trim, Response::Refused(Refusal::Busy { .. })) => {}
            (Call::Read(positions, sure), Response::Unit(UnitResponse::Values { answers, .. })) => {
                for (position, answer) in positions.iter().zip(answers) {
                    match sure.get(position) {
                        Some(None) => assert!(
                            [UnitReadAnswer::Junk, UnitReadAnswer::Trimmed].contains(answer),
                            "{answer:?} at {position}"
                        ),
                        Some(Some(bytes)) => assert!(
                            *answer == UnitReadAnswer::Trimmed
                                || *answer
                                    == UnitReadAnswer::Data {
                                        len: u32::try_from(bytes.len()).unwrap()
                                    },
                            "{answer:?} at {position}"
                        ),
                        None => {}
                    }
                }
            }
            (call, response) => panic!("{call:?}: {response:?}"),
        }
    }

    fn acknowledged(&mut self, position: u64, held: Held) {
        assert!(
            self.tried[&position].contains(&held),
            "position {position} holds what nobody wrote"
        );
        let before = self.sure.insert(position, held.clone());
        assert!(
            before.is_none_or(|before| before == held),
            "position {position} changed its value"
        );
    }

    /// What a read says that `position` holds.
    fn judge(
        &self,
        seed: u64,
        position: u64,
        answer: UnitReadAnswer,
        body: &Bytes,
    ) -> Option<Held> {
        let held = match answer {
            UnitReadAnswer::Data { .. } => Some(Some(body.clone())),
            UnitReadAnswer::Junk => Some(None),
            UnitReadAnswer::Unwritten => None,
            UnitReadAnswer::Trimmed => {
                assert!(
                    position < self.trimmed.1,
                    "seed {seed}: position {position} is trimmed"
                );
                return None;
            }
            other => panic!("seed {seed}: {other:?} at {position}, though nothing was damaged"),
        };
        if let Some(sure) = self.sure.get(&position) {
            assert_eq!(
                held.as_ref(),
                Some(sure),
                "seed {seed}: position {position}"
            );
        }
        if let Some(held) = &held {
            let tried = self.tried.get(&position);
            let known = tried.is_some_and(|t| t.contains(held));
            assert!(
                known,
                "seed {seed}: position {position} holds what nobody wrote: {held:?}"
            );
        }
        held
    }
}

pub(super) fn run_trace(seed: u64, requests: u64) -> Vec<(SimDisk, Model)> {
    let mut trace = Trace {
        seed,
        random: mix(seed),
        rig: Rig::new(seed),
        model: Model::default(),
        calls: BTreeMap::new(),
        writer: 0,
        moments: Some(Vec::new()),
    };
    trace.next_epoch(false);
    for _ in 0..requests {
        trace.request();
        for _ in 0..trace.draw(3) {
            trace.step();
        }
    }
    trace.run();
    trace.check();
    trace.moments.take().unwrap_or_default()
}

#[test]
fn power_may_fail_at_every_operation() {
    let (mut moments, mut again) = (0, 0);
    for seed in 0..24 {
        let all = run_trace(seed, 60);
        for (at, (disk, model)) in all.into_iter().enumerate() {
            moments += 1;
            let seed = seed * 100_000 + at as u64;
            let disk = match seed % 3 {
                0 => disk.kill(seed),
                _ => disk.crash(seed),
            };
            let mut trace = Trace::restart(seed, disk, model, 1_000_000);
            // Some go on, and lose power again.
            if seed.is_multiple_of(7) {
                again += 1;
                for _ in 0..8 {
                    trace.request();
                    trace.step();
                }
                let (disk, model) = (trace.rig.disk.crash(seed), trace.model.clone());
                Trace::restart(seed + 50_000, disk, model, 2_000_000);
            }
        }
    }
    println!("seeds 0..24: {moments} losses of power, {again} second ones");
}

/// A killed process may have left its state in the page cache only: the next one must not build on it.
#[test]
fn an_epoch_that_a_restarted_unit_reports_survives_a_loss_of_power() {
    let mut reported = 0;
    for seed in 0..200 {
        let mut rig = Rig::open(seed);
        rig.put(1, 0, 5);
        rig.seal(2);
        let open = |epoch| UnitRequest::Open {
            layout: layout(epoch, 1, 1, 1, 0, 0),
            persisted: Epoch::NONE,
            starts: vec![(Epoch(epoch), Position(1))],
        };
        rig.send(open(2), Bytes::new());
        rig.poll();
        // Killed while the state is written: slot 0, slot 1, or nothing yet.
        for _ in 0..seed % 3 {
            rig.step();
        }
        let mut restarted = rig.restarted(seed);
        let told = restarted.seal(3).epoch;
        reported += u64::from(told == Epoch(2));
        restarted.send(open(3), Bytes::new());
        restarted.poll();
        for _ in 0..seed % 4 {
            restarted.step();
        }
        let after = restarted.after_crash(seed);
        let hello = after
            .hello()
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(
            hello.persisted >= told,
            "seed {seed}: {told:?}, then {hello:?}"
        );
    }
    assert!(reported > 20, "{reported}");
}

/// What was voided does not come back, whenever the power fails and whichever batches cannot be read afterwards.
#[test]
fn what_was_voided_stays_void_whatever_batches_are_damaged() {
    let (mut lost, mut read) = (0, 0);
    for seed in 0..60 {
        let moments = run_trace(seed, 60).into_iter().rev().step_by(9);
        for (at, (disk, model)) in moments.enumerate() {
            let random = mix(seed * 100_000 + at as u64);
            let mut disk = match random % 2 {
                0 => disk.kill(random),
                _ => Rig::on(disk.crash(random), config(), random).disk,
            };
            let all = batches(&disk);
            // Without the last one: what cannot be read of that is cut, which is no damage.
            let others = usize::try_from(random / 8).unwrap() % all.len().max(1);
            let damaged = all.iter().rev().skip(1).rev().skip(others);
            for (name, offset) in damaged.take(1 + usize::try_from(random / 2 % 4).unwrap()) {
                disk.overwrite(name, *offset, &[0xff; 8]);
                disk.overwrite(name, SEGMENT - 64, &[0; 64]);
            }
            let (l, r) = model.compare_damaged(random, disk);
            (lost, read) = (lost + l, read + r);
        }
    }
    println!("{lost} lost, {read} read");
    assert!(lost > 1_000 && read > 1_000);
}

impl Model {
    /// Opens the next epoch on a damaged disk; whatever is read was written, and is not void. Gives the numbers of lost
    /// and of read positions.
    fn compare_damaged(mut self, seed: u64, disk: SimDisk) -> (usize, usize) {
        let mut rig = Rig::on(disk, config(), seed);
        let (epoch, high) = (self.epoch.1 + 1, rig.seal(self.epoch.1 + 1).high);
        self.starts.push((Epoch(epoch), high));
        let layout = layout(epoch, high.0, 1, 1, 0, 0);
        assert_eq!(
            rig.open_layout(layout, self.starts),
            ok(UnitResponse::Done),
            "seed {seed}"
        );
        let (mut lost, mut read) = (0, 0);
        for position in self.trimmed.1..high.0 {
            let (answer, body) = rig.read_one(epoch, position);
            let held = match answer {
                UnitReadAnswer::Data { .. } => Some(body),
                UnitReadAnswer::Junk => None,
                UnitReadAnswer::Lost => {
                    lost += 1;
                    continue;
                }
                _ => continue,
            };
            read += 1;
            let tried = self.tried.get(&position);
            assert!(
                tried.is_some_and(|tried| tried.contains(&held)),
                "seed {seed}: position {position} holds what is void: {held:?}"
            );
        }
        (lost, read)
    }
}
