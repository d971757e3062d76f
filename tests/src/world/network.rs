//! The network of the world: the contract of `milonga_transport::Network`, with every fault that it allows.
//!
//! A process is reached by its name. Requests and responses go through the real frame codec. What QUIC hides is
//! hidden here, too: lost packets are sent again (so they come late), damaged ones end the connection, a request is
//! never served twice. What it cannot hide happens: connections break, answers come late, twice or never. And what any
//! leader of the layout may repeat (rule 15) is repeated now and then, late, by nobody who waits for an answer.

mod call;
mod datagrams;
mod delivery;
mod exchange;
mod model;
mod observed;
mod shown;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milonga_protocol::frame::{FrameKind, Message};
use milonga_protocol::{ServerName, SharedEnv};
use milonga_transport::{CallError, Caller, Peer, Role, Service, SharedNetwork};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::world::executor::{Executor, ProcessId};
use crate::world::journal::Journal;
use crate::world::rng::Rng;
use crate::world::trace::Moment;
use call::Endpoint;
use datagrams::Bound;
pub(crate) use datagrams::Inbox;
use delivery::{Delivery, decode, encode};
pub use exchange::{Exchange, Wire};
pub use model::NetworkPlan;
use model::{Fate, Model};
pub use observed::{Direction, Letter};
pub use shown::{How, Said, Shown};

/// All links of the world; clones share them.
#[derive(Clone)]
pub struct WorldNetwork(Arc<Net>);

pub(crate) struct Net {
    executor: Executor,
    journal: Journal,
    state: Mutex<State>,
}

struct State {
    model: Model,
    servers: BTreeMap<ServerName, Listener>,
    calls: BTreeMap<u64, Waiting>,
    next_call: u64,
    /// What waits for a cut to be mended.
    held: Vec<Held>,
    rooms: BTreeMap<(ServerName, ServerName), Arc<Semaphore>>,
    /// Draws what is repeated, and when.
    echoes: Rng,
    /// Bound sockets, where QUIC is the wire.
    sockets: BTreeMap<SocketAddr, Bound>,
}

struct Listener {
    process: ProcessId,
    service: Arc<dyn Service>,
}

/// A caller that waits for its answer.
struct Waiting {
    caller: ProcessId,
    server: ProcessId,
    from: ServerName,
    to: ServerName,
    answer: oneshot::Sender<Result<Message, CallError>>,
}

struct Held {
    from: ServerName,
    to: ServerName,
    process: ProcessId,
    deliver: Box<dyn FnOnce() + Send>,
}

/// A call that has begun.
pub(crate) struct Begun {
    pub(crate) number: u64,
    pub(crate) answer: oneshot::Receiver<Result<Message, CallError>>,
    /// Whether the request may have left the process.
    pub(crate) sent: bool,
}

impl WorldNetwork {
    /// A network without processes.
    #[must_use]
    pub fn new(seed: u64, executor: &Executor, journal: &Journal, plan: NetworkPlan) -> Self {
        Self(Arc::new(Net {
            executor: executor.clone(),
            journal: journal.clone(),
            state: Mutex::new(State {
                model: Model::new(seed, plan),
                servers: BTreeMap::new(),
                calls: BTreeMap::new(),
                next_call: 0,
                held: Vec::new(),
                rooms: BTreeMap::new(),
                echoes: Rng::new(seed, "echoes"),
                sockets: BTreeMap::new(),
            }),
        }))
    }

    /// The network as `process` sees it.
    #[must_use]
    pub fn endpoint(
        &self,
        process: ProcessId,
        env: SharedEnv,
        name: ServerName,
        role: Role,
    ) -> SharedNetwork {
        Arc::new(Endpoint {
            net: Arc::clone(&self.0),
            process,
            env,
            caller: Arc::new(Caller { name, role }),
        })
    }

    /// Lets `process` answer under `name`.
    pub fn listen(&self, name: ServerName, process: ProcessId, service: Arc<dyn Service>) {
        let listener = Listener { process, service };
        let before = self.0.lock().servers.insert(name, listener);
        drop(before);
    }

    /// The process was killed: who waits for it learns so after a while, or not before the deadline.
    pub fn killed(&self, process: ProcessId) {
        let now = self.0.executor.now();
        let mut state = self.0.lock();
        let names = state.servers.iter().filter(|(_, s)| s.process == process);
        let names: Vec<_> = names.map(|(name, _)| name.clone()).collect();
        let gone: Vec<_> = names
            .iter()
            .map(|name| state.servers.remove(name))
            .collect();
        state.sockets.retain(|_, bound| bound.process != process);
        let mut told = Vec::new();
        let State { calls, model, .. } = &mut *state;
        for (number, call) in calls.iter().filter(|(_, c)| c.server == process) {
            if let Some(at) = model.nobody(now, &call.from, &call.to) {
                told.push((*number, call.caller, at));
            }
        }
        drop(state);
        drop(gone);
        for (number, caller, at) in told {
            self.0.fail(number, caller, at, "the process was killed");
        }
    }

    /// Nothing gets from `from` to `to` any more.
    pub fn cut(&self, from: &ServerName, to: &ServerName) {
        self.0.lock().model.cut(from, to);
    }

