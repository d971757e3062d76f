//! I22: an epoch that changes nothing has a reason. A restart is one, and a suspicion that was wrong; so there are no more of
//! them than restarts, and a few, in any second, and in any half minute. Each stops appends for a moment.

use std::collections::VecDeque;
use std::iter;

use milonga_protocol::{Epoch, Layout, Segment};

use crate::world::journal::Observed;
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

const SECOND: u64 = 1_000_000_000;
/// Within so long, so many suspicions may turn out wrong: each needs half a second of silence, the next ones more.
const FEW: [(u64, usize); 2] = [(SECOND, 3), (30 * SECOND, 8)];
/// A restart may be noticed so much later.
const NOTICED: u64 = 2 * SECOND;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Quiet {
    newest: Epoch,
    /// When an epoch began that changes nothing.
    idle: VecDeque<Moment>,
    /// When servers were started.
    starts: VecDeque<Moment>,
}

impl Invariant for Quiet {
    fn name(&self) -> &'static str {
        "I22 an epoch has a reason"
    }

    fn source(&self) -> &'static str {
        "design §4"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let started = |seen: &&Observed| matches!(seen, Observed::Started(..));
        let starts = view.news.iter().filter(started).count();
        self.starts.extend(iter::repeat_n(view.now, starts));
        let mut newest = view.wire.layouts.values().rev();
        let (Some(layout), before) = (newest.next(), newest.next()) else {
            return Ok(());
        };
        let new = layout.epoch > std::mem::replace(&mut self.newest, layout.epoch);
        if new && before.is_some_and(|before| changes_nothing(before, layout)) {
            return self.began(view.now, layout.epoch);
        }
        Ok(())
    }
}

impl Quiet {
    /// An epoch that changes nothing began.
    fn began(&mut self, now: Moment, epoch: Epoch) -> Result<(), Violation> {
        self.idle.push_back(now);
        for (within, few) in FEW {
            let count = |moments: &VecDeque<Moment>, within: u64| {
                let moments = moments.iter().rev();
                moments.take_while(|at| now.0 - at.0 <= within).count()
            };
            let idle = count(&self.idle, within);
            let starts = count(&self.starts, within + NOTICED);
            if idle > starts + few {
                let text = format!(
                    "{epoch} is the {idle}th epoch within {} s that changes nothing, and {starts} servers were started",
                    within / SECOND
                );
                return Err(Violation(text));
            }
        }
        Ok(())
    }
}

/// Whether `after` has the same units in the same chains as `before`, and the same run of the same sequencer.
fn changes_nothing(before: &Layout, after: &Layout) -> bool {
    let units = |segment: &Segment| (segment.chains.clone(), segment.joining.clone());
    before.units == after.units
        && before.sequencer == after.sequencer
        && (before.segments.iter().map(units)).eq(after.segments.iter().map(units))
}

#[cfg(test)]
mod tests {
    use milonga_protocol::Incarnation;

    use super::*;
    use crate::world::invariants::samples::layout;

    #[test]
    fn what_changes_nothing_is_seen() {
        let (one, mut two) = (layout(1), layout(2));
        assert!(changes_nothing(&one, &two));
        two.sequencer.incarnation = Incarnation(99);
        assert!(!changes_nothing(&one, &two));
        let mut three = layout(3);
        three.segments[0].chains[0].pop();
        assert!(!changes_nothing(&one, &three));
    }

    #[test]
    fn more_of_them_than_restarts_and_a_few_are_too_many() {
        let mut quiet = Quiet::default();
        let at = |quiet: &mut Quiet, ms: u64| quiet.began(Moment(ms * 1_000_000), Epoch(1));
        for ms in [0, 200, 400, 1_100] {
            assert_eq!(at(&mut quiet, ms), Ok(()));
        }
        quiet.starts.push_back(Moment(1_100 * 1_000_000));
        assert_eq!(at(&mut quiet, 1_150), Ok(()));
        assert!(at(&mut quiet, 1_180).is_err());
    }

    #[test]
    fn a_slow_loop_is_one() {
        let mut quiet = Quiet::default();
        let mut moments = (0..).map(|n| Moment(n * 1_500 * 1_000_000));
        let ended = moments.find(|at| quiet.began(*at, Epoch(1)).is_err());
        assert_eq!(ended, Some(Moment(12 * SECOND)));
    }
}
