//! A socket that says when it is gone.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// quinn drops its socket from a task of its own that nobody can wait for. This one drops `alive` after the
/// socket is closed, so that the address is known to be free.
pub(super) struct Tracked<T> {
    // In this order: the socket is dropped first.
    socket: Arc<dyn AsyncUdpSocket>,
    _alive: T,
}

impl<T: Send + Sync + 'static> Tracked<T> {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>, alive: T) -> Arc<Self> {
        Arc::new(Self {
            socket,
            _alive: alive,
        })
    }
}

impl<T> fmt::Debug for Tracked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl<T: Send + Sync + 'static> AsyncUdpSocket for Tracked<T> {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            inner: self.socket.clone().create_io_poller(),
            _of: self,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, buffers, meta)
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

/// Keeps the socket alive, so it counts as being in use.
struct Poller<T> {
    inner: Pin<Box<dyn UdpPoller>>,
    _of: Arc<Tracked<T>>,
}

impl<T: Send + Sync + 'static> UdpPoller for Poller<T> {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_writable(cx)
    }
}

impl<T> fmt::Debug for Poller<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
