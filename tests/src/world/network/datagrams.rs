//! Datagrams between simulated sockets: lost, late, twice or damaged, like real ones.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use milonga_protocol::ServerName;

use super::WorldNetwork;
use crate::world::executor::ProcessId;

/// Datagrams that wait in a socket; more are dropped.
const MOST_WAITING: usize = 1_024;
/// The first port that is given to whoever wants any.
const FIRST_FREE: u16 = 20_000;

/// A bound socket.
pub(crate) struct Bound {
    pub(crate) process: ProcessId,
    pub(crate) name: ServerName,
    pub(crate) inbox: Arc<Inbox>,
}

/// What has arrived at a socket.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    datagrams: VecDeque<(SocketAddr, Bytes)>,
    waker: Option<Waker>,
}

impl Inbox {
    /// The next datagram; none: the task is woken when there is one.
    pub(crate) fn take(&self, cx: &Context<'_>) -> Option<(SocketAddr, Bytes)> {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = inbox.datagrams.pop_front();
        if first.is_none() {
            inbox.waker = Some(cx.waker().clone());
        }
        first
    }

    fn put(&self, from: SocketAddr, bytes: Bytes) {
        let mut inbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.datagrams.len() < MOST_WAITING {
            inbox.datagrams.push_back((from, bytes));
        }
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

impl WorldNetwork {
    /// Binds a socket of `process`; port 0 takes a free one. `None`: the port is taken.
    pub(crate) fn bind(
        &self,
        process: ProcessId,
        name: &ServerName,
        host: Ipv4Addr,
        port: u16,
    ) -> Option<(SocketAddr, Arc<Inbox>)> {
        let mut state = self.0.lock();
        let is_free = |port: &u16| !state.sockets.contains_key(&(host, *port).into());
        let port = match port {
            0 => (FIRST_FREE..u16::MAX).find(is_free)?,
            port => Some(port).filter(is_free)?,
        };
        let inbox = Arc::<Inbox>::default();
        let bound = Bound {
            process,
            name: name.clone(),
            inbox: Arc::clone(&inbox),
        };
        let address = (host, port).into();
        state.sockets.insert(address, bound);
        Some((address, inbox))
    }

    /// Closes a socket, unless another one is bound there by now.
    pub(crate) fn unbind(&self, address: SocketAddr, inbox: &Arc<Inbox>) {
        let mut state = self.0.lock();
        let is_it = |bound: &Bound| Arc::ptr_eq(&bound.inbox, inbox);
        if state.sockets.get(&address).is_some_and(is_it) {
            state.sockets.remove(&address);
        }
    }

    /// Sends a datagram.
    pub(crate) fn send(
        &self,
        name: &ServerName,
        from: SocketAddr,
        to: SocketAddr,
        contents: &[u8],
    ) {
        let executor = &self.0.executor;
        let now = executor.now();
        let mut state = self.0.lock();
        let Some(target) = state.sockets.get(&to) else {
            drop(state);
            executor.trace(&("datagram to nobody", name.as_str(), to, contents.len()));
            return;
        };
        let (process, other) = (target.process, target.name.clone());
        let inbox = Arc::clone(&target.inbox);
        let (arrivals, damaged) = state.model.draw_datagram(now, name, &other);
        drop(state);
        let line = (
            name.as_str(),
            other.as_str(),
            contents.len(),
            &arrivals,
            damaged,
        );
        executor.trace(&("datagram", line));
        let mut bytes = contents.to_vec();
        if let (true, Some(last)) = (damaged, bytes.last_mut()) {
            *last ^= 0x10;
        }
        let bytes = Bytes::from(bytes);
        for at in arrivals {
            let (inbox, bytes) = (Arc::clone(&inbox), bytes.clone());
            executor.schedule(at, process, move || inbox.put(from, bytes));
        }
    }
}
