//! A model of a log unit: what the layout relies on, durable at once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    Body, Marks, Refusal, Response, SealReport, StreamTail, UnitHello, UnitReadAnswer, UnitRequest,
    UnitResponse, WireValue, WriteAnswer, body_of,
};
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Epoch, Layout, ListEnd, Position, StreamId, UnitId,
    UnitRange, Value,
};

/// Small, so that there are several pages.
const TAILS_PER_PAGE: usize = 2;

#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) id: UnitId,
    pub(super) cluster: Option<ClusterId>,
    pub(super) persisted: Epoch,
    /// The value and the epoch it was written in.
    pub(super) cells: BTreeMap<Position, (Value, Epoch)>,
    /// Held once; neither the values nor their streams are known any more.
    pub(super) lost: BTreeSet<Position>,
    pub(super) trimmed: Position,
    mark: Position,
    /// Forgotten by a restart.
    sealed_for: Epoch,
    serving: Option<Layout>,
    /// So often it was asked to forget what it does not surely know.
    pub(super) rejoined: usize,
    /// It gives no entry to who reads: its disk is full, and some of it cannot be read.
    pub(super) withholds: bool,
    /// So often it did.
    pub(super) withheld: usize,
    /// Its disk failed in this run.
    pub(super) poisoned: bool,
    /// What it says of its disk.
    pub(super) disk_micros: Option<u32>,
}

type Served = Result<(UnitResponse, Bytes), Refusal>;

impl Unit {
    pub(super) fn new(id: u128) -> Self {
        Self {
            id: UnitId(id),
            cluster: None,
            persisted: Epoch::NONE,
            cells: BTreeMap::new(),
            lost: BTreeSet::new(),
            trimmed: Position::ZERO,
            mark: Position::ZERO,
            sealed_for: Epoch::NONE,
            serving: None,
            rejoined: 0,
            withholds: false,
            withheld: 0,
            poisoned: false,
            disk_micros: None,
        }
    }

    pub(super) fn restart(&mut self) {
        self.sealed_for = Epoch::NONE;
        self.serving = None;
        self.poisoned = false;
    }

    pub(super) fn serves(&self) -> Epoch {
        let serving = self.serving.as_ref().map_or(Epoch::NONE, |l| l.epoch);
        if serving < self.sealed_for {
            Epoch::NONE
        } else {
            serving
        }
    }

    pub(super) fn hello(&self) -> UnitHello {
        UnitHello {
            id: self.id,
            cluster: self.cluster,
            persisted: self.persisted,
            serving: self.serves(),
            empty: self.cluster.is_none() && self.cells.is_empty(),
            poisoned: self.poisoned,
            damaged: !self.lost.is_empty(),
            disk_micros: self.disk_micros,
        }
    }

    pub(super) fn serve(&mut self, request: UnitRequest, body: Bytes) -> (Response, Bytes) {
        match self.answer(request, body) {
            Ok((response, body)) => (Response::Unit(response), body),
            Err(refusal) => (Response::Refused(refusal), Bytes::new()),
        }
    }

    fn answer(&mut self, request: UnitRequest, body: Bytes) -> Served {
        let response = match request {
            UnitRequest::Seal { epoch } => self.seal(epoch)?,
            UnitRequest::Collect {
                epoch,
                after,
                below,
            } => self.collect(epoch, after, below)?,
            UnitRequest::Open {
                layout,
                persisted,
                starts,
            } => self.open(layout, persisted, &starts)?,
            UnitRequest::Settled { epoch, below } => {
                self.served(epoch)?;
                self.mark = self.mark.max(below);
                UnitResponse::Done
            }
            UnitRequest::Read {
                epoch, positions, ..
            } => {
                self.served(epoch)?;
                if self.withholds {
                    self.withheld += 1;
                    let what = "a disk that is full gives nothing".into();
                    return Err(Refusal::Busy { what });
                }
                return Ok(self.read(&positions));
            }
            UnitRequest::Write { epoch, items, .. } => self.write(epoch, items, body)?,
            UnitRequest::Repair { epoch, items, .. } => self.repair(epoch, items, body)?,
            UnitRequest::Rejoin { epoch, below, .. } => self.rejoin(epoch, below)?,
            UnitRequest::Lacking { epoch, from, limit } => self.lacking(epoch, from, limit)?,
            UnitRequest::Trim { epoch, below } => {
                self.served(epoch)?;
                self.trim(below);
                UnitResponse::Trimmed { below }
            }
            other => panic!("not asked by the layout: {other:?}"),
        };
        Ok((response, Bytes::new()))
    }

    fn seal(&mut self, epoch: Epoch) -> Result<UnitResponse, Refusal> {
        if epoch <= self.persisted || epoch < self.sealed_for {
            let epoch = self.persisted.max(self.sealed_for);
            return Err(Refusal::Sealed { epoch });
        }
        self.sealed_for = epoch;
        let high = self.cells.last_key_value().map(|(p, _)| p.next());
        let lost = self.lost.last().map(|p| p.next()).unwrap_or_default();
        Ok(UnitResponse::Sealed(SealReport {
            epoch: self.persisted,
            high: high.unwrap_or_default().max(lost),
            marks: self.marks(),
            streams: 0,
            lost,
        }))
    }

