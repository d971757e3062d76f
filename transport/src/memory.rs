//! The network in memory: one process, no bytes on any wire, the same contract.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use milonga_protocol::ServerName;
use milonga_protocol::env::{BoxFuture, SharedEnv, Task, Time};
use milonga_protocol::frame::{Message, check_size};
use milonga_protocol::sync::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bounds::{Bounds, cost_of, permits};
use crate::in_flight::{InFlight, NoAnswer};
use crate::lock::lock;
use crate::network::{CallError, Caller, Network, Peer, Reply, Role, Service, SharedNetwork};

/// Servers by name and the links between them. A memory server's address is its name, and only the name counts.
///
/// A service is called on the task of its caller. Links can be cut and servers killed, for tests.
pub struct MemoryNetwork {
    env: SharedEnv,
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    servers: BTreeMap<ServerName, Arc<Server>>,
    /// Directions in which nothing gets through.
    cut: BTreeSet<(ServerName, ServerName)>,
}

struct Server {
    service: Arc<dyn Service>,
    in_flight: Arc<InFlight>,
    /// Bytes of requests that may wait for their answers.
    room: Arc<Semaphore>,
    /// Ends calls at their deadlines.
    _sweeper: Task,
}

impl MemoryNetwork {
    /// A network without servers.
    #[must_use]
    pub fn new(env: SharedEnv) -> Arc<Self> {
        Self::with_bounds(env, Bounds::default())
    }

    /// A network without servers, with bounds of one's own.
    #[must_use]
    pub fn with_bounds(env: SharedEnv, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            env,
            bounds,
            state: Mutex::default(),
        })
    }

    /// The network as `name` sees it: calls go out under that name and role.
    #[must_use]
    pub fn endpoint(self: &Arc<Self>, name: ServerName, role: Role) -> SharedNetwork {
        Arc::new(Endpoint {
            network: Arc::clone(self),
            caller: Arc::new(Caller { name, role }),
        })
    }

    /// Serves under `name` until the guard is dropped. A server of that name that is still there is killed.
    pub fn serve(self: &Arc<Self>, name: ServerName, service: Arc<dyn Service>) -> Serving {
        let in_flight = Arc::new(InFlight::default());
        let sweeper = in_flight.clone().sweep(self.env.clone());
        let server = Arc::new(Server {
            service,
            in_flight,
            room: Arc::new(Semaphore::new(permits(self.bounds.in_flight_bytes))),
            _sweeper: self.env.spawn("memory deadlines", Box::pin(sweeper)),
        });
        let before = lock(&self.state)
            .servers
            .insert(name.clone(), server.clone());
        if let Some(before) = before {
            before.stop(&name);
        }
        Serving {
            network: Arc::clone(self),
            name,
            server,
        }
    }

    /// Kills the server: calls in flight fail with [`CallError::Dropped`], later ones find nobody.
    pub fn kill(&self, name: &ServerName) {
        let server = lock(&self.state).servers.remove(name);
        if let Some(server) = server {
            server.stop(name);
        }
    }

    /// Cuts the link between two processes: what they send each other vanishes, and calls end at their deadlines.
    pub fn cut(&self, a: &ServerName, b: &ServerName) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Cuts one direction of a link: requests that `from` makes to `to`, and answers that it owes `to`.
    pub fn cut_one_way(&self, from: &ServerName, to: &ServerName) {
        lock(&self.state).cut.insert((from.clone(), to.clone()));
    }

    /// Mends the link between two processes, both ways.
    pub fn heal(&self, a: &ServerName, b: &ServerName) {
        let mut state = lock(&self.state);
        state.cut.remove(&(a.clone(), b.clone()));
        state.cut.remove(&(b.clone(), a.clone()));
    }

    fn is_cut(&self, from: &ServerName, to: &ServerName) -> bool {
        let state = lock(&self.state);
        !state.cut.is_empty() && state.cut.contains(&(from.clone(), to.clone()))
    }

    async fn call(
        self: Arc<Self>,
        caller: Arc<Caller>,
        to: Peer,
        request: Message,
        deadline: Time,
    ) -> Result<Message, CallError> {
        let peer = || to.to_string();
        if let Err(error) = check_size(request.header.len(), request.body.len()) {
            let why = error.to_string();
            return Err(CallError::TooLarge { peer: peer(), why });
        }
        let unsent = || CallError::TimedOut {
            peer: peer(),
            sent: false,
        };
        if self.env.now() >= deadline {
            return Err(unsent());
        }
        let server = lock(&self.state).servers.get(&to.name).cloned();
        let unreachable = || CallError::Unreachable {
            peer: peer(),
            why: "no server of that name is running".to_owned(),
        };
        let server = server.ok_or_else(unreachable)?;
        if self.is_cut(&caller.name, &to.name) {
            self.env.sleep_until(deadline).await;
            return Err(CallError::TimedOut {
                peer: peer(),
                sent: true,
            });
        }
        let cost = permits(cost_of(&request).min(self.bounds.in_flight_bytes));
        let room = self.room(&server, cost, deadline).await;
        let room = room.ok_or_else(unsent)?;
        let Ok(pending) = server.in_flight.register(deadline) else {
            return Err(unreachable());
        };
        let ticket = Ticket {
            network: self.clone(),
            in_flight: server.in_flight.clone(),
            from: to.name.clone(),
            to: caller.clone(),
            call: pending.number(),
            answered: false,
            _room: room,
        };
        let reply = Reply::new(move |response| ticket.answer(response));
        server.service.handle(&caller, request, reply);
        drop(server);
        pending.await.map_err(|failure| match failure {
            NoAnswer::TimedOut => CallError::TimedOut {
                peer: peer(),
                sent: true,
            },
            NoAnswer::Dropped(why) => CallError::Dropped {
                peer: peer(),
                why: why.to_string(),
            },
        })
    }

    async fn room(
        &self,
        server: &Server,
        cost: usize,
        deadline: Time,
    ) -> Option<OwnedSemaphorePermit> {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        if let Ok(room) = server.room.clone().try_acquire_many_owned(cost) {
            return Some(room);
        }
        tokio::select! {
            biased;
            room = server.room.clone().acquire_many_owned(cost) => room.ok(),
            () = self.env.sleep_until(deadline) => None,
        }
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("MemoryNetwork")
            .field("servers", &state.servers.keys())
            .field("cut", &state.cut)
            .finish()
    }
}