    /// Ends one cut; what waited for it comes late, or not at all.
    pub fn mend(&self, from: &ServerName, to: &ServerName) {
        let now = self.0.executor.now();
        let mut state = self.0.lock();
        if !state.model.mend(from, to) {
            return;
        }
        let all = std::mem::take(&mut state.held);
        let (mine, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|h| h.from == *from && h.to == *to);
        state.held = others;
        let mut late = Vec::new();
        let mut lost = Vec::new();
        for held in mine {
            if state.model.survives() {
                let at = state.model.arrival(now, from, to);
                late.push((at, held));
            } else {
                lost.push(held);
            }
        }
        drop(state);
        drop(lost);
        for (at, held) in late {
            self.0.executor.schedule(at, held.process, held.deliver);
        }
    }

    /// What `name` asks for is lost, or not any more.
    pub fn mute(&self, name: &ServerName, on: bool) {
        self.0.lock().model.set_mute(name, on);
    }

    /// Everything to and from `name` takes `factor` times as long; 1 heals it.
    pub fn slow(&self, name: &ServerName, factor: u64) {
        self.0.lock().model.set_slow(name, factor);
    }

    /// Adds to the rates of loss, duplication and corruption, per million; 0 heals it.
    pub fn storm(&self, added: u32) {
        self.0.lock().model.set_storm(added);
    }
}

impl fmt::Debug for WorldNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        write!(
            f,
            "WorldNetwork({:?}, {} calls)",
            state.model,
            state.calls.len()
        )
    }
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that `from` may have under way at `to`.
    fn room(&self, from: &ServerName, to: &ServerName) -> Arc<Semaphore> {
        let mut state = self.lock();
        let bytes = state.model.room();
        let room = state.rooms.entry((from.clone(), to.clone()));
        Arc::clone(room.or_insert_with(|| Arc::new(Semaphore::new(bytes))))
    }

    /// Sends a request.
    fn begin(
        self: &Arc<Self>,
        caller: ProcessId,
        from: &Arc<Caller>,
        to: &Peer,
        request: &Message,
        room: OwnedSemaphorePermit,
    ) -> Begun {
        let now = self.executor.now();
        let (sender, answer) = oneshot::channel();
        let mut state = self.lock();
        state.next_call += 1;
        let number = state.next_call;
        let target = state.servers.get(&to.name);
        let target = target.map(|server| (server.process, Arc::clone(&server.service)));
        let waiting = Waiting {
            caller,
            server: target.as_ref().map_or(caller, |(process, _)| *process),
            from: from.name.clone(),
            to: to.name.clone(),
            answer: sender,
        };
        state.calls.insert(number, waiting);
        let Some((server, service)) = target else {
            let at = state.model.nobody(now, &from.name, &to.name);
            drop(state);
            if let Some(at) = at {
                let why = "nobody listens there".to_owned();
                let error = CallError::Unreachable {
                    peer: to.to_string(),
                    why,
                };
                self.complete_at(number, caller, at, Err(error));
            }
            return Begun {
                number,
                answer,
                sent: false,
            };
        };
        let fate = state.model.draw(now, &from.name, &to.name, false);
        let echo = state.echo(now, from, request);
        drop(state);
        let link = (&from.name, &to.name);
        let letter = Letter::new(now, number, link, Direction::Request, request);
        self.executor.trace(&(&letter, fate));
        let delivery = Delivery {
            net: Arc::clone(self),
            letter,
            frame: encode(number, FrameKind::Request, request),
            from: Arc::clone(from),
            caller,
            server,
            service,
            room,
        };
        if let Some((number, at)) = echo {
            let again = delivery.again(number, request);
            self.executor.trace(&("echo", number, at));
            self.executor
                .schedule(at, server, Box::new(move || again.carry_out()));
        }
        let deliver = Box::new(move || delivery.carry_out());
        self.carry(fate, link, server, deliver, number, caller);
        Begun {
            number,
            answer,
            sent: true,
        }
    }

    /// Lets the fate of a message take its course. A message that comes twice is the caller's business.
    fn carry(
        self: &Arc<Self>,
        fate: Fate,
        link: (&ServerName, &ServerName),
        process: ProcessId,
        deliver: Box<dyn FnOnce() + Send>,
        number: u64,
        caller: ProcessId,
    ) {
        match fate {
            Fate::Arrives(at) | Fate::Twice(at, _) => self.executor.schedule(at, process, deliver),
            Fate::Held => self.lock().held.push(Held {
                from: link.0.clone(),
                to: link.1.clone(),
                process,
                deliver,
            }),
            Fate::Lost => drop(deliver),
            Fate::Broken(at) => {
                drop(deliver);
                self.fail(number, caller, at, "the connection broke");
                self.break_connection(link, at);
            }
        }
    }

    /// Everything else under way between the two fails, too.
    fn break_connection(self: &Arc<Self>, link: (&ServerName, &ServerName), at: Moment) {
        let state = self.lock();
        let others = state.calls.iter().filter(|(_, call)| {
            let ends = (&call.from, &call.to);
            ends == link || ends == (link.1, link.0)
        });
        let others: Vec<_> = others.map(|(n, call)| (*n, call.caller)).collect();
        drop(state);
        for (number, caller) in others {
            self.fail(number, caller, at, "the connection broke");
        }
    }

    fn fail(self: &Arc<Self>, number: u64, caller: ProcessId, at: Moment, why: &str) {
        let peer = self
            .lock()
            .calls
            .get(&number)
            .map(|call| call.to.to_string());
        if let Some(peer) = peer {
            let why = why.to_owned();
            self.complete_at(number, caller, at, Err(CallError::Dropped { peer, why }));
        }
    }
}
