//! One world, from its plan to its report.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_protocol::{ServerName, plants};

use crate::world::agenda::{Agenda, Stage};
use crate::world::clients::{Clients, client_name};
use crate::world::cluster::Cluster;
use crate::world::executor::{Executor, RunError};
use crate::world::journal::{Journal, Record};
use crate::world::network::{Wire, WorldNetwork};
use crate::world::plan::{Fault, FaultKind, Plan};
use crate::world::quic::Line;
use crate::world::trace::{Moment, Trace};
use crate::world::workload::{Invariant, Violation, Workload, WorldView};
use crate::world::{invariants, panics, workloads};

/// Between two looks at what holds.
const SLICE: u64 = 10_000_000;
/// Chains have won back their replicas so long after everybody could have gone on: who went up and down all the time is kept
/// out for a minute.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
/// Lines of the trace that a failure shows.
const SHOWN: usize = 60;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The hash of everything that happened.
    pub hash: u64,
    /// How many things happened.
    pub events: u64,
    /// How long it took, in the world.
    pub time: Moment,
    /// Operations that ended.
    pub operations: u64,
    /// Of them, those that were under way together with a fault.
    pub overlapping: u64,
    /// Faults that began, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Name of the workload.
    pub workload: &'static str,
    /// What did not hold.
    pub failure: Option<Failure>,
    /// The trace as text, if it was asked for.
    pub lines: Vec<String>,
}

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When it was noticed.
    pub at: Moment,
    /// The invariant's name.
    pub invariant: String,
    /// What was seen.
    pub what: String,
}

/// Runs a plan: a pure function of plan and seed. `text`: keep the trace as text.
#[must_use]
pub fn run(plan: &Plan, seed: u64, text: bool) -> Report {
    let mut workloads = workloads::all();
    let workload = workloads.swap_remove(plan.workload % workloads.len());
    run_workload(plan, seed, text, workload)
}

/// As [`run`], with a workload of the caller's: who keeps its history can look at it afterwards.
#[must_use]
pub fn run_workload(plan: &Plan, seed: u64, text: bool, workload: Box<dyn Workload>) -> Report {
    plants::begin();
    panics::catch_quietly(|| {
        let mut world = World::new(plan, seed, text, workload);
        let failure = world.run().err();
        world.report(failure)
    })
}

