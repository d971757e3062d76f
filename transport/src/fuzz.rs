//! Decoders that are private, for `milonga-fuzz`.

use milonga_protocol::frame::{Message, Prefix};

/// The frames in `bytes` if `step` of them come at a time, and whether what follows is malformed, rather than nothing.
pub async fn frames(bytes: &[u8], step: usize) -> (Vec<(Prefix, Message)>, bool) {
    crate::quic::cut(bytes, step).await
}
