//! UDP sockets of the world: quinn's end of them.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use milonga_protocol::{ServerName, SharedEnv};
use milonga_transport::{Datagrams, NoRuntime};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use super::runtime::WorldRuntime;
use crate::world::executor::ProcessId;
use crate::world::network::{Inbox, WorldNetwork};

/// Where the sockets of one process come from.
pub(crate) struct WorldDatagrams {
    pub(crate) network: WorldNetwork,
    pub(crate) process: ProcessId,
    pub(crate) env: SharedEnv,
    pub(crate) name: ServerName,
    pub(crate) host: Ipv4Addr,
    pub(crate) base: Instant,
}

impl Datagrams for WorldDatagrams {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let bound = self
            .network
            .bind(self.process, &self.name, self.host, address.port());
        let (address, inbox) = bound.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))?;
        Ok(Arc::new(WorldSocket {
            network: self.network.clone(),
            name: self.name.clone(),
            address,
            inbox,
        }))
    }

    fn runtime(&self) -> Result<Arc<dyn Runtime>, NoRuntime> {
        Ok(Arc::new(WorldRuntime {
            env: Arc::clone(&self.env),
            base: self.base,
        }))
    }

    fn seed(&self) -> Option<[u8; 32]> {
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&self.env.random().to_le_bytes());
        }
        Some(seed)
    }
}

struct WorldSocket {
    network: WorldNetwork,
    name: ServerName,
    address: SocketAddr,
    inbox: Arc<Inbox>,
}

impl AsyncUdpSocket for WorldSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.send(
            &self.name,
            self.address,
            transmit.destination,
            transmit.contents,
        );
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Some((from, bytes)) = self.inbox.take(cx) else {
                break;
            };
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta {
                addr: from,
                len,
                stride: len,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count > 0 {
            Poll::Ready(Ok(count))
        } else {
            Poll::Pending
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for WorldSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorldSocket({} at {})", self.name, self.address)
    }
}

impl Drop for WorldSocket {
    fn drop(&mut self) {
        self.network.unbind(self.address, &self.inbox);
    }
}

/// A simulated socket takes everything at once.
#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
