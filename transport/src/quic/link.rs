//! The way to one server: the connection if there is one, else the one attempt to make it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use milonga_protocol::env::Time;
use milonga_protocol::sync::Mutex;
use quinn::{Connection, ConnectionError};
use tokio::sync::watch;

use super::client::Dialler;
use super::failure::dial;
use super::frames::Frames;
use super::greeting::{Unwelcome, receive, send};
use super::numbers::{Numbers, dialled};
use super::settings::CALL_STREAMS;
use super::wire::{Opened, Wire};
use crate::lock::lock;
use crate::network::{CallError, Peer};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Between two attempts at one connection. First packets are repeated ever more slowly, so a server that starts meanwhile is
/// found sooner by a new attempt; the others go on, for whom it is only slow.
const FIRST_ATTEMPT: Duration = Duration::from_millis(500);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(1);
/// So many are under way at most: each costs a slow server a handshake.
const ATTEMPTS: usize = 3;
/// How often the patience with silence doubles at most: to eight seconds, less than the idle time.
const DOUBLINGS: u32 = 4;

type Outcome = Result<Arc<Wire>, CallError>;
type Attempt<'a> = Pin<Box<dyn Future<Output = Result<Connection, CallError>> + Send + 'a>>;

/// One peer's connection. At most one attempt to make it is under way, whoever waits for it.
pub(super) struct Link {
    peer: Peer,
    state: Mutex<State>,
    /// How often lately the peer was taken for silent and was only slow.
    slow: AtomicU32,
    /// Why the last attempt failed: what to say to whom the next one takes too long.
    refused: Mutex<Option<CallError>>,
}

enum State {
    /// None; the next attempt begins at the earliest then.
    Down {
        failures: u32,
        not_before: Time,
    },
    Dialling(watch::Receiver<Option<Outcome>>),
    Up(Arc<Wire>),
}

