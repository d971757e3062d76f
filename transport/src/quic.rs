//! The network over QUIC.
//!
//! ```text
//!  call ──> link (one per peer: dials, remembers failures)
//!            └─ wire (one per connection: calls in flight, room for what waits to be sent)
//!                ├─ stream 0, 1: bidirectional; requests out, responses back, any order, by call number
//!                └─ bulk: one unidirectional stream each way for large messages
//! ```
//!
//! Each stream has one writer task, which sends everything that waits in one go, and one reader task, which
//! completes calls on the client and calls the service on the server. The first frame on stream 0, both ways, is
//! the handshake; nothing else is read before.

mod client;
mod datagrams;
mod failure;
mod frames;
mod greeting;
mod link;
mod numbers;
mod pipe;
mod replies;
mod serve;
mod server;
mod settings;
mod severable;
mod silence;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

pub use client::QuicNetwork;
pub use datagrams::{Datagrams, Udp};
#[cfg(feature = "fuzzing")]
pub(crate) use frames::cut;
pub use server::{BindError, QuicServer};
pub use severable::SeverableUdp;
