//! Making an index of what was found in the segments, and judging damage (rule 27).
//!
//! Batches form a chain: each names the number of the one before it. Where the chain breaks, a batch is lost, and
//! whatever it may have held (anything not trimmed, up to `high` behind the gap, as far as it is not held elsewhere: what is
//! copied to a unit lies below its settled mark) is `Lost`, never `Unwritten`. Only behind the last batch that verifies is there no such evidence: what
//! lies there is a torn write, is cut, and its chain decides (rule 9).

use std::collections::VecDeque;

use bytes::Bytes;
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Epoch, Position};

use crate::config::OpenError;
use crate::disk::FileName;
use crate::format::{
    Footer, HEADER_BYTES, Owner, STATE, SegmentHeader, State, Superblock, Suspect, Void,
    segment_name, size,
};
use crate::index::Index;
use crate::recovery::damaged;
use crate::scan::{Content, FoundBatch, has_bytes_from, scan};
use crate::segment_index::{Active, Sealed};

/// What recovery met, in order of number.
#[derive(Debug)]
pub(crate) enum Finding {
    /// No file of that number, though the numbering goes on.
    Missing { number: u64 },
    /// A full segment, by its footer.
    Footer(Box<Footer>),
    /// A segment without a readable footer, whole.
    Scanned {
        number: u64,
        header: Option<SegmentHeader>,
        file: Bytes,
        /// Whether the disk refused to give a part of it.
        unreadable: bool,
    },
}

/// A segment file that is ready and empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) number: u64,
    pub(crate) generation: u64,
    pub(crate) size: u64,
}

/// What a unit starts from.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) superblock: Option<Superblock>,
    pub(crate) state: State,
    pub(crate) index: Index,
    /// Where the next batch goes, if there is an active segment: offset and size of the file.
    pub(crate) active_end: (u64, u64),
    pub(crate) prepared: Vec<Prepared>,
    /// Number of the next segment to make.
    pub(crate) next_segment: u64,
    /// Number of the last batch that verified.
    pub(crate) last_batch: u64,
    /// First number that no batch, cut ones included, can have had.
    pub(crate) next_batch: u64,
    pub(crate) mark: Position,
    /// What was cut from the end of the log, in words.
    pub(crate) cut: Option<String>,
    /// Files that may go.
    pub(crate) leftovers: Vec<FileName>,
    pub(crate) poison: Option<String>,
    /// The last batch, to be written again.
    pub(crate) rewrite: Option<(FileName, u64, Bytes)>,
    /// Its positions.
    pub(crate) last_positions: Vec<Position>,
}

#[derive(Debug)]
struct ScannedSegment {
    number: u64,
    header: Option<SegmentHeader>,
    file: Bytes,
    batches: Vec<FoundBatch>,
    unreadable: bool,
}

/// The builder.
#[derive(Debug)]
pub(crate) struct Rebuild {
    owner: Owner,
    segment_size: u64,
    out: Recovered,
    /// What the state says of batches that are still to come.
    voids: VecDeque<Void>,
    /// Scanned last, with batches: not yet known whether anything valid follows.
    tail: Option<ScannedSegment>,
    /// Segments behind the last batch that are missing or unreadable: fatal, unless a batch follows.
    unbounded: Vec<u64>,
    /// Segments from the last batch on that were never used.
    unused: Vec<(u64, Option<Prepared>)>,
    max_epoch: Epoch,
    /// Whether the last segment with batches has a footer.
    full: bool,
}

impl Default for Rebuild {
    fn default() -> Self {
        let owner = Owner {
            cluster: milonga_protocol::ClusterId::default(),
            unit: milonga_protocol::UnitId::default(),
        };
        Self::new(
            owner,
            State {
                first_segment: 1,
                ..State::default()
            },
            0,
        )
    }
}

impl Rebuild {
    pub(crate) fn new(owner: Owner, state: State, segment_size: u64) -> Self {
        let voids = state.voids.iter().copied().collect();
        let out = Recovered {
            last_batch: state.removed_batch,
            mark: state.trim,
            index: Index {
                high: state.trim,
                ..Index::default()
            },
            state,
            ..Recovered::default()
        };
        Self {
            owner,
            segment_size,
            out,
            voids,
            tail: None,
            unbounded: Vec::new(),
            unused: Vec::new(),
            max_epoch: Epoch::NONE,
            full: false,
        }
    }

    /// Takes the next segment.
    pub(crate) fn add(&mut self, finding: Finding) {
        match finding {
            Finding::Missing { number } => self.unbounded.push(number),
            Finding::Footer(footer) => {
                self.followed_by_batches();
                self.add_footer(*footer);
            }
            Finding::Scanned {
                number,
                header,
                file,
                unreadable,
            } => self.add_scanned(number, header, file, unreadable),
        }
    }

