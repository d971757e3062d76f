//! A client of the simplest kind: one request after the other, straight from the messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::*;
use milonga_protocol::{
    EncodedEntry, Entry, EntryId, Epoch, Position, Published, SharedEnv, StreamId, WriterId,
};
use milonga_transport::{Peer, SharedNetwork};

pub(super) struct Raw {
    pub(super) env: SharedEnv,
    pub(super) network: SharedNetwork,
    pub(super) layout: Peer,
}

impl Raw {
    pub(super) async fn call(
        &self,
        to: &Peer,
        request: Request,
        body: Bytes,
    ) -> Result<(Response, Bytes), String> {
        let deadline = self.env.now().after(Duration::from_secs(5));
        let call = self.network.call(to, request.into_message(body), deadline);
        let answer = call.await.map_err(|error| error.to_string())?;
        let response = Response::decode(&answer).map_err(|error| error.to_string())?;
        Ok((response, answer.body))
    }

    /// The published layout, once it is newer than `known`.
    pub(super) async fn published(&self, known: Epoch) -> Published {
        let mut last = String::new();
        for _ in 0..300 {
            let wait_ms = 500;
            let request = Request::Layout(LayoutRequest::Get { known, wait_ms });
            match self.call(&self.layout, request, Bytes::new()).await {
                Ok((Response::Layout(LayoutResponse::Layout(published)), _))
                    if published.layout.epoch > known =>
                {
                    return published;
                }
                other => last = format!("{other:?}"),
            }
            self.env.sleep(Duration::from_millis(50)).await;
        }
        panic!("no layout after {known:?}: {last}");
    }

    pub(super) fn peer(&self, published: &Published, name: &milonga_protocol::ServerName) -> Peer {
        let address = &published.addresses[name];
        Peer {
            name: name.clone(),
            address: address.as_str().into(),
        }
    }

    /// Appends to one stream through sequencer and chain.
    pub(super) async fn append(
        &self,
        published: &Published,
        id: EntryId,
        stream: StreamId,
        payload: &str,
    ) -> Result<Position, String> {
        let layout = &published.layout;
        let epoch = layout.epoch;
        let wants = vec![vec![stream]];
        let request = Request::Sequencer(SequencerRequest::Tokens { epoch, wants });
        let sequencer = self.peer(published, &layout.sequencer.name);
        let token = match self.call(&sequencer, request, Bytes::new()).await? {
            (Response::Sequencer(SequencerResponse::Tokens(mut tokens)), _) => tokens.remove(0),
            other => return Err(format!("{other:?}")),
        };
        let entry = Entry {
            id,
            links: token.links,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
        };
        let encoded = EncodedEntry::encode(token.position, &entry, false);
        for unit in layout.chain(token.position) {
            let len = u32::try_from(encoded.len()).unwrap();
            let request = Request::Unit(UnitRequest::Write {
                epoch,
                settled: Position::ZERO,
                items: vec![(token.position, WireValue::Data { len })],
            });
            let unit = self.peer(published, &layout.unit(*unit).name);
            match self.call(&unit, request, encoded.bytes().clone()).await? {
                (Response::Unit(UnitResponse::Written { answers, .. }), _)
                    if answers == [WriteAnswer::Durable] => {}
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(token.position)
    }

    /// Reads one position at the tail of its chain.
    pub(super) async fn read(
        &self,
        published: &Published,
        position: Position,
    ) -> Result<(UnitReadAnswer, Option<Entry>), String> {
        let layout = &published.layout;
        let request = Request::Unit(UnitRequest::Read {
            epoch: layout.epoch,
            settled: Position::ZERO,
            positions: vec![position],
        });
        let tail = layout.chain(position).last().unwrap();
        let tail = self.peer(published, &layout.unit(*tail).name);
        match self.call(&tail, request, Bytes::new()).await? {
            (Response::Unit(UnitResponse::Values { answers, .. }), body) => {
                let entry = EncodedEntry::check(body).ok();
                let entry = entry.map(|e| e.decode(position).unwrap());
                Ok((answers[0], entry))
            }
            other => Err(format!("{other:?}")),
        }
    }
}

pub(super) fn id(sequence: u64) -> EntryId {
    EntryId {
        writer: WriterId(7),
        sequence,
    }
}

pub(super) fn raw(env: &SharedEnv, network: SharedNetwork, layout: Peer) -> Raw {
    Raw {
        env: Arc::clone(env),
        network,
        layout,
    }
}
