//! Carries the sequencer's requests for a lease to whoever leads the layout (rule 20).

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use milonga_protocol::messages::{
    LayoutRequest, LayoutResponse, Refusal, Renewal, Request, Response,
};
use milonga_protocol::{Incarnation, ServerName};
use milonga_sequencer::AskLease;
use milonga_transport::{Peer, SharedNetwork};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::roles::Leased;

/// Asks for the leases of one process.
pub(crate) struct Renewer {
    pub(crate) network: SharedNetwork,
    /// All members of the layout.
    pub(crate) layout: Vec<Peer>,
    pub(crate) name: ServerName,
    pub(crate) incarnation: Incarnation,
    pub(crate) asks: UnboundedReceiver<AskLease>,
    pub(crate) leased: UnboundedSender<Leased>,
}

/// What came of a request.
enum Answer {
    Leased(Leased),
    /// Another member leads.
    Elsewhere(ServerName),
    /// Nobody knows, or nobody answered.
    Nothing,
}

impl Renewer {
    /// Ends when the sequencer does. Several requests may be under way: one that is lost must not hold up the next. Each
    /// ends when its answer would be of no use any more.
    pub(crate) async fn run(mut self) {
        let mut calls = FuturesUnordered::new();
        let mut leader = 0;
        loop {
            tokio::select! {
                biased;
                Some((asked, answer)) = calls.next() => match answer {
                    Answer::Leased(leased) => {
                        leader = asked;
                        // A sequencer that is gone needs none.
                        let _ = self.leased.send(leased);
                    }
                    Answer::Elsewhere(name) => {
                        let known = self.layout.iter().position(|peer| peer.name == name);
                        leader = known.unwrap_or_else(|| self.after(asked));
                    }
                    // Others that were asked at the same time may have found out more.
                    Answer::Nothing if asked == leader => leader = self.after(asked),
                    Answer::Nothing => {}
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => calls.push(self.ask(leader, ask)),
                    None => return,
                },
            }
        }
    }

    fn after(&self, member: usize) -> usize {
        (member + 1) % self.layout.len().max(1)
    }

    fn ask(
        &self,
        member: usize,
        ask: AskLease,
    ) -> impl Future<Output = (usize, Answer)> + Send + use<> {
        let renewal = Renewal {
            name: self.name.clone(),
            incarnation: self.incarnation,
            epoch: ask.epoch,
        };
        let request = Request::Layout(LayoutRequest::Renew(renewal));
        let message = request.into_message(Bytes::new());
        let peer = self.layout.get(member);
        let call = peer.map(|peer| self.network.call(peer, message, ask.expires()));
        async move {
            let Some(call) = call else {
                return (member, Answer::Nothing);
            };
            let answer = call.await.ok();
            let answer = match answer.and_then(|message| Response::decode(&message).ok()) {
                Some(Response::Layout(LayoutResponse::Lease { lasts_ms })) => {
                    let lasts = Duration::from_millis(lasts_ms.into());
                    Answer::Leased(Leased { ask, lasts })
                }
                Some(Response::Refused(Refusal::NotLeader {
                    leader: Some((name, _)),
                })) => Answer::Elsewhere(name),
                _ => Answer::Nothing,
            };
            (member, answer)
        }
    }
}