impl Server {
    fn stop(&self, name: &ServerName) {
        self.in_flight
            .close(&format!("{name} stopped").as_str().into());
    }
}

/// A served name; dropping it stops the server, as [`MemoryNetwork::kill`] does.
#[must_use = "dropping it stops the server"]
pub struct Serving {
    network: Arc<MemoryNetwork>,
    name: ServerName,
    server: Arc<Server>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = lock(&self.network.state);
        // Another one may serve under this name by now.
        if let Some(current) = state.servers.get(&self.name)
            && Arc::ptr_eq(current, &self.server)
        {
            state.servers.remove(&self.name);
        }
        drop(state);
        self.server.stop(&self.name);
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serving({})", self.name)
    }
}

/// The way back of one request; holds its room in the server, but not the server: a service may keep tickets.
struct Ticket {
    network: Arc<MemoryNetwork>,
    in_flight: Arc<InFlight>,
    from: ServerName,
    to: Arc<Caller>,
    call: u64,
    answered: bool,
    _room: OwnedSemaphorePermit,
}

impl Ticket {
    fn answer(mut self, response: Message) {
        self.answered = true;
        if self.network.is_cut(&self.from, &self.to.name) {
            return;
        }
        let answer = match check_size(response.header.len(), response.body.len()) {
            Ok(()) => Ok(response),
            Err(error) => Err(NoAnswer::Dropped(
                format!("its response was dropped: {error}").into(),
            )),
        };
        self.in_flight.complete_one(self.call, answer);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered && !self.network.is_cut(&self.from, &self.to.name) {
            let why = NoAnswer::Dropped("the service dropped the request".into());
            self.in_flight.complete_one(self.call, Err(why));
        }
    }
}

/// One process's end of the network.
struct Endpoint {
    network: Arc<MemoryNetwork>,
    caller: Arc<Caller>,
}

impl Network for Endpoint {
    fn call(
        &self,
        to: &Peer,
        request: Message,
        deadline: Time,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        let network = self.network.clone();
        Box::pin(network.call(self.caller.clone(), to.clone(), request, deadline))
    }
}
