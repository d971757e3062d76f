//! The sequencer as the host sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::Time;
use milonga_protocol::messages::{CallId, SequencerRequest};
use milonga_sequencer::{AskLease, Sequencer};
use milonga_transport::Identity;

use crate::host::{Core, Output};

/// A sequencer, and the identity of the process: one tells the other the cluster.
pub(crate) struct SequencerRole {
    pub(crate) core: Sequencer,
    pub(crate) identity: Arc<Identity>,
}

/// The layout has granted a lease.
pub(crate) struct Leased {
    pub(crate) ask: AskLease,
    /// Zero: none.
    pub(crate) lasts: Duration,
}

impl Core for SequencerRole {
    type Request = SequencerRequest;
    type Effect = AskLease;
    type Event = Leased;
    const ROLE: &'static str = "sequencer";

    fn handle(&mut self, now: Time, call: CallId, request: SequencerRequest, _body: Bytes) {
        let bootstrap = matches!(request, SequencerRequest::Bootstrap(_));
        if let (true, Some(cluster)) = (bootstrap, self.identity.cluster()) {
            self.core.belongs_to(cluster);
        }
        self.core.handle(now, call, request);
        if let (true, Some(cluster)) = (bootstrap, self.core.cluster())
            && let Err(error) = self.identity.set_cluster(cluster)
        {
            tracing::error!(%error, "the roles of this process contradict each other");
        }
    }

    fn event(&mut self, now: Time, Leased { ask, lasts }: Leased) {
        self.core.leased(now, ask, lasts);
    }

    fn handle_time(&mut self, now: Time) {
        self.core.handle_time(now);
    }

    fn next_time(&self) -> Option<Time> {
        self.core.next_time()
    }

    fn poll(&mut self) -> Option<Output<AskLease>> {
        if let Some((call, response)) = self.core.poll_reply() {
            return Some(Output::Reply(call, response, Bytes::new()));
        }
        self.core.poll_ask().map(Output::Effect)
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.core.facts()
    }
}
