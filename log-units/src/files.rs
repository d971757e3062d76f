//! Segment files and free space.
//!
//! One file is prepared ahead (zero-filled and with its header, both durable) before it is needed: once the active
//! one is a quarter full, so that opening and closing a small log does not write a whole file. What is prepared
//! is part of the reserve of rule 29: as long as the free space is below the soft reserve, or a file could not be
//! made for want of space, a head admits no ordinary data; junk, flagged entries, values on their way down a chain
//! and repairs go on in the active and the prepared segment, until those are full too.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::Time;

use crate::disk::{DiskDone, DiskError, DiskOp};
use crate::format::{SegmentHeader, segment_name};
use crate::rebuild::Prepared;
use crate::unit::{Op, Unit};

/// How often a full disk is looked at again.
const RECHECK: Duration = Duration::from_millis(250);
/// How old the last look at the free space may be while writes are admitted.
const SPACE_AGE: Duration = Duration::from_secs(1);

/// Files that are ready, and what is known of the disk.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) prepared: VecDeque<Prepared>,
    preparing: Option<Prepared>,
    next_number: u64,
    /// The last attempt to make a file, or a write, found no space.
    pub(crate) out_of_space: bool,
    /// Bytes that were free when last asked.
    pub(crate) free: Option<u64>,
    asking: bool,
    asked_at: Time,
    /// When to look at a full disk again.
    pub(crate) recheck_at: Option<Time>,
}

impl Files {
    pub(crate) fn new(prepared: Vec<Prepared>, next_number: u64) -> Self {
        Self {
            prepared: prepared.into(),
            next_number,
            ..Self::default()
        }
    }
}

impl Unit {
    /// Whether ordinary data is refused at a head.
    pub(crate) fn is_full(&self) -> bool {
        let below = |free| free < self.config.soft_reserve_bytes;
        self.files.out_of_space || self.files.free.is_some_and(below)
    }

    /// Makes the next segment file ahead of time, if it is time.
    pub(crate) fn prepare_segment(&mut self) {
        let writer = &self.writer;
        let soon = self.index.active.is_none() || writer.end >= writer.size / 4;
        // After a failure it is tried again until it succeeds: only that lifts the refusal of ordinary data.
        if soon || self.files.out_of_space {
            self.make_segment();
        }
    }

    /// Makes the next segment file if none is ready.
    pub(crate) fn make_segment(&mut self) {
        let files = &self.files;
        let waits = files.out_of_space && files.recheck_at.is_some();
        if self.superblock.cluster == milonga_protocol::ClusterId::default()
            || self.poison.is_some()
            || !files.prepared.is_empty()
            || files.preparing.is_some()
            || waits
        {
            return;
        }
        let number = files.next_number;
        let next = Prepared {
            number,
            generation: mix(self.seed ^ mix(number)),
            size: self.config.segment_size(),
        };
        self.files.preparing = Some(next);
        let op = DiskOp::Create {
            name: segment_name(number),
            size: next.size,
        };
        self.submit(Op::CreateSegment, op);
    }

    pub(crate) fn segment_created(&mut self, result: Result<DiskDone, DiskError>) {
        let Some(next) = self.files.preparing else {
            return;
        };
        if let Err(error) = result {
            self.files.preparing = None;
            return self.prepare_failed(&error);
        }
        let header = SegmentHeader {
            number: next.number,
            generation: next.generation,
            size: next.size,
            epoch: self.state.durable.epoch,
            trim: self.trimmed(),
            mark: self.mark,
        };
        let op = DiskOp::WriteAt {
            name: segment_name(next.number),
            offset: 0,
            data: vec![Bytes::from(header.encode(self.owner()))],
            sync: true,
        };
        self.submit(Op::SegmentHeader, op);
    }

    pub(crate) fn segment_ready(&mut self, result: Result<DiskDone, DiskError>) {
        let Some(next) = self.files.preparing.take() else {
            return;
        };
        if let Err(error) = result {
            return self.prepare_failed(&error);
        }
        self.files.prepared.push_back(next);
        self.files.next_number = next.number + 1;
        self.files.out_of_space = false;
        self.ask_space();
    }

    fn prepare_failed(&mut self, error: &DiskError) {
        match error {
            DiskError::Full => self.disk_is_full(),
            error => self.poison(&format!("preparing a segment: {error}")),
        }
    }

    /// The disk said that it is full.
    pub(crate) fn disk_is_full(&mut self) {
        self.files.out_of_space = true;
        self.files.recheck_at = Some(self.now.after(RECHECK));
    }

    pub(crate) fn ask_space(&mut self) {
        if !self.files.asking {
            self.files.asking = true;
            self.files.asked_at = self.now;
            self.submit(Op::Space, DiskOp::Space);
        }
    }

    /// Called when writes are admitted: the free space should not be older than a second then.
    pub(crate) fn note_writes(&mut self) {
        if self.now.since(self.files.asked_at) >= SPACE_AGE {
            self.ask_space();
        }
    }

    pub(crate) fn space_done(&mut self, result: Result<DiskDone, DiskError>) {
        self.files.asking = false;
        match result {
            Ok(DiskDone::Space(free)) => self.files.free = Some(free),
            // Not knowing is no reason to refuse: creating a segment says it, too.
            _ => self.files.free = None,
        }
        if self.is_full() && self.files.recheck_at.is_none() {
            self.files.recheck_at = Some(self.now.after(RECHECK));
        }
    }

    /// Looks at a full disk again when its time has come.
    pub(crate) fn recheck_space(&mut self) {
        if self.files.recheck_at.is_some_and(|at| at <= self.now) {
            self.files.recheck_at = None;
            if self.is_full() {
                self.ask_space();
                // With a file ready there is nothing to make: the free space alone decides.
                if !self.files.prepared.is_empty() {
                    self.files.out_of_space = false;
                }
            }
        }
    }
}

/// A well-mixed number (splitmix64).
pub(crate) const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
