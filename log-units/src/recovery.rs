//! Opening a directory: one disk operation at a time, from the listing to an index. Pure: results in, next
//! operation out.
//!
//! ```text
//! List ─┬─ nothing ── make superblock, state ──────────────────────────────────────────┐
//!       └─ Superblock ── State ─ Restate ─ for each segment: Header ── Trailer ─┬─ Footer ──────┼── Rewrite ── ready
//!                                                                      └─ Body, scan ──┘
//! ```
//!
//! The last batch is written again before anything is served: a killed process may have left it in the page cache
//! only, and after a failed sync the kernel may show bytes that are on no disk. So is a state that only one of its
//! slots holds: the unit is about to report its epoch, and to write records that are newer.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use milonga_protocol::{ClusterId, Epoch};

use crate::config::{OpenError, UnitConfig};
use crate::disk::{DiskDone, DiskError, DiskOp, FileName};
use crate::format::{
    BlockError, Footer, HEADER_BYTES, LOCK, Owner, STATE, STATE_BYTES, STATE_SLOT, SUPERBLOCK,
    SUPERBLOCK_BYTES, SUPERBLOCK_NEW, SegmentHeader, State, Superblock, TRAILER_BYTES, Trailer,
    newest_version, segment_name, segment_number, size,
};
use crate::rebuild::{Finding, Rebuild, Recovered};

/// Bytes of one read while a segment is scanned.
const SCAN_BYTES: u64 = 8 << 20;

/// What recovery wants next.
#[derive(Debug)]
pub(crate) enum Step {
    Do(DiskOp),
    Ready(Box<Recovered>),
    Failed(OpenError),
}

#[derive(Debug)]
enum Stage {
    List,
    MakeSuperblock,
    WriteSuperblock,
    NameSuperblock,
    MakeState,
    Superblock,
    State,
    /// Slots that still get the newest state.
    Restate(Vec<u64>),
    Header(u64),
    Trailer(u64, SegmentHeader),
    Footer(u64, SegmentHeader),
    Body(Scan),
    Rewrite,
}

/// A segment that is read whole.
#[derive(Debug)]
struct Scan {
    number: u64,
    header: Option<SegmentHeader>,
    file: BytesMut,
    /// Whether the disk refused a part, which then counts as zeros.
    unreadable: bool,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Recovery {
    config: UnitConfig,
    stage: Stage,
    files: BTreeMap<FileName, u64>,
    superblock: Superblock,
    state: State,
    todo: VecDeque<u64>,
    rebuild: Rebuild,
    /// Why the state could not be written again.
    state_lost: Option<String>,
    recovered: Option<Box<Recovered>>,
}

impl Recovery {
    /// Begins; the first operation is a listing.
    pub(crate) fn start(config: UnitConfig) -> (Self, DiskOp) {
        let superblock = Superblock {
            cluster: ClusterId::default(),
            unit: config.new_id,
            name: config.name.as_str().to_owned(),
        };
        let recovery = Self {
            config,
            stage: Stage::List,
            files: BTreeMap::new(),
            superblock,
            state: State::default(),
            todo: VecDeque::new(),
            rebuild: Rebuild::default(),
            state_lost: None,
            recovered: None,
        };
        (recovery, DiskOp::List)
    }

    /// Takes the result of the operation that was asked for last.
    pub(crate) fn done(&mut self, result: Result<DiskDone, DiskError>) -> Step {
        match self.step(result) {
            Ok(step) => step,
            Err(error) => Step::Failed(error),
        }
    }

