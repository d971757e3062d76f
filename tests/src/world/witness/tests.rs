//! The checker can fail: one wrong history for each thing it checks.

mod sample;

use bytes::Bytes;
use milonga_protocol::{Entry, Position};

use super::{Law, Rule, judge};
use crate::world::history::{Book, Deed, End, Query, Step, Value, mark};
use crate::world::witness::decode::{ReadOf, Record, Touched};
use sample::*;

fn rules(book: &Book) -> Vec<Rule> {
    let mut rules: Vec<_> = judge(book, None).iter().map(|f| f.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// Breaks the sample; exactly these rules must notice.
fn broken(how: impl FnOnce(&mut Book), noticed: &[Rule]) {
    let mut book = book();
    how(&mut book);
    assert_eq!(rules(&book), noticed, "{:#?}", judge(&book, None));
}

fn end(book: &mut Book, call: usize, end: End) {
    book.calls[call].end = Some(end);
}

fn log(book: &mut Book) -> &mut Vec<(Position, Entry)> {
    book.log.as_mut().expect("the sample has one")
}

fn replace(book: &mut Book, position: u64, records: &[Record]) {
    let log = log(book);
    let index = log.iter().position(|(p, _)| p.0 == position).unwrap();
    log[index] = entry(position, log[index].1.id.writer, records);
}

fn open(book: &mut Book) {
    end(book, FAILED, End::Unknown("who knows".into()));
}

fn thousand(position: u64) -> (Position, Entry) {
    let record = Record::Update(update(COUNTER, Touched::Whole, add(1_000)));
    entry(position, ONE, &[record])
}

#[test]
fn the_sample_holds() {
    assert_eq!(judge(&book(), None), []);
}

#[test]
fn an_acknowledged_update_that_is_gone() {
    broken(
        |b| drop(log(b).remove(7)),
        &[Rule::Acknowledged, Rule::States],
    );
    broken(
        |b| end(b, ADD, updated(6, Value::Number(3))),
        &[Rule::Acknowledged, Rule::Failed, Rule::RealTime],
    );
    // An item that nobody popped.
    let item = |b: &mut Book| {
        let output = Some(Value::Item(Some(98)));
        let position = None;
        end(b, POP, End::Updated { position, output });
    };
    broken(item, &[Rule::Acknowledged, Rule::Failed]);
}

#[test]
fn an_update_that_is_there_twice_or_should_not_be() {
    broken(|b| log(b).push(thousand(10)), &[Rule::Failed]);
    let polled = |polls| {
        move |b: &mut Book| {
            end(b, FAILED, End::Dropped(polls));
            log(b).push(thousand(10));
        }
    };
    broken(polled(0), &[Rule::Failed]);
    broken(polled(1), &[]);
    let times = |times: u64| {
        move |b: &mut Book| {
            open(b);
            (0..times).for_each(|n| log(b).push(thousand(10 + n)));
        }
    };
    broken(times(0), &[]);
    broken(times(1), &[]);
    broken(times(2), &[Rule::Failed]);
    // The client died.
    broken(
        |b| {
            b.calls[FAILED].end = None;
            log(b).push(thousand(10));
        },
        &[],
    );
}

#[test]
fn an_output_that_is_not_the_references() {
    broken(
        |b| end(b, SET, updated(4, Value::Cell(Some((1, 1))))),
        &[Rule::Outputs],
    );
}

#[test]
fn a_state_that_is_not_the_one_at_its_position() {
    broken(
        |b| end(b, GET, answer(5, Value::Cell(None))),
        &[Rule::States],
    );
    broken(
        |b| end(b, PEEK, answer(8, Value::Number(4))),
        &[Rule::States],
    );
    let torn = |b: &mut Book| {
        let states = vec![
            ("map".into(), Value::Cells(vec![(1, second())])),
            ("counter".into(), Value::Number(3)),
        ];
        let position = Position(7);
        end(b, SNAPSHOT, End::Seen { position, states });
    };
    broken(torn, &[Rule::States]);
    let read_only = |b: &mut Book| {
        let step = Step::Read("map".into(), Query::Get(1), Value::Cell(None));
        let (position, steps) = (Position(9), Some(vec![step]));
        call(
            b,
            TWO,
            Deed::Transaction,
            End::Committed { position, steps },
        );
    };
    broken(read_only, &[Rule::States]);
    let opened = End::Opened {
        stream: milonga_protocol::StreamId(MAP),
        registered: Position(1),
    };
    let elsewhere = |b: &mut Book| {
        call(b, TWO, Deed::Open("map".into()), opened);
    };
    broken(elsewhere, &[Rule::States]);
}

#[test]
fn a_transaction_that_was_told_a_wrong_verdict() {
    let told = |b: &mut Book| {
        let (position, steps) = (Position(6), None);
        end(b, OVERTAKEN, End::Committed { position, steps });
    };
    broken(told, &[Rule::Verdicts]);
    broken(
        |b| end(b, COMMITTED, End::Failed("no".into())),
        &[Rule::Failed],
    );
    broken(|b| end(b, COMMITTED, End::Dropped(0)), &[Rule::Failed]);
    broken(|b| end(b, COMMITTED, End::Dropped(3)), &[]);
    let conflict = |position, winner, attempts| {
        move |b: &mut Book| {
            let conflict = End::Conflict {
                object: "map".into(),
                position: Position(position),
                winner,
                attempts,
            };
            end(b, OVERTAKEN, conflict);
        }
    };
    broken(conflict(5, id(5, TWO), 1), &[]);
    broken(conflict(4, id(4, ONE), 1), &[Rule::Verdicts]);
    broken(conflict(5, id(5, ONE), 1), &[Rule::Verdicts]);
    broken(conflict(5, id(5, TWO), 2), &[Rule::Verdicts]);
    let decision = |committed| {
        move |b: &mut Book| {
            let record = Record::Decision {
                position: 6,
                record: 0,
                committed,
            };
            log(b).push(entry(10, ONE, &[record]));
        }
    };
    broken(decision(false), &[]);
    broken(decision(true), &[Rule::Verdicts]);
    let twice = |b: &mut Book| {
        let again = Record::Commit(commit(6, second()));
        log(b).push(entry(10, TWO, &[again]));
    };
    broken(twice, &[Rule::Verdicts]);
    let nobodys = |b: &mut Book| {
        let again = Record::Commit(commit(6, (1, mark(ADD, 0))));
        log(b).push(entry(10, TWO, &[again]));
    };
    broken(nobodys, &[Rule::Failed]);
}

#[test]
fn a_transaction_that_is_not_what_its_closure_did() {
    let did = |steps| {
        move |b: &mut Book| {
            let (position, steps) = (Position(5), Some(steps));
            end(b, COMMITTED, End::Committed { position, steps });
        }
    };
    broken(did(steps(first())), &[]);
    broken(did(steps((1, 1))), &[Rule::Serial]);
    broken(
        did(steps(first())[..1].to_vec()),
        &[Rule::States, Rule::Verdicts, Rule::Serial],
    );
    let other = vec![Step::Write("map".into(), insert(2, second()))];
    broken(did(other), &[Rule::Serial]);
    let pop = vec![Step::Pop("queue".into(), Some(99))];
    broken(did(pop), &[Rule::Serial]);
}

#[test]
fn what_returned_before_is_not_seen() {
    // Right for its position, but the write had returned.
    broken(
        |b| end(b, GET, answer(4, Value::Cell(None))),
        &[Rule::RealTime],
    );
    let empty = |b: &mut Book| {
        let (position, states) = (
            Position(6),
            vec![("map".into(), Value::Cells(vec![(1, second())]))],
        );
        end(b, SNAPSHOT, End::Seen { position, states });
    };
    broken(empty, &[]);
    // Without a position: the state is one of the past.
    let stale = |b: &mut Book| {
        let (position, value) = (None, Value::Number(0));
        let deed = read("counter", Query::State, false);
        call(b, TWO, deed, End::Answer { position, value });
    };
    broken(stale, &[Rule::RealTime]);
    // A write below one that had returned before it began.
    let swapped = |b: &mut Book| {
        for (position, n) in [(10, 1), (11, 2)] {
            let record = Record::Update(update(COUNTER, Touched::Whole, add(n)));
            log(b).push(entry(position, TWO, &[record]));
        }
        for (n, position, sum) in [(2, 11, 6), (1, 10, 4)] {
            let deed = Deed::Update("counter".into(), add(n));
            call(b, TWO, deed, updated(position, Value::Number(sum)));
        }
    };
    broken(swapped, &[Rule::RealTime]);
}

#[test]
fn updates_of_one_handle_that_changed_places() {
    let two = |first: u64, second: u64| {
        move |b: &mut Book| {
            let added = |position| End::Updated {
                position: Some(Position(position)),
                output: None,
            };
            let deed = |n| Deed::Update("counter".into(), add(n));
            // Both are under way at once.
            let one = b.invoke(1, ONE, deed(1));
            let two = b.invoke(1, ONE, deed(2));
            b.finish(one, added(first));
            b.finish(two, added(second));
            b.calls[two].behind = Some(one);
            for (position, n) in [(10, 1), (11, 2), (12, 1)] {
                if position == first || position == second {
                    let record = Record::Update(update(COUNTER, Touched::Whole, add(n)));
                    log(b).push(entry(position, ONE, &[record]));
                }
            }
        }
    };
    broken(two(10, 11), &[]);
    broken(two(12, 11), &[Rule::Lanes]);
}

#[test]
fn a_replica_that_goes_back() {
    broken(
        |b| end(b, PEEK, answer(3, Value::Number(0))),
        &[Rule::Monotone],
    );
}

#[test]
fn records_that_name_too_little() {
    let touches = |b: &mut Book| {
        replace(
            b,
            7,
            &[Record::Update(update(COUNTER, Touched::None, add(3)))],
        );
    };
    broken(touches, &[Rule::Records]);
    let reads = |b: &mut Book| {
        let mut commit = commit(5, second());
        commit.reads = vec![(MAP, ReadOf::Keys(vec![vec![0]]))];
        replace(b, 5, &[Record::Commit(commit)]);
    };
    broken(reads, &[Rule::Records]);
    broken(|b| b.window = Some(99), &[Rule::Records]);
}

#[test]
fn an_object_that_halted_somewhere_else() {
    let halted = |at, record| {
        move |b: &mut Book| {
            let broke = Record::Update(update(FRAGILE, Touched::Whole, vec![9, 9]));
            log(b).push(entry(10, ONE, &[broke]));
            let deed = read("fragile", Query::State, false);
            let (position, value) = (None, Value::Halted(Position(at), record));
            call(b, TWO, deed, End::Answer { position, value });
            // Nobody was told of the record.
            let deed = Deed::Update("fragile".into(), vec![9, 9]);
            call(b, ONE, deed, End::Unknown(String::new()));
        }
    };
    broken(halted(10, 0), &[]);
    broken(halted(9, 0), &[Rule::RealTime]);
    broken(halted(10, 1), &[Rule::RealTime]);
    let rubbish = |b: &mut Book| {
        let (position, mut entry) = entry(10, ONE, &[Record::Update(set(first()))]);
        entry.payload = Bytes::from_static(b"rubbish");
        log(b).push((position, entry));
        let state = answer(11, Value::Cells(vec![(1, second())]));
        call(b, TWO, read("map", Query::State, false), state);
    };
    broken(rubbish, &[Rule::States]);
}

#[test]
fn laws_and_complaints() {
    let law: Law = |world| match world.ask("counter", &Query::State) {
        Some(Value::Number(3)) => Err("three".into()),
        _ => Ok(()),
    };
    let found = judge(&book(), Some(law));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].rule, Rule::Laws);
    let complaint = super::Finding {
        rule: Rule::Readable,
        text: "position 3 is Lost".into(),
    };
    broken(|b| b.complaints.push(complaint), &[Rule::Readable]);
    assert!(Rule::ALL.iter().all(|rule| !rule.source().is_empty()));
    let names: std::collections::BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
    assert_eq!(names.len(), Rule::ALL.len());
}

#[test]
fn a_read_without_a_position_that_never_was() {
    let value = Value::Count(2);
    broken(
        |b| {
            end(
                b,
                LEN,
                End::Answer {
                    position: None,
                    value,
                },
            )
        },
        &[Rule::RealTime],
    );
}