    /// Like a real one, a unit that was not restarted reports how far it is complete itself: for a head that is more
    /// than what is settled.
    fn marks(&self) -> Marks {
        let ranges = self.serving.as_ref().map(|l| l.ranges_of(self.id));
        let gap = |range: &UnitRange| {
            let mut own = range.positions(self.trimmed, Position::MAX);
            own.find(|p| !self.cells.contains_key(p))
        };
        let gap = ranges.iter().flatten().find_map(gap);
        Marks {
            settled: self.mark.max(gap.unwrap_or_default()),
            trimmed: self.trimmed,
        }
    }

    fn collect(
        &self,
        epoch: Epoch,
        after: Option<StreamId>,
        below: Position,
    ) -> Result<UnitResponse, Refusal> {
        if epoch <= self.persisted || epoch < self.sealed_for {
            return Err(Refusal::Sealed {
                epoch: self.persisted,
            });
        }
        if epoch > self.sealed_for {
            return Err(Refusal::NotYet {
                epoch: self.sealed_for,
            });
        }
        let mut streams: BTreeMap<StreamId, Vec<Position>> = BTreeMap::new();
        for (position, (value, _)) in self.cells.range(..below) {
            if let Value::Data(entry) = value {
                for stream in entry.streams() {
                    streams.entry(stream).or_default().insert(0, *position);
                }
            }
        }
        streams.retain(|stream, _| Some(*stream) > after);
        let end = if self.trimmed == Position::ZERO {
            ListEnd::Beginning
        } else {
            ListEnd::BelowTrim
        };
        let done = streams.len() <= TAILS_PER_PAGE;
        let lost = self.lost.last().map(|p| p.next());
        let lost = lost.unwrap_or_default().min(below);
        let tail = |(stream, positions)| StreamTail {
            stream,
            last: BackPointers::new(positions, end).down_to_lost(lost),
        };
        let tails = streams.into_iter().take(TAILS_PER_PAGE).map(tail);
        let tails = tails.collect();
        Ok(UnitResponse::Tails { tails, done })
    }

    fn open(
        &mut self,
        layout: Layout,
        persisted: Epoch,
        starts: &[(Epoch, Position)],
    ) -> Result<UnitResponse, Refusal> {
        if self.serves() == layout.epoch {
            return Ok(UnitResponse::Done);
        }
        if layout.epoch <= self.persisted || layout.epoch < self.sealed_for {
            let epoch = self.persisted.max(self.sealed_for);
            return Err(Refusal::Sealed { epoch });
        }
        let foreign = self.cluster.is_some_and(|c| c != layout.cluster);
        if foreign || layout.find_unit(self.id).is_none() {
            let why = "not this unit".into();
            return Err(Refusal::Identity { why });
        }
        if persisted > self.persisted {
            let why = "lost its past since".into();
            return Err(Refusal::Identity { why });
        }
        let starts: BTreeMap<_, _> = starts.iter().copied().collect();
        // Every epoch after the persisted one is told, so that each record is judged by the right start.
        let missed = self.persisted.0 + 1..=layout.epoch.0;
        let told = starts.keys().map(|epoch| epoch.0);
        assert!(told.eq(missed), "starts: {starts:?}");
        self.cells.retain(|position, (_, epoch)| {
            let void = starts.range(epoch.next()..).next();
            void.is_none_or(|(_, start)| position < start)
        });
        self.persisted = layout.epoch;
        self.cluster = Some(layout.cluster);
        self.sealed_for = layout.epoch;
        self.serving = Some(layout);
        Ok(UnitResponse::Done)
    }

    /// It missed an epoch: what is not surely settled is forgotten.
    fn rejoin(&mut self, epoch: Epoch, below: Position) -> Result<UnitResponse, Refusal> {
        if epoch <= self.persisted || epoch < self.sealed_for {
            let epoch = self.persisted.max(self.sealed_for);
            return Err(Refusal::Sealed { epoch });
        }
        self.sealed_for = epoch;
        self.rejoined += 1;
        let mark = self.mark.min(below);
        self.cells.retain(|position, _| *position < mark);
        self.lost.retain(|position| *position < mark);
        Ok(UnitResponse::Done)
    }

    /// What it has to have: of its own ranges what is settled, and what it is being given.
    fn owed(&self, layout: &Layout) -> Vec<UnitRange> {
        let own = layout.ranges_of(self.id).into_iter();
        let settled = own.map(|range| UnitRange {
            to: range.to.min(self.mark),
            ..range
        });
        let mut owed: Vec<_> = layout
            .joining_of(self.id)
            .into_iter()
            .chain(settled)
            .collect();
        owed.sort_by_key(|range| range.from);
        owed
    }

