//! Where raft's requests from other members come in.

use std::sync::Arc;

use bytes::Bytes;
use milonga_layout::{RaftRequest, Replica};
use milonga_protocol::SharedEnv;
use milonga_protocol::messages::{Refusal, Response};
use milonga_transport::{Caller, Reply};
use tokio::sync::Semaphore;

/// Most requests of other members that are answered at once: each of them has one or two under way.
const AT_ONCE: usize = 64;

/// Answers other members, after it has seen that they are who they say.
pub(crate) struct Door {
    env: SharedEnv,
    replica: Arc<Replica>,
    room: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(env: &SharedEnv, replica: &Arc<Replica>) -> Self {
        Self {
            env: Arc::clone(env),
            replica: Arc::clone(replica),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Answers a request, which came from `from`.
    pub(crate) fn knock(&self, from: &Caller, body: &Bytes, reply: Reply) {
        let request = match self.read(from, body) {
            Ok(request) => request,
            Err(refusal) => {
                tracing::warn!(%from.name, %refusal, "refused");
                return reply.send(Response::Refused(refusal).into_message(Bytes::new()));
            }
        };
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            let what = format!("{AT_ONCE} requests of other members of the layout");
            let busy = Response::Refused(Refusal::Busy { what });
            return reply.send(busy.into_message(Bytes::new()));
        };
        let replica = Arc::clone(&self.replica);
        let answer = async move {
            let response = replica.handle(request).await;
            reply.send(Response::Raft.into_message(response.encode()));
            drop(room);
        };
        // Ends by itself: the replica answers within its patience.
        self.env.spawn("raft answer", Box::pin(answer)).detach();
    }

    /// A request that comes from the member that it says it is from.
    fn read(&self, from: &Caller, body: &Bytes) -> Result<RaftRequest, Refusal> {
        let request = RaftRequest::decode(body).map_err(|error| Refusal::Malformed {
            why: error.to_string(),
        })?;
        let sender = request.sender();
        match self.replica.member(sender) {
            Some(member) if member.name == from.name => Ok(request),
            Some(member) => Err(Refusal::NotAllowed {
                why: format!(
                    "{} speaks as member {sender} of the layout, which is {} here; list the same layout_servers everywhere",
                    from.name, member.name
                ),
            }),
            None => Err(Refusal::NotAllowed {
                why: format!(
                    "{} speaks as member {sender} of the layout, which has no such member here; list the same layout_servers everywhere",
                    from.name
                ),
            }),
        }
    }
}
