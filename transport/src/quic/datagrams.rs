//! The seam under QUIC: where datagrams, timers and tasks come from.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;

use super::settings::socket;
use crate::env::NoRuntime;

/// Where QUIC finds its sockets and its runtime. The default is UDP under tokio; tests have others.
pub trait Datagrams: Send + Sync + 'static {
    /// Binds a socket; port 0 takes any free one.
    ///
    /// # Errors
    /// Why the address cannot be had.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// Timers and tasks of quinn itself.
    ///
    /// # Errors
    /// [`NoRuntime`] outside of it.
    fn runtime(&self) -> Result<Arc<dyn Runtime>, NoRuntime>;

    /// What quinn's own randomness starts from; `None`, as it must be in production: the operating system.
    fn seed(&self) -> Option<[u8; 32]> {
        None
    }
}

/// UDP sockets of this computer, under tokio.
#[derive(Clone, Copy, Debug)]
pub struct Udp;

impl Datagrams for Udp {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket(address)?)
    }

    fn runtime(&self) -> Result<Arc<dyn Runtime>, NoRuntime> {
        Handle::try_current().map_err(|_| NoRuntime)?;
        Ok(Arc::new(TokioRuntime))
    }
}
