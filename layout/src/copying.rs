//! Giving units what they lack: those that are joining (rule 19), and replicas what they have lost. Only what is settled,
//! so nothing changes below, except by trimming.
//!
//! ```text
//! Trim --> Lacking --> Read from a replica --> Repair at the unit --.     several batches side by side
//!             ^                                                     |
//!             '------------- until a whole pass finds nothing ------'
//! ```
//!
//! The unit itself knows what it lacks, so copying goes on where it stopped, whoever of the leaders goes on; what it
//! says is durable. When nothing is lacking, the next epoch lists it. A replica says in its hello that it has lost something.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use milonga_protocol::change::CopyReport;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    Body, Request, Response, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Layout, Position, ServerName, Time, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;
use crate::phase::Errand;

/// Batches under way at once.
const WINDOW: usize = 4;
/// Positions that are asked for, and read, at once.
const ASKED: u32 = 1_024;
const BATCH: usize = 256;
/// What nobody could give is looked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A unit that gets on no more lets another one have its turn after this long.
const TURN: Duration = Duration::from_secs(2);

/// A replica that has lost something is looked through again after this long: it may be lost everywhere.
const MEND_AGAIN: Duration = Duration::from_secs(60);

/// Names a step of copying; never used twice by one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StepId(u64);

/// What one unit is being given.
#[derive(Debug)]
pub(crate) struct Copying {
    target: UnitIndex,
    /// The unit is asked from here on what it lacks; `MAX`: the pass has come to the end.
    from: Position,
    /// Whether the unit is being asked.
    asking: bool,
    /// Positions that this pass found lacking.
    lacked: usize,
    /// A position that no replica could give, in this pass and in the one before. A unit that lacks it is not listed: it
    /// would not know after a restart that it lacks anything (rule 11).
    nowhere: Option<Position>,
    nowhere_before: Option<Position>,
    /// Replicas that refused in this pass, because their disk failed and they are needed all the same, say: they are asked
    /// last, and first of them who refused longest ago.
    refused: Vec<UnitIndex>,
    waiting: VecDeque<Batch>,
    steps: BTreeMap<StepId, Step>,
    /// The mark of the replicas, and what the unit was told of it.
    trimmed: Position,
    told: Position,
    /// Nothing is begun before: the bound on bytes, or a pause.
    not_before: Time,
    /// When it got on last.
    progress_at: Time,
    entries: u64,
    bytes: u64,
    /// Everything below was given once, as far as this pass and those before got.
    given: Position,
}

/// A request under way.
#[derive(Debug)]
enum Step {
    Trim(Position),
    Ask,
    Read(Batch),
    Write(Vec<(Position, WireValue)>, Bytes),
}

/// Positions of one chain, ascending.
#[derive(Clone, Debug)]
struct Batch {
    positions: Vec<Position>,
    /// Replicas that were asked and cannot give them.
    lost_by: Vec<UnitIndex>,
    /// Who is being asked.
    source: Option<UnitIndex>,
}

impl Batch {
    fn of(positions: Vec<Position>, lost_by: Vec<UnitIndex>) -> Self {
        Self {
            positions,
            lost_by,
            source: None,
        }
    }
}

impl Copying {
    fn new(target: UnitIndex, trimmed: Position, now: Time) -> Self {
        Self {
            target,
            from: Position::ZERO,
            asking: false,
            lacked: 0,
            nowhere: None,
            nowhere_before: None,
            refused: Vec::new(),
            waiting: VecDeque::new(),
            steps: BTreeMap::new(),
            trimmed,
            told: Position::ZERO,
            not_before: now,
            progress_at: now,
            entries: 0,
            bytes: 0,
            given: Position::ZERO,
        }
    }

    /// Below which nothing waits to be given any more.
    fn below(&self) -> Position {
        let under_way = self.steps.values().filter_map(|step| match step {
            Step::Read(batch) => batch.positions.first().copied(),
            Step::Write(items, _) => items.first().map(|(position, _)| *position),
            Step::Trim(_) | Step::Ask => None,
        });
        let waiting = self.waiting.iter();
        let waiting = waiting.filter_map(|batch| batch.positions.first().copied());
        under_way.chain(waiting).fold(self.from, Position::min)
    }

