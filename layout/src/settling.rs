//! Settling everything below the start of a new epoch, right after it is published (rule 9).

use std::collections::BTreeMap;

use milonga_protocol::Position;
use milonga_protocol::messages::Request;
use milonga_protocol::settle::{SendId, SendOutcome, Settle, SettleEnd, Winner};

use crate::core::LayoutCore;
use crate::courier;
use crate::effect::LayoutEffect;
use crate::phase::{Errand, Phase, Settling};

/// Most lost positions that are remembered for people.
const LOST_SHOWN: usize = 16;

/// What people should know of the last settling.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    below: Position,
    lost: u64,
    first_lost: Vec<Position>,
    broken: Option<String>,
}

impl Notes {
    pub(crate) fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
        fact("settled below", self.below.to_string());
        if self.lost > 0 {
            let shown: Vec<_> = self.first_lost.iter().map(Position::to_string).collect();
            let (lost, shown) = (self.lost, shown.join(" "));
            fact(
                "lost",
                format!(
                    "{lost} positions on every replica, first {shown}; only an operator can give them up (`milonga log fill --give-up-lost`)"
                ),
            );
        }
        if let Some(broken) = &self.broken {
            fact("broken", broken.clone());
        }
        facts
    }

    /// Whether something could not be settled.
    pub(crate) const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Another leader settled what lies below.
    pub(crate) fn nothing_left_below(&mut self, below: Position) {
        self.below = below;
    }

    fn note(&mut self, winners: Vec<(Position, Winner)>) {
        for (position, winner) in winners {
            if winner == Winner::Lost {
                self.lost += 1;
                if self.first_lost.len() < LOST_SHOWN {
                    self.first_lost.push(position);
                }
            }
        }
    }
}

impl LayoutCore {
    pub(crate) fn settle(&mut self, from: Position) {
        let Some(layout) = self.history.current() else {
            return;
        };
        let settle = Settle::new(layout, from, layout.start);
        self.settled = Notes {
            below: from,
            ..Notes::default()
        };
        self.phase = Phase::Settle(Settling {
            settle,
            progress_at: self.now,
            retry_at: None,
            tries: 0,
        });
        self.settle_on();
    }

    pub(crate) fn settle_answered(&mut self, id: SendId, outcome: SendOutcome) {
        if let Phase::Settle(settling) = &mut self.phase {
            settling.settle.handle(id, outcome);
            self.settle_on();
        }
    }

    pub(crate) fn settle_time(&mut self) {
        let now = self.now;
        if let Phase::Settle(settling) = &mut self.phase
            && settling.retry_at.is_some_and(|at| at <= now)
        {
            settling.retry_at = None;
            settling.tries += 1;
            settling.settle.retry();
            self.settle_on();
        }
    }

    /// Carries out what the settler wants, and looks whether it is done.
    fn settle_on(&mut self) {
        let Phase::Settle(settling) = &mut self.phase else {
            return;
        };
        let winners = settling.settle.take_winners();
        if !winners.is_empty() {
            settling.tries = 0;
            settling.progress_at = self.now;
        }
        self.settled.note(winners);
        match settling.settle.end().cloned() {
            None => {}
            Some(SettleEnd::Settled) => {
                self.settled.below = self.history.current().map_or(Position::ZERO, |l| l.start);
                return self.report_settled();
            }
            Some(SettleEnd::EpochOver) => {
                return self.gather("a unit was restarted while settling".into());
            }
            // Nothing may be changed any more below the start; appends above it go on.
            Some(other) => {
                self.settled.broken = Some(format!("settling stopped: {other:?}"));
                self.courier.forget();
                self.phase = Phase::Idle;
                return;
            }
        }
        if settling.settle.waiting().next().is_some() && settling.retry_at.is_none() {
            settling.retry_at = Some(self.now.after(courier::pause(settling.tries)));
        }
        let mut sends = Vec::new();
        while let Some(send) = settling.settle.poll_send() {
            sends.push(send);
        }
        for send in sends {
            let Some(to) = self.heard.peer(self.unit_name(send.unit)) else {
                self.settle_later(send.id, "has not said hello");
                continue;
            };
            let id = self.courier.leave(Errand::Settle(send.id), 0);
            self.effect(LayoutEffect::Send {
                id,
                to,
                request: Request::Unit(send.request),
                body: send.body,
            });
        }
    }

    fn settle_later(&mut self, id: SendId, why: &str) {
        if let Phase::Settle(settling) = &mut self.phase {
            settling.settle.handle(id, Err(why.to_owned()));
            settling.retry_at = Some(self.now.after(courier::pause(settling.tries)));
        }
    }
}
