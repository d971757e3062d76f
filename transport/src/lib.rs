//! Frames over QUIC with mutual TLS, and the same trait in memory.
//!
//! ```text
//!   Network::call ──┬── MemoryNetwork ── Service::handle, on the caller's task
//!                   └── QuicNetwork ═══ QUIC ═══ QuicServer ── Service::handle, on the connection's task
//! ```
//!
//! [`Network`] and [`Service`] are the seam: whoever calls or serves knows only these, and the conformance suite in
//! `tests/suite` holds for every implementation. Nothing here knows what a message means.
//!
//! Over QUIC every connection is proved on both sides by certificates of one authority ([`certs`], [`Tls`]); they
//! carry the name and the [`Role`], which a service gets as [`Caller`]. In memory there is nothing to prove.
//!
//! Everything that waits is bounded, in bytes ([`Bounds`]), and every call ends at its deadline. [`TokioEnv`] is the
//! real clock, spawner and randomness; nothing process-wide is installed, the crypto provider included.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use milonga_protocol::env::SharedEnv;
//! use milonga_protocol::frame::Message;
//! use milonga_protocol::{Incarnation, ServerName};
//! use milonga_transport::{
//!     Caller, Identity, Peer, QuicNetwork, QuicServer, Reply, Role, Service, Tls, TokioEnv,
//! };
//!
//! struct Echo;
//! impl Service for Echo {
//!     fn handle(&self, _from: &Caller, request: Message, reply: Reply) {
//!         reply.send(request);
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let env: SharedEnv = TokioEnv::try_new()?;
//! let [unit, app] = Tls::self_made([("unit-1a", Role::Server), ("app", Role::Client)])?;
//! let identity = |tls: &Tls| Identity::new(tls.name().clone(), Incarnation(env.random_id()));
//!
//! let any_port = "127.0.0.1:0".parse()?;
//! let server = QuicServer::bind(env.clone(), any_port, &unit, identity(&unit), Arc::new(Echo))?;
//! let peer = Peer {
//!     name: ServerName::new("unit-1a"),
//!     address: server.local_addr().to_string().into(),
//! };
//!
//! let network = QuicNetwork::client(env.clone(), &app, identity(&app));
//! let deadline = env.now().after(Duration::from_secs(10));
//! let request = Message { header: "hello".into(), body: "raw bytes".into() };
//! assert_eq!(network.call(&peer, request.clone(), deadline).await?, request);
//!
//! server.close().await;
//! # Ok(())
//! # }
//! ```

mod bounds;
pub mod certs;
mod env;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
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
pub use quic::{BindError, Datagrams, QuicNetwork, QuicServer, SeverableUdp, Udp};
pub use tls::{Tls, TlsError};
