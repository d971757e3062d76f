//! Many objects: each client opens some of them, late, and transactions write a dozen at once.

use std::collections::BTreeMap;

use milonga_objects::{Counter, CounterOp, Map};
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Steps, Whole as _, live, op_bytes, state_of};
use crate::world::history::{Cell, History, Query, Value};
use crate::world::witness;
use crate::world::workload::{Client, Invariant, Workload};

/// Hundreds of counters and one map.
#[derive(Debug, Default)]
pub struct Many(History);

/// Counters that there may be.
const COUNTERS: u64 = 240;
/// Counters that one transaction changes, at most.
const WIDE: u64 = 24;

impl Workload for Many {
    fn name(&self) -> &'static str {
        "many objects"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, _| Box::pin(work(hand))))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        witness::invariants(&self.0, None)
    }
}

struct Open {
    hand: Hand,
    map: Map<u64, Cell>,
    counters: BTreeMap<u64, Counter>,
}

async fn work(hand: Hand) {
    let map = hand.map("map").await;
    let mut open = Open {
        hand,
        map,
        counters: BTreeMap::new(),
    };
    open.open().await;
    while !open.hand.client.is_over() {
        open.one().await;
        open.hand.client.rest().await;
    }
    while !open.wide().await {
        open.hand.client.rest().await;
    }
    while !open.look().await {}
}

impl Open {
    async fn one(&mut self) -> bool {
        let counter = self.some();
        match self.hand.below(10) {
            0..4 => {
                self.open().await;
                true
            }
            4..6 => {
                let (op, add) = (op_bytes(&CounterOp::Add(3)), counter.add(3));
                self.hand.change(&counter, op, add, Value::Number).await
            }
            6..8 => self.wide().await,
            8 => {
                let read = |counter: &milonga_objects::CounterState| counter.whole();
                self.hand.read(&counter, Query::State, read).await
            }
            _ => self.look().await,
        }
    }

    /// Opens one more, or the same again.
    async fn open(&mut self) {
        // The first ones more often: clients should meet.
        let (a, b) = (self.hand.below(COUNTERS), self.hand.below(COUNTERS));
        let number = a.min(b);
        let counter = self.hand.counter(&format!("counter-{number}")).await;
        self.counters.insert(number, counter);
    }

    fn some(&self) -> Counter {
        let nth = usize::try_from(self.hand.below(self.counters.len() as u64)).unwrap_or(0);
        let counter = self.counters.values().nth(nth);
        counter.expect("one was opened at the start").clone()
    }

    /// Reads one counter, changes many.
    async fn wide(&self) -> bool {
        let wide = self.hand.below(WIDE) + 1;
        let (map, first) = (self.map.clone(), self.some());
        let counters: Vec<_> = (0..wide).map(|_| self.some()).collect();
        let add = move |tx: &mut Steps<'_>| {
            let seen = tx.value(&first);
            tx.insert(&map, wide, seen);
            for counter in &counters {
                tx.add(counter, 1);
            }
        };
        self.hand.transaction(add).await
    }

    async fn look(&self) -> bool {
        let look = |seen: &_| {
            let counters = self
                .counters
                .values()
                .map(|counter| state_of(seen, counter));
            let map = std::iter::once(state_of(seen, &self.map));
            counters.chain(map).flatten().collect()
        };
        self.hand.snapshot(look).await
    }
}
