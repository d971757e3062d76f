//! Which epoch is served: seal, open, and the fence of every request (rules 1–5, 16).

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::messages::{CallId, Refusal, SealReport, UnitResponse};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{ClusterId, Epoch, Layout, Position, UnitRange};

use crate::disk::{DiskDone, DiskError, DiskOp};
use crate::format::{SUPERBLOCK, SUPERBLOCK_BYTES, SUPERBLOCK_NEW};
use crate::marks::Held;
use crate::rejoin::Rejoining;
use crate::unit::{Op, Unit};

/// The epoch that is served.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) layout: Layout,
    /// Own ranges, in order of position.
    pub(crate) held: Vec<Held>,
    /// Ranges that this unit is being given; closed and settled.
    pub(crate) joining: Vec<UnitRange>,
}

impl Serving {
    /// The ranges in which every position is settled, and so owed: what is not held there is lacking.
    pub(crate) fn owed(&self) -> Vec<UnitRange> {
        let settled = self.held.iter().map(|held| UnitRange {
            to: held.settled,
            ..held.range
        });
        let mut ranges: Vec<_> = self.joining.iter().copied().chain(settled).collect();
        ranges.sort_by_key(|range| range.from);
        ranges
    }

    /// The last range: the active one, if this unit has a part in that.
    pub(crate) fn last(&self) -> Option<UnitRange> {
        self.held.last().map(|held| held.range)
    }
}

/// Where an opening stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenStep {
    /// Waits until nothing of the old epoch is on its way.
    Drain,
    /// Stamps the cluster into the superblock.
    Stamp,
    /// Waits for the first segment file, so that its absence later is evidence.
    Segment,
    /// Voids what the new epoch did not take over.
    Void,
    /// Puts a batch behind the last one of the epochs before.
    Close,
    /// Persists the epoch.
    Persist,
}

#[derive(Debug)]
struct Opening {
    layout: Layout,
    /// First position that is void, of all epochs up to the persisted one.
    void_from: Option<Position>,
    calls: Vec<CallId>,
    step: OpenStep,
}

/// State of epochs.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    pub(crate) serving: Option<Serving>,
    /// Every epoch below is over.
    sealed_for: Epoch,
    opening: Option<Opening>,
    pub(crate) rejoining: Option<Rejoining>,
    /// What is on its way into the superblock.
    stamping: Option<ClusterId>,
    seals: Vec<(CallId, Epoch)>,
}

impl Unit {
    /// The epoch that is served, unless it is sealed.
    pub(crate) fn serving(&self) -> Option<&Serving> {
        let serving = self.epochs.serving.as_ref();
        serving.filter(|s| s.layout.epoch >= self.epochs.sealed_for)
    }

    /// Highest epoch that is known to be over here.
    pub(crate) fn over(&self) -> Epoch {
        let sealed = Epoch(self.epochs.sealed_for.0.saturating_sub(1));
        let persisted = self.state.durable.epoch;
        match &self.epochs.serving {
            Some(_) => sealed.max(Epoch(persisted.0.saturating_sub(1))),
            None => sealed.max(persisted),
        }
    }

    /// Whether a request of `epoch` may have an effect now.
    pub(crate) fn check(&self, epoch: Epoch) -> Result<&Serving, Refusal> {
        match self.serving() {
            Some(serving) if serving.layout.epoch == epoch => Ok(serving),
            Some(serving) if serving.layout.epoch < epoch => Err(Refusal::NotYet {
                epoch: serving.layout.epoch,
            }),
            _ if epoch <= self.over() => Err(Refusal::Sealed { epoch: self.over() }),
            _ if self.state.durable.epoch == Epoch::NONE => Err(Refusal::NotOpen),
            _ => Err(Refusal::NotYet {
                epoch: self.state.durable.epoch,
            }),
        }
    }

    /// The epoch of what is written now.
    pub(crate) const fn writing_epoch(&self) -> Epoch {
        self.state.durable.epoch
    }

    // ------------------------------------------------------------------------------------- confirm and settled

    pub(crate) fn confirm(&mut self, call: CallId, epoch: Epoch) {
        let served = self.epochs.serving.as_ref();
        let still = plants::active(Plant::SealedStillConfirms)
            && served.is_some_and(|s| s.layout.epoch == epoch);
        match self.check(epoch).map(|_| ()) {
            Err(_) if still => {
                let marks = self.marks();
                self.reply(call, UnitResponse::Serving { marks }, Bytes::new());
            }
            Ok(()) => {
                let marks = self.marks();
                self.reply(call, UnitResponse::Serving { marks }, Bytes::new());
            }
            Err(refusal) => self.refuse(call, refusal),
        }
    }

