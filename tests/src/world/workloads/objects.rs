//! Single objects: every kind of update and read of a map, a counter and a queue.

use std::task::Poll;

use milonga_objects::{
    Counter, CounterOp, CounterState, KeyBytes, Map, MapOp, MapState, Opened as _, Queue, QueueOp,
    QueueOutput, QueueState,
};
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Steps, Whole as _, key_of, live, op_bytes, state_of};
use crate::world::history::{Cell, History, Query, Value, mark};
use crate::world::witness;
use crate::world::workload::{Client, Invariant, Workload};

/// One map, one counter, one queue.
#[derive(Debug, Default)]
pub struct Objects(History);

const KEYS: u64 = 6;

impl Objects {
    /// What its clients do, for who wants to look at it afterwards.
    #[must_use]
    pub fn history(&self) -> History {
        self.0.clone()
    }
}

impl Workload for Objects {
    fn name(&self) -> &'static str {
        "objects"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, _| Box::pin(work(hand))))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        witness::invariants(&self.0, None)
    }
}

async fn work(hand: Hand) {
    let three = Three {
        map: hand.map("map").await,
        counter: hand.counter("counter").await,
        queue: hand.queue("queue").await,
        hand,
    };
    while !three.hand.client.is_over() {
        let drawn = three.hand.below(KINDS);
        three.one(drawn).await;
        three.hand.client.rest().await;
    }
    // In a healthy cluster everything works.
    for kind in 0..KINDS {
        while !three.one(kind).await {}
    }
}

/// Polls all in their order until all have ended; whether all worked.
async fn all(mut futures: Vec<BoxFuture<'_, bool>>) -> bool {
    let mut worked = true;
    std::future::poll_fn(move |cx| {
        futures.retain_mut(|future| match future.as_mut().poll(cx) {
            Poll::Ready(one) => {
                worked &= one;
                false
            }
            Poll::Pending => true,
        });
        if futures.is_empty() {
            Poll::Ready(worked)
        } else {
            Poll::Pending
        }
    })
    .await
}

struct Three {
    hand: Hand,
    map: Map<u64, Cell>,
    counter: Counter,
    queue: Queue<u64>,
}

const KINDS: u64 = 22;

impl Three {
    async fn one(&self, kind: u64) -> bool {
        let (hand, map) = (&self.hand, &self.map);
        let key = hand.below(KEYS);
        match kind {
            0..5 => self.change_map(key).await,
            5..10 => self.change_others().await,
            10 => {
                let read = async { Ok(Value::Cell(map.get(&key).await?)) };
                hand.get(map, Query::Get(key), read).await
            }
            11 => {
                let read = async {
                    let (cell, position) = map.get_with_position(&key).await?;
                    Ok((Value::Cell(cell), Some(position)))
                };
                hand.ask(map, Query::Get(key), read).await
            }
            12 => self.read_map(key).await,
            13 => {
                let read = async { Ok(Value::Number(self.counter.get().await?)) };
                hand.get(&self.counter, Query::State, read).await
            }
            14 => self.read_queue().await,
            15 => {
                hand.peek(map, Query::State, MapState::whole);
                hand.peek(&self.counter, Query::State, CounterState::whole);
                hand.peek(&self.queue, Query::State, QueueState::whole);
                true
            }
            16 => {
                let look = |seen: &_| {
                    let all = [
                        state_of(seen, map),
                        state_of(seen, &self.counter),
                        state_of(seen, &self.queue),
                    ];
                    all.into_iter().flatten().collect()
                };
                hand.snapshot(look).await
            }
            17 => self.burst().await,
            18..21 => self.together(key).await,
            _ => hand.read(map, Query::State, MapState::whole).await,
        }
    }

    async fn change_map(&self, key: u64) -> bool {
        let (hand, map) = (&self.hand, &self.map);
        let bytes = KeyBytes::of(&key);
        match hand.below(20) {
            0 => {
                let op = op_bytes(&MapOp::<Cell>::Clear);
                hand.change(map, op, map.clear(), Value::Cell).await
            }
            1..5 => {
                let op = op_bytes(&MapOp::<Cell>::Remove { key: bytes });
                hand.change(map, op, map.remove(key), Value::Cell).await
            }
            n => {
                let value = (
                    i64::try_from(n).unwrap_or(0),
                    mark(hand.history.next_call(), 0),
                );
                let op = op_bytes(&MapOp::Insert { key: bytes, value });
                hand.change(map, op, map.insert(key, value), Value::Cell)
                    .await
            }
        }
    }

