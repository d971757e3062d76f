//! Real quinn and rustls in the world: over simulated sockets, on the world's time.
//!
//! Keys and serial numbers are fixed, so every handshake has the same length in every run; what TLS draws at random
//! shows in no length and no time.

mod certs;
mod runtime;
mod socket;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use milonga_protocol::frame::Message;
use milonga_protocol::{ServerName, SharedEnv};
use milonga_transport::{
    Bounds, Caller, Identity, QuicNetwork, QuicServer, Reply, Role, Service, SharedNetwork, Tls,
};

use crate::world::executor::{Executor, ProcessId};
use crate::world::journal::{Journal, Observed};
use crate::world::network::{Direction, Letter, WorldNetwork};
use certs::Certificates;
use socket::WorldDatagrams;

/// The port on which every server listens.
const PORT: u16 = 7_000;

/// How the processes of a world reach each other.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// Frames over the world's network; a process's address is its name.
    Memory,
    /// QUIC over simulated sockets.
    Quic(Arc<Quic>),
}

/// What all processes need for QUIC.
#[derive(Debug)]
pub(crate) struct Quic {
    hosts: BTreeMap<ServerName, Ipv4Addr>,
    certificates: Certificates,
    /// The real moment that stands for the beginning of every process's clock: quinn only counts from it.
    base: Instant,
}

/// One process at its wire.
pub(crate) struct Plug<'a> {
    pub(crate) executor: &'a Executor,
    pub(crate) network: &'a WorldNetwork,
    pub(crate) journal: &'a Journal,
    pub(crate) process: ProcessId,
    pub(crate) env: &'a SharedEnv,
    pub(crate) name: &'a ServerName,
}

impl Line {
    pub(crate) fn quic(servers: &[ServerName], clients: &[ServerName]) -> Self {
        let host = |(index, name): (usize, &ServerName)| {
            let last = u8::try_from(index + 1).expect("few processes");
            (name.clone(), Ipv4Addr::new(10, 0, 0, last))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "quinn wants some Instant to count from"
        )]
        let base = Instant::now();
        Self::Quic(Arc::new(Quic {
            hosts: servers
                .iter()
                .chain(clients)
                .enumerate()
                .map(host)
                .collect(),
            certificates: Certificates::new(servers, clients),
            base,
        }))
    }

    /// Where others reach the server `name`.
    pub(crate) fn address(&self, name: &ServerName) -> String {
        match self {
            Self::Memory => name.as_str().to_owned(),
            Self::Quic(quic) => SocketAddr::from((quic.hosts[name], PORT)).to_string(),
        }
    }

    /// The network as a process sees it.
    pub(crate) fn network(
        &self,
        plug: &Plug<'_>,
        role: Role,
        identity: &Arc<Identity>,
    ) -> SharedNetwork {
        match self {
            Self::Memory => {
                plug.network
                    .endpoint(plug.process, Arc::clone(plug.env), plug.name.clone(), role)
            }
            Self::Quic(quic) => QuicNetwork::client_over(
                Arc::clone(plug.env),
                quic.tls(plug.name),
                Arc::clone(identity),
                Bounds::default(),
                Arc::new(quic.datagrams(plug)),
            ),
        }
    }

    /// Serves under the process's name. What is returned has to be kept.
    pub(crate) fn serve(
        &self,
        plug: &Plug<'_>,
        identity: &Arc<Identity>,
        service: Arc<dyn Service>,
    ) -> Result<Option<QuicServer>, String> {
        match self {
            Self::Memory => {
                plug.network
                    .listen(plug.name.clone(), plug.process, service);
                Ok(None)
            }
            Self::Quic(quic) => {
                let tap = Tap {
                    name: plug.name.clone(),
                    executor: plug.executor.clone(),
                    journal: plug.journal.clone(),
                    service,
                };
                let server = QuicServer::bind_over(
                    Arc::clone(plug.env),
                    (quic.hosts[plug.name], PORT).into(),
                    quic.tls(plug.name),
                    Arc::clone(identity),
                    Arc::new(tap),
                    Bounds::default(),
                    &quic.datagrams(plug),
                );
                server.map(Some).map_err(|error| error.to_string())
            }
        }
    }
}

impl Quic {
    fn tls(&self, name: &ServerName) -> &Tls {
        self.certificates.of(name)
    }

    fn datagrams(&self, plug: &Plug<'_>) -> WorldDatagrams {
        WorldDatagrams {
            network: plug.network.clone(),
            process: plug.process,
            env: Arc::clone(plug.env),
            name: plug.name.clone(),
            host: self.hosts[plug.name],
            base: self.base,
        }
    }
}

/// Notes what a service is asked and answers, for the invariants: on the wire it cannot be read.
struct Tap {
    name: ServerName,
    executor: Executor,
    journal: Journal,
    service: Arc<dyn Service>,
}

impl Service for Tap {
    fn handle(&self, from: &Caller, request: Message, reply: Reply) {
        let call = self.journal.next_call();
        let (now, link) = (self.executor.now(), (&from.name, &self.name));
        let letter = Letter::new(now, call, link, Direction::Request, &request);
        self.executor.trace(&letter);
        self.journal.push(Observed::Letter(letter));
        let (executor, journal) = (self.executor.clone(), self.journal.clone());
        let (server, caller) = (self.name.clone(), from.name.clone());
        let reply = Reply::new(move |response: Message| {
            let (now, link) = (executor.now(), (&server, &caller));
            let letter = Letter::new(now, call, link, Direction::Response, &response);
            executor.trace(&letter);
            journal.push(Observed::Answered(letter));
            reply.send(response);
        });
        self.service.handle(from, request, reply);
    }
}
