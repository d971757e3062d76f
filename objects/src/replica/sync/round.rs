//! One tail check and those who wait for it.

use std::sync::{Arc, OnceLock};

use milonga_protocol::{Epoch, Position, Time};
use tokio::sync::Notify;

use crate::error::ReadError;

/// How far a sync must have played.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Through the last entries of the hosted objects: enough for reads.
    Hosted,
    /// Through everything granted when the check was made: what transactions need, so that an object's last change
    /// does not age with the log (rule 30).
    Whole,
}

pub(super) struct Playing {
    pub(super) round: Arc<Round>,
    pub(super) epoch: Epoch,
    pub(super) hosted: Position,
    pub(super) whole: Position,
}

/// One tail check and those who wait for it.
pub(super) struct Round {
    pub(super) deadline: Time,
    pub(super) hosted: Gate,
    pub(super) whole: Gate,
    pub(super) wants_whole: OnceLock<()>,
}

#[derive(Default)]
pub(super) struct Gate {
    pub(super) passed: OnceLock<Result<(), ReadError>>,
    pub(super) opened: Notify,
}

impl Gate {
    pub(super) fn open(&self, result: Result<(), ReadError>) {
        if self.passed.set(result).is_ok() {
            self.opened.notify_waiters();
        }
    }

    pub(super) async fn pass(&self) -> Result<(), ReadError> {
        if self.passed.get().is_none() {
            let opened = self.opened.notified();
            // A notification between the check below and the await is not missed: it counts from here on.
            if self.passed.get().is_none() {
                opened.await;
            }
        }
        self.passed.get().cloned().unwrap_or(Err(ReadError::Closed))
    }
}

impl Round {
    pub(super) fn new(deadline: Time) -> Self {
        Self {
            deadline,
            hosted: Gate::default(),
            whole: Gate::default(),
            wants_whole: OnceLock::new(),
        }
    }

    pub(super) fn fail(&self, error: &ReadError) {
        self.hosted.open(Err(error.clone()));
        self.whole.open(Err(error.clone()));
    }
}

impl Playing {
    pub(super) fn wanted(&self) -> Position {
        match self.round.wants_whole.get() {
            Some(()) => self.whole.max(self.hosted),
            None => self.hosted,
        }
    }
}
