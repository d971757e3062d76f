//! Every update outside of transactions: acknowledged once, failed never, unknown at most once; and its answer.

use std::collections::BTreeMap;

use milonga_protocol::{Position, WriterId};

use crate::world::history::{Book, Call, CallId, Deed, End, Value};
use crate::world::witness::order::Order;
use crate::world::witness::replay::{Reference, Written};
use crate::world::witness::{Findings, Rule};

/// Updates that cannot be told apart otherwise: who wrote them, the stream, the operation.
type Kind<'a> = (WriterId, u64, &'a [u8]);

/// A queue's plain pop, as bytes.
const POP: &[u8] = &[1];

struct Updates<'a> {
    /// Records that no call has claimed yet.
    records: BTreeMap<Kind<'a>, Vec<&'a Written>>,
    /// Where acknowledged updates lie: position and record.
    places: BTreeMap<CallId, (u64, u32)>,
    /// How many more there may be.
    open: BTreeMap<Kind<'a>, usize>,
}

pub(super) fn check(book: &Book, order: &Order, replay: &Reference<'_>, found: &mut Findings) {
    let mut updates = Updates {
        records: BTreeMap::new(),
        places: BTreeMap::new(),
        open: BTreeMap::new(),
    };
    for written in &replay.written {
        let kind = (written.writer, written.stream, written.op.as_slice());
        updates.records.entry(kind).or_default().push(written);
    }
    // Those with a position first: they leave what the others may have.
    for with_position in [true, false] {
        for (number, call) in book.calls.iter().enumerate() {
            let has_position = !matches!(call.end, Some(End::Updated { position: None, .. }));
            if has_position == with_position {
                updates.one(number, call, order, replay, found);
            }
        }
    }
    updates.lanes(book, found);
    updates.rest(found);
}

impl<'a> Updates<'a> {
    fn one(
        &mut self,
        number: CallId,
        call: &'a Call,
        order: &Order,
        replay: &Reference<'_>,
        found: &mut Findings,
    ) {
        let (object, op) = match &call.deed {
            Deed::Update(object, op) => (object, op.as_slice()),
            Deed::Pop(object) => (object, POP),
            Deed::Open(name) => return opened(number, call, name, replay, found),
            Deed::Rubbish(..) => return rubbish(number, call, replay, found),
            _ => return,
        };
        let Some(stream) = replay.world.stream(object) else {
            return found.add(Rule::Acknowledged, || {
                format!("call {number}, {call:?}: nobody registered {object:?}")
            });
        };
        let kind = (call.writer, stream, op);
        match &call.end {
            Some(End::Updated { position, output }) => {
                let ceiling = order.ceiling(number);
                self.claim(number, kind, (*position, output.as_ref(), ceiling), found);
            }
            Some(End::WrittenHalted { position, halt }) => {
                self.claim(number, kind, (Some(*position), Some(halt), u64::MAX), found);
            }
            _ if call.is_open() => *self.open.entry(kind).or_default() += 1,
            _ => {}
        }
    }

    /// Finds the record of an acknowledged update and takes it away.
    fn claim(
        &mut self,
        number: CallId,
        kind: Kind<'a>,
        (position, output, ceiling): (Option<Position>, Option<&Value>, u64),
        found: &mut Findings,
    ) {
        let records = self.records.entry(kind).or_default();
        let is_there = |record: &Written| {
            position.map_or(record.position < ceiling, |position| {
                record.position == position.0
            })
        };
        let answers = |record: &Written| output.is_none_or(|output| record.output == *output);
        let right = records.iter().position(|r| is_there(r) && answers(r));
        if let Some(index) = right {
            let record = records.remove(index);
            self.places.insert(number, (record.position, record.record));
            return;
        }
        let there = records.iter().position(|record| is_there(record));
        let there = there.filter(|_| position.is_some());
        // One mistake is enough: it is not there without an owner, too.
        let there = there.map(|index| records.remove(index));
        if there.is_none() {
            found.add(Rule::Acknowledged, || {
                format!("call {number} at {position:?}, {kind:?}: no such record is left of {records:?} for {output:?}")
            });
        } else {
            found.add(Rule::Outputs, || {
                format!("call {number} at {position:?}, {kind:?}: answered {output:?}, the reference has {there:?}")
            });
        }
    }

    /// Updates of one handle take effect in the order in which they were submitted.
    fn lanes(&self, book: &Book, found: &mut Findings) {
        for (number, call) in book.calls.iter().enumerate() {
            let before = call.behind.and_then(|behind| self.places.get(&behind));
            if let (Some(before), Some(here)) = (before, self.places.get(&number))
                && before > here
            {
                found.add(Rule::Lanes, || {
                    format!(
                        "call {number} lies at {here:?}, the one submitted before at {before:?}"
                    )
                });
            }
        }
    }

    /// What nobody claimed must be what nobody was told of.
    fn rest(self, found: &mut Findings) {
        for (kind, records) in self.records {
            let open = self.open.get(&kind).copied().unwrap_or(0);
            if records.len() > open {
                found.add(Rule::Failed, || {
                    format!(
                        "{kind:?}: {} records more than were acknowledged, {open} calls are open: {records:?}",
                        records.len()
                    )
                });
            }
        }
    }
}

/// An object is opened as what the directory says.
fn opened(number: CallId, call: &Call, name: &str, replay: &Reference<'_>, found: &mut Findings) {
    let Some(End::Opened { stream, registered }) = &call.end else {
        return;
    };
    let told = Some((stream.0, registered.0));
    let object = replay.world.stream(name).zip(replay.world.named(name));
    let there = object.map(|(stream, object)| (stream, object.registered));
    if told != there {
        found.add(Rule::States, || {
            format!("call {number} opened {name:?} as {told:?}; the directory has {there:?}")
        });
    }
}

fn rubbish(number: CallId, call: &Call, replay: &Reference<'_>, found: &mut Findings) {
    if let Some(End::Updated {
        position: Some(position),
        ..
    }) = &call.end
        && !replay.rubbish.contains(&(position.0, call.writer))
    {
        found.add(Rule::Acknowledged, || {
            format!("call {number}, {call:?}: it is not there")
        });
    }
}
