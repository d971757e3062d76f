//! Planted bugs, to prove that the tests would find real ones.
//!
//! Compiled in only under the feature `plants`, which only `milonga-tests` enables. Without it
//! [`active`] is `false` at compile time and every plant vanishes.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plant {
    /// A writer takes `Occupied` for success.
    OccupiedIsSuccess,
    /// A unit answers `Unwritten` for what it has lost.
    LostIsUnwritten,
    /// A unit acknowledges before the sync.
    AckBeforeSync,
    /// A reader delivers past a hole.
    DeliverPastHole,
    /// A replica's versions are off by one record.
    VersionOffByOne,
}

#[cfg(feature = "plants")]
mod on {
    use std::sync::atomic::{AtomicU32, Ordering};

    static ACTIVE: AtomicU32 = AtomicU32::new(0);

    /// Whether `plant` is switched on.
    #[must_use]
    pub fn active(plant: super::Plant) -> bool {
        ACTIVE.load(Ordering::Relaxed) & (1 << plant as u32) != 0
    }

    /// Switches `plant` on or off for the whole process: run such tests in a process of their own.
    pub fn set(plant: super::Plant, on: bool) {
        if on {
            ACTIVE.fetch_or(1 << plant as u32, Ordering::Relaxed);
        } else {
            ACTIVE.fetch_and(!(1 << plant as u32), Ordering::Relaxed);
        }
    }
}

#[cfg(feature = "plants")]
pub use on::{active, set};

/// Whether `plant` is switched on: never, in this build.
#[cfg(not(feature = "plants"))]
#[must_use]
#[inline(always)]
pub const fn active(_plant: Plant) -> bool {
    false
}
