//! Settling: finds out what undecided positions hold for ever, and makes every replica hold it.
//!
//! Clients run it for holes and for their own appends of unknown outcome, the layout's leader for everything below
//! the start of a new epoch. Pure: sends come out, outcomes go in.
//!
//! ```text
//! position < layout.start  (closed, rules 9 and 11)       position >= layout.start  (active, rules 7 and 8)
//!   Read from every replica                                 Fill at the head
//!   any Data or Junk wins; else one says Unwritten: junk;    carry the winner down the chain,
//!   Lost on all: reported                                    each replica durable before the next
//!   Write to whoever lacks it, head first, each durable before the next
//! ```
//!
//! Any number of settlers may work on the same positions at once, die in the middle and begin again: below `start`
//! the values are frozen, so all decide alike, and above it the head decides.

mod lane;
mod work;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::entry::EncodedEntry;
use crate::ids::{Epoch, Position};
use crate::layout::{Layout, UnitIndex};
use crate::messages::{Refusal, Response, UnitRequest};

use lane::{Lane, Progress};
use work::Work;

/// Ties an outcome to the send it belongs to; unique within one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId(pub u64);

/// What came of a send: the answer with its raw bytes, or in words why there is none. Without an answer the request
/// may or may not have been served.
pub type SendOutcome = Result<(Response, Bytes), String>;

/// A request that the host of a [`Settle`] is to send to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleSend {
    /// To be given back to [`Settle::handle`].
    pub id: SendId,
    /// Whom.
    pub unit: UnitIndex,
    /// What.
    pub request: UnitRequest,
    /// The raw bytes that go with it.
    pub body: Bytes,
}

/// What a position holds for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Winner {
    /// This entry, durable on every replica.
    Data(EncodedEntry),
    /// Junk, durable on every replica.
    Junk,
    /// It was trimmed: nobody can say what it held.
    Trimmed,
    /// Below the epoch's start: no replica can give it and none says it was never written; only an operator can
    /// turn it into junk. At or above: the active head has lost it, and only a new epoch can judge it (rule 11).
    Lost,
}

/// How settling ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettleEnd {
    /// Every position has its [`Winner`].
    Settled,
    /// A unit does not serve this epoch: learn the next layout and settle by that.
    EpochOver,
    /// Two replicas hold different values, or a unit disowns its position: an invariant is broken, and nothing
    /// more was changed.
    Broken {
        /// Who.
        unit: UnitIndex,
        /// Where.
        position: Position,
        /// What.
        why: String,
    },
}

/// Settles positions of one layout. Drive it so:
///
/// * send whatever [`Self::poll_send`] gives and feed each outcome to [`Self::handle`], in any order;
/// * a send that failed waits in [`Self::waiting`] until [`Self::retry`]: when, and how often, is the caller's policy;
/// * take the winners with [`Self::take_winners`], during or after; stop when [`Self::end`] says so.
///
/// Chains proceed in parallel, one batch each.
#[derive(Debug)]
pub struct Settle {
    lanes: Vec<Lane>,
    sends: VecDeque<SettleSend>,
    in_flight: BTreeMap<SendId, Asked>,
    waiting: Vec<(Asked, String)>,
    next_send: u64,
    winners: Vec<(Position, Winner)>,
    end: Option<SettleEnd>,
}

/// Which question of which lane a send carries.
#[derive(Clone, Copy, Debug)]
struct Asked {
    lane: usize,
    place: usize,
    /// The lane's step at that time: answers to an abandoned step are ignored.
    step: u64,
    unit: UnitIndex,
}

impl Settle {
    /// Settles every position in `from..to`. The range must have been granted: what is free becomes junk.
    #[must_use]
    pub fn new(layout: &Layout, from: Position, to: Position) -> Self {
        let mut lanes = Vec::new();
        for index in 0..layout.segments.len() {
            for (chain, range) in layout.ranges(index).enumerate() {
                for closed in [true, false] {
                    let (low, high) = side(layout, closed);
                    let work = Work::range(range, from.max(low), to.min(high));
                    if !work.is_empty() {
                        let units = layout.segments[index].chains[chain].clone();
                        lanes.push(Lane::new(layout.epoch, units, closed, work));
                    }
                }
            }
        }
        Self::with_lanes(lanes)
    }

    /// Settles some positions (ascending). They must have been granted: what is free becomes junk.
    #[must_use]
    pub fn positions(layout: &Layout, positions: impl IntoIterator<Item = Position>) -> Self {
        Self::lanes_of(layout, positions, false)
    }

    fn lanes_of(
        layout: &Layout,
        positions: impl IntoIterator<Item = Position>,
        gives_up: bool,
    ) -> Self {
        let mut lanes: BTreeMap<(usize, usize, bool), Work> = BTreeMap::new();
        for position in positions {
            let index = layout.segment_of(position);
            let chain = layout.segments[index].chain_of(position);
            let closed = layout.is_closed(position);
            if let Some(work) = lanes.get_mut(&(index, chain, closed)) {
                work.add(position);
            } else if let Some(range) = layout.ranges(index).nth(chain) {
                let work = Work::range(range, position, position.next());
                lanes.insert((index, chain, closed), work);
            }
        }
        let lanes = lanes.into_iter().map(|((index, chain, closed), work)| {
            let segment = &layout.segments[index];
            let units = segment.chains[chain].clone();
            if gives_up {
                let of_chain = segment
                    .joining
                    .iter()
                    .filter(|j| usize::from(j.chain) == chain);
                let joining = of_chain.map(|j| j.unit).collect();
                Lane::giving_up(layout.epoch, units, joining, work)
            } else {
                Lane::new(layout.epoch, units, closed, work)
            }
        });
        Self::with_lanes(lanes.collect())
    }

