//! Transfers between accounts: their sum never changes.

use milonga_objects::{Counter, Map, MapState};
use milonga_protocol::BoxFuture;

use super::hand::{Hand, Steps, Whole as _, live, state_of};
use crate::world::history::Query;
use crate::world::history::{Cell, History, Value};
use crate::world::witness::{self, Model, Rule, World};
use crate::world::workload::{Client, Invariant, Workload};

/// Accounts, and a counter of transfers.
#[derive(Debug, Default)]
pub struct Bank(History);

const ACCOUNTS: u64 = 8;
const TOTAL: i64 = 800;

impl Workload for Bank {
    fn name(&self) -> &'static str {
        "bank"
    }

    fn client(&self, client: Client) -> BoxFuture<'static, ()> {
        let history = self.0.clone();
        Box::pin(live(client, history, |hand, _| Box::pin(work(hand))))
    }

    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        witness::invariants(&self.0, Some(law))
    }
}

/// Nothing is gained or lost.
fn law(world: &World) -> Result<(), String> {
    match world.model("accounts") {
        Some(Model::Map(accounts)) => balanced(accounts.values()),
        _ => Ok(()),
    }
}

fn balanced<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Result<(), String> {
    let cells: Vec<_> = cells.into_iter().collect();
    let sum: i64 = cells.iter().map(|cell| cell.0).sum();
    if cells.is_empty() || sum == TOTAL {
        Ok(())
    } else {
        Err(format!("the accounts hold {sum}, not {TOTAL}: {cells:?}"))
    }
}

async fn work(hand: Hand) {
    let bank = Open {
        accounts: hand.map("accounts").await,
        transfers: hand.counter("transfers").await,
        hand,
    };
    bank.found().await;
    while !bank.hand.client.is_over() {
        let drawn = bank.hand.below(KINDS);
        bank.one(drawn).await;
        bank.hand.client.rest().await;
    }
    for kind in 0..KINDS {
        while !bank.one(kind).await {
            bank.hand.client.rest().await;
        }
    }
}

struct Open {
    hand: Hand,
    accounts: Map<u64, Cell>,
    transfers: Counter,
}

const KINDS: u64 = 6;

impl Open {
    /// Gives every account its money, once.
    async fn found(&self) {
        let accounts = self.accounts.clone();
        let found = move |tx: &mut Steps<'_>| {
            if tx.entries(&accounts).is_empty() {
                for account in 0..ACCOUNTS {
                    tx.insert(
                        &accounts,
                        account,
                        TOTAL / i64::try_from(ACCOUNTS).unwrap_or(1),
                    );
                }
            }
        };
        while !self.hand.transaction(found.clone()).await {
            self.hand.client.rest().await;
        }
    }

    async fn one(&self, kind: u64) -> bool {
        match kind {
            0..3 => self.transfer().await,
            3 => self.audit().await,
            4 => {
                let look = |seen: &_| {
                    let accounts = state_of(seen, &self.accounts);
                    if let Some((_, Value::Cells(cells))) = &accounts {
                        self.must_balance(cells);
                    }
                    let all = [accounts, state_of(seen, &self.transfers)];
                    all.into_iter().flatten().collect()
                };
                self.hand.snapshot(look).await
            }
            _ => {
                let read = |accounts: &MapState<u64, Cell>| {
                    let whole = accounts.whole();
                    if let Value::Cells(cells) = &whole {
                        self.must_balance(cells);
                    }
                    whole
                };
                self.hand.read(&self.accounts, Query::State, read).await
            }
        }
    }

    fn must_balance(&self, cells: &[(u64, Cell)]) {
        if let Err(why) = balanced(cells.iter().map(|(_, cell)| cell)) {
            self.hand.history.complain(Rule::Laws, why);
        }
    }

    async fn transfer(&self) -> bool {
        let (from, to) = (self.hand.below(ACCOUNTS), self.hand.below(ACCOUNTS));
        let amount = i64::try_from(self.hand.below(50)).unwrap_or(0);
        let (accounts, transfers) = (self.accounts.clone(), self.transfers.clone());
        let transfer = move |tx: &mut Steps<'_>| {
            let source = tx.get(&accounts, from).map_or(0, |cell| cell.0);
            if source < amount {
                return;
            }
            tx.insert(&accounts, from, source - amount);
            // Sees its own write if both are the same.
            let target = tx.get(&accounts, to).map_or(0, |cell| cell.0);
            tx.insert(&accounts, to, target + amount);
            tx.add(&transfers, 1);
        };
        self.hand.transaction(transfer).await
    }

    /// Reads everything, and writes nothing.
    async fn audit(&self) -> bool {
        let (accounts, transfers) = (self.accounts.clone(), self.transfers.clone());
        let history = self.hand.history.clone();
        let audit = move |tx: &mut Steps<'_>| {
            let cells = tx.entries(&accounts);
            if let Err(why) = balanced(cells.iter().map(|(_, cell)| cell)) {
                history.complain(Rule::Laws, why);
            }
            tx.value(&transfers);
        };
        self.hand.transaction(audit).await
    }
}
