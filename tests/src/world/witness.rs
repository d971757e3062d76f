//! The witness: the log *is* the order, so replaying it through plain reference objects says what every operation
//! should have answered, and which transactions hold.
//!
//! ```text
//!   History (calls, the log as it was read at the end)
//!      |                       entry by entry
//!      +--> Order  floors, ceilings      |
//!      |                                 v
//!      +--> Questions <--- states --- Replay (verdicts by brute force, reference objects)
//!      |                                 |
//!      '--> updates, transactions <------'  what became of every record
//! ```
//!
//! It uses nothing of the product but the log contract's types: decoding, objects and the rule of commitment are
//! written again, as plainly as possible. O(n log n) in calls and entries, if snapshots are young.

mod decode;
mod model;
mod order;
mod questions;
mod replay;
mod state;
mod transactions;
mod updates;
mod verdict;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::world::history::{Book, History};
use crate::world::workload::{Invariant, Violation, WorldView};

pub use decode::{Record, Touched, Update, decode, encode};
pub use model::{At, Model};
pub use replay::Reference;
pub use state::World;

/// What must hold, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// What was acknowledged is in the log, once.
    Acknowledged,
    /// What failed is not in the log.
    Failed,
    /// Updates answer what a reference answers.
    Outputs,
    /// What is shown at a position is the state there.
    States,
    /// A transaction has one verdict, alike everywhere.
    Verdicts,
    /// A committed transaction read what is true at its place.
    Serial,
    /// Real time.
    RealTime,
    /// Updates of one handle keep the order in which they were submitted.
    Lanes,
    /// What one replica shows never goes back.
    Monotone,
    /// Records name what they touch and read.
    Records,
    /// What the workload keeps true.
    Laws,
    /// Everything can be read in the end.
    Readable,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Readable,
        Self::Acknowledged,
        Self::Failed,
        Self::Verdicts,
        Self::Serial,
        Self::Outputs,
        Self::States,
        Self::RealTime,
        Self::Lanes,
        Self::Monotone,
        Self::Records,
        Self::Laws,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Acknowledged => "I2 an acknowledged update is in the log once",
            Self::Failed => "I15 what was reported failed never happened",
            Self::Outputs => "I8 updates answer what the reference answers",
            Self::States => "I8 equal position, equal state",
            Self::Verdicts => "I9 one verdict per transaction",
            Self::Serial => "I16 a committed transaction read what is true at its place",
            Self::RealTime => "I10 real-time order",
            Self::Lanes => "I10 updates of one handle keep their order",
            Self::Monotone => "I7 what a replica shows never goes back",
            Self::Records => "rules 31, 33, 34: records name what they touch and read",
            Self::Laws => "the workload's own law",
            Self::Readable => "I12 everything can be read in the end",
        }
    }

    /// Where it comes from.
    #[must_use]
    pub const fn source(self) -> &'static str {
        match self {
            Self::Acknowledged | Self::Failed => "log contract 4; protocol rules 13 and 14",
            Self::Outputs | Self::States => "Tango section 3.1; design section 5",
            Self::Verdicts | Self::Serial => "Tango section 3.2; protocol rules 30 to 32",
            Self::Lanes => "design section 5, submission is the first poll",
            Self::RealTime => "design section 5, linearizable reads and updates",
            Self::Monotone => "design section 1, applied is a true prefix",
            Self::Records => "protocol rules 31, 33, 34",
            Self::Laws => "FoundationDB's cycle test, bank transfers, exactly-once queues",
            Self::Readable => "log contract 5; failure catalogue F15, F16",
        }
    }
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// What was seen.
    pub text: String,
}

/// What was found, in the order in which it was found.
#[derive(Clone, Debug, Default)]
pub struct Findings(Vec<Finding>);

/// A few are enough, and texts are long.
const MOST_FINDINGS: usize = 20;

impl Findings {
    /// Adds one.
    pub fn add(&mut self, rule: Rule, text: impl FnOnce() -> String) {
        if self.0.len() < MOST_FINDINGS {
            let text = text();
            self.0.push(Finding { rule, text });
        }
    }
}

/// What a workload keeps true at every position.
pub type Law = fn(&World) -> Result<(), String>;

/// Compares a history with the reference.
#[must_use]
pub fn judge(book: &Book, law: Option<Law>) -> Vec<Finding> {
    let mut found = Findings::default();
    for complaint in &book.complaints {
        found.add(complaint.rule, || complaint.text.clone());
    }
    let Some(log) = &book.log else {
        return found.0;
    };
    let order = order::Order::new(book);
    let mut questions = questions::Questions::new(book, &order);
    let mut replay = Reference::new(book);
    let mut law = law;
    for (position, entry) in log {
        questions.answer(position.0, &replay.world, &mut found);
        replay.play(position.0, entry, &mut found);
        if let Some(Err(why)) = law.map(|law| law(&replay.world)) {
            found.add(Rule::Laws, || format!("after position {position}: {why}"));
            law = None;
        }
    }
    questions.answer_rest(&replay.world, &mut found);
    updates::check(book, &order, &replay, &mut found);
    transactions::check(book, &replay, &mut found);
    order.check(book, &replay, &mut found);
    found.0
}

/// The invariants that the witness stands for, over one history.
#[must_use]
pub fn invariants(history: &History, law: Option<Law>) -> Vec<Box<dyn Invariant>> {
    let found = Arc::default();
    let invariant = |rule| {
        Box::new(Witness {
            rule,
            history: history.clone(),
            law,
            found: Arc::clone(&found),
        }) as Box<dyn Invariant>
    };
    Rule::ALL.map(invariant).into()
}

/// One rule over one history; all rules share the replay.
struct Witness {
    rule: Rule,
    history: History,
    law: Option<Law>,
    found: Arc<OnceLock<Vec<Finding>>>,
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Witness({:?})", self.rule)
    }
}

impl Invariant for Witness {
    fn name(&self) -> &'static str {
        self.rule.name()
    }

    fn source(&self) -> &'static str {
        self.rule.source()
    }

    fn check(&mut self, _: &WorldView<'_>) -> Result<(), Violation> {
        first_of(self.rule, &self.history.book().complaints)
    }

    fn check_end(&mut self, _: &WorldView<'_>) -> Result<(), Violation> {
        let found = self
            .found
            .get_or_init(|| judge(&self.history.book(), self.law));
        first_of(self.rule, found)
    }
}

fn first_of(rule: Rule, found: &[Finding]) -> Result<(), Violation> {
    match found.iter().find(|finding| finding.rule == rule) {
        Some(finding) => Err(Violation(finding.text.clone())),
        None => Ok(()),
    }
}
