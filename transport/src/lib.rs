//! Frames over QUIC with mutual TLS, and the same trait in memory.

mod network;

pub use network::{CallError, Caller, Network, Peer, Reply, Role, Service, SharedNetwork};
