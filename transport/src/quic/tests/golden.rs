//! The bytes on the wire: files written by earlier builds must still be read, and written alike.
//!
//! If one of these tests fails, the wire format has changed: raise `WIRE_VERSION`, say so in the CHANGELOG, add a
//! file for the new version and keep what can still be read of the old.

use milonga_protocol::ClusterId;
use milonga_protocol::frame::{FrameError, FrameKind, PREFIX_BYTES, Prefix, write};
use milonga_protocol::messages::{Handshake, Request, UnitRequest, decode};
use milonga_protocol::{Epoch, Position};

use super::*;
use crate::quic::greeting;

fn parts(bytes: &'static [u8]) -> (Prefix, Message) {
    let prefix = bytes.first_chunk::<PREFIX_BYTES>().expect("a prefix");
    let prefix = Prefix::read(prefix).expect("readable");
    let (header, body) = bytes[PREFIX_BYTES..].split_at(prefix.header_len);
    assert_eq!(body.len(), prefix.body_len);
    let message = Message {
        header: Bytes::from_static(header),
        body: Bytes::from_static(body),
    };
    (prefix, message)
}

/// Version 2 changed the sequencer's bootstrap and the seal's report, version 3 brought repairs, version 4 units that join,
/// version 5 layouts of several members, and marks that clients tell, version 6 how slow servers are, and leases, version 7
/// when and why an epoch began, version 8 what a unit had persisted when it was sealed: older peers are told so.
#[test]
fn older_frames_are_refused_by_their_version() {
    for (version, golden) in [
        (1, &include_bytes!("../../../golden/frame-v1.bin")[..]),
        (1, &include_bytes!("../../../golden/handshake-v1.bin")[..]),
        (2, &include_bytes!("../../../golden/frame-v2.bin")[..]),
        (2, &include_bytes!("../../../golden/handshake-v2.bin")[..]),
        (3, &include_bytes!("../../../golden/frame-v3.bin")[..]),
        (3, &include_bytes!("../../../golden/handshake-v3.bin")[..]),
        (4, &include_bytes!("../../../golden/frame-v4.bin")[..]),
        (4, &include_bytes!("../../../golden/handshake-v4.bin")[..]),
        (5, &include_bytes!("../../../golden/frame-v5.bin")[..]),
        (5, &include_bytes!("../../../golden/handshake-v5.bin")[..]),
        (6, &include_bytes!("../../../golden/frame-v6.bin")[..]),
        (6, &include_bytes!("../../../golden/handshake-v6.bin")[..]),
        (7, &include_bytes!("../../../golden/frame-v7.bin")[..]),
        (7, &include_bytes!("../../../golden/handshake-v7.bin")[..]),
    ] {
        let prefix = golden.first_chunk::<PREFIX_BYTES>().expect("a prefix");
        let error = Prefix::read(prefix).unwrap_err();
        assert_eq!(error, FrameError::Version(version));
    }
}

#[test]
fn a_frame_of_version_8() {
    let golden = include_bytes!("../../../golden/frame-v8.bin");
    let request = Request::Unit(UnitRequest::Read {
        epoch: Epoch(7),
        settled: Position(1_000),
        positions: vec![Position(1_001), Position(70_000)],
    });
    let body = Bytes::from_static(b"raw bytes behind the header");
    let (prefix, message) = parts(golden);
    assert_eq!(prefix.kind, FrameKind::Request);
    assert_eq!(prefix.call, 0x0102_0304_0506_0708);
    assert_eq!(Request::decode(&message), Ok(request.clone()));
    assert_eq!(message.body, body);

    let mut written = bytes::BytesMut::new();
    let message = request.into_message(body);
    write(&mut written, FrameKind::Request, prefix.call, &message).expect("small");
    assert_eq!(&written[..], golden);
}

#[test]
fn a_handshake_of_version_8() {
    let golden = include_bytes!("../../../golden/handshake-v8.bin");
    let handshake = Handshake {
        version: 8,
        cluster: Some(ClusterId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff)),
        name: "unit-1a".into(),
        incarnation: Incarnation(42),
    };
    let (prefix, message) = parts(golden);
    assert_eq!(prefix.kind, FrameKind::Handshake);
    assert_eq!(decode("handshake", &message.header), Ok(handshake.clone()));
    assert_eq!(&greeting::frame(&handshake)[..], golden);
}
