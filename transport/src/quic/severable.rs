//! Sockets that can be cut off from everybody, to see what others do then.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};

use super::datagrams::{Datagrams, Udp};
use crate::env::NoRuntime;

/// So often datagrams that came while it was cut off are thrown away before others have their turn.
const THROWN_AT_ONCE: usize = 64;

/// UDP sockets of this computer. While they are severed nothing that is sent leaves, and what comes is thrown away; nobody is
/// told, as if the cable were cut. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct SeverableUdp(Arc<AtomicBool>);

impl SeverableUdp {
    /// Cuts all sockets off, or joins them again.
    pub fn sever(&self, severed: bool) {
        self.0.store(severed, Ordering::Relaxed);
    }
}

impl Datagrams for SeverableUdp {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(SeverableSocket {
            socket: Udp.bind(address)?,
            severed: Arc::clone(&self.0),
        }))
    }

    fn runtime(&self) -> Result<Arc<dyn Runtime>, NoRuntime> {
        Udp.runtime()
    }
}

struct SeverableSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    severed: Arc<AtomicBool>,
}

impl SeverableSocket {
    fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Relaxed)
    }
}

impl AsyncUdpSocket for SeverableSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.is_severed() {
            return Ok(());
        }
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..THROWN_AT_ONCE {
            let received = self.socket.poll_recv(cx, buffers, meta);
            if !self.is_severed() || !matches!(received, Poll::Ready(Ok(_))) {
                return received;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for SeverableSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}
