//! What operators decided about units, by command. Durable in the history, so that every later leader acts alike; the
//! configuration stays what made the first layout. Pure.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::limits::UNITS_PER_NEW_CHAIN;
use milonga_protocol::{Layout, ServerName, UnitId, UnitIndex};
use serde::{Deserialize, Serialize};

use crate::algebra;

/// Most units that are remembered as added, and as removed.
pub(crate) const MOST_UNITS: usize = 4_096;
/// Most chains that are added by command.
pub(crate) const MOST_CHAINS: usize = 64;

/// The decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Units that may take places, besides those of the configuration.
    pub(crate) added: BTreeMap<ServerName, Added>,
    /// Units that leave for good, or have left: nobody takes them in again. With a successor, they stay until that one
    /// has everything.
    pub(crate) retired: BTreeMap<ServerName, Option<ServerName>>,
    /// Chains behind those of the configuration, in the order in which they come.
    pub(crate) chains: Vec<Vec<ServerName>>,
}

/// A unit that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Added {
    /// Its directory.
    pub(crate) id: UnitId,
    /// The chain it belongs to; `None` for a spare.
    pub(crate) home: Option<u16>,
}

impl Policy {
    /// Whether it is bounded and does not contradict itself.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.added.len().max(self.retired.len()) > MOST_UNITS {
            return Err("more units were added or removed by command than are possible");
        }
        if self.chains.len() > MOST_CHAINS {
            return Err("more chains were added by command than are possible");
        }
        let mut all = self.added.keys();
        if all.any(|name| self.retired.contains_key(name)) {
            return Err("a unit was both added and removed");
        }
        let sizes = 1..=UNITS_PER_NEW_CHAIN;
        if self
            .chains
            .iter()
            .any(|chain| !sizes.contains(&chain.len()))
        {
            return Err("a chain that was added has no units, or too many");
        }
        let ids: BTreeSet<_> = self.added.values().map(|added| added.id).collect();
        if ids.len() < self.added.len() {
            return Err("two units that were added are the same");
        }
        Ok(())
    }

    /// The chain that is to come behind those of `layout`, of which the configuration made so many.
    pub(crate) fn next_chain(&self, configured: usize, layout: &Layout) -> Option<&[ServerName]> {
        let chains = algebra::active_chains(layout).len();
        let next = chains.checked_sub(configured)?;
        self.chains.get(next).map(Vec::as_slice)
    }

    /// Members that nothing keeps any more: those that were removed, and those whose successor has everything.
    pub(crate) fn leavers(&self, layout: &Layout) -> Vec<UnitIndex> {
        let mut leavers: Vec<_> = layout.members().into_iter().collect();
        leavers.retain(|old| match self.retired.get(&layout.unit(*old).name) {
            None => false,
            Some(None) => true,
            Some(Some(new)) => member(layout, new).is_some_and(|new| has_all_of(layout, *old, new)),
        });
        leavers
    }

    /// The chain of the active segment in which `name` is to take a place, because its predecessor has one there.
    pub(crate) fn succession(&self, layout: &Layout, name: &ServerName) -> Option<u16> {
        let mut retired = self.retired.iter();
        let (old, _) = retired.find(|(_, new)| new.as_ref() == Some(name))?;
        active_chain(layout, old)
    }
}

/// The member of that name.
pub(crate) fn member(layout: &Layout, name: &ServerName) -> Option<UnitIndex> {
    let index = layout.units.iter().position(|unit| unit.name == *name)?;
    let index = u16::try_from(index).map(UnitIndex).ok()?;
    layout.members().contains(&index).then_some(index)
}

/// The chain of the active segment that lists `name`.
pub(crate) fn active_chain(layout: &Layout, name: &ServerName) -> Option<u16> {
    let unit = member(layout, name)?;
    let mut chains = layout.segments.last()?.chains.iter();
    let chain = chains.position(|chain| chain.contains(&unit))?;
    u16::try_from(chain).ok()
}

/// Whether each chain that lists `old` lists `new`, too.
fn has_all_of(layout: &Layout, old: UnitIndex, new: UnitIndex) -> bool {
    let mut chains = layout.segments.iter().flat_map(|segment| &segment.chains);
    chains.all(|chain| !chain.contains(&old) || chain.contains(&new))
}
