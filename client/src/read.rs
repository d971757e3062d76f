//! Reading positions.
//!
//! Chains are written one replica after the other, so what the tail has is on every replica: settled. A position
//! known to be settled is asked of any replica, every other one of the tail. That the tail has nothing counts only if the
//! other replicas still serve the epoch, too: a newer one may have begun without this one, but not without all of its chain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{join_all, try_join_all};
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    Body, Request, UnitReadAnswer, UnitRequest, UnitResponse, WireValue,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{EncodedEntry, LogError, Position, ReadAnswer, Time};

use crate::cluster::{Cluster, View, garbage};
use crate::latency::Latency;
use crate::marks::KnownSince;
use crate::retry::{Attempts, Failure};
use crate::settle::{Settler, What};
use crate::tasks::Tasks;

/// Most positions of one message.
const PER_MESSAGE: usize = 256;

/// Reads for one client.
pub(crate) struct Reader {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) settler: Arc<Settler>,
    pub(crate) latency: Arc<Latency>,
    pub(crate) known: KnownSince,
    tasks: Arc<Tasks>,
    turn: AtomicUsize,
}

/// One wish of a read.
struct Wanted {
    position: Position,
    answer: Option<ReadAnswer>,
    /// Was closed and undecided, and has been settled since: the next answer counts.
    settled: bool,
}

/// What a replica says of a position.
enum Said {
    Answer(ReadAnswer, Option<EncodedEntry>),
    Undecided,
    Lost,
}

/// Positions of one chain that one message asks for.
struct Ask {
    segment: usize,
    chain: usize,
    place: usize,
    /// Whether all of it is known to be settled.
    settled: bool,
    /// Indexes of wishes.
    wishes: Vec<usize>,
    positions: Vec<Position>,
}

