//! Planted bugs, to prove that the tests would find real ones.
//!
//! Compiled in only under the feature `plants`, which only `milonga-tests` enables. Without it
//! [`active`] is `false` at compile time and every plant vanishes.

/// Declares the plants and their list.
macro_rules! plants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Plant {
            $($(#[$doc])* $name,)*
        }

        impl Plant {
            /// All of them, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

plants! {
    /// A writer takes `Occupied` for success (rule 7).
    OccupiedIsSuccess,
    /// A unit answers `Unwritten` for what it has lost (rule 5; F15, F16).
    LostIsUnwritten,
    /// A unit acknowledges before the sync (clause 2; F17).
    AckBeforeSync,
    /// A reader delivers past a hole (clause 6; F9).
    DeliverPastHole,
    /// A replica's versions are off by one record (rule 30).
    VersionOffByOne,
    /// A unit answers a seal while writes are on their way to its disk (rule 3; F1).
    SealDoesNotDrain,
    /// A unit that was sealed goes on confirming its epoch (rules 4 and 21).
    SealedStillConfirms,
    /// A restarted unit enters the epoch again that it had persisted (rule 2).
    ReopensAfterRestart,
    /// A unit confirms an `open` without having persisted the epoch (rule 2).
    EpochNotPersisted,
    /// A new epoch starts where the first unit's values end, not above all units' (rule 16; F2, F4).
    StartFromOneUnit,
    /// A page of stream tails is not taken into the bootstrap (rule 16; F3).
    StreamTailsMissed,
    /// The leader begins to settle at the highest of the marks, not at the lowest (rule 9).
    SettlesFromHighestMark,
    /// A layout is handed out before it is committed (rule 15; F14).
    HandedOutBeforeCommit,
    /// The sequencer acknowledges a seal and goes on granting (rule 20; F1).
    SequencerServesSealed,
    /// A hello that is older than the epoch which its unit entered ends that epoch (design §4).
    OldHelloCounts,
    /// The next sequencer is bootstrapped before the lease of the one before has run out (rule 20).
    NextSequencerDoesNotWait,
    /// A lease runs from the moment on when the answer came, not from when it was asked for (rule 20).
    LeaseRunsFromReply,
    /// The layout's leader renews a lease without asking a majority whether it still leads (rule 20).
    RenewsWithoutQuorum,
    /// A bootstrap that is repeated begins anew (rule 17; F6).
    RepeatedBootstrapStartsOver,
    /// The sequencer forgets now and then that it granted a position to a stream (rule 24).
    GrantForgotten,
    /// A unit's index leaves out the last stream of an entry of several, now and then (design §3, streams).
    StreamIndexSkips,
    /// A unit's list of a stream claims what became durable while its disk was read (rule 24).
    ListClaimsNews,
    /// A chain that does not answer a tail check is taken for one that holds nothing (decision 0007).
    SilentChainHoldsNothing,
    /// A target is not lowered when its epoch ends (rule 23).
    TargetNotLowered,
    /// A target is lowered to one position less than it may be (rule 23, decision 0002; F21).
    TargetLoweredTooFar,
    /// A writer whose write was not answered takes a new token without asking what became of it (rule 13).
    RetriesWithoutAsking,
    /// An append whose time is up is reported failed, though it may have been written (rule 14).
    FailedThoughWritten,
    /// The last position below an epoch's start counts as void (rule 13; F14).
    VoidOffByOne,
    /// Some writers begin at the tail of the chain (rules 6 and 7).
    TailFirst,
    /// An append returns now and then before the last replicas have it (clause 2, rule 6; F2).
    LastReplicasSkipped,
    /// A chain's settled mark is taken from any of its replicas (rule 6).
    SettledByAnyReplica,
    /// What is not known to be settled is read at the head (rule 6; F2).
    ReadsAtHead,
    /// What the chains have of a stream is not brought into one order, now and then (clause 6; Tango §5).
    ChainsUnmerged,
    /// What the tail does not have below an epoch's start is taken for junk (rule 9).
    ClosedIsJunk,
    /// Below an epoch's start the head alone says what a position holds (rules 9 and 11).
    HeadAloneJudges,
    /// A fill puts junk over what is accepted and not yet durable, now and then (rules 7 and 8; F8).
    FillOverPending,
    /// A failed write or sync is taken for done (F26).
    DiskErrorIgnored,
    /// A read that failed is damage, whether or not the disk still works (rule 11).
    ReadErrorIsLost,
    /// A restarted unit cuts the last batch though it is whole, now and then (rule 27; F25).
    CutsWholeBatch,
    /// A trim is reported and forgotten, now and then (rule 22; F10).
    TrimForgotten,
    /// A trim takes a segment that reaches a little above the mark (F10).
    TrimsTooMuch,
    /// A unit that comes back keeps what it holds above its settled mark (rule 10).
    RejoinsWithItsPast,
    /// Nobody is taken out for being slow (design §4; F31).
    SlownessIgnored,
    /// A unit is listed before it has everything (rule 10; F3).
    ListedBeforeCopied,
    /// A copy ends one position too early (F21).
    CopyEndsTooEarly,
    /// A copy leaves out what was filled (design §4).
    JunkNotCopied,
    /// A tail that the newest epoch goes on without is believed that nothing was written (rules 16 and 21).
    UnwrittenByTailAlone,
    /// What one replica has lost is read from another and not given back (rule 11; F16).
    NotRepaired,
    /// A hole's timer begins anew whenever somebody looks (rule 26; F20).
    HoleTimerRestarts,
    /// Versions are forgotten before they leave the conflict window (rule 33).
    VersionsForgottenEarly,
    /// Whoever read a whole object aborts for changes of the whole only (rules 30 and 31).
    WholeReadMissesKeys,
    /// Whoever read a key commits over a change of the whole object (rule 31).
    WholeChangeMissed,
    /// What an aborted transaction wanted to change counts as changed (rule 30).
    AbortedCounts,
    /// An own append that returned counts as played (design §1: applied is a prefix, never a maximum).
    AppliedIsMaximum,
    /// A sync joins a tail check that was sent before it began (clause 3).
    JoinsSentCheck,
    /// Updates of one handle change places now and then.
    LaneReordered,
    /// A transactional pop does not read the key of its item (rules 31 and 34).
    ItemKeyNotRead,
    /// What a transaction reads of an object that it wrote before is not protected (rule 34).
    OwnWritesHideReads,
    /// A transaction commits against the newest state instead of its own snapshot (rule 30).
    SnapshotTooNew,
    /// An object that is opened later takes what was aborted, too (rule 32).
    LoadedWithoutVerdicts,
}

#[cfg(feature = "plants")]
mod on {
    use std::cell::Cell;

    use super::Plant;

    thread_local! {
        static ACTIVE: Cell<u64> = const { Cell::new(0) };
        static CALLS: Cell<u64> = const { Cell::new(0) };
    }

    const fn bit(plant: Plant) -> u64 {
        1 << plant as u64
    }

    /// Whether `plant` is switched on in this thread.
    #[must_use]
    pub fn active(plant: Plant) -> bool {
        ACTIVE.get() & bit(plant) != 0
    }

    /// Begins the pattern of [`acts`] anew in this thread: each world does.
    pub fn begin() {
        CALLS.set(0);
    }

    /// Whether `plant` is switched on and acts this time: once in about `one_in` calls, in a fixed pattern.
    #[must_use]
    pub fn acts(plant: Plant, one_in: u64) -> bool {
        if !active(plant) {
            return false;
        }
        let call = CALLS.get() + 1;
        CALLS.set(call);
        // The high bits of a multiplicative hash are well mixed.
        let mixed = call.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        mixed.is_multiple_of(one_in)
    }

    /// Switches `plant` on or off for this thread, and no other: a world is one thread.
    pub fn set(plant: Plant, on: bool) {
        let others = ACTIVE.get() & !bit(plant);
        ACTIVE.set(if on { others | bit(plant) } else { others });
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn each_plant_is_switched_alone() {
            for plant in Plant::ALL {
                assert!(!acts(*plant, 1));
                set(*plant, true);
                let acted = (0..10_000).filter(|_| acts(*plant, 10)).count();
                assert!((500..2_000).contains(&acted), "{acted}");
                let on: Vec<_> = Plant::ALL.iter().filter(|p| active(**p)).collect();
                assert_eq!(on, [plant]);
                set(*plant, false);
                assert!(!active(*plant));
            }
        }
    }
}

#[cfg(feature = "plants")]
pub use on::{active, acts, begin, set};

/// Whether `plant` acts this time: never, in this build.
#[cfg(not(feature = "plants"))]
#[must_use]
#[inline(always)]
pub const fn acts(_plant: Plant, _one_in: u64) -> bool {
    false
}

/// Whether `plant` is switched on: never, in this build.
#[cfg(not(feature = "plants"))]
#[must_use]
#[inline(always)]
pub const fn active(_plant: Plant) -> bool {
    false
}
