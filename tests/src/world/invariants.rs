//! What has to hold, one file each.
//!
//! Some look at what servers answer, in the order in which they do ([`crate::world::Wire`]); the others at what
//! clients were told. I8, I9 and I16 speak of objects and come with their workloads.

mod acknowledged;
mod disk_errors;
mod epochs;
mod failed;
mod leased;
mod listed;
mod lost;
mod one_epoch;
mod pointers;
mod prefixes;
mod quiet;
mod reached;
mod real_time;
mod replicas;
mod sealed;
mod settled;
mod slow;
mod tokens;
mod told;
mod trimmed;
mod values;
mod write_once;

#[cfg(test)]
mod samples;

use crate::world::workload::Invariant;

pub use acknowledged::Acknowledged;
pub use disk_errors::DiskErrors;
pub use epochs::Epochs;
pub use failed::Failed;
pub use leased::Leased;
pub use listed::Listed;
pub use lost::Lost;
pub use one_epoch::OneEpoch;
pub use pointers::Pointers;
pub use prefixes::Prefixes;
pub use quiet::Quiet;
pub use reached::Reached;
pub use real_time::RealTime;
pub use replicas::Replicas;
pub use sealed::Sealed;
pub use settled::Settled;
pub use slow::SlowIsOut;
pub use tokens::Tokens;
pub use told::Told;
pub use trimmed::Trimmed;
pub use write_once::WriteOnce;

/// What has to hold in every world, whatever its clients do. The first that is broken is named: so they come in order
/// of their numbers, but for I7, before which others would always see the same fault.
#[must_use]
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<WriteOnce>::default(),
        Box::<Prefixes>::default(),
        Box::<Acknowledged>::default(),
        Box::<Settled>::default(),
        Box::<Sealed>::default(),
        Box::<Epochs>::default(),
        Box::<Tokens>::default(),
        Box::<RealTime>::default(),
        Box::<Trimmed>::default(),
        Box::<Lost>::default(),
        Box::<Replicas>::default(),
        Box::<OneEpoch>::default(),
        Box::<Failed>::default(),
        Box::<Pointers>::default(),
        Box::<Listed>::default(),
        Box::<Told>::default(),
        Box::<Leased>::default(),
        Box::<DiskErrors>::default(),
        Box::<Quiet>::default(),
    ]
}