    fn add_scanned(
        &mut self,
        number: u64,
        header: Option<SegmentHeader>,
        file: Bytes,
        unreadable: bool,
    ) {
        let batches = scan(self.owner, number, header.map(|h| h.generation), &file);
        if !batches.is_empty() {
            self.followed_by_batches();
            self.tail = Some(ScannedSegment {
                number,
                header,
                file,
                batches,
                unreadable,
            });
            return;
        }
        let whole = !unreadable && header.is_none_or(|h| file.len() as u64 >= h.size);
        let used = has_bytes_from(&file, HEADER_BYTES);
        match header {
            // The first batch of the file was torn: cut, if nothing follows.
            Some(header) if used && whole && self.unbounded.is_empty() => {
                self.out.cut = Some(format!("a torn first batch of segment {number}"));
                self.unused
                    .push((number, self.prepared(&header, file.len())));
            }
            Some(header) if !used && whole => {
                self.unused
                    .push((number, self.prepared(&header, file.len())));
            }
            None if !used && whole => self.unused.push((number, None)),
            _ => self.unbounded.push(number),
        }
    }

    fn prepared(&self, header: &SegmentHeader, len: usize) -> Option<Prepared> {
        let fits = header.size == self.segment_size && len as u64 == header.size;
        fits.then_some(Prepared {
            number: header.number,
            generation: header.generation,
            size: header.size,
        })
    }

    /// A segment with valid batches comes: everything before it is the middle of the log.
    fn followed_by_batches(&mut self) {
        if let Some(tail) = self.tail.take() {
            self.add_batches(&tail, false);
            self.seal_active();
        }
        // What they held shows as a break in the chain of batches.
        let unused = self.unused.drain(..).map(|(number, _)| number);
        let mut numbers: Vec<u64> = self.unbounded.drain(..).chain(unused).collect();
        numbers.sort_unstable();
        let sealed = numbers.into_iter().map(Sealed::unreadable);
        self.out.index.sealed.extend(sealed);
        self.full = false;
    }

    fn seal_active(&mut self) {
        if let Some(active) = self.out.index.active.take() {
            let sealed = active.seal(self.out.index.high, &[]);
            self.out.index.sealed.push(sealed);
        }
    }

    /// Judges what lies between the last good batch and the one numbered `number`, and voids.
    fn join(&mut self, number: u64, previous: u64, high: Position, lowest_high: Position) {
        self.void_before(number);
        // Segments were removed behind one of which nothing was known.
        let unknown = self.out.last_batch == 0 && self.out.state.first_segment > 1;
        if previous != self.out.last_batch && !unknown {
            self.suspect(self.out.state.trim, high);
        }
        let index = &mut self.out.index;
        index.void(lowest_high);
        index.high = index.high.max(high);
        self.out.last_batch = number;
    }

    /// Voids what the state says of the batches below number `number`.
    fn void_before(&mut self, number: u64) {
        while let Some(void) = self.voids.front().filter(|void| void.batch < number) {
            self.out.index.void(void.from);
            self.voids.pop_front();
        }
    }

    fn suspect(&mut self, from: Position, to: Position) {
        let known = |s: &Suspect| s.from <= from && to <= s.to;
        if from < to && !self.out.index.suspects.iter().any(known) {
            self.out.index.suspects.push(Suspect { from, to });
        }
    }

    fn add_footer(&mut self, footer: Footer) {
        let edges = footer.edges;
        self.full = true;
        if edges.first == 0 {
            // All that it ever had was cut.
            self.out.index.sealed.push(Sealed::new(footer));
            return;
        }
        self.join(
            edges.last,
            edges.previous,
            edges.first_high,
            edges.lowest_high,
        );
        for suspect in &footer.suspects {
            self.suspect(suspect.from, suspect.to);
        }
        self.out.index.high = edges.high;
        self.out.mark = self.out.mark.max(edges.mark);
        self.max_epoch = self.max_epoch.max(edges.epoch);
        self.out.index.sealed.push(Sealed::new(footer));
    }

