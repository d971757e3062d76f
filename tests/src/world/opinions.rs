//! Second opinions: checkers that others wrote, on histories that the world writes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use adya::history::{Interner, Mop, Op, OpType, ReadValue, Scalar};
use adya::{Opts, Valid};

use crate::world::history::{Book, Call, Deed, End, History, Query, Step, Value};
use crate::world::workload::{Invariant, Violation, WorldView};

/// That transactions over lists are strictly serializable, says `adya` (Elle in Rust).
#[must_use]
pub fn strictly_serializable(history: &History) -> Box<dyn Invariant> {
    Box::new(Adya(history.clone()))
}

struct Adya(History);

impl fmt::Debug for Adya {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adya")
    }
}

impl Invariant for Adya {
    fn name(&self) -> &'static str {
        "I10 strictly serializable, says adya"
    }

    fn source(&self) -> &'static str {
        "design section 6; Kingsbury and Alvaro, Elle"
    }

    fn check(&mut self, _: &WorldView<'_>) -> Result<(), Violation> {
        Ok(())
    }

    fn check_end(&mut self, _: &WorldView<'_>) -> Result<(), Violation> {
        elle(&self.0.book()).map_err(Violation)
    }
}

/// Checks list-append transactions for strict serializability.
///
/// # Errors
/// What was found.
pub fn elle(book: &Book) -> Result<(), String> {
    let mut events = BTreeMap::new();
    for (number, call) in book.calls.iter().enumerate() {
        if matches!(call.deed, Deed::Transaction | Deed::Snapshot) {
            events.insert(call.invoked, (number, false));
            events.insert(
                call.returned.unwrap_or(u64::MAX - number as u64),
                (number, true),
            );
        }
    }
    let (mut ops, mut names) = (Vec::new(), Interner::default());
    for (number, has_ended) in events.into_values() {
        let call = &book.calls[number];
        let (kind, steps) = if has_ended {
            (kind_of(call), steps_of(call))
        } else {
            (OpType::Invoke, writes_of(call))
        };
        ops.push(Op {
            index: ops.len() as u64,
            kind,
            // Nobody does two things: real time alone orders them.
            process: i64::try_from(number).ok(),
            value: steps
                .iter()
                .filter_map(|step| micro(step, &mut names))
                .collect(),
            time: None,
        });
    }
    let history = adya::History::from_ops(ops, names);
    let options = Opts {
        timeout: Duration::from_secs(10),
        ..Opts::default()
    };
    let report = adya::check(&history, adya::Workload::ListAppend, &options);
    let nothing_to_check = ["empty-transaction-graph"];
    if report.valid == Valid::True || report.anomaly_types == nothing_to_check {
        return Ok(());
    }
    let mut shown = report.anomalies.into_values().flatten().take(3);
    let shown: Vec<_> = shown.by_ref().map(|a| a.explanation).collect();
    Err(format!("{:?}: {shown:?}", report.anomaly_types))
}

fn kind_of(call: &Call) -> OpType {
    match &call.end {
        Some(End::Committed { .. } | End::Seen { .. }) => OpType::Ok,
        Some(End::Conflict { .. } | End::Failed(_)) => OpType::Fail,
        _ => OpType::Info,
    }
}

/// What was done, as far as is known.
fn steps_of(call: &Call) -> Vec<Step> {
    match &call.end {
        Some(End::Committed {
            steps: Some(steps), ..
        }) => steps.clone(),
        Some(End::Seen { states, .. }) => states
            .iter()
            .filter_map(|(name, value)| match value {
                Value::Lists(lists) => Some((name, lists)),
                _ => None,
            })
            .flat_map(|(name, lists)| {
                lists.iter().map(|(key, list)| {
                    Step::Read(name.clone(), Query::List(*key), Value::List(list.clone()))
                })
            })
            .collect(),
        _ => writes_of(call),
    }
}

/// Its writes are known as soon as it is begun, its reads are not.
fn writes_of(call: &Call) -> Vec<Step> {
    let writes = call.tried.iter();
    writes
        .filter(|step| matches!(step, Step::Write(..)))
        .cloned()
        .collect()
}

fn micro(step: &Step, names: &mut Interner) -> Option<Mop> {
    let mut name = |number: u64| names.intern(Scalar::Int(i64::try_from(number).unwrap_or(-1)));
    match step {
        Step::Read(_, Query::List(key), Value::List(list)) => Some(Mop::Read {
            key: name(*key),
            value: ReadValue::List(list.iter().map(|value| name(*value)).collect()),
        }),
        Step::Write(_, op) => {
            // `ListsOp::Append(key, value)`.
            let (_, key, value): (u32, u64, u64) = postcard::from_bytes(op).ok()?;
            Some(Mop::Append {
                key: name(key),
                value: name(value),
            })
        }
        _ => None,
    }
}
