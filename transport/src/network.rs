//! The network seam: who can be called, and who answers.
//!
//! Contract. An implementation MUST deliver a request at most once to the service at the address, MUST complete
//! every call by its deadline, MUST bound what it queues in bytes, per peer, and MUST NOT promise any order
//! between calls. A call that failed may or may not have been served ([`CallError::may_have_been_served`]).

use std::fmt;
use std::sync::Arc;

use milonga_protocol::ServerName;
use milonga_protocol::env::{BoxFuture, Time};
use milonga_protocol::frame::Message;

/// A network that many share.
pub type SharedNetwork = Arc<dyn Network>;

/// Where a server is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Its name: must equal the name in its certificate.
    pub name: ServerName,
    /// Its address: `host:port` over QUIC, the name again in memory.
    pub address: Arc<str>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Calls servers. Dials on demand, keeps connections, dials again after a failure.
pub trait Network: Send + Sync + 'static {
    /// Sends a request and resolves to the response. Nothing is sent before the first poll; after it the request
    /// may be served even if the future is dropped.
    fn call(
        &self,
        to: &Peer,
        request: Message,
        deadline: Time,
    ) -> BoxFuture<'static, Result<Message, CallError>>;
}

/// Serves requests that arrive.
pub trait Service: Send + Sync + 'static {
    /// Handles one request; must not block. The answer goes to `reply`, now or later, from any task.
    /// Dropping `reply` unanswered makes the caller's call fail with [`CallError::Dropped`].
    ///
    /// The parts of a message may be slices of a larger buffer: what is kept for long is better copied.
    fn handle(&self, from: &Caller, request: Message, reply: Reply);
}

/// Who sent a request, as proved by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name in the certificate.
    pub name: ServerName,
    /// What the certificate allows.
    pub role: Role,
}

/// What a certificate allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// A server of the cluster: everything.
    Server,
    /// A client: no sealing, opening, bootstrapping.
    Client,
}

/// The way back to a caller; answers at most once.
pub struct Reply(Option<Box<dyn FnOnce(Message) + Send>>);

impl Reply {
    /// A way back that `send` carries out.
    pub fn new(send: impl FnOnce(Message) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    /// Sends the response.
    pub fn send(mut self, response: Message) {
        if let Some(send) = self.0.take() {
            send(response);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// Why a call has no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No connection: nothing was sent.
    #[error("cannot reach {peer}: {why}")]
    Unreachable {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
    /// The certificate of one side was not accepted by the other: nothing was sent. Retrying does not help.
    #[error(
        "{peer}: certificate not accepted: {why}; check that both sides use certificates of the same cluster (`milonga certs`)"
    )]
    Certificate {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
    /// The other side is not what it should be (wire version, cluster): nothing was sent. Retrying does not help.
    #[error("{peer}: {why}")]
    Handshake {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
    /// The request does not fit a frame: nothing was sent.
    #[error("request to {peer} is too large: {why}")]
    TooLarge {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
    /// The deadline passed. `sent`: the request may have been served.
    #[error("{peer} did not answer in time")]
    TimedOut {
        /// Whom.
        peer: String,
        /// Whether the request may have left this process.
        sent: bool,
    },
    /// The connection was lost, or the service dropped the request; it may have been served.
    #[error("connection to {peer} lost: {why}")]
    Dropped {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
}

impl CallError {
    /// Whether the request may have had an effect.
    #[must_use]
    pub const fn may_have_been_served(&self) -> bool {
        matches!(
            self,
            Self::TimedOut { sent: true, .. } | Self::Dropped { .. }
        )
    }

    /// Whether trying again can help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Dropped { .. }
        )
    }
}