    fn step(&mut self, result: Result<DiskDone, DiskError>) -> Result<Step, OpenError> {
        let stage = std::mem::replace(&mut self.stage, Stage::List);
        if let Err(DiskError::Busy(why)) = result {
            // What was not read is not damaged.
            let what = "opening the directory".to_owned();
            return Err(OpenError::Disk { what, why });
        }
        match stage {
            Stage::Rewrite => return Ok(self.finish(result)),
            Stage::Restate(slots) => {
                if let Err(error) = result {
                    self.state_lost = Some(error.to_string());
                    return self.next_segment();
                }
                return self.restate(slots);
            }
            Stage::Header(number) => return self.header(number, &bytes_of(result)),
            Stage::Trailer(number, header) => {
                return Ok(self.trailer(number, header, &bytes_of(result)));
            }
            Stage::Footer(number, header) => {
                return self.footer(number, header, &bytes_of(result));
            }
            Stage::Body(scan) => return self.body(scan, result),
            _ => {}
        }
        let done = result.map_err(|error| OpenError::Disk {
            what: format!("opening the directory ({stage:?})"),
            why: error.to_string(),
        })?;
        match (stage, done) {
            (Stage::List, DiskDone::Files(files)) => self.list(files),
            (Stage::MakeSuperblock, _) => {
                self.stage = Stage::WriteSuperblock;
                Ok(Step::Do(DiskOp::WriteAt {
                    name: SUPERBLOCK_NEW.to_owned(),
                    offset: 0,
                    data: vec![self.superblock.encode().into()],
                    sync: true,
                }))
            }
            (Stage::WriteSuperblock, _) => {
                self.stage = Stage::NameSuperblock;
                Ok(Step::Do(DiskOp::Rename {
                    from: SUPERBLOCK_NEW.to_owned(),
                    to: SUPERBLOCK.to_owned(),
                }))
            }
            (Stage::NameSuperblock, _) => Ok(self.make_state()),
            (Stage::MakeState, _) => self.next_segment(),
            (Stage::Superblock, DiskDone::Read(bytes)) => self.superblock(&bytes),
            (Stage::State, DiskDone::Read(bytes)) => self.state(&bytes),
            (stage, done) => Err(OpenError::Disk {
                what: format!("{stage:?}"),
                why: format!("the disk answered {done:?}"),
            }),
        }
    }

    fn owner(&self) -> Owner {
        Owner {
            cluster: self.superblock.cluster,
            unit: self.superblock.unit,
        }
    }

    fn list(&mut self, files: Vec<(FileName, u64)>) -> Result<Step, OpenError> {
        for (name, _) in &files {
            let lock = name.eq_ignore_ascii_case(LOCK);
            let ours = [SUPERBLOCK, SUPERBLOCK_NEW, STATE].contains(&name.as_str());
            if !lock && !ours && segment_number(name).is_none() {
                return Err(OpenError::Foreign { file: name.clone() });
            }
        }
        self.files = files.into_iter().collect();
        if self.files.contains_key(SUPERBLOCK) {
            self.stage = Stage::Superblock;
            return Ok(read(SUPERBLOCK, 0, SUPERBLOCK_BYTES));
        }
        if let Some(file) = self
            .files
            .keys()
            .find(|f| *f == STATE || f.ends_with(".log"))
        {
            let why = "there is no superblock beside it".to_owned();
            return Err(damaged(file, why));
        }
        self.stage = Stage::MakeSuperblock;
        Ok(Step::Do(DiskOp::Create {
            name: SUPERBLOCK_NEW.to_owned(),
            size: SUPERBLOCK_BYTES,
        }))
    }

    fn make_state(&mut self) -> Step {
        self.stage = Stage::MakeState;
        self.state.first_segment = 1;
        Step::Do(DiskOp::Create {
            name: STATE.to_owned(),
            size: STATE_BYTES,
        })
    }

    fn superblock(&mut self, bytes: &[u8]) -> Result<Step, OpenError> {
        self.superblock =
            Superblock::decode(bytes).map_err(|error| block_error(SUPERBLOCK, error))?;
        let found = self.superblock.cluster;
        if let Some(expected) = self.config.cluster
            && found != ClusterId::default()
            && found != expected
        {
            return Err(OpenError::OtherCluster { found, expected });
        }
        if self.superblock.name != self.config.name.as_str() {
            return Err(OpenError::OtherUnit {
                found: self.superblock.name.clone(),
                expected: self.config.name.clone(),
            });
        }
        let has_segments = self.files.keys().any(|f| segment_number(f).is_some());
        match self.files.get(STATE) {
            Some(len) if *len >= STATE_BYTES || has_segments => {
                self.stage = Stage::State;
                Ok(read(STATE, 0, STATE_BYTES))
            }
            None if has_segments => Err(damaged(STATE, "it is missing".to_owned())),
            // Making the directory was interrupted.
            _ => Ok(self.make_state()),
        }
    }

