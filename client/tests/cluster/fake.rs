//! A model of a cluster in memory, behind the network trait: a sequencer, units in chains, a layout, and faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::env::BoxFuture;
use milonga_protocol::frame::Message;
use milonga_protocol::layout::{SequencerRef, UnitRange};
use milonga_protocol::messages::{
    Body, LayoutRequest, LayoutResponse, Lease, Marks, Refusal, Request, Response,
    SequencerRequest, SequencerResponse, TailAnswer, Token, UnitReadAnswer, UnitRequest,
    UnitResponse, WireValue, WriteAnswer,
};
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits,
    ListEnd, Position, Published, Redundancy, Segment, SharedEnv, StreamId, StreamLink, Time,
    UnitId, UnitIndex, UnitRef, WriterId,
};
use milonga_transport::{CallError, Network, Peer, SharedNetwork, TokioEnv};
use tokio::sync::Notify;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Not served; the connection is lost.
    LoseRequest,
    /// Served; the connection is lost before the answer.
    LoseReply,
    /// Not served; nothing is heard until the deadline.
    Silence,
    /// Nothing is sent.
    Unreachable,
    /// Served after this long.
    Delay(Duration),
}

type FaultFn = dyn Fn(&Peer, &Request) -> Fault + Send + Sync;

pub(crate) struct Fake {
    pub(crate) env: SharedEnv,
    world: Mutex<World>,
    changed: Notify,
}

pub(crate) struct World {
    pub(crate) published: Published,
    pub(crate) sequencer: Sequencer,
    pub(crate) units: Vec<Unit>,
    pub(crate) faults: Option<Arc<FaultFn>>,
    /// Every request that was served, with the server's name.
    pub(crate) served: Vec<(String, Request)>,
    pub(crate) lease: Lease,
    /// A reported epoch is replaced at once.
    pub(crate) heal: bool,
    /// What the layout was told that is given up.
    pub(crate) given_up: Vec<(Position, Position)>,
}

#[derive(Default)]
pub(crate) struct Sequencer {
    pub(crate) next: Position,
    pub(crate) trimmed: Position,
    heads: BTreeMap<StreamId, BackPointers>,
    pub(crate) sealed: bool,
    epoch: Epoch,
}

#[derive(Clone, Debug)]
pub(crate) enum Held {
    Data(EncodedEntry),
    Junk,
    Lost,
}

#[derive(Default)]
pub(crate) struct Unit {
    pub(crate) held: BTreeMap<Position, Held>,
    pub(crate) trimmed: Position,
    pub(crate) sealed: bool,
    pub(crate) full: bool,
    epoch: Epoch,
    ranges: Vec<UnitRange>,
    pub settled: Position,
    start: Position,
    ahead: u64,
}

impl Fake {
    /// `chains` chains of `replicas` units.
    pub(crate) fn new(chains: usize, replicas: usize) -> Arc<Self> {
        Self::with(chains, replicas, Limits::default())
    }

    pub(crate) fn with(chains: usize, replicas: usize, limits: Limits) -> Arc<Self> {
        let env: SharedEnv = TokioEnv::seeded(7);
        let index = |n: usize| UnitIndex(u16::try_from(n).expect("few units"));
        let units: Vec<_> = (0..chains * replicas)
            .map(|n| UnitRef {
                name: unit_name(n / replicas, n % replicas).as_str().into(),
                id: UnitId(n as u128 + 1),
            })
            .collect();
        let chain = |c| (0..replicas).map(|r| index(c * replicas + r)).collect();
        let layout = Layout {
            cluster: ClusterId(1),
            epoch: Epoch::NONE,
            start: Position::ZERO,
            starts: Vec::new(),
            segments: vec![Segment::new(
                Position::ZERO,
                Position::ZERO,
                (0..chains).map(chain).collect(),
            )],
            units,
            redundancy: Redundancy::of(2),
            sequencer: SequencerRef {
                name: "sequencer-1".into(),
                incarnation: Incarnation(1),
            },
            limits,
        };
        let names = layout.units.iter().map(|unit| unit.name.clone());
        let names = names.chain([layout.sequencer.name.clone()]);
        let addresses = names.map(|n| (n.clone(), n.to_string())).collect();
        let units = layout.units.iter().map(|_| Unit::default()).collect();
        let mut world = World {
            published: Published { layout, addresses },
            sequencer: Sequencer::default(),
            units,
            faults: None,
            served: Vec::new(),
            lease: Lease::None,
            heal: true,
            given_up: Vec::new(),
        };
        world.reconfigure();
        Arc::new(Self {
            env,
            world: Mutex::new(world),
            changed: Notify::new(),
        })
    }

