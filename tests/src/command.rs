//! The command `world`: draws seeds, runs them on all cores, and says what did not hold.

mod plants;
pub(crate) mod say;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use milonga_protocol::plants::{Plant, set};

use say::{note, print};

use crate::world::{Plan, Report, run, shrink, workloads};

/// Runs the whole system in seeded worlds, under faults.
#[derive(Clone, Debug, Parser)]
#[command(name = "world")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs seeds for so long instead of a number of them.
    #[arg(long)]
    minutes: Option<f64>,
    /// Runs one seed.
    #[arg(long, conflicts_with_all = ["seeds", "from", "minutes"])]
    seed: Option<u64>,
    /// With `--seed`: prints everything that happens.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plants a bug, and looks for a seed that finds it.
    #[arg(long, value_parser = plant_of)]
    plant: Option<Plant>,
    /// Plants each bug in turn.
    #[arg(long, conflicts_with = "plant")]
    plants: bool,
    /// Prints the names of all plants, one a line.
    #[arg(long)]
    list_plants: bool,
    /// With plants: runs all seeds, to see which invariants find them.
    #[arg(long)]
    matrix: bool,
    /// All seeds get this workload.
    #[arg(long, value_parser = workload_of)]
    workload: Option<usize>,
    /// Each seed's faults come so many times over: long histories, with short rests between operations.
    #[arg(long, default_value_t = 1)]
    stretch: u64,
    /// Does not look for a smaller plan that fails alike
    #[arg(long)]
    quick: bool,
    /// Prints one JSON value.
    #[arg(long)]
    json: bool,
}

fn plant_of(name: &str) -> Result<Plant, String> {
    let mut all = Plant::ALL.iter();
    all.find(|plant| format!("{plant:?}") == name)
        .copied()
        .ok_or_else(|| format!("no such plant; there are: {:?}", Plant::ALL))
}

fn workload_of(name: &str) -> Result<usize, String> {
    let all = workloads::all();
    let names: Vec<_> = all.iter().map(|workload| workload.name()).collect();
    let found = names.iter().position(|known| *known == name);
    found.ok_or_else(|| format!("no such workload; there are: {names:?}"))
}

impl Args {
    /// What `seed` draws, with the workload that was asked for.
    fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        plan.workload = self.workload.unwrap_or(plan.workload);
        if self.stretch > 1 {
            plan.stretch(self.stretch);
        }
        plan
    }
}

/// The command.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    if args.list_plants {
        Plant::ALL
            .iter()
            .for_each(|plant| print(format_args!("{plant:?}")));
        return ExitCode::SUCCESS;
    }
    let totals = match (args.seed, args.plant, args.plants) {
        (Some(seed), plant, _) => one(seed, plant, &args),
        (None, Some(plant), _) => plants::look_for(&[plant], &args),
        (None, None, true) => plants::look_for(Plant::ALL, &args),
        (None, None, false) => many(&args),
    };
    if args.json {
        print(totals.json());
    } else {
        print(format_args!(
            "{} passed, {} failed",
            totals.passed, totals.failed
        ));
    }
    ExitCode::from(u8::from(totals.failed > 0))
}

/// What came of all runs.
#[derive(Debug, Default)]
struct Totals {
    seeds: u64,
    passed: u64,
    failed: u64,
    virtual_seconds: f64,
    operations: u64,
    overlapping: u64,
    faults: BTreeMap<&'static str, u64>,
    plants: Vec<serde_json::Value>,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        if report.failure.is_none() {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
        self.virtual_seconds += report.time.seconds();
        self.operations += report.operations;
        self.overlapping += report.overlapping;
        for (name, count) in &report.faults {
            *self.faults.entry(name).or_insert(0) += count;
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "seeds": self.seeds,
            "passed": self.passed,
            "failed": self.failed,
            "virtual_hours": self.virtual_seconds / 3_600.0,
            "operations": self.operations,
            "overlapping": self.overlapping,
            "faults_begun": self.faults.values().sum::<u64>(),
            "faults": self.faults,
            "plants": self.plants,
        })
    }

    fn say(&self, began: Instant) {
        let real = began.elapsed().as_secs_f64();
        let faults: u64 = self.faults.values().sum();
        note(format_args!(
            "{} seeds: {:.2} cluster hours in {real:.1} s ({:.0} virtual seconds a second), {} operations \
             ({:.1} a virtual second, {:.0} % beside a fault), {faults} faults",
            self.seeds,
            self.virtual_seconds / 3_600.0,
            self.virtual_seconds / real.max(0.001),
            self.operations,
            self.operations as f64 / self.virtual_seconds.max(0.001),
            100.0 * self.overlapping as f64 / (self.operations.max(1)) as f64,
        ));
        note(format_args!("{:?}", self.faults));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the command runs is real time"
)]
fn now() -> Instant {
    Instant::now()
}

