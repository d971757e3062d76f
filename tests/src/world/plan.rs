//! What a seed draws before anything runs: the cluster, its limits, and every fault with its time.
//!
//! A plan is plain data, and a run is a pure function of plan and seed: so a failing schedule can be shrunk by
//! leaving faults out. Each fault ends by itself, so none depends on another.

use std::time::Duration;

use milonga_protocol::change::ClusterChange;

use crate::world::disk::{DiskPlan, End};
use crate::world::executor::Order;
use crate::world::network::NetworkPlan;
use crate::world::rng::Rng;
use crate::world::takeovers;
use crate::world::trace::Moment;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;

/// Faults that come together last so long at most.
const LONGEST: Duration = Duration::from_secs(10);
/// How many times slower a server is that has to be out of the way.
const SLOW: u64 = 100;

/// Everything that is drawn up front.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The cluster and its clients.
    pub shape: Shape,
    /// Which workload, modulo their number.
    pub workload: usize,
    /// Typical pause of a client's task between two operations.
    pub pace: Duration,
    /// Whether processes talk over real quinn and rustls.
    pub quic: bool,
    /// The order of runnable tasks.
    pub order: Order,
    /// Most that a timer is late.
    pub lateness: Duration,
    /// Messages.
    pub network: NetworkPlan,
    /// Disks.
    pub disk: DiskPlan,
    /// When everything heals.
    pub safety: Moment,
    /// How long clients have to make progress then.
    pub patience: Duration,
    /// The faults, by time.
    pub faults: Vec<Fault>,
}

/// The processes and their limits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Chains.
    pub chains: usize,
    /// Replicas of each.
    pub replicas: usize,
    /// Members of the layout that are processes of their own; 0: it is in the sequencer's.
    pub layouts: usize,
    /// Whether another process can become the sequencer.
    pub spare_sequencer: bool,
    /// How long leases last; 0: there are none.
    pub lease_ms: u32,
    /// Units in no chain.
    pub spare_units: usize,
    /// How long a place in a chain is kept for the unit that left it.
    pub spare_after: Duration,
    /// Replicas that a chain keeps, whoever is silent.
    pub min_replicas: u16,
    /// Clients.
    pub clients: usize,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Bytes of a unit's cache.
    pub cache_bytes: usize,
    /// Shared limit: positions above the settled mark.
    pub positions_ahead: u64,
    /// Shared limit: the conflict window.
    pub conflict_window: u64,
    /// Groups of appends that a client has under way.
    pub groups_in_flight: usize,
    /// Appends of one group.
    pub group_entries: usize,
}

/// A fault: begins, lasts, ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// When it begins.
    pub at: Moment,
    /// How long it lasts.
    pub lasts: Duration,
    /// What it is.
    pub kind: FaultKind,
}

/// What goes wrong. Processes are numbered: servers first, then clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// A process ends, and starts again when the fault is over.
    Stop(usize, End),
    /// All servers end at once, and start again one by one within the fault's time.
    StopAll(End),
    /// The disks of all units fail at once; when the fault is over their power is lost, and they start again.
    DisksDie,
    /// A process stands still.
    Pause(usize),
    /// What the first say does not reach the second; both ways if so.
    Partition(Vec<usize>, Vec<usize>, bool),
    /// What a process asks for is lost, while what it is asked for comes, and its answers: its own connections have to be made
    /// anew, as after a partition.
    Mute(usize),
    /// A link goes down and up again and again: two processes, and how many times.
    Flap(usize, usize, u32),
    /// Everything to and from a process takes so many times longer.
    SlowProcess(usize, u64),
    /// Messages are lost, doubled and broken: so many of a million more.
    Storm(u32),
    /// A disk completes nothing.
    DiskStall(usize),
    /// A disk takes so many times longer.
    DiskSlow(usize, u64),
    /// A disk fails the n-th write from now; the process is restarted when the fault is over.
    FailWrite(usize, u64),
    /// A disk fails the n-th sync from now; the process is restarted when the fault is over.
    FailSync(usize, u64),
    /// A disk is full but for so many bytes.
    DiskFull(usize, u64),
    /// A bit of a unit's segments flips, on disk.
    BitRot(usize),
    /// The n-th write from now lands so many bytes further on.
    Misdirected(usize, u64, u64),
    /// A clock jumps forward by so many milliseconds and runs at so many millionths until the fault is over.
    Clock(usize, u64, u64),
    /// An operator wants the cluster to be otherwise, and asks for it until that is so or the fault is over.
    Operator(ClusterChange),
    /// Somebody who hears of no layout asks a sequencer for the tail, again and again, in whatever epoch it serves.
    Queries(usize),
}

