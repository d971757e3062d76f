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