    /// Settles some positions (ascending) of the closed part, and turns those into junk that every replica has lost:
    /// an operator has decided that nobody will find them again (rule 11). What any replica still has stays, and what a unit
    /// has that is joining.
    #[must_use]
    pub fn giving_up(layout: &Layout, positions: impl IntoIterator<Item = Position>) -> Self {
        let closed = positions.into_iter().filter(|p| layout.is_closed(*p));
        Self::lanes_of(layout, closed, true)
    }

    fn with_lanes(lanes: Vec<Lane>) -> Self {
        let mut settle = Self {
            sends: VecDeque::new(),
            in_flight: BTreeMap::new(),
            waiting: Vec::new(),
            next_send: 0,
            winners: Vec::new(),
            end: lanes.is_empty().then_some(SettleEnd::Settled),
            lanes,
        };
        for lane in 0..settle.lanes.len() {
            settle.ask_all(lane);
        }
        settle
    }

    /// The next request to send. Nothing more comes after the end.
    pub fn poll_send(&mut self) -> Option<SettleSend> {
        self.sends.pop_front()
    }

    /// Takes the outcome of a send; an unknown id is ignored.
    pub fn handle(&mut self, id: SendId, outcome: SendOutcome) {
        let Some(asked) = self.in_flight.remove(&id) else {
            return;
        };
        let lane = &mut self.lanes[asked.lane];
        if self.end.is_some() || lane.step_number() != asked.step {
            return;
        }
        let progress = match outcome {
            Ok((Response::Unit(response), body)) => lane.handle(asked.place, response, body),
            Ok((Response::Refused(Refusal::Sealed { .. } | Refusal::NotYet { .. }), _)) => {
                return self.finish(SettleEnd::EpochOver);
            }
            Ok((Response::Refused(refusal), _)) => {
                if matches!(refusal, Refusal::Busy { .. }) {
                    lane.smaller();
                }
                Progress::Trouble(refusal.to_string())
            }
            Ok(_) => Progress::Trouble("an answer of another role".into()),
            Err(why) => Progress::Trouble(why),
        };
        self.apply(asked, progress);
    }

    /// Sends again, under new ids, what failed.
    pub fn retry(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].begin_again() {
                self.ask_all(lane);
            }
        }
        for (asked, _) in waiting {
            if self.lanes[asked.lane].step_number() == asked.step {
                self.ask(asked.lane, asked.place);
            }
        }
    }

    /// The units whose requests failed and wait for [`Self::retry`], and why.
    pub fn waiting(&self) -> impl Iterator<Item = (UnitIndex, &str)> {
        self.waiting
            .iter()
            .map(|(asked, why)| (asked.unit, why.as_str()))
    }

    /// Whether a replica may wait to be told what is settled: it takes nothing far above the mark that it knows (rule 5).
    #[must_use]
    pub fn may_be_too_far(&self) -> bool {
        let too_far = [lane::TOO_FAR, lane::FILLS_NOTHING];
        self.waiting().any(|(_, why)| too_far.contains(&why))
    }

    /// Winners found since the last call, ascending within each chain.
    pub fn take_winners(&mut self) -> Vec<(Position, Winner)> {
        std::mem::take(&mut self.winners)
    }

    /// How it ended; `None` while under way.
    #[must_use]
    pub const fn end(&self) -> Option<&SettleEnd> {
        self.end.as_ref()
    }

    fn apply(&mut self, asked: Asked, progress: Progress) {
        match progress {
            Progress::Wait => {}
            Progress::Trouble(why) => self.waiting.push((asked, why)),
            Progress::Next(winners) => {
                self.winners.extend(winners);
                self.ask_all(asked.lane);
            }
            Progress::Broken { position, why } => {
                let unit = asked.unit;
                self.finish(SettleEnd::Broken {
                    unit,
                    position,
                    why,
                });
            }
        }
        if self.end.is_none() && self.lanes.iter().all(Lane::is_done) {
            self.finish(SettleEnd::Settled);
        }
    }

    fn finish(&mut self, end: SettleEnd) {
        self.end = Some(end);
        self.sends.clear();
        self.in_flight.clear();
        self.waiting.clear();
    }

    fn ask_all(&mut self, lane: usize) {
        for place in self.lanes[lane].places() {
            self.ask(lane, place);
        }
    }

    fn ask(&mut self, lane: usize, place: usize) {
        let id = SendId(self.next_send);
        self.next_send += 1;
        let asked = Asked {
            lane,
            place,
            step: self.lanes[lane].step_number(),
            unit: self.lanes[lane].unit(place),
        };
        if let Some((request, body)) = self.lanes[lane].ask(place) {
            self.in_flight.insert(id, asked);
            self.sends.push_back(SettleSend {
                id,
                unit: asked.unit,
                request,
                body,
            });
        }
    }
}

/// The positions that are closed, or those that are active.
fn side(layout: &Layout, closed: bool) -> (Position, Position) {
    if closed {
        (Position::ZERO, layout.start)
    } else {
        (layout.start, Position::MAX)
    }
}

/// What every request of one lane carries.
#[derive(Clone, Copy, Debug)]
struct Stamp(Epoch);

impl Stamp {
    /// The settler does not know the chains' marks: it raises none.
    const fn read(self, positions: Vec<Position>) -> UnitRequest {
        UnitRequest::Read {
            epoch: self.0,
            settled: Position::ZERO,
            positions,
        }
    }

    const fn fill(self, from: Position, to: Position) -> UnitRequest {
        UnitRequest::Fill {
            epoch: self.0,
            from,
            to,
        }
    }

    const fn write(self, items: Vec<(Position, crate::messages::WireValue)>) -> UnitRequest {
        UnitRequest::Write {
            epoch: self.0,
            settled: Position::ZERO,
            items,
        }
    }
}