impl FaultKind {
    /// Whether the cluster can go on while it lasts.
    const fn is_mild(&self) -> bool {
        matches!(
            self,
            Self::SlowProcess(..) | Self::Storm(_) | Self::DiskSlow(..) | Self::Clock(..)
        )
    }

    /// Whether a disk gives something else than was written to it.
    const fn is_damage(&self) -> bool {
        matches!(self, Self::BitRot(_) | Self::Misdirected(..))
    }

    /// Its name, for counting.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stop(_, End::Kill) => "kill",
            Self::Stop(_, End::PowerLoss) => "power loss",
            Self::StopAll(End::Kill) => "kill of all",
            Self::StopAll(End::PowerLoss) => "power loss of all",
            Self::DisksDie => "death of all disks",
            Self::Pause(_) => "pause",
            Self::Partition(_, _, true) => "partition",
            Self::Partition(_, _, false) => "one-way partition",
            Self::Mute(_) => "mute",
            Self::Flap(..) => "flapping link",
            Self::SlowProcess(..) => "slow process",
            Self::Storm(_) => "storm",
            Self::DiskStall(_) => "disk stall",
            Self::DiskSlow(..) => "slow disk",
            Self::FailWrite(..) => "failed write",
            Self::FailSync(..) => "failed sync",
            Self::DiskFull(..) => "full disk",
            Self::BitRot(_) => "bit rot",
            Self::Misdirected(..) => "misdirected write",
            Self::Clock(..) => "clock",
            Self::Operator(_) => "operator",
            Self::Queries(_) => "queries",
        }
    }
}

impl Shape {
    /// Names of the servers, in the order in which faults number them.
    #[must_use]
    pub fn servers(&self) -> Vec<String> {
        let apart = (1..=self.layouts).map(|number| format!("layout-{number}"));
        let units = self.chain_names().into_iter().flatten();
        let units = units.chain(self.spare_names());
        let first = std::iter::once("sequencer-1".to_owned());
        let spare = self.spare_sequencer.then(|| "sequencer-2".to_owned());
        first.chain(spare).chain(apart).chain(units).collect()
    }

    /// Names of the units, chain by chain, head first.
    #[must_use]
    pub fn chain_names(&self) -> Vec<Vec<String>> {
        let unit = |chain: usize, replica: usize| {
            let letter = char::from(b"abcdefgh"[replica]);
            format!("unit-{}{letter}", chain + 1)
        };
        let chain = |chain| (0..self.replicas).map(|r| unit(chain, r)).collect();
        (0..self.chains).map(chain).collect()
    }

    /// Names of the units in no chain.
    pub fn spare_names(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.spare_units).map(|n| format!("unit-{}", n + 9))
    }

    /// Names of the members of the layout.
    #[must_use]
    pub fn layout_servers(&self) -> Vec<String> {
        match self.layouts {
            0 => vec!["sequencer-1".to_owned()],
            several => (1..=several).map(|n| format!("layout-{n}")).collect(),
        }
    }

    /// How many servers there are before the first unit.
    fn first_unit(&self) -> usize {
        1 + usize::from(self.spare_sequencer) + self.layouts
    }

    pub(super) fn processes(&self) -> usize {
        self.first_unit() + self.chains * self.replicas + self.spare_units + self.clients
    }
}