    fn lacking(&self, epoch: Epoch, from: Position, limit: u32) -> Result<UnitResponse, Refusal> {
        let layout = self.served(epoch)?;
        let from = from.max(self.trimmed);
        let ranges = self.owed(layout).into_iter();
        let own = ranges.flat_map(|range| range.positions(from, Position::MAX));
        // Fewer than asked for, so that there are several rounds.
        let lacks = own.filter(|p| !self.cells.contains_key(p));
        let mut positions: Vec<_> = lacks.take((limit as usize).min(7) + 1).collect();
        let through = match positions.len() > 7 {
            true => positions.pop().expect("just seen"),
            false => Position::MAX,
        };
        Ok(UnitResponse::Lacking { positions, through })
    }

    fn repair(
        &mut self,
        epoch: Epoch,
        items: Vec<(Position, WireValue)>,
        body: Bytes,
    ) -> Result<UnitResponse, Refusal> {
        let owed = self.owed(self.served(epoch)?);
        let all = |p: &Position| owed.iter().any(|range| range.owns(*p));
        assert!(items.iter().all(|(p, _)| all(p)), "it does not owe that");
        let answers = self.take(epoch, items, body);
        let marks = self.marks();
        Ok(UnitResponse::Written { answers, marks })
    }

    fn served(&self, epoch: Epoch) -> Result<&Layout, Refusal> {
        let serves = self.serves();
        if epoch < serves || serves == Epoch::NONE {
            let epoch = self.persisted;
            return Err(Refusal::Sealed { epoch });
        }
        if epoch > serves {
            return Err(Refusal::NotYet { epoch: serves });
        }
        Ok(self.serving.as_ref().expect("serving"))
    }

    fn read(&self, positions: &[Position]) -> (UnitResponse, Bytes) {
        let mut data = Vec::new();
        let answer = |p: &Position| match self.cells.get(p) {
            _ if *p < self.trimmed => UnitReadAnswer::Trimmed,
            None if self.lost.contains(p) => UnitReadAnswer::Lost,
            None => UnitReadAnswer::Unwritten,
            Some((Value::Junk, _)) => UnitReadAnswer::Junk,
            Some((Value::Data(entry), _)) => {
                data.push(entry.clone());
                let len = u32::try_from(entry.len()).unwrap();
                UnitReadAnswer::Data { len }
            }
        };
        let answers = positions.iter().map(answer).collect();
        let marks = self.marks();
        (UnitResponse::Values { answers, marks }, body_of(&data))
    }

    pub(super) fn write(
        &mut self,
        epoch: Epoch,
        items: Vec<(Position, WireValue)>,
        body: Bytes,
    ) -> Result<UnitResponse, Refusal> {
        let layout = self.served(epoch)?;
        let ranges = layout.ranges_of(self.id);
        for (position, value) in &items {
            let range = ranges.iter().find(|range| range.owns(*position));
            let range = range.expect("its own position");
            let at_head = range.is_head() && *position >= layout.start;
            assert!(!at_head || *value != WireValue::Junk, "junk at a head");
        }
        let answers = self.take(epoch, items, body);
        let marks = self.marks();
        Ok(UnitResponse::Written { answers, marks })
    }

    fn take(
        &mut self,
        epoch: Epoch,
        items: Vec<(Position, WireValue)>,
        body: Bytes,
    ) -> Vec<WriteAnswer> {
        let header = Bytes::new();
        let mut body = Body::of(&Message { header, body });
        let mut answers = Vec::new();
        for (position, value) in items {
            let value = match value {
                WireValue::Data { len } => {
                    Value::Data(EncodedEntry::check(body.take(len).unwrap()).unwrap())
                }
                WireValue::Junk => Value::Junk,
            };
            self.lost.remove(&position);
            let held = self.cells.entry(position);
            answers.push(if position < self.trimmed {
                WriteAnswer::Trimmed
            } else if held.or_insert_with(|| (value.clone(), epoch)).0 == value {
                WriteAnswer::Durable
            } else {
                WriteAnswer::Occupied
            });
        }
        answers
    }

    pub(super) fn trim(&mut self, below: Position) {
        self.trimmed = self.trimmed.max(below);
        self.cells = self.cells.split_off(&self.trimmed);
        self.lost = self.lost.split_off(&self.trimmed);
    }

    /// Forgets all it holds, and how far that was settled.
    pub(super) fn forget(&mut self) {
        self.cells.clear();
        self.mark = Position::ZERO;
    }

    /// Forgets what it holds at `position`, but not that it held something.
    /// It is there again.
    pub(super) fn find(&mut self, position: Position, entry: EncodedEntry) {
        self.lost.remove(&position);
        let cell = (Value::Data(entry), self.persisted);
        self.cells.insert(position, cell);
    }

    /// An operator has turned it into junk.
    pub(super) fn give_up(&mut self, position: Position) {
        self.lost.remove(&position);
        self.cells.insert(position, (Value::Junk, self.persisted));
    }

    pub(super) fn lose(&mut self, position: Position) {
        if self.cells.remove(&position).is_some() {
            self.lost.insert(position);
        }
    }
}
