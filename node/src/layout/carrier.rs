//! Carries raft's requests to other members, over the same connections as everything else.

use bytes::Bytes;
use milonga_layout::{Member, MemberId, RaftCarrier, RaftRequest, RaftResponse};
use milonga_protocol::messages::{Request, Response};
use milonga_protocol::{BoxFuture, Time};
use milonga_transport::{Peer, SharedNetwork};

/// The network as raft sees it. That an answer comes from the member meant is proved by its certificate.
pub(crate) struct Carrier(pub(crate) SharedNetwork);

impl RaftCarrier for Carrier {
    fn call(
        &self,
        _: MemberId,
        member: &Member,
        request: RaftRequest,
        deadline: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>> {
        let peer = Peer {
            name: member.name.clone(),
            address: member.address.as_str().into(),
        };
        let message = Request::Raft.into_message(request.encode());
        let call = self.0.call(&peer, message, deadline);
        Box::pin(async move {
            let answer = call.await.map_err(|error| error.to_string())?;
            match Response::decode(&answer) {
                Ok(Response::Raft) => read(&answer.body),
                Ok(Response::Refused(refusal)) => Err(refusal.to_string()),
                Ok(other) => Err(format!("unexpected answer {other:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

fn read(body: &Bytes) -> Result<RaftResponse, String> {
    RaftResponse::decode(body).map_err(|error| error.to_string())
}
