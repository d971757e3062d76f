//! What units say of positions, over all of them: shared by the invariants of values.

use std::collections::BTreeMap;

use milonga_protocol::{Epoch, Position, ServerName};

use crate::world::network::{Exchange, Said, Shown, Wire};
use crate::world::trace::Moment;
use crate::world::workload::Violation;

/// The values that were named, and what is settled.
#[derive(Debug)]
pub(super) struct Values {
    /// Whether two values are taken for one.
    same: fn(&Said, &Said) -> bool,
    /// Who named which value, in the newest epoch that did.
    newest: BTreeMap<Position, Named>,
    /// What the tail of its chain has had: settled (rule 6).
    settled: BTreeMap<Position, Named>,
}

#[derive(Clone, Debug)]
struct Named {
    at: Moment,
    epoch: Epoch,
    by: ServerName,
    said: Said,
}

impl Values {
    pub(super) const fn new(same: fn(&Said, &Said) -> bool) -> Self {
        Self {
            same,
            newest: BTreeMap::new(),
            settled: BTreeMap::new(),
        }
    }

    /// Compares the values of an answer with each other one of the same epoch, and with what is settled.
    pub(super) fn exchange(&mut self, wire: &Wire, exchange: &Exchange) -> Result<(), Violation> {
        let Some(epoch) = exchange.epoch() else {
            return Ok(());
        };
        let frozen = exchange.is_of_any_epoch();
        let values = exchange.shown.iter().filter(|shown| shown.said.is_value());
        for shown in values {
            let named = Named {
                at: exchange.at,
                epoch,
                by: exchange.server.clone(),
                said: shown.said.clone(),
            };
            // Who was left behind by the epoch that settled it may hold what was void by then, and nobody takes it for more
            // than what one replica has, unless it is the tail, or the reader knew it to be settled.
            let position = shown.position;
            let is_tail = wire.is_tail(epoch, &exchange.server, position);
            let sure = frozen && (is_tail || exchange.knows_settled(position));
            let settled = self.settled.get(&position);
            let settled = settled.filter(|settled| {
                sure || !wire.left_behind(epoch, &exchange.server, settled.epoch)
            });
            self.compare(settled, shown, &named)?;
            if frozen {
                continue;
            }
            let before = self.newest.get(&shown.position);
            self.compare(before.filter(|b| b.epoch == epoch), shown, &named)?;
            if before.is_none_or(|before| before.epoch <= epoch) {
                self.newest.insert(shown.position, named.clone());
            }
            if is_tail {
                self.settled.entry(shown.position).or_insert(named);
            }
        }
        Ok(())
    }

    fn compare(&self, before: Option<&Named>, shown: &Shown, now: &Named) -> Result<(), Violation> {
        match before {
            Some(before) if !(self.same)(&before.said, &now.said) => Err(Violation(format!(
                "{} held {:?} at {} in {}, but {} has {:?} ({:?} in {})",
                shown.position,
                before.said,
                before.by,
                before.epoch,
                now.by,
                now.said,
                shown.how,
                now.epoch
            ))),
            _ => Ok(()),
        }
    }

    /// When, and in which epoch, the tail of its chain said for the first time that it had `position`.
    pub(super) fn settled_at(&self, position: Position) -> Option<(Moment, Epoch)> {
        let named = self.settled.get(&position)?;
        Some((named.at, named.epoch))
    }
}