struct World<'a> {
    plan: &'a Plan,
    seed: u64,
    executor: Executor,
    network: WorldNetwork,
    journal: Journal,
    cluster: Cluster,
    clients: Clients,
    agenda: Agenda,
    invariants: Vec<Box<dyn Invariant>>,
    wire: Wire,
    names: Vec<ServerName>,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan, seed: u64, text: bool, workload: Box<dyn Workload>) -> Self {
        let trace = Trace::new(text);
        let executor = Executor::new(seed, plan.order, plan.lateness, trace);
        let journal = Journal::default();
        let network = WorldNetwork::new(seed, &executor, &journal, plan.network.clone());
        let servers = plan.shape.servers();
        let servers: Vec<_> = servers.iter().map(ServerName::new).collect();
        let clients: Vec<_> = (0..plan.shape.clients).map(client_name).collect();
        let line = if plan.quic {
            Line::quic(&servers, &clients)
        } else {
            Line::Memory
        };
        let cluster = Cluster::new(seed, plan, &executor, &network, &journal, &line);
        let mut invariants = invariants::all();
        invariants.push(Box::new(invariants::SlowIsOut::new(plan)));
        invariants.extend(workload.invariants());
        let names = servers.into_iter().chain(clients).collect();
        let mut clients = Clients::new(plan, seed, &executor, &network, &journal, workload);
        clients.layout = cluster.layout_servers();
        clients.line = line;
        Self {
            plan,
            seed,
            executor,
            network,
            journal,
            cluster,
            clients,
            agenda: Agenda::new(plan),
            invariants,
            wire: Wire::new(plan),
            names,
        }
    }

    fn run(&mut self) -> Result<(), Failure> {
        for name in self.names.clone() {
            self.cluster.start(&name);
            self.clients.start(&name);
        }
        let mut now = Moment::default();
        let mut healed = false;
        let end = self.plan.safety.after(self.plan.patience);
        loop {
            let next = match healed {
                true if now >= end => end.after(WHOLE_WITHIN),
                true => end,
                false => self.plan.safety,
            };
            let next = self.agenda.next().map_or(next, |due| due.min(next));
            let until = now.plus(SLICE).min(next.max(now.plus(1)));
            let ran = self.executor.run_until(until);
            now = self.executor.now();
            ran.map_err(|error| stuck(now, &error))?;
            self.supervise(now);
            if now >= self.plan.safety && !healed {
                healed = true;
                let (agenda, mut stage) = self.stage();
                agenda.heal(now, &mut stage);
                self.clients.heal();
            }
            self.check(now, healed)?;
            let ended = healed && self.clients.all_ended();
            if ended && (self.is_whole() || !self.wire.damaged.is_empty()) {
                return self.check_end(now);
            }
            if now >= end && !ended {
                return Err(self.not_live(now));
            }
            // What is lost on every replica keeps a unit out until an operator comes; nothing else does.
            if now >= end.after(WHOLE_WITHIN) {
                return Err(self.not_whole(now));
            }
        }
    }

    fn supervise(&mut self, now: Moment) {
        let (agenda, mut stage) = self.stage();
        agenda.carry_out(now, &mut stage);
        for (name, why) in self.cluster.restart_failed() {
            self.executor.trace(&("start failed", name.as_str(), why));
        }
    }

    const fn stage(&mut self) -> (&mut Agenda, Stage<'_>) {
        let stage = Stage {
            executor: &self.executor,
            network: &self.network,
            cluster: &mut self.cluster,
            clients: &mut self.clients,
            names: self.names.as_slice(),
        };
        (&mut self.agenda, stage)
    }

    fn check(&mut self, now: Moment, healed: bool) -> Result<(), Failure> {
        let news = self.journal.take_news();
        self.each(now, healed, &news, |invariant, view| invariant.check(view))
    }

    fn check_end(&mut self, now: Moment) -> Result<(), Failure> {
        self.each(now, true, &[], |invariant, view| invariant.check_end(view))
    }

    fn each(
        &mut self,
        now: Moment,
        healed: bool,
        news: &[crate::world::journal::Observed],
        check: impl Fn(&mut dyn Invariant, &WorldView<'_>) -> Result<(), Violation>,
    ) -> Result<(), Failure> {
        self.wire.take(news);
        let pages = self.journal.lock();
        let view = WorldView {
            now,
            news,
            wire: &self.wire,
            pages: &pages,
            cluster: &self.cluster,
            healed,
        };
        for invariant in &mut self.invariants {
            check(invariant.as_mut(), &view).map_err(|violation| Failure {
                at: now,
                invariant: invariant.name().to_owned(),
                what: violation.0,
            })?;
        }
        Ok(())
    }

    /// Whether chains have all that they are to have. What operators want may be less than was configured.
    fn is_whole(&self) -> bool {
        let wish = |fault: &Fault| matches!(fault.kind, FaultKind::Operator(_));
        if self.plan.faults.iter().any(wish) {
            self.wire.is_at_rest()
        } else {
            self.wire.is_whole(&self.plan.shape)
        }
    }

    fn not_whole(&self, now: Moment) -> Failure {
        let newest = self.wire.layouts.values().next_back();
        Failure {
            at: now,
            invariant: "I18 chains win back what they lost".to_owned(),
            what: format!(
                "long after everything healed the newest layout is {:?}",
                newest.map(|layout| (layout.epoch, &layout.segments, &layout.units))
            ),
        }
    }

    fn not_live(&self, now: Moment) -> Failure {
        let pages = self.journal.lock();
        let open: Vec<_> = pages
            .operations
            .iter()
            .filter(|record| record.returned.is_none() && record.invoked >= self.plan.safety)
            .map(|record| {
                format!(
                    "{} {:?} since {}",
                    record.client, record.operation, record.invoked
                )
            })
            .collect();
        let failing = pages.operations.iter().rev().find(|r| r.returned.is_some());
        Failure {
            at: now,
            invariant: "I17 everybody goes on after healing".to_owned(),
            what: format!(
                "{:?} did not finish within {:?}; under way: {open:?}; last ended: {failing:?}",
                self.clients.unfinished(),
                self.plan.patience,
            ),
        }
    }

    fn report(mut self, failure: Option<Failure>) -> Report {
        let pages = self.journal.lock();
        let ended = |record: &&Record| record.returned.is_some();
        let operations = pages.operations.iter().filter(ended).count();
        let overlapping = pages.operations.iter().filter(|r| self.overlaps(r)).count();
        drop(pages);
        let (hash, events, mut lines) = self.executor.with_trace(|trace| {
            let lines = trace.take_lines();
            (trace.hash(), trace.events(), lines)
        });
        if let Some(failure) = &failure {
            lines.push(format!(
                "{} {}: {}",
                failure.at, failure.invariant, failure.what
            ));
        }
        let report = Report {
            seed: self.seed,
            hash,
            events,
            time: self.executor.now(),
            operations: operations as u64,
            overlapping: overlapping as u64,
            faults: self.agenda.begun().clone(),
            workload: self.clients.workload.name(),
            failure,
            lines,
        };
        // Everything holds everything else; what is dropped here may panic after a failure.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end()));
        report
    }

    fn end(&mut self) {
        for name in self.names.clone() {
            self.cluster.stop(&name, crate::world::disk::End::Kill);
            self.clients.stop(&name);
        }
    }

    fn overlaps(&self, record: &Record) -> bool {
        let Some((returned, _)) = &record.returned else {
            return false;
        };
        self.plan
            .faults
            .iter()
            .any(|fault| fault.at <= *returned && record.invoked <= fault.at.after(fault.lasts))
    }
}

impl Report {
    /// The end of the trace, if it was kept.
    #[must_use]
    pub fn last_lines(&self) -> &[String] {
        &self.lines[self.lines.len().saturating_sub(SHOWN)..]
    }
}

fn stuck(now: Moment, error: &RunError) -> Failure {
    let invariant = match error {
        RunError::Panicked { .. } => "nothing panics",
        RunError::Runaway { .. } => "nothing loops without end",
    };
    Failure {
        at: now,
        invariant: invariant.to_owned(),
        what: error.to_string(),
    }
}