    pub(crate) fn network(self: &Arc<Self>) -> SharedNetwork {
        Arc::new(Link(Arc::clone(self)))
    }

    pub(crate) fn layout_servers() -> Vec<Peer> {
        vec![Peer {
            name: "layout-1".into(),
            address: "layout-1".into(),
        }]
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panics inside")
    }

    pub(crate) fn faults(&self, faults: impl Fn(&Peer, &Request) -> Fault + Send + Sync + 'static) {
        self.world().faults = Some(Arc::new(faults));
    }

    pub(crate) fn no_faults(&self) {
        self.world().faults = None;
    }

    /// Seals everything and opens the next epoch, as a leader does, without settling anything.
    pub(crate) fn reconfigure(&self) {
        self.world().reconfigure();
        self.changed.notify_waiters();
    }

    /// Seals everything; nothing is opened.
    pub(crate) fn seal(&self) {
        let mut world = self.world();
        world.sequencer.sealed = true;
        for unit in &mut world.units {
            unit.sealed = true;
        }
    }

    /// Takes a token as a client that dies before it writes.
    pub(crate) fn take_token(&self, streams: &[StreamId]) -> Token {
        let token = self.world().sequencer.grant(streams);
        self.changed.notify_waiters();
        token
    }

    /// Writes the value of a token to the first `replicas` of its chain: whether the head took it.
    pub(crate) fn write(&self, token: &Token, payload: &[u8], replicas: usize) -> bool {
        let entry = Entry {
            id: EntryId {
                writer: WriterId(99),
                sequence: token.position.0,
            },
            links: token.links.clone(),
            payload: Bytes::copy_from_slice(payload),
        };
        let entry = EncodedEntry::encode(token.position, &entry, false);
        let mut world = self.world();
        let chain = world.published.layout.chain(token.position).to_vec();
        let mut taken = true;
        for unit in chain.into_iter().take(replicas) {
            let unit = &mut world.units[usize::from(unit.0)];
            taken = taken && unit.put(token.position, Held::Data(entry.clone()));
        }
        drop(world);
        self.changed.notify_waiters();
        taken
    }

    /// The values of a position, head first.
    pub(crate) fn held(&self, position: Position) -> Vec<Option<Held>> {
        let world = self.world();
        let chain = world.published.layout.chain(position).iter();
        chain
            .map(|u| world.units[usize::from(u.0)].held.get(&position).cloned())
            .collect()
    }

    /// Damages a position at these places of its chain; `false` if nothing is there.
    pub(crate) fn lose(&self, position: Position, places: impl Fn(usize) -> bool) -> bool {
        let mut world = self.world();
        let chain = world.published.layout.chain(position).to_vec();
        let mut found = false;
        for (place, unit) in chain.into_iter().enumerate().filter(|(p, _)| places(*p)) {
            let held = &mut world.units[usize::from(unit.0)].held;
            found |= place == 0 || held.contains_key(&position);
            held.insert(position, Held::Lost);
        }
        found
    }

    /// How many requests were served that `what` accepts.
    pub(crate) fn served(&self, what: impl Fn(&Request) -> bool) -> usize {
        let world = self.world();
        world.served.iter().filter(|(_, r)| what(r)).count()
    }

    async fn call(
        self: Arc<Self>,
        to: Peer,
        message: Message,
        deadline: Time,
    ) -> Result<Message, CallError> {
        let peer = to.to_string();
        let request = Request::decode(&message).expect("clients send requests");
        let faults = self.world().faults.clone();
        let fault = faults.map_or(Fault::None, |faults| faults(&to, &request));
        let mut trip = Duration::from_micros(100);
        match fault {
            Fault::Silence => {
                self.env.sleep_until(deadline).await;
                return Err(CallError::TimedOut { peer, sent: true });
            }
            Fault::Unreachable => {
                let why = "no route".into();
                return Err(CallError::Unreachable { peer, why });
            }
            Fault::Delay(delay) => trip = delay,
            _ => {}
        }
        self.env.sleep(trip).await;
        let lost = CallError::Dropped {
            peer: peer.clone(),
            why: "lost".into(),
        };
        if fault == Fault::LoseRequest {
            return Err(lost);
        }
        let (response, body) = tokio::select! {
            biased;
            answer = self.serve(&to, &request, message.body) => answer,
            () = self.env.sleep_until(deadline) => {
                return Err(CallError::TimedOut { peer, sent: true });
            }
        };
        if fault == Fault::LoseReply {
            return Err(lost);
        }
        Ok(response.into_message(body))
    }