    fn state(&mut self, bytes: &[u8]) -> Result<Step, OpenError> {
        let owner = self.owner();
        let slot = |at: u64| {
            let slot = bytes.get(size(at)..).unwrap_or_default();
            State::decode(owner, slot)
        };
        let slots = [slot(0), slot(STATE_SLOT)];
        for slot in &slots {
            if let Err(error @ BlockError::Version(_)) = slot {
                return Err(block_error(STATE, *error));
            }
        }
        let newest = slots.iter().flatten().max_by_key(|s| s.sequence);
        let blank = bytes.iter().all(|byte| *byte == 0);
        let segments: Vec<u64> = self
            .files
            .keys()
            .filter_map(|f| segment_number(f))
            .collect();
        self.state = match newest {
            Some(state) => State::clone(state),
            // A first write that was torn left something, but then nothing else can be here: segments are made
            // before, but hold nothing until the state is written.
            None if blank || self.superblock.cluster == ClusterId::default() => State {
                first_segment: 1,
                ..State::default()
            },
            None => {
                let why = "neither copy of the state verifies".to_owned();
                return Err(damaged(STATE, why));
            }
        };
        let first = self.state.first_segment;
        let last = segments.iter().copied().max().unwrap_or(0);
        if last.saturating_sub(first) > 1 << 24 {
            let why = "its number is far above the others'".to_owned();
            return Err(damaged(&segment_name(last), why));
        }
        if last < first && self.state.epoch > Epoch::NONE {
            let why = "it is missing".to_owned();
            return Err(damaged(&segment_name(first), why));
        }
        self.todo = (first..=last).collect();
        self.rebuild = Rebuild::new(self.owner(), self.state.clone(), self.config.segment_size());
        let is_newest = |slot: &Result<State, BlockError>| slot.as_ref() == Ok(&self.state);
        let (here, stale): (Vec<_>, Vec<_>) = [0, 1]
            .into_iter()
            .partition(|slot| is_newest(&slots[usize::from(*slot != 0)]));
        if here.is_empty() || stale.is_empty() {
            return self.next_segment();
        }
        // The other one first: a loss of power must not tear the only one.
        self.restate(here.into_iter().chain(stale).collect())
    }

    /// Writes the state to the last of these slots.
    fn restate(&mut self, mut slots: Vec<u64>) -> Result<Step, OpenError> {
        let Some(slot) = slots.pop() else {
            return self.next_segment();
        };
        self.stage = Stage::Restate(slots);
        Ok(Step::Do(DiskOp::WriteAt {
            name: STATE.to_owned(),
            offset: slot * STATE_SLOT,
            data: vec![self.state.encode(self.owner()).into()],
            sync: true,
        }))
    }

    fn file_len(&self, number: u64) -> Option<u64> {
        self.files.get(&segment_name(number)).copied()
    }

    fn next_segment(&mut self) -> Result<Step, OpenError> {
        while let Some(number) = self.todo.pop_front() {
            if self.file_len(number).is_some() {
                self.stage = Stage::Header(number);
                return Ok(read(&segment_name(number), 0, HEADER_BYTES));
            }
            self.rebuild.add(Finding::Missing { number });
        }
        self.rebuilt()
    }

    fn header(&mut self, number: u64, bytes: &[u8]) -> Result<Step, OpenError> {
        let name = segment_name(number);
        let len = self.file_len(number).unwrap_or(0);
        match SegmentHeader::decode(self.owner(), bytes) {
            Ok(header) if header.number != number => {
                let why = format!("it is segment {} under another name", header.number);
                Err(damaged(&name, why))
            }
            Ok(header) if len >= header.size && header.size > HEADER_BYTES + TRAILER_BYTES => {
                self.stage = Stage::Trailer(number, header);
                Ok(read(&name, header.size - TRAILER_BYTES, TRAILER_BYTES))
            }
            Ok(header) => Ok(self.scan(number, Some(header))),
            Err(error @ BlockError::Version(_)) => Err(block_error(&name, error)),
            Err(_) => Ok(self.scan(number, None)),
        }
    }

    fn trailer(&mut self, number: u64, header: SegmentHeader, bytes: &[u8]) -> Step {
        let trailer = Trailer::decode(self.owner(), bytes).filter(|trailer| {
            let end = trailer.offset.checked_add(trailer.len);
            trailer.generation == header.generation
                && trailer.offset >= HEADER_BYTES
                && end.is_some_and(|end| end <= header.size - TRAILER_BYTES)
        });
        match trailer {
            Some(trailer) => {
                self.stage = Stage::Footer(number, header);
                read(&segment_name(number), trailer.offset, trailer.len)
            }
            None => self.scan(number, Some(header)),
        }
    }

    fn footer(
        &mut self,
        number: u64,
        header: SegmentHeader,
        bytes: &[u8],
    ) -> Result<Step, OpenError> {
        match Footer::decode(self.owner(), header.generation, bytes) {
            Ok(footer) if footer.number == number && footer.generation == header.generation => {
                self.rebuild.add(Finding::Footer(Box::new(footer)));
                self.next_segment()
            }
            _ => Ok(self.scan(number, Some(header))),
        }
    }

