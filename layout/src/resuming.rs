//! How an epoch ends well, and how another leader goes on with it.
//!
//! An epoch is at rest when all its units serve it and know that everything below its start is settled. Nothing of it is
//! then known to its leader alone, so the next leader need not make another epoch: appends do not notice the change.

use milonga_protocol::{Position, ServerName};

use crate::core::LayoutCore;
use crate::history::StoreChange;
use crate::phase::Phase;

impl LayoutCore {
    /// All units know that everything below the start is settled: so shall the history.
    pub(crate) fn finish(&mut self) {
        self.phase = Phase::Finish;
        let epoch = self.history.epoch();
        self.store(StoreChange::Settled { epoch });
    }

    /// The history knows.
    pub(crate) fn finished(&mut self) {
        self.rest();
        if matches!(self.phase, Phase::Idle) {
            self.look_at_all();
        }
    }

    /// What was said while the store worked was not looked at.
    pub(crate) fn look_at_all(&mut self) {
        for name in self.needed() {
            if let Some(cause) = self.over(&name) {
                return self.gather(cause);
            }
        }
    }

    /// Whom the newest layout needs.
    fn needed(&self) -> Vec<ServerName> {
        let members = self.members().into_iter();
        let mut names: Vec<_> = members.map(|unit| self.unit_name(unit).clone()).collect();
        if !names.contains(&self.sequencer) {
            names.push(self.sequencer.clone());
        }
        names
    }

    /// Servers that have yet to say that they still serve the epoch.
    pub(crate) fn not_resumed(&self) -> Vec<&ServerName> {
        let unheard = |name: &&ServerName| self.heard.last(name).is_none();
        let mut silent: Vec<_> = (self.members().into_iter())
            .map(|unit| self.unit_name(unit))
            .filter(|name| !self.runs.contains_key(*name))
            .collect();
        silent.extend(Some(&self.sequencer).filter(unheard));
        silent
    }

    /// `name` has said hello.
    pub(crate) fn heard_while_resuming(&mut self, name: &ServerName) {
        // Notes the run of a unit that serves the epoch; all others end it.
        if let Some(cause) = self.over(name) {
            return self.gather(cause);
        }
        if self.not_resumed().is_empty() {
            let start = self.history.current().map(|layout| layout.start);
            self.settled
                .nothing_left_below(start.unwrap_or(Position::ZERO));
            self.publish();
            self.rest();
        }
    }
}
