//! Asks every replica for itself: a copy with a hole would else show only when the other one dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use milonga_client::LogClient;
use milonga_protocol::messages::{
    LayoutRequest, Request, Response, ServerStatus, UnitReadAnswer, UnitRequest, UnitResponse,
};
use milonga_protocol::{Epoch, Position, Published, ServerName, SharedEnv, UnitIndex};
use milonga_transport::{Peer, SharedNetwork};

use super::{AnyError, pause};

/// How often positions are asked for again: the epoch may change.
const TIMES: usize = 40;

/// Asks servers.
pub(super) struct Asker {
    pub(super) env: SharedEnv,
    pub(super) network: SharedNetwork,
}

/// What one replica holds at one position.
type Held = (UnitReadAnswer, Bytes);

impl Asker {
    async fn ask(&self, peer: &Peer, request: Request) -> Result<(Response, Bytes), AnyError> {
        let deadline = self.env.now().after(Duration::from_secs(3));
        let message = request.into_message(Bytes::new());
        let answer = self.network.call(peer, message, deadline).await?;
        Ok((Response::decode(&answer)?, answer.body))
    }

    /// What a server says of itself.
    pub(super) async fn status(&self, peer: &Peer) -> Result<ServerStatus, AnyError> {
        match self.ask(peer, Request::Status).await?.0 {
            Response::Status(status) => Ok(status),
            other => Err(format!("{}: {other:?}", peer.name).into()),
        }
    }

    /// The layout that is in force.
    pub(super) async fn layout(&self, peer: &Peer) -> Result<Published, AnyError> {
        use milonga_protocol::messages::LayoutResponse::Layout;
        let request = LayoutRequest::Get {
            known: Epoch::NONE,
            wait_ms: 0,
        };
        match self.ask(peer, Request::Layout(request)).await?.0 {
            Response::Layout(Layout(published)) => Ok(published),
            other => Err(format!("{}: {other:?}", peer.name).into()),
        }
    }

    /// Whether all replicas of these settled positions hold the same, data or junk; says what does not fit. Gives the
    /// number of answers.
    pub(super) async fn compare(
        &self,
        log: &LogClient,
        positions: &[Position],
    ) -> Result<u64, AnyError> {
        let mut last = None;
        for _ in 0..TIMES {
            match self.compare_once(&log.layout(), positions).await {
                Ok(compared) => return Ok(compared),
                Err(error) => last = Some(error),
            }
            // It is that of an epoch that may be over.
            pause(Duration::from_millis(100)).await;
        }
        Err(last.unwrap_or_else(|| "nobody was asked".into()))
    }

    async fn compare_once(
        &self,
        published: &Published,
        positions: &[Position],
    ) -> Result<u64, AnyError> {
        let layout = &published.layout;
        let mut chains: BTreeMap<&[UnitIndex], Vec<Position>> = BTreeMap::new();
        for position in positions {
            let chain = layout.chain(*position);
            chains.entry(chain).or_default().push(*position);
        }
        let mut compared = 0;
        for (chain, positions) in chains {
            let mut first: Option<Vec<Held>> = None;
            for unit in chain {
                let name = &layout.unit(*unit).name;
                let held = self.read(published, name, &positions).await?;
                compared += held.len() as u64;
                let first = first.get_or_insert_with(|| held.clone());
                let pairs = held.iter().zip(first.iter()).zip(&positions);
                for ((here, there), position) in pairs {
                    let decided =
                        matches!(here.0, UnitReadAnswer::Data { .. } | UnitReadAnswer::Junk);
                    if !decided || here != there {
                        let (here, there) = (&here.0, &there.0);
                        return Err(format!(
                            "position {position}: {name} has {here:?}, the head of its chain {there:?}"
                        )
                        .into());
                    }
                }
            }
        }
        Ok(compared)
    }

    /// What a unit holds there, in order.
    async fn read(
        &self,
        published: &Published,
        name: &ServerName,
        positions: &[Position],
    ) -> Result<Vec<Held>, AnyError> {
        let peer = Peer {
            name: name.clone(),
            address: Arc::from(published.addresses[name].as_str()),
        };
        let mut held = Vec::new();
        while held.len() < positions.len() {
            let request = UnitRequest::Read {
                epoch: published.layout.epoch,
                settled: Position::ZERO,
                positions: positions[held.len()..].to_vec(),
            };
            let (response, mut body) = self.ask(&peer, Request::Unit(request)).await?;
            let Response::Unit(UnitResponse::Values { answers, .. }) = response else {
                return Err(format!("{name}: {response:?}").into());
            };
            if answers.is_empty() {
                return Err(format!("{name} answers nothing").into());
            }
            for answer in answers {
                let len = match answer {
                    UnitReadAnswer::Data { len } => usize::try_from(len)?,
                    _ => 0,
                };
                if len > body.len() {
                    return Err(format!("{name} answers with less than it says").into());
                }
                held.push((answer, body.split_to(len)));
            }
        }
        Ok(held)
    }
}
