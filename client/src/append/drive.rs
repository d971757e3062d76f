//! Drives the appends of one part down their chain, and finds out what became of those that did not get through.

use std::sync::Arc;

use milonga_protocol::messages::{UnitResponse, WriteAnswer};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{AppendError, Epoch, LogError, Position, Time};
use milonga_transport::Peer;

use super::batch::{Item, Part, deadline_of, expire};
use super::outcome::{AfterEpoch, Found, Next, after_epoch, found, judge};
use super::{Appender, Slot};
use crate::cluster::garbage;
use crate::retry::{Backoff, Failure, Remedy, pause};
use crate::settle::What;
use crate::trim::{settled, tell_settled};

/// What one unit's answers leave to do.
#[derive(Default)]
struct Left {
    /// Some are not decided at this unit: the same write again.
    again: bool,
    /// ... after everything below this position is settled.
    settle_below: Option<Position>,
    /// Surely failed.
    retry: Vec<Item>,
    /// The log has to be asked.
    ask: Vec<Item>,
    /// Tokens that nobody will use.
    unused: Vec<Position>,
}

impl Appender {
    /// Takes a part from head to tail. Ends when every item is answered and decided, or its time is up.
    pub(super) async fn drive(self: &Arc<Self>, mut part: Part, slot: Arc<Slot>) {
        let mut slot = Some(slot);
        let mut backoff = Backoff::default();
        let mut place = 0;
        let mut what = String::new();
        loop {
            let now = self.cluster.env.now();
            let unused = expire(&mut part.items, now, &what);
            self.fill(part.view.epoch(), unused);
            if part.items.is_empty() || now >= part.finish_by {
                return;
            }
            if deadline_of(&part.items).is_none() {
                // Nobody waits any more: others may begin.
                slot = None;
            }
            if self.cluster.view().epoch() > part.view.epoch() {
                drop(slot);
                return self
                    .resolve(part.items, part.view.epoch(), part.finish_by)
                    .await;
            }
            let left = match self.send(&mut part, place).await {
                Ok(answers) => self.sort(&mut part, place, &answers),
                Err(failure) => {
                    what = failure.to_string();
                    if failure.remedy() == Remedy::GiveUp {
                        self.refused(&mut part, &what);
                    }
                    if failure.may_have_been_served()
                        && plants::acts(Plant::RetriesWithoutAsking, 3)
                    {
                        return self.again(part.items);
                    }
                    let (epoch, until) = (part.view.epoch(), part.deadline());
                    pause(&self.cluster, &failure, epoch, &mut backoff, until).await;
                    continue;
                }
            };
            if left.again {
                let unit = &self.unit(&part, place).name;
                what = format!("{unit}, which cannot take the entry yet");
            }
            if self.go_on(&mut part, left, &mut backoff).await {
                place += 1;
            }
            let skips = place > 0 && plants::acts(Plant::LastReplicasSkipped, 30);
            if place == self.replicas(&part) || skips {
                return self.done(part);
            }
        }
    }

    fn replicas(&self, part: &Part) -> usize {
        part.view.chain(part.view.last_segment(), part.chain).len()
    }

