//! I21: a unit whose disk has failed to write an entry, or to sync it, writes no more of them in that run. What such a disk
//! holds is not known, so whatever is acknowledged afterwards may stand on nothing.

use crate::world::workload::{Invariant, Violation, WorldView};

/// So many may be on their way while the unit has not heard of the failure yet, with a footer and a header.
const ON_THEIR_WAY: u32 = 3;

/// See the file's head.
#[derive(Debug, Default)]
pub struct DiskErrors;

impl Invariant for DiskErrors {
    fn name(&self) -> &'static str {
        "I21 a failed disk is written to no more"
    }

    fn source(&self) -> &'static str {
        "rule 11; F26"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        let mut disks = view.cluster.disks();
        let goes_on = disks.find(|(_, disk)| disk.writes_after_failure() > ON_THEIR_WAY);
        goes_on.map_or(Ok(()), |(name, disk)| {
            let writes = disk.writes_after_failure();
            Err(Violation(format!(
                "{name} has begun {writes} writes of entries after one had failed"
            )))
        })
    }
}
