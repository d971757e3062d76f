//! Faults that are aimed at leases (rule 20): the sequencer is cut off from the layout, together with a client, shortly
//! before another one takes its place. Faults that are drawn one by one hardly ever meet so closely.

use std::time::Duration;

use milonga_protocol::change::ClusterChange;

use crate::world::plan::{Fault, FaultKind, Shape};
use crate::world::rng::Rng;
use crate::world::trace::Moment;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

/// Draws some of them.
pub(super) fn draw(rng: &mut Rng, shape: &Shape, safety: Moment) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut at = SECOND + rng.below(3 * SECOND);
    while at + 4 * SECOND < safety.0 && faults.len() < 24 {
        Takeover { rng, shape, at }.draw(&mut faults);
        at += rng.between(4 * SECOND, 9 * SECOND);
    }
    faults
}

struct Takeover<'a> {
    rng: &'a mut Rng,
    shape: &'a Shape,
    at: u64,
}

impl Takeover<'_> {
    fn draw(mut self, faults: &mut Vec<Fault>) {
        // Which of the two is at work is not known here.
        let (old, new) = *self.rng.pick(&[(0, 1), (1, 0)]);
        // A client that does not hear of the new epoch either goes on asking the old one.
        let cut = vec![old, self.client()];
        let members: Vec<usize> = (2..2 + self.shape.layouts).collect();
        if self.shape.layouts > 1 && self.rng.happens(400_000) {
            // The leader sleeps, another one is elected, and when it wakes up only the old sequencer asks it for anything.
            let sleeper = *self.rng.pick(&members);
            let others = members.into_iter().filter(|m| *m != sleeper).collect();
            let lasts = self.rng.between(1_600, 3_000);
            faults.push(self.fault(0, lasts + 500, FaultKind::Partition(cut, others, true)));
            faults.push(self.fault(5, lasts, FaultKind::Pause(sleeper)));
            return;
        }
        if self.rng.happens(600_000) {
            // An answer of the layout is on its way, and waits.
            let lasts = self.rng.between(100, 280);
            faults.push(self.fault(0, lasts, FaultKind::Pause(old)));
        }
        let from = self.rng.between(15, 40);
        faults.push(self.fault(from, 1_500, FaultKind::Partition(cut, members, true)));
        let to = format!("sequencer-{}", new + 1).as_str().into();
        let wish = ClusterChange::MoveSequencer { to };
        let from = from + self.rng.below(80);
        faults.push(self.fault(from, 1_200, FaultKind::Operator(wish)));
    }

    fn client(&mut self) -> usize {
        let clients = self.shape.clients;
        self.shape.processes() - 1 - self.rng.index(clients)
    }

    /// After so many milliseconds, for so many.
    fn fault(&self, after: u64, lasts: u64, kind: FaultKind) -> Fault {
        Fault {
            at: Moment(self.at + after * MILLI),
            lasts: Duration::from_millis(lasts),
            kind,
        }
    }
}

/// Clocks stay within what leases rely on: no process runs much faster or slower than another, and a member of the layout
/// never believes that time has passed which has not.
pub(super) fn tame_clocks(shape: &Shape, faults: &mut [Fault]) {
    let (servers, members) = (shape.servers(), shape.layout_servers());
    for fault in faults {
        if let FaultKind::Clock(process, jump, rate) = &mut fault.kind {
            *rate = match *rate {
                0 => 980_000,
                slow if slow < 1_000_000 => 990_000,
                _ => 1_020_000,
            };
            if servers
                .get(*process)
                .is_some_and(|name| members.contains(name))
            {
                *jump = 0;
            }
        }
    }
}
