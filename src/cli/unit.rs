//! `milonga unit …`: a log unit's directory, looked at from outside. Nothing here writes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use milonga_node::{
    Affected, Damage, LookError, Remark, SegmentReport, SegmentState, UnitDirectory, UnitReport,
};
use milonga_protocol::Position;
use serde_json::{Value, json};

use super::output::{self, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum UnitCommand {
    /// Show what a unit's directory holds: whose it is, epoch, trim mark, segment files, entries, what is lost.
    ///
    /// Reads everything and changes nothing. A directory that a server uses at the moment is read all the same: the
    /// figures are then of some moment meanwhile, and what is being written may look torn or damaged.
    Inspect(Directory),
    /// Read every byte of a unit's directory and report all damage; exit code 1 if there is any.
    ///
    /// Checks every checksum, that batches and segments follow each other, that indexes say what the records say, and
    /// that there are zeros where nothing was written. Prints one line for each damage: file, offset, what was
    /// expected there, and which positions it may have cost this unit (another replica may have them); then one for
    /// whatever else is unusual, such as the tail of a write that was torn when the power failed, which is no damage.
    /// The last line is `ok: …` or `damaged: …`.
    ///
    /// Changes nothing. Refuses a directory that a server uses at the moment, because a write under way cannot be
    /// told from damage.
    Verify(Directory),
}

/// Which unit.
#[derive(Debug, Args)]
pub(super) struct Directory {
    /// Directory of a log unit: `unit` in a server's data, or in the directory of an embedded log.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl UnitCommand {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Inspect(Directory { directory }) => inspect(&directory, json),
            Self::Verify(Directory { directory }) => verify(&directory, json),
        }
    }
}

/// What is not there, or is something else, was not found.
fn failed(error: LookError) -> Failure {
    match error {
        LookError::Absent { .. } | LookError::NoUnit { .. } => Failure::not_found(error),
        error => error.into(),
    }
}

/// Reads all of a directory, with a bar if standard error is a terminal.
fn read(directory: &UnitDirectory) -> Result<UnitReport, Failure> {
    let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style);
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let report = directory.inspect(|done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    report.map_err(failed)
}

fn inspect(path: &Path, json: bool) -> Result<(), Failure> {
    let directory = UnitDirectory::at(path).map_err(failed)?;
    let before = directory.user()?;
    let report = read(&directory)?;
    let user = before.or(directory.user()?);
    let value = inspected(path, user.as_deref(), &report);
    output::result(json, &value, |_| describe(path, user.as_deref(), &report))
}

fn verify(path: &Path, json: bool) -> Result<(), Failure> {
    let directory = UnitDirectory::at(path).map_err(failed)?;
    let in_use = |user: String, when: &str| {
        Failure::failed(format!(
            "{} is in use by process {user} {when}: a write under way cannot be told from damage; stop that server, or \
             see `milonga unit inspect`",
            path.display()
        ))
    };
    if let Some(user) = directory.user()? {
        return Err(in_use(user, "now"));
    }
    let report = read(&directory)?;
    if let Some(user) = directory.user()? {
        return Err(in_use(user, "since just now"));
    }
    output::result(json, &verified(path, &report), |_| lines(&report))?;
    if damages(&report) > 0 {
        // Standard output says it.
        return Err(Failure::failed(""));
    }
    Ok(())
}

fn damages(report: &UnitReport) -> u64 {
    report.damage.len() as u64 + report.more_damage
}

/// How many positions may be lost, at most.
fn lost(report: &UnitReport) -> u64 {
    let spans = report.lost.iter().map(|(from, to)| to.0 - from.0);
    spans.fold(0, u64::saturating_add)
}

// -------------------------------------------------------------------------------------------------------- as JSON

fn inspected(path: &Path, user: Option<&str>, report: &UnitReport) -> Value {
    let state = report.state.as_ref();
    json!({
        "directory": path,
        "in_use_by": user,
        "unit": report.unit.map(|unit| unit.to_string()),
        "name": report.name,
        "cluster": report.cluster.map(|cluster| cluster.to_string()),
        "format": report.format,
        "epoch": state.map(|state| state.epoch.0),
        "trimmed": state.map(|state| state.trim.0),
        "voids": state.map(|state| state.voids.iter().map(void).collect::<Vec<_>>()),
        "settled": report.settled.0,
        "high": report.high.0,
        "batches": report.batches,
        "records": report.records,
        "entries": report.entries,
        "junk": report.junk,
        "streams": report.streams,
        "more_streams": report.more_streams,
        "bytes": report.bytes,
        "segments": report.segments.iter().map(segment).collect::<Vec<_>>(),
        "lost": ranges(report),
        "lost_span": lost(report),
        "lost_unknown": report.lost_is_unknown(),
        "damages": damages(report),
        "remarks": report.remarks.iter().map(remark).collect::<Vec<_>>(),
    })
}

