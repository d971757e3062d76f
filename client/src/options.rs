//! What one client may set for itself. Everything shared lives in the layout.

use std::time::Duration;

/// Local settings of one client. `Default` suits a data centre.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Every call ends after this long, with an answer or a typed error. 30 s.
    pub deadline: Duration,
    /// One message to one server is given up after this long and, where that is harmless, sent again. 2 s.
    pub call_timeout: Duration,
    /// How long the client goes on finishing, in the background, an append whose caller has heard
    /// `OutcomeUnknown`. 60 s.
    pub background: Duration,
    /// Groups of appends under way at a time; others wait and make up the next group. 8.
    pub groups_in_flight: usize,
    /// Most appends of one group. 1,024.
    pub group_entries: usize,
    /// A group stops growing at this many bytes of payload. 1 MiB.
    pub group_bytes: usize,
    /// Most appends under way, waiting ones included; more wait to begin. 65,536.
    pub in_flight_entries: usize,
    /// Most bytes of payload under way. 64 MiB.
    pub in_flight_bytes: usize,
    /// A hole is filled after this long, or after four times the observed 99th percentile of appends if that is
    /// longer, though not longer than [`Self::call_timeout`]. 20 ms.
    pub hole_time: Duration,
    /// Bytes of payload that a subscription keeps ready. 1 MiB.
    pub prefetch_bytes: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            call_timeout: Duration::from_secs(2),
            background: Duration::from_secs(60),
            groups_in_flight: 8,
            group_entries: 1_024,
            group_bytes: 1 << 20,
            in_flight_entries: 65_536,
            in_flight_bytes: 64 << 20,
            hole_time: Duration::from_millis(20),
            prefetch_bytes: 1 << 20,
        }
    }
}