    fn scan(&mut self, number: u64, header: Option<SegmentHeader>) -> Step {
        let len = self.file_len(number).unwrap_or(0);
        self.stage = Stage::Body(Scan {
            number,
            header,
            file: BytesMut::with_capacity(size(len.min(1 << 32))),
            unreadable: false,
        });
        read(&segment_name(number), 0, len.min(SCAN_BYTES))
    }

    fn body(
        &mut self,
        mut scan: Scan,
        result: Result<DiskDone, DiskError>,
    ) -> Result<Step, OpenError> {
        let len = self.file_len(scan.number).unwrap_or(0);
        let asked = SCAN_BYTES.min(len - scan.file.len() as u64);
        let got = match result {
            Ok(DiskDone::Read(bytes)) => {
                scan.file.extend_from_slice(&bytes);
                bytes.len() as u64
            }
            _ => {
                scan.unreadable = true;
                scan.file.resize(scan.file.len() + size(asked), 0);
                asked
            }
        };
        let at = scan.file.len() as u64;
        // A short read is the end of the file, whatever the listing said.
        if at < len && got == asked {
            let name = segment_name(scan.number);
            self.stage = Stage::Body(scan);
            return Ok(read(&name, at, SCAN_BYTES.min(len - at)));
        }
        self.rebuild.add(Finding::Scanned {
            number: scan.number,
            header: scan.header,
            file: scan.file.freeze(),
            unreadable: scan.unreadable,
        });
        self.next_segment()
    }

    fn rebuilt(&mut self) -> Result<Step, OpenError> {
        let rebuild = std::mem::take(&mut self.rebuild);
        let mut recovered = rebuild.finish(self.superblock.clone(), self.state.clone())?;
        let below = |name: &&FileName| {
            segment_number(name).is_some_and(|number| number < self.state.first_segment)
        };
        recovered.leftovers = self
            .files
            .keys()
            .filter(|name| below(name) || *name == SUPERBLOCK_NEW)
            .cloned()
            .collect();
        if !self.files.contains_key(SUPERBLOCK) {
            // It was made of `superblock.new` just now.
            recovered.leftovers.retain(|name| name != SUPERBLOCK_NEW);
        }
        let rewrite = recovered.rewrite.take();
        self.recovered = Some(Box::new(recovered));
        match rewrite {
            Some((name, offset, data)) => {
                self.stage = Stage::Rewrite;
                Ok(Step::Do(DiskOp::WriteAt {
                    name,
                    offset,
                    data: vec![data],
                    sync: true,
                }))
            }
            None => Ok(self.finish(Ok(DiskDone::Done))),
        }
    }

    fn finish(&mut self, rewritten: Result<DiskDone, DiskError>) -> Step {
        let Some(mut recovered) = self.recovered.take() else {
            return Step::Failed(OpenError::Disk {
                what: "opening the directory".to_owned(),
                why: "it is already open".to_owned(),
            });
        };
        recovered.poison = self.state_lost.take().or(recovered.poison);
        if let Err(error) = rewritten {
            recovered.poison = Some(error.to_string());
            let last = std::mem::take(&mut recovered.last_positions).into_iter();
            let high = recovered.index.high;
            recovered.index.lost.extend(last.filter(|p| *p < high));
        }
        Step::Ready(recovered)
    }
}

/// Bytes of a small structure; one that cannot be read counts as damaged.
fn bytes_of(result: Result<DiskDone, DiskError>) -> Bytes {
    match result {
        Ok(DiskDone::Read(bytes)) => bytes,
        _ => Bytes::new(),
    }
}

fn read(name: &str, offset: u64, len: u64) -> Step {
    Step::Do(DiskOp::ReadAt {
        name: name.to_owned(),
        offset,
        len,
    })
}

pub(crate) fn damaged(file: &str, why: String) -> OpenError {
    OpenError::Damaged {
        file: file.to_owned(),
        why,
    }
}

fn block_error(file: &str, error: BlockError) -> OpenError {
    match error {
        BlockError::Version(found) => OpenError::NewerVersion {
            file: file.to_owned(),
            found,
            known: newest_version(file),
        },
        BlockError::Foreign => OpenError::Foreign {
            file: file.to_owned(),
        },
        BlockError::Damaged => damaged(file, "its checksum does not match".to_owned()),
    }
}
