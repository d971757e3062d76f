//! What the core asks of its host.

use bytes::Bytes;
use milonga_protocol::messages::{CallId, Request, Response};
use milonga_protocol::settle::SendId;
use milonga_transport::Peer;

use crate::history::StoreChange;

/// Ties the outcome of a store to its effect; never used twice by one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u64);

/// Ties the outcome of a confirmation to its effect; never used twice by one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfirmId(pub u64);

/// Something for the host to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutEffect {
    /// Call a server, with a deadline of about a second or two; feed the outcome to `LayoutCore::handle_reply`.
    /// Calls are independent of one another: do not wait for one before the next.
    Send {
        /// To be given back with the outcome.
        id: SendId,
        /// Whom.
        to: Peer,
        /// What.
        request: Request,
        /// The raw bytes that go with it.
        body: Bytes,
    },
    /// Propose to the history; feed the outcome to `LayoutCore::stored`. There is at most one at a time.
    Store {
        /// To be given back with the outcome.
        id: StoreId,
        /// What.
        change: StoreChange,
    },
    /// Ask a majority of the layout, from now on, whether this is its leader (`Replica::confirm_leadership`); feed the
    /// outcome to `LayoutCore::confirmed`. There is at most one at a time.
    Confirm {
        /// To be given back with the outcome.
        id: ConfirmId,
    },
    /// Answer a call.
    Reply(CallId, Response),
    /// This leader does not know any more what the history holds: once its leadership is confirmed again, it is to begin
    /// anew from there.
    BeginAnew {
        /// Why.
        why: String,
    },
}
