//! What a state costs that can be frozen in O(1): bytes per entry, apply rate and lookups of the candidates at
//! one million keys (`docs/decisions/0003-state-representation.md`).
//!
//! Each sample runs in a child process of its own, so that resident memory is that of one candidate and no heap
//! is worn by the one before. Keys are `key-%08d`, values 16 bytes, in random order.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::hash::Hash;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use milonga_benches::report::{Better, Figure, ReportArgs};

const KEYS: u64 = 1_000_000;
const UPDATES: u64 = 262_144;
const UPDATES_PER_SNAPSHOT: u64 = 64;
const SAMPLES: usize = 3;
/// A candidate that copies everything for a snapshot would take a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    report: ReportArgs,
    /// Seed of the order of keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Measure this candidate once, in this process.
    #[arg(long, hide = true)]
    child: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.child {
        Some(name) => child(name, args.seed),
        None => parent(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures one candidate, given a seed.
type Measure = fn(u64) -> Sample;

/// Name and measurement of each candidate.
const CANDIDATES: [(&str, Measure); 9] = [
    ("std_hash_map", sample::<String, HashMap<String, Value>>),
    ("std_btree_map", sample::<String, BTreeMap<String, Value>>),
    (
        "imbl_hash_map",
        sample::<String, imbl::HashMap<String, Value>>,
    ),
    (
        "imbl_ord_map",
        sample::<String, imbl::OrdMap<String, Value>>,
    ),
    (
        "imbl_ord_map_arc_str",
        sample::<Arc<str>, imbl::OrdMap<Arc<str>, Value>>,
    ),
    (
        "imbl_hash_map_arc_key",
        sample::<ArcKey, imbl::HashMap<ArcKey, Value>>,
    ),
    (
        "imbl_ord_map_arc_key",
        sample::<ArcKey, imbl::OrdMap<ArcKey, Value>>,
    ),
    ("versioned_hash_map", sample::<String, Versioned>),
    (
        "arc_btree_map_copied",
        sample::<String, Arc<BTreeMap<String, Value>>>,
    ),
];

/// Names, units and directions of a sample's figures, in its order.
const FIGURES: [(&str, &str, Better); 5] = [
    ("bytes_per_entry", "B", Better::Lower),
    ("load", "entries/s", Better::Higher),
    ("update", "updates/s", Better::Higher),
    ("update_snapshot_64", "updates/s", Better::Higher),
    ("get", "ns", Better::Lower),
];

/// Values in the order of [`FIGURES`]; NaN where there is none.
type Sample = [f64; FIGURES.len()];

fn parent(args: &Args) -> Result<(), Box<dyn Error>> {
    eprintln!("seed {}", args.seed);
    let mut figures = Vec::new();
    for (candidate, _) in CANDIDATES {
        let names = FIGURES.map(|(figure, ..)| format!("{candidate}/{figure}"));
        if !names.iter().any(|name| args.report.wants(name)) {
            continue;
        }
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            samples.push(run_child(candidate, args.seed)?);
        }
        for (at, (name, (_, unit, better))) in names.into_iter().zip(FIGURES).enumerate() {
            let values: Vec<f64> = samples.iter().map(|sample| sample[at]).collect();
            if args.report.wants(&name) && !values.iter().any(|value| value.is_nan()) {
                figures.push(Figure::new(name, unit, better, values));
            }
        }
    }
    Ok(args.report.print(&figures)?)
}

fn run_child(candidate: &str, seed: u64) -> Result<Sample, Box<dyn Error>> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--child", candidate, "--seed", &seed.to_string()])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let values: Vec<f64> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    values
        .try_into()
        .map_err(|_| format!("the child that measures {candidate} said {text:?}").into())
}

fn child(name: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let (_, measure) = CANDIDATES
        .into_iter()
        .find(|(candidate, _)| *candidate == name)
        .ok_or("no such candidate")?;
    println!("{}", measure(seed).map(|value| value.to_string()).join(" "));
    Ok(())
}

type Value = [u8; 16];

/// A state under measurement.
trait State<K>: Default {
    /// What a reader keeps of a frozen state.
    type Frozen;
    /// Applies one update.
    fn insert(&mut self, key: K, value: Value);
    /// Looks a key up.
    fn get(&self, key: &str) -> Option<&Value>;
    /// Freezes the state; `None` if it cannot.
    fn freeze(&mut self) -> Option<Self::Frozen>;
}

fn sample<K: From<String>, S: State<K>>(seed: u64) -> Sample {
    let mut random = Random(seed);
    let before = resident_bytes();
    let mut order: Vec<(u64, u64)> = (0..KEYS).map(|n| (random.below(u64::MAX), n)).collect();
    order.sort_unstable();
    let pairs: Vec<(K, Value)> = order.into_iter().map(|(_, n)| pair(n)).collect();
    let mut state = S::default();
    let load = seconds(|| {
        for (key, value) in pairs {
            state.insert(key, value);
        }
    });
    let bytes = resident_bytes().saturating_sub(before) as f64 / KEYS as f64;
    let update = update_rate(&mut state, &mut random, false).unwrap_or(f64::NAN);
    let snapshots = update_rate(&mut state, &mut random, true).unwrap_or(f64::NAN);
    let wanted: Vec<String> = (0..UPDATES).map(|_| key(random.below(KEYS))).collect();
    let get = seconds(|| {
        for key in &wanted {
            black_box(state.get(key).expect("all keys are there"));
        }
    });
    let per_get = get * 1e9 / UPDATES as f64;
    [bytes, KEYS as f64 / load, update, snapshots, per_get]
}

