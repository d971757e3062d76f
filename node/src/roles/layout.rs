//! The layout as the host sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use milonga_layout::{
    ConfirmId, History, LayoutEffect, LayoutMember, Reign, Replica, SendId, SendOutcome, StoreId,
};
use milonga_protocol::messages::{CallId, LayoutRequest};
use milonga_protocol::{Epoch, ServerName, SharedEnv, Time};
use milonga_transport::Identity;

use crate::host::{Core, Output};

/// A member of the layout, its replica of the history, and the identity of the process, which learns the cluster from it; the
/// environment shows the time of day.
pub(crate) struct LayoutRole {
    pub(crate) member: LayoutMember,
    pub(crate) replica: Arc<Replica>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) env: SharedEnv,
}

impl LayoutRole {
    fn tell_cluster(&self) {
        if let (Some(cluster), None) = (self.member.cluster(), self.identity.cluster())
            && let Err(error) = self.identity.set_cluster(cluster)
        {
            tracing::error!(%error, "the unit and the layout of this process contradict each other");
        }
    }
}

/// How an effect of the layout ended, or what became of its member.
pub(crate) enum LayoutEvent {
    Sent(Reign, SendId, Box<SendOutcome>),
    Stored(Reign, StoreId, Result<(), String>),
    /// If a majority said that this member leads, the epoch of all that was committed before.
    Confirmed(Reign, ConfirmId, Option<Epoch>),
    /// This member leads, a majority says, and this is the history.
    Leads(Arc<History>),
    /// It does not.
    Follows {
        leader: Option<(ServerName, String)>,
        why: Option<String>,
    },
    /// The history has grown.
    Learned(Arc<History>),
}

impl Core for LayoutRole {
    type Request = LayoutRequest;
    type Effect = (Reign, LayoutEffect);
    type Event = LayoutEvent;
    const ROLE: &'static str = "layout";

    fn handle(&mut self, now: Time, call: CallId, request: LayoutRequest, _body: Bytes) {
        self.member.handle(now, call, request);
    }

    fn event(&mut self, now: Time, event: LayoutEvent) {
        match event {
            LayoutEvent::Sent(reign, send, outcome) => {
                self.member.tell_wall_clock(self.env.wall_clock());
                self.member.handle_reply(now, reign, send, *outcome);
            }
            LayoutEvent::Stored(reign, store, outcome) => {
                self.member.stored(now, reign, store, outcome);
            }
            LayoutEvent::Confirmed(reign, id, leads_at) => {
                self.member.confirmed(now, reign, id, leads_at);
            }
            LayoutEvent::Leads(history) => self.member.lead(now, history),
            LayoutEvent::Follows { leader, why } => self.member.follow(leader, why),
            LayoutEvent::Learned(history) => self.member.learn(history),
        }
    }

    fn handle_time(&mut self, now: Time) {
        self.member.handle_time(now);
    }

    fn next_time(&self) -> Option<Time> {
        self.member.next_time()
    }

    fn poll(&mut self) -> Option<Output<(Reign, LayoutEffect)>> {
        match self.member.poll_effect() {
            Some(LayoutEffect::Reply(call, response)) => {
                Some(Output::Reply(call, response, Bytes::new()))
            }
            Some(effect) => Some(Output::Effect((self.member.reign(), effect))),
            None => {
                self.tell_cluster();
                None
            }
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = self.member.facts();
        facts.extend(self.replica.facts());
        let leads = if self.member.leads() { "yes" } else { "no" };
        facts.insert("leads".to_owned(), leads.to_owned());
        facts
    }
}
