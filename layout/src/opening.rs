//! From the commit to the publication: open, bootstrap, record (rules 1, 17, 28).

use std::collections::BTreeSet;

use milonga_protocol::limits::STREAM_TAILS_PER_PAGE;
use milonga_protocol::messages::{
    Bootstrap, Hello, Refusal, Request, Response, SequencerRequest, SequencerResponse, UnitRequest,
    UnitResponse,
};
use milonga_protocol::{Layout, Position, ServerName, UnitIndex};

use crate::core::LayoutCore;
use crate::effect::LayoutEffect;
use crate::history::StoreChange;
use crate::phase::{AfterCommit, Errand, Opening, Phase};

impl LayoutCore {
    /// Sends an errand of the current phase.
    pub(crate) fn send(&mut self, errand: Errand, tries: u32) {
        if let Errand::Copy(step) = errand {
            self.before_copy(step);
        }
        let Some((name, request, body)) = self.request(&errand) else {
            return;
        };
        match self.heard.peer(&name) {
            Some(to) => {
                let id = self.courier.leave(errand, tries);
                self.effect(LayoutEffect::Send {
                    id,
                    to,
                    request,
                    body,
                });
            }
            None => {
                let why = format!("{name} has not said hello");
                self.courier.again(self.now, errand, tries, why);
            }
        }
    }

    pub(crate) fn open(&mut self, rest: AfterCommit) {
        if let Some(layout) = self.history.current() {
            self.units = layout.units.iter().map(|unit| unit.name.clone()).collect();
        }
        let members = self.members();
        let hellos = members.iter();
        let hellos = hellos.filter_map(|unit| self.heard.last(self.unit_name(*unit)));
        let run = |hello: &Hello| (hello.name.clone(), hello.incarnation);
        let runs = hellos.clone().map(run).collect();
        // What was said while the store worked was not looked at: whoever came back meanwhile without its past does not enter.
        let fit = hellos.filter(|hello| {
            self.was_heard_since_the_start(&hello.name) && self.objection(hello).is_none()
        });
        let fit: Vec<_> = fit.map(run).collect();
        self.entered.extend(fit);
        let before = std::mem::replace(&mut self.runs, runs);
        self.note_members(&before);
        self.lost = rest.lost;
        self.trimmed = rest.trimmed;
        self.phase = Phase::Open(Opening {
            rest,
            opened: BTreeSet::new(),
            bootstrapping: false,
            page: Some(0),
        });
        self.phase_since = self.now;
        let names = members.iter().map(|unit| self.unit_name(*unit));
        let names: Vec<_> = names.chain([&self.sequencer]).cloned().collect();
        for name in names {
            self.heard_while_opening(&name, false);
        }
        if !matches!(self.phase, Phase::Open(_)) {
            return;
        }
        for unit in members {
            self.send(Errand::Open(unit), 0);
        }
        self.bootstrap_if_due();
    }

    /// A hello of `name` has come; `new`: of a run that was not known.
    pub(crate) fn heard_while_opening(&mut self, name: &ServerName, new: bool) {
        let Phase::Open(opening) = &self.phase else {
            return;
        };
        let (Some(current), Some(hello)) = (self.history.current(), self.heard.last(name)) else {
            return;
        };
        let sequencer = &current.sequencer;
        let restarted = format!("{name} was restarted");
        if *name == sequencer.name && hello.incarnation != sequencer.incarnation {
            return self.gather(restarted);
        }
        let mut members = self.members().into_iter();
        let Some(index) = members.find(|unit| self.unit_name(*unit) == name) else {
            return;
        };
        let unit = hello.unit;
        if self.objection(hello).is_some() {
            return self.gather(restarted);
        }
        let serving = unit.is_some_and(|unit| unit.serving == current.epoch);
        // Opening may be what it dies of.
        let restless = new && self.is_left_out_as_restless(index);
        if restless || new && opening.opened.contains(&index) && !serving {
            return self.gather(restarted);
        }
        if new {
            // It has sealed itself and entered nothing yet: the open that it gets is its first.
            let run = hello.incarnation;
            self.takes_part(name, run);
            for (errand, tries) in self.courier.hurry() {
                self.send(errand, tries);
            }
        }
    }

    pub(crate) fn request_after_commit(&self, errand: &Errand) -> Option<(ServerName, Request)> {
        let layout = self.history.current()?;
        let (name, request) = match (errand, &self.phase) {
            (Errand::Open(unit), Phase::Open(opening)) => {
                let persisted = opening
                    .rest
                    .persisted
                    .get(unit)
                    .copied()
                    .unwrap_or_default();
                let request = UnitRequest::Open {
                    layout: layout.clone(),
                    persisted,
                    starts: self.history.starts_after(persisted),
                };
                (self.unit_name(*unit), Request::Unit(request))
            }
            (Errand::Bootstrap, Phase::Open(opening)) => {
                let page = self.bootstrap_page(layout, opening)?;
                let request = SequencerRequest::Bootstrap(page);
                (&layout.sequencer.name, Request::Sequencer(request))
            }
            (Errand::Settled(unit), Phase::Report { .. }) => {
                let (epoch, below) = (layout.epoch, layout.start);
                let request = UnitRequest::Settled { epoch, below };
                (self.unit_name(*unit), Request::Unit(request))
            }
            _ => return None,
        };
        Some((name.clone(), request))
    }