    /// What can be begun now.
    fn next_step(&mut self, now: Time) -> Option<Step> {
        if self.trimmed > self.told {
            self.told = self.trimmed;
            return Some(Step::Trim(self.trimmed));
        }
        let trims = |step: &Step| matches!(step, Step::Trim(_));
        if now < self.not_before || self.steps.values().any(trims) {
            return None;
        }
        let under_way = self.steps.len() - usize::from(self.asking);
        if under_way < WINDOW
            && let Some(batch) = self.waiting.pop_front()
        {
            return Some(Step::Read(batch));
        }
        let more = self.from < Position::MAX && self.waiting.len() < WINDOW;
        (more && !self.asking).then(|| {
            self.asking = true;
            Step::Ask
        })
    }

    fn pass_is_over(&self) -> bool {
        self.from == Position::MAX && self.waiting.is_empty() && self.steps.is_empty()
    }

    /// Begins another pass. Answers to what is under way are ignored.
    fn begin_again(&mut self) {
        self.given = self.given.max(self.below());
        self.from = Position::ZERO;
        self.asking = false;
        self.lacked = 0;
        self.refused.clear();
        self.waiting.clear();
        self.steps.clear();
        self.nowhere_before = self.nowhere.take();
    }

    /// Who is asked for `position`: the tail, which has the least to do; who refused comes last, and who lost it is not asked.
    fn source(
        &self,
        layout: &Layout,
        position: Position,
        lost_by: &[UnitIndex],
    ) -> Option<UnitIndex> {
        let chain = layout.chain(position).iter().rev().copied();
        let may = chain.filter(|unit| *unit != self.target && !lost_by.contains(unit));
        may.min_by_key(|unit| self.refused.iter().position(|refused| refused == unit))
    }

    fn source_of(&self, layout: &Layout, batch: &Batch) -> Option<UnitIndex> {
        let first = *batch.positions.first()?;
        self.source(layout, first, &batch.lost_by)
    }

    /// Takes what the unit lacks.
    fn lacks(&mut self, layout: &Layout, mut positions: Vec<Position>, through: Position) {
        self.asking = false;
        self.from = through;
        if plants::active(Plant::CopyEndsTooEarly) {
            let ends = |p: &Position| layout.end_of(layout.segment_of(*p)) == p.next();
            positions.retain(|p| !ends(p));
        }
        self.lacked += positions.len();
        positions.retain(|position| {
            let nobody = self.source(layout, *position, &[]).is_none();
            if nobody {
                self.nowhere = self.nowhere.or(Some(*position));
            }
            !nobody
        });
        let mut chains: BTreeMap<(usize, usize), Vec<Position>> = BTreeMap::new();
        for position in positions {
            let segment = layout.segment_of(position);
            let chain = layout.segments[segment].chain_of(position);
            chains.entry((segment, chain)).or_default().push(position);
        }
        let batches = chains.values().flat_map(|of_chain| of_chain.chunks(BATCH));
        let batches = batches.map(|positions| Batch::of(positions.to_vec(), Vec::new()));
        self.waiting.extend(batches);
    }

    /// Takes what a replica has of `batch`; what is to be written.
    fn read(
        &mut self,
        batch: &Batch,
        layout: &Layout,
        answers: &[UnitReadAnswer],
        body: Bytes,
    ) -> Result<(Vec<(Position, WireValue)>, Bytes), String> {
        if answers.is_empty() || answers.len() > batch.positions.len() {
            return Err("an answer about other positions".into());
        }
        let header = Bytes::new();
        let mut body = Body::of(&Message { header, body });
        let (mut items, mut data) = (Vec::new(), BytesMut::new());
        let mut missing = Vec::new();
        for (position, answer) in batch.positions.iter().zip(answers) {
            match answer {
                UnitReadAnswer::Data { len } => {
                    let bytes = body.take(*len).ok_or("an answer with too few bytes")?;
                    data.extend_from_slice(&bytes);
                    items.push((*position, WireValue::Data { len: *len }));
                }
                UnitReadAnswer::Junk if plants::active(Plant::JunkNotCopied) => self.lacked -= 1,
                UnitReadAnswer::Junk => items.push((*position, WireValue::Junk)),
                UnitReadAnswer::Trimmed => {}
                UnitReadAnswer::Lost
                | UnitReadAnswer::Unwritten
                | UnitReadAnswer::Pending
                | UnitReadAnswer::NotMine => missing.push(*position),
            }
        }
        // An answer stops early where it would be too large.
        let rest = batch.positions[answers.len()..].to_vec();
        self.put_back(Batch::of(rest, batch.lost_by.clone()));
        let mut lost_by = batch.lost_by.clone();
        lost_by.extend(batch.source);
        let missing = Batch::of(missing, lost_by);
        if self.source_of(layout, &missing).is_some() {
            self.put_back(missing);
        } else {
            self.nowhere = self.nowhere.or_else(|| missing.positions.first().copied());
        }
        Ok((items, data.freeze()))
    }