fn with_plant<T>(plant: Option<Plant>, work: impl FnOnce() -> T) -> T {
    if let Some(plant) = plant {
        set(plant, true);
    }
    let result = work();
    if let Some(plant) = plant {
        set(plant, false);
    }
    result
}

/// The same without a plant that is planted.
fn without<T>(plant: Plant, work: impl FnOnce() -> T) -> T {
    set(plant, false);
    let result = work();
    set(plant, true);
    result
}

fn one(seed: u64, plant: Option<Plant>, args: &Args) -> Totals {
    let began = now();
    let plan = args.plan(seed);
    if args.trace {
        note(format_args!("{plan:#?}"));
    }
    let report = with_plant(plant, || run(&plan, seed, args.trace));
    for line in &report.lines {
        if args.json {
            note(line);
        } else {
            print(line);
        }
    }
    if !args.trace {
        explain(&report, plant, args);
    }
    if !args.json {
        print(format_args!("trace {:016x}", report.hash));
    }
    let mut totals = Totals::default();
    totals.add(&report);
    totals.say(began);
    totals
}

fn many(args: &Args) -> Totals {
    let began = now();
    let totals = Mutex::new(Totals::default());
    let every = |report: &Report| {
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.add(report);
        drop(totals);
        explain(report, None, args);
        true
    };
    seeds(args, None, &every);
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    totals.say(began);
    totals
}

/// Runs seeds on all cores until there are enough, or `every` says so.
fn seeds(args: &Args, plant: Option<Plant>, every: &(impl Fn(&Report) -> bool + Sync)) {
    let next = AtomicU64::new(args.from);
    let limit = args
        .minutes
        .map(|minutes| now() + Duration::from_secs_f64(minutes * 60.0));
    let end = args.from.saturating_add(if limit.is_some() {
        u64::MAX
    } else {
        args.seeds
    });
    let work = || {
        with_plant(plant, || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end || limit.is_some_and(|limit| now() >= limit) {
                    return;
                }
                if !every(&run(&args.plan(seed), seed, false)) {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                }
            }
        });
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
}

/// A failure: the invariant, a smaller plan, the history around it, and how to repeat it.
fn explain(report: &Report, plant: Option<Plant>, args: &Args) {
    let Some(failure) = &report.failure else {
        return;
    };
    let seed = report.seed;
    let runs = if args.quick { 0 } else { 80 };
    let (plan, small) = with_plant(plant, || shrink(&args.plan(seed), report, runs));
    let again = with_plant(plant, || run(&plan, small.seed, true));
    let mut text = format!(
        "seed {seed}: {} at {}\n  {}\n",
        failure.invariant, failure.at, failure.what
    );
    text += &format!(
        "  with {} of its faults and {} clients ({}):\n",
        plan.faults.len(),
        plan.shape.clients,
        small.workload
    );
    for fault in &plan.faults {
        text += &format!("    {} {:?} for {:?}\n", fault.at, fault.kind, fault.lasts);
    }
    for line in again.last_lines() {
        text += &format!("    {line}\n");
    }
    let plant = plant
        .map(|plant| format!(" --plant {plant:?}"))
        .unwrap_or_default();
    let workload = match args.workload {
        Some(_) => format!(" --workload '{}'", report.workload),
        None => String::new(),
    };
    let stretch = match args.stretch {
        0 | 1 => String::new(),
        times => format!(" --stretch {times}"),
    };
    text += &format!(
        "  repeat: cargo run --release -p milonga-tests --bin world -- --seed {seed} --trace{plant}{workload}{stretch}\n"
    );
    note(text.trim_end());
}
