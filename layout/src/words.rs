//! What is going on, for people.

use std::collections::BTreeSet;

use milonga_protocol::{Layout, ServerName};

use crate::algebra::active_chains;
use crate::core::LayoutCore;
use crate::phase::Phase;

impl LayoutCore {
    /// One sentence: the step that is under way and who is waited for.
    pub(crate) fn why(&self) -> String {
        let epoch = self.history.next_epoch();
        let mut words = match &self.phase {
            Phase::Gather { cause, .. } => return self.why_gather(cause),
            Phase::Intend => format!("recording the intent for epoch {epoch}"),
            Phase::Seal(sealing) => {
                let units = sealing.members.iter();
                let silent = units.filter(|unit| !sealing.reports.contains_key(unit));
                let mut silent: Vec<_> = silent.map(|unit| self.unit_name(*unit)).collect();
                if !sealing.sequencer {
                    silent.push(&self.sequencer);
                }
                format!("sealing for epoch {epoch}: waiting for {}", list(silent))
            }
            Phase::Collect(collecting) => {
                let left = collecting.cursors.keys();
                let left: Vec<_> = left.map(|unit| self.unit_name(*unit)).collect();
                format!("collecting stream tails from {}", list(left))
            }
            Phase::Commit { .. } => format!("recording the layout of epoch {epoch}"),
            Phase::Open(opening) => {
                let members = self.members();
                let closed = members.difference(&opening.opened);
                let mut left: Vec<_> = closed.map(|unit| self.unit_name(*unit)).collect();
                if opening.page.is_some() {
                    left.push(&self.sequencer);
                }
                let epoch = self.history.epoch();
                let lease = if opening.bootstrapping {
                    ""
                } else {
                    "; the lease of the sequencer before has to run out"
                };
                format!("opening epoch {epoch}: waiting for {}{lease}", list(left))
            }
            Phase::Record { .. } => "recording who entered the new epoch".into(),
            Phase::Settle(settling) => {
                let troubles = settling.settle.waiting();
                let troubles =
                    troubles.map(|(unit, why)| format!("; {}: {why}", self.unit_name(unit)));
                format!(
                    "published; settling what lies below{}",
                    troubles.collect::<String>()
                )
            }
            Phase::Report { .. } => "published; reporting what is settled".into(),
            Phase::Finish => "published; recording that all is done".into(),
            Phase::Idle => "published".into(),
            Phase::Resume => {
                let silent = self.not_resumed();
                format!("published; taking over: waiting for {}", list(silent))
            }
            Phase::Halted { why } => {
                return format!("stopped, because the history cannot be recorded: {why}");
            }
        };
        for (errand, why) in self.courier.troubles() {
            if let Some(name) = self.whom(errand) {
                words.push_str(&format!("; {name}: {}", unnamed(&name, why)));
            }
        }
        words
    }

    fn why_gather(&self, cause: &str) -> String {
        let objections = self.objections();
        if !objections.is_empty() && self.next_members().is_none() {
            return format!("cannot go on: {}", objections.join("; "));
        }
        let missing = self.missing();
        if missing.is_empty() {
            return format!("a reconfiguration is about to begin, because {cause}");
        }
        let waited_for = list(missing.iter().copied());
        let mut units = missing.iter().filter(|name| self.member(name).is_some());
        if !units.any(|name| self.heard.fresh(self.now, name).is_some()) {
            return format!("waiting for {waited_for} to say hello, because {cause}");
        }
        // Some units do say hello: they cannot take part.
        let troubles = missing.iter().filter_map(|name| {
            let why = self.member(name).and_then(|_| self.trouble(name))?;
            Some(format!("; {name}: {why}"))
        });
        let troubles = troubles.collect::<String>();
        format!("waiting for {waited_for}, because {cause}{troubles}")
    }
}

/// What is said of `name`, for somebody who has named it before.
pub(crate) fn unnamed<'a>(name: &ServerName, words: &'a str) -> &'a str {
    let rest = words.strip_prefix(name.as_str());
    rest.and_then(|rest| rest.strip_prefix(' '))
        .unwrap_or(words)
}

/// Names, with commas.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a ServerName>) -> String {
    let names: Vec<_> = names.into_iter().map(ServerName::as_str).collect();
    names.join(", ")
}

/// What `after` changes of `before`, in words that follow the cause: who was noticed first need not be who leaves.
pub(crate) fn outcome(before: &Layout, after: &Layout) -> String {
    let (old, new) = (names(before), names(after));
    let gone = list(old.difference(&new).copied());
    let come = list(new.difference(&old).copied());
    let mut words = String::new();
    if !gone.is_empty() {
        words.push_str(&format!("; goes on without {gone}"));
    }
    if !come.is_empty() {
        words.push_str(&format!("; takes in {come}"));
    }
    let chains = active_chains(after).len();
    if chains > active_chains(before).len() {
        words.push_str(&format!("; there are {chains} chains now"));
    }
    if before.sequencer.name != after.sequencer.name {
        words.push_str(&format!("; {} takes over", after.sequencer.name));
    }
    words
}

fn names(layout: &Layout) -> BTreeSet<&ServerName> {
    let members = layout.members().into_iter();
    members.map(|unit| &layout.unit(unit).name).collect()
}
