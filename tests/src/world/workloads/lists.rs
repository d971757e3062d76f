//! List-append transactions, as Jepsen's Elle wants them: unique values are appended to lists, lists are read.

use milonga_objects::Handle;
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Lists, Steps, live, state_of};
use crate::world::history::{History, Query, Value};
use crate::world::opinions;
use crate::world::witness;
use crate::world::workload::{Client, Invariant, Workload};

/// Two objects full of lists.
#[derive(Debug, Default)]
pub struct ListAppend(History);

/// Lists that are in use at once.
const LISTS: u64 = 6;
/// After so many calls of all clients a list is left alone, so that none grows without end.
const CALLS_PER_LIST: u64 = 25;
/// Beyond so many calls nobody looks at everything any more: it has become too much.
const MOST_SEEN: usize = 3_000;

impl ListAppend {
    /// What its clients do, for who wants to look at it afterwards.
    #[must_use]
    pub fn history(&self) -> History {
        self.0.clone()
    }
}

impl Workload for ListAppend {
    fn name(&self) -> &'static str {
        "list append"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, _| Box::pin(work(hand))))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        let mut all = witness::invariants(&self.0, None);
        all.push(opinions::strictly_serializable(&self.0));
        all
    }
}

async fn work(hand: Hand) {
    let lists = [hand.object("lists-0").await, hand.object("lists-1").await];
    while !hand.client.is_over() {
        one(&hand, &lists).await;
        hand.client.rest().await;
    }
    for _ in 0..3 {
        while !one(&hand, &lists).await {
            hand.client.rest().await;
        }
    }
    let whole = |lists: &Lists| Value::Lists(lists.0.clone().into_iter().collect());
    for lists in &lists {
        while !hand.read(lists, Query::State, whole).await {}
    }
}

/// One micro-operation: which list, and whether it is appended to.
type Micro = (u64, bool);

async fn one(hand: &Hand, lists: &[Handle<Lists>; 2]) -> bool {
    if hand.below(20) == 0 && hand.history.next_call() < MOST_SEEN {
        let look = |seen: &_| {
            let all = lists.iter().map(|lists| state_of(seen, lists));
            all.flatten().collect()
        };
        return hand.snapshot(look).await;
    }
    let oldest = hand.history.next_call() as u64 / CALLS_PER_LIST;
    let micro: Vec<Micro> = (0..=hand.below(4))
        .map(|_| (oldest + hand.below(LISTS), hand.below(2) == 0))
        .collect();
    let lists = lists.clone();
    hand.transaction(move |tx| run(tx, &lists, &micro)).await
}

fn run(tx: &mut Steps<'_>, lists: &[Handle<Lists>; 2], micro: &[Micro]) {
    for (key, appends) in micro {
        // Every list lies in one of the objects.
        let lists = &lists[usize::from(key % 2 == 1)];
        if *appends {
            tx.append(lists, *key);
        } else {
            tx.list(lists, *key);
        }
    }
}
