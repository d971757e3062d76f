//! The calling side.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use milonga_protocol::env::{BoxFuture, SharedEnv, Time};
use milonga_protocol::frame::{Message, check_size};
use milonga_protocol::sync::Mutex;
use quinn::Endpoint;

use super::datagrams::{Datagrams, Udp};
use super::failure::Close;
use super::link::Link;
use super::settings::{client_config, client_endpoint};
use super::wire::Unsent;
use crate::bounds::Bounds;
use crate::identity::Identity;
use crate::in_flight::NoAnswer;
use crate::lock::lock;
use crate::network::{CallError, Network, Peer, SharedNetwork};
use crate::tls::Tls;

/// Peers remembered before those without a connection are forgotten.
const MANY_PEERS: usize = 256;

/// Calls servers over QUIC. One connection per peer, made on demand and again after a loss; dropping the network
/// closes them all and fails what is in flight.
pub struct QuicNetwork {
    dialler: Arc<Dialler>,
    links: Mutex<BTreeMap<Peer, Arc<Link>>>,
}

/// What it takes to make a connection.
pub(super) struct Dialler {
    pub(super) env: SharedEnv,
    pub(super) identity: Arc<Identity>,
    pub(super) bounds: Bounds,
    pub(super) config: quinn::ClientConfig,
    datagrams: Arc<dyn Datagrams>,
    endpoints: Mutex<Endpoints>,
}

/// One endpoint for each family of addresses, bound when it is first needed.
#[derive(Default)]
struct Endpoints {
    closed: bool,
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl QuicNetwork {
    /// A network that proves itself with `tls` and says `identity`. Nothing is bound or sent before the first call.
    #[must_use]
    pub fn client(env: SharedEnv, tls: &Tls, identity: Arc<Identity>) -> SharedNetwork {
        Self::client_with(env, tls, identity, Bounds::default())
    }

    /// As [`QuicNetwork::client`], with bounds of one's own.
    #[must_use]
    pub fn client_with(
        env: SharedEnv,
        tls: &Tls,
        identity: Arc<Identity>,
        bounds: Bounds,
    ) -> SharedNetwork {
        Self::client_over(env, tls, identity, bounds, Arc::new(Udp))
    }

    /// As [`QuicNetwork::client_with`], over other sockets than this computer's.
    #[must_use]
    pub fn client_over(
        env: SharedEnv,
        tls: &Tls,
        identity: Arc<Identity>,
        bounds: Bounds,
        datagrams: Arc<dyn Datagrams>,
    ) -> SharedNetwork {
        let config = client_config(tls, &bounds).expect("checked when it was read");
        Arc::new(Self {
            dialler: Arc::new(Dialler {
                env,
                identity,
                bounds,
                config,
                datagrams,
                endpoints: Mutex::default(),
            }),
            links: Mutex::default(),
        })
    }

    fn link(&self, to: &Peer) -> Arc<Link> {
        let mut links = lock(&self.links);
        if let Some(link) = links.get(to) {
            return link.clone();
        }
        if links.len() >= MANY_PEERS {
            links.retain(|_, link| !link.is_idle());
        }
        let link = Link::new(to.clone());
        links.insert(to.clone(), link.clone());
        link
    }
}

impl Network for QuicNetwork {
    fn call(
        &self,
        to: &Peer,
        request: Message,
        deadline: Time,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        let call = call(self.dialler.clone(), self.link(to), request, deadline);
        Box::pin(call)
    }
}

async fn call(
    dialler: Arc<Dialler>,
    link: Arc<Link>,
    request: Message,
    deadline: Time,
) -> Result<Message, CallError> {
    let peer = || link.peer().to_string();
    let timed_out = |sent| CallError::TimedOut { peer: peer(), sent };
    if let Err(error) = check_size(request.header.len(), request.body.len()) {
        let why = error.to_string();
        return Err(CallError::TooLarge { peer: peer(), why });
    }
    if dialler.env.now() >= deadline {
        return Err(timed_out(false));
    }
    let pending = loop {
        let wire = match link.up() {
            Some(wire) => wire,
            None => link.wire(&dialler, deadline).await?,
        };
        match wire.send(&dialler.env, &request, deadline).await {
            Ok(pending) => break pending,
            Err(Unsent::TimedOut) => return Err(timed_out(false)),
            // Nothing was sent: another connection may do.
            Err(Unsent::Closed) => link.lost(&wire),
        }
    };
    drop(request);
    pending.await.map_err(|failure| match failure {
        NoAnswer::TimedOut => timed_out(true),
        NoAnswer::Dropped(why) => CallError::Dropped {
            peer: peer(),
            why: why.to_string(),
        },
    })
}

impl Dialler {
    /// The endpoint to reach `to` from; why there is none.
    pub(super) fn endpoint(&self, to: SocketAddr) -> Result<Endpoint, String> {
        let mut endpoints = lock(&self.endpoints);
        if endpoints.closed {
            return Err("this side is closed".to_owned());
        }
        let (place, any): (_, SocketAddr) = if to.is_ipv4() {
            (&mut endpoints.v4, (Ipv4Addr::UNSPECIFIED, 0).into())
        } else {
            (&mut endpoints.v6, (Ipv6Addr::UNSPECIFIED, 0).into())
        };
        if let Some(endpoint) = place {
            return Ok(endpoint.clone());
        }
        let made = || {
            let runtime = self.datagrams.runtime().map_err(io::Error::other)?;
            let socket = self.datagrams.bind(any)?;
            let config = client_endpoint(self.datagrams.seed());
            Endpoint::new_with_abstract_socket(config, None, socket, runtime)
        };
        let endpoint = made().map_err(|error| format!("no UDP socket: {error}"))?;
        Ok(place.insert(endpoint).clone())
    }
}

impl Drop for QuicNetwork {
    fn drop(&mut self) {
        let mut endpoints = lock(&self.dialler.endpoints);
        endpoints.closed = true;
        for endpoint in [endpoints.v4.take(), endpoints.v6.take()]
            .into_iter()
            .flatten()
        {
            endpoint.close(Close::Done.code(), b"the client has closed its network");
        }
    }
}

impl fmt::Debug for QuicNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuicNetwork({})", self.dialler.identity.name())
    }
}
