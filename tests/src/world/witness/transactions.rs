//! What transactions were told, against what their records say.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::world::history::{Book, Call, CallId, Deed, End, Query, Step, Value};
use crate::world::witness::decode::{Commit, ReadOf};
use crate::world::witness::model::{At, item_bytes, key_bytes};
use crate::world::witness::replay::{Judged, Reference};
use crate::world::witness::state::World;
use crate::world::witness::verdict::Verdict;
use crate::world::witness::{Findings, Rule};

/// What the closure of the attempt at `position` did, if that is the one that counted.
pub(super) fn steps_at(book: &Book, call: CallId, position: u64) -> Option<&[Step]> {
    match &book.calls.get(call)?.end {
        Some(End::Committed {
            position: told,
            steps: Some(steps),
        }) if told.0 == position => Some(steps),
        _ => None,
    }
}

/// Applies all updates of a committed record.
pub(super) fn apply_all(world: &mut World, commit: &Commit, at: At, found: &mut Findings) {
    for (update, index) in commit.updates.iter().zip(0..) {
        let _ = world.apply(update, At { index, ..at }, found);
    }
}

/// Runs the closure's steps again, at the place of its record: every read must answer the same there, and the writes
/// must be those of the record.
pub(super) fn walk(
    world: &mut World,
    steps: &[Step],
    commit: &Commit,
    at: At,
    found: &mut Findings,
) {
    let mut next = 0;
    for step in steps {
        let index = u32::try_from(next).unwrap_or(u32::MAX);
        let at = At { index, ..at };
        match step {
            Step::Read(object, query, value) => {
                read(world, commit, at, (object, query, value), found);
            }
            Step::Pop(object, None) => {
                let nothing = Value::Bool(true);
                let whole = (object, &Query::IsEmpty, &nothing);
                read(world, commit, at, whole, found);
            }
            Step::Write(object, op) => {
                let update = commit.updates.get(next);
                let stream = world.stream(object);
                if update.is_none_or(|update| &update.op != op || Some(update.stream) != stream) {
                    found.add(Rule::Serial, || {
                        format!("{at:?}: the closure wrote {op:?} to {object:?}, the record has {update:?}")
                    });
                }
                next += 1;
                if let Some(update) = update {
                    let _ = world.apply(update, at, found);
                }
            }
            Step::Pop(object, Some(item)) => {
                pop(world, commit, at, (object, *item, next), found);
                next += 1;
            }
        }
    }
    if next != commit.updates.len() {
        let made = commit.updates.len();
        found.add(Rule::Serial, || {
            format!("{at:?}: the closure wrote {next} times, the record {made} times")
        });
    }
}

fn read(
    world: &World,
    commit: &Commit,
    at: At,
    (object, query, value): (&Arc<str>, &Query, &Value),
    found: &mut Findings,
) {
    let there = world.ask(object, query);
    if there.as_ref() != Some(value) {
        found.add(Rule::Serial, || {
            format!("{at:?}: {query:?} of {object:?} was {value:?} in the closure and is {there:?} at its place")
        });
    }
    let key = match query {
        Query::Get(key) | Query::Contains(key) | Query::List(key) => Some(key_bytes(*key)),
        _ => None,
    };
    covered(world, commit, at, object, key, found);
}

fn pop(
    world: &mut World,
    commit: &Commit,
    at: At,
    (object, item, next): (&Arc<str>, u64, usize),
    found: &mut Findings,
) {
    let update = commit.updates.get(next);
    let popped = update.and_then(|update| world.model(object)?.popped(&update.op, at));
    let is_it = popped.is_some_and(|(found, _)| found == Some(item));
    if !is_it || update.map(|update| update.stream) != world.stream(object) {
        found.add(Rule::Serial, || {
            format!(
                "{at:?}: the closure popped {item} of {object:?}; at its place that is {popped:?}"
            )
        });
    }
    if let Some((_, key)) = popped.filter(|(_, key)| key.position != u64::MAX) {
        covered(world, commit, at, object, Some(item_bytes(key)), found);
    }
    if let Some(update) = update {
        let _ = world.apply(update, at, found);
    }
}

