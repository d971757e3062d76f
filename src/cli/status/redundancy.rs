//! How redundant the log is, what is copied to make it more so, and who is left out.

use std::collections::BTreeSet;

use milonga_protocol::{Layout, Position};
use serde::Serialize;

/// What the layout says of a unit that lacks nothing but a vacancy: it is a spare.
pub(super) const SPARE: &str = "waiting for a place in a chain";

/// The replicas of all chains.
#[derive(Debug, Serialize)]
pub(super) struct Redundancy {
    /// Every chain has as many as wanted, at every position.
    pub(super) full: bool,
    /// So many are wanted.
    pub(super) replicas: usize,
    /// A chain goes on with so many.
    pub(super) min_replicas: usize,
    pub(super) chains: Vec<Chain>,
}

/// The replicas of one chain.
#[derive(Debug, Serialize)]
pub(super) struct Chain {
    /// Those that take new entries.
    pub(super) replicas: usize,
    /// The fewest that any position has.
    pub(super) least: usize,
    /// All positions that have less than wanted lie below this one; `None` if there are none, or new ones are among them.
    pub(super) below: Option<u64>,
}

impl Redundancy {
    pub(super) fn of(layout: &Layout) -> Self {
        let replicas = usize::from(layout.redundancy.replicas);
        let active = layout.segments.last().map_or(0, |s| s.chains.len());
        let chain = |chain: usize| {
            let segments = layout.segments.iter().enumerate();
            let has = segments.filter_map(|(index, s)| Some((index, s.chains.get(chain)?.len())));
            let has: Vec<_> = has.collect();
            let last_short = has.iter().rev().find(|(_, has)| *has < replicas);
            let end = last_short.map(|(index, _)| layout.end_of(*index));
            Chain {
                replicas: has.last().map_or(0, |(_, has)| *has),
                least: has.iter().map(|(_, has)| *has).min().unwrap_or_default(),
                below: end.filter(|end| *end < Position::MAX).map(|end| end.0),
            }
        };
        let chains: Vec<_> = (0..active).map(chain).collect();
        Self {
            full: chains.iter().all(|chain| chain.least >= replicas),
            replicas,
            min_replicas: usize::from(layout.redundancy.min_replicas),
            chains,
        }
    }

    /// In words: as the layout has it. Of who does not serve nothing can be said, so it is full only if `all_serve`.
    pub(super) fn text(&self, all_serve: bool) -> String {
        let (count, wanted) = (self.chains.len(), self.replicas);
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        if self.full {
            let have = format!(
                "{count} chain{} of {wanted} unit{}",
                plural(count),
                plural(wanted)
            );
            let word = match wanted {
                1 => "none: ",
                _ if all_serve => "full: ",
                _ => "",
            };
            return format!("{word}{have}");
        }
        let short = (1..).zip(&self.chains);
        let short = short.filter(|(_, chain)| chain.least < wanted);
        let short = short.map(|(number, chain)| {
            let least = chain.least;
            let below = chain.below.map(|end| format!(" below {end}"));
            let below = below.unwrap_or_default();
            format!("chain {number} has {least} of {wanted} replicas{below}")
        });
        format!("REDUCED: {}", short.collect::<Vec<_>>().join("; "))
    }
}

/// A unit that does not take part, and why.
#[derive(Debug, Serialize)]
pub(super) struct Out {
    pub(super) name: String,
    pub(super) why: String,
}

/// Who is out, from the layout's words: `NAME: why; NAME: why`.
pub(super) fn out(layout: &Layout, said: Option<&str>) -> Vec<Out> {
    let names: BTreeSet<_> = layout.units.iter().map(|unit| unit.name.as_str()).collect();
    let mut all: Vec<Out> = Vec::new();
    for words in said.unwrap_or_default().split("; ") {
        let begins = words.split_once(": ");
        match (
            begins.filter(|(name, _)| names.contains(name)),
            all.last_mut(),
        ) {
            (Some((name, why)), _) => all.push(Out {
                name: name.to_owned(),
                why: why.to_owned(),
            }),
            // A reason may have semicolons of its own.
            (None, Some(last)) => last.why = format!("{}; {words}", last.why),
            (None, None) => {}
        }
    }
    let vacant = layout.segments.last().is_some_and(|segment| {
        let wanted = usize::from(layout.redundancy.replicas);
        segment.chains.iter().any(|chain| chain.len() < wanted)
    });
    all.retain(|out| vacant || out.why != SPARE);
    all
}

/// What is copied, from the layout's words and from who is on its way into a chain.
pub(super) fn copying(layout: &Layout, said: Option<String>) -> Option<String> {
    let segments = layout.segments.iter().enumerate();
    let joining = segments.flat_map(|(index, segment)| {
        let end = layout.end_of(index);
        segment.joining.iter().map(move |j| (j.unit, end))
    });
    let joining: Vec<_> = joining.collect();
    let end = joining.iter().map(|(_, end)| *end).max()?;
    let units: BTreeSet<_> = joining.iter().map(|(unit, _)| *unit).collect();
    let names = units
        .into_iter()
        .map(|unit| layout.unit(unit).name.as_str());
    let names: Vec<_> = names.collect();
    let said = said.unwrap_or_else(|| format!("{} about to begin", names.join(", ")));
    Some(format!("what lies below {end}: {said}"))
}
