//! One chain's share of the work, batch after batch.

use bytes::{Bytes, BytesMut};

use crate::entry::EncodedEntry;
use crate::frame::Message;
use crate::ids::{Epoch, Position};
use crate::layout::UnitIndex;
use crate::messages::{
    Body, Marks, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use crate::plants::{self, Plant};

use super::work::Work;
use super::{Stamp, Winner};

/// Most positions of one read or fill.
const BATCH: usize = 1_024;
/// A write stops growing at about this many bytes.
const WRITE_BYTES: usize = 4 << 20;

/// A replica knows too little of what is settled.
pub(super) const TOO_FAR: &str = "too far above the settled mark";
/// ... or its disk is full.
pub(super) const FILLS_NOTHING: &str =
    "the head fills nothing: its disk is full, or it knows too little of what is settled";

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Progress {
    /// Others have to answer first.
    Wait,
    /// This one has to be asked again, later.
    Trouble(String),
    /// A new step: ask its places. These positions are settled.
    Next(Vec<(Position, Winner)>),
    /// An invariant is broken.
    Broken { position: Position, why: String },
}

#[derive(Debug)]
pub(super) struct Lane {
    stamp: Stamp,
    units: Vec<UnitIndex>,
    /// How many of the units are replicas; the others are asked and given nothing.
    replicas: usize,
    closed: bool,
    /// What is lost on every replica becomes junk.
    gives_up: bool,
    work: Work,
    /// Settled, and lost at the head: the other replicas have them.
    elsewhere: Vec<Position>,
    /// Positions per batch; falls when an answer is refused as too much.
    limit: usize,
    step: Step,
    step_number: u64,
    /// The batch was made smaller: take it anew at the next retry.
    restart: bool,
}

#[derive(Debug)]
enum Step {
    /// Every replica is asked for these.
    Read {
        positions: Vec<Position>,
        /// By place.
        answers: Vec<Option<Vec<Held>>>,
    },
    /// The head decides these.
    Fill {
        positions: Vec<Position>,
    },
    /// The head decided nothing: is the first position lost there?
    Probe {
        positions: Vec<Position>,
    },
    /// The winners go down the chain.
    Carry {
        winners: Vec<(Position, Winner)>,
        /// By place, which winners (by index, ascending) that replica has still to get.
        lacking: Vec<Vec<usize>>,
        place: usize,
    },
    Done,
}

/// What a replica says of a position of the closed part.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Value(Winner),
    Unwritten,
    Pending,
    NotMine,
}

impl Lane {
    pub(super) fn new(epoch: Epoch, units: Vec<UnitIndex>, closed: bool, work: Work) -> Self {
        Self::with(epoch, units, Vec::new(), closed, false, work)
    }

    /// A closed lane in which what is lost on every replica, and on every unit that is joining, becomes junk.
    pub(super) fn giving_up(
        epoch: Epoch,
        units: Vec<UnitIndex>,
        joining: Vec<UnitIndex>,
        work: Work,
    ) -> Self {
        Self::with(epoch, units, joining, true, true, work)
    }

