//! Decoders that are private, for `milonga-fuzz`.

use bytes::Bytes;
use milonga_protocol::{BackPointers, Entry, EntryId, Position, StreamId, StreamLink, WriterId};
use serde::Serialize;
use serde_bytes::Bytes as Slice;

use crate::counter::{CounterOp, CounterState};
use crate::directory::{Directory, DirectoryOp, ObjectKind};
use crate::key::KeyBytes;
use crate::map::{MapOp, MapState};
use crate::object::Object as _;
use crate::playback::Playback;
use crate::queue::{QueueOp, QueueState};
use crate::record::{
    Commit, Decision, Read, ReadKeys, Record, TouchedKeys, Update, begin_payload, decode_entry,
};
use crate::world::{Hosted, World};

/// The hosted objects: a map, a counter, a queue.
pub const STREAMS: [StreamId; 3] = [StreamId(16), StreamId(18), StreamId(20)];

/// Plays `payload` as an entry of the directory and of [`STREAMS`], twice: whatever it says, it is decided, and what
/// was decoded is encoded alike.
pub fn play(payload: &[u8]) {
    let link = |stream| StreamLink {
        stream,
        back: BackPointers::EMPTY,
    };
    let entry = Entry {
        id: EntryId {
            writer: WriterId(1),
            sequence: 1,
        },
        links: [StreamId::DIRECTORY]
            .into_iter()
            .chain(STREAMS)
            .map(link)
            .collect(),
        payload: Bytes::copy_from_slice(payload),
    };
    if let Ok(payload) = decode_entry(&entry) {
        let begun = begin_payload(payload.tag, 0);
        let again = payload
            .records
            .iter()
            .fold(begun, |out, record| record.encode(out));
        let again = Entry {
            payload: again.into(),
            ..entry.clone()
        };
        assert_eq!(decode_entry(&again).as_ref(), Ok(&payload));
    }
    let mut world = World::new();
    let [map, counter, queue] = STREAMS;
    world.join_new(map, Hosted::new::<MapState<String, u64>>("map".into()));
    world.join_new(counter, Hosted::new::<CounterState>("counter".into()));
    world.join_new(queue, Hosted::new::<QueueState<String>>("queue".into()));
    let mut playback = Playback::new(WriterId(1), 100);
    for position in [Position(5), Position(1_000)] {
        let Ok(plan) = playback.decide(position, &entry) else {
            return;
        };
        world.apply(&plan, true);
        assert_eq!(world.applied(), position.next());
    }
    for stream in STREAMS {
        let mut alone = Hosted::new::<CounterState>("alone".into());
        alone.load(stream, Position(5), &entry, |record| {
            world.is_aborted(Position(5), record)
        });
    }
    let _ = world.freeze();
}

/// Payloads of updates and a transaction on [`STREAMS`], by name.
#[must_use]
pub fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let [map, counter, queue] = STREAMS;
    let key = || KeyBytes::of("key");
    let register = DirectoryOp::Register {
        name: "map".to_owned(),
        kind: ObjectKind {
            name: "map".into(),
            key: Some("str".into()),
            value: Some("u64".into()),
        },
    };
    let updates = [
        op(StreamId::DIRECTORY, &register),
        op(
            map,
            &MapOp::Insert {
                key: key(),
                value: 7_u64,
            },
        ),
        op(map, &MapOp::<u64>::Remove { key: key() }),
        op(map, &MapOp::<u64>::Clear),
        op(counter, &CounterOp::Add(-3)),
        op(queue, &QueueOp::Push("first".to_owned())),
        op(queue, &QueueOp::<String>::Pop),
    ];
    let all = updates.iter().flat_map(|(stream, op)| {
        let update = Record::Update(with(*stream, op));
        update.encode(Vec::new())
    });
    let commit = Record::Commit(Commit {
        snapshot: Position(4),
        window: 100,
        reads: vec![
            Read {
                stream: map,
                what: ReadKeys::Keys(vec![Slice::new(b"key")]),
            },
            Read {
                stream: queue,
                what: ReadKeys::Whole,
            },
        ],
        updates: updates[1..]
            .iter()
            .map(|(stream, op)| with(*stream, op))
            .collect(),
    });
    let decision = Record::Decision(Decision {
        position: Position(5),
        record: 0,
        committed: true,
    });
    let payload = |records: Vec<u8>| [begin_payload(1, 0), records].concat();
    vec![
        ("updates", payload(all.collect())),
        (
            "transaction",
            payload(decision.encode(commit.encode(Vec::new()))),
        ),
    ]
}

fn op(stream: StreamId, op: &impl Serialize) -> (StreamId, Vec<u8>) {
    (
        stream,
        postcard::to_stdvec(op).expect("plain data into memory"),
    )
}

fn with(stream: StreamId, op: &[u8]) -> Update<'_> {
    Update {
        stream,
        touches: TouchedKeys::One(Slice::new(b"key")),
        op_version: match stream {
            StreamId::DIRECTORY => Directory::OP_VERSION,
            _ => 1,
        },
        op: Slice::new(op),
    }
}