/// Updates random keys of a full state, with the newest snapshot kept out if `snapshots`.
fn update_rate<K: From<String>, S: State<K>>(
    state: &mut S,
    random: &mut Random,
    snapshots: bool,
) -> Option<f64> {
    let pairs: Vec<(K, Value)> = (0..UPDATES).map(|_| pair(random.below(KEYS))).collect();
    let mut frozen = None;
    let mut done = 0;
    let started = now();
    for (key, value) in pairs {
        if snapshots && done % UPDATES_PER_SNAPSHOT == 0 {
            if started.elapsed() > PATIENCE {
                break;
            }
            frozen = Some(state.freeze()?);
        }
        state.insert(key, value);
        done += 1;
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    drop(frozen);
    Some(rate)
}

fn pair<K: From<String>>(n: u64) -> (K, Value) {
    (K::from(key(n)), u128::from(n).to_le_bytes())
}

fn key(n: u64) -> String {
    format!("key-{n:08}")
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = now();
    work();
    started.elapsed().as_secs_f64()
}

/// Resident memory of this process: what the allocator took, its own overhead included.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("the kernel reports VmRSS");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>();
    kib.expect("VmRSS is a number of kB") * 1024
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A key of any type behind one more pointer, so that copying a shared node copies pointers, not strings.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ArcKey(Arc<String>);

impl From<String> for ArcKey {
    fn from(key: String) -> Self {
        Self(Arc::new(key))
    }
}

impl Borrow<str> for ArcKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl State<String> for HashMap<String, Value> {
    type Frozen = ();
    fn insert(&mut self, key: String, value: Value) {
        Self::insert(self, key, value);
    }
    fn get(&self, key: &str) -> Option<&Value> {
        Self::get(self, key)
    }
    fn freeze(&mut self) -> Option<()> {
        None
    }
}

impl State<String> for BTreeMap<String, Value> {
    type Frozen = ();
    fn insert(&mut self, key: String, value: Value) {
        Self::insert(self, key, value);
    }
    fn get(&self, key: &str) -> Option<&Value> {
        Self::get(self, key)
    }
    fn freeze(&mut self) -> Option<()> {
        None
    }
}

impl State<String> for Arc<BTreeMap<String, Value>> {
    type Frozen = Self;
    fn insert(&mut self, key: String, value: Value) {
        Self::make_mut(self).insert(key, value);
    }
    fn get(&self, key: &str) -> Option<&Value> {
        BTreeMap::get(self, key)
    }
    fn freeze(&mut self) -> Option<Self> {
        Some(Self::clone(self))
    }
}

impl<K: Clone + Eq + Hash + Borrow<str>> State<K> for imbl::HashMap<K, Value> {
    type Frozen = Self;
    fn insert(&mut self, key: K, value: Value) {
        Self::insert(self, key, value);
    }
    fn get(&self, key: &str) -> Option<&Value> {
        Self::get(self, key)
    }
    fn freeze(&mut self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<K: Clone + Ord + Borrow<str>> State<K> for imbl::OrdMap<K, Value> {
    type Frozen = Self;
    fn insert(&mut self, key: K, value: Value) {
        Self::insert(self, key, value);
    }
    fn get(&self, key: &str) -> Option<&Value> {
        Self::get(self, key)
    }
    fn freeze(&mut self) -> Option<Self> {
        Some(self.clone())
    }
}

/// A mutable map whose values keep the versions that a snapshot still needs. One snapshot is out at a time here;
/// the lock that readers and the writer would share is left out, in its favour.
#[derive(Default)]
struct Versioned {
    map: HashMap<String, Version>,
    at: u64,
    snapshot: u64,
}

struct Version {
    since: u64,
    value: Value,
    older: Option<Box<Self>>,
}

impl State<String> for Versioned {
    type Frozen = u64;
    fn insert(&mut self, key: String, value: Value) {
        self.at += 1;
        let since = self.at;
        let Some(newest) = self.map.get_mut(&key) else {
            let older = None;
            self.map.insert(
                key,
                Version {
                    since,
                    value,
                    older,
                },
            );
            return;
        };
        let before = std::mem::replace(
            newest,
            Version {
                since,
                value,
                older: None,
            },
        );
        newest.older = if before.since <= self.snapshot {
            // The snapshot sees `before`, so nobody needs what was before that.
            Some(Box::new(Version {
                older: None,
                ..before
            }))
        } else {
            before.older
        };
    }
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).map(|version| &version.value)
    }
    fn freeze(&mut self) -> Option<u64> {
        self.snapshot = self.at;
        Some(self.at)
    }
}
