//! What the transport counts, through the `metrics` facade. Handles are made once per connection.

use metrics::{Counter, Gauge, counter, gauge};

/// Counters of one connection's traffic.
#[derive(Clone)]
pub(super) struct Numbers {
    pub(super) frames_out: Counter,
    pub(super) bytes_out: Counter,
    pub(super) frames_in: Counter,
    pub(super) bytes_in: Counter,
    /// Bytes that wait to be sent, over all connections of this side.
    pub(super) queue_bytes: Gauge,
}

impl Numbers {
    pub(super) fn new(side: &'static str) -> Self {
        Self {
            frames_out: counter!("milonga_transport_frames_out_total", "side" => side),
            bytes_out: counter!("milonga_transport_bytes_out_total", "side" => side),
            frames_in: counter!("milonga_transport_frames_in_total", "side" => side),
            bytes_in: counter!("milonga_transport_bytes_in_total", "side" => side),
            queue_bytes: gauge!("milonga_transport_queue_bytes", "side" => side),
        }
    }
}

pub(super) fn dialled(succeeded: bool) {
    let outcome = if succeeded { "connected" } else { "failed" };
    counter!("milonga_transport_dials_total", "outcome" => outcome).increment(1);
}

pub(super) fn refused(why: &'static str) {
    counter!("milonga_transport_refused_total", "why" => why).increment(1);
}

pub(super) fn reply_dropped() {
    counter!("milonga_transport_replies_dropped_total").increment(1);
}
