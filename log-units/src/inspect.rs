//! Looking at a directory without changing it: what it is, what it holds, what is damaged. Pure, as recovery is:
//! results in, next operation out; it asks for a listing and for reads, nothing else.
//!
//! ```text
//! List ── Superblock ── State ── for each segment, the newest first: pieces ── scan ── Chain ── report
//! ```
//!
//! The newest first, because a batch voids what lies before it and names the one before it: so whatever a segment
//! holds is judged when it is read, and one segment at a time is in memory. Every structure is decoded by the code
//! that recovery uses, and every byte of every file is looked at: what no checksum covers must be zero. Recovery
//! trusts a footer; here it is compared with the records.

mod chain;
mod report;
mod segment;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use milonga_protocol::{ClusterId, UnitId};

use crate::config::OpenError;
use crate::disk::{DiskDone, DiskError, DiskOp, FileName};
use crate::format::{
    BlockError, FORMAT_VERSION, LOCK, Owner, Reader, STATE, STATE_BYTES, STATE_SLOT, SUPERBLOCK,
    SUPERBLOCK_BYTES, SUPERBLOCK_NEW, SegmentHeader, State, Superblock, block_bytes,
    newest_version, segment_number, size,
};
use chain::Chain;
use segment::Segment;

pub use report::{Affected, Damage, Remark, SegmentReport, SegmentState, StateReport, UnitReport};

/// Bytes of one read.
const PIECE: u64 = 8 << 20;
/// No segment file has more.
const MOST_BYTES: u64 = 4 << 30;

/// Reads a unit's directory and reports. Memory: one segment's file and index, and a few words for each segment.
#[derive(Debug)]
pub struct Inspection {
    stage: Stage,
    files: BTreeMap<FileName, u64>,
    superblock: Option<Superblock>,
    state_file: Bytes,
    /// Segments that are not read yet, ascending.
    todo: Vec<u64>,
    chain: Chain,
    done: u64,
    all: u64,
}

/// What an [`Inspection`] wants next.
#[derive(Debug)]
pub enum InspectionStep {
    /// The result of this operation: a listing or a read.
    Do(DiskOp),
    /// Nothing more.
    Ready(Box<UnitReport>),
    /// The directory cannot be looked at: another format version, or the disk gives nothing.
    Failed(OpenError),
}

#[derive(Debug)]
enum Stage {
    List,
    Superblock,
    State,
    Segment(Pieces),
    Over,
}

/// A file that is being read.
#[derive(Debug)]
struct Pieces {
    number: u64,
    name: FileName,
    bytes: BytesMut,
    len: u64,
}

impl Inspection {
    /// Begins; the first operation is a listing.
    #[must_use]
    pub fn start() -> (Self, DiskOp) {
        let inspection = Self {
            stage: Stage::List,
            files: BTreeMap::new(),
            superblock: None,
            state_file: Bytes::new(),
            todo: Vec::new(),
            chain: Chain::default(),
            done: 0,
            all: 0,
        };
        (inspection, DiskOp::List)
    }

