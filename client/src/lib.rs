//! The client: append, read, settle, follow, over replica chains.
//!
//! ```text
//!              LogClient: implements `milonga_protocol::Log`
//!    /       |          |            |         |         \
//! append   tail       read        streams    trim     subscribe
//!    \       |          |            |         |
//!     \      |        settle (the pure procedure of milonga-protocol)
//!      `-----+----------+------------+---------'
//!                    cluster: newest layout, messages, retry
//!                       |
//!              milonga_transport::Network
//! ```
//!
//! Every call ends by its deadline with an answer or a typed error. Clients keep no state that others need: when one
//! dies, others settle what it left behind.

mod append;
mod client;
mod cluster;
mod latency;
mod marks;
mod options;
mod read;
mod retry;
mod settle;
mod streams;
mod subscribe;
mod tail;
mod tasks;
mod trim;

pub use client::LogClient;
pub use cluster::ConnectError;
pub use options::ClientOptions;
pub use subscribe::Subscription;
