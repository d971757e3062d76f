//! What is shown of changes and of the history.

use std::fmt::Write as _;

use milonga_protocol::change::{ChangeReport, ChangeStage};
use milonga_protocol::{Epoch, Layout, Position, ServerName, UnitIndex};
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
        ChangeStage::UnderWay => "this is under way already, by an earlier command:\n",
        ChangeStage::Done if dry_run => "nothing is to be done:\n",
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

pub(super) fn history(starts: &[(Epoch, Position)], layout: Option<&Layout>) -> String {
    let mut text = String::new();
    let hidden = starts.len().saturating_sub(SHOWN);
    if hidden > 0 {
        let _ = writeln!(text, "{hidden} earlier epochs (`--json` shows all)");
    }
    for (epoch, start) in &starts[hidden..] {
        let _ = writeln!(text, "epoch {epoch} starts at {start}");
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