    fn with(
        epoch: Epoch,
        mut units: Vec<UnitIndex>,
        joining: Vec<UnitIndex>,
        closed: bool,
        gives_up: bool,
        work: Work,
    ) -> Self {
        let replicas = units.len();
        units.extend(joining);
        let mut lane = Self {
            stamp: Stamp(epoch),
            units,
            replicas,
            closed,
            gives_up,
            work,
            elsewhere: Vec::new(),
            limit: BATCH,
            step: Step::Done,
            step_number: 0,
            restart: false,
        };
        lane.next_batch();
        lane
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self.step, Step::Done)
    }

    pub(super) const fn step_number(&self) -> u64 {
        self.step_number
    }

    pub(super) fn unit(&self, place: usize) -> UnitIndex {
        self.units[place]
    }

    /// Halves the batch, because an answer to it would be too large or the unit is overloaded.
    pub(super) fn smaller(&mut self) {
        if !matches!(self.step, Step::Carry { .. }) && self.limit > 1 {
            self.limit /= 2;
            self.restart = true;
        }
    }

    /// Takes the batch anew if it was made smaller; says whether all places are to be asked again.
    pub(super) fn begin_again(&mut self) -> bool {
        if !std::mem::take(&mut self.restart) {
            return false;
        }
        match std::mem::replace(&mut self.step, Step::Done) {
            Step::Read { positions, .. } if !self.closed => {
                self.elsewhere.extend(positions);
                self.next_batch();
                true
            }
            Step::Read { positions, .. } | Step::Fill { positions } | Step::Probe { positions } => {
                self.work.put_back(&positions);
                self.next_batch();
                true
            }
            step => {
                self.step = step;
                false
            }
        }
    }

    /// The places that the current step asks.
    pub(super) fn places(&self) -> Vec<usize> {
        match &self.step {
            Step::Read { answers, .. } => (0..answers.len()).collect(),
            Step::Fill { .. } | Step::Probe { .. } => vec![0],
            Step::Carry { place, .. } => vec![*place],
            Step::Done => Vec::new(),
        }
    }

    /// What the current step asks of `place`.
    pub(super) fn ask(&self, place: usize) -> Option<(UnitRequest, Bytes)> {
        match &self.step {
            Step::Read { positions, .. } => {
                Some((self.stamp.read(positions.clone()), Bytes::new()))
            }
            Step::Fill { positions } => {
                let (from, to) = (*positions.first()?, positions.last()?.next());
                Some((self.stamp.fill(from, to), Bytes::new()))
            }
            Step::Probe { positions } => {
                let first = *positions.first()?;
                Some((self.stamp.read(vec![first]), Bytes::new()))
            }
            Step::Carry {
                winners, lacking, ..
            } => {
                let (items, body) = chunk(winners, &lacking[place]);
                Some((self.stamp.write(items), body))
            }
            Step::Done => None,
        }
    }

    pub(super) fn handle(&mut self, place: usize, response: UnitResponse, body: Bytes) -> Progress {
        match (&self.step, response) {
            (Step::Read { .. }, UnitResponse::Values { answers, .. }) => {
                self.read_answered(place, &answers, body)
            }
            (Step::Fill { .. }, UnitResponse::Filled { winners, marks }) => {
                self.fill_answered(winners, marks, body)
            }
            (Step::Probe { .. }, UnitResponse::Values { answers, marks }) => {
                self.probe_answered(&answers, marks)
            }
            (Step::Carry { .. }, UnitResponse::Written { answers, .. }) => {
                self.write_answered(&answers)
            }
            (_, other) => Progress::Trouble(format!("an answer that does not fit: {other:?}")),
        }
    }

    fn enter(&mut self, step: Step) {
        self.step = step;
        self.step_number += 1;
        self.restart = false;
    }

    fn next_batch(&mut self) {
        let step = if !self.elsewhere.is_empty() {
            let taken = self.limit.min(self.elsewhere.len());
            Step::Read {
                positions: self.elsewhere.drain(..taken).collect(),
                answers: vec![None; self.units.len()],
            }
        } else if self.work.is_empty() {
            Step::Done
        } else if self.closed {
            Step::Read {
                positions: self.work.take(self.limit),
                answers: vec![None; self.units.len()],
            }
        } else {
            Step::Fill {
                positions: self.work.take_run(self.limit),
            }
        };
        self.enter(step);
    }

    /// An answer may stop early, for its size: the rest is asked again.
    fn read_answered(&mut self, place: usize, said: &[UnitReadAnswer], body: Bytes) -> Progress {
        let Step::Read { positions, answers } = &mut self.step else {
            return Progress::Wait;
        };
        if said.is_empty() || said.len() > positions.len() {
            return Progress::Trouble("an answer about other positions".into());
        }
        let held = match all_held(said, body) {
            Ok(held) => held,
            Err(why) => return Progress::Trouble(why),
        };
        if held.contains(&Held::Pending) {
            return Progress::Trouble("a write is not durable yet".into());
        }
        if let Some(at) = held.iter().position(|h| *h == Held::NotMine) {
            return Progress::Broken {
                position: positions[at],
                why: "the unit says it is no replica of its position".into(),
            };
        }
        answers[place] = Some(held);
        let Some(answers) = answers.iter().cloned().collect::<Option<Vec<_>>>() else {
            return Progress::Wait;
        };
        let positions = std::mem::take(positions);
        self.judge(&positions, &answers)
    }

    /// Rules 9 and 11.
    fn judge(&mut self, positions: &[Position], answers: &[Vec<Held>]) -> Progress {
        let common = answers.iter().map(Vec::len).min().unwrap_or_default();
        let (now, later) = positions.split_at(common);
        if self.closed {
            self.work.put_back(later);
        } else {
            self.elsewhere.extend(later);
        }
        let mut winners = Vec::with_capacity(common);
        let mut lacking = vec![Vec::new(); self.units.len()];
        for (index, position) in now.iter().enumerate() {
            let held: Vec<&Held> = answers.iter().map(|of_unit| &of_unit[index]).collect();
            let asked = if plants::active(Plant::HeadAloneJudges) {
                1
            } else {
                held.len()
            };
            let winner = match winner(&held[..asked]) {
                Ok(Winner::Lost) if self.gives_up => Winner::Junk,
                // Settled, so a replica that does not know it has lost it; no silence makes it junk.
                Ok(Winner::Junk) if !self.closed && !held.contains(&&Held::Value(Winner::Junk)) => {
                    Winner::Lost
                }
                Ok(winner) => winner,
                Err(why) => {
                    let position = *position;
                    return Progress::Broken { position, why };
                }
            };
            if matches!(winner, Winner::Data(_) | Winner::Junk) {
                // An active head takes new values from their writers only; who reads there repairs it.
                let first = usize::from(!self.closed);
                let replicas = held[..self.replicas].iter().enumerate();
                for (place, held) in replicas.skip(first) {
                    if !matches!(held, Held::Value(Winner::Data(_) | Winner::Junk)) {
                        lacking[place].push(index);
                    }
                }
            }
            winners.push((*position, winner));
        }
        self.carry(winners, lacking)
    }

    /// Winners may stop early (full disk, size of the answer) and may leave out what the head has lost.
    fn fill_answered(
        &mut self,
        said: Vec<(Position, WireValue)>,
        marks: Marks,
        body: Bytes,
    ) -> Progress {
        let Step::Fill { positions } = &mut self.step else {
            return Progress::Wait;
        };
        let mut winners = match filled(said, body) {
            Ok(winners) => winners.into_iter().peekable(),
            Err(why) => return Progress::Trouble(why),
        };
        let mut decided = Vec::with_capacity(positions.len());
        for position in positions.iter().copied() {
            if winners.peek().is_some_and(|(p, _)| *p < position) {
                return Progress::Trouble("winners of other positions".into());
            }
            match winners.next_if(|(p, _)| *p == position) {
                Some(winner) => decided.push(winner),
                None if position < marks.trimmed => decided.push((position, Winner::Trimmed)),
                None if winners.peek().is_some() => decided.push((position, Winner::Lost)),
                None => break,
            }
        }
        let positions = std::mem::take(positions);
        if decided.is_empty() {
            self.enter(Step::Probe { positions });
            return Progress::Next(Vec::new());
        }
        self.work.put_back(&positions[decided.len()..]);
        self.ask_elsewhere(&mut decided, marks);
        self.carry_down(decided)
    }

    /// The head arbitrates what is not settled. What is, every replica had: that the head has lost it says nothing of
    /// the others.
    fn ask_elsewhere(&mut self, decided: &mut Vec<(Position, Winner)>, marks: Marks) {
        let (lost, rest) = std::mem::take(decided)
            .into_iter()
            .partition(|(position, winner)| *winner == Winner::Lost && *position < marks.settled);
        *decided = rest;
        let lost: Vec<_> = lost;
        self.elsewhere
            .extend(lost.into_iter().map(|(position, _)| position));
    }

    fn probe_answered(&mut self, said: &[UnitReadAnswer], marks: Marks) -> Progress {
        let Step::Probe { positions } = &mut self.step else {
            return Progress::Wait;
        };
        let winner = match said {
            [UnitReadAnswer::Lost] => Winner::Lost,
            [UnitReadAnswer::Trimmed] => Winner::Trimmed,
            [UnitReadAnswer::NotMine] => {
                return Progress::Broken {
                    position: positions[0],
                    why: "the head says it is no replica of its position".into(),
                };
            }
            _ => {
                self.restart = true;
                return Progress::Trouble(FILLS_NOTHING.into());
            }
        };
        let positions = std::mem::take(positions);
        self.work.put_back(&positions[1..]);
        let mut decided = vec![(positions[0], winner)];
        self.ask_elsewhere(&mut decided, marks);
        self.carry_down(decided)
    }

    /// The head has these: everybody behind it gets them.
    fn carry_down(&mut self, winners: Vec<(Position, Winner)>) -> Progress {
        let indexes = winners
            .iter()
            .enumerate()
            .filter(|(_, (_, winner))| matches!(winner, Winner::Data(_) | Winner::Junk));
        let all: Vec<usize> = indexes.map(|(index, _)| index).collect();
        let mut lacking = vec![all; self.units.len()];
        lacking[0].clear();
        self.carry(winners, lacking)
    }

    fn carry(&mut self, winners: Vec<(Position, Winner)>, lacking: Vec<Vec<usize>>) -> Progress {
        match lacking.iter().position(|of_place| !of_place.is_empty()) {
            Some(place) => {
                self.enter(Step::Carry {
                    winners,
                    lacking,
                    place,
                });
                Progress::Next(Vec::new())
            }
            None => {
                self.next_batch();
                Progress::Next(winners)
            }
        }
    }

    fn write_answered(&mut self, answers: &[WriteAnswer]) -> Progress {
        let Step::Carry {
            winners,
            lacking,
            place,
        } = &mut self.step
        else {
            return Progress::Wait;
        };
        let here = std::mem::take(&mut lacking[*place]);
        let sent = chunk_len(winners, &here);
        if answers.len() != sent {
            lacking[*place] = here;
            return Progress::Trouble("an answer about other writes".into());
        }
        let mut trouble = None;
        for (index, answer) in here[..sent].iter().zip(answers) {
            let position = winners[*index].0;
            match answer {
                WriteAnswer::Durable => continue,
                WriteAnswer::Trimmed => {
                    winners[*index].1 = Winner::Trimmed;
                    continue;
                }
                WriteAnswer::Accepted => trouble = Some("a write is not durable yet"),
                WriteAnswer::Full => trouble = Some("the disk is full"),
                WriteAnswer::TooFar => trouble = Some(TOO_FAR),
                WriteAnswer::Occupied | WriteAnswer::NotMine | WriteAnswer::Refused => {
                    let why = format!("the winner of this position is refused as {answer:?}");
                    return Progress::Broken { position, why };
                }
            }
            lacking[*place].push(*index);
        }
        lacking[*place].extend(&here[sent..]);
        // Trimmed ones need not go any further.
        for of_place in lacking.iter_mut() {
            of_place.retain(|index| winners[*index].1 != Winner::Trimmed);
        }
        if let Some(why) = trouble {
            return Progress::Trouble(why.into());
        }
        let (winners, lacking) = (std::mem::take(winners), std::mem::take(lacking));
        self.carry(winners, lacking)
    }
}

