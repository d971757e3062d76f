//! The lease on tail answers (rule 20): what this run holds, and when it asks for the next one.
//!
//! A tail answer counts without anybody's confirmation only while no later epoch can have acknowledged an append. The
//! layout's leader lets no later epoch grant tokens before the lease it gave has run out by *its* clock. For that to be
//! later than by ours, the lease runs from before the request was sent, and whoever drives this core reads the clock for a
//! query after the query was read.

use std::time::Duration;

use milonga_protocol::limits::LONGEST_LEASE_MS;
use milonga_protocol::messages::Lease;
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Epoch, Time};

const LONGEST_LEASE: Duration = Duration::from_millis(LONGEST_LEASE_MS as u64);
/// Between two requests while the length of leases is not known.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So many requests are made while one lease lasts, so that one may be lost.
const ASKS_PER_LEASE: u32 = 3;

/// A request for a lease, to be sent to the layout now. It is of no use to anybody after [`Self::expires`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskLease {
    /// The epoch that the lease is for.
    pub epoch: Epoch,
    /// When this was decided, and so before it is sent: from then on the lease runs.
    pub asked: Time,
}

impl AskLease {
    /// When even the longest lease that could be the answer has run out.
    #[must_use]
    pub const fn expires(&self) -> Time {
        self.asked.after(LONGEST_LEASE)
    }
}

/// What one epoch's sequencer holds.
#[derive(Debug)]
pub(crate) struct Held {
    /// What stands for a lease in this epoch.
    kind: Lease,
    /// When the lease has run out, if there ever was one.
    until: Time,
    /// When the next one is asked for.
    ask_at: Time,
    ask_every: Duration,
}

impl Held {
    /// Nothing yet.
    pub(crate) const fn new(kind: Lease) -> Self {
        Self {
            kind,
            until: Time::from_start(Duration::ZERO),
            ask_at: Time::from_start(Duration::ZERO),
            ask_every: ASK_EVERY,
        }
    }

    /// What a tail answer to a query that was read at `now` may say.
    pub(crate) fn at(&self, now: Time) -> Lease {
        match self.kind {
            Lease::Renewed if now < self.until => Lease::Renewed,
            Lease::Renewed | Lease::None => Lease::None,
            Lease::DirectoryLock => Lease::DirectoryLock,
        }
    }

    /// When to ask next; `None`: nobody is asked.
    pub(crate) fn ask_at(&self) -> Option<Time> {
        (self.kind == Lease::Renewed).then_some(self.ask_at)
    }

    /// Whether to ask now.
    pub(crate) fn asks(&mut self, now: Time) -> bool {
        let asks = self.ask_at().is_some_and(|at| at <= now);
        if asks {
            self.ask_at = now.after(self.ask_every);
        }
        asks
    }

    /// The answer to what was asked at `asked` has come.
    pub(crate) fn granted(&mut self, now: Time, asked: Time, lasts: Duration) {
        let lasts = lasts.min(LONGEST_LEASE);
        let from = if plants::active(Plant::LeaseRunsFromReply) {
            now
        } else {
            asked
        };
        self.until = self.until.max(from.after(lasts));
        self.ask_every = lasts / ASKS_PER_LEASE;
    }

    /// For people.
    pub(crate) fn describe(&self, now: Time) -> &'static str {
        match (self.kind, self.at(now)) {
            (Lease::DirectoryLock, _) => "the directory lock stands for it",
            (Lease::Renewed, Lease::Renewed) => "held",
            (Lease::Renewed, _) => "not held: a chain confirms each tail answer",
            (Lease::None, _) => "switched off: a chain confirms each tail answer",
        }
    }
}
