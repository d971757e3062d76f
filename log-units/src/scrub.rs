//! Reading what lies on disk again and again, at a bounded rate: so damage is found while other replicas have the value.
//!
//! Entries are read segment after segment and compared with their checksums, whether or not they are in the cache. What
//! cannot be read is lost from then on, as if somebody had read it; the hello says so, and the layout's leader has it given
//! back. Junk, batch headers and footers are held in memory and looked at by the next start only.

use std::time::Duration;

use milonga_protocol::messages::{CallId, UnitReadAnswer};
use milonga_protocol::{Position, Time};

use crate::index::Held;
use crate::read::Purpose;
use crate::reader::{Job, Slot};
use crate::unit::Unit;

/// No caller has this number.
const NOBODY: CallId = CallId(u64::MAX);
/// Most bytes and entries of one read.
const PIECE_BYTES: usize = 512 << 10;
const PIECE: usize = 256;
/// The first pass begins so long after a start; a pass begins at least so long after the one before.
const FIRST_AFTER: Duration = Duration::from_secs(1);
const PASS_AT_LEAST: Duration = Duration::from_secs(60);

/// Where the present pass stands.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    /// The next entry: number of its segment, and its position there at the least.
    next: (u64, u64),
    /// When it is read; `None` before the first pass, while a piece is being read, and once the disk has failed.
    at: Option<Time>,
    began: Time,
    pub(crate) passes: u64,
    pub(crate) bytes: u64,
}

impl Unit {
    /// The directory was read: passes begin.
    pub(crate) fn begin_scrubbing(&mut self) {
        if self.config.scrub_bytes_per_second > 0 {
            self.scrub.at = Some(self.now.after(FIRST_AFTER));
        }
    }

    pub(crate) const fn scrub_at(&self) -> Option<Time> {
        self.scrub.at
    }

    /// Reads the next piece, if it is time.
    pub(crate) fn go_on_scrubbing(&mut self) {
        if self.scrub.at.is_none_or(|at| at > self.now) {
            return;
        }
        if self.scrub.next == (0, 0) {
            self.scrub.began = self.now;
        }
        // What is found could not be given back.
        if self.poison.is_some() {
            self.scrub.at = None;
            return;
        }
        // People go first.
        if self.reader.is_busy() {
            self.scrub.at = Some(self.now.after(FIRST_AFTER));
            return;
        }
        let (segment, from) = self.scrub.next;
        let Some((segment, entries)) = self.index.entries_from(segment, from, PIECE) else {
            return self.end_pass();
        };
        let last = entries.last().map_or(u64::MAX, |(position, _)| *position);
        self.scrub.next = (segment, last.saturating_add(1));
        // A repaired value is held twice, and the damaged one is of no interest; nor is what is known to be lost.
        let wanted = entries.into_iter().filter(|(position, place)| {
            let position = Position(*position);
            !self.index.is_lost(position) && self.index.held(position) == Some(Held::Data(*place))
        });
        let slots = wanted.map(|(position, place)| (Position(position), Slot::Disk(place)));
        let slots = slots.collect();
        self.scrub.at = None;
        self.begin_read(NOBODY, Purpose::Scrub, slots, PIECE_BYTES);
    }

    /// A piece was read.
    pub(crate) fn scrubbed(&mut self, job: &Job<Purpose>) {
        let (mut bytes, trimmed) = (0, self.trimmed());
        for (position, slot) in &job.slots {
            match slot {
                Slot::Data(entry) => bytes += entry.len() as u64,
                // More than a piece, or the disk was not asked, or gave nothing: from here on.
                Slot::Later | Slot::Withheld | Slot::Disk(_) => {
                    self.scrub.next.1 = self.scrub.next.1.min(position.0);
                }
                Slot::Known(UnitReadAnswer::Lost) if *position >= trimmed => {
                    self.counters.lost_on_scrub += 1;
                }
                Slot::Known(_) => {}
            }
        }
        self.scrub.bytes += bytes;
        let rate = self.config.scrub_bytes_per_second.max(1);
        let micros = bytes.saturating_mul(1_000_000) / rate;
        // A disk that was not asked is left alone for a moment.
        let pause = if job.not_now.is_some() || job.withheld.is_some() {
            FIRST_AFTER
        } else {
            Duration::from_micros(micros.max(1_000))
        };
        self.scrub.at = Some(self.now.after(pause));
    }

    fn end_pass(&mut self) {
        self.scrub.next = (0, 0);
        self.scrub.passes += 1;
        let next = self.scrub.began.after(PASS_AT_LEAST);
        self.scrub.at = Some(next.max(self.now.after(FIRST_AFTER)));
    }
}