    /// Bytes that were read, and bytes to read in all (0 until the listing is there).
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        (self.done, self.all)
    }

    /// Takes the result of the operation that was asked for last.
    pub fn done(&mut self, result: Result<DiskDone, DiskError>) -> InspectionStep {
        match self.step(result) {
            Ok(step) => step,
            Err(error) => InspectionStep::Failed(error),
        }
    }

    fn step(&mut self, result: Result<DiskDone, DiskError>) -> Result<InspectionStep, OpenError> {
        let failed = |why: String| OpenError::Disk {
            what: "reading the directory".to_owned(),
            why,
        };
        let result = match (std::mem::replace(&mut self.stage, Stage::Over), result) {
            // What was not read is not damaged.
            (_, Err(DiskError::Busy(why))) => return Err(failed(why)),
            (Stage::List, Ok(DiskDone::Files(files))) => return Ok(self.listed(files)),
            (Stage::List | Stage::Over, result) => return Err(failed(format!("{result:?}"))),
            (stage, Ok(DiskDone::Read(bytes))) => (stage, Ok(bytes)),
            (stage, Ok(other)) => (stage, Err(format!("the disk answered {other:?}"))),
            (stage, Err(error)) => (stage, Err(error.to_string())),
        };
        match result {
            (Stage::Superblock, result) => {
                let bytes = self.small(SUPERBLOCK, result);
                self.superblock(&bytes)
            }
            (Stage::State, result) => {
                let bytes = self.small(STATE, result);
                self.state(bytes)
            }
            (Stage::Segment(pieces), result) => self.piece(pieces, result),
            (Stage::List | Stage::Over, _) => Err(failed("it has ended".to_owned())),
        }
    }

    /// Bytes of a small file; what cannot be read is damage, and then there are none.
    fn small(&mut self, name: &str, result: Result<Bytes, String>) -> Bytes {
        self.done += result.as_ref().map_or(0, |bytes| bytes.len() as u64);
        result.unwrap_or_else(|why| {
            self.chain.damage(name, 0, format!("readable bytes: {why}"));
            Bytes::new()
        })
    }

    fn listed(&mut self, files: Vec<(FileName, u64)>) -> InspectionStep {
        self.files = files.into_iter().collect();
        for (name, len) in &self.files {
            match name.as_str() {
                SUPERBLOCK | STATE => {
                    self.all += *len;
                    let whole = if name == STATE {
                        STATE_BYTES
                    } else {
                        SUPERBLOCK_BYTES
                    };
                    if *len > whole {
                        let expected = format!("nothing behind {whole} bytes");
                        self.chain.damage(name, whole, expected);
                    }
                }
                SUPERBLOCK_NEW => {
                    let text = "left over from an interrupted change of the superblock";
                    self.chain.remark(name, 0, text.to_owned());
                }
                name if name.eq_ignore_ascii_case(LOCK) => {}
                _ if segment_number(name).is_some() => self.all += *len,
                _ => {
                    let expected = "no such file: it is none of a log unit's, which will not start";
                    self.chain.damage(name, 0, expected.to_owned());
                }
            }
        }
        self.todo = self
            .files
            .keys()
            .filter_map(|f| segment_number(f))
            .collect();
        if !self.files.contains_key(SUPERBLOCK) {
            return self.without_superblock();
        }
        self.stage = Stage::Superblock;
        read(SUPERBLOCK, 0, self.len(SUPERBLOCK).min(SUPERBLOCK_BYTES))
    }

    fn without_superblock(&mut self) -> InspectionStep {
        if self.todo.is_empty() && !self.files.contains_key(STATE) {
            let text = "the making of this directory was interrupted: nothing is in it yet";
            self.chain.remark(SUPERBLOCK, 0, text.to_owned());
            return self.finish();
        }
        let expected = "this file: without it the unit does not start";
        self.chain.damage(SUPERBLOCK, 0, expected.to_owned());
        self.ask_state()
    }

    fn len(&self, name: &str) -> u64 {
        self.files.get(name).copied().unwrap_or(0)
    }

    fn superblock(&mut self, bytes: &Bytes) -> Result<InspectionStep, OpenError> {
        match Superblock::decode(bytes) {
            Ok(superblock) => {
                let same = superblock.encode();
                self.chain.zeros(SUPERBLOCK, bytes, &same);
                self.superblock = Some(superblock);
            }
            Err(BlockError::Version(found)) => return Err(newer(SUPERBLOCK, found)),
            Err(_) => {
                let expected =
                    "a block with the right checksum: without it the unit does not start";
                self.chain.damage(SUPERBLOCK, 0, expected.to_owned());
            }
        }
        Ok(self.ask_state())
    }

    fn ask_state(&mut self) -> InspectionStep {
        if self.files.contains_key(STATE) {
            self.stage = Stage::State;
            return read(STATE, 0, self.len(STATE).min(STATE_BYTES));
        }
        self.no_state()
    }

    fn no_state(&mut self) -> InspectionStep {
        if self.todo.is_empty() {
            let text = "not there yet: the making of this directory was interrupted";
            self.chain.remark(STATE, 0, text.to_owned());
        } else {
            let expected = "this file: without it the unit does not start";
            self.chain.damage(STATE, 0, expected.to_owned());
        }
        self.begin_segments()
    }

    fn state(&mut self, bytes: Bytes) -> Result<InspectionStep, OpenError> {
        self.state_file = bytes;
        let bytes = self.state_file.clone();
        let Some(owner) = self.owner() else {
            return Ok(self.begin_segments());
        };
        if (bytes.len() as u64) < STATE_BYTES && self.todo.is_empty() {
            return Ok(self.no_state());
        }
        let slots = [0, STATE_SLOT].map(|at| {
            let end = size(at + STATE_SLOT).min(bytes.len());
            bytes.slice(size(at).min(end)..end)
        });
        let states = slots.clone().map(|slot| State::decode(owner, &slot));
        let newest = states.iter().flatten().max_by_key(|s| s.sequence).cloned();
        // As recovery: what was never written says nothing, and neither does a unit without a cluster.
        let blank = bytes.iter().all(|byte| *byte == 0);
        let first = State {
            first_segment: 1,
            ..State::default()
        };
        let young = newest.is_none() && (blank || owner.cluster == ClusterId::default());
        let newest = if young { Some(first) } else { newest };
        for (at, slot, state) in [
            (0, &slots[0], &states[0]),
            (STATE_SLOT, &slots[1], &states[1]),
        ] {
            match state {
                Ok(state) => {
                    let block = slot.get(..block_bytes(slot)).unwrap_or(slot);
                    self.chain.zeros_at(STATE, at, slot, block);
                    if Some(state) != newest.as_ref() {
                        let text = "this copy is one behind: its last change was interrupted";
                        self.chain.remark(STATE, at, text.to_owned());
                    }
                }
                Err(BlockError::Version(found)) => return Err(newer(STATE, *found)),
                Err(_) => self.damaged_slot(at, slot, newest.as_ref()),
            }
        }
        self.chain.state = newest;
        Ok(self.begin_segments())
    }

    fn damaged_slot(&mut self, at: u64, slot: &Bytes, newest: Option<&State>) {
        let blank = slot.len() as u64 == STATE_SLOT && slot.iter().all(|byte| *byte == 0);
        if blank && newest.is_some_and(|newest| newest.sequence <= 1) {
            let text = "this copy is not written yet";
            return self.chain.remark(STATE, at, text.to_owned());
        }
        let expected = match newest {
            Some(newest) if newest.sequence > 0 => {
                "a copy of the state with the right checksum; the other copy is whole"
            }
            _ => "a copy of the state with the right checksum; without any the unit does not start",
        };
        self.chain.damage(STATE, at, expected.to_owned());
    }

    /// Whose bytes these are. If the superblock does not say it, the first block does that verifies under the ids that
    /// stand in it.
    fn owner(&self) -> Option<Owner> {
        if let Some(superblock) = &self.superblock {
            return Some(Owner {
                cluster: superblock.cluster,
                unit: superblock.unit,
            });
        }
        [0, STATE_SLOT].into_iter().find_map(|at| {
            let slot = self.state_file.get(size(at)..)?;
            claimed_owner(slot).filter(|owner| State::decode(*owner, slot).is_ok())
        })
    }

    fn begin_segments(&mut self) -> InspectionStep {
        self.chain.owner = self.owner();
        let newest = self.todo.last().copied();
        self.chain.begin(newest);
        self.next_segment()
    }

    fn next_segment(&mut self) -> InspectionStep {
        let Some(number) = self.todo.pop() else {
            return self.finish();
        };
        let name = crate::format::segment_name(number);
        let len = self.len(&name).min(MOST_BYTES);
        self.done += self.len(&name) - len;
        let pieces = Pieces {
            number,
            bytes: BytesMut::with_capacity(size(len)),
            name,
            len,
        };
        self.next_piece(pieces)
    }

    fn next_piece(&mut self, pieces: Pieces) -> InspectionStep {
        let at = pieces.bytes.len() as u64;
        let step = read(&pieces.name, at, PIECE.min(pieces.len - at));
        self.stage = Stage::Segment(pieces);
        step
    }

    fn piece(
        &mut self,
        mut pieces: Pieces,
        result: Result<Bytes, String>,
    ) -> Result<InspectionStep, OpenError> {
        let at = pieces.bytes.len() as u64;
        let asked = PIECE.min(pieces.len - at);
        let got = match result {
            Ok(bytes) => {
                pieces.bytes.extend_from_slice(&bytes);
                bytes.len() as u64
            }
            Err(why) => {
                let expected = format!("{asked} readable bytes: {why}");
                self.chain.unread(&pieces.name, at, expected);
                pieces.bytes.resize(size(at + asked), 0);
                asked
            }
        };
        self.done += asked;
        if pieces.bytes.len() as u64 >= pieces.len || got < asked {
            self.segment(pieces)?;
            return Ok(self.next_segment());
        }
        Ok(self.next_piece(pieces))
    }

    fn segment(&mut self, pieces: Pieces) -> Result<(), OpenError> {
        let file = pieces.bytes.freeze();
        if self.chain.owner.is_none() {
            let owner = claimed_owner(&file);
            self.chain.owner = owner.filter(|o| SegmentHeader::decode(*o, &file).is_ok());
        }
        let Some(owner) = self.chain.owner else {
            let expected = "a superblock or a state that says whose bytes these are";
            self.chain.damage(&pieces.name, 0, expected.to_owned());
            return Ok(());
        };
        let segment = Segment::read(owner, pieces.number, file)
            .map_err(|version| newer(&pieces.name, version))?;
        self.chain.add(&segment);
        Ok(())
    }

    fn finish(&mut self) -> InspectionStep {
        self.stage = Stage::Over;
        let owner = self.chain.owner;
        let mut report = std::mem::take(&mut self.chain).finish();
        report.unit = owner.map(|owner| owner.unit);
        report.cluster = owner.map(|owner| owner.cluster);
        report.cluster = report.cluster.filter(|c| *c != ClusterId::default());
        report.name = self.superblock.take().map(|superblock| superblock.name);
        report.format = FORMAT_VERSION;
        report.bytes = self.all;
        InspectionStep::Ready(Box::new(report))
    }
}