    /// Serves a request; long polls look again whenever something has changed.
    async fn serve(&self, to: &Peer, request: &Request, body: Bytes) -> (Response, Bytes) {
        let until = self.env.now().after(wait_of(request));
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let answer = {
                let mut world = self.world();
                let last = self.env.now() >= until;
                let answer = world.serve(to, request, body.clone(), last);
                if answer.is_some() {
                    let served = (to.name.to_string(), request.clone());
                    world.served.push(served);
                }
                answer
            };
            if let Some(answer) = answer {
                if !matches!(request, Request::Unit(UnitRequest::Read { .. })) {
                    self.changed.notify_waiters();
                }
                return answer;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.env.sleep_until(until) => {}
            }
        }
    }
}

struct Link(Arc<Fake>);

impl Network for Link {
    fn call(
        &self,
        to: &Peer,
        request: Message,
        deadline: Time,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        Box::pin(Arc::clone(&self.0).call(to.clone(), request, deadline))
    }
}

pub(crate) fn unit_name(chain: usize, place: usize) -> String {
    let place = char::from(b'a' + u8::try_from(place).expect("few replicas"));
    format!("unit-{}{place}", chain + 1)
}

fn wait_of(request: &Request) -> Duration {
    let ms = match request {
        Request::Layout(LayoutRequest::Get { wait_ms, .. })
        | Request::Sequencer(SequencerRequest::Wait { wait_ms, .. })
        | Request::Unit(UnitRequest::ReadStreams { wait_ms, .. }) => *wait_ms,
        _ => 0,
    };
    Duration::from_millis(u64::from(ms))
}

impl World {
    pub(crate) fn reconfigure(&mut self) {
        let layout = &mut self.published.layout;
        let highs = self.units.iter().filter_map(|unit| unit.held.keys().last());
        let high = highs.max().map_or(Position::ZERO, |last| last.next());
        layout.epoch = layout.epoch.next();
        layout.start = high.max(layout.start);
        layout.starts.push((layout.epoch, layout.start));
        for (unit, of) in self.units.iter_mut().zip(&layout.units) {
            unit.sealed = false;
            unit.epoch = layout.epoch;
            unit.start = layout.start;
            unit.ranges = layout.ranges_of(of.id);
            unit.ahead = layout.limits.positions_ahead;
        }
        let mut heads: BTreeMap<StreamId, BackPointers> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for unit in &self.units {
            all.extend(unit.held.iter().map(|(p, held)| (*p, held.clone())));
        }
        for (position, held) in all {
            if let Held::Data(entry) = held {
                for stream in entry.streams() {
                    let list = heads.entry(stream).or_insert(BackPointers::EMPTY);
                    list.push(position);
                }
            }
        }
        let trimmed = self.sequencer.trimmed;
        self.sequencer = Sequencer {
            next: layout.start,
            trimmed,
            heads,
            sealed: false,
            epoch: layout.epoch,
        };
        for list in self.sequencer.heads.values_mut() {
            *list = cut(*list, trimmed);
        }
    }

