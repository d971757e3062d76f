//! Faults that are aimed at leases (rule 20): the sequencer is cut off from the layout, together with a client, shortly
//! before another one takes its place. Faults that are drawn one by one hardly ever meet so closely.

use std::time::Duration;

use milonga_protocol::change::ClusterChange;

use crate::world::plan::{Fault, FaultKind, Plan, Shape};
use crate::world::rng::Rng;
use crate::world::trace::Moment;

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

/// Adds some of them, and keeps clocks within what leases rely on.
pub(super) fn add(rng: &mut Rng, plan: &mut Plan) {
    tame_clocks(&plan.shape, &mut plan.faults);
    if plan.quic || !plan.shape.spare_sequencer || !rng.happens(750_000) {
        return;
    }
    let mut at = 2 * SECOND + rng.below(2 * SECOND);
    let (mut old, mut takeovers) = (0, Vec::new());
    while at + 4 * SECOND < plan.safety.0 && takeovers.len() < 32 {
        // Who is at work is not known here, only guessed.
        if rng.happens(300_000) {
            old = 1 - old;
        }
        let delay = plan.network.delay;
        let shape = &plan.shape;
        Takeover {
            rng,
            shape,
            delay,
            at,
            old,
        }
        .draw(&mut takeovers);
        old = 1 - old;
        at += rng.between(5 * SECOND, 7 * SECOND);
    }
    plan.faults.extend(takeovers);
}

struct Takeover<'a> {
    rng: &'a mut Rng,
    shape: &'a Shape,
    /// Of a message, in nanoseconds.
    delay: u64,
    at: u64,
    /// The sequencer that is to lose its place.
    old: usize,
}

impl Takeover<'_> {
    fn draw(mut self, faults: &mut Vec<Fault>) {
        let old = self.old;
        // A client that does not hear of the new epoch either goes on asking the old one.
        let client = self.client();
        let members: Vec<usize> = (2..2 + self.shape.layouts).collect();
        if self.shape.layouts > 1 && self.rng.happens(650_000) {
            // The leader sleeps, another one is elected, and when it wakes up only the old sequencer asks it for anything.
            let sleeper = *self.rng.pick(&members);
            let others = members.into_iter().filter(|m| *m != sleeper).collect();
            let lasts = self.rng.between(2_200, 3_200);
            let alone = FaultKind::Partition(vec![old], others, true);
            faults.push(self.fault(0, lasts + 600, alone));
            // The client does not tell it either.
            let unheard =
                FaultKind::Partition(vec![client], (2..2 + self.shape.layouts).collect(), true);
            faults.push(self.fault(0, lasts + 600, unheard));
            faults.push(self.fault(0, lasts + 600, FaultKind::Queries(old)));
            faults.push(self.fault(5, lasts, FaultKind::Pause(sleeper)));
            return;
        }
        if self.rng.happens(600_000) {
            // An answer of the layout is on its way for long, and then waits.
            let slower = (25 * MILLI / self.delay.max(1)).max(2);
            faults.push(self.fault(0, 560, FaultKind::SlowProcess(old, slower)));
            let lasts = self.rng.between(120, 280);
            faults.push(self.fault(500, lasts, FaultKind::Pause(old)));
        }
        let from = 500 + self.rng.between(40, 70);
        let cut = FaultKind::Partition(vec![old, client], members, true);
        faults.push(self.fault(from, 1_500, cut));
        faults.push(self.fault(from, 1_500, FaultKind::Queries(old)));
        let to = format!("sequencer-{}", 2 - old).as_str().into();
        let wish = ClusterChange::MoveSequencer { to };
        let from = from + self.rng.below(60);
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
fn tame_clocks(shape: &Shape, faults: &mut [Fault]) {
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
