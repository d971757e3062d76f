//! Takes requests from the network: decodes, checks who may, and hands them to the role they are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use milonga_protocol::SharedEnv;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    LayoutRequest, Refusal, Request, Response, SequencerRequest, ServerStatus, UnitRequest,
};
use milonga_transport::{Caller, Identity, Reply, Role, Service};

use crate::host::{Core, Handle};
use crate::layout::Door;
use crate::roles::{LayoutRole, SequencerRole, UnitRole};

/// The roles of one process.
pub(crate) struct Roles {
    pub(crate) env: SharedEnv,
    pub(crate) identity: Arc<Identity>,
    pub(crate) unit: Option<Handle<UnitRole>>,
    pub(crate) sequencer: Option<Handle<SequencerRole>>,
    pub(crate) layout: Option<Handle<LayoutRole>>,
    /// For the other members of the layout.
    pub(crate) door: Option<Door>,
}

/// The service of a process: its roles, shared with the answers that take longer.
pub(crate) struct Front(pub(crate) Arc<Roles>);

impl Service for Front {
    fn handle(&self, from: &Caller, message: Message, reply: Reply) {
        let request = match Request::decode(&message) {
            Ok(request) => request,
            Err(error) => {
                let why = error.to_string();
                tracing::debug!(%from.name, why, "malformed request");
                return refuse(reply, Refusal::Malformed { why });
            }
        };
        if let Err(refusal) = may(from, &request) {
            tracing::warn!(%from.name, %refusal, "refused");
            return refuse(reply, refusal);
        }
        let (len, urgent) = (message.len(), is_control(&request));
        let body = message.body;
        match request {
            Request::Unit(request) => pass(&self.0.unit, request, body, len, urgent, reply),
            Request::Sequencer(request) => {
                pass(&self.0.sequencer, request, body, len, urgent, reply)
            }
            Request::Layout(request) => pass(&self.0.layout, request, body, len, urgent, reply),
            Request::Raft => match &self.0.door {
                Some(door) => door.knock(from, &body, reply),
                None => {
                    let role = LayoutRole::ROLE.to_owned();
                    refuse(reply, Refusal::NoSuchRole { role });
                }
            },
            Request::Ping => reply.send(Response::Pong.into_message(Bytes::new())),
            Request::Status => {
                let roles = Arc::clone(&self.0);
                let status = async move {
                    let response = Response::Status(roles.status().await);
                    reply.send(response.into_message(Bytes::new()));
                };
                // Ends by itself: a host answers within a turn, or is gone.
                self.0.env.spawn("status", Box::pin(status)).detach();
            }
        }
    }
}

impl Roles {
    /// A process without any role yet.
    pub(crate) fn new(env: &SharedEnv, identity: &Arc<Identity>) -> Self {
        Self {
            env: Arc::clone(env),
            identity: Arc::clone(identity),
            unit: None,
            sequencer: None,
            layout: None,
            door: None,
        }
    }

    pub(crate) async fn status(&self) -> ServerStatus {
        let mut roles = BTreeMap::new();
        add_facts(&mut roles, &self.unit).await;
        add_facts(&mut roles, &self.sequencer).await;
        add_facts(&mut roles, &self.layout).await;
        ServerStatus {
            name: self.identity.name().clone(),
            incarnation: self.identity.incarnation(),
            cluster: self.identity.cluster(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            roles,
        }
    }
}

async fn add_facts<C: Core>(
    roles: &mut BTreeMap<String, BTreeMap<String, String>>,
    handle: &Option<Handle<C>>,
) {
    if let Some(handle) = handle {
        let facts = handle.facts().await.unwrap_or_default();
        roles.insert(C::ROLE.to_owned(), facts);
    }
}

fn pass<C: Core>(
    handle: &Option<Handle<C>>,
    request: C::Request,
    body: Bytes,
    len: usize,
    urgent: bool,
    reply: Reply,
) {
    metrics::counter!("milonga_node_requests_total", "role" => C::ROLE).increment(1);
    match handle {
        Some(handle) => handle.call(request, body, len, urgent, reply),
        None => {
            let role = C::ROLE.to_owned();
            refuse(reply, Refusal::NoSuchRole { role });
        }
    }
}

fn refuse(reply: Reply, refusal: Refusal) {
    reply.send(Response::Refused(refusal).into_message(Bytes::new()));
}

/// Requests that steer the cluster: only servers may send them, and no bound refuses them.
const fn is_control(request: &Request) -> bool {
    matches!(
        request,
        Request::Unit(
            UnitRequest::Seal { .. }
                | UnitRequest::Collect { .. }
                | UnitRequest::Open { .. }
                | UnitRequest::Settled { .. }
                | UnitRequest::Rejoin { .. }
                | UnitRequest::Lacking { .. }
        ) | Request::Sequencer(SequencerRequest::Seal { .. } | SequencerRequest::Bootstrap(_))
            | Request::Layout(LayoutRequest::Hello(_) | LayoutRequest::Renew(_))
            | Request::Raft
    )
}

fn may(from: &Caller, request: &Request) -> Result<(), Refusal> {
    if is_control(request) && from.role != Role::Server {
        let why = format!("{} has no server certificate", from.name);
        return Err(Refusal::NotAllowed { why });
    }
    let (name, does) = match request {
        Request::Layout(LayoutRequest::Hello(hello)) => (&hello.name, "says hello"),
        Request::Layout(LayoutRequest::Renew(renewal)) => (&renewal.name, "asks for a lease"),
        _ => return Ok(()),
    };
    if *name == from.name {
        return Ok(());
    }
    let why = format!("the certificate of {} {does} as {name}", from.name);
    Err(Refusal::NotAllowed { why })
}
