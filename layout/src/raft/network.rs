//! How members reach each other: over whatever carries their requests.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::{BoxFuture, Time};
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, AsyncRuntime, RaftNetwork, RaftNetworkFactory, SnapshotSegmentId};

use super::home::Home;
use super::messages::{RaftRequest, RaftResponse, Request, Response};
use super::runtime::EnvRuntime;
use super::{Member, MemberId, TypeConfig, Vote};

/// Carries requests to other members.
///
/// Contract: a call SHOULD end by its deadline; it is dropped there if it does not, and may be dropped before. A
/// request MAY be lost, repeated or overtaken. The answer MUST be that of [`Replica::handle`](super::Replica::handle)
/// of the member it was meant for: one that answers for another would let two leaders be elected.
pub trait RaftCarrier: Send + Sync + 'static {
    /// Brings `request` to a member and its answer back, or says why not.
    fn call(
        &self,
        to: MemberId,
        member: &Member,
        request: RaftRequest,
        deadline: Time,
    ) -> BoxFuture<'static, Result<RaftResponse, String>>;
}

/// Makes openraft's connections.
pub(super) struct Connections {
    pub(super) carrier: Arc<dyn RaftCarrier>,
    /// As configured: where a member is now, whatever the log says of where it was.
    pub(super) members: BTreeMap<MemberId, Member>,
}

impl RaftNetworkFactory<TypeConfig> for Connections {
    type Network = Connection;

    async fn new_client(&mut self, target: MemberId, node: &Member) -> Connection {
        Connection {
            carrier: Arc::clone(&self.carrier),
            to: target,
            member: self.members.get(&target).unwrap_or(node).clone(),
        }
    }
}

/// The way to one member.
pub(super) struct Connection {
    carrier: Arc<dyn RaftCarrier>,
    to: MemberId,
    member: Member,
}

type Failure<E = openraft::error::Infallible> = RPCError<MemberId, Member, RaftError<MemberId, E>>;

impl Connection {
    /// Ends after `ttl` at the latest, whatever carries it.
    async fn call(&self, request: Request, ttl: Duration) -> Result<Response, String> {
        let deadline = Home::current().env().now().after(ttl);
        let request = RaftRequest(request);
        let call = self.carrier.call(self.to, &self.member, request, deadline);
        match EnvRuntime::timeout(ttl, call).await {
            Ok(Ok(RaftResponse(Response::Failed(why)))) => Err(why),
            Ok(Ok(RaftResponse(response))) => Ok(response),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!("no answer within {ttl:?}")),
        }
    }

    /// What is answered to a request must be an answer to it.
    fn failed<E: std::error::Error>(&self, why: impl fmt::Display) -> Failure<E> {
        let why = format!("member {} ({}): {why}", self.to, self.member.name);
        RPCError::Network(NetworkError::from(AnyError::error(why)))
    }

    /// openraft sends again at once what has failed. So a failure takes its time: most of what the call was given.
    async fn pause(&self, begun: Time, ttl: Duration) {
        let until = begun.after(ttl * 3 / 4);
        let sleep = Home::current().env().sleep_until(until);
        sleep.await;
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, Failure> {
        let (vote, first) = (rpc.vote, rpc.prev_log_id.is_none());
        let begun = Home::current().env().now();
        let why = match self.call(rpc.into(), option.hard_ttl()).await {
            Ok(Response::Appended) => return Ok(AppendEntriesResponse::Success),
            Ok(Response::Conflict) if !first => return Ok(AppendEntriesResponse::Conflict),
            Ok(Response::HigherVote(higher)) if Vote::from(higher) > vote => {
                return Ok(AppendEntriesResponse::HigherVote(higher.into()));
            }
            Ok(other) => format!("answered with {other:?}"),
            Err(why) => why,
        };
        self.pause(begun, option.hard_ttl()).await;
        Err(self.failed(why))
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, Failure<InstallSnapshotError>> {
        let (id, offset) = (rpc.meta.snapshot_id.clone(), rpc.offset);
        match self.call(rpc.into(), option.hard_ttl()).await {
            Ok(Response::Snapshot { vote }) => Ok(InstallSnapshotResponse { vote: vote.into() }),
            // The first piece always fits: refusing it would have it sent for ever.
            Ok(Response::SnapshotMismatch) if offset > 0 => {
                let segment = |offset| SnapshotSegmentId::from((&id, offset));
                let mismatch = SnapshotMismatch {
                    expect: segment(0),
                    got: segment(offset),
                };
                let error = RaftError::APIError(mismatch.into());
                Err(RPCError::RemoteError(RemoteError::new(self.to, error)))
            }
            Ok(other) => Err(self.failed(format!("answered with {other:?}"))),
            Err(why) => Err(self.failed(why)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, Failure> {
        let asked = rpc.vote;
        match self.call(rpc.into(), option.hard_ttl()).await {
            Ok(Response::Vote {
                vote,
                granted,
                last,
            }) if Vote::from(vote) >= asked || !granted => Ok(VoteResponse {
                vote: vote.into(),
                vote_granted: granted,
                last_log_id: last.map(Into::into),
            }),
            Ok(other) => Err(self.failed(format!("answered with {other:?}"))),
            Err(why) => Err(self.failed(why)),
        }
    }
}