fn segment(segment: &SegmentReport) -> Value {
    json!({
        "name": segment.name,
        "state": segment.state.as_str(),
        "generation": segment.generation.map(|generation| format!("{generation:016x}")),
        "bytes": segment.bytes,
        "used": segment.used,
        "batches": segment.batches,
        "records": segment.records,
        "entries": segment.entries,
        "junk": segment.junk,
        "streams": segment.streams,
        "first": segment.positions.map(|(first, _)| first.0),
        "last": segment.positions.map(|(_, last)| last.0),
    })
}

fn void((batch, from): &(u64, Position)) -> Value {
    json!({ "batch": batch, "from": from.0 })
}

fn ranges(report: &UnitReport) -> Vec<Value> {
    let ranges = report.lost.iter();
    ranges
        .map(|(from, to)| json!({ "from": from.0, "to": to.0 }))
        .collect()
}

fn remark(remark: &Remark) -> Value {
    json!({ "file": remark.file, "offset": remark.offset, "text": remark.text })
}

fn verified(path: &Path, report: &UnitReport) -> Value {
    let damage = |damage: &Damage| {
        let (affected, from, to) = match damage.affected {
            Affected::Nothing => ("nothing", None, None),
            Affected::Positions(from, to) => ("positions", Some(from.0), Some(to.0)),
            Affected::Unknown => ("unknown", None, None),
        };
        json!({
            "file": damage.file,
            "offset": damage.offset,
            "expected": damage.expected,
            "affected": affected,
            "from": from,
            "to": to,
        })
    };
    json!({
        "directory": path,
        "ok": damages(report) == 0,
        "unit": report.unit.map(|unit| unit.to_string()),
        "name": report.name,
        "bytes": report.bytes,
        "segments": report.segments.len(),
        "batches": report.batches,
        "records": report.records,
        "lost": ranges(report),
        "lost_span": lost(report),
        "lost_unknown": report.lost_is_unknown(),
        "damages": damages(report),
        "damage": report.damage.iter().map(damage).collect::<Vec<_>>(),
        "remarks": report.remarks.iter().map(remark).collect::<Vec<_>>(),
    })
}

// -------------------------------------------------------------------------------------------------------- as text

/// `3 batches`; few words here have another plural.
fn many(count: u64, what: &str) -> String {
    let plural = match (count, what.strip_suffix('h'), what.strip_suffix('y')) {
        (1, ..) => what.to_owned(),
        (_, Some(_), _) => format!("{what}es"),
        (_, _, Some(stem)) => format!("{stem}ies"),
        _ => format!("{what}s"),
    };
    format!("{} {plural}", HumanCount(count))
}

fn describe(path: &Path, user: Option<&str>, report: &UnitReport) -> String {
    let unknown = || "unknown".to_owned();
    let mut text = format!(
        "unit {} ({}), format version {}\n",
        report.name.clone().unwrap_or_else(unknown),
        report.unit.map_or_else(unknown, |unit| unit.to_string()),
        report.format,
    );
    for (what, value) in facts(path, user, report) {
        let _ = writeln!(text, "{what:<10} {value}");
    }
    let _ = write!(text, "\n{}", table(&report.segments));
    if !report.remarks.is_empty() {
        text.push('\n');
    }
    for remark in &report.remarks {
        let _ = writeln!(text, "{}", remark_line(remark));
    }
    if damages(report) > 0 {
        let _ = writeln!(
            text,
            "\nDAMAGED in {}: see `milonga unit verify {}`",
            many(damages(report), "place"),
            path.display()
        );
    }
    text
}

/// What there is to say of the whole.
fn facts(path: &Path, user: Option<&str>, report: &UnitReport) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let in_use = match user {
        None => "not in use".to_owned(),
        Some(user) => {
            format!("IN USE by process {user}: what it writes meanwhile may look torn or damaged")
        }
    };
    let cluster = match (report.cluster, report.unit) {
        (Some(cluster), _) => cluster.to_string(),
        (None, Some(_)) => "none".to_owned(),
        (None, None) => unknown(),
    };
    let state = report.state.as_ref();
    let trim = state.map_or_else(unknown, |state| state.trim.to_string());
    let positions = format!(
        "trimmed below {trim}, settled below {}, nothing at or above {}",
        report.settled, report.high
    );
    let more = if report.more_streams {
        "more than "
    } else {
        ""
    };
    let holds = format!(
        "{} of {more}{}, {} of junk",
        many(report.entries, "entry"),
        many(report.streams, "stream"),
        many(report.junk, "position"),
    );
    let mut facts = vec![
        ("cluster", cluster),
        ("directory", format!("{}, {in_use}", path.display())),
        (
            "epoch",
            state.map_or_else(unknown, |state| state.epoch.to_string()),
        ),
        ("positions", positions),
        ("holds", holds),
        ("lost", lost_text(report)),
    ];
    let voids = state.map_or(&[][..], |state| &state.voids);
    if !voids.is_empty() {
        facts.push(("void", void_text(voids)));
    }
    facts
}

