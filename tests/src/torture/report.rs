//! What is said in the end.

use std::time::Duration;

use super::ledger::{Book, Fate, Kind};
use super::reading::Read;
use super::round::{Round, millis};
use super::tally::Verdict;

/// Everything that is said in the end.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) rounds: Vec<Round>,
    /// What failed beside rounds.
    pub(super) failures: Vec<String>,
    pub(super) whole_after: Option<Duration>,
    pub(super) acked: usize,
    pub(super) failed_updates: usize,
    pub(super) unknown: usize,
    pub(super) read: Option<Read>,
}

impl Report {
    /// Of a run that has not begun.
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            seed,
            rounds: Vec::new(),
            failures: Vec::new(),
            whole_after: None,
            acked: 0,
            failed_updates: 0,
            unknown: 0,
            read: None,
        }
    }

    /// Something failed beside the rounds.
    pub(super) fn fail(&mut self, why: String) {
        self.failures.push(why);
    }

    /// Rounds that count.
    pub(super) fn passed(&self) -> usize {
        let good = self.rounds.iter().filter(|round| round.failure.is_none());
        good.count()
    }

    /// Rounds that do not, and what failed beside them.
    pub(super) fn failed(&self) -> usize {
        self.rounds.len() - self.passed() + self.failures.len()
    }

    /// All of it, for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let rounds: Vec<_> = self.rounds.iter().map(Round::json).collect();
        let read = self.read.as_ref();
        serde_json::json!({
            "seed": self.seed,
            "rounds": rounds,
            "passed": self.passed(),
            "failed": self.failed(),
            "failures": self.failures,
            "whole_after_ms": self.whole_after.map(millis),
            "acked": self.acked,
            "failed_updates": self.failed_updates,
            "unknown": self.unknown,
            "lost": read.map(|read| read.verdict.lost),
            "doubled": read.map(|read| read.verdict.doubled),
            "wrong": read.map(|read| read.verdict.wrong),
            "positions": read.map(|read| read.positions),
            "compared": read.map(|read| read.compared),
            "witnessed": read.map(|read| read.calls),
        })
    }

    /// Its line, before the last one.
    fn line(&self, read: &Read) -> String {
        let Verdict {
            lost,
            doubled,
            wrong,
            ..
        } = read.verdict;
        format!(
            "whole after {} ms; {} acked, {} failed, {} unknown; {lost} lost, {doubled} doubled, {wrong} wrong; \
             {} positions, {} answers of single replicas compared, {} calls witnessed",
            self.whole_after.map_or(0, millis),
            self.acked,
            self.failed_updates,
            self.unknown,
            read.positions,
            read.compared,
            read.calls,
        )
    }

    /// Notes what became of all updates.
    pub(super) fn count(&mut self, book: &Book) {
        let count = |such: fn(&Fate) -> bool| {
            let kinds = Kind::ALL.map(|kind| book.count(kind, such));
            kinds.iter().sum()
        };
        self.acked = count(|fate| matches!(fate, Fate::Acked(_)));
        self.failed_updates = count(|fate| *fate == Fate::Failed);
        self.unknown = count(|fate| *fate == Fate::Unknown);
        self.failures.extend(book.complaints.iter().cloned());
    }

    /// What the final reading found; gives its line.
    pub(super) fn judge(&mut self, read: Read) -> String {
        let line = self.line(&read);
        if !read.verdict.is_good() {
            let verdict = &read.verdict;
            let (lost, doubled, wrong) = (verdict.lost, verdict.doubled, verdict.wrong);
            let texts = verdict.texts.join("\n  ");
            self.fail(format!(
                "{lost} lost, {doubled} doubled, {wrong} wrong:\n  {texts}"
            ));
        }
        self.read = Some(read);
        line
    }
}
