//! The layout as the host sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use milonga_layout::{LayoutCore, LayoutEffect, SendId, SendOutcome, StoreError, StoreId};
use milonga_protocol::Time;
use milonga_protocol::messages::{CallId, LayoutRequest};

use milonga_transport::Identity;

use crate::host::{Core, Output};

/// The layout, and the identity of the process, which learns the cluster from it.
pub(crate) struct LayoutRole {
    pub(crate) core: LayoutCore,
    pub(crate) identity: Arc<Identity>,
}

impl LayoutRole {
    fn tell_cluster(&self) {
        if let (Some(cluster), None) = (self.core.cluster(), self.identity.cluster())
            && let Err(error) = self.identity.set_cluster(cluster)
        {
            tracing::error!(%error, "the unit and the layout of this process contradict each other");
        }
    }
}

/// How an effect of the layout ended.
pub(crate) enum LayoutEvent {
    Sent(SendId, SendOutcome),
    Stored(StoreId, Result<(), StoreError>),
}

impl Core for LayoutRole {
    type Request = LayoutRequest;
    type Effect = LayoutEffect;
    type Event = LayoutEvent;
    const ROLE: &'static str = "layout";

    fn handle(&mut self, now: Time, call: CallId, request: LayoutRequest, _body: Bytes) {
        self.core.handle(now, call, request);
    }

    fn event(&mut self, now: Time, event: LayoutEvent) {
        match event {
            LayoutEvent::Sent(send, result) => self.core.handle_reply(now, send, result),
            LayoutEvent::Stored(store, result) => self.core.stored(now, store, result),
        }
    }

    fn handle_time(&mut self, now: Time) {
        self.core.handle_time(now);
    }

    fn next_time(&self) -> Option<Time> {
        self.core.next_time()
    }

    fn poll(&mut self) -> Option<Output<LayoutEffect>> {
        match self.core.poll_effect() {
            Some(LayoutEffect::Reply(call, response)) => {
                Some(Output::Reply(call, response, Bytes::new()))
            }
            Some(effect) => Some(Output::Effect(effect)),
            None => {
                self.tell_cluster();
                None
            }
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        self.core.facts()
    }
}
