//! Objects of the workloads' own types.

use imbl::OrdMap;
use milonga_objects::{Context, KeyBytes, Object, Touches};
use serde::{Deserialize, Serialize};

/// Lists that grow; cheap to clone, as every transaction freezes them.
#[derive(Clone, Debug, Default)]
pub(in crate::world::workloads) struct Lists(pub(in crate::world::workloads) OrdMap<u64, Vec<u64>>);

/// An update of [`Lists`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::world::workloads) enum ListsOp {
    /// Appends to the list of a key; outputs its length.
    Append(u64, u64),
}

impl Object for Lists {
    const TYPE: &'static str = "lists";
    const OP_VERSION: u16 = 1;
    type Op = ListsOp;
    type Output = usize;

    fn apply(&mut self, ListsOp::Append(key, value): ListsOp, _: &Context) -> usize {
        let list = self.0.entry(key).or_default();
        list.push(value);
        list.len()
    }

    fn touches(ListsOp::Append(key, _): &ListsOp) -> Touches {
        Touches::key(KeyBytes::of(key))
    }
}

/// A sum that can be broken.
#[derive(Clone, Debug, Default)]
pub(in crate::world::workloads) struct Fragile(pub(in crate::world::workloads) i64);

/// An update of [`Fragile`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::world::workloads) enum FragileOp {
    /// Adds; outputs the sum.
    Add(i64),
    /// Panics.
    Break,
}

impl Object for Fragile {
    const TYPE: &'static str = "fragile";
    const OP_VERSION: u16 = 1;
    type Op = FragileOp;
    type Output = i64;

    fn apply(&mut self, op: FragileOp, _: &Context) -> i64 {
        match op {
            FragileOp::Add(n) => self.0 = self.0.saturating_add(n),
            FragileOp::Break => panic!("told to"),
        }
        self.0
    }

    fn touches(_: &FragileOp) -> Touches {
        Touches::Whole
    }
}
