//! What is shown of changes and of the history.

use std::fmt::Write as _;

use milonga_protocol::change::{ChangeReport, ChangeStage, EpochReport};
use milonga_protocol::{Layout, ServerName, UnitIndex};
use serde_json::{Value, json};

/// Epochs that are shown at once.
const SHOWN: usize = 50;

/// What `--json` prints: how it is now, and what `plan` said had to be done. A dry run shows what was begun before as it is.
pub(super) fn value(report: &ChangeReport, plan: &ChangeReport, dry_run: bool) -> Value {
    json!({
        "done": report.stage == ChangeStage::Done,
        "dry_run": dry_run,
        "epoch": report.epoch.0,
        "steps": plan.steps,
        "joins": plan.joins.iter().map(ServerName::as_str).collect::<Vec<_>>(),
        "leaves": plan.leaves.iter().map(ServerName::as_str).collect::<Vec<_>>(),
        "sequencer": report.sequencer.as_str(),
        "chains": report.chains.iter()
            .map(|chain| chain.iter().map(ServerName::as_str).collect::<Vec<_>>())
            .collect::<Vec<_>>(),
    })
}

pub(super) fn describe(report: &ChangeReport, plan: &ChangeReport, dry_run: bool) -> String {
    let mut text = String::new();
    text.push_str(match report.stage {
        ChangeStage::Planned => "this would be done (nothing was changed):\n",
        ChangeStage::UnderWay => "this is under way already:\n",
        ChangeStage::Done if dry_run => "nothing is to be done; it is so already\n",
        ChangeStage::Done => "",
    });
    for step in &plan.steps {
        let _ = writeln!(text, "  {step}");
    }
    let _ = writeln!(text, "sequencer: {}", report.sequencer);
    for (number, chain) in (1..).zip(&report.chains) {
        let names: Vec<_> = chain.iter().map(ServerName::as_str).collect();
        let _ = writeln!(text, "chain {number}: {}", names.join(" "));
    }
    if !dry_run {
        let _ = writeln!(text, "ok: done, epoch {}", report.epoch);
    }
    text
}

/// The layout's segments, for `--json`.
pub(super) fn segments(layout: &Layout) -> Vec<Value> {
    let name = |unit: &UnitIndex| layout.unit(*unit).name.to_string();
    let segment = |segment: &milonga_protocol::Segment| {
        let chains = segment.chains.iter();
        let chains: Vec<Vec<_>> = chains.map(|c| c.iter().map(name).collect()).collect();
        let joining = segment.joining.iter();
        let joining: Vec<_> = joining.map(|joining| name(&joining.unit)).collect();
        json!({ "start": segment.start.0, "chains": chains, "joining": joining })
    };
    layout.segments.iter().map(segment).collect()
}

/// An epoch, for `--json`.
pub(super) fn epoch(report: &EpochReport) -> Value {
    let origin = report.origin.as_ref();
    json!({
        "epoch": report.epoch.0,
        "start": report.start.0,
        "began": origin.map(|origin| rfc_3339(origin.began)),
        "cause": origin.map(|origin| &origin.cause),
    })
}

/// Seconds since 1970 as people write them, in UTC.
fn rfc_3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // In years that begin in March, so that a leap day is the last one; from 1 March of the year 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Without what a terminal would take for a command.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn table(epochs: &[EpochReport]) -> String {
    let head = ["epoch", "start", "began", "cause"].map(str::to_owned);
    let rows = epochs.iter().map(|report| {
        let origin = report.origin.as_ref();
        [
            report.epoch.to_string(),
            report.start.to_string(),
            origin.map_or_else(|| "-".into(), |origin| rfc_3339(origin.began)),
            origin.map_or_else(|| "-".into(), |origin| printable(&origin.cause)),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (epoch_width, start_width, began_width) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [epoch, start, began, cause] in &rows {
        let _ = writeln!(
            text,
            "{epoch:>epoch_width$}  {start:>start_width$}  {began:<began_width$}  {cause}"
        );
    }
    text
}

pub(super) fn history(epochs: &[EpochReport], layout: Option<&Layout>) -> String {
    let mut text = String::new();
    let hidden = epochs.len().saturating_sub(SHOWN);
    if hidden > 0 {
        let _ = writeln!(text, "{hidden} earlier epochs (`--json` shows all)");
    }
    if !epochs.is_empty() {
        text.push_str(&table(&epochs[hidden..]));
    }
    let Some(layout) = layout else {
        text.push_str("there is no layout yet\n");
        return text;
    };
    let _ = writeln!(text, "sequencer: {}", layout.sequencer.name);
    let name = |unit: &UnitIndex| layout.unit(*unit).name.to_string();
    for segment in &layout.segments {
        let _ = writeln!(text, "positions from {}:", segment.start);
        for (index, chain) in segment.chains.iter().enumerate() {
            let names: Vec<_> = chain.iter().map(name).collect();
            let _ = write!(text, "  chain {}: {}", index + 1, names.join(" "));
            let joining = segment.joining.iter();
            for joining in joining.filter(|j| usize::from(j.chain) == index) {
                let _ = write!(text, " (+{})", name(&joining.unit));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use milonga_protocol::change::Origin;
    use milonga_protocol::{Epoch, Position};

    use super::*;

    fn epochs() -> [EpochReport; 2] {
        let report = |epoch, start, origin| EpochReport {
            epoch: Epoch(epoch),
            start: Position(start),
            origin,
        };
        let origin = Origin::new(1_893_456_009, "unit-1a was restarted".into(), "");
        [report(9, 0, None), report(10, 1_234, Some(origin))]
    }

    #[test]
    fn the_history_is_a_table() {
        let text = history(&epochs(), None);
        let wanted = "\
epoch  start  began                 cause
    9      0  -                     -
   10   1234  2030-01-01T00:00:09Z  unit-1a was restarted
there is no layout yet
";
        assert_eq!(text, wanted);
        assert_eq!(history(&[], None), "there is no layout yet\n");
    }

    #[test]
    fn what_is_not_known_of_an_epoch_is_null() {
        let [old, new] = epochs().map(|report| epoch(&report));
        let unknown = json!({ "epoch": 9, "start": 0, "began": null, "cause": null });
        assert_eq!(old, unknown);
        assert_eq!(new["began"], json!("2030-01-01T00:00:09Z"));
        assert_eq!(new["cause"], json!("unit-1a was restarted"));
    }

    #[test]
    fn seconds_are_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc_3339(seconds), date);
        }
        let _ = rfc_3339(u64::MAX);
    }
}
