//! Where a reconfiguration stands.
//!
//! ```text
//!            .--- a new run before the commit ---.
//!            v                                   |
//!  start -> Gather -> Intend -> Seal -> Collect -+-> Commit -> Open -> Record -> (published) Settle -> Report -> Idle
//!            ^                                                   |                             |                 |
//!            '------------- a server restarted, or a seal without a successor was reported -----------------------'
//! ```
//!
//! `Finish`, which only tells the store, stands between `Report` and `Idle`. A new leader that finds an epoch at rest goes on
//! with it: `Resume -> Idle`, or `Gather`, if somebody does not serve that epoch any more.

use std::collections::{BTreeMap, BTreeSet};

use milonga_protocol::messages::{SealReport, StreamTail};
use milonga_protocol::settle::{self, Settle};
use milonga_protocol::{
    Epoch, Incarnation, Layout, Position, ServerName, StreamId, Time, UnitIndex,
};

use crate::copying::StepId;
use crate::planner::Observations;
use crate::tails::Tails;

#[derive(Debug)]
pub(crate) enum Phase {
    /// Waits until every chain has enough replicas that said hello, and nobody is about to.
    Gather {
        /// Why a reconfiguration is needed.
        cause: String,
        /// Since when.
        since: Time,
        /// Since when the next epoch could be made by those who are there.
        able: Option<Time>,
    },
    /// The intent is on its way to the store.
    Intend,
    Seal(Sealing),
    Collect(Collecting),
    /// The layout is on its way to the store.
    Commit(AfterCommit),
    Open(Opening),
    /// The confirmations are on their way to the store.
    Record {
        settle_from: Position,
    },
    /// The layout is published; what lies below its start is being settled (rule 9).
    Settle(Settling),
    /// Everything below the start is settled; the units are being told (rule 5).
    Report {
        left: BTreeSet<UnitIndex>,
    },
    /// That everything is done is on its way to the store.
    Finish,
    Idle,
    /// Another leader has made the epoch and finished it; its servers have yet to say that they still serve it.
    Resume,
    /// The store failed: nothing more is decided until a restart.
    Halted {
        why: String,
    },
}

/// What a unit said when it was sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Confirmed {
    /// The newest epoch that it had persisted.
    pub(crate) epoch: Epoch,
    /// When it said so first.
    pub(crate) at: Time,
}

/// Units and sequencer are being told that older epochs are over.
#[derive(Debug)]
pub(crate) struct Sealing {
    pub(crate) epoch: Epoch,
    /// Who takes part: all others are gone for this epoch.
    pub(crate) members: BTreeSet<UnitIndex>,
    pub(crate) reports: BTreeMap<UnitIndex, SealReport>,
    /// The sequencer answered. (Only its bootstrap is needed; a sequencer without state answers, too.)
    pub(crate) sequencer: bool,
}

/// Stream tails are being collected, with positions below the layout's start.
#[derive(Debug)]
pub(crate) struct Collecting {
    pub(crate) seen: Observations,
    /// What will be committed.
    pub(crate) layout: Layout,
    /// Next page of each unit that has more.
    pub(crate) cursors: BTreeMap<UnitIndex, Option<StreamId>>,
    pub(crate) tails: Tails,
}

/// What is needed once the layout is committed. It is derived from the sealed units, and lost by a restart of this
/// process, which therefore makes another epoch.
#[derive(Debug)]
pub(crate) struct AfterCommit {
    /// Of all streams, ascending.
    pub(crate) tails: Vec<StreamTail>,
    pub(crate) trimmed: Position,
    /// End of what some replica lost with its streams.
    pub(crate) lost: Position,
    /// The epoch that each unit had persisted when it was sealed, or, of those that join, said last.
    pub(crate) persisted: BTreeMap<UnitIndex, Epoch>,
    /// Lowest position that some unit does not know to be settled.
    pub(crate) settle_from: Position,
}

/// Units enter the epoch, the sequencer gets its state.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) rest: AfterCommit,
    pub(crate) opened: BTreeSet<UnitIndex>,
    /// The sequencer was sent its state, or a part of it: nobody else holds a lease (rule 20).
    pub(crate) bootstrapping: bool,
    /// Next page of the bootstrap; `None`: done.
    pub(crate) page: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Settling {
    pub(crate) settle: Settle,
    /// When it last got on.
    pub(crate) progress_at: Time,
    pub(crate) retry_at: Option<Time>,
    pub(crate) tries: u32,
}

/// A request that has to be answered before the phase is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    Seal(UnitIndex),
    SealSequencer,
    /// To the process that may hold a lease, until the next sequencer is bootstrapped.
    SealHolder(ServerName),
    Collect(UnitIndex),
    Open(UnitIndex),
    Bootstrap,
    /// Repeated by the settler itself.
    Settle(settle::SendId),
    Settled(UnitIndex),
    /// Beside all phases: to a unit that is in no chain, in the run that was heard, which may keep what lies below the position.
    Rejoin(ServerName, Incarnation, Position),
    /// A step of copying.
    Copy(StepId),
}

/// The runs that the current epoch was opened with.
pub(crate) type Runs = BTreeMap<ServerName, Incarnation>;
