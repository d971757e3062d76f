//! One tail check and those who wait for it.

use std::sync::Arc;

use milonga_protocol::sync::{Notify, OnceLock};
use milonga_protocol::{Epoch, Position, Tail, Time};

use crate::error::ReadError;

/// How far a sync must have played.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Through the last entries written to the hosted objects: enough for reads.
    Hosted,
    /// Through everything written when the check was made: what transactions need, so that an object's last change
    /// does not age with the log (rule 30).
    Written,
    /// Through everything granted when the check was made, also what others are still writing: what it takes to
    /// know that an entry is *not* there.
    Granted,
}

const REACHES: [Reach; 3] = [Reach::Hosted, Reach::Written, Reach::Granted];

/// How far to play for each reach, and at least so far for each one before it.
pub(super) struct Targets([Position; 3]);

impl Targets {
    pub(super) fn new(tail: &Tail) -> Self {
        let (hosted, written) = (tail.target().to, tail.written_end());
        let written = written.max(hosted);
        Self([hosted, written, tail.next.max(written)])
    }

    pub(super) const fn of(&self, reach: Reach) -> Position {
        self.0[reach as usize]
    }

    pub(super) fn lower(&mut self, to: Position) {
        for target in &mut self.0 {
            *target = to.min(*target);
        }
    }
}

pub(super) struct Playing {
    pub(super) round: Arc<Round>,
    pub(super) epoch: Epoch,
    pub(super) targets: Targets,
}

/// One tail check and those who wait for it.
pub(super) struct Round {
    pub(super) deadline: Time,
    gates: [Gate; 3],
}

#[derive(Default)]
struct Gate {
    wanted: OnceLock<()>,
    passed: OnceLock<Result<(), ReadError>>,
    opened: Notify,
}

impl Gate {
    fn open(&self, result: Result<(), ReadError>) {
        if self.passed.set(result).is_ok() {
            self.opened.notify_waiters();
        }
    }

    async fn pass(&self) -> Result<(), ReadError> {
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
            gates: Default::default(),
        }
    }

    pub(super) fn want(&self, reach: Reach) {
        self.gates[reach as usize].wanted.get_or_init(|| ());
    }

    pub(super) async fn pass(&self, reach: Reach) -> Result<(), ReadError> {
        self.gates[reach as usize].pass().await
    }

    pub(super) fn fail(&self, error: &ReadError) {
        for gate in &self.gates {
            gate.open(Err(error.clone()));
        }
    }
}

impl Playing {
    /// How far somebody wants it played.
    pub(super) fn wanted(&self) -> Position {
        let wanted = REACHES.into_iter().filter(|reach| {
            let gate = &self.round.gates[*reach as usize];
            gate.wanted.get().is_some()
        });
        wanted
            .map(|reach| self.targets.of(reach))
            .max()
            .unwrap_or_default()
    }

    /// Lets pass whose target is reached. Whether that is everybody.
    pub(super) fn open_gates(&self, applied: Position) -> bool {
        for reach in REACHES {
            if self.targets.of(reach) <= applied {
                self.round.gates[reach as usize].open(Ok(()));
            }
        }
        self.wanted() <= applied
    }
}