    fn unit<'a>(&self, part: &'a Part, place: usize) -> &'a Peer {
        let chain = part.view.chain(part.view.last_segment(), part.chain);
        let first = part.items.first().map_or(1, |item| item.position.0);
        if plants::active(Plant::TailFirst) && first.is_multiple_of(8) {
            return part.view.unit(chain[chain.len() - 1 - place]);
        }
        part.view.unit(chain[place])
    }

    /// Writes all items to one replica.
    async fn send(&self, part: &mut Part, place: usize) -> Result<Vec<WriteAnswer>, Failure> {
        for item in &mut part.items {
            item.was_exposed = item.caller.exposed;
            item.caller.exposed = true;
        }
        let segment = part.view.last_segment();
        let settled = self.cluster.settled(&part.view, segment, part.chain);
        let message = part.message(settled);
        let deadline = self.cluster.call_deadline(part.deadline());
        let unit = self.unit(part, place);
        let answer = match self
            .cluster
            .unit_message(part.view.epoch(), unit, message, deadline)
            .await
        {
            Ok((UnitResponse::Written { answers, marks }, _))
                if answers.len() == part.items.len() =>
            {
                let any = plants::active(Plant::SettledByAnyReplica);
                if place + 1 == self.replicas(part) || any {
                    let settled = marks.settled;
                    self.cluster
                        .raise_settled(&part.view, segment, part.chain, settled);
                }
                Ok(answers)
            }
            Ok(_) => Err(garbage(unit, "no answers to a write")),
            Err(failure) => Err(failure),
        };
        if answer
            .as_ref()
            .is_err_and(|failure| !failure.may_have_been_served())
        {
            for item in &mut part.items {
                item.caller.exposed = item.was_exposed;
            }
        }
        answer
    }

    /// Sorts the items by what their answers mean; those that are to go on stay in the part.
    fn sort(&self, part: &mut Part, place: usize, answers: &[WriteAnswer]) -> Left {
        let mut left = Left::default();
        if answers.iter().all(|a| *a == WriteAnswer::Durable) {
            return left;
        }
        let unit = self.unit(part, place).name.clone();
        let (at_head, now) = (place == 0, self.cluster.env.now());
        let mut stay = Vec::with_capacity(part.items.len());
        for (mut item, answer) in std::mem::take(&mut part.items).into_iter().zip(answers) {
            let next = judge(*answer, at_head, item.was_exposed);
            if at_head && !matches!(answer, WriteAnswer::Durable | WriteAnswer::Accepted) {
                // This send has not written it.
                item.caller.exposed = item.was_exposed;
            }
            tracing::debug!(position = %item.position, %unit, ?answer, ?next, "write");
            match next {
                Next::Forward => stay.push(item),
                Next::SendAgain => {
                    left.again = true;
                    stay.push(item);
                }
                Next::SettleBelow => {
                    left.again = true;
                    left.settle_below = left.settle_below.max(Some(item.position));
                    stay.push(item);
                }
                Next::Done => item.done(),
                Next::Retry => left.retry.push(item),
                Next::Ask => left.ask.push(item),
                Next::Full => {
                    let unit = unit.to_string();
                    item.caller.answer(Err(AppendError::Full { unit }));
                    left.unused.push(item.position);
                }
                Next::Refused => {
                    let what = format!("{unit} does not take the entry");
                    item.caller.unavailable(&what, now);
                    left.unused.push(item.position);
                }
                Next::Unknown => item.caller.unknown("its position was trimmed meanwhile"),
            }
        }
        part.items = stay;
        left
    }

    /// Does what is left to do; whether the part goes on to the next replica.
    async fn go_on(self: &Arc<Self>, part: &mut Part, left: Left, backoff: &mut Backoff) -> bool {
        let epoch = part.view.epoch();
        self.fill(epoch, left.unused);
        self.again(left.retry);
        self.resolve_later(left.ask, epoch, part.finish_by);
        if let Some(position) = left.settle_below {
            self.settle_below(part, position).await;
        }
        if left.again {
            let wait = backoff.next(&self.cluster.env);
            let until = self.cluster.env.now().after(wait).min(part.deadline());
            self.cluster.newer_than(epoch, until).await;
        }
        !left.again
    }

    /// Settles everything between what the tails say is settled and `position`. Trouble shows at the next attempt.
    async fn settle_below(&self, part: &Part, position: Position) {
        let deadline = part.deadline();
        let call_by = self.cluster.call_deadline(deadline);
        let told = match settled(&self.cluster, &part.view, call_by).await {
            Ok(mark) => mark,
            Err(failure) => {
                tracing::debug!(%failure, "marks not known");
                return;
            }
        };
        tell_settled(&self.cluster, &part.view, told, call_by).await;
        // What is closed is settled by the layout's leader; what is farther above the mark heads do not fill, and it comes
        // at the next attempt.
        let mark = told.max(part.view.layout().start);
        let ahead = part.view.layout().limits.positions_ahead;
        let what = What::Range(mark, position.min(mark.plus(ahead).next()));
        let settled = self
            .reader
            .settler
            .settle(what, part.view.epoch(), deadline);
        if let Err(error) = settled.await {
            tracing::debug!(%error, %position, "not settled below");
        }
    }

    /// Every item is durable on every replica.
    fn done(&self, mut part: Part) {
        let now = self.cluster.env.now();
        let (time, count) = (now.since(part.granted), part.items.len());
        self.reader.latency.record(time, count);
        metrics::counter!("milonga_client_appends_total").increment(count as u64);
        metrics::histogram!("milonga_client_append_seconds").record(time.as_secs_f64());
        let p99 = self.reader.latency.p99();
        metrics::gauge!("milonga_client_append_p99_seconds").set(p99.as_secs_f64());
        for item in &mut part.items {
            item.done();
        }
    }

    /// The unit will never take the write: those that it surely has not got are given up.
    fn refused(&self, part: &mut Part, what: &str) {
        let now = self.cluster.env.now();
        let mut unused = Vec::new();
        part.items.retain_mut(|item| {
            if !item.caller.exposed {
                item.caller.unavailable(what, now);
                unused.push(item.position);
            }
            item.caller.exposed
        });
        self.fill(part.view.epoch(), unused);
    }

    /// Puts failed appends back at the front of the queue: new token, new entry id.
    fn again(&self, failed: Vec<Item>) {
        if failed.is_empty() {
            return;
        }
        metrics::counter!("milonga_client_append_retries_total").increment(failed.len() as u64);
        let again = failed.into_iter().filter_map(Item::again).collect();
        self.lock().push_front(again);
        self.wake.notify_one();
    }

    /// Fills positions that nobody will write, in the background: readers need not wait for them.
    fn fill(&self, epoch: Epoch, unused: Vec<Position>) {
        if unused.is_empty() {
            return;
        }
        let (settler, deadline) = (Arc::clone(&self.reader.settler), self.cluster.deadline());
        self.tasks.spawn("fill unused tokens", async move {
            let filled = settler.settle(What::Positions(unused), epoch, deadline);
            if let Err(error) = filled.await {
                tracing::debug!(%error, "unused tokens not filled");
            }
        });
    }

    fn resolve_later(self: &Arc<Self>, items: Vec<Item>, token: Epoch, finish_by: Time) {
        if items.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        self.tasks.spawn("append outcome", async move {
            this.resolve(items, token, finish_by).await;
        });
    }

    /// Finds out what became of appends with tokens of epoch `token` whose writes were not answered (rules 13, 14).
    async fn resolve(&self, mut items: Vec<Item>, token: Epoch, finish_by: Time) {
        let mut backoff = Backoff::default();
        let mut what = String::from("the outcome of an earlier epoch");
        loop {
            items = self.rule_out(items, token);
            let now = self.cluster.env.now();
            let unused = expire(&mut items, now, &what);
            self.fill(token, unused);
            if items.is_empty() || now >= finish_by {
                return;
            }
            let deadline = deadline_of(&items).unwrap_or(finish_by);
            match self.ask(items, token, deadline).await {
                (undecided, None) => items = undecided,
                (undecided, Some(error)) => {
                    items = undecided;
                    what = error.to_string();
                }
            }
            let wait = backoff.next(&self.cluster.env);
            let until = self.cluster.env.now().after(wait).min(deadline);
            if !items.is_empty() {
                let known = self.cluster.view().epoch();
                self.cluster.newer_than(known, until).await;
            }
        }
    }

    /// What the newest layout decides without asking anybody.
    fn rule_out(&self, items: Vec<Item>, token: Epoch) -> Vec<Item> {
        let view = self.cluster.view();
        if view.epoch() <= token {
            return items;
        }
        let (mut failed, mut ask) = (Vec::new(), Vec::new());
        for mut item in items {
            match after_epoch(view.layout(), token, item.position, item.caller.exposed) {
                AfterEpoch::Failed => failed.push(item),
                AfterEpoch::Ask => ask.push(item),
                AfterEpoch::Unknown => {
                    item.caller.unknown("its epoch is too long ago");
                }
            }
        }
        self.again(failed);
        ask
    }

    /// Settles the positions and compares what they hold; returns what is still undecided.
    async fn ask(
        &self,
        mut items: Vec<Item>,
        token: Epoch,
        deadline: Time,
    ) -> (Vec<Item>, Option<LogError>) {
        items.sort_by_key(|item| item.position);
        let positions: Vec<_> = items.iter().map(|item| item.position).collect();
        let view = self.cluster.view();
        if positions.iter().any(|p| !view.layout().is_closed(*p)) {
            let what = What::Positions(positions.clone());
            if let Err(error) = self.reader.settler.settle(what, token, deadline).await {
                return (items, Some(error));
            }
        }
        // A read of a closed position settles it first.
        let answers = match self.reader.read(&positions, deadline).await {
            Ok(answers) => answers,
            Err(error) => return (items, Some(error)),
        };
        let (mut undecided, mut failed) = (Vec::new(), Vec::new());
        for (mut item, answer) in items.into_iter().zip(answers) {
            match found(&answer, item.caller.id) {
                Found::Own => item.done(),
                Found::Other => failed.push(item),
                Found::Gone => item
                    .caller
                    .unknown("its position was trimmed or lost meanwhile"),
                Found::Undecided => undecided.push(item),
            }
        }
        self.again(failed);
        (undecided, None)
    }
}
