//! Up to the commit: gather, intend, seal, collect (rules 15 and 16). Nothing here changes an entry.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::change::Origin;
use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    Lease, Refusal, Request, Response, SequencerRequest, SequencerResponse, StreamTail,
    UnitRequest, UnitResponse,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Epoch, Incarnation, ServerName, Time, UnitIndex};

use crate::core::LayoutCore;
use crate::heard::Heard;
use crate::history::StoreChange;
use crate::phase::{AfterCommit, Collecting, Confirmed, Errand, Phase, Sealing};
use crate::planner::{self, Observations};
use crate::tails::Tails;
use crate::words::outcome;

/// What starts together shares one reconfiguration: so long nothing new must have been heard.
const QUIET: Duration = Duration::from_millis(50);
/// What comes back together does: whoever is still absent is waited for so long.
const TOGETHER: Duration = Duration::from_millis(300);
/// Neither takes longer than this, whoever comes and goes, once there are enough for the next epoch.
const TOGETHER_AT_MOST: Duration = Duration::from_secs(2);

impl LayoutCore {
    // --------------------------------------------------------------------------------------------- gather

    /// Servers that are waited for: without them there is no next epoch.
    pub(crate) fn missing(&self) -> Vec<&ServerName> {
        let mut missing = Vec::new();
        if self.next_members().is_none() {
            let absent = self.absent();
            missing.extend(absent.iter().map(|unit| self.unit_name(*unit)));
        }
        if self.next_sequencer().is_none() && !missing.contains(&&self.sequencer) {
            missing.push(&self.sequencer);
        }
        missing
    }

    /// Why those who are there may not take part, with the way out.
    pub(crate) fn objections(&self) -> Vec<String> {
        let hello = |unit: UnitIndex| self.heard.last(self.unit_name(unit));
        let hellos: Vec<_> = self.members().into_iter().filter_map(hello).collect();
        let each = hellos.iter().filter_map(|hello| self.objection(hello));
        let mut objections: Vec<_> = each.collect();
        let ids = hellos.iter();
        let ids = ids.filter_map(|hello| Some((&hello.name, hello.unit?.id)));
        objections.extend(planner::twins(ids));
        objections
    }

    /// When it has been quiet for long enough, if all else is there.
    pub(crate) fn begin_at(&self) -> Option<Time> {
        let Phase::Gather { since, able, .. } = &self.phase else {
            return None;
        };
        let (members, gone_at) = self.next_members()?;
        let complete = members.len() == self.members().len();
        let last = |time: fn(&Heard, &ServerName) -> Option<Time>| {
            let times = self.awaited().filter_map(|name| time(&self.heard, name));
            times.max().unwrap_or_default()
        };
        let quiet = match self.plan.lease {
            // One process: nobody else can start together with it.
            Lease::DirectoryLock => Duration::ZERO,
            Lease::None | Lease::Renewed => QUIET,
        };
        let (_, chosen_at) = self.next_sequencer()?;
        let mut waits = last(Heard::since).max(*since).after(quiet);
        if !complete {
            waits = waits.max(last(Heard::back).after(TOGETHER));
        }
        let at_most = able.unwrap_or(self.now).after(TOGETHER_AT_MOST);
        Some(waits.min(at_most).max(chosen_at).max(gone_at))
    }

    /// Whose coming is worth a moment of patience: the others may be about to come, too. Who takes no part in the next
    /// epoch holds up nobody, nor does who starts again and again, unless its whole chain does.
    fn awaited(&self) -> impl Iterator<Item = &ServerName> {
        let members = self.members().into_iter();
        let members = members.map(|unit| self.unit_name(unit));
        let members = members.filter(|name| !self.is_to_blame(name));
        let sequencers = self.plan.sequencers();
        members.chain(sequencers.filter(|name| !self.is_restless(name)))
    }

