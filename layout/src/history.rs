//! The history of layouts: what is durable about the past, and how it may change.

use std::collections::BTreeMap;

use milonga_protocol::change::{EpochReport, HistoryReport, Origin};
use milonga_protocol::layout::{LayoutError, ascending};
use milonga_protocol::limits::{ORIGINS_KEPT, STARTS_IN_LAYOUT, STARTS_PER_PAGE};
use milonga_protocol::{ClusterId, Epoch, Layout, Position, UnitId};
use serde::{Deserialize, Serialize};

use crate::algebra;
use crate::policy::Policy;

/// What the layout's owner knows durably.
///
/// Invariants: `current` is the layout of the last epoch in `starts`; its cluster is `cluster`; an intent is above
/// every committed epoch. All hold after each [`Self::apply`], because it refuses whatever would break one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) current: Option<Layout>,
    pub(crate) intent: Option<Epoch>,
    pub(crate) starts: BTreeMap<Epoch, Position>,
    pub(crate) opened: BTreeMap<UnitId, Epoch>,
    /// All that was ever given up lies in here.
    pub(crate) given_up: Option<(Position, Position)>,
    /// The last epoch below whose start all is settled; the store without raft does not keep it.
    pub(crate) settled: Epoch,
    /// When and why the newest epochs came about, as far as it is known; the store without raft does not keep it.
    pub(crate) origins: BTreeMap<Epoch, Origin>,
    /// What operators decided about units.
    pub(crate) policy: Policy,
}

/// A change of the history; durable before it counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StoreChange {
    /// A reconfiguration towards `epoch` begins: nobody else may begin one (rule 15).
    Intent {
        /// The epoch that is to come.
        epoch: Epoch,
    },
    /// Compare-and-set: `layout` follows the layout of epoch `parent` (0 = the empty history).
    Commit {
        /// The epoch it was made from.
        parent: Epoch,
        /// The new layout.
        layout: Layout,
        /// When and why it came about; builds of before did not say.
        origin: Option<Origin>,
    },
    /// These units confirmed that they have entered `epoch` (rule 28).
    Opened {
        /// The epoch.
        epoch: Epoch,
        /// Who confirmed.
        units: Vec<UnitId>,
    },
    /// What is lost there is given up: whoever is out now may not bring it back (rule 11).
    GivenUp {
        /// First position.
        from: Position,
        /// End, exclusive.
        to: Position,
    },
    /// Everything below the start of `epoch` is settled, and all its units know: nothing is left to do for it.
    Settled {
        /// The epoch.
        epoch: Epoch,
    },
    /// What operators have decided about units from now on, all of it.
    Policy {
        /// All decisions.
        policy: Policy,
    },
}

/// Why a change was refused; the history is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// Somebody else was first.
    #[error("the history is at epoch {current}, the change was made for epoch {expected}")]
    Parent {
        /// Last committed epoch.
        current: Epoch,
        /// What the change expects.
        expected: Epoch,
    },
    /// An epoch that cannot come next.
    #[error("epoch {epoch} cannot follow epoch {current} (intent: {intent})")]
    Epoch {
        /// The epoch.
        epoch: Epoch,
        /// Last committed epoch.
        current: Epoch,
        /// The epoch of the intent, 0 if there is none.
        intent: Epoch,
    },
    /// The layout itself is wrong.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The layout does not continue the history.
    #[error("the layout of epoch {epoch} does not continue the history: {why}")]
    Discontinuous {
        /// The epoch.
        epoch: Epoch,
        /// What does not fit.
        why: &'static str,
    },
    /// Decisions that cannot stand together.
    #[error("the decisions about units are wrong: {why}")]
    Policy {
        /// What does not fit.
        why: &'static str,
    },
}

impl History {
    /// The last committed layout; `None` before genesis.
    #[must_use]
    pub const fn current(&self) -> Option<&Layout> {
        self.current.as_ref()
    }

    /// The cluster; `None` before genesis.
    #[must_use]
    pub const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The epoch of a reconfiguration that was begun and not committed.
    #[must_use]
    pub const fn intent(&self) -> Option<Epoch> {
        self.intent
    }

