//! Inputs that decode, written by the product's own encoders.

use bytes::{BufMut, Bytes, BytesMut};
use milonga_objects::EncodeKey;
use milonga_protocol::change::{ChangeReport, ChangeStage, ClusterChange};
use milonga_protocol::frame::{FrameKind, Message, WIRE_VERSION, write};
use milonga_protocol::messages::{
    Bootstrap, Handshake, Hello, LayoutRequest, LayoutResponse, Lease, Marks, Refusal, Renewal,
    Request, Response, SealReport, SequencerRequest, SequencerResponse, StreamTail, TailAnswer,
    Token, UnitReadAnswer, UnitRequest, UnitResponse, WireValue, WriteAnswer, encode,
};
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, ListEnd, Position,
    StreamId, StreamLink, WriterId,
};

use crate::targets::cores::layout;
use crate::targets::disk::{GOLDEN, STATE_VERSION_1};

type Seed = (&'static str, String, Vec<u8>);

/// Target, file name and content of every seed.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    wire(&mut seeds);
    entries(&mut seeds);
    disk(&mut seeds);
    cores(&mut seeds);
    texts(&mut seeds);
    seeds
}

fn add(seeds: &mut Vec<Seed>, target: &'static str, name: &str, bytes: impl AsRef<[u8]>) {
    seeds.push((target, name.to_owned(), bytes.as_ref().to_vec()));
}

fn entry(position: u64, payload: &'static [u8]) -> EncodedEntry {
    let near = [position.saturating_sub(1), position / 2].map(Position);
    let link = |stream, back| StreamLink { stream, back };
    let entry = Entry {
        id: EntryId {
            writer: WriterId(7),
            sequence: position,
        },
        links: vec![
            link(StreamId(5), BackPointers::new(near, ListEnd::Unknown)),
            link(StreamId(u64::MAX), BackPointers::EMPTY),
        ],
        payload: Bytes::from_static(payload),
    };
    EncodedEntry::encode(Position(position), &entry, position.is_multiple_of(2))
}

fn unit_requests() -> Vec<(UnitRequest, Bytes)> {
    let (epoch, settled) = (Epoch(1), Position::ZERO);
    let (from, to) = (Position(0), Position(4));
    let first = entry(0, b"tango");
    let len = u32::try_from(first.len()).expect("small");
    let items = vec![
        (Position(0), WireValue::Data { len }),
        (Position(2), WireValue::Junk),
    ];
    let streams = vec![StreamId(5)];
    let plain = [
        UnitRequest::Fill { epoch, from, to },
        UnitRequest::Read {
            epoch,
            settled,
            positions: vec![from, to],
        },
        UnitRequest::ReadStreams {
            epoch,
            streams: streams.clone(),
            from,
            to,
            max_bytes: 1_000,
            wait_ms: 5,
        },
        UnitRequest::Confirm { epoch },
        UnitRequest::Settled { epoch, below: to },
        UnitRequest::Told { epoch, settled: to },
        UnitRequest::Trim { epoch, below: to },
        UnitRequest::Ends { epoch, streams },
        UnitRequest::Repair {
            epoch,
            settled: from,
            items: vec![(from, WireValue::Junk)],
        },
        UnitRequest::Rejoin {
            cluster: ClusterId(1),
            epoch: Epoch(2),
            below: to,
        },
        UnitRequest::Lacking {
            epoch,
            from,
            limit: 9,
        },
        UnitRequest::Seal { epoch: Epoch(2) },
        UnitRequest::Collect {
            epoch: Epoch(2),
            after: None,
            below: to,
        },
        UnitRequest::Open {
            layout: layout(Epoch(2), to),
            persisted: Epoch(1),
            starts: vec![(Epoch(2), to)],
        },
    ];
    let write = UnitRequest::Write {
        epoch,
        settled,
        items,
    };
    let plain = plain.into_iter().map(|request| (request, Bytes::new()));
    [(write, first.bytes().clone())]
        .into_iter()
        .chain(plain)
        .collect()
}