impl Plan {
    /// What `seed` draws.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, "plan");
        let mut shape = draw_shape(rng);
        if shape.layouts > 0 {
            // A draw of its own: the plans of all other seeds are what they were.
            shape.layouts = *Rng::new(seed, "layouts").pick(&[1, 3]);
        }
        let leases = &mut Rng::new(seed, "leases");
        shape.lease_ms = if shape.layouts > 0 {
            *leases.pick(&[0, 100, 300, 300, 400])
        } else {
            *leases.pick(&[0, 0, 0, 300, 400])
        };
        if shape.layouts > 0 && shape.lease_ms > 0 {
            shape.layouts = *leases.pick(&[1, 3, 3]);
        }
        // Without another sequencer no lease is ever in anybody's way.
        shape.spare_sequencer |= shape.layouts > 0 && shape.lease_ms > 0;
        let safety = Moment(rng.between(15, 60) * SECOND);
        let mut faults = Faults::new(rng, &shape, safety).draw();
        // One replica that is damaged while it is alone loses what nobody can bring back.
        if faults.iter().any(|fault| fault.kind.is_damage()) {
            shape.min_replicas = 2;
        }
        let workload = rng.index(1 << 20);
        let pace = Duration::from_millis(*rng.pick(&[20, 100, 300]));
        let quic = rng.happens(70_000);
        // An operator who takes away the replica that is whole loses what the other one lost.
        if !quic && !faults.iter().any(|fault| fault.kind.is_damage()) {
            faults.extend(draw_wishes(&mut Rng::new(seed, "operator"), &shape, safety));
        }
        let mut plan = Self {
            workload,
            pace,
            quic,
            order: *rng.pick(&[Order::Random, Order::Random, Order::Fifo, Order::Lifo]),
            lateness: Duration::from_micros(*rng.pick(&[0, 1, 50, 1_000])),
            network: draw_network(rng),
            disk: DiskPlan {
                access: rng.between(5, 50) * MICRO,
                sync: *rng.pick(&[50, 200, 1_000, 5_000]) * MICRO,
            },
            safety,
            patience: Duration::from_secs(60),
            faults,
            shape,
        };
        if plan.shape.lease_ms > 0 {
            takeovers::add(leases, &mut plan);
        }
        if !plan.quic {
            plan.strand(&mut Rng::new(seed, "strand"));
            plan.mute(&mut Rng::new(seed, "mute"));
            plan.add_gray(&mut Rng::new(seed, "gray"));
        }
        plan.faults.sort_by_key(|fault| fault.at);
        plan
    }

    /// In one world of eight: only a client reaches the tail of a chain, and nobody else, for so long that the others go on
    /// without both (rules 16 and 21). Partitions that are drawn for all processes hardly ever leave these two together.
    fn strand(&mut self, rng: &mut Rng) {
        if self.shape.replicas < 2 || !rng.happens(125_000) {
            return;
        }
        for _ in 0..rng.between(1, 3) {
            let tail = (1 + rng.index(self.shape.chains)) * self.shape.replicas - 1;
            let tail = self.shape.first_unit() + tail;
            let processes = self.shape.processes();
            let client = processes - 1 - rng.index(self.shape.clients);
            let others = (0..processes).filter(|other| ![tail, client].contains(other));
            self.faults.push(Fault {
                at: Moment(rng.between(SECOND, self.safety.0 - 5 * SECOND)),
                lasts: Duration::from_millis(rng.between(1_500, 5_000)),
                kind: FaultKind::Partition(vec![tail, client], others.collect(), true),
            });
        }
    }

    /// In one world of four: servers that are reached before they are heard, after partitions and while another one is started
    /// anew.
    fn mute(&mut self, rng: &mut Rng) {
        if !rng.happens(250_000) {
            return;
        }
        let servers = self.shape.processes() - self.shape.clients;
        let mut begin: Vec<(Moment, usize)> = Vec::new();
        for fault in &self.faults {
            if let FaultKind::Partition(one, other, true) = &fault.kind {
                let server = [one, other].map(|side| side.iter().find(|p| **p < servers));
                let over = fault.at.after(fault.lasts);
                begin.extend(server.into_iter().flatten().map(|server| (over, *server)));
            }
        }
        for _ in 0..4 {
            let at = rng.between(SECOND, self.safety.0 - SECOND);
            begin.push((Moment(at), rng.index(servers)));
            self.faults.push(Fault {
                at: Moment(at + rng.between(50, 400) * MILLI),
                lasts: Duration::from_millis(20),
                kind: FaultKind::Stop(rng.index(servers), End::Kill),
            });
        }
        let mute = |(at, server)| Fault {
            at,
            lasts: Duration::from_millis(rng.between(50, 900)),
            kind: FaultKind::Mute(server),
        };
        self.faults.extend(begin.into_iter().map(mute));
    }

    /// In one world of six, long after all else: a server that is a hundred times slower than the others, for so long that
    /// it has to be out of the way meanwhile ([`Self::grays`]).
    fn add_gray(&mut self, rng: &mut Rng) {
        if !rng.happens(160_000) {
            return;
        }
        let units = self.shape.chains * self.shape.replicas;
        let unit = self.shape.first_unit() + rng.index(units);
        let sequencer = self.shape.spare_sequencer && rng.happens(300_000);
        let kind = match rng.below(2) {
            _ if sequencer => FaultKind::SlowProcess(rng.index(2), SLOW),
            0 => FaultKind::SlowProcess(unit, SLOW),
            _ => FaultKind::DiskSlow(unit, SLOW),
        };
        // A hundred times next to nothing is no fault.
        self.network.delay = self.network.delay.max(500 * MICRO);
        self.disk.sync = self.disk.sync.max(MILLI);
        self.pace = self.pace.min(Duration::from_millis(100));
        let (at, lasts) = (self.safety.plus(25 * SECOND), Duration::from_secs(14));
        self.safety = at.plus(15 * SECOND);
        self.faults.push(Fault { at, lasts, kind });
    }

    /// Servers that are slow for long while nothing else goes wrong: number, since when, and whether it is the disk.
    pub fn grays(&self) -> impl Iterator<Item = (usize, Moment, bool)> {
        let long = self.faults.iter().filter(|fault| fault.lasts > LONGEST);
        long.filter_map(|fault| match fault.kind {
            FaultKind::SlowProcess(server, SLOW) => Some((server, fault.at, false)),
            FaultKind::DiskSlow(server, SLOW) => Some((server, fault.at, true)),
            _ => None,
        })
    }
}

