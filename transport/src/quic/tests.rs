//! What the conformance suite cannot ask of every network: certificates, intruders, restarts, the wire itself.

mod certificates;
mod golden;
mod handshakes;
mod intruders;
mod restarts;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::Incarnation;
use milonga_protocol::env::SharedEnv;
use milonga_protocol::frame::Message;

use super::server::QuicServer;
use crate::bounds::Bounds;
use crate::certs::Authority;
use crate::env::TokioEnv;
use crate::identity::Identity;
use crate::network::{CallError, Caller, Peer, Reply, Role, Service, SharedNetwork};
use crate::quic::QuicNetwork;
use crate::tls::Tls;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Answers with the caller's name and role, or `hold`s for ever.
struct Mirror;

impl Service for Mirror {
    fn handle(&self, from: &Caller, request: Message, reply: Reply) {
        if &request.header[..] == b"hold" {
            return std::mem::forget(reply);
        }
        reply.send(Message {
            header: Bytes::from(format!("{} {:?}", from.name, from.role)),
            body: request.body,
        });
    }
}

/// An authority and an environment.
struct Town {
    env: SharedEnv,
    authority: Authority,
    bounds: Bounds,
}

impl Town {
    fn new() -> Self {
        Self {
            env: TokioEnv::new(),
            authority: Authority::new().expect("made"),
            bounds: Bounds::default(),
        }
    }

    fn tls(&self, name: &str, role: Role) -> Tls {
        self.authority.tls(&name.into(), role).expect("made")
    }

    fn serve(&self, name: &str) -> QuicServer {
        self.serve_as(LOCAL, Identity::new(name.into(), Incarnation(1)))
    }

    fn serve_as(&self, address: SocketAddr, identity: Arc<Identity>) -> QuicServer {
        let tls = self.tls(identity.name().as_str(), Role::Server);
        let (env, bounds) = (self.env.clone(), self.bounds.clone());
        QuicServer::bind_with(env, address, &tls, identity, Arc::new(Mirror), bounds)
            .expect("a free port")
    }

    fn client(&self, name: &str) -> SharedNetwork {
        self.client_with(&self.tls(name, Role::Client))
    }

    fn client_with(&self, tls: &Tls) -> SharedNetwork {
        self.client_as(tls, Identity::new(tls.name().clone(), Incarnation(2)))
    }

    fn client_as(&self, tls: &Tls, identity: Arc<Identity>) -> SharedNetwork {
        QuicNetwork::client_with(self.env.clone(), tls, identity, self.bounds.clone())
    }

    async fn call(&self, network: &SharedNetwork, to: &Peer) -> Result<Message, CallError> {
        self.ask(network, to, "").await
    }

    async fn ask(
        &self,
        network: &SharedNetwork,
        to: &Peer,
        header: &'static str,
    ) -> Result<Message, CallError> {
        let request = Message {
            header: Bytes::from_static(header.as_bytes()),
            body: Bytes::from_static(b"body"),
        };
        let deadline = self.env.now().after(Duration::from_secs(20));
        network.call(to, request, deadline).await
    }
}

fn peer(name: &str, server: &QuicServer) -> Peer {
    Peer {
        name: name.into(),
        address: server.local_addr().to_string().into(),
    }
}
