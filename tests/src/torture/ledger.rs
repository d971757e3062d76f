//! What was asked for, what came of it, and how long nothing did.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use milonga_protocol::Position;

/// What an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes appended to the log, past all objects.
    Raw,
    /// A map's new key.
    Insert,
    /// One more in a counter.
    Add,
    /// A queue's new item.
    Push,
    /// An item goes from the queue into a map, and is counted: a transaction over three objects.
    Move,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Raw, Self::Insert, Self::Add, Self::Push, Self::Move];

    /// How many tasks do it, one after the other each.
    pub(super) const fn lanes(self) -> usize {
        match self {
            Self::Raw | Self::Insert | Self::Push => 4,
            Self::Add => 2,
            Self::Move => 3,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw appends",
            Self::Insert => "inserts",
            Self::Add => "adds",
            Self::Push => "pushes",
            Self::Move => "moves",
        }
    }
}

/// Names an update of a kind: the lane and its number there.
pub(super) type Id = u64;

pub(super) const fn id(lane: usize, number: usize) -> Id {
    ((lane as u64) << 32) | number as u64
}

pub(super) fn apart(id: Id) -> (usize, usize) {
    let part = |n: u64| usize::try_from(n).expect("of 32 bits");
    (part(id >> 32), part(id & 0xffff_ffff))
}

/// What came of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Acknowledged, at this position.
    Acked(Position),
    /// It was said that it never happened.
    Failed,
    /// It may have happened, or may happen yet, once.
    Unknown,
}

/// Everything that the final reading is compared with. Grows by 16 bytes an update, and some more for some kinds.
#[derive(Debug)]
pub(super) struct Book {
    /// Of each kind, of each lane, in order.
    pub(super) fates: [Vec<Vec<Fate>>; 5],
    /// What counters answered, by position.
    pub(super) counted: BTreeMap<Position, Vec<i64>>,
    /// Items that acknowledged transactions moved, each with the transaction.
    pub(super) moved: BTreeMap<Id, Id>,
    /// What clients themselves found wrong.
    pub(super) complaints: Vec<String>,
    /// Acknowledged in this round.
    acked: u64,
    last: [Instant; 5],
    longest: [Duration; 5],
}

/// More is not read by anybody.
const MOST_COMPLAINTS: usize = 10;

/// A book that tasks share.
#[derive(Debug)]
pub(super) struct Ledger(Mutex<Book>);

impl Ledger {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Book::new()))
    }

    /// The book, when nobody writes to it any more.
    pub(super) fn close(&self) -> Book {
        std::mem::replace(&mut *self.book(), Book::new())
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of the next update of a lane.
    pub(super) fn next(&self, kind: Kind, lane: usize) -> Id {
        id(lane, self.book().fates[kind as usize][lane].len())
    }

    /// Notes what came of it.
    pub(super) fn note(&self, kind: Kind, lane: usize, fate: Fate) {
        let mut book = self.book();
        book.fates[kind as usize][lane].push(fate);
        if matches!(fate, Fate::Acked(_)) {
            book.acked += 1;
            book.goes_on(kind);
        }
    }

    /// There was nothing to be written, and the log said so.
    pub(super) fn nothing_to_do(&self, kind: Kind) {
        self.book().goes_on(kind);
    }

    pub(super) fn complain(&self, text: String) {
        let mut book = self.book();
        if book.complaints.len() < MOST_COMPLAINTS {
            book.complaints.push(text);
        }
    }

    /// A round begins.
    pub(super) fn begin_round(&self) {
        let mut book = self.book();
        book.acked = 0;
        book.longest = [Duration::ZERO; 5];
    }

    /// How many were acknowledged in this round.
    pub(super) fn acked(&self) -> u64 {
        self.book().acked
    }

    /// Whether all kinds were acknowledged after `since`.
    pub(super) fn all_since(&self, since: Instant) -> bool {
        self.book().last.iter().all(|last| *last > since)
    }

    /// The longest pause of this round, also one that has not ended, and of what.
    pub(super) fn longest(&self) -> (Duration, Kind) {
        let book = self.book();
        let pause = |kind: Kind| {
            let open = book.last[kind as usize].elapsed();
            (book.longest[kind as usize].max(open), kind)
        };
        let all = Kind::ALL.map(pause).into_iter();
        all.max_by_key(|(pause, _)| *pause)
            .expect("there are kinds")
    }
}

impl Book {
    fn new() -> Self {
        Self {
            fates: Kind::ALL.map(|kind| vec![Vec::new(); kind.lanes()]),
            counted: BTreeMap::new(),
            moved: BTreeMap::new(),
            complaints: Vec::new(),
            acked: 0,
            last: [Instant::now(); 5],
            longest: [Duration::ZERO; 5],
        }
    }

    fn goes_on(&mut self, kind: Kind) {
        let kind = kind as usize;
        self.longest[kind] = self.longest[kind].max(self.last[kind].elapsed());
        self.last[kind] = Instant::now();
    }

    /// How many of a kind have that fate.
    pub(super) fn count(&self, kind: Kind, such: impl Fn(&Fate) -> bool) -> usize {
        let all = self.fates[kind as usize].iter().flatten();
        all.filter(|fate| such(fate)).count()
    }
}
