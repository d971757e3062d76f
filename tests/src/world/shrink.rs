//! Makes a failing plan smaller: fewer faults, fewer clients, as long as the same invariant is broken.

use crate::world::plan::Plan;
use crate::world::run::{Report, run};

/// Leaves out faults and clients while the same invariant stays broken; at most `most` runs. The plan it ends with,
/// and its report.
#[must_use]
pub fn shrink(plan: &Plan, failed: &Report, most: usize) -> (Plan, Report) {
    let mut shrinker = Shrinker {
        best: plan.clone(),
        report: failed.clone(),
        left: most,
    };
    let mut step = plan.faults.len().div_ceil(2);
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
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let report = run(&plan, self.report.seed, false);
        let broken = |report: &Report| report.failure.as_ref().map(|f| f.invariant.clone());
        if broken(&report) != broken(&self.report) {
            return false;
        }
        self.best = plan;
        self.report = report;
        true
    }
}
