//! Real time: what had returned before something began lies before it in the log.

use std::collections::BTreeMap;

use crate::world::history::{Book, Call, CallId, Deed, End, Step};
use crate::world::witness::replay::Reference;
use crate::world::witness::{Findings, Rule, transactions};

/// For every call, what it must lie behind and before.
#[derive(Debug)]
pub(super) struct Order {
    /// Everything below had been written or seen when the call began, and by whom.
    floors: Vec<(u64, CallId)>,
    /// The same, of its own replica.
    own_floors: Vec<(u64, CallId)>,
    /// The lowest position that was written by a call that began after this one had ended.
    ceilings: Vec<u64>,
}

/// Where a call lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It wrote there.
    Wrote(u64),
    /// It saw everything below.
    Saw(u64),
}

impl Place {
    fn of(call: &Call) -> Option<Self> {
        Some(match call.end.as_ref()? {
            End::Updated {
                position: Some(position),
                ..
            }
            | End::WrittenHalted { position, .. } => Self::Wrote(position.0),
            End::Committed { position, steps } => match steps {
                Some(steps) if !transactions::writes(steps) => Self::Saw(position.0),
                _ => Self::Wrote(position.0),
            },
            End::Answer {
                position: Some(position),
                ..
            }
            | End::Seen { position, .. } => Self::Saw(position.0),
            _ => return None,
        })
    }

    const fn end(self) -> u64 {
        match self {
            Self::Wrote(position) => position + 1,
            Self::Saw(end) => end,
        }
    }
}

impl Order {
    pub(super) fn new(book: &Book) -> Self {
        let calls = &book.calls;
        let mut events = BTreeMap::new();
        for (number, call) in calls.iter().enumerate() {
            events.insert(call.invoked, (number, false));
            if let Some(returned) = call.returned {
                events.insert(returned, (number, true));
            }
        }
        let mut order = Self {
            floors: vec![(0, 0); calls.len()],
            own_floors: vec![(0, 0); calls.len()],
            ceilings: vec![u64::MAX; calls.len()],
        };
        let (mut floor, mut own) = ((0, 0), BTreeMap::<usize, (u64, CallId)>::new());
        for (number, has_ended) in events.values().copied() {
            let call = &calls[number];
            let of_replica = own.entry(call.replica).or_default();
            if !has_ended {
                order.floors[number] = floor;
                order.own_floors[number] = *of_replica;
            } else if let Some(place) = Place::of(call) {
                let here = (place.end(), number);
                floor = raised(floor, here);
                *of_replica = raised(*of_replica, here);
            }
        }
        let mut ceiling = u64::MAX;
        for (number, has_ended) in events.values().rev().copied() {
            if has_ended {
                order.ceilings[number] = ceiling;
            } else if let Some(Place::Wrote(position)) = Place::of(&calls[number]) {
                ceiling = ceiling.min(position);
            }
        }
        order
    }

    /// Everything below was written or seen before the call began.
    pub(super) fn floor(&self, call: CallId) -> u64 {
        self.floors[call].0
    }

    /// What began after the call had ended wrote there or above.
    pub(super) fn ceiling(&self, call: CallId) -> u64 {
        self.ceilings[call]
    }

    pub(super) fn check(&self, book: &Book, replay: &Reference<'_>, found: &mut Findings) {
        for (number, call) in book.calls.iter().enumerate() {
            let (floor, before) = self.floors[number];
            match Place::of(call) {
                Some(Place::Wrote(position)) if position < floor => {
                    let before = (before, &book.calls[before]);
                    found.add(Rule::RealTime, || {
                        format!("call {number}, {call:?}, began after {before:?} had returned")
                    });
                }
                Some(Place::Saw(end)) => {
                    self.saw(number, call, end, replay, found);
                    let (own, before) = self.own_floors[number];
                    if end < own {
                        let before = (before, &book.calls[before]);
                        found.add(Rule::Monotone, || {
                            format!("call {number}, {call:?}, after {before:?} on the same replica")
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// A linearizable read sees what had been written or seen of its objects before it began.
    fn saw(
        &self,
        number: CallId,
        call: &Call,
        end: u64,
        replay: &Reference<'_>,
        found: &mut Findings,
    ) {
        if matches!(call.deed, Deed::Read { local: true, .. }) {
            return;
        }
        let (floor, before) = self.floors[number];
        for object in objects(call) {
            let Some(stream) = replay.world.stream(object) else {
                continue;
            };
            if let Some(missed) = replay.changed(stream, end, floor) {
                found.add(Rule::RealTime, || {
                    format!(
                        "call {number}, {call:?}, did not see {missed}, though call {before} had returned at {floor}"
                    )
                });
            }
        }
    }
}

fn raised(floor: (u64, CallId), here: (u64, CallId)) -> (u64, CallId) {
    if here.0 > floor.0 { here } else { floor }
}

/// The objects that a read saw.
fn objects(call: &Call) -> Vec<&str> {
    match (&call.deed, &call.end) {
        (Deed::Read { object, .. }, _) => vec![object],
        (_, Some(End::Seen { states, .. })) => states.iter().map(|(name, _)| &**name).collect(),
        (
            _,
            Some(End::Committed {
                steps: Some(steps), ..
            }),
        ) => {
            let seen = steps.iter().map(|step| match step {
                Step::Read(name, ..) | Step::Write(name, _) | Step::Pop(name, _) => &**name,
            });
            seen.collect()
        }
        _ => Vec::new(),
    }
}