fn sequencer_requests() -> Vec<SequencerRequest> {
    let epoch = Epoch(1);
    let streams = vec![StreamId(5), StreamId(16)];
    let tails = vec![StreamTail {
        stream: StreamId(5),
        last: BackPointers::new([Position(3)], ListEnd::BelowTrim),
    }];
    vec![
        SequencerRequest::Tokens {
            epoch,
            wants: vec![streams.clone(), vec![], vec![StreamId(5)]],
        },
        SequencerRequest::Tail {
            epoch,
            streams: streams.clone(),
        },
        SequencerRequest::Wait {
            epoch,
            streams,
            from: Position(50),
            wait_ms: 10,
        },
        SequencerRequest::Trimmed {
            epoch,
            below: Position(4),
        },
        SequencerRequest::Seal { epoch: Epoch(2) },
        SequencerRequest::Bootstrap(Bootstrap {
            epoch: Epoch(2),
            incarnation: Incarnation(5),
            cluster: ClusterId(0xc1),
            next: Position(20),
            trimmed: Position(4),
            lost: Position(2),
            lease: Lease::DirectoryLock,
            stream_limit: 8,
            page: 0,
            last: true,
            tails,
        }),
    ]
}

fn responses() -> Vec<Response> {
    let marks = Marks {
        settled: Position(300),
        trimmed: Position(2),
    };
    let back = BackPointers::new([Position(9), Position(1)], ListEnd::Unknown);
    let stream = StreamId(5);
    let token = Token {
        position: Position(11),
        links: vec![StreamLink { stream, back }],
    };
    vec![
        Response::Unit(UnitResponse::Written {
            answers: vec![WriteAnswer::Durable, WriteAnswer::TooFar],
            marks,
        }),
        Response::Unit(UnitResponse::Filled {
            winners: vec![(Position(1), WireValue::Data { len: 300 })],
            marks,
        }),
        Response::Unit(UnitResponse::Values {
            answers: vec![UnitReadAnswer::Data { len: 9 }, UnitReadAnswer::Lost],
            marks,
        }),
        Response::Unit(UnitResponse::Sealed(SealReport {
            epoch: Epoch(3),
            marks,
            ..SealReport::default()
        })),
        Response::Unit(UnitResponse::Tails {
            tails: vec![StreamTail { stream, last: back }],
            done: true,
        }),
        Response::Sequencer(SequencerResponse::Tokens(vec![token])),
        Response::Sequencer(SequencerResponse::Tail(TailAnswer {
            next: Position(70_000),
            trimmed: Position(2),
            lease: Lease::None,
            streams: vec![back, BackPointers::EMPTY],
        })),
        Response::Sequencer(SequencerResponse::Sealed {
            incarnation: Incarnation(42),
        }),
        Response::Layout(LayoutResponse::Waiting {
            why: "units".to_owned(),
        }),
        Response::Layout(LayoutResponse::Lease { lasts_ms: 300 }),
        Response::Refused(Refusal::Sealed { epoch: Epoch(4) }),
        Response::Refused(Refusal::Busy {
            what: "64 MiB".to_owned(),
        }),
        Response::Refused(Refusal::NotLeader {
            leader: Some(("layout-2".into(), "two:1".to_owned())),
        }),
        Response::Raft,
        Response::Layout(LayoutResponse::Change(ChangeReport {
            stage: ChangeStage::UnderWay,
            epoch: Epoch(4),
            steps: vec!["unit-3 joins chain 1".to_owned()],
            joins: vec!["unit-3".into()],
            leaves: vec!["unit-1a".into()],
            sequencer: "sequencer-1".into(),
            chains: vec![vec!["unit-1b".into(), "unit-3".into()]],
            copying: Vec::new(),
        })),
    ]
}