    pub(crate) fn settled(&mut self, call: CallId, epoch: Epoch, below: Position) {
        if let Err(refusal) = self.check(epoch) {
            return self.refuse(call, refusal);
        }
        self.told_of_all(below);
        self.reply(call, UnitResponse::Done, Bytes::new());
    }

    pub(crate) fn told_of_last(&mut self, call: CallId, epoch: Epoch, settled: Position) {
        if let Err(refusal) = self.check(epoch) {
            return self.refuse(call, refusal);
        }
        self.told_of_active(settled);
        self.reply(call, UnitResponse::Done, Bytes::new());
    }

    /// Persists a trim mark. Marks above what is decided here are refused: nothing above the log's settled mark is
    /// ever trimmed, and what is settled is decided on each replica.
    pub(crate) fn trim(&mut self, call: CallId, epoch: Epoch, below: Position) {
        let checked = self.check(epoch).map(|_| ());
        let most = match (checked, self.poisoned()) {
            (Err(refusal), _) | (_, Some(refusal)) => return self.refuse(call, refusal),
            (Ok(()), None) => self.trimmable(),
        };
        if below > most {
            // Of closed ranges it may not have been told yet.
            let what = format!(
                "settling: trim below {below}, but only what is below {most} is settled here"
            );
            return self.refuse(call, Refusal::Busy { what });
        }
        if below <= self.trimmed() {
            let below = self.trimmed();
            return self.reply(call, UnitResponse::Trimmed { below }, Bytes::new());
        }
        if plants::acts(Plant::TrimForgotten, 4) {
            return self.reply(call, UnitResponse::Trimmed { below }, Bytes::new());
        }
        self.state.want_trim(below, call);
    }

    // -------------------------------------------------------------------------------------------------- seal

    pub(crate) fn seal(&mut self, call: CallId, epoch: Epoch) {
        let least = self.state.durable.epoch.next().max(self.epochs.sealed_for);
        if epoch < least {
            let epoch = Epoch(least.0.saturating_sub(1));
            return self.refuse(call, Refusal::Sealed { epoch });
        }
        self.epochs.seals.push((call, epoch));
        self.seal_for(epoch);
    }

    /// Every epoch below `epoch` is over here.
    pub(crate) fn seal_for(&mut self, epoch: Epoch) {
        self.epochs.sealed_for = self.epochs.sealed_for.max(epoch);
        self.refuse_parked();
    }

    /// Gives the epoch up, as a restart does: this head has lost the undecided value at `position`, and only the next
    /// epoch, which asks all replicas, can judge it (rule 11). The next hello tells the layout that nothing is served.
    pub(crate) fn seal_itself(&mut self, position: Position) {
        let epoch = self.state.durable.epoch;
        tracing::warn!(%position, %epoch, "sealed: the head lost a value that may be undecided");
        self.seal_for(epoch.next());
    }

    /// Answers seals once nothing is on its way to the disk. A trim mark neither: the report tells whether streams that
    /// are not listed when collected may have been trimmed, so both must speak of the same mark.
    pub(crate) fn answer_seals(&mut self) {
        let idle = self.writer.is_idle() && self.state.is_idle();
        let idle = idle || plants::active(Plant::SealDoesNotDrain);
        if self.epochs.seals.is_empty() || !idle || self.epochs.opening.is_some() {
            return;
        }
        for (call, epoch) in std::mem::take(&mut self.epochs.seals) {
            if epoch < self.epochs.sealed_for {
                let epoch = self.over();
                self.refuse(call, Refusal::Sealed { epoch });
                continue;
            }
            let report = SealReport {
                epoch: self.state.durable.epoch,
                high: self.index.high,
                marks: self.marks_of_all(),
                streams: self.count_streams(),
                lost: self.index.lost_end(),
            };
            self.reply(call, UnitResponse::Sealed(report), Bytes::new());
        }
    }

    pub(crate) const fn is_opening(&self) -> bool {
        self.epochs.opening.is_some()
    }

    pub(crate) const fn sealed_for(&self) -> Epoch {
        self.epochs.sealed_for
    }

    // -------------------------------------------------------------------------------------------------- open