    fn put_back(&mut self, batch: Batch) {
        if !batch.positions.is_empty() {
            self.waiting.push_front(batch);
        }
    }
}

impl LayoutCore {
    /// Goes on with copying, or begins with it, if there is anything to be copied.
    pub(crate) fn copy_on(&mut self) {
        let now = self.now;
        self.end_turn();
        if self.copying.is_none() {
            let Some((_, target)) = self.next_target().filter(|(at, _)| *at <= now) else {
                return;
            };
            let aside = self.copying_aside.remove(&target);
            let mut copying = aside.unwrap_or_else(|| Copying::new(target, self.trimmed, now));
            copying.progress_at = now;
            self.copying = Some(copying);
        }
        while let Some(copying) = &mut self.copying
            && let Some(step) = copying.next_step(now)
        {
            self.begin_step(step);
        }
        let Some(copying) = self.copying.as_mut().filter(|c| c.pass_is_over()) else {
            return;
        };
        let (target, lacked) = (copying.target, copying.lacked > 0);
        let nowhere = copying.nowhere.is_some();
        copying.begin_again();
        let joins = self.is_joining(target);
        if lacked && !nowhere {
            return self.copy_on();
        }
        if !joins {
            // What nobody has is lost; who settles tells so.
            self.copying = None;
            self.mended.insert(target, now);
            return self.copy_on();
        }
        if lacked {
            self.put_aside();
            return self.copy_on();
        }
        self.copying = None;
        self.copied.insert(target);
        let name = self.unit_name(target).clone();
        self.gather(format!("{name} has got everything"));
    }

    fn is_joining(&self, unit: UnitIndex) -> bool {
        let layout = self.history.current();
        layout.is_some_and(|layout| algebra::joining(layout).any(|joining| joining == unit))
    }

    /// A unit that cannot take what it lacks does not keep it from others.
    fn end_turn(&mut self) {
        let now = self.now;
        let stuck = |c: &&mut Copying| c.not_before.max(c.progress_at).after(TURN) <= now;
        if let Some(copying) = self.copying.as_mut().filter(stuck) {
            copying.begin_again();
            self.put_aside();
        }
    }

    fn put_aside(&mut self) {
        if let Some(mut copying) = self.copying.take() {
            copying.not_before = self.now.after(LOOK_AGAIN);
            self.copying_aside.insert(copying.target, copying);
        }
    }

    fn begin_step(&mut self, step: Step) {
        let id = StepId(self.next_step);
        self.next_step += 1;
        if let Some(copying) = &mut self.copying {
            copying.steps.insert(id, step);
            self.send(Errand::Copy(id), 0);
        }
    }

    /// Who is copied to next, and when: whoever had no turn yet, then who had one longest ago.
    fn next_target(&self) -> Option<(Time, UnitIndex)> {
        let layout = self.history.current()?;
        let lacking = algebra::joining(layout).filter(|unit| !self.copied.contains(unit));
        let turn = |unit| {
            let aside = self.copying_aside.get(&unit);
            (aside.map_or_else(Time::default, |c| c.not_before), unit)
        };
        lacking.map(turn).chain(self.damaged()).min()
    }

