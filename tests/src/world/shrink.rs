//! Makes a failing plan smaller: fewer faults, fewer clients, as long as the same invariant is broken.
//!
//! Whatever is left out changes the order of everything else, so a smaller plan that could fail often does not with the
//! seed at hand: while the plan is larger than anybody wants to read, a few other orders are tried, too.

use crate::world::plan::Plan;
use crate::world::run::{Report, run};

/// Faults and clients that are few enough to look at.
const SMALL: (usize, usize) = (5, 3);
/// Other orders that are tried while a plan has more faults, or more clients.
const ORDERS: (u64, u64) = (3, 15);

/// Leaves out faults and clients while the same invariant stays broken; at most `most` runs. The plan it ends with,
/// and its report, whose seed orders the smaller plan's events (it need not be the seed that drew the plan).
#[must_use]
pub fn shrink(plan: &Plan, failed: &Report, most: usize) -> (Plan, Report) {
    let mut shrinker = Shrinker {
        best: plan.clone(),
        report: failed.clone(),
        left: most,
    };
    shrinker.drop_later_faults();
    shrinker.fewer_clients();
    let mut step = shrinker.best.faults.len().div_ceil(2);
    while step > 0 {
        shrinker.drop_faults(step);
        step /= 2;
    }
    shrinker.fewer_clients();
    shrinker.drop_faults(1);
    (shrinker.best, shrinker.report)
}

struct Shrinker {
    best: Plan,
    report: Report,
    left: usize,
}

impl Shrinker {
    /// What begins after the failure did not cause it.
    fn drop_later_faults(&mut self) {
        let mut smaller = self.best.clone();
        if let Some(failure) = &self.report.failure {
            smaller.faults.retain(|fault| fault.at < failure.at);
        }
        if smaller.faults.len() < self.best.faults.len() {
            self.accept(smaller);
        }
    }

    /// Tries to do without each run of `step` faults.
    fn drop_faults(&mut self, step: usize) {
        let mut at = 0;
        while at < self.best.faults.len() {
            let mut smaller = self.best.clone();
            let end = (at + step).min(smaller.faults.len());
            smaller.faults.drain(at..end);
            if !self.accept(smaller) {
                at = end;
            }
        }
    }

    fn fewer_clients(&mut self) {
        while self.best.shape.clients > 1 {
            let mut smaller = self.best.clone();
            smaller.shape.clients -= 1;
            if !self.accept(smaller) {
                return;
            }
        }
    }

    fn accept(&mut self, plan: Plan) -> bool {
        let fewer_clients = plan.shape.clients < self.best.shape.clients;
        let orders = match (&self.best.shape, self.best.faults.len()) {
            (shape, _) if fewer_clients && shape.clients > SMALL.1 => ORDERS.1,
            (_, faults) if faults > SMALL.0 => ORDERS.0,
            _ => 0,
        };
        let seed = self.report.seed;
        for order in 0..=orders {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            let report = run(&plan, seed ^ (order << 40), false);
            let broken = |report: &Report| report.failure.as_ref().map(|f| f.invariant.clone());
            if broken(&report) == broken(&self.report) {
                self.best = plan;
                self.report = report;
                return true;
            }
        }
        false
    }
}