    fn serve(
        &mut self,
        to: &Peer,
        request: &Request,
        body: Bytes,
        last: bool,
    ) -> Option<(Response, Bytes)> {
        let plain = |response| Some((response, Bytes::new()));
        match request {
            Request::Layout(LayoutRequest::Get { known, .. }) => {
                if self.published.layout.epoch > *known {
                    let layout = LayoutResponse::Layout(self.published.clone());
                    return plain(Response::Layout(layout));
                }
                let why = "nothing newer".into();
                last.then(|| {
                    let waiting = LayoutResponse::Waiting { why };
                    (Response::Layout(waiting), Bytes::new())
                })
            }
            Request::Layout(LayoutRequest::ReportSealed { epoch }) => {
                if self.heal && *epoch == self.published.layout.epoch {
                    self.reconfigure();
                }
                plain(Response::Layout(LayoutResponse::Heard))
            }
            Request::Layout(LayoutRequest::GiveUp { from, to }) => {
                self.given_up.push((*from, *to));
                plain(Response::Layout(LayoutResponse::Heard))
            }
            Request::Sequencer(request) => {
                let lease = self.lease;
                let answer = self.sequencer.serve(request, lease, last)?;
                plain(answer.map_or_else(Response::Refused, Response::Sequencer))
            }
            Request::Unit(request) => {
                let units = &self.published.layout.units;
                let index = units.iter().position(|unit| unit.name == to.name);
                let unit = &mut self.units[index.expect("a unit of the layout")];
                Some(match unit.serve(request, body, last)? {
                    Ok((response, body)) => (Response::Unit(response), body),
                    Err(refusal) => (Response::Refused(refusal), Bytes::new()),
                })
            }
            _ => plain(Response::Refused(Refusal::NoSuchRole {
                role: "other".into(),
            })),
        }
    }
}

fn cut(list: BackPointers, trimmed: Position) -> BackPointers {
    if list.positions().last().is_none_or(|p| *p >= trimmed) {
        return list;
    }
    let kept = list.positions().iter().copied();
    BackPointers::new(kept.take_while(|p| *p >= trimmed), ListEnd::BelowTrim)
}

impl Sequencer {
    fn list(&self, stream: StreamId) -> BackPointers {
        let absent = BackPointers::none(if self.trimmed == Position::ZERO {
            ListEnd::Beginning
        } else {
            ListEnd::BelowTrim
        });
        self.heads.get(&stream).copied().unwrap_or(absent)
    }

    fn grant(&mut self, streams: &[StreamId]) -> Token {
        let position = self.next;
        self.next = position.next();
        let mut links = Vec::new();
        for &stream in streams {
            let back = self.list(stream);
            links.push(StreamLink { stream, back });
            let mut list = back;
            list.push(position);
            self.heads.insert(stream, list);
        }
        Token { position, links }
    }

    fn serve(
        &mut self,
        request: &SequencerRequest,
        lease: Lease,
        last: bool,
    ) -> Option<Result<SequencerResponse, Refusal>> {
        let (SequencerRequest::Tokens { epoch, .. }
        | SequencerRequest::Tail { epoch, .. }
        | SequencerRequest::Wait { epoch, .. }
        | SequencerRequest::Trimmed { epoch, .. }) = request
        else {
            return None;
        };
        if let Err(refusal) = fence(*epoch, self.epoch, self.sealed) {
            return Some(Err(refusal));
        }
        let tail = |this: &Self, streams: &[StreamId]| {
            SequencerResponse::Tail(TailAnswer {
                next: this.next,
                trimmed: this.trimmed,
                lease,
                streams: streams.iter().map(|s| this.list(*s)).collect(),
            })
        };
        Some(Ok(match request {
            SequencerRequest::Tokens { wants, .. } => {
                SequencerResponse::Tokens(wants.iter().map(|want| self.grant(want)).collect())
            }
            SequencerRequest::Wait { streams, from, .. } => {
                let grew = if streams.is_empty() {
                    self.next > *from
                } else {
                    let mut lists = streams.iter().map(|s| self.list(*s));
                    lists.any(|list| list.last().is_some_and(|p| p >= *from))
                };
                if !grew && !last {
                    return None;
                }
                tail(self, streams)
            }
            SequencerRequest::Trimmed { below, .. } => {
                self.trimmed = self.trimmed.max(*below);
                for list in self.heads.values_mut() {
                    *list = cut(*list, self.trimmed);
                }
                SequencerResponse::Done
            }
            SequencerRequest::Tail { streams, .. } => tail(self, streams),
            _ => return None,
        }))
    }
}

fn fence(asked: Epoch, serving: Epoch, sealed: bool) -> Result<(), Refusal> {
    if asked < serving || (asked == serving && sealed) {
        return Err(Refusal::Sealed { epoch: serving });
    }
    if asked > serving {
        return Err(Refusal::NotYet { epoch: serving });
    }
    Ok(())
}

type Served = Result<(UnitResponse, Bytes), Refusal>;