/// The last voids.
fn void_text(voids: &[(u64, Position)]) -> String {
    const SHOWN: usize = 4;
    let last = voids.iter().rev().take(SHOWN);
    let last: Vec<_> = last
        .map(|(batch, from)| format!("at or above {from} in batches up to {batch}"))
        .collect();
    let more = match voids.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {}", many(more as u64, "earlier one")),
    };
    format!("{}{more}", last.join(", "))
}

/// The first lost ranges.
fn lost_text(report: &UnitReport) -> String {
    const SHOWN: usize = 8;
    let ranges = report.lost.iter().take(SHOWN);
    let ranges: Vec<_> = ranges.map(|(from, to)| format!("{from}..{to}")).collect();
    let more = match report.lost.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {}", many(more as u64, "further range")),
    };
    let known = |most| {
        let most = many(most, "position");
        format!("at most {most}, in {}{more}", ranges.join(", "))
    };
    match (lost(report), report.lost_is_unknown()) {
        (0, false) => "nothing".to_owned(),
        (0, true) => "how much is not known".to_owned(),
        (most, false) => known(most),
        (most, true) => format!("{}; how much more is not known", known(most)),
    }
}

/// Columns as wide as they must be; numbers to the right.
fn table(segments: &[SegmentReport]) -> String {
    let header = [
        "segment file",
        "state",
        "batches",
        "records",
        "positions",
        "bytes used",
        "generation",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    for s in segments {
        let used = match s.state {
            SegmentState::Spare => HumanBytes(s.bytes).to_string(),
            _ => format!("{} of {}", HumanBytes(s.used), HumanBytes(s.bytes)),
        };
        rows.push([
            s.name.clone(),
            s.state.as_str().to_owned(),
            HumanCount(s.batches).to_string(),
            HumanCount(s.records).to_string(),
            s.positions.map_or_else(
                || "-".to_owned(),
                |(first, last)| format!("{first} to {last}"),
            ),
            used,
            s.generation
                .map_or_else(|| "-".to_owned(), |generation| format!("{generation:016x}")),
        ]);
    }
    let mut text = String::new();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..header.len()).map(|c| width(c).unwrap_or(0)).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 | 1 | 6 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

fn remark_line(remark: &Remark) -> String {
    format!("{}:{}: note: {}", remark.file, remark.offset, remark.text)
}

/// One line for each damage, one for each remark, and the last.
fn lines(report: &UnitReport) -> String {
    let mut text = String::new();
    for d in &report.damage {
        let _ = writeln!(
            text,
            "{}:{}: expected {}; {}",
            d.file, d.offset, d.expected, d.affected
        );
    }
    if report.more_damage > 0 {
        let _ = writeln!(text, "… and {}", many(report.more_damage, "further place"));
    }
    for remark in &report.remarks {
        let _ = writeln!(text, "{}", remark_line(remark));
    }
    let read = format!(
        "{} in {}, {} in {}",
        HumanBytes(report.bytes),
        many(report.segments.len() as u64, "segment file"),
        many(report.records, "record"),
        many(report.batches, "batch"),
    );
    if damages(report) == 0 {
        let but = match report.remarks.len() as u64 {
            0 => String::new(),
            notes => format!(" (but see {} above)", many(notes, "note")),
        };
        let _ = writeln!(text, "ok: {read}: all as it was written{but}");
        return text;
    }
    let files: std::collections::BTreeSet<_> = report.damage.iter().map(|d| &d.file).collect();
    let lost = match (lost(report), report.lost_is_unknown()) {
        (_, true) => "how much is lost is not known".to_owned(),
        (0, false) => "no position is lost".to_owned(),
        (most, false) => format!("at most {} lost", many(most, "position")),
    };
    let _ = writeln!(
        text,
        "damaged: {} in {}, {lost}; {read}",
        many(damages(report), "place"),
        many(files.len() as u64, "file"),
    );
    text
}
