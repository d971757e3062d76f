//! One connection to a server: calls go out, answers come back.

use std::array;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use milonga_protocol::env::{SharedEnv, Task, Time};
use milonga_protocol::frame::{FrameKind, Message};
use milonga_protocol::messages::Handshake;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;

use super::failure::{Close, text};
use super::frames::{Frames, Unreadable};
use super::link::Link;
use super::numbers::Numbers;
use super::pipe::Pipe;
use super::settings::{BULK_BYTES, CALL_STREAMS};
use super::silence::Silence;
use crate::bounds::{Bounds, permits};
use crate::identity::Identity;
use crate::in_flight::{InFlight, NoAnswer, Pending};

/// How often a connection is looked at until it counts as silent.
const LOOKS: u32 = 5;
/// So many looks without silence, and nobody remembers that the server was slow.
const LOOKS_UNTIL_WELL: u32 = 100;

/// A connection as callers see it.
pub(super) struct Wire {
    in_flight: Arc<InFlight>,
    /// Bytes that may still be queued; closed with the connection.
    room: Semaphore,
    most_room: usize,
    calls: [Pipe; CALL_STREAMS],
    bulk: Pipe,
    turn: AtomicUsize,
}

/// Why a request was not sent.
pub(super) enum Unsent {
    /// The connection is gone.
    Closed,
    /// There was no room in the queue until the deadline.
    TimedOut,
}

/// A connection on which both sides have said who they are.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) theirs: Handshake,
    pub(super) first: (SendStream, Frames),
    pub(super) others: Vec<(SendStream, RecvStream)>,
    pub(super) bulk: SendStream,
    pub(super) numbers: Numbers,
}

impl Wire {
    /// Takes the connection into use. `link` hears when it is lost.
    pub(super) fn start(
        opened: Opened,
        env: &SharedEnv,
        identity: &Arc<Identity>,
        bounds: &Bounds,
        link: Weak<Link>,
    ) -> Arc<Self> {
        let most_room = permits(bounds.queue_bytes);
        let pipe = || Pipe::new(opened.numbers.clone());
        let wire = Arc::new(Self {
            in_flight: Arc::default(),
            room: Semaphore::new(most_room),
            most_room,
            calls: array::from_fn(|_| pipe()),
            bulk: pipe(),
            turn: AtomicUsize::new(0),
        });
        let silent = bounds.silent;
        let keeper = keep(
            wire.clone(),
            opened,
            env.clone(),
            identity.clone(),
            silent,
            link,
        );
        // Ends with the connection.
        env.spawn("connection to a server", Box::pin(keeper))
            .detach();
        wire
    }

    /// Puts a request into the queue as soon as there is room. `request` fits a frame.
    pub(super) async fn send(
        &self,
        env: &SharedEnv,
        request: &Message,
        deadline: Time,
    ) -> Result<Pending, Unsent> {
        let charge = request.len().min(self.most_room);
        let permits = u32::try_from(charge).unwrap_or(u32::MAX);
        let room = match self.room.try_acquire_many(permits) {
            Ok(room) => room,
            Err(_) => tokio::select! {
                biased;
                room = self.room.acquire_many(permits) => room.map_err(|_| Unsent::Closed)?,
                () = env.sleep_until(deadline) => return Err(Unsent::TimedOut),
            },
        };
        let pending = self
            .in_flight
            .register(deadline)
            .map_err(|_| Unsent::Closed)?;
        let pipe = if request.body.len() > BULK_BYTES {
            &self.bulk
        } else {
            &self.calls[self.turn.fetch_add(1, Ordering::Relaxed) % CALL_STREAMS]
        };
        pipe.push(FrameKind::Request, pending.number(), request, charge)
            .expect("the size was checked");
        // Comes back when the writer has sent it.
        room.forget();
        Ok(pending)
    }

    fn close(&self, why: &Arc<str>) {
        self.in_flight.close(why);
        self.room.close();
    }
}

/// Runs the connection's tasks until it is lost.
async fn keep(
    wire: Arc<Wire>,
    opened: Opened,
    env: SharedEnv,
    identity: Arc<Identity>,
    silent: Duration,
    link: Weak<Link>,
) {
    let Opened {
        connection,
        theirs,
        first,
        others,
        bulk,
        numbers,
    } = opened;
    let reader = Reader {
        wire: wire.clone(),
        connection: connection.clone(),
        theirs,
        identity,
    };
    let mut tasks = Vec::new();
    let sweep = wire.in_flight.clone().sweep(env.clone());
    tasks.push(env.spawn("call deadlines", Box::pin(sweep)));
    let others = others
        .into_iter()
        .map(|(send, recv)| (send, Frames::new(recv, numbers.clone())));
    for (n, (send, frames)) in [first].into_iter().chain(others).enumerate() {
        tasks.push(writer(&env, &wire, &connection, Some(n), send));
        tasks.push(env.spawn("responses", Box::pin(reader.clone().run(frames))));
    }
    tasks.push(writer(&env, &wire, &connection, None, bulk));
    let large = async move {
        if let Ok(stream) = reader.connection.accept_uni().await {
            reader.run(Frames::new(stream, numbers)).await;
        }
    };
    tasks.push(env.spawn("large responses", Box::pin(large)));

    let why: Arc<str> = lost(&wire, &connection, &env, silent, &link).await.into();
    wire.close(&why);
    if let Some(link) = link.upgrade() {
        link.lost(&wire);
    }
}

