//! Growth and care by command: what an operator may ask of the layout, and what it answers.
//!
//! A change says what is to be, not what is to be done: asked again, it goes on where it stands, and says so. So whoever
//! lost the answer, or the layout's leader, asks again.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Position, ServerName};
use crate::layout::Layout;
use crate::limits::CAUSE_BYTES;

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClusterChange {
    /// Another process is to be the sequencer.
    MoveSequencer {
        /// Configured as a sequencer, or as a spare for it.
        to: ServerName,
    },
    /// A unit may take places in chains.
    AddUnit {
        /// Its process, started with an empty directory.
        name: ServerName,
        /// The chain it belongs to, from 0; `None`: any.
        chain: Option<u16>,
    },
    /// A unit leaves all chains, for good.
    RemoveUnit {
        /// Its process.
        name: ServerName,
    },
    /// A unit takes the place of another, which serves until it has everything.
    ReplaceUnit {
        /// Who leaves.
        old: ServerName,
        /// Who comes.
        new: ServerName,
    },
    /// What is appended from now on is spread over one more chain.
    AddChain {
        /// Its units, head first, all with empty directories.
        units: Vec<ServerName>,
    },
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeStage {
    /// Only asked about: nothing was changed.
    Planned,
    /// Decided, and going on.
    UnderWay,
    /// It is as it was asked for.
    Done,
}

/// What becomes, or would become, of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// How far it is.
    pub stage: ChangeStage,
    /// The current epoch.
    pub epoch: Epoch,
    /// What is left to be done, in words and in order.
    pub steps: Vec<String>,
    /// Units that come into a chain.
    pub joins: Vec<ServerName>,
    /// Units that leave their chains.
    pub leaves: Vec<ServerName>,
    /// The sequencer when all is done.
    pub sequencer: ServerName,
    /// The chains of what is appended when all is done, each head first.
    pub chains: Vec<Vec<ServerName>>,
    /// What is being copied.
    pub copying: Vec<CopyReport>,
}

/// What a unit is being given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// The unit.
    pub unit: ServerName,
    /// Entries it was given.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// In this pass it has everything below.
    pub below: Position,
    /// End of what is copied.
    pub end: Position,
}

/// When and why an epoch came about. Only people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// When its reconfiguration became necessary, in seconds since 1970 (UTC), as the clock on the layout's leader showed it.
    pub began: u64,
    /// Why.
    pub cause: String,
}

impl Origin {
    /// With `outcome` behind the cause; at most [`CAUSE_BYTES`] of both are kept, of the outcome first.
    #[must_use]
    pub fn new(began: u64, mut cause: String, outcome: &str) -> Self {
        cut(&mut cause, CAUSE_BYTES.saturating_sub(outcome.len()));
        cause.push_str(outcome);
        cut(&mut cause, CAUSE_BYTES);
        Self { began, cause }
    }
}

/// Leaves `most` bytes of `text`, or a little less: whole characters.
fn cut(text: &mut String, most: usize) {
    while text.len() > most {
        text.pop();
    }
}

/// An epoch of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochReport {
    /// The epoch.
    pub epoch: Epoch,
    /// Its start.
    pub start: Position,
    /// When and why it came about, if that is known.
    pub origin: Option<Origin>,
}

/// A part of the history of layouts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// Epochs, oldest first.
    pub epochs: Vec<EpochReport>,
    /// Whether there are later ones.
    pub more: bool,
    /// The newest layout; `None` before the first.
    pub current: Option<Layout>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_cause_is_cut_between_characters() {
        let short = "é".repeat(CAUSE_BYTES / 2);
        assert_eq!(Origin::new(0, short.clone(), "").cause, short);
        let long = format!("x{short}é");
        let cut = Origin::new(0, long.clone(), "").cause;
        assert_eq!(cut.len(), CAUSE_BYTES - 1);
        assert!(long.starts_with(&cut));
        // What came of it is kept.
        let cut = Origin::new(0, long.clone(), "; done").cause;
        assert!(
            cut.len() <= CAUSE_BYTES && cut.ends_with("é; done"),
            "{cut}"
        );
        assert_eq!(
            Origin::new(0, String::new(), &long).cause.len(),
            CAUSE_BYTES - 1
        );
    }
}
