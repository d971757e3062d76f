//! How a member answers the others.

use openraft::error::RaftError;
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};

use super::Replica;
use super::messages::{RaftRequest, RaftResponse, Request, Response};

/// A member with an empty disk may be one that lost it: it could vote twice, or for somebody who lacks what it had
/// acknowledged. So it takes part only when it was there at the beginning.
const NO_PAST: &str = "this member's store is empty: either the cluster is being made and it was not initialized yet, \
    or it has lost its disk and must not come back under its number";

impl Replica {
    /// Answers another member: the host has made sure that [`RaftRequest::sender`] is who sent it. What the answer
    /// promises is durable.
    pub async fn handle(&self, request: RaftRequest) -> RaftResponse {
        let answer = match self.admit(&request).await {
            Ok(()) => self.answer(request.0).await,
            Err(why) => Err(why),
        };
        answer.map_or_else(RaftResponse::failed, RaftResponse)
    }

    /// Whether to listen at all.
    async fn admit(&self, request: &RaftRequest) -> Result<(), String> {
        let sender = request.sender();
        if self.member(sender).is_none() {
            return Err(format!("{sender} is not a member of this layout"));
        }
        request.0.check()?;
        if !self.has_past().await? {
            return Err(NO_PAST.to_owned());
        }
        Ok(())
    }

    async fn answer(&self, request: Request) -> Result<Response, String> {
        match request {
            Request::Append {
                vote,
                previous,
                entries,
                committed,
            } => {
                let request = AppendEntriesRequest {
                    vote: vote.into(),
                    prev_log_id: previous.map(Into::into),
                    entries: entries.into_iter().map(Into::into).collect(),
                    leader_commit: committed.map(Into::into),
                };
                let answer = self.call(self.raft.append_entries(request)).await?;
                answer.map(Response::from).map_err(|e| e.to_string())
            }
            Request::Vote { vote, last } => {
                let request = VoteRequest::new(vote.into(), last.map(Into::into));
                let answer = self.call(self.raft.vote(request)).await?;
                answer.map(Response::from).map_err(|e| e.to_string())
            }
            Request::Snapshot {
                vote,
                meta,
                offset,
                data,
                done,
            } => {
                let request = InstallSnapshotRequest {
                    vote: vote.into(),
                    meta: meta.into(),
                    offset,
                    data,
                    done,
                };
                match self.call(self.raft.install_snapshot(request)).await? {
                    Ok(taken) => Ok(Ok(taken).into()),
                    Err(RaftError::APIError(error)) => Ok(Err(error).into()),
                    Err(RaftError::Fatal(error)) => Err(error.to_string()),
                }
            }
        }
    }
}