impl Unit {
    fn put(&mut self, position: Position, value: Held) -> bool {
        let same = match (self.held.get(&position), &value) {
            (None | Some(Held::Lost), _) => true,
            (Some(Held::Data(old)), Held::Data(new)) => return old.id() == new.id(),
            (Some(old), _) => return matches!((old, &value), (Held::Junk, Held::Junk)),
        };
        self.held.insert(position, value);
        same
    }

    fn range(&self, position: Position) -> Option<&UnitRange> {
        self.ranges.iter().find(|range| range.owns(position))
    }

    /// Contiguous from the trim mark on.
    fn settled(&self) -> Position {
        let range = self.ranges.last().expect("every unit has a range");
        let mut at = range.first_at_or_above(self.trimmed.max(self.settled));
        while matches!(self.held.get(&at), Some(Held::Data(_) | Held::Junk)) {
            at = at.plus(range.stripes);
        }
        at
    }

    fn marks(&self) -> Marks {
        Marks {
            settled: self.settled(),
            trimmed: self.trimmed,
        }
    }

    fn serve(&mut self, request: &UnitRequest, body: Bytes, last: bool) -> Option<Served> {
        let (UnitRequest::Write { epoch, .. }
        | UnitRequest::Fill { epoch, .. }
        | UnitRequest::Read { epoch, .. }
        | UnitRequest::ReadStreams { epoch, .. }
        | UnitRequest::Confirm { epoch }
        | UnitRequest::Ends { epoch, .. }
        | UnitRequest::Repair { epoch, .. }
        | UnitRequest::Trim { epoch, .. }
        | UnitRequest::Told { epoch, .. }) = request
        else {
            return None;
        };
        if let Err(refusal) = fence(*epoch, self.epoch, self.sealed) {
            return Some(Err(refusal));
        }
        Some(Ok(match request {
            UnitRequest::Write { settled, items, .. }
            | UnitRequest::Repair { settled, items, .. } => {
                self.settled = self.settled.max(*settled);
                self.write(items, body)
            }
            UnitRequest::Fill { from, to, .. } => self.fill(*from, *to),
            UnitRequest::Read { positions, .. } => self.read(positions),
            UnitRequest::ReadStreams {
                streams,
                from,
                to,
                max_bytes,
                ..
            } => self.read_streams(streams, *from, *to, *max_bytes, last)?,
            UnitRequest::Confirm { .. } => {
                let marks = self.marks();
                (UnitResponse::Serving { marks }, Bytes::new())
            }
            UnitRequest::Ends { streams, .. } => (self.ends(streams), Bytes::new()),
            UnitRequest::Trim { below, .. } => {
                self.trimmed = self.trimmed.max((*below).min(self.settled()));
                self.held = self.held.split_off(&self.trimmed);
                let below = self.trimmed;
                (UnitResponse::Trimmed { below }, Bytes::new())
            }
            UnitRequest::Told { settled, .. } => {
                self.settled = self.settled.max(*settled);
                (UnitResponse::Done, Bytes::new())
            }
            _ => return None,
        }))
    }

    fn ends(&self, streams: &[StreamId]) -> UnitResponse {
        let of_stream = |position: &Position, stream: &StreamId| match &self.held[position] {
            Held::Data(entry) => entry.streams().contains(stream),
            Held::Junk => false,
            Held::Lost => true,
        };
        let end = |last: Option<&Position>| last.map_or(Position::ZERO, |p| p.next());
        let held = self.held.keys().rev();
        UnitResponse::Ends {
            marks: self.marks(),
            log: end(self.held.keys().last()),
            streams: streams
                .iter()
                .map(|stream| end(held.clone().find(|p| of_stream(p, stream))))
                .collect(),
        }
    }

    fn write(&mut self, items: &[(Position, WireValue)], body: Bytes) -> (UnitResponse, Bytes) {
        let mut body = Body::of(&Message {
            body,
            ..Message::default()
        });
        let mut answers = Vec::new();
        for (position, value) in items {
            let value = match value {
                WireValue::Data { len } => {
                    let bytes = body.take(*len).expect("a whole body");
                    Held::Data(EncodedEntry::check(bytes).expect("a sound entry"))
                }
                WireValue::Junk => Held::Junk,
            };
            answers.push(self.write_one(*position, value));
        }
        let marks = self.marks();
        (UnitResponse::Written { answers, marks }, Bytes::new())
    }

