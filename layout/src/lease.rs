//! Leases on tail answers (rule 20): whom the leader gave one, and how long the next sequencer has to wait for it.
//!
//! ```text
//!   Renew --> [ this epoch, this run, published ] --> Confirm: a majority is asked --> still so? --> Lease
//!                                                                                       '--> noted: until when it may last
//!   a reconfiguration: no renewals; the old sequencer is sealed beside all else; the bootstrap of the next one waits
//!   until the old one has confirmed that, or its lease has surely run out
//! ```
//!
//! Why that is enough. A lease runs from before its request was sent, so what lasts from the request's *arrival* by our
//! clock, and a margin for how differently clocks run, covers it. Leases of earlier leaders: a majority confirmed such a
//! leader after the request had arrived, so before it voted for this one; so the longest lease, counted from the begin of
//! this core, covers them. Only the sequencer of an opened epoch is given leases, and an epoch is opened after its sequencer
//! was bootstrapped, hence after all earlier leases were over: so at most one run of one process holds any. If that run
//! itself goes on in the next epoch, nobody waits: whoever was bootstrapped answers no query of an earlier epoch.

use std::time::Duration;

use milonga_protocol::layout::SequencerRef;
use milonga_protocol::limits::LONGEST_LEASE_MS;
use milonga_protocol::messages::{CallId, LayoutResponse, Lease, Renewal};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Epoch, Time};

use crate::core::LayoutCore;
use crate::effect::{ConfirmId, LayoutEffect};
use crate::history::History;
use crate::phase::{Errand, Phase};
use crate::plan::ClusterPlan;

/// By so much two clocks may differ, as a part of the time they measure.
const CLOCKS_DIFFER_BY_ONE_IN: u32 = 20;
/// For what is rounded.
const MARGIN: Duration = Duration::from_millis(10);

/// When a lease that was asked for before `arrived` has surely run out.
fn surely_over(arrived: Time, lasts_ms: u32) -> Time {
    let lasts = Duration::from_millis(lasts_ms.into());
    arrived.after(lasts + lasts / CLOCKS_DIFFER_BY_ONE_IN + MARGIN)
}

/// The lease that was given, and those that are asked for.
#[derive(Debug)]
pub(crate) struct Leases {
    /// How long a lease lasts; 0: none is given.
    lasts_ms: u32,
    /// The only run that may hold one; `None` if that is not known.
    holder: Option<SequencerRef>,
    /// From when on nobody holds one any more.
    until: Time,
    /// For this one a majority is being asked.
    asking: Option<Asked>,
    /// This one came meanwhile.
    next: Option<Asked>,
    confirmations: u64,
}

/// A request for a lease.
#[derive(Debug)]
struct Asked {
    call: CallId,
    renewal: Renewal,
    arrived: Time,
}

impl Leases {
    /// As a leader begins: what earlier ones gave may last as long as any lease does.
    pub(crate) fn begin(plan: &ClusterPlan, history: &History, now: Time) -> Self {
        let alone = plan.lease == Lease::DirectoryLock || history.current().is_none();
        let opened = history.current_if_opened();
        Self {
            lasts_ms: match plan.lease {
                Lease::Renewed => plan.lease_ms.min(LONGEST_LEASE_MS),
                Lease::None | Lease::DirectoryLock => 0,
            },
            holder: opened.map(|layout| layout.sequencer.clone()),
            until: if alone {
                Time::default()
            } else {
                surely_over(now, LONGEST_LEASE_MS)
            },
            asking: None,
            next: None,
            confirmations: 0,
        }
    }

    /// When `next` may be bootstrapped.
    fn free_for(&self, next: &SequencerRef) -> Time {
        if self.holder.as_ref() == Some(next) || plants::active(Plant::NextSequencerDoesNotWait) {
            Time::default()
        } else {
            self.until
        }
    }

    /// That run holds none any more.
    fn given_up(&mut self, run: &SequencerRef) {
        if self.holder.as_ref() == Some(run) {
            self.until = Time::default();
        }
    }
}

impl LayoutCore {
    /// The sequencer asks for a lease.
    pub(crate) fn renew(&mut self, call: CallId, renewal: Renewal) {
        let arrived = self.now;
        let asked = Asked {
            call,
            renewal,
            arrived,
        };
        if !self.may_lease(&asked.renewal) {
            return self.lease(call, 0);
        }
        if plants::active(Plant::RenewsWithoutQuorum) {
            return self.grant(asked);
        }
        if self.leases.asking.is_none() {
            return self.confirm(asked);
        }
        if let Some(older) = self.leases.next.replace(asked) {
            self.lease(older.call, 0);
        }
    }

