//! Requests with their answers, taken apart: what the invariants of the log look at.
//!
//! An exchange counts from the moment at which the server *gave* the answer, whether it arrives or not: in that order
//! a server's promises can be compared with each other.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use milonga_protocol::messages::{
    LayoutResponse, Marks, Request, Response, SequencerRequest, UnitRequest, UnitResponse,
};
use milonga_protocol::{Epoch, Layout, Position, ServerName, UnitIndex};

use super::observed::Letter;
use super::shown::{Said, Shown, shown};
use crate::world::journal::Observed;
use crate::world::plan::{FaultKind, Plan, Shape};
use crate::world::trace::Moment;

/// A request and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// When the request arrived.
    pub asked: Moment,
    /// When the answer was given.
    pub at: Moment,
    /// Who asked.
    pub client: ServerName,
    /// Who answered.
    pub server: ServerName,
    /// Which run of the server, from 1 on.
    pub run: u64,
    /// What was asked.
    pub request: Request,
    /// What was answered.
    pub response: Response,
    /// The positions that the answer speaks of.
    pub shown: Vec<Shown>,
}

impl Exchange {
    /// Takes an answer apart.
    #[must_use]
    pub fn new(
        (asked, at): (Moment, Moment),
        (client, server, run): (ServerName, ServerName, u64),
        (request, sent): (Request, Bytes),
        (response, body): (Response, Bytes),
    ) -> Self {
        let shown = shown(&request, sent, &response, body);
        Self {
            asked,
            at,
            client,
            server,
            run,
            request,
            response,
            shown,
        }
    }

    /// The epoch that the request names, if it is one to a unit or the sequencer about the log.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match &self.request {
            Request::Unit(
                UnitRequest::Write { epoch, .. }
                | UnitRequest::Fill { epoch, .. }
                | UnitRequest::Read { epoch, .. }
                | UnitRequest::ReadStreams { epoch, .. }
                | UnitRequest::Confirm { epoch }
                | UnitRequest::Trim { epoch, .. }
                | UnitRequest::Settled { epoch, .. }
                | UnitRequest::Told { epoch, .. }
                | UnitRequest::Ends { epoch, .. }
                | UnitRequest::Repair { epoch, .. }
                | UnitRequest::Lacking { epoch, .. },
            )
            | Request::Sequencer(
                SequencerRequest::Tokens { epoch, .. }
                | SequencerRequest::Tail { epoch, .. }
                | SequencerRequest::Wait { epoch, .. }
                | SequencerRequest::Trimmed { epoch, .. },
            ) => Some(*epoch),
            _ => None,
        }
    }

    /// Whether the server did what was asked.
    #[must_use]
    pub const fn is_served(&self) -> bool {
        !matches!(self.response, Response::Refused(_))
    }

    /// Whether it was served by a server that need not be in the request's epoch: reads of settled positions (rule 4).
    #[must_use]
    pub fn is_of_any_epoch(&self) -> bool {
        let Response::Unit(UnitResponse::Values { marks, .. }) = &self.response else {
            return false;
        };
        // Of what is settled even `Lost` is a word for every epoch: the reader asks another replica.
        let sure = |said: &Said| said.is_value() || matches!(said, Said::Trimmed | Said::Lost);
        let mut shown = self.shown.iter();
        shown.all(|shown| shown.position < marks.settled && sure(&shown.said))
    }

    /// Whether the reader knew before that `position` is settled.
    #[must_use]
    pub fn knows_settled(&self, position: Position) -> bool {
        match &self.request {
            Request::Unit(UnitRequest::Read { settled, .. }) => position < *settled,
            _ => false,
        }
    }

    /// Whether the answer tells what the disk held, so that the effect is older than the answer: a read, or a fill
    /// whose winners are durable and had to be read.
    #[must_use]
    pub const fn is_from_disk(&self) -> bool {
        matches!(
            &self.response,
            Response::Unit(UnitResponse::Values { .. } | UnitResponse::Filled { .. })
        )
    }

    /// Whether a unit has forgotten what it does not surely know, because it missed an epoch (rule 10).
    #[must_use]
    pub const fn has_rejoined(&self) -> bool {
        matches!(
            (&self.request, &self.response),
            (
                Request::Unit(UnitRequest::Rejoin { .. }),
                Response::Unit(UnitResponse::Done)
            )
        )
    }

    /// The marks in a unit's answer.
    #[must_use]
    pub const fn marks(&self) -> Option<Marks> {
        match &self.response {
            Response::Unit(
                UnitResponse::Written { marks, .. }
                | UnitResponse::Filled { marks, .. }
                | UnitResponse::Values { marks, .. }
                | UnitResponse::Entries { marks, .. }
                | UnitResponse::Serving { marks }
                | UnitResponse::Ends { marks, .. },
            ) => Some(*marks),
            Response::Unit(UnitResponse::Sealed(report)) => Some(report.marks),
            _ => None,
        }
    }
}

/// The exchanges of a world, and what can be learned from them.
#[derive(Debug, Default)]
pub struct Wire {
    /// Those since the last look, in the order of their answers.
    pub exchanges: Vec<Exchange>,
    /// All layouts that any server was told to enter, or that were handed out.
    pub layouts: BTreeMap<Epoch, Layout>,
    /// Servers whose disks may be damaged at some time.
    pub damaged: BTreeSet<ServerName>,
    /// When each unit forgot last what it does not surely know.
    rejoined: BTreeMap<ServerName, Moment>,
    asked: BTreeMap<(u64, ServerName), Letter>,
    runs: BTreeMap<ServerName, u64>,
}

