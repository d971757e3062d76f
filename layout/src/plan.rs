//! What the configuration says of the cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use milonga_protocol::limits::{DEFAULT_LEASE_MS, LONGEST_LEASE_MS};
use milonga_protocol::messages::Lease;
use milonga_protocol::{Layout, Limits, ServerName, UnitIndex};

use crate::algebra;
use crate::policy::Policy;

/// The default of [`ClusterPlan::spare_after`].
pub const SPARE_AFTER: Duration = Duration::from_secs(10);

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
    /// Units that may take the place of one that is gone, in order of preference.
    pub spare_units: Vec<ServerName>,
    /// A spare takes a place only after so long: whose place it is may just be starting, and needs less copying.
    pub spare_after: Duration,
    /// For the first layout: a chain gives up no replica if fewer than these were left; at least 1.
    pub min_replicas: u16,
    /// Most bytes that are copied to joining units in a second; `None`: as many as possible.
    pub copy_bytes_per_second: Option<u64>,
    /// Limits for the first layout; later they come from the layout.
    pub limits: Limits,
    /// What stands for a lease. With [`Lease::DirectoryLock`] all servers are one process, so that nothing else can
    /// start together with them.
    pub lease: Lease,
    /// How long a lease lasts that is renewed, in milliseconds; not longer than [`LONGEST_LEASE_MS`].
    pub lease_ms: u32,
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
    /// Nobody could ever be given up.
    #[error(
        "min_replicas = {min} is more than the shortest chain has; lower it, or name more units"
    )]
    MinReplicas {
        /// What was asked for.
        min: u16,
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
        "the configuration names the units {configured}, but this cluster was made with other chains (now {recorded}); name new units under spare_units, and leave the chains as they were"
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
            spare_units: Vec::new(),
            spare_after: SPARE_AFTER,
            min_replicas: 1,
            copy_bytes_per_second: None,
            limits,
            lease,
            lease_ms: DEFAULT_LEASE_MS,
        }
    }

    /// The plan with leases of so many milliseconds (rule 20); 0: with none.
    #[must_use]
    pub fn with_lease_ms(mut self, lease_ms: u32) -> Self {
        self.lease = match lease_ms {
            0 => Lease::None,
            _ => Lease::Renewed,
        };
        self.lease_ms = lease_ms.min(LONGEST_LEASE_MS);
        self
    }

    /// The plan with these spare sequencers.
    #[must_use]
    pub fn with_spare_sequencers(mut self, names: Vec<ServerName>) -> Self {
        self.spare_sequencers = names;
        self
    }

    /// The plan with these spare units, which take a place that was vacant for so long.
    #[must_use]
    pub fn with_spare_units(mut self, names: Vec<ServerName>, after: Duration) -> Self {
        (self.spare_units, self.spare_after) = (names, after);
        self
    }

    /// The plan with another policy for chains that lose replicas.
    #[must_use]
    pub const fn with_min_replicas(mut self, min_replicas: u16) -> Self {
        self.min_replicas = min_replicas;
        self
    }

    /// The plan with a limit on copying.
    #[must_use]
    pub const fn with_copy_limit(mut self, bytes_per_second: Option<u64>) -> Self {
        self.copy_bytes_per_second = bytes_per_second;
        self
    }

    /// Replicas that each chain is to have.
    pub(crate) fn replicas(&self) -> u16 {
        let longest = self.units.iter().map(Vec::len).max().unwrap_or(1);
        u16::try_from(longest).unwrap_or(u16::MAX)
    }

    /// The chain that the configuration gives `name`; `None` for a spare.
    pub(crate) fn home(&self, name: &ServerName) -> Option<u16> {
        let chain = self.units.iter().position(|chain| chain.contains(name))?;
        u16::try_from(chain).ok()
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

    /// Whether the plan can be used at all, and with the `current` layout and what operators decided since.
    pub(crate) fn check(&self, current: Option<&Layout>, policy: &Policy) -> Result<(), PlanError> {
        if self.units.is_empty() || self.units.iter().any(Vec::is_empty) {
            return Err(PlanError::NoUnits);
        }
        let units = self.unit_names().count();
        if units > usize::from(u16::MAX) {
            return Err(PlanError::TooMany { units });
        }
        if usize::from(self.min_replicas) > self.units.iter().map(Vec::len).min().unwrap_or(0) {
            let min = self.min_replicas;
            return Err(PlanError::MinReplicas { min });
        }
        let mut seen = BTreeSet::new();
        let mut names = self.unit_names().chain(&self.spare_units);
        if let Some(name) = names.find(|name| !seen.insert(*name)) {
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
        if !self.fits(layout, policy) {
            return Err(PlanError::OtherUnits {
                configured: show(&self.units),
                recorded: show(&chains_of(layout)),
            });
        }
        Ok(())
    }
}

impl ClusterPlan {
    /// Whether the layout's chains can have come from these: the first layout named the units of the plan in order, and
    /// none of them loses its number. Later any of them, any spare, and whoever was added by command may have taken a place
    /// in any chain, and chains may have been added.
    fn fits(&self, layout: &Layout, policy: &Policy) -> bool {
        let chains = chains_of(layout);
        let mut names = layout.units.iter().map(|unit| &unit.name);
        let made_of_these = self.unit_names().all(|name| names.next() == Some(name));
        let known = |name| {
            let configured = self.home(name).is_some() || self.spare_units.contains(name);
            configured || policy.added.contains_key(name) || policy.retired.contains_key(name)
        };
        let least = self.units.len();
        let counts = least..=least + policy.chains.len();
        made_of_these && counts.contains(&chains.len()) && chains.iter().flatten().all(known)
    }
}

/// The chains of what is appended now, by name.
pub(crate) fn chains_of(layout: &Layout) -> Vec<Vec<ServerName>> {
    let chains = algebra::active_chains(layout);
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
        assert_eq!(good.check(None, &Policy::default()), Ok(()));
        assert_eq!(good.check(Some(&layout), &Policy::default()), Ok(()));
        assert_eq!(good.chains(), layout.segments[0].chains);
        for other in [
            plan(&[&["unit-1a", "unit-1b", "unit-2a", "unit-2b"]]),
            plan(&[&["unit-1a", "unit-2a"], &["unit-1b", "unit-2b"]]),
            plan(&[&["unit-1a", "unit-1b"], &["unit-2a"]]),
            plan(&[&["unit-1a", "unit-1b"], &["unit-2a", "unit-2b", "unit-2c"]]),
        ] {
            let error = other
                .check(Some(&layout), &Policy::default())
                .unwrap_err()
                .to_string();
            let recorded = "now [unit-1a unit-1b] [unit-2a unit-2b]";
            assert!(error.contains(recorded), "{error}");
        }
        // A chain that lost a unit, and one that won a spare.
        let mut other = layout;
        other.segments[0].chains[0].pop();
        assert_eq!(good.check(Some(&other), &Policy::default()), Ok(()));
        let unit = milonga_protocol::UnitRef {
            name: "unit-3".into(),
            id: milonga_protocol::UnitId(9),
        };
        other.units.push(unit);
        other.segments[0].chains[0].push(UnitIndex(4));
        assert!(
            good.check(Some(&other), &Policy::default()).is_err(),
            "nobody named it"
        );
        let named = Policy {
            added: samples::added("unit-3", 9, None),
            ..Policy::default()
        };
        assert_eq!(good.check(Some(&other), &named), Ok(()));
        let good = good.with_spare_units(vec!["unit-3".into()], SPARE_AFTER);
        assert_eq!(good.check(Some(&other), &Policy::default()), Ok(()));
        // A unit that took a place in another chain than its own.
        other.segments[0].chains[1].pop();
        other.segments[0].chains[1].push(UnitIndex(1));
        assert_eq!(good.check(Some(&other), &Policy::default()), Ok(()));
        // One more chain, if an operator wanted it.
        let unit = other.segments[0].chains[0].pop();
        other.segments[0].chains.push(unit.into_iter().collect());
        assert!(good.check(Some(&other), &Policy::default()).is_err());
        let grown = Policy {
            chains: vec![vec!["unit-3".into()]],
            ..Policy::default()
        };
        assert_eq!(good.check(Some(&other), &grown), Ok(()));
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert_eq!(
            plan(&[]).check(None, &Policy::default()),
            Err(PlanError::NoUnits)
        );
        assert_eq!(
            plan(&[&["a"], &[]]).check(None, &Policy::default()),
            Err(PlanError::NoUnits)
        );
        let doubled = plan(&[&["a"]]).with_spare_sequencers(vec!["sequencer-1".into()]);
        let error = doubled
            .check(None, &Policy::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("names sequencer-1 twice as a sequencer"),
            "{error}"
        );
        let name = "a".into();
        let twice = plan(&[&["a"], &["b", "a"]]);
        assert_eq!(
            twice.check(None, &Policy::default()),
            Err(PlanError::Twice { name })
        );
    }
}