    fn write_one(&mut self, position: Position, value: Held) -> WriteAnswer {
        let Some(range) = self.range(position) else {
            return WriteAnswer::NotMine;
        };
        let active_head = range.is_head() && position >= self.start;
        if position < self.trimmed {
            return WriteAnswer::Trimmed;
        }
        // Who is not the tail knows what is settled only from what it was told.
        let settled = if range.is_tail() {
            self.settled()
        } else {
            self.settled
        };
        if position.0 > settled.max(self.start).0 + self.ahead {
            return WriteAnswer::TooFar;
        }
        if active_head && matches!(value, Held::Junk) {
            return WriteAnswer::Refused;
        }
        if active_head && self.full && !self.held.contains_key(&position) {
            return WriteAnswer::Full;
        }
        if self.put(position, value) {
            WriteAnswer::Durable
        } else {
            WriteAnswer::Occupied
        }
    }

    fn fill(&mut self, from: Position, to: Position) -> (UnitResponse, Bytes) {
        let range = self
            .range(from.max(self.start))
            .or_else(|| self.ranges.last());
        let range = *range.expect("every unit has a range");
        assert!(range.is_head(), "only heads fill");
        let (mut winners, mut body) = (Vec::new(), Vec::new());
        let settled = if range.is_tail() {
            self.settled()
        } else {
            self.settled
        };
        let farthest = settled.max(self.start).plus(self.ahead);
        let to = to.min(farthest.next());
        for position in range.positions(from.max(self.start).max(self.trimmed), to) {
            match self.held.entry(position).or_insert(Held::Junk) {
                Held::Junk => winners.push((position, WireValue::Junk)),
                Held::Data(entry) => {
                    let len = u32::try_from(entry.len()).expect("small");
                    winners.push((position, WireValue::Data { len }));
                    body.extend_from_slice(entry.bytes());
                }
                Held::Lost => {}
            }
        }
        let marks = self.marks();
        (UnitResponse::Filled { winners, marks }, body.into())
    }

    fn read(&self, positions: &[Position]) -> (UnitResponse, Bytes) {
        let mut body = Vec::new();
        let answers = positions.iter().map(|position| {
            if self.range(*position).is_none() {
                return UnitReadAnswer::NotMine;
            }
            if *position < self.trimmed {
                return UnitReadAnswer::Trimmed;
            }
            match self.held.get(position) {
                None => UnitReadAnswer::Unwritten,
                Some(Held::Junk) => UnitReadAnswer::Junk,
                Some(Held::Lost) => UnitReadAnswer::Lost,
                Some(Held::Data(entry)) => {
                    body.extend_from_slice(entry.bytes());
                    let len = u32::try_from(entry.len()).expect("small");
                    UnitReadAnswer::Data { len }
                }
            }
        });
        let answers = answers.collect();
        let marks = self.marks();
        (UnitResponse::Values { answers, marks }, body.into())
    }

    fn read_streams(
        &self,
        streams: &[StreamId],
        from: Position,
        to: Position,
        max_bytes: u32,
        last: bool,
    ) -> Option<(UnitResponse, Bytes)> {
        if from < self.trimmed {
            let below = self.trimmed;
            return Some((UnitResponse::Trimmed { below }, Bytes::new()));
        }
        let range = *self.range_of(from);
        let first = range.first_at_or_above(from);
        if first < to && !self.held.contains_key(&first) && !last {
            return None;
        }
        let (mut entries, mut body, mut complete) = (Vec::new(), Vec::new(), to);
        for position in range.positions(from, to) {
            if body.len() >= max_bytes as usize && !entries.is_empty() {
                complete = position;
                break;
            }
            match self.held.get(&position) {
                None => {
                    complete = position;
                    break;
                }
                Some(Held::Lost) => {
                    entries.push((position, 0));
                    complete = position;
                    break;
                }
                Some(Held::Data(entry)) if entry.streams().iter().any(|s| streams.contains(s)) => {
                    entries.push((position, u32::try_from(entry.len()).expect("small")));
                    body.extend_from_slice(entry.bytes());
                }
                Some(_) => {}
            }
        }
        let response = UnitResponse::Entries {
            entries,
            complete,
            marks: self.marks(),
        };
        Some((response, body.into()))
    }

    fn range_of(&self, from: Position) -> &UnitRange {
        let range = self.ranges.iter().find(|r| r.from <= from && from < r.to);
        range.expect("every unit has every segment here")
    }
}