    async fn change_others(&self) -> bool {
        let (hand, queue) = (&self.hand, &self.queue);
        match hand.below(9) {
            0..3 => {
                let n = i64::try_from(hand.below(100)).unwrap_or(0) - 40;
                let (op, add) = (op_bytes(&CounterOp::Add(n)), self.counter.add(n));
                hand.change(&self.counter, op, add, Value::Number).await
            }
            3..6 => {
                let item = mark(hand.history.next_call(), 0);
                let op = op_bytes(&QueueOp::Push(item));
                hand.change(queue, op, queue.push(item), |key| key_of(&key))
                    .await
            }
            6 => {
                let pop = queue.handle().update(QueueOp::Pop);
                let op = op_bytes(&QueueOp::<u64>::Pop);
                hand.change(queue, op, pop, |output| match output {
                    QueueOutput::Popped(item) => Value::Item(item),
                    _ => Value::Bool(false),
                })
                .await
            }
            _ => hand.pop(queue, false).await,
        }
    }

    /// A transaction over all three, beside plain updates that change whole objects.
    async fn together(&self, key: u64) -> bool {
        let (map, counter, queue) = (self.map.clone(), self.counter.clone(), self.queue.clone());
        let (other, what) = (self.hand.below(KEYS), self.hand.below(4));
        let together = move |tx: &mut Steps<'_>| {
            let seen = tx.get(&map, key).map_or(0, |cell| cell.0);
            tx.insert(&map, other, seen + 1);
            match what {
                0 => {
                    tx.pop(&queue);
                }
                1 => tx.add(&counter, seen),
                2 => {
                    let sum = tx.value(&counter);
                    tx.insert(&map, key, sum);
                }
                _ => {
                    tx.contains(&map, other);
                }
            }
        };
        self.hand.transaction(together).await
    }

    /// Several pushes through one handle, none waiting for the one before.
    async fn burst(&self) -> bool {
        let (hand, queue) = (&self.hand, &self.queue);
        let first = hand.history.next_call();
        let end = first + 2 + usize::try_from(hand.below(4)).unwrap_or(0);
        let pushes = (first..end).map(|call| -> BoxFuture<'_, bool> {
            let item = mark(call, 0);
            let op = op_bytes(&QueueOp::Push(item));
            Box::pin(hand.change(queue, op, queue.push(item), |key| key_of(&key)))
        });
        let worked = all(pushes.collect()).await;
        hand.history.in_order(first..end);
        worked
    }

    async fn read_map(&self, key: u64) -> bool {
        let (hand, map) = (&self.hand, &self.map);
        match hand.below(4) {
            0 => {
                let read = async { Ok(Value::Bool(map.contains(&key).await?)) };
                hand.get(map, Query::Contains(key), read).await
            }
            1 => {
                let read = async { Ok(Value::Count(map.len().await?)) };
                hand.get(map, Query::Len, read).await
            }
            2 => {
                let read = async { Ok(Value::Bool(map.is_empty().await?)) };
                hand.get(map, Query::IsEmpty, read).await
            }
            _ => {
                let read = async { Ok(Value::Cells(map.entries().await?.collect())) };
                hand.get(map, Query::State, read).await
            }
        }
    }

    async fn read_queue(&self) -> bool {
        let (hand, queue) = (&self.hand, &self.queue);
        match hand.below(3) {
            0 => {
                let read = async { Ok(Value::Count(queue.len().await?)) };
                hand.get(queue, Query::Len, read).await
            }
            1 => {
                let read = async { Ok(Value::Bool(queue.is_empty().await?)) };
                hand.get(queue, Query::IsEmpty, read).await
            }
            _ => hand.read(queue, Query::State, QueueState::whole).await,
        }
    }
}