/// What a closed position holds, from what every replica says.
fn winner(held: &[&Held]) -> Result<Winner, String> {
    let mut value = None;
    for held in held {
        match (held, value) {
            (Held::Value(Winner::Trimmed), _) => return Ok(Winner::Trimmed),
            (Held::Value(new @ (Winner::Data(_) | Winner::Junk)), None) => value = Some(new),
            (Held::Value(new @ (Winner::Data(_) | Winner::Junk)), Some(old)) if new != old => {
                return Err(format!("replicas hold {old:?} and {new:?}"));
            }
            _ => {}
        }
    }
    Ok(match value {
        Some(value) => value.clone(),
        None if held.contains(&&Held::Unwritten) => Winner::Junk,
        None => Winner::Lost,
    })
}

fn all_held(said: &[UnitReadAnswer], body: Bytes) -> Result<Vec<Held>, String> {
    let mut body = entries(body);
    let held = said.iter().map(|answer| {
        Ok(match answer {
            UnitReadAnswer::Data { len } => Held::Value(Winner::Data(take(&mut body, *len)?)),
            UnitReadAnswer::Junk => Held::Value(Winner::Junk),
            UnitReadAnswer::Trimmed => Held::Value(Winner::Trimmed),
            UnitReadAnswer::Lost => Held::Value(Winner::Lost),
            UnitReadAnswer::Unwritten => Held::Unwritten,
            UnitReadAnswer::Pending => Held::Pending,
            UnitReadAnswer::NotMine => Held::NotMine,
        })
    });
    held.collect()
}

