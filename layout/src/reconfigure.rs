//! Up to the commit: gather, intend, seal, collect (rules 15 and 16). Nothing here changes an entry.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::layout::SequencerRef;
use milonga_protocol::messages::{
    Lease, Refusal, Request, Response, SequencerRequest, StreamTail, UnitRequest, UnitResponse,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Incarnation, ServerName, Time, UnitIndex};

use crate::core::LayoutCore;
use crate::history::StoreChange;
use crate::phase::{AfterCommit, Collecting, Errand, Phase, Sealing};
use crate::planner::{self, Observations};
use crate::tails::Tails;

/// What starts together shares one reconfiguration: so long nothing new must have been heard.
const QUIET: Duration = Duration::from_millis(50);

impl LayoutCore {
    // --------------------------------------------------------------------------------------------- gather

    /// Listed servers without a recent hello in their role.
    pub(crate) fn missing(&self) -> Vec<&ServerName> {
        let fresh = |name| self.heard.fresh(self.now, name);
        let units = self.units.iter();
        let mut missing: Vec<_> = units
            .filter(|name| fresh(name).is_none_or(|hello| hello.unit.is_none()))
            .collect();
        if self.next_sequencer().is_none() && !missing.contains(&&self.sequencer) {
            missing.push(&self.sequencer);
        }
        missing
    }

    /// Why those who are there may not take part, with the way out.
    pub(crate) fn objections(&self) -> Vec<String> {
        let hello = |name| Some((name, self.heard.last(name)?.unit?));
        let units: Vec<_> = self.units.iter().filter_map(hello).collect();
        let each = units.iter();
        let each = each.filter_map(|(name, unit)| planner::objection(&self.history, name, unit));
        let mut objections: Vec<_> = each.collect();
        let ids = units.iter().map(|(name, unit)| (*name, unit.id));
        objections.extend(planner::twins(ids));
        objections
    }

    /// When it has been quiet for long enough, if all else is there.
    pub(crate) fn begin_at(&self) -> Option<Time> {
        let Phase::Gather { since, .. } = &self.phase else {
            return None;
        };
        if !self.missing().is_empty() || !self.objections().is_empty() {
            return None;
        }
        let quiet = match self.plan.lease {
            // One process: nobody else can start together with it.
            Lease::DirectoryLock => Duration::ZERO,
            Lease::None => QUIET,
        };
        let (_, chosen_at) = self.next_sequencer()?;
        Some(
            self.heard
                .last_new()
                .max(*since)
                .after(quiet)
                .max(chosen_at),
        )
    }

    pub(crate) fn try_to_begin(&mut self) {
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
        self.phase = Phase::Seal(Sealing {
            epoch: self.history.next_epoch(),
            reports: BTreeMap::new(),
            sequencer: false,
        });
        for unit in self.unit_indexes() {
            self.send(Errand::Seal(unit), 0);
        }
        self.send(Errand::SealSequencer, 0);
    }

    pub(crate) fn all_sealed(&mut self) {
        let Phase::Seal(sealing) = &self.phase else {
            return;
        };
        if sealing.reports.len() < self.units.len() || !sealing.sequencer {
            return;
        }
        let id = |name| Some(self.heard.last(name)?.unit?.id);
        let sequencer = self.sequencer.clone();
        let seen = Observations {
            fresh: self.fresh,
            units: self.units.iter().filter_map(id).collect(),
            reports: sealing.reports.values().copied().collect(),
            sequencer: SequencerRef {
                incarnation: self.heard.run(&sequencer).unwrap_or(Incarnation(0)),
                name: sequencer,
            },
        };
        let layout = planner::next_layout(&self.plan, &self.history, sealing.epoch, &seen);
        if plants::active(Plant::HandedOutBeforeCommit) {
            self.hand_out(&layout);
        }
        self.phase = Phase::Collect(Collecting {
            seen,
            layout,
            cursors: self.unit_indexes().map(|unit| (unit, None)).collect(),
            tails: Tails::default(),
        });
        for unit in self.unit_indexes() {
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
        let report = &collecting.seen.reports[usize::from(unit.0)];
        let trimmed = report.marks.trimmed.0 > 0;
        if !plants::acts(Plant::StreamTailsMissed, 4) {
            collecting.tails.add(page, trimmed);
        }
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
        let trimmers = seen.reports.iter().filter(|r| r.marks.trimmed.0 > 0);
        let trimmers = u16::try_from(trimmers.count()).unwrap_or(u16::MAX);
        let persisted = self
            .unit_indexes()
            .zip(seen.reports.iter().map(|r| r.epoch));
        let rest = AfterCommit {
            tails: collecting.tails.finish(trimmers, seen.trimmed()),
            trimmed: seen.trimmed(),
            lost: seen.lost(),
            persisted: persisted.collect(),
            settle_from: seen.settled().min(layout.start),
        };
        let parent = self.history.epoch();
        self.phase = Phase::Commit(rest);
        self.store(StoreChange::Commit { parent, layout });
    }

    /// The store has what was asked of it; the history has it, too.
    pub(crate) fn change_stored(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            // Somebody may have come or gone meanwhile.
            Phase::Intend => {
                if self.missing().is_empty() && self.objections().is_empty() {
                    self.seal();
                } else {
                    self.gather("a server was missed while a reconfiguration began".into());
                }
            }
            Phase::Commit(rest) => self.open(rest),
            Phase::Record { settle_from } => self.opened(settle_from),
            other => self.phase = other,
        }
    }

    // ------------------------------------------------------------------------------------------- errands

    /// What an errand of the current phase asks, and of whom.
    pub(crate) fn request(&self, errand: &Errand) -> Option<(ServerName, Request)> {
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
            (Errand::Collect(unit), Phase::Collect(collecting)) => {
                let request = UnitRequest::Collect {
                    epoch: collecting.layout.epoch,
                    after: *collecting.cursors.get(unit)?,
                    below: collecting.layout.start,
                };
                (self.unit_name(*unit), Request::Unit(request))
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
    ) -> Result<(), String> {
        match (errand, response) {
            (Errand::Seal(unit), Response::Unit(UnitResponse::Sealed(report))) => {
                if let Phase::Seal(sealing) = &mut self.phase {
                    sealing.reports.insert(*unit, report);
                }
                self.all_sealed();
                Ok(())
            }
            (Errand::SealSequencer, Response::Sequencer(_) | Response::Refused(_)) => {
                if let Phase::Seal(sealing) = &mut self.phase {
                    sealing.sequencer = true;
                }
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
}