impl Plan {
    /// Repeats everything `times` times, and lets clients hurry: for long histories.
    pub fn stretch(&mut self, times: u64) {
        let once = (self.safety, self.faults.clone());
        for round in 1..times {
            let shifted = once.1.iter().cloned().map(|mut fault| {
                fault.at = fault.at.plus(once.0.0 * round);
                fault
            });
            self.faults.extend(shifted);
        }
        self.safety = Moment(once.0.0 * times);
        self.pace = Duration::from_millis(5);
    }
}

/// What operators want in one world of three.
fn draw_wishes(rng: &mut Rng, shape: &Shape, safety: Moment) -> Vec<Fault> {
    let mut wishes = Vec::new();
    if !rng.happens(330_000) {
        return wishes;
    }
    for _ in 0..rng.between(1, 4) {
        if let Some(wish) = draw_wish(rng, shape) {
            wishes.push(Fault {
                at: Moment(rng.below(safety.0)),
                lasts: Duration::from_nanos(rng.between(SECOND, 20 * SECOND)),
                kind: FaultKind::Operator(wish),
            });
        }
    }
    wishes
}

fn draw_wish(rng: &mut Rng, shape: &Shape) -> Option<ClusterChange> {
    let chains = shape.chain_names();
    let units: Vec<String> = chains.into_iter().flatten().collect();
    let unit = rng.pick(&units).as_str().into();
    let spares: Vec<String> = shape.spare_names().collect();
    let spare = spares.first().map(|spare| spare.as_str().into());
    Some(match rng.below(5) {
        0 if shape.spare_sequencer => {
            let to = *rng.pick(&["sequencer-1", "sequencer-2"]);
            ClusterChange::MoveSequencer { to: to.into() }
        }
        1 => ClusterChange::RemoveUnit { name: unit },
        2 => ClusterChange::AddUnit {
            name: unit,
            chain: None,
        },
        3 => ClusterChange::AddChain {
            units: vec![spare?],
        },
        _ => ClusterChange::ReplaceUnit {
            old: unit,
            new: spare?,
        },
    })
}

