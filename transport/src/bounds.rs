//! A bound on everything that waits, in bytes.

use std::time::Duration;

use milonga_protocol::frame::Message;
use tokio::sync::Semaphore;

/// What a waiting request costs beyond its bytes: bookkeeping here and in the service.
const OVERHEAD: usize = 256;

/// How much may wait, and how long. The defaults suit servers; tests use smaller ones.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// Bytes of requests that wait to be sent on one connection; above, calls wait for room until their deadline.
    pub queue_bytes: usize,
    /// Bytes of requests of one connection that a server is working on, and of its replies that wait to be sent;
    /// above, the server stops reading from that connection.
    pub in_flight_bytes: usize,
    /// Bytes of replies that wait to be sent on one connection; above, replies are dropped. Only reached when
    /// replies are much larger than their requests and the caller does not read.
    pub reply_bytes: usize,
    /// Connections that a server has open; above, it refuses new ones. From half of it on, new ones have to
    /// prove their address first.
    pub connections: usize,
    /// Longest time for setting up a connection, each for dialling and for the first frames.
    pub handshake: Duration,
    /// A connection from which nothing was heard that long is lost.
    pub idle: Duration,
    /// How often a connection without traffic is probed.
    pub keep_alive: Duration,
    /// A server that has acknowledged nothing for so long, though there was something, is dialled anew by the next call;
    /// calls that are under way stay where they are. It should be several round trips. Where the server turned out to be only
    /// slow it is twice as long the next time, 16 times at most, until a connection has stayed for a while.
    pub silent: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            queue_bytes: 32 << 20,
            in_flight_bytes: 32 << 20,
            reply_bytes: 128 << 20,
            connections: 1_024,
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
            silent: Duration::from_millis(500),
        }
    }
}

/// What a request counts against a bound on requests being worked on.
pub(crate) const fn cost_of(request: &Message) -> usize {
    OVERHEAD + request.len()
}

/// A bound in bytes as a number of permits.
pub(crate) fn permits(bytes: usize) -> usize {
    bytes.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize)
}
