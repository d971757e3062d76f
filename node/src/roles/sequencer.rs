//! The sequencer as the host sees it.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_protocol::Time;
use milonga_protocol::messages::{CallId, SequencerRequest};
use milonga_sequencer::Sequencer;

use crate::host::{Core, Output};

/// A sequencer. It wants nothing done but answering.
pub(crate) struct SequencerRole(pub(crate) Sequencer);

/// The sequencer has no effects, so nothing ever ends.
pub(crate) enum Never {}

impl Core for SequencerRole {
    type Request = SequencerRequest;
    type Effect = Never;
    type Event = Never;
    const ROLE: &'static str = "sequencer";

    fn handle(&mut self, now: Time, call: CallId, request: SequencerRequest, _body: Bytes) {
        self.0.handle(now, call, request);
    }

    fn event(&mut self, _now: Time, event: Never) {
        match event {}
    }

    fn handle_time(&mut self, now: Time) {
        self.0.handle_time(now);
    }

    fn next_time(&self) -> Option<Time> {
        self.0.next_time()
    }

    fn poll(&mut self) -> Option<Output<Never>> {
        let (call, response) = self.0.poll_reply()?;
        Some(Output::Reply(call, response, Bytes::new()))
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.0.facts()
    }
}