impl Link {
    pub(super) fn new(peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            state: Mutex::new(State::Down {
                failures: 0,
                not_before: Time::default(),
            }),
            slow: AtomicU32::new(0),
            refused: Mutex::new(None),
        })
    }

    pub(super) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Whether nothing is gained by keeping it.
    pub(super) fn is_idle(&self) -> bool {
        matches!(*lock(&self.state), State::Down { .. })
    }

    /// The connection if there is one.
    pub(super) fn up(&self) -> Option<Arc<Wire>> {
        match &*lock(&self.state) {
            State::Up(wire) => Some(wire.clone()),
            _ => None,
        }
    }

    /// The connection; made first if need be.
    pub(super) async fn wire(
        self: &Arc<Self>,
        dialler: &Arc<Dialler>,
        deadline: Time,
    ) -> Result<Arc<Wire>, CallError> {
        let mut outcome = {
            let mut state = lock(&self.state);
            match &*state {
                State::Up(wire) => return Ok(wire.clone()),
                State::Dialling(outcome) if outcome.has_changed().is_ok() => outcome.clone(),
                // Down, or an attempt that ended with its runtime.
                _ => self.begin(&mut state, dialler),
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = outcome.wait_for(Option::is_some) => outcome.ok().and_then(|o| o.clone()),
            () = dialler.env.sleep_until(deadline) => {
                Some(Err(lock(&self.refused).clone().unwrap_or_else(|| self.silent())))
            }
        };
        outcome.unwrap_or_else(|| Err(self.unreachable("the runtime is shutting down")))
    }

    /// The connection is gone.
    pub(super) fn lost(&self, wire: &Arc<Wire>) {
        let mut state = lock(&self.state);
        if matches!(&*state, State::Up(current) if Arc::ptr_eq(current, wire)) {
            *state = State::Down {
                failures: 0,
                not_before: Time::default(),
            };
        }
    }

    /// How long the peer may be silent, where `silent` is the rule. One that is only slow is not helped by ever new
    /// connections: each handshake costs it more than answers do.
    pub(super) fn patience(&self, silent: Duration) -> Duration {
        silent * 2_u32.pow(self.slow.load(Ordering::Relaxed).min(DOUBLINGS))
    }

    /// A connection that was left for silence was heard again.
    pub(super) fn was_slow(&self) {
        // It matters no more than a connection that is replaced too early, or too late.
        let _ = self.slow.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection has long been heard.
    pub(super) fn is_well(&self) {
        self.slow.store(0, Ordering::Relaxed);
    }

    fn begin(
        self: &Arc<Self>,
        state: &mut State,
        dialler: &Arc<Dialler>,
    ) -> watch::Receiver<Option<Outcome>> {
        let (failures, not_before) = match *state {
            State::Down {
                failures,
                not_before,
            } => (failures, not_before),
            _ => (0, Time::default()),
        };
        let (done, outcome) = watch::channel(None);
        *state = State::Dialling(outcome.clone());
        let env = dialler.env.clone();
        let (link, dialler) = (self.clone(), dialler.clone());
        let attempt = async move {
            let env = &dialler.env;
            env.sleep_until(not_before).await;
            *lock(&link.refused) = None;
            let opened = link.open(&dialler).await;
            dialled(opened.is_ok());
            let outcome = opened.map(|opened| {
                let link = Arc::downgrade(&link);
                Wire::start(opened, env, &dialler.identity, &dialler.bounds, link)
            });
            *lock(&link.refused) = outcome
                .as_ref()
                .err()
                .filter(|e| !e.is_retryable())
                .cloned();
            *lock(&link.state) = match &outcome {
                Ok(wire) => State::Up(wire.clone()),
                Err(error) => {
                    tracing::debug!(peer = %link.peer, %error, "no connection");
                    let pause = FIRST_PAUSE * 2u32.saturating_pow(failures.min(10));
                    State::Down {
                        failures: failures + 1,
                        not_before: env.now().after(pause.min(LONGEST_PAUSE)),
                    }
                }
            };
            done.send_replace(Some(outcome));
        };
        env.spawn("dial", Box::pin(attempt)).detach();
        outcome
    }

    /// Makes a connection, within the bound on handshakes.
    async fn open(&self, dialler: &Dialler) -> Result<Opened, CallError> {
        let env = &dialler.env;
        let end = env.now().after(dialler.bounds.handshake);
        let connection = self.connect(dialler, end).await?;
        tokio::select! {
            biased;
            opened = self.greet(dialler, connection) => opened,
            () = env.sleep_until(end) => Err(self.unreachable("it took the connection but says nothing")),
        }
    }

    async fn connect(&self, dialler: &Dialler, end: Time) -> Result<Connection, CallError> {
        let env = &dialler.env;
        let (mut attempts, mut pause) = (Vec::new(), FIRST_ATTEMPT);
        loop {
            if attempts.len() < ATTEMPTS {
                attempts.push(Box::pin(self.attempt(dialler)) as Attempt<'_>);
            }
            let until = env.now().after(pause).min(end);
            tokio::select! {
                biased;
                connection = first(&mut attempts) => return connection,
                () = env.sleep_until(until) => {}
            }
            if until == end {
                return Err(self.silent());
            }
            pause = (pause * 2).min(LONGEST_ATTEMPT);
        }
    }

    async fn attempt(&self, dialler: &Dialler) -> Result<Connection, CallError> {
        let address = self.resolve().await?;
        let endpoint = dialler
            .endpoint(address)
            .map_err(|why| self.unreachable(&why))?;
        let connecting = endpoint
            .connect_with(dialler.config.clone(), address, self.peer.name.as_str())
            .map_err(|error| self.unreachable(&error.to_string()))?;
        connecting.await.map_err(|error| dial(&self.peer, &error))
    }

    async fn resolve(&self) -> Result<SocketAddr, CallError> {
        let text = &*self.peer.address;
        if let Ok(address) = text.parse() {
            return Ok(address);
        }
        let hint = "the address should be `host:port`";
        match tokio::net::lookup_host(text).await {
            Ok(mut found) => found
                .next()
                .ok_or_else(|| self.unreachable("its host name has no address")),
            Err(error) => Err(self.unreachable(&format!("{error}; {hint}"))),
        }
    }

    async fn greet(&self, dialler: &Dialler, connection: Connection) -> Result<Opened, CallError> {
        let lost = |error: ConnectionError| dial(&self.peer, &error);
        let numbers = Numbers::new("client");
        let (mut first, recv) = connection.open_bi().await.map_err(lost)?;
        let mut frames = Frames::new(recv, numbers.clone());
        send(&mut first, &dialler.identity).await;
        let theirs = match receive(&mut frames, &dialler.identity).await {
            Ok(theirs) => theirs,
            Err(unwelcome) => return Err(self.unwelcome(&connection, unwelcome).await),
        };
        let mut others = Vec::new();
        for _ in 1..CALL_STREAMS {
            others.push(connection.open_bi().await.map_err(lost)?);
        }
        let bulk = connection.open_uni().await.map_err(lost)?;
        // Small calls first. A closed stream shows elsewhere.
        let _ = bulk.set_priority(-1);
        Ok(Opened {
            connection,
            theirs,
            first: (first, frames),
            others,
            bulk,
            numbers,
        })
    }

    async fn unwelcome(&self, connection: &Connection, unwelcome: Unwelcome) -> CallError {
        if matches!(unwelcome, Unwelcome::Lost(_)) {
            // The server's verdict on this side, certificate included, comes as the reason of the loss.
            return dial(&self.peer, &connection.closed().await);
        }
        let why = unwelcome.to_string();
        unwelcome.close().close(connection, &why);
        CallError::Handshake {
            peer: self.peer.to_string(),
            why,
        }
    }

    fn silent(&self) -> CallError {
        self.unreachable(
            "it does not answer; is it running, at that address, with its port open for UDP?",
        )
    }

    fn unreachable(&self, why: &str) -> CallError {
        CallError::Unreachable {
            peer: self.peer.to_string(),
            why: why.to_owned(),
        }
    }
}

/// The first connection that one of them makes; an error if there is no hope in the others, or there are none.
async fn first(attempts: &mut Vec<Attempt<'_>>) -> Result<Connection, CallError> {
    poll_fn(|context| {
        let mut place = 0;
        while let Some(attempt) = attempts.get_mut(place) {
            match attempt.as_mut().poll(context) {
                Poll::Pending => place += 1,
                Poll::Ready(Err(error)) if error.is_retryable() && attempts.len() > 1 => {
                    drop(attempts.remove(place));
                }
                ready @ Poll::Ready(_) => return ready,
            }
        }
        Poll::Pending
    })
    .await
}
