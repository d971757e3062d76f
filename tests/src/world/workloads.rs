//! What clients do.

mod appends;
mod log;

use crate::world::workload::Workload;

pub use appends::Appends;
pub use log::WholeLog;

/// All workloads; a plan chooses one.
#[must_use]
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![Box::new(Appends), Box::new(WholeLog)]
}
