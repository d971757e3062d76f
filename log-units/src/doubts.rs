//! Reads that the disk refused: a bad sector, or a disk that is gone?
//!
//! A bad sector is damage: this replica has lost an entry, says so, and is given it back. A disk that is gone says nothing
//! of what it holds. Where the power fails for a whole chain all its replicas would say `Lost`, which a reader takes for the
//! end, though a restart has it all. So a read that failed waits until a write that was begun after it is durable: only a
//! disk that works can have lost something. If the write fails, too, the unit is poisoned, and readers are to ask again.

use milonga_protocol::plants::{self, Plant};

use crate::disk::{DiskDone, DiskError, OpId};
use crate::reader::Found;
use crate::unit::{Op, Unit};

/// Reads that wait. Each holds one of the few reads that may be under way, which bounds them.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// Each with the last operation that was submitted before it failed.
    reads: Vec<(u64, OpId)>,
}

impl Doubts {
    /// Whether a write is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }
}

impl Unit {
    /// The disk refused the read of one entry.
    pub(crate) fn doubt(&mut self, chunk: u64) {
        if plants::active(Plant::ReadErrorIsLost) {
            return self.chunk_found(chunk, &Found::Nothing);
        }
        match &self.poison {
            Some(why) => {
                let found = Found::NotNow(why.clone());
                self.chunk_found(chunk, &found);
            }
            None => {
                let before = self.last_op();
                self.doubts.reads.push((chunk, before));
            }
        }
    }

    /// A write ended. A disk that says it is full works.
    pub(crate) fn write_ended(&mut self, op: OpId, result: &Result<DiskDone, DiskError>) {
        if !matches!(result, Ok(_) | Err(DiskError::Full)) {
            return;
        }
        let reads = std::mem::take(&mut self.doubts.reads);
        let (damaged, waiting) = reads.into_iter().partition(|(_, before)| *before < op);
        self.doubts.reads = waiting;
        let damaged: Vec<_> = damaged;
        for (chunk, _) in damaged {
            self.chunk_found(chunk, &Found::Nothing);
        }
    }

    /// The disk failed: nothing is known of what could not be read.
    pub(crate) fn doubts_stay(&mut self, why: &str) {
        for (chunk, _) in std::mem::take(&mut self.doubts.reads) {
            self.chunk_found(chunk, &Found::NotNow(why.to_owned()));
        }
    }
}

/// Whether the operation is a write whose success says that the disk works.
pub(crate) const fn is_synced_write(what: &Op) -> bool {
    matches!(
        what,
        Op::Batch | Op::Footer | Op::State(_) | Op::Superblock(_)
    )
}
