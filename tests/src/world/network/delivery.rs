//! A request on its way to its service, and what is repeated of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use milonga_protocol::frame::{self, FrameKind, Message, PREFIX_BYTES, Prefix};
use milonga_protocol::messages::{Request, SequencerRequest, UnitRequest};
use milonga_transport::{Caller, Reply, Role, Service};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::call::Ticket;
use super::observed::Letter;
use super::{Net, State};
use crate::world::executor::ProcessId;
use crate::world::journal::Observed;
use crate::world::trace::Moment;

/// Of a million requests that any leader may repeat, so many are.
const ECHOES: u32 = 100_000;
/// Typical nanoseconds until then.
const ECHO_AFTER: u64 = 200_000_000;

/// A request on its way.
pub(crate) struct Delivery {
    pub(crate) net: Arc<Net>,
    pub(crate) letter: Letter,
    pub(crate) frame: Bytes,
    pub(crate) from: Arc<Caller>,
    pub(crate) caller: ProcessId,
    pub(crate) server: ProcessId,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) room: OwnedSemaphorePermit,
}

impl State {
    /// Whether `request` is repeated, as what call, and when.
    pub(crate) fn echo(
        &mut self,
        now: Moment,
        from: &Caller,
        request: &Message,
    ) -> Option<(u64, Moment)> {
        if from.role != Role::Server {
            return None;
        }
        let repeatable = matches!(
            Request::decode(request),
            Ok(Request::Sequencer(SequencerRequest::Bootstrap(_))
                | Request::Unit(UnitRequest::Open { .. } | UnitRequest::Settled { .. }))
        );
        if !repeatable || !self.echoes.happens(ECHOES) {
            return None;
        }
        self.next_call += 1;
        let late = self.echoes.long_tailed(ECHO_AFTER);
        Some((self.next_call, now.plus(late)))
    }
}

impl Delivery {
    /// The same request as another call.
    pub(crate) fn again(&self, number: u64, request: &Message) -> Self {
        let letter = Letter {
            call: number,
            ..self.letter.clone()
        };
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
        Self {
            net: Arc::clone(&self.net),
            letter,
            frame: encode(number, FrameKind::Request, request),
            from: Arc::clone(&self.from),
            caller: self.caller,
            server: self.server,
            service: Arc::clone(&self.service),
            room: room.expect("a room of its own"),
        }
    }

    /// Hands the request to the service, with a way back.
    pub(crate) fn carry_out(self) {
        let at = self.net.executor.now();
        let ticket = Ticket {
            net: Arc::clone(&self.net),
            number: self.letter.call,
            caller: self.caller,
            server: self.server,
            from: self.letter.to.clone(),
            to: self.letter.from.clone(),
            answered: false,
            _room: self.room,
        };
        let letter = Letter { at, ..self.letter };
        self.net.journal.push(Observed::Letter(letter));
        let reply = Reply::new(move |response| ticket.answer(response));
        self.service.handle(&self.from, decode(self.frame), reply);
    }
}

/// The bytes of a frame.
pub(crate) fn encode(number: u64, kind: FrameKind, message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    frame::write(&mut out, kind, number, message).expect("sizes were checked");
    out.freeze()
}

/// What arrives, cut out of the frame as a transport does it.
pub(crate) fn decode(mut frame: Bytes) -> Message {
    let prefix = frame.split_to(PREFIX_BYTES);
    let prefix = Prefix::read(prefix[..].try_into().expect("a whole prefix"));
    let prefix = prefix.expect("a frame survives its codec");
    let header = frame.split_to(prefix.header_len);
    Message {
        header,
        body: frame,
    }
}
