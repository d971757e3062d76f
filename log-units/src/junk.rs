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
        self.ranges
            .range(position.saturating_sub(self.longest)..=position)
            .rev()
            .any(|(from, (end, stride))| {
                position < *end && (position - from).is_multiple_of(*stride)
            })
    }

    /// Steps from `at` by `stride` while positions are junk, up to `end`.
    pub(crate) fn run(&self, mut at: u64, stride: u64, end: u64) -> u64 {
        while at < end && self.contains(at) {
            at = at.saturating_add(stride);
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
            set.cut(cut);
            for p in 0..110 {
                prop_assert_eq!(set.contains(p), p < cut && model.contains(&p), "position {} after the cut", p);
            }
        }
    }
}
