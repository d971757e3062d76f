//! What is shown at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::compare::{Differences, Found};
use crate::reference::Reference;
use crate::say;

const ROWS: usize = 10;
const NOTES: usize = 20;

/// One killed process.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    /// `worker`, `producer`, or the name of a server.
    pub(crate) role: &'static str,
    /// Its process.
    pub(crate) pid: u32,
    /// Line of the stanza, and what was in flight, for each transaction.
    pub(crate) in_flight: Vec<(u64, String)>,
    /// Stanzas done at that moment.
    pub(crate) done: u64,
}

impl Kill {
    /// One line for people.
    pub(crate) fn line(&self, input: &str, stanzas: u64) -> String {
        let flights: Vec<_> = self
            .in_flight
            .iter()
            .map(|(line, what)| format!("{input}:{line}: {what}"))
            .collect();
        let percent = self.done * 100 / stanzas.max(1);
        let (role, pid, flights) = (self.role, self.pid, flights.join("; "));
        let mut line = format!("killed {role} pid {pid} at {percent} % of the work");
        if !self.in_flight.is_empty() {
            line.push_str(&format!(", in flight: {flights}"));
        }
        line
    }
}

/// How far the work is, for who has to know meanwhile.
#[derive(Debug)]
pub(crate) struct Progress {
    done: AtomicU64,
    all: u64,
}

impl Progress {
    pub(crate) const fn new(all: u64) -> Self {
        Self {
            done: AtomicU64::new(0),
            all,
        }
    }

    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn percent(&self) -> u64 {
        self.done() * 100 / self.all.max(1)
    }
}

/// How the work went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    /// Transactions that committed.
    pub(crate) committed: u64,
    /// Runs of their closures: what is more than committed was aborted by a conflict and retried.
    pub(crate) runs: u64,
    /// From the first push to the last commit.
    pub(crate) took: Duration,
    /// Who was killed.
    pub(crate) kills: Vec<Kill>,
}

impl Work {
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn abort_percent(&self) -> f64 {
        self.runs.saturating_sub(self.committed) as f64 * 100.0 / self.runs.max(1) as f64
    }
}

/// Everything to report.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// Name of the input.
    pub(crate) input: &'a str,
    /// What should be.
    pub(crate) reference: &'a Reference,
    /// What is.
    pub(crate) found: &'a Found,
    /// Where they differ.
    pub(crate) differences: &'a Differences,
    /// How it went.
    pub(crate) work: &'a Work,
}

impl Report<'_> {
    /// The last line.
    pub(crate) fn verdict(&self) -> String {
        let Differences {
            lost,
            duplicated,
            notes,
        } = self.differences;
        let counts = format!(
            "{} stanzas, {} packages, {} edges, {lost} lost, {duplicated} duplicated",
            self.found.total,
            self.found.packages.len(),
            self.found.edges.len(),
        );
        match notes.first() {
            None => format!("ok: {counts}"),
            Some(first) => format!("failed: {counts}; {first}"),
        }
    }

    /// Prints tables and the verdict, or one JSON value.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(crate) fn print(&self, as_json: bool) -> io::Result<()> {
        for note in self.differences.notes.iter().take(NOTES) {
            say::note(format_args!("differs: {note}"));
        }
        if self.differences.notes.len() > NOTES {
            say::note(format_args!(
                "differs: … and {} more",
                self.differences.notes.len() - NOTES
            ));
        }
        let mut out = io::stdout().lock();
        if as_json {
            return writeln!(out, "{:#}", self.to_json());
        }
        table(
            &mut out,
            "largest sections",
            "stanzas",
            &self.largest_sections(),
        )?;
        table(
            &mut out,
            "most depended-on packages",
            "dependents",
            &self.most_needed(),
        )?;
        for kill in &self.work.kills {
            writeln!(out, "{}", kill.line(self.input, self.reference.stanzas))?;
        }
        let Work {
            committed,
            runs,
            took,
            ..
        } = self.work;
        writeln!(
            out,
            "{committed} transactions reported in {:.1} s; {} of {runs} runs aborted by conflicts ({:.1} %); {} malformed stanzas skipped",
            took.as_secs_f64(),
            runs.saturating_sub(*committed),
            self.work.abort_percent(),
            self.reference.malformed,
        )?;
        writeln!(out, "{}", self.verdict())
    }

    fn largest_sections(&self) -> Vec<(String, u64)> {
        top(self
            .found
            .sections
            .iter()
            .map(|(name, n)| (name.clone(), u64::try_from(*n).unwrap_or(0))))
    }

    fn most_needed(&self) -> Vec<(String, u64)> {
        let mut dependents: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, _) in &self.found.needed_by {
            *dependents.entry(name).or_default() += 1;
        }
        top(dependents.into_iter().map(|(name, n)| (name.to_owned(), n)))
    }

    fn to_json(&self) -> Value {
        let kills = self.work.kills.iter().map(|kill| {
            let flights = kill
                .in_flight
                .iter()
                .map(|(line, what)| json!({ "line": line, "what": what }));
            json!({
                "role": kill.role,
                "pid": kill.pid,
                "done": kill.done,
                "in_flight": flights.collect::<Vec<_>>(),
            })
        });
        json!({
            "ok": self.differences.is_empty(),
            "verdict": self.verdict(),
            "stanzas": self.found.total,
            "packages": self.found.packages.len(),
            "edges": self.found.edges.len(),
            "lost": self.differences.lost,
            "duplicated": self.differences.duplicated,
            "malformed": self.reference.malformed,
            "sections": self.largest_sections(),
            "most_depended_on": self.most_needed(),
            "seconds": self.work.took.as_secs_f64(),
            "transactions": self.work.committed,
            "runs": self.work.runs,
            "abort_percent": self.work.abort_percent(),
            "kills": kills.collect::<Vec<_>>(),
        })
    }
}

fn top(counts: impl Iterator<Item = (String, u64)>) -> Vec<(String, u64)> {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(ROWS);
    counts
}

fn table(out: &mut impl Write, title: &str, unit: &str, rows: &[(String, u64)]) -> io::Result<()> {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        .max(title.len());
    writeln!(out, "{title:<width$}  {unit:>10}")?;
    for (name, n) in rows {
        writeln!(out, "{name:<width$}  {n:>10}")?;
    }
    writeln!(out)
}
