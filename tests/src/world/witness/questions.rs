//! Every read, put to the reference: at the position that it reports, or anywhere that real time allows.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::world::history::{Book, CallId, Deed, End, Query, Step, Value};
use crate::world::witness::order::Order;
use crate::world::witness::state::World;
use crate::world::witness::{Findings, Rule, transactions};

struct Placed<'a> {
    end: u64,
    call: CallId,
    object: &'a Arc<str>,
    query: &'a Query,
    value: &'a Value,
}

struct Unplaced<'a> {
    call: CallId,
    object: &'a Arc<str>,
    query: &'a Query,
    value: &'a Value,
    /// It saw everything below,
    floor: u64,
    /// and nothing from here on.
    ceiling: u64,
    /// How often the object had been changed when it was asked last.
    asked: Option<u64>,
}

/// All reads of a history.
pub(super) struct Questions<'a> {
    /// Last one first.
    placed: Vec<Placed<'a>>,
    /// Those that look at an object before it was registered: what is open may not be played that far.
    early: Vec<Placed<'a>>,
    /// Last one first.
    later: Vec<Unplaced<'a>>,
    now: Vec<Unplaced<'a>>,
}

impl<'a> Questions<'a> {
    pub(super) fn new(book: &'a Book, order: &Order) -> Self {
        let mut questions = Self {
            placed: Vec::new(),
            early: Vec::new(),
            later: Vec::new(),
            now: Vec::new(),
        };
        for (number, call) in book.calls.iter().enumerate() {
            match (&call.deed, &call.end) {
                (Deed::Read { object, query, .. }, Some(End::Answer { position, value })) => {
                    match position {
                        Some(end) => questions.place(end.0, number, object, query, value),
                        None => questions.later.push(Unplaced {
                            call: number,
                            object,
                            query,
                            value,
                            floor: floor(call, order, number),
                            ceiling: order.ceiling(number),
                            asked: None,
                        }),
                    }
                }
                (_, Some(End::Seen { position, states })) => {
                    for (object, value) in states {
                        questions.place(position.0, number, object, &Query::State, value);
                    }
                }
                (
                    _,
                    Some(End::Committed {
                        position,
                        steps: Some(steps),
                    }),
                ) if !transactions::writes(steps) => {
                    questions.read_only(position.0, number, steps);
                }
                _ => {}
            }
        }
        questions.placed.sort_by_key(|placed| Reverse(placed.end));
        questions.later.sort_by_key(|later| Reverse(later.floor));
        questions
    }

    fn place(
        &mut self,
        end: u64,
        call: CallId,
        object: &'a Arc<str>,
        query: &'a Query,
        value: &'a Value,
    ) {
        self.placed.push(Placed {
            end,
            call,
            object,
            query,
            value,
        });
    }

    fn read_only(&mut self, end: u64, call: CallId, steps: &'a [Step]) {
        for step in steps {
            match step {
                Step::Read(object, query, value) => self.place(end, call, object, query, value),
                Step::Pop(object, _) => {
                    self.place(end, call, object, &Query::IsEmpty, &Value::Bool(true));
                }
                Step::Write(..) => {}
            }
        }
    }

    /// The reference has played everything below `next`, where the next entry lies.
    pub(super) fn answer(&mut self, next: u64, world: &World, found: &mut Findings) {
        while let Some(placed) = self.placed.pop_if(|placed| placed.end <= next) {
            if world.named(placed.object).is_some() {
                let there = world.ask(placed.object, placed.query);
                placed.compare(there.as_ref(), found);
            } else {
                self.early.push(placed);
            }
        }
        while let Some(unplaced) = self.later.pop_if(|unplaced| unplaced.floor <= next) {
            self.now.push(unplaced);
        }
        self.now.retain_mut(|unplaced| {
            if unplaced.is_answered(world) {
                return false;
            }
            let is_over = unplaced.ceiling <= next;
            if is_over {
                unplaced.complain(found);
            }
            !is_over
        });
    }

    /// The reference has played everything.
    pub(super) fn answer_rest(&mut self, world: &World, found: &mut Findings) {
        self.answer(u64::MAX, world, found);
        for early in self.early.drain(..) {
            let fresh = world.named(early.object).map(|object| object.model.fresh());
            let there = fresh.and_then(|fresh| fresh.ask(early.query));
            early.compare(there.as_ref(), found);
        }
    }
}

fn floor(call: &crate::world::history::Call, order: &Order, number: CallId) -> u64 {
    match call.deed {
        Deed::Read { local: true, .. } => 0,
        _ => order.floor(number),
    }
}

impl Placed<'_> {
    fn compare(&self, there: Option<&Value>, found: &mut Findings) {
        if there != Some(self.value) {
            found.add(Rule::States, || {
                format!(
                    "call {} saw {:?} of {:?} below {} as {:?}; it is {there:?}",
                    self.call, self.query, self.object, self.end, self.value
                )
            });
        }
    }
}

impl Unplaced<'_> {
    fn is_answered(&mut self, world: &World) -> bool {
        let Some(object) = world.named(self.object) else {
            return false;
        };
        if self.asked == Some(object.changes) {
            return false;
        }
        self.asked = Some(object.changes);
        world.ask(self.object, self.query).as_ref() == Some(self.value)
    }

    fn complain(&self, found: &mut Findings) {
        found.add(Rule::RealTime, || {
            format!(
                "call {} saw {:?} of {:?} as {:?}, which it never is between {} and {}",
                self.call, self.query, self.object, self.value, self.floor, self.ceiling
            )
        });
    }
}