fn draw_shape(rng: &mut Rng) -> Shape {
    let (chains, replicas) = (*rng.pick(&[1, 2, 2, 3]), *rng.pick(&[1, 2, 2, 3]));
    let layout_apart = rng.happens(300_000);
    Shape {
        chains,
        replicas,
        layouts: usize::from(layout_apart),
        // In the layout's own process it would fall silent together with who notices.
        spare_sequencer: layout_apart && rng.happens(700_000),
        lease_ms: 0,
        spare_units: usize::from(rng.happens(300_000)),
        spare_after: Duration::from_millis(*rng.pick(&[0, 500, 10_000])),
        min_replicas: 1,
        clients: *rng.pick(&[2, 3, 4]),
        segment_bytes: *rng.pick(&[16 << 10, 64 << 10, 1 << 20]),
        cache_bytes: *rng.pick(&[0, 4 << 10, 1 << 20]),
        positions_ahead: *rng.pick(&[8, 64, 1 << 20]),
        conflict_window: *rng.pick(&[16, 256, 1 << 18]),
        groups_in_flight: *rng.pick(&[1, 2, 8]),
        group_entries: *rng.pick(&[1, 3, 1_024]),
    }
}

fn draw_network(rng: &mut Rng) -> NetworkPlan {
    NetworkPlan {
        delay: *rng.pick(&[20, 100, 500, 3_000]) * MICRO,
        tick: *rng.pick(&[1, 1, 100 * MICRO, MILLI]),
        loss: *rng.pick(&[0, 0, 1_000, 30_000]),
        corruption: *rng.pick(&[0, 0, 100, 2_000]),
        duplication: *rng.pick(&[0, 1_000, 50_000]),
        noticed: *rng.pick(&[0, 500_000, 1_000_000]),
        room: *rng.pick(&[4 << 10, 256 << 10, 32 << 20]),
    }
}

/// Draws faults: a mix of kinds for the seed, then kinds, times and targets.
struct Faults<'a> {
    rng: &'a mut Rng,
    shape: &'a Shape,
    safety: Moment,
    /// The replica of each chain whose disk may be damaged: never two of one position.
    damaged: usize,
}

/// How many kinds `Faults::kind` knows.
const KINDS: u64 = 18;
/// One of them.
const BIT_ROT: u64 = 15;

impl<'a> Faults<'a> {
    fn new(rng: &'a mut Rng, shape: &'a Shape, safety: Moment) -> Self {
        let damaged = rng.index(shape.replicas);
        Self {
            rng,
            shape,
            safety,
            damaged,
        }
    }

    fn draw(mut self) -> Vec<Fault> {
        // Swarm: few kinds together reach deeper than all of them at once.
        let allowed: Vec<u64> = (0..KINDS).filter(|_| self.rng.happens(400_000)).collect();
        let gap = *self.rng.pick(&[700 * MILLI, 2 * SECOND, 5 * SECOND]);
        let mut faults = Vec::new();
        let mut at = self.rng.below(2 * gap);
        while !allowed.is_empty() && at < self.safety.0 {
            let kind = *self.rng.pick(&allowed);
            if let Some(kind) = self.kind(kind) {
                let base = *self.rng.pick(&[20, 200, 1_000, 2_000]) * MILLI;
                let typical = if kind.is_mild() { 4 * base } else { base };
                let lasts = Duration::from_nanos(self.rng.long_tailed(typical)).min(LONGEST);
                let at = Moment(at);
                faults.push(Fault { at, lasts, kind });
            }
            at += self.rng.between(gap / 10, 2 * gap);
        }
        if allowed.contains(&BIT_ROT) {
            faults.extend(self.late_rot());
            faults.sort_by_key(|fault| fault.at);
        }
        faults
    }

