//! Looks for seeds that find planted bugs, and says which invariants found which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use milonga_protocol::plants::Plant;

use super::say::print;
use super::{Args, Totals, now, seeds, with_plant};
use crate::world::{Report, invariants, run, shrink};

/// What came of looking for one plant.
#[derive(Debug, Default)]
struct Search {
    /// The lowest seed that fails with the plant only.
    first: Option<Report>,
    /// How often each invariant was the first to be broken.
    invariants: BTreeMap<String, u64>,
    /// Seeds that fail without the plant, too.
    noise: BTreeSet<u64>,
}

/// Plants each of `wanted` in turn, and runs seeds until one finds it; or all of them, to fill the matrix.
pub(super) fn look_for(wanted: &[Plant], args: &Args) -> Totals {
    let mut totals = Totals::default();
    let mut matrix = BTreeMap::new();
    for plant in wanted {
        let began = now();
        let (search, tried) = search(*plant, args);
        let text = match &search.first {
            Some(report) => found(*plant, report, tried, args),
            None => format!("{plant:?} NOT FOUND in {tried}"),
        };
        let is_found = search.first.is_some();
        totals.seeds += tried;
        totals.passed += u64::from(is_found);
        totals.failed += u64::from(!is_found);
        if !args.json {
            let noise = match search.noise.len() {
                0 => String::new(),
                _ => format!("; fail without it, too: {:?}", search.noise),
            };
            print(format_args!(
                "{text} ({:.1} s){noise}",
                began.elapsed().as_secs_f64()
            ));
        }
        let name = format!("{plant:?}");
        totals.plants.push(serde_json::json!({
            "name": name, "found": is_found, "text": text, "seeds": tried, "invariants": search.invariants,
        }));
        matrix.insert(name, search.invariants);
    }
    if wanted.len() > 1 && !args.json {
        print_matrix(&matrix);
    }
    totals
}

fn search(plant: Plant, args: &Args) -> (Search, u64) {
    let found: Mutex<Search> = Mutex::default();
    let tried = AtomicU64::new(0);
    seeds(args, Some(plant), &|report| {
        tried.fetch_add(1, Ordering::Relaxed);
        let Some(failure) = &report.failure else {
            return true;
        };
        let without = super::without(plant, || run(&args.plan(report.seed), report.seed, false));
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        if without.failure.is_some() {
            found.noise.insert(report.seed);
            return true;
        }
        let count = found.invariants.entry(failure.invariant.clone());
        *count.or_insert(0) += 1;
        let first = found.first.as_ref();
        if first.is_none_or(|first| report.seed < first.seed) {
            found.first = Some(report.clone());
        }
        args.matrix
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    (found, tried.into_inner())
}

fn found(plant: Plant, report: &Report, tried: u64, args: &Args) -> String {
    let seed = report.seed;
    let (smaller, report) = with_plant(Some(plant), || shrink(&args.plan(seed), report, 120));
    let failure = report.failure.map(|failure| failure.invariant);
    format!(
        "{plant:?} found by seed {seed} ({}) after {tried} seeds: {} ({} faults, {} clients)",
        report.workload,
        failure.unwrap_or_default(),
        smaller.faults.len(),
        smaller.shape.clients,
    )
}

/// A line for each plant, a column for each invariant; the columns are named below.
fn print_matrix(matrix: &BTreeMap<String, BTreeMap<String, u64>>) {
    let known = invariants::all();
    let known = known.iter().map(|invariant| invariant.name().to_owned());
    let broken = matrix.values().flat_map(|broken| broken.keys().cloned());
    let names: BTreeSet<String> = known.chain(broken).collect();
    let width = matrix.keys().map(String::len).max().unwrap_or_default();
    for (plant, broken) in matrix {
        let cells = names.iter().map(|name| match broken.get(name) {
            Some(count) => format!("{count:>4}"),
            None => format!("{:>4}", "."),
        });
        print(format_args!("{plant:width$} {}", cells.collect::<String>()));
    }
    for (column, name) in names.iter().enumerate() {
        let by = matrix.values().filter(|broken| broken.contains_key(name));
        let by = match by.count() {
            0 => "broken by no plant".to_owned(),
            count => format!("broken by {count} plants"),
        };
        print(format_args!("column {:>2}: {name}: {by}", column + 1));
    }
}
