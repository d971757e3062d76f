//! What clients do.

mod appends;

use crate::world::workload::Workload;

pub use appends::Appends;

/// All workloads; a plan chooses one.
#[must_use]
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![Box::new(Appends)]
}
