//! The state file: epoch, trim mark, what was removed, and what is void.
//!
//! Both slots are written, one after the other, and only then is anything confirmed: so whichever single slot is
//! damaged later, the other one has it all, and a torn write never touches what was confirmed before.

use milonga_protocol::messages::{CallId, Refusal, UnitResponse};
use milonga_protocol::{Epoch, Position};

use bytes::Bytes;

use crate::disk::{DiskDone, DiskError, DiskOp};
use crate::format::{STATE, STATE_SLOT, State, Void, segment_name};
use crate::unit::{Op, Unit};

/// What is durable, and what is to be.
#[derive(Debug, Default)]
pub(crate) struct StateFile {
    pub(crate) durable: State,
    /// Epoch and trim mark that were asked for.
    wanted_epoch: Epoch,
    wanted_trim: Position,
    wanted_void: Option<Void>,
    in_flight: Option<State>,
    last_sequence: u64,
    /// Trims that wait for their mark.
    trims: Vec<(CallId, Position)>,
}

impl StateFile {
    pub(crate) fn new(durable: State) -> Self {
        Self {
            wanted_epoch: durable.epoch,
            wanted_trim: durable.trim,
            last_sequence: durable.sequence,
            durable,
            ..Self::default()
        }
    }

    pub(crate) fn want_epoch(&mut self, epoch: Epoch) {
        self.wanted_epoch = epoch;
    }

    pub(crate) fn want_trim(&mut self, below: Position, call: CallId) {
        self.wanted_trim = self.wanted_trim.max(below);
        self.trims.push((call, below));
    }

    /// Whether nothing new is being written or waits to be.
    pub(crate) fn is_idle(&self) -> bool {
        let is_new = |next: &State| {
            let State { epoch, trim, .. } = self.durable;
            (next.epoch, next.trim) != (epoch, trim)
        };
        !self.in_flight.as_ref().is_some_and(is_new)
            && self.wanted_epoch == self.durable.epoch
            && self.wanted_trim == self.durable.trim
            && self.wanted_void.is_none()
    }

    /// Gives up what was not written; who waited is returned.
    pub(crate) fn give_up(&mut self) -> Vec<CallId> {
        self.in_flight = None;
        self.wanted_epoch = self.durable.epoch;
        self.wanted_trim = self.durable.trim;
        self.wanted_void = None;
        self.trims.drain(..).map(|(call, _)| call).collect()
    }
}

impl Unit {
    /// Forgets everything at or above `from` that was ever written, once the state says so; nothing may be on its way.
    pub(crate) fn want_void(&mut self, from: Position) {
        if self.index.high > from {
            let batch = self.writer.next_batch.saturating_sub(1);
            self.state.wanted_void = Some(Void { batch, from });
        }
    }

    /// Writes the state if it is to change, or if it is to be seen whether the disk works.
    pub(crate) fn write_state(&mut self) {
        let wanted = !self.state.is_idle() || self.doubts.want_write();
        if self.poison.is_some() || self.state.in_flight.is_some() || !wanted {
            return;
        }
        let trim = self.state.wanted_trim;
        let durable = &self.state.durable;
        let (first_segment, removed_batch) = self
            .index
            .first_needed(trim)
            .filter(|(first, _)| *first > durable.first_segment)
            .unwrap_or((durable.first_segment, durable.removed_batch));
        let mut next = State {
            sequence: self.state.last_sequence + 1,
            epoch: self.state.wanted_epoch,
            trim,
            first_segment,
            removed_batch,
            voids: durable.voids.clone(),
        };
        next.voids.retain(|void| void.batch > removed_batch);
        if let Some(void) = self.state.wanted_void {
            next.add_void(void);
        }
        self.state.last_sequence = next.sequence;
        self.write_slot(0, &next);
        self.state.in_flight = Some(next);
    }

    fn write_slot(&mut self, slot: u8, state: &State) {
        let op = DiskOp::WriteAt {
            name: STATE.to_owned(),
            offset: u64::from(slot) * STATE_SLOT,
            data: vec![Bytes::from(state.encode(self.owner()))],
            sync: true,
        };
        self.submit(Op::State(slot), op);
    }

    pub(crate) fn state_done(&mut self, slot: u8, result: Result<DiskDone, DiskError>) {
        let Some(state) = self.state.in_flight.clone() else {
            return;
        };
        match result {
            Ok(_) if slot == 0 => self.write_slot(1, &state),
            Ok(_) => self.state_durable(state),
            Err(DiskError::Full) => {
                let refusal = Refusal::Busy {
                    what: "disk space for the unit's state".to_owned(),
                };
                for call in self.state.give_up() {
                    self.refuse(call, refusal.clone());
                }
                self.fail_entering(&refusal);
                self.disk_is_full();
            }
            Err(error) => self.poison(&format!("writing {STATE}: {error}")),
        }
    }

    fn state_durable(&mut self, state: State) {
        self.state.in_flight = None;
        let done = |void: &mut Void| state.voids.last() == Some(void);
        if let Some(void) = self.state.wanted_void.take_if(done) {
            self.index.void(void.from);
        }
        self.index.trim(state.trim);
        for number in self.index.remove_below(state.first_segment) {
            self.reader.forget_segment(number);
            self.remove_file(segment_name(number));
        }
        let trims = std::mem::take(&mut self.state.trims);
        let (done, waiting): (Vec<_>, Vec<_>) = trims
            .into_iter()
            .partition(|(_, below)| *below <= state.trim);
        self.state.trims = waiting;
        self.state.durable = state;
        for (call, _) in done {
            let below = self.trimmed();
            self.reply(call, UnitResponse::Trimmed { below }, Bytes::new());
        }
        self.advance_decided();
        self.wake_parked();
    }
}
