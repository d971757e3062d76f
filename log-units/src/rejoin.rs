//! Coming back into a chain, or into a first one: forget, and be given what is lacking (rules 10 and 19).
//!
//! What a unit holds below its settled mark is what every replica holds, for ever. What it holds above was decided by
//! others while it was away; so was what an operator gave up. So it forgets all of that before any layout names it; from
//! then on, everything it holds is true, and all it can do is lack something.

use bytes::Bytes;
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::{CallId, Refusal, UnitResponse};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{ClusterId, Epoch, Position, UnitRange};

use crate::unit::Unit;

/// Somebody is waiting until what is not settled is forgotten.
#[derive(Debug)]
pub(crate) struct Rejoining {
    pub(crate) cluster: ClusterId,
    epoch: Epoch,
    /// Only what lies below it may be kept.
    below: Position,
    calls: Vec<CallId>,
}

impl Unit {
    pub(crate) fn rejoin(
        &mut self,
        call: CallId,
        cluster: ClusterId,
        epoch: Epoch,
        below: Position,
    ) {
        let least = self.state.durable.epoch.next().max(self.sealed_for());
        if epoch < least {
            let epoch = Epoch(least.0.saturating_sub(1));
            return self.refuse(call, Refusal::Sealed { epoch });
        }
        if let Some(refusal) = self.poisoned().or_else(|| self.foreign(cluster)) {
            return self.refuse(call, refusal);
        }
        if self.is_opening() {
            let what = "opening an epoch".to_owned();
            return self.refuse(call, Refusal::Busy { what });
        }
        self.seal_for(epoch);
        let rejoining = self.epochs.rejoining.get_or_insert_with(|| Rejoining {
            cluster,
            epoch,
            below,
            calls: Vec::new(),
        });
        rejoining.epoch = rejoining.epoch.max(epoch);
        rejoining.below = rejoining.below.min(below);
        rejoining.calls.push(call);
    }

    /// Goes on as far as possible: what is on its way to the disk first.
    pub(crate) fn go_on_rejoining(&mut self) {
        let Some(rejoining) = &self.epochs.rejoining else {
            return;
        };
        if !self.writer.is_idle() || !self.state.is_idle() {
            return;
        }
        let from = rejoining.below.min(self.mark);
        if self.index.high > from && !plants::active(Plant::RejoinsWithItsPast) {
            return self.want_void(from);
        }
        if self.cluster().is_none() {
            let cluster = rejoining.cluster;
            return self.stamp(cluster);
        }
        // Making a whole file takes long: not while appends wait for the epoch to be opened.
        if !self.has_segment() {
            return self.await_segment();
        }
        let over = rejoining.epoch < self.sealed_for();
        let calls = self.epochs.rejoining.take().map(|r| r.calls);
        for call in calls.unwrap_or_default() {
            if over {
                let epoch = self.over();
                self.refuse(call, Refusal::Sealed { epoch });
            } else {
                self.reply(call, UnitResponse::Done, Bytes::new());
            }
        }
    }

    /// Gives it up; it can be asked for again.
    pub(crate) fn fail_rejoining(&mut self, refusal: &Refusal) {
        let calls = self.epochs.rejoining.take().map(|r| r.calls);
        for call in calls.unwrap_or_default() {
            self.refuse(call, refusal.clone());
        }
    }

    // ----------------------------------------------------------------------------------------------- lacking

    pub(crate) fn lacking(&mut self, call: CallId, epoch: Epoch, from: Position, limit: u32) {
        let ranges = match self.check(epoch) {
            Ok(serving) => serving.owed(),
            Err(refusal) => return self.refuse(call, refusal),
        };
        let limit = (limit as usize).clamp(1, ITEMS_PER_MESSAGE);
        let (positions, through) = self.lacking_of(&ranges, from, limit);
        if positions.is_empty() && from <= self.trimmed() {
            // All that is owed is here, and can be read: damage there was repaired.
            let below = self.owed_below();
            self.index.forget_suspects(below);
        }
        let response = UnitResponse::Lacking { positions, through };
        self.reply(call, response, Bytes::new());
    }

    /// Own positions that nothing readable is held at, and where the search stopped.
    fn lacking_of(
        &self,
        ranges: &[UnitRange],
        from: Position,
        limit: usize,
    ) -> (Vec<Position>, Position) {
        let mut found = Vec::new();
        for range in ranges {
            let mut at = range.first_at_or_above(from.max(self.trimmed()));
            while at < range.to {
                if found.len() >= limit {
                    return (found, at);
                }
                // What is held without a gap is passed at once, but for what turned out to be unreadable.
                let gap = self.index.first_gap(at, range.stripes, range.to);
                let lost = self.index.first_lost(at, gap, |p| range.owns(p));
                let lacks = lost.unwrap_or(gap);
                if lacks >= range.to {
                    break;
                }
                found.push(lacks);
                at = lacks.plus(range.stripes);
            }
        }
        (found, Position::MAX)
    }

    /// The range being given to this unit that `position` belongs to.
    pub(crate) fn joining_range(&self, position: Position) -> Option<UnitRange> {
        let joining = &self.serving()?.joining;
        joining.iter().copied().find(|range| range.owns(position))
    }
}
