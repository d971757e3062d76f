//! Junk of one segment, as ranges.

use std::collections::BTreeMap;

use crate::format::Junk;

/// Ranges of junk. They may overlap with different strides, though no valid layout makes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct JunkSet {
    /// By first position: end (exclusive, right behind the last) and stride.
    ranges: BTreeMap<u64, (u64, u64)>,
    /// Length of the longest range: how far back a lookup has to go.
    longest: u64,
    /// First position above all.
    end: u64,
}

impl JunkSet {
    /// Adds a range; one that continues the range before it is joined to it.
    pub(crate) fn insert(&mut self, junk: Junk) {
        if junk.stride == 0 || junk.from >= junk.end {
            return;
        }
        // The end is normalised to lie right behind the last position.
        let last = junk.end - 1 - (junk.end - 1 - junk.from) % junk.stride;
        let end = last.saturating_add(1);
        let from = self.joins(junk).unwrap_or(junk.from);
        let slot = self.ranges.entry(from).or_insert((end, junk.stride));
        if end > slot.0 {
            *slot = (end, junk.stride);
        }
        self.longest = self.longest.max(slot.0 - from);
        self.end = self.end.max(end);
    }

    /// Start of the range that `junk` continues.
    fn joins(&self, junk: Junk) -> Option<u64> {
        let (from, (end, stride)) = self.ranges.range(..junk.from).next_back()?;
        let next = (end - 1).checked_add(*stride)?;
        let single = end - from == 1;
        let follows =
            *stride == junk.stride || (single && from.checked_add(junk.stride) == Some(junk.from));
        let next = if single {
            from.checked_add(junk.stride)?
        } else {
            next
        };
        (follows && next == junk.from).then_some(*from)
    }

    pub(crate) fn contains(&self, position: u64) -> bool {
        self.covering(position).is_some()
    }

    /// End and stride of a range that `position` is in.
    fn covering(&self, position: u64) -> Option<(u64, u64)> {
        self.ranges
            .range(position.saturating_sub(self.longest)..=position)
            .rev()
            .find(|(from, (end, stride))| {
                position < *end && (position - *from).is_multiple_of(*stride)
            })
            .map(|(_, range)| *range)
    }

    /// Steps from `at` by `stride` while positions are junk, up to `end`. Whole ranges are one step.
    pub(crate) fn run(&self, mut at: u64, stride: u64, end: u64) -> u64 {
        while at < end {
            let Some((until, of_range)) = self.covering(at) else {
                break;
            };
            let steps = if stride.is_multiple_of(of_range) {
                (until.min(end) - at).div_ceil(stride)
            } else {
                1
            };
            at = at.saturating_add(steps.saturating_mul(stride));
        }
        at
    }

    /// First position above all.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Drops everything at or above `from`.
    pub(crate) fn cut(&mut self, from: u64) {
        self.ranges.split_off(&from);
        let kept = self.list();
        *self = Self::default();
        for mut junk in kept {
            junk.end = junk.end.min(from);
            self.insert(junk);
        }
    }

    /// All ranges, ascending.
    pub(crate) fn list(&self) -> Vec<Junk> {
        self.ranges
            .iter()
            .map(|(from, (end, stride))| Junk {
                from: *from,
                end: *end,
                stride: *stride,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_of_any_length_is_passed_at_once() {
        let mut set = JunkSet::default();
        let (from, end, stride) = (4, u64::MAX - 8, 2);
        set.insert(Junk { from, end, stride });
        assert_eq!(set.run(4, 4, 1 << 60), 1 << 60);
        assert!(set.run(4, 2, u64::MAX) >= end);
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            ranges in prop::collection::vec((0_u64..60, 1_u64..40, 1_u64..5), 0..20), cut in 0_u64..100,
        ) {
            let mut set = JunkSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (from, len, stride) in ranges {
                let junk = Junk { from, end: from + len, stride };
                // Only what a unit does: ranges of one residue, one behind the other, or apart.
                if model.range(from..from + len).next().is_some() {
                    continue;
                }
                set.insert(junk);
                model.extend((from..from + len).step_by(usize::try_from(stride).unwrap()));
            }
            for p in 0..110 {
                prop_assert_eq!(set.contains(p), model.contains(&p), "position {}", p);
            }
            for (at, stride, end) in [(cut, 1, 110), (cut, 2, 110), (cut / 2, 4, 100), (0, 3, cut)] {
                let mut stepped = at;
                while stepped < end && model.contains(&stepped) {
                    stepped += stride;
                }
                prop_assert_eq!(set.run(at, stride, end), stepped, "from {} by {} to {}", at, stride, end);
            }
            set.cut(cut);
            for p in 0..110 {
                prop_assert_eq!(set.contains(p), p < cut && model.contains(&p), "position {} after the cut", p);
            }
        }
    }
}