    /// The last epoch that the unit confirmed to have entered.
    #[must_use]
    pub fn opened(&self, unit: UnitId) -> Option<Epoch> {
        self.opened.get(&unit).copied()
    }

    /// Where a unit that comes back has to begin to forget, as others may have given up what it holds; `MAX` if nothing
    /// above the trim mark was.
    #[must_use]
    pub fn given_up_from(&self, trimmed: Position) -> Position {
        let given_up = self.given_up.filter(|(_, to)| *to > trimmed);
        given_up.map_or(Position::MAX, |(from, _)| from)
    }

    /// Whether everything was done for the last epoch and no other was begun: then any leader can go on with it.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.intent.is_none() && self.current.is_some() && self.settled == self.epoch()
    }

    /// The newest layout, if all its units have entered it.
    #[must_use]
    pub fn current_if_opened(&self) -> Option<&Layout> {
        self.current.as_ref().filter(|layout| {
            let id = |unit| layout.unit(unit).id;
            let mut members = layout.members().into_iter();
            members.all(|unit| self.opened.get(&id(unit)) == Some(&layout.epoch))
        })
    }

    /// What operators decided about units.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Last committed epoch, 0 before genesis.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.current.as_ref().map_or(Epoch::NONE, |c| c.epoch)
    }

    /// The epoch that the next reconfiguration makes: that of a pending intent, else the next.
    #[must_use]
    pub fn next_epoch(&self) -> Epoch {
        self.intent.unwrap_or_else(|| self.epoch().next())
    }

    /// Starts of all epochs after `epoch`, oldest first.
    #[must_use]
    pub fn starts_after(&self, epoch: Epoch) -> Vec<(Epoch, Position)> {
        let after = self.starts.range(epoch.next()..);
        after.map(|(epoch, start)| (*epoch, *start)).collect()
    }

    /// The starts that the layout of `epoch` lists if it starts at `start`.
    #[must_use]
    pub fn starts_with(&self, epoch: Epoch, start: Position) -> Vec<(Epoch, Position)> {
        let newest = self.starts.iter().rev().take(STARTS_IN_LAYOUT - 1);
        let mut starts: Vec<_> = newest.map(|(epoch, start)| (*epoch, *start)).collect();
        starts.reverse();
        starts.push((epoch, start));
        starts
    }

    /// Epochs after this one, as many as fit one answer, and the newest layout.
    #[must_use]
    pub fn report(&self, after: Epoch) -> HistoryReport {
        let mut later = self.starts.range(after.next()..);
        let epochs = later.by_ref().take(STARTS_PER_PAGE);
        let epochs = epochs.map(|(epoch, start)| EpochReport {
            epoch: *epoch,
            start: *start,
            origin: self.origins.get(epoch).cloned(),
        });
        HistoryReport {
            epochs: epochs.collect(),
            more: later.next().is_some(),
            current: self.current.clone(),
        }
    }

    /// Makes a change, or refuses it whole.
    ///
    /// # Errors
    /// [`HistoryError`] says which invariant it would break.
    pub fn apply(&mut self, change: &StoreChange) -> Result<(), HistoryError> {
        match change {
            StoreChange::Intent { epoch } => {
                self.check_next(*epoch)?;
                self.intent = Some(*epoch);
            }
            StoreChange::Commit {
                parent,
                layout,
                origin,
            } => {
                self.check_commit(*parent, layout)?;
                self.cluster = Some(layout.cluster);
                self.intent = None;
                self.starts.insert(layout.epoch, layout.start);
                let origin = origin.clone().map(|origin| (layout.epoch, origin));
                self.origins.extend(origin);
                if self.origins.len() > ORIGINS_KEPT {
                    self.origins.pop_first();
                }
                self.current = Some(layout.clone());
            }
            StoreChange::Opened { epoch, units } => {
                let (current, expected) = (self.epoch(), *epoch);
                if expected != current {
                    return Err(HistoryError::Parent { current, expected });
                }
                self.opened.extend(units.iter().map(|unit| (*unit, *epoch)));
            }
            StoreChange::GivenUp { from, to } => {
                let (low, high) = self.given_up.unwrap_or((*from, *to));
                self.given_up = Some((low.min(*from), high.max(*to)));
            }
            StoreChange::Settled { epoch } => {
                let (current, expected) = (self.epoch(), *epoch);
                if expected != current {
                    return Err(HistoryError::Parent { current, expected });
                }
                self.settled = *epoch;
            }
            StoreChange::Policy { policy } => {
                policy.check().map_err(|why| HistoryError::Policy { why })?;
                self.policy = policy.clone();
            }
        }
        Ok(())
    }

    /// Whether what was read from a disk is a history: everything that [`Self::apply`] keeps up.
    pub(crate) fn check(&self) -> Result<(), String> {
        let starts: Vec<_> = self.starts.iter().map(|(e, start)| (*e, *start)).collect();
        if !ascending(&starts) {
            return Err("a later epoch starts below an earlier one".into());
        }
        let epoch = self.epoch();
        if self.intent.is_some_and(|intent| intent <= epoch) {
            return Err("its intent is for an epoch that is over".into());
        }
        if self.opened.values().any(|opened| *opened > epoch) {
            return Err("a unit confirmed an epoch that is not committed".into());
        }
        if self.settled > epoch {
            return Err("an epoch is settled that is not committed".into());
        }
        self.policy.check()?;
        let Some(layout) = &self.current else {
            return match (starts.is_empty(), self.cluster) {
                (true, None) => Ok(()),
                _ => Err("it names a cluster or starts, but has no layout".into()),
            };
        };
        layout.validate().map_err(|error| error.to_string())?;
        if Some(layout.cluster) != self.cluster {
            return Err("its header and its layout name different clusters".into());
        }
        let newest = starts.len().saturating_sub(layout.starts.len());
        if starts.is_empty() || layout.starts != starts[newest..] {
            return Err("its list of starts does not end with its layout's".into());
        }
        Ok(())
    }

    /// An epoch comes next if it is above the last one and not below an intent.
    fn check_next(&self, epoch: Epoch) -> Result<(), HistoryError> {
        let current = self.epoch();
        let intent = self.intent.unwrap_or_default();
        if epoch <= current || epoch < intent {
            return Err(HistoryError::Epoch {
                epoch,
                current,
                intent,
            });
        }
        Ok(())
    }

    fn check_commit(&self, parent: Epoch, layout: &Layout) -> Result<(), HistoryError> {
        let current = self.epoch();
        if parent != current {
            let expected = parent;
            return Err(HistoryError::Parent { current, expected });
        }
        self.check_next(layout.epoch)?;
        layout.validate()?;
        let wrong = |why| {
            let epoch = layout.epoch;
            Err(HistoryError::Discontinuous { epoch, why })
        };
        if self.intent != Some(layout.epoch) {
            return wrong("no intent for this epoch");
        }
        if self.cluster.is_some_and(|c| c != layout.cluster) {
            return wrong("another cluster");
        }
        if layout.starts != self.starts_with(layout.epoch, layout.start) {
            return wrong("its list of starts differs");
        }
        let Some(old) = &self.current else {
            if layout.start != Position::ZERO || layout.segments.len() != 1 {
                return wrong("the first layout has one segment and starts at 0");
            }
            return Ok(());
        };
        if layout.start < old.start {
            return wrong("its start is below the last one");
        }
        algebra::continues(old, layout).or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, layout};

    fn commit(layout: Layout) -> StoreChange {
        let parent = Epoch(layout.epoch.0 - 1);
        StoreChange::Commit {
            parent,
            layout,
            origin: None,
        }
    }

    fn intent(epoch: u64) -> StoreChange {
        let epoch = Epoch(epoch);
        StoreChange::Intent { epoch }
    }

    fn history(starts: &[u64]) -> History {
        let mut history = History::default();
        for (epoch, start) in (1..).zip(starts) {
            history.apply(&intent(epoch)).expect("next");
            let layout = layout(epoch, *start, &history);
            history.apply(&commit(layout)).expect("continues");
        }
        history
    }

    #[test]
    fn layouts_follow_one_another() {
        let mut history = history(&[0, 7, 7, 30]);
        assert_eq!(history.epoch(), Epoch(4));
        assert_eq!(history.next_epoch(), Epoch(5));
        assert_eq!(
            history.starts_after(Epoch(2)),
            [(Epoch(3), Position(7)), (Epoch(4), Position(30))]
        );
        history.apply(&intent(5)).expect("next");
        // An intent is repeatable, and the next leader takes it over.
        history.apply(&intent(5)).expect("again");
        assert_eq!(history.next_epoch(), Epoch(5));
        let unit = UnitId(1);
        let epoch = Epoch(4);
        let units = vec![unit];
        history
            .apply(&StoreChange::Opened { epoch, units })
            .expect("current");
        assert_eq!(history.opened(unit), Some(Epoch(4)));
    }

    #[test]
    fn a_stale_change_is_refused_and_changes_nothing() {
        let mut history = history(&[0, 7]);
        let before = history.clone();
        let refused = |history: &mut History, change: &StoreChange| {
            let error = history.apply(change).expect_err("stale").to_string();
            assert_eq!(history, &before);
            error
        };
        assert!(refused(&mut history, &intent(2)).contains("cannot follow"));
        let third = layout(3, 9, &before);
        assert!(refused(&mut history, &commit(third.clone())).contains("no intent"));
        let second = layout(2, 9, &before);
        assert!(refused(&mut history, &commit(second)).contains("is at epoch 2"));
        let opened = StoreChange::Opened {
            epoch: Epoch(1),
            units: vec![],
        };
        assert!(refused(&mut history, &opened).contains("is at epoch 2"));
    }

    #[test]
    fn a_layout_that_does_not_continue_the_history_is_refused() {
        let mut history = history(&[0, 7]);
        history.apply(&intent(3)).expect("next");
        let good = layout(3, 9, &history);
        let refused = |layout: &Layout| {
            let change = commit(layout.clone());
            history
                .clone()
                .apply(&change)
                .expect_err("wrong")
                .to_string()
        };
        let mut lower = good.clone();
        lower.start = Position(6);
        lower.starts = history.starts_with(Epoch(3), Position(6));
        // The protocol's validator knows that starts ascend.
        assert!(refused(&lower).contains("start"));
        let mut foreign = good.clone();
        foreign.cluster = ClusterId(9);
        assert!(refused(&foreign).contains("another cluster"));
        let mut moved = good.clone();
        moved.segments[0].chains.swap(0, 1);
        assert!(refused(&moved).contains("moves positions"));
        let mut forgetful = good.clone();
        forgetful.starts.remove(0);
        assert!(refused(&forgetful).contains("list of starts"));
        let mut broken = good;
        broken.segments[0].chains.clear();
        assert!(refused(&broken).contains("no chains"));
    }

    #[test]
    fn the_newest_origins_are_kept() {
        let mut history = history(&[0]);
        let all = 2..=u64::try_from(ORIGINS_KEPT).unwrap() + 2;
        for epoch in all.clone() {
            history.apply(&intent(epoch)).expect("next");
            let mut change = commit(layout(epoch, epoch, &history));
            if let StoreChange::Commit { origin, .. } = &mut change {
                *origin = Some(samples::origin(epoch));
            }
            history.apply(&change).expect("continues");
        }
        let report = history.report(Epoch::NONE);
        assert!(report.more);
        let origins = report.epochs.iter().map(|report| report.origin.clone());
        let origins: Vec<_> = origins.take(4).collect();
        let known = [3, 4].map(|epoch| Some(samples::origin(epoch)));
        // The first one did not say, the second one is too old.
        assert_eq!(origins[..2], [None, None]);
        assert_eq!(origins[2..], known);
        assert_eq!(history.origins.len(), ORIGINS_KEPT);
    }

    #[test]
    fn a_layout_lists_only_the_newest_starts() {
        let mut history = history(&[0]);
        history.starts = (1..=1_000).map(|e| (Epoch(e), Position(e))).collect();
        let starts = history.starts_with(Epoch(1_001), Position(2_000));
        assert_eq!(starts.len(), STARTS_IN_LAYOUT);
        assert_eq!(starts.first(), Some(&(Epoch(746), Position(746))));
        assert_eq!(starts.last(), Some(&(Epoch(1_001), Position(2_000))));
    }
}