impl Wire {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let servers = plan.shape.servers();
        let damaged = plan.faults.iter().filter_map(|fault| match fault.kind {
            FaultKind::BitRot(unit) | FaultKind::Misdirected(unit, ..) => servers.get(unit),
            _ => None,
        });
        Self {
            damaged: damaged.map(ServerName::new).collect(),
            ..Self::default()
        }
    }

    /// Takes what happened since the last look.
    pub fn take(&mut self, news: &[Observed]) {
        self.exchanges.clear();
        for observed in news {
            match observed {
                Observed::Letter(letter) => self.asked(letter),
                Observed::Answered(letter) => self.answered(letter),
                Observed::Started(_, server) => {
                    *self.runs.entry(server.clone()).or_default() += 1;
                }
                Observed::Killed(_, server) => self.asked.retain(|(_, to), _| to != server),
                _ => {}
            }
        }
    }

    fn asked(&mut self, letter: &Letter) {
        if let Some(request) = letter.request() {
            if let Request::Unit(UnitRequest::Open { layout, .. }) = &request {
                self.learn(layout);
            }
            let key = (letter.call, letter.to.clone());
            self.asked.insert(key, letter.clone());
        }
    }

    fn answered(&mut self, letter: &Letter) {
        let asked = self.asked.remove(&(letter.call, letter.from.clone()));
        let Some((asked, response)) = asked.zip(letter.response()) else {
            return;
        };
        let Some(request) = asked.request() else {
            return;
        };
        if let Response::Layout(LayoutResponse::Layout(published)) = &response {
            self.learn(&published.layout);
        }
        let run = self.runs.get(&letter.from).copied().unwrap_or_default();
        let exchange = Exchange::new(
            (asked.at, letter.at),
            (letter.to.clone(), letter.from.clone(), run),
            (request, asked.message.body),
            (response, letter.message.body.clone()),
        );
        if exchange.has_rejoined() {
            self.rejoined.insert(exchange.server.clone(), exchange.at);
        }
        self.exchanges.push(exchange);
    }

    /// Whether the answer speaks of what the unit has forgotten meanwhile: it was on its way to a reader.
    #[must_use]
    pub fn is_of_the_past(&self, exchange: &Exchange) -> bool {
        let rejoined = self.rejoined.get(&exchange.server);
        rejoined.is_some_and(|at| exchange.asked < *at && *at < exchange.at)
    }

    fn learn(&mut self, layout: &Layout) {
        let entry = self.layouts.entry(layout.epoch);
        entry.or_insert_with(|| layout.clone());
    }

    /// Whether every chain has all its replicas, back to the first position.
    #[must_use]
    pub fn is_whole(&self, shape: &Shape) -> bool {
        let newest = self.layouts.values().next_back();
        let Some([all]) = newest.map(|layout| &layout.segments[..]) else {
            return false;
        };
        let full = |chain: &Vec<UnitIndex>| chain.len() == shape.replicas;
        all.joining.is_empty() && all.chains.iter().all(full)
    }

    /// Whether nobody is being given what a chain holds.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let newest = self.layouts.values().next_back();
        newest.is_some_and(|layout| layout.segments.iter().all(|s| s.joining.is_empty()))
    }

    /// Where `server` stands in the chain of `position` in `epoch`, and how long that is.
    #[must_use]
    pub fn place(
        &self,
        epoch: Epoch,
        server: &ServerName,
        position: Position,
    ) -> Option<(usize, usize)> {
        let layout = self.layouts.get(&epoch)?;
        let chain = layout.chain(position);
        let place = chain
            .iter()
            .position(|unit| layout.unit(*unit).name == *server)?;
        Some((place, chain.len()))
    }

    /// Whether `server` is the tail of the chain of `position` in `epoch`: what that has is settled (rule 6).
    #[must_use]
    pub fn is_tail(&self, epoch: Epoch, server: &ServerName, position: Position) -> bool {
        let place = self.place(epoch, server, position);
        place.is_some_and(|(place, replicas)| place + 1 == replicas)
    }

    /// Whether `server` served `epoch` when `later` began without it.
    #[must_use]
    pub fn left_behind(&self, epoch: Epoch, server: &ServerName, later: Epoch) -> bool {
        let members = self.layouts.get(&later).map(|layout| {
            let mut members = layout.members().into_iter();
            members.any(|unit| layout.unit(unit).name == *server)
        });
        epoch < later && members == Some(false)
    }

    /// The tail of the chain of `position` in the newest epoch; `None` if that epoch began above it.
    #[must_use]
    pub fn tail_now(&self, position: Position) -> Option<&ServerName> {
        let (_, layout) = self.layouts.last_key_value()?;
        let tail = layout.chain(position).last()?;
        (!layout.is_closed(position)).then(|| &layout.unit(*tail).name)
    }

    /// Whether what was written at `position` in `epoch` is void in an epoch known by now (rule 1).
    #[must_use]
    pub fn is_void(&self, epoch: Epoch, position: Position) -> bool {
        let mut later = self.layouts.range(epoch.next()..);
        later
            .next()
            .is_some_and(|(_, layout)| position >= layout.start)
    }
}