/// Rule 34: what the closure saw is in the read set.
fn covered(
    world: &World,
    commit: &Commit,
    at: At,
    object: &str,
    key: Option<Vec<u8>>,
    found: &mut Findings,
) {
    let stream = world.stream(object);
    let of_object = commit
        .reads
        .iter()
        .filter(|(read, _)| Some(*read) == stream);
    let is_covered = of_object.into_iter().any(|(_, what)| match (what, &key) {
        (ReadOf::Whole, _) => true,
        (ReadOf::Keys(keys), Some(key)) => keys.contains(key),
        (ReadOf::Keys(_), None) => false,
    });
    if !is_covered {
        found.add(Rule::Records, || {
            format!("{at:?}: the read set lacks {key:?} of {object:?}")
        });
    }
}

/// Compares what every transaction was told with its records.
pub(super) fn check(book: &Book, replay: &Reference<'_>, found: &mut Findings) {
    let mut records: BTreeMap<CallId, Vec<&Judged>> = BTreeMap::new();
    for judged in &replay.judged {
        match judged.call.filter(|call| is_transaction(book, *call)) {
            Some(call) => records.entry(call).or_default().push(judged),
            None => found.add(Rule::Failed, || format!("{judged:?} is of no transaction")),
        }
    }
    for (call, what) in book.calls.iter().enumerate() {
        if what.deed == Deed::Transaction {
            let records = records.remove(&call).unwrap_or_default();
            one(call, what, &records, replay, found);
        }
    }
}

fn is_transaction(book: &Book, call: CallId) -> bool {
    let call = book.calls.get(call);
    call.is_some_and(|call| call.deed == Deed::Transaction)
}

fn one(
    number: CallId,
    call: &Call,
    records: &[&Judged],
    replay: &Reference<'_>,
    found: &mut Findings,
) {
    let foreign = records.iter().find(|record| record.writer != call.writer);
    if let Some(foreign) = foreign {
        found.add(Rule::Verdicts, || {
            format!("transaction {number}: {foreign:?} was written by somebody else")
        });
    }
    let committed: Vec<_> = records
        .iter()
        .filter(|record| record.verdict.is_committed())
        .map(|record| record.position)
        .collect();
    let end = call.end.as_ref();
    let wrote = matches!(end, Some(End::Committed { steps, .. }) if steps.as_ref().is_none_or(|s| writes(s)));
    let expected = match end {
        Some(End::Committed { position, .. }) if wrote => committed == [position.0],
        Some(End::Committed { .. } | End::Conflict { .. } | End::Failed(_)) => committed.is_empty(),
        Some(End::Dropped(0)) => records.is_empty(),
        _ => committed.len() <= 1,
    };
    if !expected {
        let rule = match end {
            Some(End::Failed(_) | End::Dropped(0)) => Rule::Failed,
            _ => Rule::Verdicts,
        };
        found.add(rule, || {
            format!("transaction {number} was told {end:?}, but its records are {records:?}")
        });
    }
    if let Some(End::Conflict { .. }) = end {
        conflict(number, call, records, replay, found);
    }
}

/// Whether a closure wrote anything.
pub(super) fn writes(steps: &[Step]) -> bool {
    steps
        .iter()
        .any(|step| matches!(step, Step::Write(..) | Step::Pop(_, Some(_))))
}

/// A conflict names a change that is one, and who made it.
fn conflict(
    number: CallId,
    call: &Call,
    records: &[&Judged],
    replay: &Reference<'_>,
    found: &mut Findings,
) {
    let Some(End::Conflict {
        object,
        position,
        winner,
        attempts,
    }) = &call.end
    else {
        return;
    };
    let stream = replay.world.stream(object);
    let is_clash = records.last().is_some_and(|last| match &last.verdict {
        Verdict::Overtaken(clashes) => clashes
            .iter()
            .any(|clash| Some(clash.0) == stream && clash.1 == position.0),
        _ => false,
    });
    let is_winner = replay.ids.get(&position.0) == Some(winner);
    if !is_clash || !is_winner || records.len() != *attempts as usize {
        found.add(Rule::Verdicts, || {
            format!(
                "transaction {number}: told {:?}; the entry there is {:?}; its records are {records:?}",
                call.end,
                replay.ids.get(&position.0)
            )
        });
    }
}
