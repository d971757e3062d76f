//! Hand-made observations, for the tests of invariants.
//!
//! Two epochs: 1 from 0 on, 2 from 4 on. One chain, `a` its head, `b` its tail.

use bytes::Bytes;
use milonga_protocol::layout::{Published, SequencerRef};
use milonga_protocol::messages::{
    LayoutResponse, Lease, Marks, Refusal, Request, Response, SealReport, SequencerRequest,
    SequencerResponse, TailAnswer, Token, UnitRequest, UnitResponse,
};
use milonga_protocol::{
    BackPointers, ClusterId, EncodedEntry, Entry, EntryId, Epoch, Incarnation, Layout, Limits,
    ListEnd, Position, Redundancy, Segment, ServerName, StreamId, StreamLink, UnitId, UnitIndex,
    UnitRef, WriterId,
};

use crate::world::journal::{Operation, Outcome, Record, Seen};
use crate::world::network::{Exchange, How, Said, Shown, Wire};
use crate::world::trace::Moment;

/// The stream of all sample entries.
pub(super) const STREAM: StreamId = StreamId(5);

pub(super) fn layout(epoch: u64) -> Layout {
    let start = Position(if epoch == 1 { 0 } else { 4 });
    let starts = (1..=epoch).map(|e| (Epoch(e), Position(if e == 1 { 0 } else { 4 })));
    let unit = |(n, name): (u128, &str)| UnitRef {
        name: name.into(),
        id: UnitId(n),
    };
    Layout {
        cluster: ClusterId(1),
        epoch: Epoch(epoch),
        start,
        starts: starts.collect(),
        segments: vec![Segment::new(
            Position::ZERO,
            Position::ZERO,
            vec![vec![UnitIndex(0), UnitIndex(1)]],
        )],
        units: [(1, "a"), (2, "b")].map(unit).to_vec(),
        redundancy: Redundancy::of(2),
        sequencer: SequencerRef {
            name: "s".into(),
            incarnation: Incarnation(1),
        },
        limits: Limits::default(),
    }
}

pub(super) fn wire() -> Wire {
    let mut wire = Wire::default();
    for epoch in [1, 2] {
        wire.layouts.insert(Epoch(epoch), layout(epoch));
    }
    wire
}

pub(super) fn payload(n: u64) -> Bytes {
    Bytes::from(format!("payload {n}"))
}

fn entry(n: u64, back: BackPointers) -> Said {
    let entry = Entry {
        id: EntryId {
            writer: WriterId(1),
            sequence: n,
        },
        links: vec![StreamLink {
            stream: STREAM,
            back,
        }],
        payload: payload(n),
    };
    Said::Data(EncodedEntry::encode(Position(100), &entry, false))
}

/// The `n`-th entry.
pub(super) fn data(n: u64) -> Said {
    entry(n, BackPointers::EMPTY)
}

/// The `n`-th entry, with other links.
pub(super) fn linked(n: u64, back: u64) -> Said {
    entry(n, BackPointers::new([Position(back)], ListEnd::Unknown))
}

pub(super) const fn junk() -> Said {
    Said::Junk
}

pub(super) const fn unwritten() -> Said {
    Said::Unwritten
}

pub(super) const fn lost() -> Said {
    Said::Lost
}

pub(super) const fn said(said: Said) -> Said {
    said
}

fn exchange(server: &str, request: Request, response: Response) -> Exchange {
    Exchange {
        asked: Moment(10),
        at: Moment(10),
        client: "client-1".into(),
        server: server.into(),
        run: 1,
        request,
        response,
        shown: Vec::new(),
    }
}

/// The same of the server's next run, a little later.
pub(super) fn restarted(exchange: Exchange) -> Exchange {
    Exchange {
        asked: Moment(20),
        at: Moment(20),
        run: exchange.run + 1,
        ..exchange
    }
}

fn shown(position: u64, said: Said, how: How) -> Vec<Shown> {
    vec![Shown {
        position: Position(position),
        said,
        how,
    }]
}

pub(super) fn written(server: &str, epoch: u64, position: u64, said: Said) -> Exchange {
    let request = UnitRequest::Write {
        epoch: Epoch(epoch),
        settled: Position::ZERO,
        items: Vec::new(),
    };
    let response = UnitResponse::Written {
        answers: Vec::new(),
        marks: Marks::default(),
    };
    Exchange {
        shown: shown(position, said, How::Written),
        ..exchange(server, Request::Unit(request), Response::Unit(response))
    }
}

pub(super) fn read(server: &str, epoch: u64, position: u64, said: Said) -> Exchange {
    let request = UnitRequest::Read {
        epoch: Epoch(epoch),
        settled: Position::ZERO,
        positions: vec![Position(position)],
    };
    let response = UnitResponse::Values {
        answers: Vec::new(),
        marks: Marks::default(),
    };
    let asked = exchange(server, Request::Unit(request), Response::Unit(response));
    Exchange {
        asked: Moment(30),
        shown: shown(position, said, How::Read),
        ..asked
    }
}

