//! Compares what the objects hold with the reference.

use std::collections::{BTreeMap, BTreeSet};

use crate::reference::Reference;

/// What the objects hold, read through them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The counter `total`.
    pub(crate) total: i64,
    /// The counters `section/NAME`.
    pub(crate) sections: BTreeMap<String, i64>,
    /// The map `packages`: version by name and architecture.
    pub(crate) packages: BTreeMap<(String, String), String>,
    /// The map `edges`, from a package to the names it depends on.
    pub(crate) edges: BTreeSet<(String, String)>,
    /// The same the other way: from a name to the packages that need it.
    pub(crate) needed_by: BTreeSet<(String, String)>,
    /// Items left in the queue.
    pub(crate) queued: u64,
}

/// How the objects differ from the reference. Nothing of it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    /// Stanzas, packages and edges that should be there and are not.
    pub(crate) lost: u64,
    /// Those that are there and should not be, or more often.
    pub(crate) duplicated: u64,
    /// Sentences.
    pub(crate) notes: Vec<String>,
}

impl Differences {
    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.notes.is_empty()
    }

    fn count(&mut self, what: &str, expected: u64, found: i64) {
        let found = i128::from(found);
        let expected = i128::from(expected);
        let missing = u64::try_from(expected - found).unwrap_or(0);
        let surplus = u64::try_from(found - expected).unwrap_or(0);
        self.lost += missing;
        self.duplicated += surplus;
        if missing + surplus > 0 {
            self.notes
                .push(format!("{what}: {found}, should be {expected}"));
        }
    }

    fn set<T: Ord + std::fmt::Debug>(
        &mut self,
        what: &str,
        expected: &BTreeSet<T>,
        found: &BTreeSet<T>,
    ) {
        for missing in expected.difference(found) {
            self.lost += 1;
            self.notes.push(format!("{what}: {missing:?} is missing"));
        }
        for surplus in found.difference(expected) {
            self.duplicated += 1;
            self.notes
                .push(format!("{what}: {surplus:?} should not be there"));
        }
    }
}

/// Compares everything. Each stanza counts once in its section and once in the total, so a stanza lost or done twice
/// shows in both; it is counted by its section.
pub(crate) fn compare(reference: &Reference, found: &Found) -> Differences {
    let mut differences = Differences::default();
    let names: BTreeSet<_> = reference
        .sections
        .keys()
        .chain(found.sections.keys())
        .collect();
    for name in names {
        let expected = reference.sections.get(name).copied().unwrap_or(0);
        let counted = found.sections.get(name).copied().unwrap_or(0);
        differences.count(&format!("section/{name}"), expected, counted);
    }
    if found.total != i64::try_from(reference.stanzas).unwrap_or(i64::MAX) {
        let note = format!("total: {}, should be {}", found.total, reference.stanzas);
        differences.notes.push(note);
    }
    if found.queued > 0 {
        differences
            .notes
            .push(format!("{} stanzas are left in the queue", found.queued));
    }
    let keys = reference.packages.keys().cloned().collect();
    differences.set("packages", &keys, &found.packages.keys().cloned().collect());
    for (key, version) in &found.packages {
        if reference
            .packages
            .get(key)
            .is_some_and(|versions| !versions.contains(version))
        {
            differences.notes.push(format!(
                "packages: {key:?} has version {version:?}, which no stanza has"
            ));
        }
    }
    differences.set("edges", &reference.edges, &found.edges);
    let back = reference
        .edges
        .iter()
        .map(|(from, to)| (to.clone(), from.clone()))
        .collect();
    differences.set("edges back", &back, &found.needed_by);
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> (Reference, Found) {
        let input = "Package: a\nSection: net\nVersion: 1\nDepends: b\n\nPackage: b\nSection: net\nVersion: 2\n";
        let reference = crate::reference::count(input.as_bytes()).expect("memory can be read");
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let found = Found {
            total: 2,
            sections: [("net".to_owned(), 2)].into(),
            packages: [
                (pair("a", ""), "1".to_owned()),
                (pair("b", ""), "2".to_owned()),
            ]
            .into(),
            edges: [pair("a", "b")].into(),
            needed_by: [pair("b", "a")].into(),
            queued: 0,
        };
        (reference, found)
    }

    #[test]
    fn the_same_is_no_difference() {
        let (reference, found) = both();
        assert!(compare(&reference, &found).is_empty());
    }

    #[test]
    fn every_object_is_looked_at() {
        type Spoil = fn(&mut Found);
        let spoil: [(Spoil, u64, u64); 8] = [
            (|found| found.total = 3, 0, 0),
            (|found| found.queued = 1, 0, 0),
            (
                |found| *found.sections.get_mut("net").expect("there") = 1,
                1,
                0,
            ),
            (
                |found| {
                    found.sections.insert("x".into(), 2);
                },
                0,
                2,
            ),
            (|found| drop(found.packages.pop_first()), 1, 0),
            (
                |found| {
                    drop(
                        found
                            .packages
                            .insert(("a".into(), String::new()), "9".into()),
                    )
                },
                0,
                0,
            ),
            (|found| drop(found.edges.pop_first()), 1, 0),
            (
                |found| {
                    found.needed_by.insert(("x".into(), "y".into()));
                },
                0,
                1,
            ),
        ];
        for (at, (spoil, lost, duplicated)) in spoil.into_iter().enumerate() {
            let (reference, mut found) = both();
            spoil(&mut found);
            let differences = compare(&reference, &found);
            assert_eq!(
                (differences.lost, differences.duplicated),
                (lost, duplicated),
                "{at}"
            );
            assert!(!differences.is_empty(), "{at}");
        }
    }
}
