//! One connection from a caller, at the server.

use std::sync::Arc;

use milonga_protocol::env::Task;
use milonga_protocol::frame::{FrameKind, Message, Prefix};
use milonga_protocol::messages::Handshake;
use quinn::{Connection, ConnectionError, SendStream};
use rustls::pki_types::CertificateDer;

use super::failure::{Close, text};
use super::frames::Frames;
use super::greeting::{Unwelcome, receive, send};
use super::numbers::{Numbers, refused};
use super::replies::Replies;
use super::server::{Alive, Shared, given_up};
use super::settings::CALL_STREAMS;
use super::wire::Guard;
use crate::network::Caller;
use crate::tls::identify;

/// Serves a connection until it is lost. TLS is done; nothing else.
pub(super) async fn serve(server: Arc<Shared>, connection: Connection, alive: Alive) {
    let remote = connection.remote_address();
    let opened = tokio::select! {
        biased;
        opened = open(&server, &connection) => opened,
        () = server.env.sleep(server.bounds.handshake) => {
            // Perhaps the network ate it: another attempt may do.
            Err(Unwelcome::Lost("no handshake came in time".to_owned()))
        }
    };
    match opened {
        Ok((session, first)) => {
            let crew = Crew {
                server,
                connection,
                alive,
                tasks: Vec::new(),
            };
            session.run(crew, first).await;
        }
        Err(unwelcome) => {
            let why = unwelcome.to_string();
            if matches!(unwelcome, Unwelcome::Lost(_)) {
                given_up(remote, &why);
            } else {
                tracing::warn!(%remote, why, "connection refused");
                refused("handshake");
            }
            unwelcome.close().close(&connection, &why);
        }
    }
}

async fn open(
    server: &Arc<Shared>,
    connection: &Connection,
) -> Result<(Arc<Session>, (SendStream, Frames)), Unwelcome> {
    let caller = caller_of(connection)
        .map_err(|why| Unwelcome::Certificate(format!("its certificate says too little: {why}")))?;
    let numbers = Numbers::new("server");
    let lost = |error: ConnectionError| Unwelcome::Lost(text(&error));
    let (mut first, recv) = connection.accept_bi().await.map_err(lost)?;
    let mut frames = Frames::new(recv, numbers.clone());
    let theirs = receive(&mut frames, &server.identity).await?;
    send(&mut first, &server.identity).await;
    tracing::debug!(caller = %caller.name, role = ?caller.role, said = %theirs.name, "connected");
    let session = Session {
        server: server.clone(),
        connection: connection.clone(),
        caller,
        theirs,
        replies: Arc::new(Replies::new(&server.bounds, &numbers)),
        numbers,
    };
    Ok((Arc::new(session), (first, frames)))
}

fn caller_of(connection: &Connection) -> Result<Caller, String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("there is none")?;
    identify(&chain)
}

/// A caller that has proved and said who it is.
struct Session {
    server: Arc<Shared>,
    connection: Connection,
    caller: Caller,
    theirs: Handshake,
    replies: Arc<Replies>,
    numbers: Numbers,
}

impl Session {
    /// Takes the caller's streams as they come; how many there are at a time is limited by the transport.
    async fn run(self: Arc<Self>, mut crew: Crew, (send, frames): (SendStream, Frames)) {
        crew.spawn("responses", self.clone().write(0, send));
        crew.spawn("requests", self.clone().read(0, frames));
        if let Ok(bulk) = self.connection.open_uni().await {
            // Small responses first. A closed stream shows elsewhere.
            let _ = bulk.set_priority(-1);
            crew.spawn("large responses", self.clone().write(CALL_STREAMS, bulk));
        }
        // A stream that ends closes its connection, so the transport's limit on open streams is one on all.
        let mut lanes = 1..CALL_STREAMS;
        loop {
            tokio::select! {
                biased;
                error = self.connection.closed() => {
                    tracing::debug!(caller = %self.caller.name, why = text(&error), "disconnected");
                    return;
                }
                Ok((send, recv)) = self.connection.accept_bi() => {
                    let Some(lane) = lanes.next() else {
                        return Close::Malformed.close(&self.connection, "too many streams");
                    };
                    let frames = Frames::new(recv, self.numbers.clone());
                    crew.spawn("responses", self.clone().write(lane, send));
                    crew.spawn("requests", self.clone().read(lane, frames));
                }
                // Large requests; small responses to them travel on the first stream.
                Ok(recv) = self.connection.accept_uni() => {
                    let frames = Frames::new(recv, self.numbers.clone());
                    crew.spawn("large requests", self.clone().read(0, frames));
                }
            }
        }
    }

    async fn write(self: Arc<Self>, lane: usize, stream: SendStream) {
        let sent = |bytes| self.replies.sent(bytes);
        // An error means that the connection is gone, which `run` sees.
        let _ = self.replies.pipe(lane).run(stream, sent).await;
    }

    async fn read(self: Arc<Self>, lane: usize, frames: Frames) {
        if let Err((close, why)) = self.read_requests(lane, frames).await {
            tracing::warn!(caller = %self.caller.name, why, "connection closed");
            close.close(&self.connection, &why);
        }
    }

    /// Reads requests until the connection is gone; what the other side did wrong, if it did.
    async fn read_requests(
        self: &Arc<Self>,
        lane: usize,
        mut frames: Frames,
    ) -> Result<(), (Close, String)> {
        let malformed = |why: &dyn ToString| (Close::Malformed, why.to_string());
        loop {
            self.server
                .identity
                .check_cluster(&self.theirs.name, self.theirs.cluster)
                .map_err(|why| (Close::Refused, why))?;
            while let Some((prefix, message)) = frames.pop().map_err(|e| malformed(&e))? {
                self.request(lane, prefix, message)
                    .map_err(|why| (Close::Malformed, why))?;
                self.replies.room().await;
            }
            // A caller that never pauses must not keep the others of this thread waiting.
            tokio::task::consume_budget().await;
            match frames.fill().await {
                Ok(()) => {}
                Err(error) if error.is_malformed() => return Err(malformed(&error)),
                Err(_) => return Ok(()),
            }
        }
    }

    fn request(
        self: &Arc<Self>,
        lane: usize,
        prefix: Prefix,
        message: Message,
    ) -> Result<(), String> {
        if prefix.kind != FrameKind::Request {
            let kind = prefix.kind;
            return Err(format!("a caller must not send a {kind:?} frame here"));
        }
        let reply = self.replies.reply(lane, prefix.call, &message);
        self.server.service.handle(&self.caller, message, reply);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.replies.close();
    }
}

/// The tasks of a connection. They stop when it is dropped, and when one of them ends so does the connection.
struct Crew {
    server: Arc<Shared>,
    connection: Connection,
    alive: Alive,
    tasks: Vec<Task>,
}

impl Crew {
    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let guard = Guard(self.connection.clone());
        let alive = self.alive.clone();
        let run = async move {
            let _held = (guard, alive);
            work.await;
        };
        self.tasks.push(self.server.env.spawn(name, Box::pin(run)));
    }
}