    fn bootstrap_page(&self, layout: &Layout, opening: &Opening) -> Option<Bootstrap> {
        let page = opening.page?;
        let mut pages = opening.rest.tails.chunks(STREAM_TAILS_PER_PAGE);
        let tails = pages.nth(page as usize).unwrap_or_default().to_vec();
        Some(Bootstrap {
            epoch: layout.epoch,
            incarnation: layout.sequencer.incarnation,
            cluster: layout.cluster,
            next: layout.start,
            trimmed: opening.rest.trimmed,
            lost: opening.rest.lost,
            lease: self.plan.lease,
            stream_limit: layout.limits.streams,
            page,
            last: pages.next().is_none(),
            tails,
        })
    }

    pub(crate) fn answered_after_commit(
        &mut self,
        errand: &Errand,
        response: Response,
    ) -> Result<(), String> {
        match (errand, response) {
            (Errand::Open(unit), Response::Unit(UnitResponse::Done)) => {
                if let Phase::Open(opening) = &mut self.phase {
                    opening.opened.insert(*unit);
                }
                self.all_open();
                Ok(())
            }
            (Errand::Bootstrap, Response::Sequencer(SequencerResponse::Done)) => {
                self.page_taken();
                Ok(())
            }
            // The sequencer does not know the pages before: from the first one again.
            (Errand::Bootstrap, Response::Refused(refusal @ Refusal::Malformed { .. })) => {
                if let Phase::Open(opening) = &mut self.phase {
                    opening.page = Some(0);
                }
                Err(refusal.to_string())
            }
            (Errand::Settled(unit), Response::Unit(UnitResponse::Done)) => {
                if let Phase::Report { left } = &mut self.phase {
                    left.remove(unit);
                    if left.is_empty() {
                        self.finish();
                    }
                }
                Ok(())
            }
            // Restarted since it entered the epoch, or overtaken: this epoch is over before it has begun.
            (Errand::Open(_) | Errand::Bootstrap, Response::Refused(Refusal::Sealed { .. }))
            | (
                Errand::Settled(_),
                Response::Refused(Refusal::Sealed { .. } | Refusal::NotYet { .. }),
            ) => {
                if let Some(name) = self.whom(errand) {
                    self.gather(format!("{name} was restarted"));
                }
                Ok(())
            }
            (_, Response::Refused(refusal)) => Err(refusal.to_string()),
            (_, other) => Err(format!("an answer that does not fit: {other:?}")),
        }
    }

    /// The process that an errand goes to; nobody if it is not to be done any more.
    pub(crate) fn whom(&self, errand: &Errand) -> Option<ServerName> {
        Some(match errand {
            Errand::Seal(unit)
            | Errand::Collect(unit)
            | Errand::Open(unit)
            | Errand::Settled(unit) => self.unit_name(*unit).clone(),
            Errand::Rejoin(name, ..) | Errand::SealHolder(name) => name.clone(),
            Errand::Copy(step) => return self.whom_to_copy(*step),
            Errand::SealSequencer | Errand::Bootstrap | Errand::Settle(_) => self.sequencer.clone(),
        })
    }

    fn page_taken(&mut self) {
        let Phase::Open(opening) = &mut self.phase else {
            return;
        };
        let Some(page) = opening.page else {
            return;
        };
        let pages = opening.rest.tails.len().div_ceil(STREAM_TAILS_PER_PAGE);
        if page as usize + 1 < pages {
            opening.page = Some(page + 1);
            self.phase_since = self.now;
            self.send(Errand::Bootstrap, 0);
        } else {
            opening.page = None;
            self.all_open();
        }
    }

    fn all_open(&mut self) {
        let Phase::Open(opening) = &self.phase else {
            return;
        };
        let members = self.members();
        if !members.is_subset(&opening.opened) || opening.page.is_some() {
            return;
        }
        let settle_from = opening.rest.settle_from;
        let layout = self.history.current();
        let id = |unit: &UnitIndex| layout.map(|layout| layout.unit(*unit).id);
        let units = members.iter().filter_map(id).collect();
        let epoch = self.history.epoch();
        self.phase = Phase::Record { settle_from };
        self.store(StoreChange::Opened { epoch, units });
    }

    /// All confirmed, and the store knows: the layout is handed out, and settled below its start.
    pub(crate) fn opened(&mut self, settle_from: Position) {
        self.took.opened(self.now);
        self.publish();
        self.settle(settle_from);
        self.look_at_all();
    }

    /// Tells every unit that all below the start is settled.
    pub(crate) fn report_settled(&mut self) {
        let left = self.members();
        self.phase = Phase::Report { left: left.clone() };
        self.phase_since = self.now;
        for unit in left {
            self.send(Errand::Settled(unit), 0);
        }
    }
}
