//! The serving side.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::ServerName;
use milonga_protocol::env::{SharedEnv, Task};
use quinn::{ConnectionError, Endpoint, Incoming, TransportErrorCode};
use tokio::sync::mpsc;

use super::datagrams::{Datagrams, Udp};
use super::failure::{Close, text};
use super::numbers::refused;
use super::serve::serve;
use super::settings::{server_config, server_endpoint};
use super::socket::Tracked;
use crate::bounds::Bounds;
use crate::env::NoRuntime;
use crate::identity::Identity;
use crate::network::{Role, Service};
use crate::tls::Tls;

/// Longest that [`QuicServer::close`] waits for callers to take note.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is not available.
    #[error(
        "cannot listen on {address}: {source}; stop the process that uses this port (`ss -ulpn`), or configure \
         another address"
    )]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate is not this server's.
    #[error(
        "the certificate is for {role:?} `{certificate}`, but this is server `{name}`; make one for it with \
         `milonga certs`"
    )]
    Certificate {
        /// The server's name.
        name: ServerName,
        /// The name in the certificate.
        certificate: ServerName,
        /// The role in the certificate.
        role: Role,
    },
    /// There is no tokio runtime here.
    #[error(transparent)]
    NoRuntime(#[from] NoRuntime),
}

/// Held by whatever [`QuicServer::close`] waits for.
pub(super) type Alive = mpsc::Sender<()>;

/// Serves callers over QUIC until it is dropped or closed.
pub struct QuicServer {
    shared: Arc<Shared>,
    pub(super) endpoint: Endpoint,
    address: SocketAddr,
    /// Ends when the socket and all tasks are gone.
    gone: Option<mpsc::Receiver<()>>,
    _acceptor: Task,
}

/// What all connections of a server share.
pub(super) struct Shared {
    pub(super) env: SharedEnv,
    pub(super) identity: Arc<Identity>,
    pub(super) service: Arc<dyn Service>,
    pub(super) bounds: Bounds,
}

impl QuicServer {
    /// Listens on `address` (port 0: any free one).
    ///
    /// # Errors
    /// [`BindError`] names the address or the certificate and says what to do.
    pub fn bind(
        env: SharedEnv,
        address: SocketAddr,
        tls: &Tls,
        identity: Arc<Identity>,
        service: Arc<dyn Service>,
    ) -> Result<Self, BindError> {
        Self::bind_with(env, address, tls, identity, service, Bounds::default())
    }

    /// As [`QuicServer::bind`], with bounds of one's own.
    ///
    /// # Errors
    /// As [`QuicServer::bind`].
    pub fn bind_with(
        env: SharedEnv,
        address: SocketAddr,
        tls: &Tls,
        identity: Arc<Identity>,
        service: Arc<dyn Service>,
        bounds: Bounds,
    ) -> Result<Self, BindError> {
        Self::bind_over(env, address, tls, identity, service, bounds, &Udp)
    }

    /// As [`QuicServer::bind_with`], over other sockets than this computer's.
    ///
    /// # Errors
    /// As [`QuicServer::bind`].
    pub fn bind_over(
        env: SharedEnv,
        address: SocketAddr,
        tls: &Tls,
        identity: Arc<Identity>,
        service: Arc<dyn Service>,
        bounds: Bounds,
        datagrams: &dyn Datagrams,
    ) -> Result<Self, BindError> {
        if tls.role() != Role::Server || tls.name() != identity.name() {
            return Err(BindError::Certificate {
                name: identity.name().clone(),
                certificate: tls.name().clone(),
                role: tls.role(),
            });
        }
        let runtime = datagrams.runtime()?;
        let config = server_config(tls, &bounds).expect("checked when it was read");
        let (alive, gone) = mpsc::channel(1);
        let made = || {
            let socket = datagrams.bind(address)?;
            let address = socket.local_addr()?;
            let socket = Tracked::new(socket, alive.clone());
            let endpoint = server_endpoint(tls, &env, datagrams.seed());
            Endpoint::new_with_abstract_socket(endpoint, Some(config), socket, runtime)
                .map(|endpoint| (endpoint, address))
        };
        let (endpoint, address) =
            made().map_err(|source| BindError::Address { address, source })?;
        let shared = Arc::new(Shared {
            env: env.clone(),
            identity,
            service,
            bounds,
        });
        let acceptor = accept(shared.clone(), endpoint.clone(), alive);
        Ok(Self {
            _acceptor: env.spawn("accept connections", Box::pin(acceptor)),
            shared,
            endpoint,
            address,
            gone: Some(gone),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops serving, tells the callers, and waits (at most a few seconds) until the address is free again and
    /// no task of this server is left. Dropping does the same without waiting.
    pub async fn close(mut self) {
        let env = self.shared.env.clone();
        let end = env.now().after(FAREWELL);
        self.stop();
        tokio::select! {
            biased;
            () = self.endpoint.wait_idle() => {}
            () = env.sleep_until(end) => {}
        }
        let gone = self.gone.take();
        drop(self);
        let Some(mut gone) = gone else { return };
        tokio::select! {
            biased;
            _ = gone.recv() => {}
            () = env.sleep_until(end) => {}
        }
    }

    fn stop(&self) {
        self.endpoint.close(Close::Done.code(), b"the server stops");
    }
}

impl Drop for QuicServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for QuicServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "QuicServer({} at {})",
            self.shared.identity.name(),
            self.address
        )
    }
}

async fn accept(shared: Arc<Shared>, endpoint: Endpoint, alive: Alive) {
    let most = shared.bounds.connections;
    while let Some(incoming) = endpoint.accept().await {
        let open = endpoint.open_connections();
        if open >= most {
            refused("full");
            tracing::debug!(remote = %incoming.remote_address(), open, "connection refused: too many");
            incoming.refuse();
        } else if open >= most / 2 && !incoming.remote_address_validated() {
            // Under load nothing is kept for somebody who may have forged his address.
            let _ = incoming.retry();
        } else {
            let welcome = welcome(shared.clone(), incoming, alive.clone());
            // Ends with the connection, which ends with the endpoint.
            shared
                .env
                .spawn("connection from a caller", Box::pin(welcome))
                .detach();
        }
    }
}

async fn welcome(shared: Arc<Shared>, incoming: Incoming, alive: Alive) {
    let remote = incoming.remote_address();
    let connection = tokio::select! {
        biased;
        connection = incoming.into_future() => connection.map_err(Some),
        () = shared.env.sleep(shared.bounds.handshake) => Err(None),
    };
    match connection {
        Ok(connection) => serve(shared, connection, alive).await,
        Err(Some(error)) if is_given_up(&error) => {
            given_up(remote, &text(&error));
        }
        Err(error) => {
            refused("tls");
            let why = error.map_or_else(|| "TLS took too long".to_owned(), |error| text(&error));
            tracing::warn!(%remote, why, "connection refused; callers need a certificate of this cluster");
        }
    }
}

/// That is nothing to worry about.
pub(super) fn given_up(remote: SocketAddr, why: &str) {
    tracing::debug!(%remote, why, "the caller has given up, or another of its attempts was faster");
}

/// Whether the caller ended an attempt of its own accord. (What it does not like about a certificate has another code.)
fn is_given_up(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::APPLICATION_ERROR)
}