/// Entries of `stream` in a range, complete to its end.
pub(super) fn list(
    server: &str,
    stream: StreamId,
    (from, complete): (u64, u64),
    entries: &[(u64, Said)],
) -> Exchange {
    let request = UnitRequest::ReadStreams {
        epoch: Epoch(1),
        streams: vec![stream],
        from: Position(from),
        to: Position(complete),
        max_bytes: 1,
        wait_ms: 0,
    };
    let response = UnitResponse::Entries {
        entries: Vec::new(),
        complete: Position(complete),
        marks: Marks::default(),
    };
    let entries = entries.iter().cloned();
    let shown = entries.flat_map(|(position, said)| shown(position, said, How::Listed));
    Exchange {
        shown: shown.collect(),
        ..exchange(server, Request::Unit(request), Response::Unit(response))
    }
}

pub(super) fn seal(server: &str, epoch: u64) -> Exchange {
    let epoch = Epoch(epoch);
    let sealed = UnitResponse::Sealed(SealReport::default());
    let request = Request::Unit(UnitRequest::Seal { epoch });
    exchange(server, request, Response::Unit(sealed))
}

pub(super) fn refused(server: &str, epoch: u64) -> Exchange {
    let epoch = Epoch(epoch);
    let request = Request::Unit(UnitRequest::Confirm { epoch });
    exchange(server, request, Response::Refused(Refusal::NotOpen))
}

pub(super) fn open(server: &str, epoch: u64) -> Exchange {
    let request = UnitRequest::Open {
        layout: layout(epoch),
        persisted: Epoch::NONE,
        starts: Vec::new(),
    };
    let done = Response::Unit(UnitResponse::Done);
    exchange(server, Request::Unit(request), done)
}

pub(super) fn handed_out(layout: Layout) -> Exchange {
    let request = milonga_protocol::messages::LayoutRequest::Get {
        known: Epoch::NONE,
        wait_ms: 0,
    };
    let published = Published {
        layout,
        addresses: std::collections::BTreeMap::new(),
    };
    let response = Response::Layout(LayoutResponse::Layout(published));
    exchange("l", Request::Layout(request), response)
}

fn tokens(epoch: u64, token: Token) -> Exchange {
    let request = SequencerRequest::Tokens {
        epoch: Epoch(epoch),
        wants: Vec::new(),
    };
    let response = SequencerResponse::Tokens(vec![token]);
    exchange(
        "s",
        Request::Sequencer(request),
        Response::Sequencer(response),
    )
}

pub(super) fn granted(epoch: u64, position: u64) -> Exchange {
    let position = Position(position);
    tokens(
        epoch,
        Token {
            position,
            links: Vec::new(),
        },
    )
}

/// A tail check of `epoch`, answered like this.
pub(super) fn tail(epoch: u64, lease: Lease) -> Exchange {
    let request = SequencerRequest::Tail {
        epoch: Epoch(epoch),
        streams: Vec::new(),
    };
    let answer = TailAnswer {
        next: Position::ZERO,
        trimmed: Position::ZERO,
        lease,
        streams: Vec::new(),
    };
    let response = Response::Sequencer(SequencerResponse::Tail(answer));
    exchange("s", Request::Sequencer(request), response)
}

/// A token of the first epoch whose link names what was before.
pub(super) fn granted_after(stream: StreamId, position: u64, back: BackPointers) -> Exchange {
    let position = Position(position);
    let links = vec![StreamLink { stream, back }];
    tokens(1, Token { position, links })
}

pub(super) fn trim(server: &str, below: u64) -> Exchange {
    let below = Position(below);
    let epoch = Epoch(1);
    let request = Request::Unit(UnitRequest::Trim { epoch, below });
    exchange(
        server,
        request,
        Response::Unit(UnitResponse::Trimmed { below }),
    )
}

/// The unit was told that everything below is settled.
pub(super) fn settled(server: &str, below: u64) -> Exchange {
    let below = Position(below);
    let epoch = Epoch(1);
    let request = Request::Unit(UnitRequest::Settled { epoch, below });
    exchange(server, request, Response::Unit(UnitResponse::Done))
}

pub(super) fn confirmed(server: &str, trimmed: u64) -> Exchange {
    let marks = Marks {
        settled: Position(trimmed),
        trimmed: Position(trimmed),
    };
    let request = Request::Unit(UnitRequest::Confirm { epoch: Epoch(1) });
    let response = Response::Unit(UnitResponse::Serving { marks });
    exchange(server, request, response)
}

/// An operation from `at` to the next moment.
pub(super) fn operation(at: u64, operation: Operation, outcome: Outcome) -> Record {
    Record {
        client: ServerName::new("client-1"),
        invoked: Moment(at),
        operation,
        returned: Some((Moment(at + 1), outcome)),
    }
}

/// The `n`-th payload, appended at `position`.
pub(super) fn appended(at: u64, position: u64, n: u64) -> Record {
    let append = Operation::Append {
        streams: vec![STREAM],
        payload: payload(n),
    };
    operation(at, append, Outcome::Appended(Position(position)))
}

/// The `n`-th payload, read in its stream.
pub(super) fn seen(position: u64, n: u64) -> Seen {
    Seen {
        position: Position(position),
        streams: vec![STREAM],
        payload: payload(n),
    }
}
