//! Compares what is there with what was acknowledged.

use milonga_protocol::Position;

use super::ledger::{Book, Fate, Id, Kind, apart};

/// Texts that are kept.
const MOST: usize = 20;

/// What the final reading found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Acknowledged, and not there.
    pub(super) lost: u64,
    /// There more than once.
    pub(super) doubled: u64,
    /// Everything else that must not be.
    pub(super) wrong: u64,
    /// The first of all these.
    pub(super) texts: Vec<String>,
}

impl Verdict {
    /// Whether nothing was found.
    pub(super) const fn is_good(&self) -> bool {
        self.lost + self.doubled + self.wrong == 0
    }

    fn say(&mut self, text: String) {
        if self.texts.len() < MOST {
            self.texts.push(text);
        }
    }

    /// Something that is neither lost nor doubled.
    pub(super) fn wrong(&mut self, text: String) {
        self.wrong += 1;
        self.say(text);
    }

    /// The same, unless `is_right`.
    pub(super) fn check(&mut self, is_right: bool, text: impl FnOnce() -> String) {
        if !is_right {
            self.wrong(text());
        }
    }
}

/// One place where the updates of a kind can be seen, each once.
#[derive(Debug)]
pub(super) struct Tally<'a> {
    place: &'static str,
    kind: Kind,
    fates: &'a [Vec<Fate>],
    seen: Vec<Vec<bool>>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(place: &'static str, kind: Kind, book: &'a Book) -> Self {
        let fates = &book.fates[kind as usize];
        let seen = fates.iter().map(|lane| vec![false; lane.len()]);
        Self {
            place,
            kind,
            fates,
            seen: seen.collect(),
        }
    }

    fn name(&self, id: Id) -> String {
        let (lane, number) = apart(id);
        let (kind, place) = (self.kind.name(), self.place);
        format!("number {number} of lane {lane} of the {kind}, in {place}")
    }

    /// An update is there, perhaps at a known position.
    pub(super) fn see(&mut self, id: Id, at: Option<Position>, verdict: &mut Verdict) {
        let (lane, number) = apart(id);
        let fate = self.fates.get(lane).and_then(|lane| lane.get(number));
        let Some(fate) = fate.copied() else {
            return verdict.wrong(format!("{}: nobody did it", self.name(id)));
        };
        if std::mem::replace(&mut self.seen[lane][number], true) {
            verdict.doubled += 1;
            verdict.say(format!("{}: again, at {at:?}", self.name(id)));
        }
        match (fate, at) {
            (Fate::Failed, at) => {
                let text = format!("{}: at {at:?}, though it failed", self.name(id));
                verdict.wrong(text);
            }
            (Fate::Acked(told), Some(at)) if told != at => {
                let text = format!("{}: at {at}, but {told} was told", self.name(id));
                verdict.wrong(text);
            }
            _ => {}
        }
    }

    /// Everything was seen that is there.
    pub(super) fn end(self, verdict: &mut Verdict) {
        for (lane, fates) in self.fates.iter().enumerate() {
            for (number, fate) in fates.iter().enumerate() {
                if let Fate::Acked(position) = fate
                    && !self.seen[lane][number]
                {
                    verdict.lost += 1;
                    let id = super::ledger::id(lane, number);
                    verdict.say(format!("{}: lost from {position}", self.name(id)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Ledger, id};
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_never_happened_is_found() {
        let ledger = Ledger::new();
        for fate in [
            Fate::Acked(Position(3)),
            Fate::Acked(Position(5)),
            Fate::Failed,
            Fate::Unknown,
            Fate::Acked(Position(9)),
            Fate::Unknown,
        ] {
            ledger.note(Kind::Raw, 1, fate);
        }
        let book = ledger.book();
        let mut verdict = Verdict::default();
        let mut tally = Tally::new("the log", Kind::Raw, &book);
        tally.see(id(1, 0), Some(Position(3)), &mut verdict);
        tally.see(id(1, 3), Some(Position(4)), &mut verdict);
        tally.see(id(1, 4), None, &mut verdict);
        assert!(verdict.is_good(), "{verdict:?}");
        tally.see(id(1, 0), Some(Position(8)), &mut verdict);
        assert_eq!((verdict.doubled, verdict.wrong), (1, 1), "{verdict:?}");
        tally.see(id(1, 2), None, &mut verdict);
        tally.see(id(1, 6), None, &mut verdict);
        tally.see(id(7, 0), None, &mut verdict);
        assert_eq!(verdict.wrong, 4, "{verdict:?}");
        tally.end(&mut verdict);
        assert_eq!(verdict.lost, 1, "{verdict:?}");
        assert!(
            verdict
                .texts
                .iter()
                .any(|text| text.contains("lost from 5"))
        );
    }
}
