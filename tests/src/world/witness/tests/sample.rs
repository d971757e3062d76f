//! A small history in which everything holds, to be broken.

use bytes::Bytes;
use milonga_protocol::{BackPointers, Entry, EntryId, Position, StreamId, StreamLink, WriterId};

use crate::world::history::{Book, CallId, Cell, Deed, End, Query, Step, Value, mark};
use crate::world::witness::decode::{Commit, ReadOf, Record, Touched, Update, encode};
use crate::world::witness::model::key_bytes;

pub(super) const ONE: WriterId = WriterId(1 << 96);
pub(super) const TWO: WriterId = WriterId(2 << 96);
pub(super) const MAP: u64 = 16;
pub(super) const COUNTER: u64 = 18;
pub(super) const QUEUE: u64 = 20;
pub(super) const FRAGILE: u64 = 22;

pub(super) fn insert(key: u64, cell: Cell) -> Vec<u8> {
    postcard::to_stdvec(&(0_u32, key_bytes(key), cell)).expect("plain data")
}

pub(super) fn add(n: i64) -> Vec<u8> {
    postcard::to_stdvec(&(0_u32, n)).expect("plain data")
}

pub(super) fn update(stream: u64, touches: Touched, op: Vec<u8>) -> Update {
    Update {
        stream,
        touches,
        op_version: 1,
        op,
    }
}

/// One write to key 1 of the map.
pub(super) fn set(cell: Cell) -> Update {
    update(MAP, Touched::One(key_bytes(1)), insert(1, cell))
}

pub(super) fn register(name: &str, kind: &str) -> Record {
    let none = None::<String>;
    let op = (0_u32, name, kind, &none, &none);
    let op = postcard::to_stdvec(&op).expect("plain data");
    Record::Update(update(1, Touched::One(name.into()), op))
}

pub(super) fn entry(position: u64, writer: WriterId, records: &[Record]) -> (Position, Entry) {
    let mut streams: Vec<u64> = Vec::new();
    for record in records {
        match record {
            Record::Update(update) => streams.push(update.stream),
            Record::Commit(commit) => streams.extend(commit.updates.iter().map(|u| u.stream)),
            Record::Decision { .. } => streams.push(MAP),
        }
    }
    let link = |stream: &u64| StreamLink {
        stream: StreamId(*stream),
        back: BackPointers::EMPTY,
    };
    let entry = Entry {
        id: id(position, writer),
        links: streams.iter().map(link).collect(),
        payload: Bytes::from(encode(position, records)),
    };
    (Position(position), entry)
}

pub(super) const fn id(position: u64, writer: WriterId) -> EntryId {
    EntryId {
        writer,
        sequence: position,
    }
}

/// Reads key 1 of the map at `snapshot`, then writes it.
pub(super) fn commit(snapshot: u64, cell: Cell) -> Commit {
    Commit {
        snapshot,
        window: 100,
        reads: vec![(MAP, ReadOf::Keys(vec![key_bytes(1)]))],
        updates: vec![set(cell)],
    }
}

pub(super) const SET: CallId = 0;
pub(super) const GET: CallId = 1;
pub(super) const COMMITTED: CallId = 2;
pub(super) const OVERTAKEN: CallId = 3;
pub(super) const SNAPSHOT: CallId = 4;
pub(super) const ADD: CallId = 5;
pub(super) const FAILED: CallId = 6;
pub(super) const PEEK: CallId = 7;
pub(super) const POP: CallId = 8;
pub(super) const LEN: CallId = 9;

pub(super) fn first() -> Cell {
    (5, mark(SET, 0))
}

pub(super) fn second() -> Cell {
    (6, mark(COMMITTED, 0))
}

pub(super) fn read(object: &str, query: Query, local: bool) -> Deed {
    Deed::Read {
        object: object.into(),
        query,
        local,
    }
}

