//! The network over QUIC keeps the contract, on real sockets.

mod suite;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use milonga_protocol::env::{BoxFuture, SharedEnv};
use milonga_protocol::{Incarnation, ServerName};
use milonga_transport::certs::Authority;
use milonga_transport::{
    Bounds, Identity, Peer, QuicNetwork, QuicServer, Role, Service, SharedNetwork, TokioEnv,
};
use suite::{NetworkUnderTest, Running, conformance};

const SERVERS: usize = 3;

struct Quic {
    env: SharedEnv,
    authority: Authority,
    bounds: Bounds,
    /// Found free at the start; a server that comes back has the same address.
    addresses: [SocketAddr; SERVERS],
    clients: Mutex<Vec<(usize, SharedNetwork)>>,
}

fn quic() -> Quic {
    let sockets: [_; SERVERS] = std::array::from_fn(|_| {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")
    });
    let mut bounds = Bounds::default();
    bounds.in_flight_bytes = 1 << 20;
    bounds.queue_bytes = 1 << 20;
    Quic {
        env: TokioEnv::new(),
        authority: Authority::new().expect("made"),
        bounds,
        addresses: sockets.map(|socket| socket.local_addr().expect("bound")),
        clients: Mutex::default(),
    }
}

impl NetworkUnderTest for Quic {
    fn env(&self) -> SharedEnv {
        self.env.clone()
    }

    fn client(&self, n: usize) -> SharedNetwork {
        let mut clients = self.clients.lock().expect("no check panicked");
        if let Some((_, client)) = clients.iter().find(|(number, _)| *number == n) {
            return client.clone();
        }
        let name = ServerName::new(format!("client-{n}"));
        let tls = self.authority.tls(&name, Role::Client).expect("made");
        let identity = Identity::new(name, Incarnation(n as u128));
        let client = QuicNetwork::client_with(self.env(), &tls, identity, self.bounds.clone());
        clients.push((n, client.clone()));
        client
    }

    fn peer(&self, n: usize) -> Peer {
        Peer {
            name: ServerName::new(format!("server-{n}")),
            address: self.addresses[n].to_string().into(),
        }
    }

    fn serve(&self, n: usize, service: Arc<dyn Service>) -> BoxFuture<'_, Running> {
        let name = self.peer(n).name;
        let tls = self.authority.tls(&name, Role::Server).expect("made");
        let identity = Identity::new(name, Incarnation(n as u128));
        let server = QuicServer::bind_with(
            self.env(),
            self.addresses[n],
            &tls,
            identity,
            service,
            self.bounds.clone(),
        )
        .expect("bound");
        Box::pin(async { Running(Box::new(|| Box::pin(server.close()))) })
    }
}

conformance!(quic);
