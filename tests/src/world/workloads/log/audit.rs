//! The end: every position is read, and every replica is asked for its own copy.

use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::messages::{Request, Response, UnitReadAnswer, UnitRequest, UnitResponse};
use milonga_protocol::{Log as _, Position, TailOf, UnitIndex};
use milonga_transport::Peer;

use super::Worker;
use super::steps::outcome_of;
use crate::world::journal::Operation;

/// Most positions below the tail that are read one by one; replicas are asked for all.
const MOST: u64 = 1_500;
/// Positions of one message.
const PER_MESSAGE: usize = 200;
/// How often what a replica has lost is read, a second apart, before the audit gives up.
const TRIES: u64 = 20;

impl Worker {
    /// Reads all positions, then asks all replicas; what one of them has lost is read until it is repaired.
    pub(super) async fn audit(&self) {
        let Ok(tail) = self.log.tail(TailOf::Log).await else {
            return;
        };
        let from = tail.trimmed.max(tail.next.minus(MOST));
        for position in from.0..tail.next.0 {
            self.look_at(Position(position)).await;
        }
        for _ in 0..TRIES {
            let lost = self.ask_replicas(tail.trimmed, tail.next).await;
            if lost.is_empty() {
                return;
            }
            for position in lost {
                // Each time another replica is asked.
                for _ in 0..3 {
                    self.look_at(position).await;
                }
            }
            self.client.env().sleep(Duration::from_secs(1)).await;
        }
    }

    async fn look_at(&self, position: Position) {
        let id = self.client.invoke(Operation::Read { position });
        let outcome = outcome_of(self.log.read(vec![position]).await);
        self.client.finish(id, outcome);
    }

    /// Reads `from..to` at each replica; the positions that one of them has lost.
    async fn ask_replicas(&self, from: Position, to: Position) -> Vec<Position> {
        let published = self.log.layout();
        let layout = &published.layout;
        let mut lost = Vec::new();
        for (index, unit) in layout.units.iter().enumerate() {
            let Some(address) = published.addresses.get(&unit.name) else {
                continue;
            };
            let peer = Peer {
                name: unit.name.clone(),
                address: address.as_str().into(),
            };
            let index = UnitIndex(u16::try_from(index).unwrap_or(u16::MAX));
            let own = (from.0..to.0).map(Position);
            let own: Vec<_> = own
                .filter(|position| layout.chain(*position).contains(&index))
                .collect();
            for positions in own.chunks(PER_MESSAGE) {
                lost.extend(self.ask(&peer, positions).await);
            }
        }
        lost.sort_unstable();
        lost.dedup();
        lost
    }

    /// Reads `positions` at one unit, which may answer only the first of them; those that it has lost.
    async fn ask(&self, unit: &Peer, positions: &[Position]) -> Vec<Position> {
        let (mut left, mut lost) = (positions, Vec::new());
        while !left.is_empty() {
            let request = UnitRequest::Read {
                epoch: self.log.layout().layout.epoch,
                settled: Position::ZERO,
                positions: left.to_vec(),
            };
            let message = Request::Unit(request).into_message(Bytes::new());
            let env = self.client.env();
            let deadline = env.now().after(Duration::from_secs(5));
            let answer = self.client.network().call(unit, message, deadline).await;
            let response = answer.ok().and_then(|a| Response::decode(&a).ok());
            let Some(Response::Unit(UnitResponse::Values { answers, .. })) = response else {
                return lost;
            };
            let said = left.iter().zip(&answers);
            let gone = said.filter(|(_, answer)| **answer == UnitReadAnswer::Lost);
            lost.extend(gone.map(|(position, _)| *position));
            left = &left[answers.len().clamp(1, left.len())..];
        }
        lost
    }
}
