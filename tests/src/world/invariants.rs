//! What has to hold, one file each.

mod acknowledged;

use crate::world::workload::Invariant;

pub use acknowledged::Acknowledged;

/// What has to hold in every world, whatever its clients do.
#[must_use]
pub const fn all() -> Vec<Box<dyn Invariant>> {
    Vec::new()
}