fn wire(seeds: &mut Vec<Seed>) {
    let handshake = Handshake {
        version: WIRE_VERSION,
        cluster: Some(ClusterId(0xc1)),
        name: "unit-1a".into(),
        incarnation: Incarnation(42),
    };
    add(seeds, "handshake", "known", encode(&handshake));
    let mut stream = BytesMut::from(&[7_u8][..]);
    let message = Message {
        header: encode(&handshake),
        body: Bytes::new(),
    };
    write(&mut stream, FrameKind::Handshake, 0, &message).expect("small");
    for (call, (request, body)) in (1..).zip(unit_requests()) {
        let name = format!("unit-{call:02}");
        let message = Request::Unit(request).into_message(body);
        add(seeds, "request", &name, &message.header);
        write(&mut stream, FrameKind::Request, call, &message).expect("small");
    }
    for (call, request) in (1..).zip(sequencer_requests()) {
        let name = format!("sequencer-{call:02}");
        add(
            seeds,
            "request",
            &name,
            encode(&Request::Sequencer(request)),
        );
    }
    let hello = LayoutRequest::Hello(Hello {
        name: "unit-1a".into(),
        address: "127.0.0.1:7101".to_owned(),
        incarnation: Incarnation(42),
        unit: None,
        sequencer: true,
    });
    add(
        seeds,
        "request",
        "layout-hello",
        encode(&Request::Layout(hello)),
    );
    add(seeds, "request", "raft", encode(&Request::Raft));
    add(seeds, "request", "ping", encode(&Request::Ping));
    let change = ClusterChange::AddChain {
        units: vec!["unit-3a".into(), "unit-3b".into()],
    };
    let renewal = LayoutRequest::Renew(Renewal {
        name: "sequencer-1".into(),
        incarnation: Incarnation(42),
        epoch: Epoch(3),
    });
    add(
        seeds,
        "request",
        "layout-renew",
        encode(&Request::Layout(renewal)),
    );
    let dry_run = true;
    let change = Request::Layout(LayoutRequest::Change { change, dry_run });
    add(seeds, "request", "layout-change", encode(&change));
    for (call, response) in (1..).zip(responses()) {
        let message = response.into_message(Bytes::from_static(b"body"));
        add(seeds, "response", &format!("{call:02}"), &message.header);
        write(&mut stream, FrameKind::Response, call, &message).expect("small");
    }
    write(&mut stream, FrameKind::Dropped, 9, &Message::default()).expect("small");
    add(seeds, "frames", "all-kinds", stream);
}

fn entries(seeds: &mut Vec<Seed>) {
    add(seeds, "entry", "near", entry(10, b"payload").bytes());
    add(seeds, "entry", "far", entry(1 << 50, b"").bytes());
    let golden = include_bytes!("../../objects/golden/payload-v1.bin");
    add(seeds, "payload", "golden", golden);
    for (name, payload) in milonga_objects::fuzz::payloads() {
        add(seeds, "payload", name, payload);
    }
    let mut key = Vec::new();
    ("a\0b".to_owned(), 7_u32).encode(&mut key, true);
    add(seeds, "keys", "pair", key);
    let mut key = Vec::new();
    (vec![0_u8, 255], true, "end".to_owned()).encode(&mut key, false);
    add(seeds, "keys", "three", key);
}