fn filled(
    said: Vec<(Position, WireValue)>,
    body: Bytes,
) -> Result<Vec<(Position, Winner)>, String> {
    let mut body = entries(body);
    let winners = said.into_iter().map(|(position, value)| {
        Ok(match value {
            WireValue::Data { len } => (position, Winner::Data(take(&mut body, len)?)),
            WireValue::Junk => (position, Winner::Junk),
        })
    });
    winners.collect()
}

fn entries(body: Bytes) -> Body {
    Body::of(&Message {
        header: Bytes::new(),
        body,
    })
}

fn take(body: &mut Body, len: u32) -> Result<EncodedEntry, String> {
    let bytes = body.take(len).ok_or("an answer with too few bytes")?;
    EncodedEntry::check(bytes).map_err(|error| error.to_string())
}

/// How many of `lacking` go into one write: at least one, until it is large enough.
fn chunk_len(winners: &[(Position, Winner)], lacking: &[usize]) -> usize {
    let mut bytes = 0;
    let fits = lacking.iter().take(BATCH).take_while(|index| {
        let room = bytes < WRITE_BYTES;
        if let (_, Winner::Data(entry)) = &winners[**index] {
            bytes += entry.len();
        }
        room
    });
    fits.count()
}

fn chunk(winners: &[(Position, Winner)], lacking: &[usize]) -> (Vec<(Position, WireValue)>, Bytes) {
    let mut body = BytesMut::new();
    let mut items = Vec::new();
    for index in &lacking[..chunk_len(winners, lacking)] {
        let (position, winner) = &winners[*index];
        items.push(match winner {
            Winner::Data(entry) => {
                body.extend_from_slice(entry.bytes());
                let len = u32::try_from(entry.len()).expect("an entry fits a frame");
                (*position, WireValue::Data { len })
            }
            _ => (*position, WireValue::Junk),
        });
    }
    (items, body.freeze())
}