    pub(crate) fn open(
        &mut self,
        call: CallId,
        layout: Layout,
        persisted: Epoch,
        starts: &[(Epoch, Position)],
    ) {
        let epoch = layout.epoch;
        if self.serving().is_some_and(|s| s.layout.epoch == epoch) {
            return self.reply(call, UnitResponse::Done, Bytes::new());
        }
        if let Some(opening) = &mut self.epochs.opening {
            if opening.layout.epoch == epoch {
                opening.calls.push(call);
            } else {
                let what = format!("opening epoch {}", opening.layout.epoch);
                self.refuse(call, Refusal::Busy { what });
            }
            return;
        }
        if let Some(refusal) = self.poisoned().or_else(|| self.unfit(&layout, persisted)) {
            return self.refuse(call, refusal);
        }
        let known: BTreeMap<_, _> = starts.iter().chain(&layout.starts).copied().collect();
        let persisted = self.state.durable.epoch;
        let void_from = known
            .range(persisted.next()..)
            .next()
            .map(|(_, start)| *start);
        // What was served is over, also if nobody sealed it.
        self.seal_for(epoch);
        self.epochs.opening = Some(Opening {
            layout,
            void_from,
            calls: vec![call],
            step: OpenStep::Drain,
        });
    }

    /// Why this unit cannot enter the layout's epoch.
    fn unfit(&self, layout: &Layout, persisted: Epoch) -> Option<Refusal> {
        let again = plants::active(Plant::ReopensAfterRestart)
            && self.epochs.serving.is_none()
            && self.epochs.sealed_for <= layout.epoch
            && layout.epoch == self.state.durable.epoch;
        let over = self.over().max(self.state.durable.epoch);
        if layout.epoch <= over && !again {
            return Some(Refusal::Sealed { epoch: over });
        }
        if let Err(error) = layout.validate() {
            let why = error.to_string();
            return Some(Refusal::Malformed { why });
        }
        if let Some(refusal) = self.foreign(layout.cluster) {
            return Some(refusal);
        }
        let (unit, name) = (self.superblock.unit, &self.superblock.name);
        let why = if layout.find_unit(unit).is_none() {
            format!("the layout does not list unit {unit} ({name})")
        } else if persisted > self.state.durable.epoch {
            format!(
                "{name} confirmed epoch {persisted} and comes with the state of epoch {} (a restored backup?); give it back its newest directory, or, if that is lost and its chain goes on without it, start it with an empty one",
                self.state.durable.epoch
            )
        } else {
            return None;
        };
        Some(Refusal::Identity { why })
    }

    /// Why this unit cannot be one of `cluster`.
    pub(crate) fn foreign(&self, cluster: ClusterId) -> Option<Refusal> {
        let rejoining = || self.epochs.rejoining.as_ref().map(|one| one.cluster);
        let known = self.cluster().or(self.epochs.stamping);
        let known = known.or_else(rejoining);
        let known = known.or(self.config.cluster);
        let fits = cluster != ClusterId::default() && known.is_none_or(|known| known == cluster);
        (!fits).then(|| {
            let known = known.unwrap_or_default();
            let why =
                format!("this unit belongs to cluster {known}, the layout is of cluster {cluster}");
            Refusal::Identity { why }
        })
    }

    /// Goes on with an opening as far as possible.
    pub(crate) fn go_on_opening(&mut self) {
        while let Some(step) = self.epochs.opening.as_ref().map(|o| o.step) {
            let next = match step {
                OpenStep::Drain if !self.writer.is_idle() || !self.state.is_idle() => return,
                OpenStep::Drain if self.cluster().is_none() => {
                    let cluster = self.epochs.opening.as_ref().map(|o| o.layout.cluster);
                    self.set_step(OpenStep::Stamp);
                    return self.stamp(cluster.unwrap_or_default());
                }
                OpenStep::Drain => OpenStep::Segment,
                OpenStep::Stamp => return,
                OpenStep::Segment => {
                    if !self.has_segment() {
                        return self.await_segment();
                    }
                    let from = self.epochs.opening.as_ref().and_then(|o| o.void_from);
                    self.want_void(from.unwrap_or(Position::MAX));
                    OpenStep::Void
                }
                OpenStep::Void if !self.state.is_idle() => return,
                OpenStep::Void => {
                    self.writer.closing = self.writer.last_batch > 0;
                    OpenStep::Close
                }
                OpenStep::Close if self.writer.closing => return,
                OpenStep::Close if plants::acts(Plant::EpochNotPersisted, 3) => {
                    return self.opened();
                }
                OpenStep::Close => {
                    let epoch = self.epochs.opening.as_ref().map(|o| o.layout.epoch);
                    self.state.want_epoch(epoch.unwrap_or_default());
                    OpenStep::Persist
                }
                OpenStep::Persist if !self.state.is_idle() => return,
                OpenStep::Persist => return self.opened(),
            };
            self.set_step(next);
        }
    }