impl Reader {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        settler: Arc<Settler>,
        latency: Arc<Latency>,
        tasks: Arc<Tasks>,
    ) -> Self {
        Self {
            cluster,
            settler,
            latency,
            known: KnownSince::default(),
            tasks,
            turn: AtomicUsize::new(0),
        }
    }

    /// What each of `positions` holds.
    pub(crate) async fn read(
        &self,
        positions: &[Position],
        deadline: Time,
    ) -> Result<Vec<ReadAnswer>, LogError> {
        let mut wanted: Vec<Wanted> = positions
            .iter()
            .map(|position| Wanted {
                position: *position,
                answer: None,
                settled: false,
            })
            .collect();
        let mut attempts = Attempts::new(&self.cluster, deadline);
        let mut per_message = PER_MESSAGE;
        while wanted.iter().any(|wish| wish.answer.is_none()) {
            attempts.check(&"a read")?;
            let view = self.cluster.view();
            let pass = self.pass(&view, &mut wanted, per_message, attempts.call_deadline());
            match pass.await {
                Ok(undecided) => self.decide(&view, &mut wanted, undecided, deadline).await?,
                Err(failure) => {
                    if failure.is_busy() {
                        per_message = (per_message / 2).max(1);
                    }
                    attempts.after(view.epoch(), failure).await?;
                }
            }
        }
        let answers = wanted.into_iter().map(|wish| wish.answer);
        Ok(answers.collect::<Option<_>>().expect("the loop ended"))
    }

    /// One position.
    pub(crate) async fn read_one(
        &self,
        position: Position,
        deadline: Time,
    ) -> Result<ReadAnswer, LogError> {
        let mut answers = self.read(&[position], deadline).await?;
        Ok(answers.pop().expect("one answer for each position"))
    }

    /// Asks for everything that is not answered yet, all chains at once. Returns the wishes that have to be settled:
    /// undecided ones of the closed part, and those that the tail has lost.
    async fn pass(
        &self,
        view: &View,
        wanted: &mut [Wanted],
        per_message: usize,
        deadline: Time,
    ) -> Result<Vec<usize>, Failure> {
        let asks = self.asks(view, wanted, per_message);
        let said = join_all(asks.iter().map(|ask| self.ask(view, ask, deadline))).await;
        let (mut undecided, mut failed) = (Vec::new(), None);
        for (ask, said) in asks.iter().zip(said) {
            let said = match said {
                Ok(said) => said,
                Err(failure) => {
                    failed = Some(failure);
                    continue;
                }
            };
            for (wish, said) in ask.wishes.iter().zip(said) {
                let want = &mut wanted[*wish];
                let closed = view.layout().is_closed(want.position);
                match said {
                    Said::Answer(answer, _) => want.answer = Some(answer),
                    Said::Undecided if closed && plants::active(Plant::ClosedIsJunk) => {
                        want.answer = Some(ReadAnswer::Junk);
                    }
                    Said::Lost if want.settled || (ask.settled && !closed) => {
                        want.answer = Some(ReadAnswer::Lost);
                    }
                    Said::Undecided if !closed || want.settled => {
                        want.answer = Some(ReadAnswer::Unwritten);
                    }
                    Said::Lost | Said::Undecided => undecided.push(*wish),
                }
            }
        }
        failed.map_or(Ok(undecided), Err)
    }

    /// Below the epoch's start nothing stays undecided: rules 9 and 11 say what it is. What an active tail has lost
    /// the head still has; it is settled, and so given back to the tail, before it is shown.
    async fn decide(
        &self,
        view: &View,
        wanted: &mut [Wanted],
        undecided: Vec<usize>,
        deadline: Time,
    ) -> Result<(), LogError> {
        if undecided.is_empty() {
            return Ok(());
        }
        let mut positions: Vec<_> = undecided.iter().map(|w| wanted[*w].position).collect();
        positions.sort_unstable();
        positions.dedup();
        let settle = What::Positions(positions);
        self.settler.settle(settle, view.epoch(), deadline).await?;
        if self.cluster.view().epoch() > view.epoch() {
            // Some may have been void and not settled.
            return Ok(());
        }
        for wish in undecided {
            wanted[wish].settled = true;
        }
        Ok(())
    }

    fn asks(&self, view: &View, wanted: &[Wanted], per_message: usize) -> Vec<Ask> {
        let layout = view.layout();
        let mut chains: BTreeMap<(usize, usize, bool), Vec<usize>> = BTreeMap::new();
        for (index, wish) in wanted.iter().enumerate() {
            if wish.answer.is_none() {
                let segment = layout.segment_of(wish.position);
                let chain = layout.segments[segment].chain_of(wish.position);
                let settled = wish.position < self.cluster.settled(view, segment, chain);
                let wishes = chains.entry((segment, chain, settled)).or_default();
                wishes.push(index);
            }
        }
        let mut asks = Vec::new();
        for ((segment, chain, settled), wishes) in chains {
            let replicas = view.chain(segment, chain).len();
            for wishes in wishes.chunks(per_message) {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                asks.push(Ask {
                    segment,
                    chain,
                    settled,
                    place: if settled {
                        turn % replicas
                    } else if plants::active(Plant::ReadsAtHead) {
                        0
                    } else {
                        replicas - 1
                    },
                    wishes: wishes.to_vec(),
                    positions: wishes.iter().map(|w| wanted[*w].position).collect(),
                });
            }
        }
        asks
    }

    /// Asks one replica and, if all is settled, the others for what it has lost. The answer may stop early.
    async fn ask(&self, view: &View, ask: &Ask, deadline: Time) -> Result<Vec<Said>, Failure> {
        let mut said = self
            .ask_unit(view, ask, ask.place, &ask.positions, deadline)
            .await?;
        let at_tail = ask.place + 1 == view.chain(ask.segment, ask.chain).len()
            || (plants::active(Plant::ReadsAtHead) && !ask.settled);
        if !at_tail {
            // These are settled, so a replica that does not know them has lost them.
            for said in &mut said {
                if matches!(said, Said::Undecided) {
                    *said = Said::Lost;
                }
            }
        }
        if ask.settled {
            self.ask_others(view, ask, &mut said, deadline).await?;
        } else if said.iter().any(|said| matches!(said, Said::Undecided)) {
            self.confirm_epoch(view, ask, deadline).await?;
        }
        // Else nobody may be shown another replica's value: a tail whose disk failed "lost" what it never had.
        Ok(said)
    }

    /// Whether no newer epoch had begun when the read did: that takes a seal of one replica of each chain (rule 16).
    async fn confirm_epoch(&self, view: &View, ask: &Ask, deadline: Time) -> Result<(), Failure> {
        if plants::active(Plant::UnwrittenByTailAlone) {
            return Ok(());
        }
        let chain = view.chain(ask.segment, ask.chain).iter().enumerate();
        let others = chain.filter(|(place, _)| *place != ask.place);
        let confirmed = others.map(|(_, unit)| self.cluster.confirm(view, *unit, deadline));
        try_join_all(confirmed).await.map(|_| ())
    }

    async fn ask_others(
        &self,
        view: &View,
        ask: &Ask,
        said: &mut [Said],
        deadline: Time,
    ) -> Result<(), Failure> {
        let mut failed = None;
        let replicas = view.chain(ask.segment, ask.chain).len();
        for place in (0..replicas).rev().filter(|place| *place != ask.place) {
            let lost: Vec<usize> = (0..said.len())
                .filter(|index| matches!(said[*index], Said::Lost))
                .collect();
            if lost.is_empty() {
                return Ok(());
            }
            let positions: Vec<_> = lost.iter().map(|index| ask.positions[*index]).collect();
            match self.ask_unit(view, ask, place, &positions, deadline).await {
                Ok(others) => {
                    for (index, other) in lost.into_iter().zip(others) {
                        if let Said::Answer(answer, entry) = &other {
                            if matches!(answer, ReadAnswer::Data(_) | ReadAnswer::Junk) {
                                self.repair(view, ask, ask.positions[index], entry.clone());
                            }
                            said[index] = other;
                        }
                    }
                }
                Err(failure) => failed = Some(failure),
            }
        }
        // Lost means that *no* replica can give it: a silent one might.
        match failed {
            Some(failure) if said.iter().any(|said| matches!(said, Said::Lost)) => Err(failure),
            _ => Ok(()),
        }
    }

    async fn ask_unit(
        &self,
        view: &View,
        ask: &Ask,
        place: usize,
        positions: &[Position],
        deadline: Time,
    ) -> Result<Vec<Said>, Failure> {
        let unit = view.unit(view.chain(ask.segment, ask.chain)[place]);
        let request = UnitRequest::Read {
            epoch: view.epoch(),
            settled: self.cluster.settled(view, ask.segment, ask.chain),
            positions: positions.to_vec(),
        };
        let (response, body) = self
            .cluster
            .unit(view.epoch(), unit, request, deadline)
            .await?;
        let UnitResponse::Values { answers, .. } = response else {
            return Err(garbage(unit, "no values to a read"));
        };
        if answers.is_empty() || answers.len() > positions.len() {
            return Err(garbage(unit, "values of other positions"));
        }
        let mut body = Body::of(&Message {
            body,
            ..Message::default()
        });
        let said = positions.iter().zip(answers).map(|(position, answer)| {
            Ok(match answer {
                UnitReadAnswer::Data { len } => {
                    let bytes = body
                        .take(len)
                        .ok_or_else(|| garbage(unit, "a short body"))?;
                    // Damaged bytes are as good as none.
                    let entry = EncodedEntry::check(bytes).ok();
                    match entry.map(|entry| (entry.decode(*position), entry)) {
                        Some((Ok(decoded), entry)) => {
                            Said::Answer(ReadAnswer::Data(decoded), Some(entry))
                        }
                        _ => Said::Lost,
                    }
                }
                UnitReadAnswer::Junk => Said::Answer(ReadAnswer::Junk, None),
                UnitReadAnswer::Trimmed => Said::Answer(ReadAnswer::Trimmed, None),
                UnitReadAnswer::Unwritten | UnitReadAnswer::Pending => Said::Undecided,
                UnitReadAnswer::Lost => Said::Lost,
                UnitReadAnswer::NotMine => {
                    return Err(garbage(unit, "it is no replica of a position of its chain"));
                }
            })
        });
        said.collect()
    }

    /// Gives a replica back what it has lost; best effort, in the background.
    fn repair(&self, view: &View, ask: &Ask, position: Position, entry: Option<EncodedEntry>) {
        if plants::active(Plant::NotRepaired) {
            return;
        }
        let value = match &entry {
            Some(entry) => WireValue::Data {
                len: u32::try_from(entry.len()).unwrap_or(u32::MAX),
            },
            None => WireValue::Junk,
        };
        let request = Request::Unit(UnitRequest::Repair {
            epoch: view.epoch(),
            settled: self.cluster.settled(view, ask.segment, ask.chain),
            items: vec![(position, value)],
        });
        let body = entry.map(|entry| entry.bytes().clone()).unwrap_or_default();
        let unit = view
            .unit(view.chain(ask.segment, ask.chain)[ask.place])
            .clone();
        let (cluster, epoch) = (Arc::clone(&self.cluster), view.epoch());
        metrics::counter!("milonga_client_repairs_total").increment(1);
        self.tasks.spawn("repair", async move {
            let deadline = cluster.call_deadline(cluster.deadline());
            let answer = cluster.unit_message(epoch, &unit, request.into_message(body), deadline);
            match answer.await {
                Ok((response, _)) => tracing::debug!(%unit, %position, ?response, "repaired"),
                Err(failure) => tracing::debug!(%unit, %position, %failure, "not repaired"),
            }
        });
    }
}