    /// What rots shortly before everything heals is found by reading it, not by a start that scans the disk.
    fn late_rot(&mut self) -> Vec<Fault> {
        let bits = 0..self.rng.below(12);
        let rot = bits.filter_map(|bit| {
            Some(Fault {
                at: Moment(self.safety.0 - SECOND / 2 + bit * MILLI),
                lasts: Duration::ZERO,
                kind: FaultKind::BitRot(self.damaged_unit()?),
            })
        });
        rot.collect()
    }

    fn kind(&mut self, kind: u64) -> Option<FaultKind> {
        let (server, unit, any) = (self.server(), self.unit(), self.any());
        let nth = self.rng.below(20);
        Some(match kind {
            0 | 1 => FaultKind::Stop(any, End::Kill),
            2 => FaultKind::Stop(server, End::PowerLoss),
            3 => FaultKind::StopAll(End::Kill),
            4 if self.rng.happens(500_000) => FaultKind::DisksDie,
            4 => FaultKind::StopAll(End::PowerLoss),
            5 => FaultKind::Pause(any),
            6 | 7 => self.partition(),
            8 => FaultKind::Flap(server, self.any(), 20),
            9 => FaultKind::SlowProcess(any, *self.rng.pick(&[5, 100])),
            10 => FaultKind::Storm(*self.rng.pick(&[20_000, 200_000])),
            11 => FaultKind::DiskStall(unit),
            12 => FaultKind::DiskSlow(unit, *self.rng.pick(&[10, 100])),
            13 if self.rng.happens(500_000) => FaultKind::FailWrite(unit, nth),
            13 => FaultKind::FailSync(unit, nth),
            14 => FaultKind::DiskFull(unit, *self.rng.pick(&[0, 40 << 10])),
            BIT_ROT => FaultKind::BitRot(self.damaged_unit()?),
            16 => FaultKind::Misdirected(self.damaged_unit()?, nth, self.rng.between(1, 3) * 512),
            _ => FaultKind::Clock(
                any,
                *self.rng.pick(&[0, 100, 5_000]),
                *self.rng.pick(&[0, 900_000, 1_500_000]),
            ),
        })
    }

    fn partition(&mut self) -> FaultKind {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for process in 0..self.shape.processes() {
            match self.rng.below(3) {
                0 => a.push(process),
                1 => b.push(process),
                // A partial partition: this one reaches everybody.
                _ => {}
            }
        }
        FaultKind::Partition(a, b, self.rng.happens(500_000))
    }

    fn server(&mut self) -> usize {
        self.rng.index(self.shape.processes() - self.shape.clients)
    }

    fn any(&mut self) -> usize {
        self.rng.index(self.shape.processes())
    }

    fn unit(&mut self) -> usize {
        let units = self.shape.chains * self.shape.replicas;
        self.shape.first_unit() + self.rng.index(units)
    }

    /// A unit that may be damaged; none if it is alone with its positions.
    fn damaged_unit(&mut self) -> Option<usize> {
        if self.shape.replicas < 2 {
            return None;
        }
        let chain = self.rng.index(self.shape.chains);
        Some(self.shape.first_unit() + chain * self.shape.replicas + self.damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_reproducible_and_differ() {
        assert_eq!(Plan::draw(7), Plan::draw(7));
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let plan = Plan::draw(seed);
            assert!(plan.faults.is_sorted_by_key(|fault| fault.at));
            let servers = plan.shape.servers().len();
            assert_eq!(servers + plan.shape.clients, plan.shape.processes());
            kinds.extend(plan.faults.iter().map(|fault| fault.kind.name()));
        }
        assert_eq!(kinds.len(), 22, "{kinds:?}");
    }

    #[test]
    fn damage_never_hits_two_replicas_of_a_position() {
        for seed in 0..300 {
            let plan = Plan::draw(seed);
            let units = plan.shape.first_unit();
            let hit = plan.faults.iter().filter_map(|fault| match fault.kind {
                FaultKind::BitRot(unit) | FaultKind::Misdirected(unit, ..) => Some(unit),
                _ => None,
            });
            let replicas: std::collections::BTreeSet<_> = hit
                .map(|unit| (unit - units) % plan.shape.replicas)
                .collect();
            assert!(replicas.len() <= 1);
            assert!(replicas.is_empty() || plan.shape.replicas > 1);
        }
    }
}
