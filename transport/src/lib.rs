//! Frames over QUIC with mutual TLS, and the same trait in memory.

mod bounds;
pub mod certs;
mod env;
mod identity;
mod in_flight;
mod lock;
mod memory;
mod network;
mod quic;
mod tls;

pub use bounds::Bounds;
pub use env::{NoRuntime, TokioEnv};
pub use identity::{Identity, OtherCluster};
pub use memory::{MemoryNetwork, Serving};
pub use network::{CallError, Caller, Network, Peer, Reply, Role, Service, SharedNetwork};
pub use quic::{BindError, QuicNetwork, QuicServer};
pub use tls::{Tls, TlsError};