    /// A majority was asked whether this is the leader, after the request had arrived.
    fn confirm(&mut self, asked: Asked) {
        self.leases.confirmations += 1;
        let id = ConfirmId(self.leases.confirmations);
        self.leases.asking = Some(asked);
        self.effect(LayoutEffect::Confirm { id });
    }

    /// The member may lead once more and another one may have led in between, of which this core has not heard: then the
    /// majority's history is newer than its own.
    pub(crate) fn leadership_confirmed(&mut self, id: ConfirmId, leads_at: Option<Epoch>) {
        if id != ConfirmId(self.leases.confirmations) {
            return;
        }
        if let Some(asked) = self.leases.asking.take() {
            let leads = leads_at == Some(self.history.epoch());
            if leads && self.may_lease(&asked.renewal) {
                self.grant(asked);
            } else {
                self.lease(asked.call, 0);
            }
        }
        if let Some(next) = self.leases.next.take() {
            self.confirm(next);
        }
    }

    fn grant(&mut self, asked: Asked) {
        let Renewal {
            name, incarnation, ..
        } = asked.renewal;
        let lasts_ms = self.leases.lasts_ms;
        self.leases.holder = Some(SequencerRef { name, incarnation });
        let until = surely_over(asked.arrived, lasts_ms);
        self.leases.until = self.leases.until.max(until);
        self.lease(asked.call, lasts_ms);
    }

    fn lease(&mut self, call: CallId, lasts_ms: u32) {
        self.reply(call, LayoutResponse::Lease { lasts_ms });
    }

    /// Whether the asker is the sequencer of an epoch that has no successor under way.
    fn may_lease(&self, renewal: &Renewal) -> bool {
        let goes_on = self.is_published() || matches!(self.phase, Phase::Finish);
        let current = self.history.current();
        let own = current.is_some_and(|layout| {
            layout.epoch == renewal.epoch
                && layout.sequencer.name == renewal.name
                && layout.sequencer.incarnation == renewal.incarnation
        });
        self.leases.lasts_ms > 0 && goes_on && own && self.history.intent().is_none()
    }

    // ------------------------------------------------------------------------------------- reconfigurations

    /// Asks who may hold a lease to give it up, unless the next sequencer is asked to seal itself anyway.
    pub(crate) fn seal_holder(&mut self) {
        let Some(holder) = self.leases.holder.clone() else {
            return;
        };
        // Another run cannot speak for it.
        let there = self.heard.run(&holder.name) == Some(holder.incarnation);
        if there && holder.name != self.sequencer && self.leases.until > self.now {
            self.send(Errand::SealHolder(holder.name), 0);
        }
    }

    /// This run has sealed itself.
    pub(crate) fn sequencer_sealed(&mut self, run: &SequencerRef) {
        self.leases.given_up(run);
        self.bootstrap_if_due();
    }

    /// When the sequencer is to be bootstrapped; `None`: it was asked already.
    pub(crate) fn bootstrap_at(&self) -> Option<Time> {
        let Phase::Open(opening) = &self.phase else {
            return None;
        };
        let next = &self.history.current()?.sequencer;
        (!opening.bootstrapping).then(|| self.leases.free_for(next))
    }

    /// Begins the bootstrap once no other run can hold a lease.
    pub(crate) fn bootstrap_if_due(&mut self) {
        if self.bootstrap_at().is_some_and(|at| at <= self.now)
            && let Phase::Open(opening) = &mut self.phase
        {
            opening.bootstrapping = true;
            self.send(Errand::Bootstrap, 0);
        }
    }

    // ---------------------------------------------------------------------------------------------- people

    /// For the status.
    pub(crate) fn leases_in_words(&self) -> String {
        match (self.plan.lease, &self.leases.holder) {
            (Lease::DirectoryLock, _) => "the directory lock stands for it".into(),
            (Lease::None, _) => "switched off".into(),
            (Lease::Renewed, Some(holder)) if self.leases.until > self.now => {
                let (name, lasts) = (&holder.name, self.leases.lasts_ms);
                format!("{name} may hold one, of {lasts} ms")
            }
            (Lease::Renewed, _) => "nobody holds one".into(),
        }
    }
}
