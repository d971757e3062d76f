//! Carries out a plan's faults: begins them, ends them, and heals everything when their time is over.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_log_units::sim::SimDisk;
use milonga_protocol::ServerName;

use crate::world::clients::Clients;
use crate::world::cluster::Cluster;
use crate::world::disk::End;
use crate::world::executor::{Executor, ProcessId};
use crate::world::network::WorldNetwork;
use crate::world::plan::{Fault, FaultKind, Plan};
use crate::world::trace::Moment;

/// What is to be done, by time.
#[derive(Debug)]
pub(crate) struct Agenda {
    faults: Vec<Fault>,
    due: BTreeMap<(Moment, usize), Due>,
    next: usize,
    /// Faults that have begun and not ended.
    active: Vec<usize>,
    /// Processes that are held by a pause, by fault.
    paused: BTreeMap<usize, ProcessId>,
    begun: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug)]
enum Due {
    Begin(usize),
    End(usize),
    Start(usize),
    Cut(usize, bool),
}

/// What the faults act upon.
pub(crate) struct Stage<'a> {
    pub(crate) executor: &'a Executor,
    pub(crate) network: &'a WorldNetwork,
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) clients: &'a mut Clients,
    /// Names of all processes, as faults number them.
    pub(crate) names: &'a [ServerName],
}

impl Agenda {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut agenda = Self {
            faults: plan.faults.clone(),
            due: BTreeMap::new(),
            next: 0,
            active: Vec::new(),
            paused: BTreeMap::new(),
            begun: BTreeMap::new(),
        };
        for (index, fault) in plan.faults.iter().enumerate() {
            agenda.add(fault.at, Due::Begin(index));
        }
        agenda
    }

    fn add(&mut self, at: Moment, due: Due) {
        self.due.insert((at, self.next), due);
        self.next += 1;
    }

    /// When something is to be done next.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.due.first_key_value().map(|(key, _)| key.0)
    }

    /// How many faults have begun, by name.
    pub(crate) const fn begun(&self) -> &BTreeMap<&'static str, u64> {
        &self.begun
    }

    /// Does what is due now.
    pub(crate) fn carry_out(&mut self, now: Moment, stage: &mut Stage<'_>) {
        while let Some(entry) = self.due.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                Due::Begin(index) => self.begin(now, index, stage),
                Due::End(index) => self.end(now, index, stage),
                Due::Start(process) => stage.start(process),
                Due::Cut(index, on) => {
                    if let FaultKind::Flap(a, b, _) = self.faults[index].kind {
                        stage.cut(&[a], &[b], true, on);
                    }
                }
            }
        }
    }

    /// Ends everything that goes wrong, and lets everybody run.
    pub(crate) fn heal(&mut self, now: Moment, stage: &mut Stage<'_>) {
        stage.executor.trace(&"everything heals");
        // Links that are down just now come up, servers that are to start do so.
        for (_, due) in std::mem::take(&mut self.due) {
            match due {
                Due::Cut(index, false) => {
                    if let FaultKind::Flap(a, b, _) = self.faults[index].kind {
                        stage.cut(&[a], &[b], true, false);
                    }
                }
                Due::Start(process) => stage.start(process),
                _ => {}
            }
        }
        for index in std::mem::take(&mut self.active) {
            self.active.push(index);
            self.end(now, index, stage);
        }
        for process in 0..stage.names.len() {
            stage.start(process);
        }
    }

    fn begin(&mut self, now: Moment, index: usize, stage: &mut Stage<'_>) {
        let Fault { lasts, kind, .. } = self.faults[index].clone();
        stage.executor.trace(&("fault", &kind, lasts));
        *self.begun.entry(kind.name()).or_insert(0) += 1;
        self.active.push(index);
        let nanos = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
        let over = now.plus(nanos);
        match kind {
            FaultKind::Stop(process, how) => {
                stage.stop(process, how);
                self.add(over, Due::Start(process));
            }
            FaultKind::StopAll(how) => {
                for process in 0..stage.names.len() - stage.clients.len() {
                    stage.stop(process, how);
                    let back = now.plus(nanos * (process as u64 + 1) / stage.names.len() as u64);
                    self.add(back, Due::Start(process));
                }
            }
            FaultKind::Flap(_, _, times) => {
                let step = nanos / (2 * u64::from(times) + 1);
                for n in 0..u64::from(times) {
                    self.add(now.plus(2 * n * step), Due::Cut(index, true));
                    self.add(now.plus((2 * n + 1) * step), Due::Cut(index, false));
                }
            }
            FaultKind::Pause(process) => {
                if let Some(id) = stage.running(process) {
                    stage.executor.pause(id);
                    self.paused.insert(index, id);
                }
            }
            FaultKind::Operator(wish) => stage.cluster.operate(wish, lasts),
            FaultKind::Queries(process) => {
                if let Some(name) = stage.names.get(process) {
                    stage.cluster.query(name, lasts);
                }
            }
            other => stage.switch(&other, Some(over)),
        }
        self.add(over, Due::End(index));
    }

    fn end(&mut self, _now: Moment, index: usize, stage: &mut Stage<'_>) {
        let Some(place) = self.active.iter().position(|active| *active == index) else {
            return;
        };
        self.active.swap_remove(place);
        let kind = self.faults[index].kind.clone();
        stage.executor.trace(&("over", &kind));
        if let Some(id) = self.paused.remove(&index)
            && !self.paused.values().any(|other| *other == id)
            && stage.executor.is_alive(id)
        {
            stage.executor.resume(id);
        }
        stage.switch(&kind, None);
    }
}