    /// Replicas that have lost something, and when they are looked through.
    fn damaged(&self) -> impl Iterator<Item = (Time, UnitIndex)> {
        let damaged = |unit: &UnitIndex| {
            let hello = self.heard.last(self.unit_name(*unit));
            let hello = hello.and_then(|hello| hello.unit);
            let mends = !plants::active(Plant::NotRepaired);
            let damaged = hello.is_some_and(|unit| unit.damaged && !unit.poisoned);
            damaged && mends && !self.is_joining(*unit)
        };
        let when = |unit| {
            let aside = self.copying_aside.get(&unit).map(|c| c.not_before);
            let mended = self.mended.get(&unit).map(|at| at.after(MEND_AGAIN));
            (aside.max(mended).unwrap_or_default(), unit)
        };
        self.members().into_iter().filter(damaged).map(when)
    }

    /// Whether any replica says that it has lost something, or says nothing.
    pub(crate) fn is_damaged(&self) -> bool {
        self.members().into_iter().any(|unit| {
            let hello = self.heard.last(self.unit_name(unit));
            let hello = hello.and_then(|hello| hello.unit);
            hello.is_none_or(|unit| unit.damaged)
        })
    }

    /// When copying can go on.
    pub(crate) fn copy_at(&self) -> Option<Time> {
        let Some(copying) = &self.copying else {
            return self.next_target().map(|(at, _)| at);
        };
        let turn_ends = copying.not_before.max(copying.progress_at).after(TURN);
        let begins = copying.not_before > self.now
            || copying.from == Position::ZERO && copying.steps.is_empty();
        Some(if begins {
            copying.not_before
        } else {
            turn_ends
        })
    }

    /// Before a step is sent, for the first time or again: whom to ask.
    pub(crate) fn before_copy(&mut self, step: StepId) {
        let (Some(layout), Some(copying)) = (self.history.current(), &mut self.copying) else {
            return;
        };
        let Some(mut taken) = copying.steps.remove(&step) else {
            return;
        };
        if let Step::Read(batch) = &mut taken {
            batch.source = copying.source_of(layout, batch);
        }
        copying.steps.insert(step, taken);
    }

    /// Who is asked to do a step; nobody if it is under way no more.
    pub(crate) fn whom_to_copy(&self, step: StepId) -> Option<ServerName> {
        let copying = self.copying.as_ref()?;
        let unit = match copying.steps.get(&step)? {
            Step::Read(batch) => batch.source?,
            Step::Trim(_) | Step::Ask | Step::Write(..) => copying.target,
        };
        Some(self.unit_name(unit).clone())
    }

    pub(crate) fn copy_request(&self, step: StepId) -> Option<(ServerName, Request, Bytes)> {
        let copying = self.copying.as_ref()?;
        let (epoch, settled) = (self.history.epoch(), Position::ZERO);
        let mut raw = Bytes::new();
        let request = match copying.steps.get(&step)? {
            Step::Trim(below) => UnitRequest::Trim {
                epoch,
                below: *below,
            },
            Step::Ask => UnitRequest::Lacking {
                epoch,
                from: copying.from,
                limit: ASKED,
            },
            Step::Read(batch) => UnitRequest::Read {
                epoch,
                settled,
                positions: batch.positions.clone(),
            },
            Step::Write(items, body) => {
                raw = body.clone();
                let items = items.clone();
                UnitRequest::Repair {
                    epoch,
                    settled,
                    items,
                }
            }
        };
        Some((self.whom_to_copy(step)?, Request::Unit(request), raw))
    }

    /// Takes an answer; an error, in words, has the step repeated.
    pub(crate) fn copy_answered(
        &mut self,
        id: StepId,
        response: Response,
        body: Bytes,
    ) -> Result<(), String> {
        let step = self.copying.as_mut().and_then(|c| c.steps.remove(&id));
        let Some(step) = step else {
            return Ok(());
        };
        let refused = matches!(response, Response::Refused(_));
        let result = match response {
            Response::Unit(response) => self.copy_step_done(&step, response, body),
            Response::Refused(refusal) => Err(refusal.to_string()),
            other => Err(format!("an answer that does not fit: {other:?}")),
        };
        if let Some(copying) = &mut self.copying {
            match &result {
                Ok(()) => copying.progress_at = self.now,
                Err(_) => {
                    if let Step::Read(batch) = &step
                        && let Some(source) = batch.source.filter(|_| refused)
                    {
                        copying.refused.retain(|unit| *unit != source);
                        copying.refused.push(source);
                    }
                    copying.steps.insert(id, step);
                }
            }
        }
        if result.is_ok() {
            self.care();
        }
        result
    }

