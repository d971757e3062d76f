//! The log unit as the host sees it.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_log_units::{DiskOp, OpId, OpenError, Unit, UnitEffect};
use milonga_protocol::Time;
use milonga_protocol::messages::{CallId, UnitHello, UnitRequest};
use tokio::sync::watch;

use crate::host::{Core, Output};
use crate::machine::DiskCompletion;

/// What a unit says of itself: nothing while it recovers its directory.
pub(crate) type UnitState = Option<Result<UnitHello, OpenError>>;

/// A log unit, and who wants to know how it is.
pub(crate) struct UnitRole {
    unit: Unit,
    state: watch::Sender<UnitState>,
}

impl UnitRole {
    pub(crate) fn new(unit: Unit) -> (Self, watch::Receiver<UnitState>) {
        let (state, receiver) = watch::channel(None);
        (Self { unit, state }, receiver)
    }

    fn tell_state(&self) {
        let now = self.unit.hello();
        self.state.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

impl Core for UnitRole {
    type Request = UnitRequest;
    type Effect = (OpId, DiskOp);
    type Event = DiskCompletion;
    const ROLE: &'static str = "unit";

    fn handle(&mut self, now: Time, call: CallId, request: UnitRequest, body: Bytes) {
        self.unit.handle(now, call, request, body);
    }

    fn event(&mut self, now: Time, (op, result): DiskCompletion) {
        self.unit.disk_done(now, op, result);
    }

    fn handle_time(&mut self, now: Time) {
        self.unit.handle_time(now);
    }

    fn next_time(&self) -> Option<Time> {
        self.unit.next_time()
    }

    fn poll(&mut self) -> Option<Output<Self::Effect>> {
        match self.unit.poll_effect() {
            Some(UnitEffect::Disk(op, what)) => Some(Output::Effect((op, what))),
            Some(UnitEffect::Reply(call, response, body)) => {
                Some(Output::Reply(call, response, body))
            }
            None => {
                self.tell_state();
                None
            }
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.unit.facts()
    }
}

#[cfg(test)]
mod tests {
    use milonga_log_units::{Disk, UnitConfig};
    use milonga_protocol::{SharedEnv, UnitId};
    use milonga_transport::TokioEnv;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::disk::FileDisk;
    use crate::host;

    #[tokio::test]
    async fn a_unit_makes_and_recovers_its_directory_on_the_real_disk() {
        let dir = tempfile::tempdir().unwrap();
        let env: SharedEnv = TokioEnv::new();
        for n in 0..5 {
            let mut config = UnitConfig::new(UnitId(n), "unit-1a".into());
            config.segment_bytes = 1 << 20;
            let (done, events) = unbounded_channel();
            let disk = FileDisk::open(&env, dir.path(), &done).unwrap();
            let mut submit = disk.handle();
            let (core, mut state) = UnitRole::new(Unit::start(config, env.random()));
            let (unit, _task) = host::start(&env, core, events, move |(op, what)| {
                submit.submit(op, what);
            });
            let hello = state.wait_for(Option::is_some).await.unwrap().clone();
            let hello = hello.unwrap().unwrap();
            assert_eq!((hello.cluster, hello.empty), (None, true));
            assert_eq!(unit.facts().await.unwrap()["state"], "ok");
        }
    }
}