pub(super) fn answer(position: u64, value: Value) -> End {
    End::Answer {
        position: Some(Position(position)),
        value,
    }
}

pub(super) fn updated(position: u64, output: Value) -> End {
    End::Updated {
        position: Some(Position(position)),
        output: Some(output),
    }
}

pub(super) fn steps(seen: Cell) -> Vec<Step> {
    vec![
        Step::Read("map".into(), Query::Get(1), Value::Cell(Some(seen))),
        Step::Write("map".into(), insert(1, second())),
    ]
}

/// Adds a call that ends before the next begins.
pub(super) fn call(book: &mut Book, writer: WriterId, deed: Deed, end: End) -> CallId {
    let replica = if writer == ONE { 1 } else { 2 };
    let call = book.invoke(replica, writer, deed);
    book.finish(call, end);
    call
}

fn change(name: &str, op: Vec<u8>) -> Deed {
    Deed::Update(name.into(), op)
}

fn push() -> Update {
    let op = postcard::to_stdvec(&(0_u32, 99_u64)).expect("plain data");
    update(QUEUE, Touched::None, op)
}

fn log() -> Vec<(Position, Entry)> {
    let count = update(COUNTER, Touched::Whole, add(3));
    let pop = update(QUEUE, Touched::Whole, vec![1]);
    vec![
        entry(0, ONE, &[register("map", "map")]),
        entry(1, ONE, &[register("counter", "counter")]),
        entry(2, ONE, &[register("queue", "queue")]),
        entry(3, ONE, &[register("fragile", "fragile")]),
        entry(4, ONE, &[Record::Update(set(first()))]),
        entry(5, TWO, &[Record::Commit(commit(5, second()))]),
        entry(
            6,
            ONE,
            &[Record::Commit(commit(5, (7, mark(OVERTAKEN, 0))))],
        ),
        entry(7, ONE, &[Record::Update(count)]),
        entry(8, TWO, &[Record::Update(push())]),
        entry(9, ONE, &[Record::Update(pop)]),
    ]
}

fn committed() -> End {
    End::Committed {
        position: Position(5),
        steps: Some(steps(first())),
    }
}

fn overtaken() -> End {
    End::Conflict {
        object: "map".into(),
        position: Position(5),
        winner: id(5, TWO),
        attempts: 1,
    }
}

fn seen() -> End {
    End::Seen {
        position: Position(7),
        states: vec![("map".into(), Value::Cells(vec![(1, second())]))],
    }
}

/// The history.
pub(super) fn book() -> Book {
    let mut book = Book::default();
    let b = &mut book;
    let set = change("map", insert(1, first()));
    call(b, ONE, set, updated(4, Value::Cell(None)));
    let got = answer(5, Value::Cell(Some(first())));
    call(b, TWO, read("map", Query::Get(1), false), got);
    call(b, TWO, Deed::Transaction, committed());
    call(b, ONE, Deed::Transaction, overtaken());
    call(b, ONE, Deed::Snapshot, seen());
    call(
        b,
        ONE,
        change("counter", add(3)),
        updated(7, Value::Number(3)),
    );
    let failed = End::Failed("no".into());
    call(b, ONE, change("counter", add(1_000)), failed);
    let peeked = answer(8, Value::Number(3));
    call(b, ONE, read("counter", Query::State, true), peeked);
    let popped = End::Updated {
        position: None,
        output: Some(Value::Item(Some(99))),
    };
    call(b, ONE, Deed::Pop("queue".into()), popped);
    let empty = End::Answer {
        position: None,
        value: Value::Count(0),
    };
    call(b, ONE, read("queue", Query::Len, false), empty);
    let pushed = updated(8, Value::Key(8, 0, 0));
    let last = call(b, TWO, change("queue", push().op), pushed);
    // The push was invoked first, and returned last.
    book.calls[last].invoked = 0;
    book.log = Some(log());
    book.window = Some(100);
    book
}