/// The ids at the start of a block's body.
fn claimed_owner(block: &[u8]) -> Option<Owner> {
    let mut r = Reader(block.get(16..)?);
    Some(Owner {
        cluster: ClusterId(r.u128()?),
        unit: UnitId(r.u128()?),
    })
}

fn read(name: &str, offset: u64, len: u64) -> InspectionStep {
    InspectionStep::Do(DiskOp::ReadAt {
        name: name.to_owned(),
        offset,
        len,
    })
}

fn newer(file: &str, found: u8) -> OpenError {
    OpenError::NewerVersion {
        file: file.to_owned(),
        found,
        known: newest_version(file),
    }
}

/// An [`Inspection`] of files in memory: names and whole contents.
///
/// # Errors
/// [`OpenError::NewerVersion`].
#[cfg(any(test, feature = "test-util"))]
pub fn inspect(files: &[(FileName, Bytes)]) -> Result<UnitReport, OpenError> {
    let (mut inspection, mut op) = Inspection::start();
    loop {
        let result = match &op {
            DiskOp::List => {
                let list = files.iter().map(|(name, b)| (name.clone(), b.len() as u64));
                Ok(DiskDone::Files(list.collect()))
            }
            DiskOp::ReadAt { name, offset, len } => files
                .iter()
                .find(|(file, _)| file == name)
                .ok_or_else(|| DiskError::NotFound(name.clone()))
                .map(|(_, bytes)| {
                    let from = size(*offset).min(bytes.len());
                    let to = size(offset + len).min(bytes.len());
                    DiskDone::Read(bytes.slice(from..to))
                }),
            other => Err(DiskError::Io(format!(
                "it only reads, and asks for {other:?}"
            ))),
        };
        match inspection.done(result) {
            InspectionStep::Do(next) => op = next,
            InspectionStep::Ready(report) => return Ok(*report),
            InspectionStep::Failed(error) => return Err(error),
        }
    }
}
