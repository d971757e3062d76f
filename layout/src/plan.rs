//! What the configuration says of the cluster.

use std::collections::BTreeSet;

use milonga_protocol::messages::Lease;
use milonga_protocol::{Layout, Limits, ServerName, UnitIndex};

/// The cluster as configured: makes the first layout, and is compared with each later one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterPlan {
    /// The chains, each from head to tail.
    pub units: Vec<Vec<ServerName>>,
    /// The process that is the sequencer when the cluster is made.
    pub sequencer: ServerName,
    /// Processes that may become the sequencer when the present one falls silent, in order of preference.
    pub spare_sequencers: Vec<ServerName>,
    /// Limits for the first layout; later they come from the layout.
    pub limits: Limits,
    /// What stands for a lease. With [`Lease::DirectoryLock`] all servers are one process, so that nothing else can
    /// start together with them.
    pub lease: Lease,
}

/// Why a plan cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No chain, or one without units.
    #[error("the configuration names no log units, or a chain without any")]
    NoUnits,
    /// One name, two places.
    #[error("the configuration names {name} twice as a log unit; each unit belongs to one chain")]
    Twice {
        /// The name.
        name: ServerName,
    },
    /// One process, twice a sequencer.
    #[error("the configuration names {name} twice as a sequencer; name each process once")]
    SequencerTwice {
        /// The name.
        name: ServerName,
    },
    /// More units than a layout can name.
    #[error(
        "the configuration names {units} log units; at most {} are possible",
        u16::MAX
    )]
    TooMany {
        /// How many.
        units: usize,
    },
    /// The layout names other units.
    #[error(
        "the configuration names the units {configured}, but this cluster was made with {recorded}; changing the units of a cluster is not supported yet, so restore the configuration"
    )]
    OtherUnits {
        /// In the configuration.
        configured: String,
        /// In the layout.
        recorded: String,
    },
}

impl ClusterPlan {
    /// A plan.
    #[must_use]
    pub const fn new(
        units: Vec<Vec<ServerName>>,
        sequencer: ServerName,
        limits: Limits,
        lease: Lease,
    ) -> Self {
        Self {
            units,
            sequencer,
            spare_sequencers: Vec::new(),
            limits,
            lease,
        }
    }

    /// The plan with these spare sequencers.
    #[must_use]
    pub fn with_spare_sequencers(mut self, names: Vec<ServerName>) -> Self {
        self.spare_sequencers = names;
        self
    }

    /// All processes that may be the sequencer, the most preferred first.
    pub fn sequencers(&self) -> impl Iterator<Item = &ServerName> {
        std::iter::once(&self.sequencer).chain(&self.spare_sequencers)
    }

    /// Names of all units, chain by chain, head first: the order of the first layout's units.
    pub fn unit_names(&self) -> impl Iterator<Item = &ServerName> {
        self.units.iter().flatten()
    }

    /// The chains as indexes into [`Self::unit_names`].
    pub(crate) fn chains(&self) -> Vec<Vec<UnitIndex>> {
        let mut indexes = (0..=u16::MAX).map(UnitIndex);
        let chain = |chain: &Vec<ServerName>| indexes.by_ref().take(chain.len()).collect();
        self.units.iter().map(chain).collect()
    }

    /// Whether the plan can be used at all, and with the `current` layout.
    pub(crate) fn check(&self, current: Option<&Layout>) -> Result<(), PlanError> {
        if self.units.is_empty() || self.units.iter().any(Vec::is_empty) {
            return Err(PlanError::NoUnits);
        }
        let units = self.unit_names().count();
        if units > usize::from(u16::MAX) {
            return Err(PlanError::TooMany { units });
        }
        let mut seen = BTreeSet::new();
        if let Some(name) = self.unit_names().find(|name| !seen.insert(*name)) {
            let name = name.clone();
            return Err(PlanError::Twice { name });
        }
        let mut seen = BTreeSet::new();
        if let Some(name) = self.sequencers().find(|name| !seen.insert(*name)) {
            let name = name.clone();
            return Err(PlanError::SequencerTwice { name });
        }
        let Some(layout) = current else {
            return Ok(());
        };
        let recorded = chains_of(layout);
        if recorded != self.units {
            return Err(PlanError::OtherUnits {
                configured: show(&self.units),
                recorded: show(&recorded),
            });
        }
        Ok(())
    }
}

/// The chains of the active segment, by name.
fn chains_of(layout: &Layout) -> Vec<Vec<ServerName>> {
    let last = layout.segments.last();
    let chains = last.map_or(&[][..], |segment| &segment.chains);
    let name = |unit: &UnitIndex| layout.unit(*unit).name.clone();
    chains
        .iter()
        .map(|chain| chain.iter().map(name).collect())
        .collect()
}

fn show(chains: &[Vec<ServerName>]) -> String {
    let show_chain = |chain: &Vec<ServerName>| {
        let names: Vec<_> = chain.iter().map(ServerName::as_str).collect();
        format!("[{}]", names.join(" "))
    };
    let chains: Vec<_> = chains.iter().map(show_chain).collect();
    chains.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::samples;

    fn plan(units: &[&[&str]]) -> ClusterPlan {
        let chain = |chain: &&[&str]| chain.iter().map(ServerName::new).collect();
        let units = units.iter().map(chain).collect();
        ClusterPlan::new(units, "sequencer-1".into(), Limits::default(), Lease::None)
    }

    #[test]
    fn a_plan_is_compared_with_the_layout() {
        let layout = samples::layout(1, 0, &History::default());
        let good = plan(&[&["unit-1a", "unit-1b"], &["unit-2a", "unit-2b"]]);
        assert_eq!(good.check(None), Ok(()));
        assert_eq!(good.check(Some(&layout)), Ok(()));
        assert_eq!(good.chains(), layout.segments[0].chains);
        let other = plan(&[&["unit-1a", "unit-1b", "unit-2a", "unit-2b"]]);
        let error = other.check(Some(&layout)).unwrap_err().to_string();
        assert!(error.contains("made with [unit-1a unit-1b] [unit-2a unit-2b]"));
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert_eq!(plan(&[]).check(None), Err(PlanError::NoUnits));
        assert_eq!(plan(&[&["a"], &[]]).check(None), Err(PlanError::NoUnits));
        let doubled = plan(&[&["a"]]).with_spare_sequencers(vec!["sequencer-1".into()]);
        let error = doubled.check(None).unwrap_err().to_string();
        assert!(
            error.contains("names sequencer-1 twice as a sequencer"),
            "{error}"
        );
        let name = "a".into();
        let twice = plan(&[&["a"], &["b", "a"]]);
        assert_eq!(twice.check(None), Err(PlanError::Twice { name }));
    }
}