    fn set_step(&mut self, step: OpenStep) {
        if let Some(opening) = &mut self.epochs.opening {
            opening.step = step;
        }
    }

    pub(crate) fn has_segment(&self) -> bool {
        self.index.active.is_some() || !self.files.prepared.is_empty()
    }

    pub(crate) fn await_segment(&mut self) {
        if self.files.out_of_space {
            self.no_space("disk space for the first segment");
        } else {
            self.prepare_segment();
        }
    }

    fn opened(&mut self) {
        let Some(opening) = self.epochs.opening.take() else {
            return;
        };
        let (layout, calls) = (opening.layout, opening.calls);
        let ranges = layout.ranges_of(self.superblock.unit);
        // What is settled is never voided; a mark that somebody told wrongly goes with the void.
        self.mark = self.mark.min(opening.void_from.unwrap_or(Position::MAX));
        let held = ranges.into_iter().map(|range| Held::new(range, self.mark));
        let held = held.collect();
        let joining = layout.joining_of(self.superblock.unit);
        tracing::info!(epoch = %layout.epoch, start = %layout.start, "open");
        self.epochs.serving = Some(Serving {
            layout,
            held,
            joining,
        });
        self.advance_decided();
        for call in calls {
            if self.serving().is_some() {
                self.reply(call, UnitResponse::Done, Bytes::new());
            } else {
                // Sealed for a later epoch meanwhile.
                let epoch = self.over();
                self.refuse(call, Refusal::Sealed { epoch });
            }
        }
    }

    /// Gives an opening up. It can be asked for again.
    pub(crate) fn fail_opening(&mut self, refusal: &Refusal) {
        if let Some(opening) = self.epochs.opening.take() {
            self.writer.closing = false;
            for call in opening.calls {
                self.refuse(call, refusal.clone());
            }
        }
    }

    /// Gives up whatever was to enter an epoch, for want of space.
    pub(crate) fn no_space(&mut self, what: &str) {
        let what = what.to_owned();
        self.fail_entering(&Refusal::Busy { what });
    }

    /// Gives up whatever was to enter an epoch. It can be asked for again.
    pub(crate) fn fail_entering(&mut self, refusal: &Refusal) {
        self.fail_rejoining(refusal);
        self.fail_opening(refusal);
    }

    // ------------------------------------------------------------------------------------------------- stamp

    /// Makes this a unit of the cluster, unless that is under way.
    pub(crate) fn stamp(&mut self, cluster: ClusterId) {
        if self.epochs.stamping.is_some() {
            return;
        }
        self.epochs.stamping = Some(cluster);
        let op = DiskOp::Create {
            name: SUPERBLOCK_NEW.to_owned(),
            size: SUPERBLOCK_BYTES,
        };
        self.submit(Op::Superblock(0), op);
    }

    pub(crate) fn superblock_done(&mut self, step: u8, result: Result<DiskDone, DiskError>) {
        let Some(cluster) = self.epochs.stamping else {
            return;
        };
        let mut superblock = self.superblock.clone();
        superblock.cluster = cluster;
        match (result, step) {
            (Err(DiskError::Full), _) => {
                self.epochs.stamping = None;
                self.no_space("disk space for the superblock");
            }
            (Err(error), _) => self.poison(&format!("writing {SUPERBLOCK}: {error}")),
            (Ok(_), 0) => {
                let op = DiskOp::WriteAt {
                    name: SUPERBLOCK_NEW.to_owned(),
                    offset: 0,
                    data: vec![superblock.encode().into()],
                    sync: true,
                };
                self.submit(Op::Superblock(1), op);
            }
            (Ok(_), 1) => {
                let op = DiskOp::Rename {
                    from: SUPERBLOCK_NEW.to_owned(),
                    to: SUPERBLOCK.to_owned(),
                };
                self.submit(Op::Superblock(2), op);
            }
            (Ok(_), _) => {
                self.superblock = superblock;
                self.epochs.stamping = None;
                self.set_step(OpenStep::Segment);
            }
        }
    }
}