impl Stage<'_> {
    fn running(&self, process: usize) -> Option<ProcessId> {
        let name = self.names.get(process)?;
        self.cluster
            .process(name)
            .or_else(|| self.clients.process(name))
    }

    fn start(&mut self, process: usize) {
        if let Some(name) = self.names.get(process) {
            self.cluster.start(name);
            self.clients.start(name);
        }
    }

    fn stop(&mut self, process: usize, how: End) {
        if let Some(name) = self.names.get(process) {
            self.cluster.stop(name, how);
            self.clients.stop(name);
        }
    }

    fn cut(&self, a: &[usize], b: &[usize], both: bool, on: bool) {
        let names = |list: &[usize]| -> Vec<&ServerName> {
            list.iter().filter_map(|p| self.names.get(*p)).collect()
        };
        for from in names(a) {
            for to in names(b).into_iter().filter(|to| *to != from) {
                let ways = [(from, to), (to, from)];
                for (from, to) in &ways[..if both { 2 } else { 1 }] {
                    if on {
                        self.network.cut(from, to);
                    } else {
                        self.network.mend(from, to);
                    }
                }
            }
        }
    }

    /// Switches a fault on until a moment, or off.
    fn switch(&mut self, kind: &FaultKind, on: Option<Moment>) {
        match kind {
            FaultKind::Partition(a, b, both) => self.cut(a, b, *both, on.is_some()),
            FaultKind::Mute(process) => {
                if let Some(name) = self.names.get(*process) {
                    self.network.mute(name, on.is_some());
                }
            }
            FaultKind::SlowProcess(process, factor) => {
                if let Some(name) = self.names.get(*process) {
                    self.network
                        .slow(name, if on.is_some() { *factor } else { 1 });
                }
            }
            FaultKind::DisksDie => self.disks_die(on.is_some()),
            FaultKind::Storm(rate) => self.network.storm(if on.is_some() { *rate } else { 0 }),
            FaultKind::Clock(process, jump, rate) => {
                let Some(id) = self.running(*process) else {
                    return;
                };
                match on {
                    Some(_) => self
                        .executor
                        .change_clock(id, Duration::from_millis(*jump), *rate),
                    None => self.executor.heal_clock(id),
                }
            }
            _ => self.switch_disk(kind, on),
        }
    }

    /// The disks of all units are dead, or the power is back.
    fn disks_die(&mut self, on: bool) {
        let units = self.names.iter();
        for name in units.filter(|name| name.as_str().starts_with("unit-")) {
            let Some(disk) = self.cluster.disk(name).cloned() else {
                continue;
            };
            if self.cluster.process(name).is_none() {
                continue;
            }
            if on {
                disk.with_sim(SimDisk::die);
            } else {
                self.cluster.stop(name, End::PowerLoss);
                self.cluster.start(name);
            }
        }
    }

    fn switch_disk(&mut self, kind: &FaultKind, on: Option<Moment>) {
        let (FaultKind::DiskStall(unit)
        | FaultKind::DiskSlow(unit, _)
        | FaultKind::FailWrite(unit, _)
        | FaultKind::FailSync(unit, _)
        | FaultKind::DiskFull(unit, _)
        | FaultKind::BitRot(unit)
        | FaultKind::Misdirected(unit, ..)) = kind
        else {
            return;
        };
        let Some(name) = self.names.get(*unit) else {
            return;
        };
        let Some(disk) = self.cluster.disk(name).cloned() else {
            return;
        };
        match (kind, on) {
            (FaultKind::DiskStall(_), Some(until)) => disk.stall(until),
            (FaultKind::DiskStall(_), None) => disk.stall(Moment::default()),
            (FaultKind::DiskSlow(_, factor), on) => {
                disk.slow(if on.is_some() { *factor } else { 1 });
            }
            (FaultKind::FailWrite(_, nth), Some(_)) => disk.with_sim(|sim| sim.fail_write(*nth)),
            (FaultKind::FailSync(_, nth), Some(_)) => disk.with_sim(|sim| sim.fail_sync(*nth)),
            (FaultKind::Misdirected(_, nth, by), Some(_)) => {
                disk.with_sim(|sim| sim.misdirect_write(*nth, *by));
            }
            (FaultKind::DiskFull(_, free), on) => disk.set_free(on.map(|_| *free)),
            (FaultKind::BitRot(_), Some(_)) => {
                let hit = disk.rot();
                self.executor.trace(&("bit rot", name.as_str(), hit));
            }
            (FaultKind::BitRot(_), None) => {}
            // A poisoned unit is restarted.
            (_, _) => {
                let name = name.clone();
                disk.with_sim(SimDisk::heal);
                if self.cluster.process(&name).is_some() {
                    self.cluster.stop(&name, End::Kill);
                    self.cluster.start(&name);
                }
            }
        }
    }
}
