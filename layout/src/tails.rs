//! Where each stream ends, merged from what all sealed units say (rules 16, 22, 24).

use std::collections::BTreeMap;

use milonga_protocol::messages::StreamTail;
use milonga_protocol::{BackPointers, ListEnd, Position, StreamId};

/// Stream tails of all units, merged as their pages come.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    streams: BTreeMap<StreamId, Merged>,
}

#[derive(Debug)]
struct Merged {
    list: BackPointers,
    /// How many of the units that have trimmed something listed the stream.
    by_trimmed: u16,
}

impl Tails {
    /// Adds a page of a unit; `trimmed`: it has trimmed something.
    pub(crate) fn add(&mut self, page: &[StreamTail], trimmed: bool) {
        for tail in page {
            let merged = self.streams.entry(tail.stream).or_insert_with(|| Merged {
                list: BackPointers::EMPTY,
                by_trimmed: 0,
            });
            merged.list = merge(&merged.list, &tail.last);
            merged.by_trimmed += u16::from(trimmed);
        }
    }

    /// The tails for the next sequencer, ascending by stream. `trimmers`: how many units have trimmed something;
    /// `mark`: the highest of their trim marks. A stream that is left out has nothing above the mark.
    pub(crate) fn finish(self, trimmers: u16, mark: Position) -> Vec<StreamTail> {
        let tails = self.streams.into_iter().filter_map(|(stream, merged)| {
            // A unit that does not list a stream had nothing of it, or has trimmed it.
            let complete = merged.by_trimmed == trimmers;
            let last = above(&merged.list, mark, complete);
            let absent = last.last().is_none() && last.end() == ListEnd::BelowTrim;
            (!absent).then_some(StreamTail { stream, last })
        });
        tails.collect()
    }
}

/// The newest positions of both lists. Below the last pointer of a list that ends `Unknown` there may be others,
/// so nothing below it is named.
fn merge(a: &BackPointers, b: &BackPointers) -> BackPointers {
    let unknown = |list: &BackPointers| match (list.end(), list.positions().last()) {
        (ListEnd::Unknown, Some(last)) => *last,
        (ListEnd::Unknown, None) => Position::MAX,
        (ListEnd::Beginning | ListEnd::BelowTrim, _) => Position::ZERO,
    };
    let floor = unknown(a).max(unknown(b));
    let mut all: Vec<_> = a.positions().iter().chain(b.positions()).copied().collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.dedup();
    let ends = [a.end(), b.end()];
    let end = [ListEnd::Unknown, ListEnd::BelowTrim]
        .into_iter()
        .find(|end| ends.contains(end))
        .unwrap_or(ListEnd::Beginning);
    BackPointers::new(all.into_iter().take_while(|p| *p >= floor), end)
}

/// `list` without what lies below the trim mark; what lies beyond it then lies below the mark, too.
fn above(list: &BackPointers, mark: Position, complete: bool) -> BackPointers {
    let kept = list.positions().iter().copied();
    let kept = kept.take_while(|p| *p >= mark);
    let cut = list.positions().last().is_some_and(|p| *p < mark);
    let end = match list.end() {
        _ if cut => ListEnd::BelowTrim,
        ListEnd::Beginning if !complete => ListEnd::BelowTrim,
        end => end,
    };
    BackPointers::new(kept, end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Entries of one stream on a unit, and how it lists them when it trimmed below `mark`.
    fn list(entries: &BTreeSet<u64>, mark: u64) -> Option<BackPointers> {
        let kept: Vec<u64> = entries
            .iter()
            .copied()
            .filter(|p| *p >= mark)
            .rev()
            .collect();
        let end = if kept.len() < entries.len() {
            ListEnd::BelowTrim
        } else {
            ListEnd::Beginning
        };
        (!kept.is_empty()).then(|| BackPointers::new(kept.into_iter().map(Position), end))
    }

    proptest! {
        #[test]
        fn the_merged_list_is_true(
            units in prop::collection::vec((prop::collection::btree_set(0_u64..30, 0..9), 0_u64..12), 1..5),
            behind in any::<bool>(),
        ) {
            let mut tails = Tails::default();
            // Often all have the same mark; a trim under way has reached some.
            let first = units[0].1;
            let marks: Vec<u64> = units.iter().map(|u| if behind { u.1 } else { first }).collect();
            for ((entries, _), mark) in units.iter().zip(&marks) {
                if let Some(last) = list(entries, *mark) {
                    tails.add(&[StreamTail { stream: StreamId(1), last }], *mark > 0);
                }
            }
            let mark = *marks.iter().max().unwrap();
            let trimmers = u16::try_from(marks.iter().filter(|m| **m > 0).count()).unwrap();
            let merged = tails.finish(trimmers, Position(mark));
            let all: BTreeSet<u64> = units.iter().flat_map(|u| u.0.iter().copied()).collect();
            let above: Vec<_> = all.iter().rev().copied().filter(|p| *p >= mark).map(Position).collect();
            let below = all.iter().any(|p| *p < mark);
            match merged.as_slice() {
                [] => prop_assert!(above.is_empty() && (mark > 0 || !below)),
                [tail] => {
                    prop_assert_eq!(tail.last.positions(), &above[..above.len().min(4)]);
                    match tail.last.end() {
                        ListEnd::Unknown => prop_assert_eq!(tail.last.positions().len(), 4),
                        ListEnd::BelowTrim => prop_assert!(above.len() <= 4 && mark > 0),
                        ListEnd::Beginning => prop_assert!(above.len() <= 4 && !below),
                    }
                }
                _ => prop_assert!(false, "one stream"),
            }
        }

        #[test]
        fn merging_is_in_any_order(
            mut lists in prop::collection::vec((prop::collection::btree_set(0_u64..30, 0..7), 0_usize..3), 1..6),
            seed: u64,
        ) {
            let merged = |lists: &[(BTreeSet<u64>, usize)]| {
                let ends = [ListEnd::Beginning, ListEnd::BelowTrim, ListEnd::Unknown];
                let lists = lists.iter().map(|(set, end)| {
                    BackPointers::new(set.iter().rev().copied().map(Position), ends[*end])
                });
                lists.fold(BackPointers::EMPTY, |a, b| merge(&a, &b))
            };
            let before = merged(&lists);
            let len = lists.len();
            lists.rotate_left(usize::try_from(seed % 7).unwrap() % len);
            lists.reverse();
            prop_assert_eq!(merged(&lists), before);
        }
    }

    #[test]
    fn a_short_unknown_list_hides_what_is_older() {
        let a = BackPointers::new([Position(10)], ListEnd::Unknown);
        let b = BackPointers::new([20, 5].map(Position), ListEnd::Beginning);
        let want = BackPointers::new([20, 10].map(Position), ListEnd::Unknown);
        assert_eq!(merge(&a, &b), want);
        let empty = BackPointers::none(ListEnd::Unknown);
        assert_eq!(merge(&empty, &b), empty);
    }
}