    /// Adds the batches of a scanned segment; of the tail's last batch only if it is whole.
    fn add_batches(&mut self, segment: &ScannedSegment, is_tail: bool) {
        let generation = segment.batches.first().map_or(0, |b| b.header.generation);
        self.out.index.active = Some(Active::new(segment.number, generation));
        let mut end = HEADER_BYTES;
        for (at, batch) in segment.batches.iter().enumerate() {
            let header = &batch.header;
            let is_last = is_tail && at + 1 == segment.batches.len();
            let torn = !batch.damage.is_empty() || plants::acts(Plant::CutsWholeBatch, 4);
            if is_last && torn {
                self.void_before(header.number);
                self.out.cut = Some(format!(
                    "batch {} of segment {}: {} of {} records, positions from {} below {}",
                    header.number,
                    segment.number,
                    header.records as usize - batch.records.len().min(header.records as usize),
                    header.records,
                    header.lowest,
                    header.end
                ));
                self.out.index.high = self.out.index.high.max(header.end);
                self.out.next_batch = header.number + 1;
                break;
            }
            self.join(header.number, header.previous, header.high, header.high);
            for (from, to) in &batch.damage {
                self.suspect(*from, *to);
            }
            if let Some(active) = &mut self.out.index.active {
                active.add_found(batch);
            }
            self.out.index.high = self.out.index.high.max(header.end);
            self.out.mark = self.out.mark.max(header.mark);
            self.max_epoch = self.max_epoch.max(header.epoch);
            end = batch.end();
        }
        let len = segment.header.map_or(segment.file.len() as u64, |h| h.size);
        self.out.active_end = (end, len);
    }

    fn add_tail(&mut self, segment: &ScannedSegment) -> Result<(), OpenError> {
        let name = segment_name(segment.number);
        if segment.unreadable {
            return Err(OpenError::Disk {
                what: format!("reading {name}"),
                why: "a part of it cannot be read, and nothing behind says what it held".to_owned(),
            });
        }
        if let Some(header) = segment.header
            && (segment.file.len() as u64) < header.size
        {
            let why = "it was truncated, and nothing behind says what it held".to_owned();
            return Err(damaged(&name, why));
        }
        self.add_batches(segment, true);
        let (end, _) = self.out.active_end;
        if self.out.cut.is_none() && has_bytes_from(&segment.file, end) {
            self.out.cut = Some(format!(
                "bytes behind the last batch of segment {}",
                segment.number
            ));
        }
        let last = segment.batches.iter().rev().find(|b| b.end() == end);
        if let Some(batch) = last {
            let data = segment.file.slice(size(batch.offset)..size(end));
            self.out.rewrite = Some((name, batch.offset, data));
            self.out.last_positions = positions_of(batch);
        }
        if segment.header.is_none() {
            // Nothing more goes into a file with an unreadable header.
            self.seal_active();
        }
        Ok(())
    }

    /// Ends the log and gives the result.
    pub(crate) fn finish(
        mut self,
        superblock: Superblock,
        state: State,
    ) -> Result<Recovered, OpenError> {
        if let Some(number) = self.unbounded.first() {
            let why =
                "it is missing or unreadable, and nothing behind says what it held".to_owned();
            return Err(damaged(&segment_name(*number), why));
        }
        if let Some(tail) = self.tail.take() {
            self.add_tail(&tail)?;
        }
        let last = self.out.index.sealed.last().map(|s| s.footer.number);
        let last = last.max(self.out.index.active.as_ref().map(|a| a.number));
        let next = last.map_or(state.first_segment, |last| last + 1).max(1);
        if self.full && self.unused.is_empty() {
            let why = "it is missing, though the segment before it is full".to_owned();
            return Err(damaged(&segment_name(next), why));
        }
        if self.max_epoch > state.epoch {
            let why = format!(
                "it says epoch {}, but the log holds epoch {}: it is an old copy",
                state.epoch, self.max_epoch
            );
            return Err(damaged(STATE, why));
        }
        let prepared = self.unused.iter().map_while(|(_, prepared)| *prepared);
        self.out.prepared = prepared.collect();
        self.out.next_segment = next + self.out.prepared.len() as u64;
        // The batch that may have been torn had the number behind the last good one, or behind what is void.
        let known = state.voids.last().map_or(0, |void| void.batch);
        let known = known.max(self.out.last_batch);
        self.out.next_batch = self.out.next_batch.max(known.saturating_add(2));
        self.void_before(u64::MAX);
        self.out.superblock = Some(superblock);
        self.out.index.trim(state.trim);
        self.out.state = state;
        Ok(self.out)
    }
}

fn positions_of(batch: &FoundBatch) -> Vec<Position> {
    let mut positions = Vec::new();
    for record in &batch.records {
        match &record.content {
            Content::Data(_) => positions.push(record.position),
            Content::Junk(junk) => positions.extend(
                (junk.from..junk.end)
                    .step_by(size(junk.stride).max(1))
                    .take(1 << 20)
                    .map(Position),
            ),
        }
    }
    positions
}
