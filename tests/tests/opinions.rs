//! Second opinions on what the world does: checkers that others wrote find its histories right, and broken ones wrong.

use std::time::Duration;

use milonga_tests::world::history::{Book, Call, Deed, End, Query, Step, Value};
use milonga_tests::world::opinions::elle;
use milonga_tests::world::witness::{At, Model as Object};
use milonga_tests::world::workloads::{ListAppend, Objects};
use milonga_tests::world::{Moment, Plan, Workload, run_workload};
use porcupine_rs::{CheckResult, Model, Operation, check_operations_timeout};

/// A short world under faults.
fn plan(seed: u64) -> Plan {
    let mut plan = Plan::draw(seed);
    plan.safety = Moment(6_000_000_000);
    plan.faults.retain(|fault| fault.at < plan.safety);
    plan.pace = Duration::from_millis(50);
    plan
}

fn run(seed: u64, workload: Box<dyn Workload>) {
    let report = run_workload(&plan(seed), seed, false, workload);
    assert_eq!(report.failure, None, "seed {seed}");
}

/// One step on one object.
#[derive(Clone, Debug)]
enum Action {
    Apply(Vec<u8>, Option<Value>),
    Ask(Query, Value),
}

/// A map or a counter, by itself.
#[derive(Clone, Debug)]
struct Single<const COUNTER: bool>;

impl<const COUNTER: bool> Model for Single<COUNTER> {
    type State = Object;
    type Op = Vec<Action>;
    type Metadata = ();

    fn init() -> Object {
        Object::of(if COUNTER { "counter" } else { "map" }).expect("a type")
    }

    fn step(state: &Object, op: &Vec<Action>) -> (bool, Object) {
        let at = At {
            position: 0,
            record: 0,
            index: 0,
        };
        let mut state = state.clone();
        let right = op.iter().all(|action| match action {
            Action::Apply(op, output) => {
                let applied = state.apply(1, op, at);
                output.is_none() || applied == *output
            }
            Action::Ask(query, value) => state.ask(query).as_ref() == Some(value),
        });
        (right, state)
    }
}

/// What a call did with one object; `None`: nothing, or nothing that is known.
fn actions(call: &Call, object: &str) -> Option<Vec<Action>> {
    let steps = |steps: &[Step], reads: bool| {
        let of_object = steps.iter().filter_map(|step| match step {
            Step::Read(name, query, value) if &**name == object && reads => {
                Some(Action::Ask(query.clone(), value.clone()))
            }
            Step::Write(name, op) if &**name == object => Some(Action::Apply(op.clone(), None)),
            _ => None,
        });
        of_object.collect::<Vec<_>>()
    };
    let actions = match (&call.deed, &call.end) {
        (Deed::Update(name, op), Some(End::Updated { output, .. })) if &**name == object => {
            vec![Action::Apply(op.clone(), output.clone())]
        }
        (Deed::Update(name, op), _) if &**name == object && call.is_open() => {
            vec![Action::Apply(op.clone(), None)]
        }
        (
            Deed::Read {
                object: name,
                query,
                local: false,
            },
            Some(End::Answer { value, .. }),
        ) if &**name == object => vec![Action::Ask(query.clone(), value.clone())],
        (_, Some(End::Seen { states, .. })) => {
            let state = states.iter().find(|(name, _)| &**name == object);
            let state = state.map(|(_, value)| Action::Ask(Query::State, value.clone()));
            state.into_iter().collect()
        }
        (
            Deed::Transaction,
            Some(End::Committed {
                steps: Some(did), ..
            }),
        ) => steps(did, true),
        (Deed::Transaction, Some(End::Committed { steps: None, .. })) => steps(&call.tried, false),
        (Deed::Transaction, _) if call.is_open() => steps(&call.tried, false),
        _ => Vec::new(),
    };
    (!actions.is_empty()).then_some(actions)
}

fn operations<M: Model<Op = Vec<Action>>>(book: &Book, object: &str) -> Vec<Operation<M>> {
    let time = |event: u64| i64::try_from(event).expect("few events");
    let operation = |call: &Call| {
        Some(Operation {
            client_id: u32::try_from(call.replica).ok(),
            call_time: time(call.invoked),
            // What is open may happen at any time, or never: that is after everything.
            return_time: match call.returned.filter(|_| !call.is_open()) {
                Some(returned) => time(returned),
                None => i64::MAX,
            },
            op: actions(call, object)?,
            metadata: None,
        })
    };
    book.calls.iter().filter_map(operation).collect()
}

#[test]
fn porcupine_finds_single_objects_linearizable() {
    let mut checked = 0;
    for seed in 100..108 {
        let objects = Objects::default();
        let history = objects.history();
        run(seed, Box::new(objects));
        let book = history.book().clone();
        let patience = Duration::from_secs(5);
        let map = operations::<Single<false>>(&book, "map");
        let counter = operations::<Single<true>>(&book, "counter");
        assert!(map.len() <= 5_000, "more than it was made for");
        let verdicts = [
            check_operations_timeout(&map, patience),
            check_operations_timeout(&counter, patience),
        ];
        assert!(!verdicts.contains(&CheckResult::Illegal), "seed {seed}");
        checked += verdicts.iter().filter(|v| **v == CheckResult::Ok).count();
    }
    // Many open calls take it too long, now and then.
    assert!(checked >= 12, "{checked} of 16");
}

#[test]
fn porcupine_finds_a_stale_read() {
    let objects = Objects::default();
    let history = objects.history();
    run(100, Box::new(objects));
    let book = history.book().clone();
    let mut counter = operations::<Single<true>>(&book, "counter");
    let last = counter
        .iter()
        .map(|op| op.return_time)
        .filter(|t| *t < i64::MAX)
        .max();
    let never = Value::Number(1 << 40);
    counter.push(Operation {
        client_id: Some(1),
        call_time: last.unwrap_or(0) + 1,
        return_time: last.unwrap_or(0) + 2,
        op: vec![Action::Ask(Query::State, never)],
        metadata: None,
    });
    let verdict = check_operations_timeout(&counter, Duration::from_secs(20));
    assert_ne!(verdict, CheckResult::Ok);
}

#[test]
fn adya_finds_a_lost_append_and_a_stale_read() {
    let lists = ListAppend::default();
    let history = lists.history();
    run(200, Box::new(lists));
    let book = history.book().clone();
    assert_eq!(elle(&book), Ok(()));
    let longest = |value: &Value| matches!(value, Value::List(list) if list.len() > 3);
    let mut broken = 0;
    for call in 0..book.calls.len() {
        let mut book = book.clone();
        let Some(End::Committed {
            steps: Some(steps), ..
        }) = &mut book.calls[call].end
        else {
            continue;
        };
        let read = steps.iter_mut().find_map(|step| match step {
            Step::Read(_, _, value) if longest(value) => Some(value),
            _ => None,
        });
        let Some(Value::List(list)) = read else {
            continue;
        };
        // It read an older state than the one that had been acknowledged.
        list.truncate(1);
        broken += 1;
        assert!(elle(&book).is_err(), "call {call}");
        if broken > 5 {
            break;
        }
    }
    assert!(broken > 0);
}
