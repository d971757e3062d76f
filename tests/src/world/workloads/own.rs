//! A user's own object, and records that no object can take: what halts, halts alike everywhere, and the others go on.

use std::sync::Arc;

use milonga_objects::{Counter, Handle, Opened};
use milonga_protocol::{BoxFuture, NewEntry, StreamId};

use super::hand::{Fragile, FragileOp, Hand, Steps, Whole as _, live, op_bytes, state_of};
use crate::world::history::{Cell, Deed, History, Query, Value};
use crate::world::witness::{self, Record, Touched, Update, encode};
use crate::world::workload::{Client, Invariant, Workload};

/// Two fragile objects, a counter that may be hit, a map that never is.
#[derive(Debug, Default)]
pub struct Own(History);

impl Workload for Own {
    fn name(&self) -> &'static str {
        "own objects"
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
    fragile: [Handle<Fragile>; 2],
    counter: Counter,
    map: milonga_objects::Map<u64, Cell>,
}

async fn work(hand: Hand) {
    let open = Open {
        fragile: [
            hand.object("fragile-0").await,
            hand.object("fragile-1").await,
        ],
        counter: hand.counter("counter").await,
        map: hand.map("map").await,
        hand,
    };
    while !open.hand.client.is_over() {
        open.one().await;
        open.hand.client.rest().await;
    }
    while !open.together(true).await {
        open.hand.client.rest().await;
    }
    while !open.look().await {}
}

impl Open {
    async fn one(&self) -> bool {
        let hand = &self.hand;
        let fragile = &self.fragile[usize::from(hand.below(2) == 0)];
        match hand.below(100) {
            0..30 => {
                let op = FragileOp::Add(i64::try_from(hand.below(9)).unwrap_or(0));
                self.update(fragile, op).await
            }
            30..50 => self.together(false).await,
            50..65 => hand.read(fragile, Query::State, Fragile::whole).await,
            65..75 => {
                hand.peek(fragile, Query::State, Fragile::whole);
                hand.peek(&self.counter, Query::State, |counter| counter.whole());
                true
            }
            75..95 => self.look().await,
            // Rare, so that there is a life before it.
            _ if hand.below(10) > 0 => true,
            95 => self.update(fragile, FragileOp::Break).await,
            96 => self.of_a_newer_build(fragile).await,
            97 => {
                self.rubbish(vec![fragile.name()], &[fragile.stream()])
                    .await
            }
            98 => {
                let counter = self.counter.handle();
                let both = [fragile.stream(), counter.stream()];
                self.rubbish(vec![fragile.name(), counter.name()], &both)
                    .await
            }
            _ => self.undecodable(fragile).await,
        }
    }

    async fn update(&self, fragile: &Handle<Fragile>, op: FragileOp) -> bool {
        let (bytes, update) = (op_bytes(&op), fragile.update(op));
        self.hand
            .change(fragile, bytes, update, Value::Number)
            .await
    }

    /// A transaction over several objects, some of which may have halted.
    async fn together(&self, whole: bool) -> bool {
        let (map, counter) = (self.map.clone(), self.counter.clone());
        let (key, touch) = (self.hand.below(5), !whole && self.hand.below(3) == 0);
        let together = move |tx: &mut Steps<'_>| {
            let before = tx.get(&map, key).map_or(0, |cell| cell.0);
            tx.insert(&map, key, before + 1);
            if touch {
                tx.add(&counter, 1);
            }
        };
        self.hand.transaction(together).await
    }

    async fn look(&self) -> bool {
        let look = |seen: &_| {
            let fragile = self.fragile.iter().map(|fragile| state_of(seen, fragile));
            let others = [state_of(seen, &self.counter), state_of(seen, &self.map)];
            fragile.chain(others).flatten().collect()
        };
        self.hand.snapshot(look).await
    }

    /// A record whose operation has a version that this build does not know.
    async fn of_a_newer_build(&self, fragile: &Handle<Fragile>) -> bool {
        self.record(fragile, 2, op_bytes(&FragileOp::Add(1))).await
    }

    /// A record whose operation is no operation.
    async fn undecodable(&self, fragile: &Handle<Fragile>) -> bool {
        self.record(fragile, 1, vec![9, 9, 9]).await
    }

    async fn record(&self, fragile: &Handle<Fragile>, op_version: u16, op: Vec<u8>) -> bool {
        let record = Record::Update(Update {
            stream: fragile.stream().0,
            touches: Touched::Whole,
            op_version,
            op: op.clone(),
        });
        // A number that no replica waits for.
        let payload = encode(
            self.hand.client.draw(crate::world::rng::Rng::next),
            &[record],
        );
        let entry = NewEntry::new([fragile.stream()], payload);
        let deed = Deed::Update(fragile.name().into(), op);
        self.hand.append(deed, entry).await
    }

    /// An entry that is none.
    async fn rubbish(&self, names: Vec<&str>, streams: &[StreamId]) -> bool {
        let names = names.into_iter().map(Arc::from).collect();
        let payload = b"rubbish".to_vec();
        let entry = NewEntry::new(streams, payload.clone());
        self.hand.append(Deed::Rubbish(names, payload), entry).await
    }
}
