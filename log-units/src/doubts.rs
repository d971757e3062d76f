//! Reads that the disk refused: a bad sector, or a disk that is gone?
//!
//! A bad sector is damage: this replica has lost an entry, says so, and is given it back. A disk that is gone says nothing
//! of what it holds. Where the power fails for a whole chain all its replicas would say `Lost`, which a reader takes for the
//! end, though a restart has it all. So only a disk that works can have lost something:
//!
//! ```text
//! read fails --> a write that begins now --> read again, fails --> a write that begins now --> damage
//!                  | fails: poison             '-> there after all    | fails: poison
//!                  v                                                  v
//!               nobody knows                                       nobody knows
//! ```

use std::collections::BTreeSet;

use milonga_protocol::plants::{self, Plant};

use crate::disk::{DiskDone, DiskError, OpId};
use crate::reader::Found;
use crate::unit::{Op, Unit};

/// Reads of one entry each that failed.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// They wait for a write that was submitted after this operation.
    waiting: Vec<(u64, OpId)>,
    /// Those of them, and of the reads under way, that had failed before.
    failed_before: BTreeSet<u64>,
    /// The durable write that was submitted last.
    last_write: OpId,
}

impl Doubts {
    /// Whether a write is wanted, and none is under way that will do.
    pub(crate) fn want_write(&self) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|(_, after)| *after >= self.last_write)
    }

    pub(crate) fn submitted(&mut self, what: &Op, op: OpId) {
        if is_durable_write(what) {
            self.last_write = op;
        }
    }

    /// What came of a read is known.
    pub(crate) fn over(&mut self, read: u64) {
        self.failed_before.remove(&read);
    }
}

impl Unit {
    /// The disk refused the read of one entry.
    pub(crate) fn doubt(&mut self, read: u64) {
        if plants::active(Plant::ReadErrorIsLost) {
            self.chunk_found(read, &Found::Nothing);
        } else if let Some(why) = self.poison.clone() {
            self.chunk_found(read, &Found::Withheld(why));
        } else {
            self.doubts.waiting.push((read, self.last_op()));
        }
    }

    /// An operation ended: if it was a durable write, whoever waited for it knows more.
    pub(crate) fn ended(&mut self, what: &Op, op: OpId, result: &Result<DiskDone, DiskError>) {
        if !is_durable_write(what) {
            return;
        }
        let full = match result {
            Ok(_) => None,
            Err(full @ DiskError::Full) => Some(full.to_string()),
            // The unit is being poisoned.
            Err(_) => return,
        };
        let waiting = std::mem::take(&mut self.doubts.waiting);
        let (known, still): (Vec<_>, _) = waiting.into_iter().partition(|(_, after)| *after < op);
        self.doubts.waiting = still;
        for (read, _) in known {
            if let Some(why) = &full {
                // Some say so without having asked the disk.
                self.chunk_found(read, &Found::Withheld(why.clone()));
            } else if self.doubts.failed_before.insert(read) {
                self.reader.again(read);
            } else {
                self.chunk_found(read, &Found::Nothing);
            }
        }
        self.submit_reads();
    }

    /// The disk failed: nothing is known of what could not be read.
    pub(crate) fn doubts_stay(&mut self, why: &str) {
        for (read, _) in std::mem::take(&mut self.doubts.waiting) {
            self.chunk_found(read, &Found::Withheld(why.to_owned()));
        }
    }
}

/// Whether the operation is a write whose success says that the disk works.
const fn is_durable_write(what: &Op) -> bool {
    matches!(
        what,
        Op::Batch | Op::Footer | Op::State(_) | Op::Superblock(_)
    )
}
