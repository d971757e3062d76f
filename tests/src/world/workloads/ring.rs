//! FoundationDB's cycle test: keys point at each other in a ring; transactions exchange neighbours. Any anomaly breaks
//! the ring for good.

use std::collections::BTreeMap;

use milonga_objects::{Map, MapState};
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Steps, Whole as _, live, state_of};
use crate::world::history::{Cell, History, Query, Value};
use crate::world::witness::{self, Model, Rule, World};
use crate::world::workload::{Client, Invariant, Workload};

/// A ring in one map.
#[derive(Debug, Default)]
pub struct Ring(History);

const NODES: u64 = 7;

impl Workload for Ring {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, _| Box::pin(work(hand))))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        witness::invariants(&self.0, Some(law))
    }
}

fn law(world: &World) -> Result<(), String> {
    match world.model("ring") {
        Some(Model::Map(ring)) => one_cycle(ring),
        _ => Ok(()),
    }
}

/// Whether following the pointers visits everybody once.
fn one_cycle(ring: &BTreeMap<u64, Cell>) -> Result<(), String> {
    if ring.is_empty() {
        return Ok(());
    }
    let (mut at, mut steps) = (0, 0);
    loop {
        let next = ring.get(&at).and_then(|cell| u64::try_from(cell.0).ok());
        let Some(next) = next else {
            return Err(format!("{at} points nowhere: {ring:?}"));
        };
        steps += 1;
        at = next;
        if at == 0 && steps == NODES {
            return Ok(());
        }
        if at == 0 || steps > NODES {
            return Err(format!("a cycle of {steps}, not {NODES}: {ring:?}"));
        }
    }
}

async fn work(hand: Hand) {
    let ring = Open {
        ring: hand.map("ring").await,
        hand,
    };
    while !ring.hand.transaction(ring.tie()).await {
        ring.hand.client.rest().await;
    }
    while !ring.hand.client.is_over() {
        let drawn = ring.hand.below(KINDS);
        ring.one(drawn).await;
        ring.hand.client.rest().await;
    }
    for kind in 0..KINDS {
        while !ring.one(kind).await {
            ring.hand.client.rest().await;
        }
    }
}

struct Open {
    hand: Hand,
    ring: Map<u64, Cell>,
}

const KINDS: u64 = 5;

impl Open {
    fn tie(&self) -> impl Fn(&mut Steps<'_>) + Clone + use<> {
        let ring = self.ring.clone();
        move |tx| {
            if !tx.contains(&ring, 0) {
                for node in 0..NODES {
                    let next = i64::try_from((node + 1) % NODES).unwrap_or(0);
                    tx.insert(&ring, node, next);
                }
            }
        }
    }

    async fn one(&self, kind: u64) -> bool {
        let hand = &self.hand;
        match kind {
            0..3 => {
                let (ring, first) = (self.ring.clone(), hand.below(NODES));
                hand.transaction(move |tx| exchange(tx, &ring, first)).await
            }
            3 => {
                let look = |seen: &_| {
                    let ring = state_of(seen, &self.ring);
                    if let Some((_, whole)) = &ring {
                        self.must_be_one(whole);
                    }
                    ring.into_iter().collect()
                };
                hand.snapshot(look).await
            }
            _ => {
                let read = |ring: &MapState<u64, Cell>| {
                    let whole = ring.whole();
                    self.must_be_one(&whole);
                    whole
                };
                hand.peek(&self.ring, Query::State, read);
                hand.read(&self.ring, Query::State, read).await
            }
        }
    }

    fn must_be_one(&self, whole: &Value) {
        if let Value::Cells(cells) = whole
            && let Err(why) = one_cycle(&cells.iter().copied().collect())
        {
            self.hand.history.complain(Rule::Laws, why);
        }
    }
}

/// a → b → c → d becomes a → c → b → d.
fn exchange(tx: &mut Steps<'_>, ring: &Map<u64, Cell>, a: u64) {
    let next = |tx: &mut Steps<'_>, of: u64| {
        let cell = tx.get(ring, of);
        cell.and_then(|cell| u64::try_from(cell.0).ok())
            .unwrap_or(0)
    };
    let b = next(tx, a);
    let c = next(tx, b);
    let d = next(tx, c);
    for (from, to) in [(a, c), (c, b), (b, d)] {
        tx.insert(ring, from, i64::try_from(to).unwrap_or(0));
    }
}