    pub(crate) fn try_to_begin(&mut self) {
        let is_able = self.next_members().is_some() && self.next_sequencer().is_some();
        let now = self.now;
        if let Phase::Gather { able, .. } = &mut self.phase {
            *able = is_able.then(|| able.unwrap_or(now));
        }
        if self.begin_at().is_some_and(|at| at <= self.now) {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let epoch = self.history.next_epoch();
        if self.history.intent() == Some(epoch) {
            return self.seal();
        }
        self.phase = Phase::Intend;
        self.store(StoreChange::Intent { epoch });
    }

    // ----------------------------------------------------------------------------------------------- seal

    fn seal(&mut self) {
        if let Some((sequencer, _)) = self.next_sequencer() {
            self.sequencer = sequencer.clone();
        }
        let members = self.next_members().map(|(members, _)| members);
        self.phase = Phase::Seal(Sealing {
            epoch: self.history.next_epoch(),
            members: members.unwrap_or_default(),
            reports: BTreeMap::new(),
            sequencer: false,
        });
        self.phase_since = self.now;
        self.took.begins(self.now);
        // A sequencer that cannot be reached must not cost the units their epoch.
        self.send(Errand::SealSequencer, 0);
        self.seal_holder();
    }

    fn seal_units(&mut self) {
        let Phase::Seal(sealing) = &mut self.phase else {
            return;
        };
        if std::mem::replace(&mut sealing.sequencer, true) {
            return;
        }
        self.phase_since = self.now;
        for unit in sealing.members.clone() {
            self.send(Errand::Seal(unit), 0);
        }
    }

    pub(crate) fn all_sealed(&mut self) {
        let Phase::Seal(sealing) = &self.phase else {
            return;
        };
        if sealing.reports.len() < sealing.members.len() || !sealing.sequencer {
            return;
        }
        let id = |name| Some(self.heard.last(name)?.unit?.id);
        let sequencer = self.sequencer.clone();
        let seen = Observations {
            fresh: self.fresh,
            units: self.units.iter().filter_map(id).collect(),
            reports: sealing.reports.clone(),
            joins: self.ready_to_join(&sealing.members),
            copied: self.copied.clone(),
            sequencer: SequencerRef {
                incarnation: self.heard.run(&sequencer).unwrap_or(Incarnation(0)),
                name: sequencer,
            },
        };
        let layout = planner::next_layout(&self.plan, &self.history, sealing.epoch, &seen);
        if plants::active(Plant::HandedOutBeforeCommit) {
            self.hand_out(&layout);
        }
        let members: Vec<_> = seen.reports.keys().copied().collect();
        self.phase = Phase::Collect(Collecting {
            seen,
            layout,
            cursors: members.iter().map(|unit| (*unit, None)).collect(),
            tails: Tails::default(),
        });
        self.phase_since = self.now;
        for unit in members {
            self.send(Errand::Collect(unit), 0);
        }
    }

    // -------------------------------------------------------------------------------------------- collect

    fn collected(
        &mut self,
        unit: UnitIndex,
        page: &[StreamTail],
        done: bool,
    ) -> Result<(), String> {
        let Phase::Collect(collecting) = &mut self.phase else {
            return Ok(());
        };
        if page.is_empty() && !done {
            return Err("an empty page that is not the last".into());
        }
        let report = collecting.seen.reports.get(&unit);
        let trimmed = report.is_some_and(|report| report.marks.trimmed.0 > 0);
        if !plants::acts(Plant::StreamTailsMissed, 4) {
            collecting.tails.add(page, trimmed);
        }
        // Whoever gives page after page is not stuck.
        self.phase_since = self.now;
        if !done {
            let after = page.last().map(|tail| tail.stream);
            collecting.cursors.insert(unit, after);
            self.send(Errand::Collect(unit), 0);
            return Ok(());
        }
        collecting.cursors.remove(&unit);
        if collecting.cursors.is_empty() {
            self.commit();
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------- commit

    fn commit(&mut self) {
        let Phase::Collect(collecting) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let (seen, layout) = (collecting.seen, collecting.layout);
        let trimmers = seen.reports.values();
        let trimmers = trimmers.filter(|r| r.marks.trimmed.0 > 0);
        let trimmers = u16::try_from(trimmers.count()).unwrap_or(u16::MAX);
        let sealed = seen.reports.iter().map(|(unit, r)| (*unit, r.epoch));
        let joined = seen.joins.iter().filter_map(|join| {
            let unit = layout.find_unit(join.id)?;
            Some((unit, self.persisted(&join.name)))
        });
        let persisted = sealed.chain(joined);
        let rest = AfterCommit {
            tails: collecting.tails.finish(trimmers, seen.trimmed()),
            trimmed: seen.trimmed(),
            lost: seen.lost(),
            persisted: persisted.collect(),
            settle_from: seen.settled().min(layout.start),
        };
        let parent = self.history.epoch();
        self.took.sealed(self.now);
        self.phase = Phase::Commit(rest);
        let before = self.history.current();
        let outcome = before.map(|before| outcome(before, &layout));
        let origin = self.origin.take().map(|(cause, since)| {
            let began = self.wall_clock.saturating_sub(self.now.since(since));
            Origin::new(began.as_secs(), cause, &outcome.unwrap_or_default())
        });
        self.store(StoreChange::Commit {
            parent,
            layout,
            origin,
        });
    }

    /// The store has what was asked of it; the history has it, too.
    pub(crate) fn change_stored(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            // Somebody may have come or gone meanwhile.
            Phase::Intend => {
                let there = self.next_members().filter(|(_, at)| *at <= self.now);
                if there.is_some() && self.next_sequencer().is_some() {
                    self.seal();
                } else {
                    self.gather("a server was missed while a reconfiguration began".into());
                }
            }
            Phase::Commit(rest) => self.open(rest),
            Phase::Record { settle_from } => self.opened(settle_from),
            Phase::Finish => self.finished(),
            other => self.phase = other,
        }
    }

    // ------------------------------------------------------------------------------------------- errands

    /// What an errand of the current phase asks, and of whom.
    pub(crate) fn request(&self, errand: &Errand) -> Option<(ServerName, Request, Bytes)> {
        if let Errand::Copy(step) = errand {
            return self.copy_request(*step);
        }
        let (name, request) = self.short_request(errand)?;
        Some((name, request, Bytes::new()))
    }

    fn short_request(&self, errand: &Errand) -> Option<(ServerName, Request)> {
        let (name, request) = match (errand, &self.phase) {
            (Errand::Seal(unit), Phase::Seal(sealing)) => {
                let epoch = sealing.epoch;
                (
                    self.unit_name(*unit),
                    Request::Unit(UnitRequest::Seal { epoch }),
                )
            }
            (Errand::SealSequencer, Phase::Seal(sealing)) => {
                let epoch = sealing.epoch;
                let request = SequencerRequest::Seal { epoch };
                (&self.sequencer, Request::Sequencer(request))
            }
            (
                Errand::SealHolder(name),
                Phase::Seal(_) | Phase::Collect(_) | Phase::Commit(_) | Phase::Open(_),
            ) => {
                let epoch = self.history.intent();
                let epoch = epoch.unwrap_or_else(|| self.history.epoch());
                let request = SequencerRequest::Seal { epoch };
                (name, Request::Sequencer(request))
            }
            (Errand::Collect(unit), Phase::Collect(collecting)) => {
                let request = UnitRequest::Collect {
                    epoch: collecting.layout.epoch,
                    after: *collecting.cursors.get(unit)?,
                    below: collecting.layout.start,
                };
                (self.unit_name(*unit), Request::Unit(request))
            }
            (Errand::Rejoin(name, _, below), Phase::Idle) => {
                let request = UnitRequest::Rejoin {
                    cluster: self.history.cluster()?,
                    epoch: self.history.next_epoch(),
                    below: *below,
                };
                (name, Request::Unit(request))
            }
            _ => return self.request_after_commit(errand),
        };
        Some((name.clone(), request))
    }

    /// Takes an answer; an error, in words, has the errand repeated.
    pub(crate) fn errand_answered(
        &mut self,
        errand: &Errand,
        response: Response,
        body: Bytes,
    ) -> Result<(), String> {
        match (errand, response) {
            (Errand::Copy(step), response) => self.copy_answered(*step, response, body),
            (Errand::Rejoin(name, run, below), Response::Unit(UnitResponse::Done)) => {
                self.can_join(name.clone(), *run, *below);
                Ok(())
            }
            (Errand::Seal(unit), Response::Unit(UnitResponse::Sealed(report))) => {
                self.note_confirmed(*unit, report.epoch)?;
                if let Phase::Seal(sealing) = &mut self.phase {
                    sealing.reports.insert(*unit, report);
                }
                self.all_sealed();
                Ok(())
            }
            (Errand::SealHolder(name), response) => {
                self.noted_seal(name.clone(), &response);
                Ok(())
            }
            (Errand::SealSequencer, response @ (Response::Sequencer(_) | Response::Refused(_))) => {
                self.noted_seal(self.sequencer.clone(), &response);
                self.seal_units();
                self.all_sealed();
                Ok(())
            }
            (Errand::Collect(unit), Response::Unit(UnitResponse::Tails { tails, done })) => {
                self.collected(*unit, &tails, done)
            }
            (Errand::Seal(unit), Response::Refused(Refusal::Sealed { epoch })) => Err(format!(
                "{} was sealed for epoch {epoch} already, which the history does not know; restart it, and if that does not help restore the layout server's newest directory",
                self.unit_name(*unit)
            )),
            (_, response) => self.answered_after_commit(errand, response),
        }
    }

    /// A unit of the layout says that it has persisted `epoch`. No epoch is made of a report by one that has lost its past, which
    /// may not have been heard yet: the start would lie below what was acknowledged (rule 28).
    fn note_confirmed(&mut self, unit: UnitIndex, epoch: Epoch) -> Result<(), String> {
        let Some(layout) = self.history.current() else {
            return Ok(());
        };
        let (id, at) = (layout.unit(unit).id, self.now);
        let had = self.surely_persisted(id);
        if epoch < had {
            return Err(planner::has_less(self.unit_name(unit), had, epoch));
        }
        let known = self.confirmed.entry(id).or_insert(Confirmed { epoch, at });
        if known.epoch < epoch {
            *known = Confirmed { epoch, at };
        }
        Ok(())
    }

    /// A sequencer has answered a seal.
    fn noted_seal(&mut self, name: ServerName, response: &Response) {
        if let Response::Sequencer(SequencerResponse::Sealed { incarnation }) = *response {
            self.sequencer_sealed(&SequencerRef { name, incarnation });
        }
    }
}
