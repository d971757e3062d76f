//! The cells that threads share: std's and tokio's.
//!
//! In a model they are loom's (`--cfg milonga_loom`) or shuttle's (`--cfg milonga_shuttle`), so that models run the
//! product's code, never a copy of it. `Notify` is tokio's own there too, each call of it one step that the model
//! sees; `Arc` is always std's. `just loom` runs the models.
//!
//! Every model is shown to find something: its code is run again with a [`Weakness`].

#[cfg(any(milonga_loom, milonga_shuttle))]
mod modelled;

#[cfg(not(any(milonga_loom, milonga_shuttle)))]
pub use std::sync::{
    Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic, mpsc,
};
#[cfg(not(any(milonga_loom, milonga_shuttle)))]
pub use std::thread;
#[cfg(not(any(milonga_loom, milonga_shuttle)))]
pub use tokio::sync::Notify;

#[cfg(any(milonga_loom, milonga_shuttle))]
pub use modelled::*;

/// What models take away from the code they run, to show that they would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Weakness {
    /// A `Notified` counts from its first poll, not from its making or `enable`: as if the condition were not looked
    /// at again behind it.
    LateWaiters,
    /// `notify_one` leaves no permit for who comes next.
    NoPermits,
    /// Who finds a `OnceLock` set need not see what came before.
    RelaxedOnce,
    /// Who asks for a tail check may join one that was sent already.
    JoinSentChecks,
    /// A slot's waker is left in another step than the look at its outcome.
    SplitPoll,
    /// A share of a host's load is added in two steps.
    SplitCount,
    /// The writer of a stream is woken before what it shall write is there.
    WakeBeforePush,
    /// Room on a connection is told by who ended last, not by who went below the bound.
    RoomByLast,
    /// A frozen world is kept without a look at whether the world went on.
    KeepFrozen,
    /// The lane of a disk operation follows from its kind, whatever is under way on its file.
    LaneByKind,
    /// Disk threads are told to stop by the flag alone.
    StopByFlag,
    /// A write completes when its thread takes it.
    EarlyCompletion,
    /// A call that has ended is forgotten by its slot alone, whoever has that by now.
    ForgetBySlot,
}

/// Whether the code is to be run with that weakness: never, but in a model that asks for it.
#[cfg(not(any(milonga_loom, milonga_shuttle)))]
#[must_use]
#[inline(always)]
pub const fn weakened(_by: Weakness) -> bool {
    false
}