/// Completes when the connection is lost; says why. Before, once the server has fallen silent, the next call makes another
/// connection; this one goes when it was heard again and nobody waits for an answer any more, or with its idle time.
async fn lost(
    wire: &Arc<Wire>,
    connection: &Connection,
    env: &SharedEnv,
    silent: Duration,
    link: &Weak<Link>,
) -> String {
    let patience = link.upgrade().map_or(silent, |link| link.patience(silent));
    let well_at = env.now().after(silent * LOOKS_UNTIL_WELL / LOOKS);
    let mut closed = pin!(connection.closed());
    let (mut silence, mut is_left, mut was_slow) = (Silence::default(), false, false);
    loop {
        tokio::select! {
            biased;
            why = &mut closed => return text(&why),
            () = env.sleep(silent / LOOKS) => {}
        }
        let silence = silence.look(env.now(), &connection.stats());
        is_left |= silence >= patience;
        if let Some(link) = link.upgrade() {
            if is_left {
                link.lost(wire);
            }
            if is_left && silence.is_zero() && !was_slow {
                was_slow = true;
                link.was_slow();
            } else if !is_left && env.now() >= well_at {
                link.is_well();
            }
        }
        // Before, it is not known whether the server is slow or dead: that matters for the next connection.
        if was_slow && wire.in_flight.is_empty() {
            Close::Done.close(connection, "replaced after silence");
        }
    }
}

/// Writes one of the call pipes, or the bulk pipe.
fn writer(
    env: &SharedEnv,
    wire: &Arc<Wire>,
    connection: &Connection,
    lane: Option<usize>,
    stream: SendStream,
) -> Task {
    let wire = wire.clone();
    let guard = Guard(connection.clone());
    let run = async move {
        let _guard = guard;
        let pipe = lane.map_or(&wire.bulk, |n| &wire.calls[n]);
        // An error means that the connection is gone, which its keeper sees.
        let _ = pipe
            .run(stream, |charge| wire.room.add_permits(charge))
            .await;
    };
    env.spawn("requests", Box::pin(run))
}

/// Reads answers from one stream.
#[derive(Clone)]
struct Reader {
    wire: Arc<Wire>,
    connection: Connection,
    theirs: Handshake,
    identity: Arc<Identity>,
}

impl Reader {
    async fn run(self, mut frames: Frames) {
        let _guard = Guard(self.connection.clone());
        let mut answers = Vec::new();
        loop {
            let parsed = parse(&mut frames, &mut answers);
            if let Err(why) = self
                .identity
                .check_cluster(&self.theirs.name, self.theirs.cluster)
            {
                return Close::Refused.close(&self.connection, &why);
            }
            self.wire.in_flight.complete(&mut answers);
            let more = match parsed {
                Ok(()) => frames.fill().await.map_err(|error| gone(&error)),
                Err(why) => Err(Some(why)),
            };
            match more {
                Ok(()) => {}
                Err(Some(why)) => return Close::Malformed.close(&self.connection, &why),
                Err(None) => return,
            }
        }
    }
}

/// What to tell the other side if it broke the protocol; nothing if it went away.
fn gone(error: &Unreadable) -> Option<String> {
    error.is_malformed().then(|| error.to_string())
}

fn parse(
    frames: &mut Frames,
    answers: &mut Vec<(u64, Result<Message, NoAnswer>)>,
) -> Result<(), String> {
    while let Some((prefix, message)) = frames.pop().map_err(|error| error.to_string())? {
        let answer = match prefix.kind {
            FrameKind::Response => Ok(message),
            FrameKind::Dropped => Err(NoAnswer::Dropped("the service dropped the request".into())),
            other => return Err(format!("a server must not send a {other:?} frame here")),
        };
        answers.push((prefix.call, answer));
    }
    Ok(())
}

/// A connection whose task has ended, even by a panic, is of no use: closes it. Without effect on a closed one.
pub(super) struct Guard(pub(super) Connection);

impl Drop for Guard {
    fn drop(&mut self) {
        Close::Broken.close(&self.0, "a stream of the connection ended");
    }
}