fn disk(seeds: &mut Vec<Seed>) {
    let [superblock, state, sealed, active] = GOLDEN.map(|(_, bytes)| bytes);
    add(seeds, "blocks", "superblock", &superblock[..128]);
    add(seeds, "blocks", "state", &STATE_VERSION_1[..128]);
    add(seeds, "blocks", "state-v2", &state[..128]);
    add(seeds, "blocks", "segment", &sealed[..128]);
    let find = |magic: &[u8]| sealed.windows(magic.len()).position(|found| found == magic);
    let footer = find(b"MLGFOOTR").expect("the first segment is full");
    let trailer = find(b"MLGTRAIL").expect("the first segment is full");
    let batch = find(b"MLGB").expect("it has batches");
    add(seeds, "blocks", "footer", &sealed[footer..trailer]);
    add(seeds, "blocks", "trailer", &sealed[trailer..]);
    add(seeds, "blocks", "batch", &sealed[batch..batch + 256]);
    let end = |file: &[u8]| file.iter().rposition(|byte| *byte != 0).unwrap_or_default() + 1;
    add(
        seeds,
        "segment",
        "sealed",
        &sealed[4_096..end(&sealed[..footer])],
    );
    add(seeds, "segment", "active", &active[4_096..end(active)]);
    add(seeds, "directory", "whole", [0]);
    // A byte of a batch, of a record, of the state, of the footer; once damaged, once with checksums to match.
    for (mode, name) in [(0, "damaged"), (1, "sealed")] {
        let mut changes = vec![mode];
        for (file, at) in [(2, batch + 8), (3, 4_096 + 112), (1, 56), (2, footer + 40)] {
            changes.push(file);
            changes.put_u16_le(u16::try_from(at / 8).expect("files of 8 KiB"));
            changes.extend_from_slice(&[2, 9, 1]);
        }
        add(seeds, "directory", name, changes);
    }
}

fn cores(seeds: &mut Vec<Seed>) {
    let mut all = Vec::new();
    for (request, body) in unit_requests() {
        put_request(&mut all, Request::Unit(request), &body);
    }
    add(seeds, "unit", "one-of-each", all);
    let mut all = Vec::new();
    for request in sequencer_requests() {
        put_request(&mut all, Request::Sequencer(request), &[]);
    }
    add(seeds, "sequencer", "one-of-each", all);
    let layout = layout(Epoch(1), Position::ZERO);
    for (name, record) in ["header", "layout", "intent"]
        .iter()
        .zip(milonga_layout::fuzz::encoded(&layout))
    {
        add(seeds, "layout_records", name, record);
    }
}

fn put_request(out: &mut Vec<u8>, request: Request, body: &[u8]) {
    let header = encode(&request);
    for len in [header.len(), body.len()] {
        out.push(u8::try_from(len).expect("small"));
    }
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
}

const PROCESS: &str = r#"name = "sequencer-1"
listen = "127.0.0.1:7100"
advertise = "seq.example:7100"
data = "data"
layout_servers = [{ name = "sequencer-1", address = "127.0.0.1:7100" }]
[tls]
ca = "ca.pem"
cert = "seq.pem"
key = "seq.key"
[sequencer]
[unit]
segment_bytes = 8388608
[layout]
chains = [["unit-1a", "unit-1b"], ["unit-2a", "unit-2b"]]
sequencer = "sequencer-1"
limits = { entry_bytes = 4096 }
"#;

const CLIENT: &str = r#"deadline_ms = 5000
layout_servers = [{ name = "sequencer-1", address = "127.0.0.1:7100" }]
[tls]
ca = "ca.pem"
cert = "app.pem"
key = "app.key"
"#;

fn texts(seeds: &mut Vec<Seed>) {
    add(seeds, "process_config", "all-roles", PROCESS);
    add(seeds, "client_config", "good", CLIENT);
    let files: [&[u8]; 3] = [
        include_bytes!("../certificates/ca.pem"),
        include_bytes!("../certificates/unit-1a.pem"),
        include_bytes!("../certificates/unit-1a.key"),
    ];
    for (place, (name, pem)) in (0_u8..).zip(["ca", "cert", "key"].into_iter().zip(files)) {
        add(seeds, "certificates", name, [&[place], pem].concat());
        let der = crate::targets::certificates::der(pem);
        add(
            seeds,
            "certificates",
            &format!("{name}-der"),
            [&[place + 3][..], &der].concat(),
        );
    }
}