    fn copy_step_done(
        &mut self,
        step: &Step,
        response: UnitResponse,
        body: Bytes,
    ) -> Result<(), String> {
        let limit = self.plan.copy_bytes_per_second;
        let (now, layout) = (self.now, self.history.current());
        let (Some(copying), Some(layout)) = (&mut self.copying, layout) else {
            return Ok(());
        };
        match (step, response) {
            (Step::Trim(_), UnitResponse::Trimmed { .. }) => Ok(()),
            (Step::Ask, UnitResponse::Lacking { positions, through }) => {
                if through <= copying.from {
                    return Err("an answer that does not get on".into());
                }
                copying.lacks(layout, positions, through);
                Ok(())
            }
            (Step::Read(batch), UnitResponse::Values { answers, marks }) => {
                copying.trimmed = copying.trimmed.max(marks.trimmed);
                let (items, body) = copying.read(batch, layout, &answers, body)?;
                if !items.is_empty() {
                    self.begin_step(Step::Write(items, body));
                }
                Ok(())
            }
            (Step::Write(items, body), UnitResponse::Written { answers, .. }) => {
                let done =
                    |a: &WriteAnswer| matches!(a, WriteAnswer::Durable | WriteAnswer::Trimmed);
                if let Some(answer) = answers.iter().find(|answer| !done(answer)) {
                    return Err(format!("the unit answers {answer:?}"));
                }
                let bytes = body.len() as u64;
                copying.entries += items.len() as u64;
                copying.bytes += bytes;
                if let Some(limit) = limit {
                    let micros = bytes.saturating_mul(1_000_000) / limit.max(1);
                    let from = copying.not_before.max(now);
                    copying.not_before = from.after(Duration::from_micros(micros));
                }
                Ok(())
            }
            (_, other) => Err(format!("an answer that does not fit: {other:?}")),
        }
    }

    /// What is being copied, for people.
    pub(crate) fn facts_of_copying(&self) -> Option<String> {
        let all = self.copying.iter().chain(self.copying_aside.values());
        let words: Vec<_> = all.map(|copying| self.fact_of(copying)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }

    /// What is being copied, for operators.
    pub(crate) fn copies(&self) -> Vec<CopyReport> {
        let end = self.history.current().map_or(Position::ZERO, |l| l.start);
        let all = self.copying.iter().chain(self.copying_aside.values());
        let report = |copying: &Copying| CopyReport {
            unit: self.unit_name(copying.target).clone(),
            entries: copying.entries,
            bytes: copying.bytes,
            below: copying.given.max(copying.below()).min(end),
            end,
        };
        all.map(report).collect()
    }

    fn fact_of(&self, copying: &Copying) -> String {
        let name = self.unit_name(copying.target);
        let (entries, mb) = (copying.entries, copying.bytes / 1_000_000);
        let mut words = format!("{name} has got {entries} entries ({mb} MB)");
        let below = copying.below();
        if below < Position::MAX {
            words.push_str(&format!(", complete below {below}"));
        }
        if let Some(position) = copying.nowhere.or(copying.nowhere_before) {
            words.push_str(&format!(
                ", {position} is lost on every replica: `milonga log fill --give-up-lost` gives it up"
            ));
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_does_not_run_ahead_and_never_falls() {
        let batch = |position| {
            let positions = vec![Position(position), Position(position + 2)];
            Batch::of(positions, Vec::new())
        };
        let mut copying = Copying::new(UnitIndex(0), Position::ZERO, Time::default());
        copying.from = Position(100);
        copying.waiting.push_back(batch(40));
        copying.steps.insert(StepId(1), Step::Ask);
        copying.steps.insert(StepId(2), Step::Read(batch(20)));
        assert_eq!(copying.below(), Position(20));
        copying.steps.clear();
        assert_eq!(copying.below(), Position(40));
        copying.waiting.clear();
        assert_eq!(copying.below(), Position(100));
        copying.begin_again();
        assert_eq!(
            (copying.below(), copying.given),
            (Position(0), Position(100))
        );
    }
}
