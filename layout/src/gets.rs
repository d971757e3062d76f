//! Clients that wait for the next layout.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use milonga_protocol::limits::LONGEST_WAIT_MS;
use milonga_protocol::messages::CallId;
use milonga_protocol::{Epoch, Time};

/// Most parked at once; above, the answer is given at once.
const PARKED: usize = 65_536;

#[derive(Debug, Default)]
pub(crate) struct Gets {
    parked: BTreeMap<CallId, (Epoch, Time)>,
    by_time: BTreeSet<(Time, CallId)>,
}

impl Gets {
    /// Parks a call that knows epoch `known`; `false` if it has to be answered at once.
    pub(crate) fn park(&mut self, now: Time, call: CallId, known: Epoch, wait_ms: u32) -> bool {
        if wait_ms == 0 || self.parked.len() >= PARKED {
            return false;
        }
        let wait = Duration::from_millis(wait_ms.min(LONGEST_WAIT_MS).into());
        let until = now.after(wait);
        self.by_time.insert((until, call));
        self.parked.insert(call, (known, until));
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(crate) fn next_time(&self) -> Option<Time> {
        self.by_time.first().map(|(time, _)| *time)
    }

    /// Takes out those whose time is up.
    pub(crate) fn expired(&mut self, now: Time) -> Vec<CallId> {
        let through = (now, CallId(u64::MAX));
        let calls = self.by_time.range(..=through).map(|(_, call)| *call);
        let calls = calls.collect();
        self.take(calls)
    }

    /// Takes out those that know less than `epoch`.
    pub(crate) fn behind(&mut self, epoch: Epoch) -> Vec<CallId> {
        let behind = self.parked.iter().filter(|(_, (known, _))| *known < epoch);
        let calls = behind.map(|(call, _)| *call).collect();
        self.take(calls)
    }

    fn take(&mut self, calls: Vec<CallId>) -> Vec<CallId> {
        for call in &calls {
            if let Some((_, until)) = self.parked.remove(call) {
                self.by_time.remove(&(until, *call));
            }
        }
        calls
    }
}
