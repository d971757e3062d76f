//! Both ends of a call: the caller's future and the service's way back.

use std::sync::Arc;

use milonga_protocol::frame::{FrameKind, Message, check_size};
use milonga_protocol::{BoxFuture, ServerName, SharedEnv, Time};
use milonga_transport::{CallError, Caller, Network, Peer};
use tokio::sync::OwnedSemaphorePermit;

use super::model::Fate;
use super::observed::{Direction, Letter};
use super::{Net, decode, encode};
use crate::world::executor::ProcessId;
use crate::world::journal::Observed;
use crate::world::trace::Moment;

/// What a request costs beyond its bytes.
const OVERHEAD: usize = 256;

/// One process's end of the network.
pub(crate) struct Endpoint {
    pub(crate) net: Arc<Net>,
    pub(crate) process: ProcessId,
    pub(crate) env: SharedEnv,
    pub(crate) caller: Arc<Caller>,
}

impl Network for Endpoint {
    fn call(
        &self,
        to: &Peer,
        request: Message,
        deadline: Time,
    ) -> BoxFuture<'static, Result<Message, CallError>> {
        let call = Call {
            net: Arc::clone(&self.net),
            process: self.process,
            env: Arc::clone(&self.env),
            caller: Arc::clone(&self.caller),
            to: to.clone(),
        };
        Box::pin(call.run(request, deadline))
    }
}

struct Call {
    net: Arc<Net>,
    process: ProcessId,
    env: SharedEnv,
    caller: Arc<Caller>,
    to: Peer,
}

impl Call {
    async fn run(self, request: Message, deadline: Time) -> Result<Message, CallError> {
        let peer = self.to.to_string();
        if let Err(error) = check_size(request.header.len(), request.body.len()) {
            let why = error.to_string();
            return Err(CallError::TooLarge { peer, why });
        }
        if self.env.now() >= deadline {
            return Err(CallError::TimedOut { peer, sent: false });
        }
        let late = self.env.sleep_until(deadline);
        tokio::pin!(late);
        let room = self.net.room(&self.caller.name, &self.to.name);
        let most = self.net.lock().model.room();
        let cost = u32::try_from((OVERHEAD + request.len()).min(most)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            biased;
            room = room.acquire_many_owned(cost) => room.expect("never closed"),
            () = &mut late => return Err(CallError::TimedOut { peer, sent: false }),
        };
        let begun = self
            .net
            .begin(self.process, &self.caller, &self.to, &request, room);
        let _listed = Listed {
            net: &self.net,
            number: begun.number,
        };
        tokio::select! {
            biased;
            answer = begun.answer => answer.unwrap_or_else(|_| {
                let why = "the call was forgotten".to_owned();
                Err(CallError::Dropped { peer, why })
            }),
            () = &mut late => Err(CallError::TimedOut { peer: self.to.to_string(), sent: begun.sent }),
        }
    }
}

/// Takes a call out of the table when its caller waits no more.
struct Listed<'a> {
    net: &'a Net,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let call = self.net.lock().calls.remove(&self.number);
        drop(call);
    }
}

/// The way back of one request.
pub(crate) struct Ticket {
    pub(crate) net: Arc<Net>,
    pub(crate) number: u64,
    pub(crate) caller: ProcessId,
    pub(crate) server: ProcessId,
    /// Who answers, and whom.
    pub(crate) from: ServerName,
    pub(crate) to: ServerName,
    pub(crate) answered: bool,
    pub(crate) _room: OwnedSemaphorePermit,
}

impl Ticket {
    pub(crate) fn answer(mut self, response: Message) {
        self.answered = true;
        if let Err(error) = check_size(response.header.len(), response.body.len()) {
            self.drop_call(&format!("its response was dropped: {error}"));
            return;
        }
        self.send(Some(&response), "");
    }

    fn drop_call(&self, why: &str) {
        self.send(None, why);
    }

    /// Sends the response, or word that there will be none.
    fn send(&self, response: Option<&Message>, why: &str) {
        if !self.net.executor.is_alive(self.server) {
            return;
        }
        let now = self.net.executor.now();
        let fate = self.net.lock().model.draw(now, &self.from, &self.to, true);
        let nothing = Message::default();
        let link = (&self.from, &self.to);
        let message = response.unwrap_or(&nothing);
        let letter = Letter::new(now, self.number, link, Direction::Response, message);
        self.net.executor.trace(&(&letter, fate));
        if response.is_some() {
            let observed = Observed::Answered(letter.clone());
            self.net.journal.push(observed);
        }
        let copy = || -> Box<dyn FnOnce() + Send> {
            let (net, number, letter) = (Arc::clone(&self.net), self.number, letter.clone());
            match response {
                Some(response) => {
                    let frame = encode(number, FrameKind::Response, response);
                    Box::new(move || net.arrived(letter, decode(frame)))
                }
                None => {
                    let (peer, why) = (self.from.to_string(), why.to_owned());
                    let error = CallError::Dropped { peer, why };
                    Box::new(move || net.complete(number, Err(error)))
                }
            }
        };
        if let Fate::Twice(_, again) = fate {
            self.net.executor.schedule(again, self.caller, copy());
        }
        self.net
            .carry(fate, link, self.caller, copy(), self.number, self.caller);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.drop_call("the service dropped the request");
        }
    }
}

impl Net {
    fn arrived(&self, letter: Letter, response: Message) {
        let at = self.executor.now();
        let call = letter.call;
        self.journal.push(Observed::Letter(Letter { at, ..letter }));
        self.complete(call, Ok(response));
    }

    /// Ends a call, if it still waits.
    pub(crate) fn complete(&self, number: u64, result: Result<Message, CallError>) {
        let call = self.lock().calls.remove(&number);
        if let Some(call) = call {
            // The caller may have gone meanwhile.
            let _ = call.answer.send(result);
        }
    }

    pub(crate) fn complete_at(
        self: &Arc<Self>,
        number: u64,
        caller: ProcessId,
        at: Moment,
        result: Result<Message, CallError>,
    ) {
        let net = Arc::clone(self);
        let complete = move || net.complete(number, result);
        self.executor.schedule(at, caller, complete);
    }
}
