//! quinn's timers and tasks, on the world's executor.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use milonga_protocol::{BoxFuture, SharedEnv, Time};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};

/// The runtime of one process.
#[derive(Clone)]
pub(crate) struct WorldRuntime {
    pub(crate) env: SharedEnv,
    /// Stands for the beginning of the process's clock.
    pub(crate) base: Instant,
}

impl WorldRuntime {
    fn time(&self, instant: Instant) -> Time {
        Time::from_start(instant.saturating_duration_since(self.base))
    }
}

impl fmt::Debug for WorldRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorldRuntime")
    }
}

impl Runtime for WorldRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let sleep = self.env.sleep_until(self.time(at));
        let runtime = self.clone();
        Box::pin(Timer { runtime, sleep })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // Ends with its endpoint or connection, or with the process.
        self.env.spawn("quinn", future).detach();
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::Error::other("the world has no real sockets"))
    }

    fn now(&self) -> Instant {
        self.base + self.env.now().since_start()
    }
}

struct Timer {
    runtime: WorldRuntime,
    sleep: BoxFuture<'static, ()>,
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.sleep = self.runtime.env.sleep_until(self.runtime.time(at));
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}
