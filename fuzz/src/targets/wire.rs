//! What comes from the network.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use milonga_protocol::frame::{Message, write};
use milonga_protocol::messages::{Handshake, Request, Response, decode, encode};

/// A stream cut into frames, however its bytes come: all at once, or by a length that the first byte says.
pub(crate) fn frames(data: &[u8]) {
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    let cut = |step| {
        let frames = milonga_transport::fuzz::frames(stream, step).now_or_never();
        frames.expect("all bytes are there")
    };
    let (frames, malformed) = cut(stream.len());
    assert_eq!(cut(usize::from(*step)), (frames.clone(), malformed));
    let mut again = BytesMut::new();
    for (prefix, message) in &frames {
        write(&mut again, prefix.kind, prefix.call, message).expect("it came as a frame");
    }
    assert!(again.len() <= stream.len());
    assert!(malformed || again.len() == stream.len());
}

pub(crate) fn handshake(data: &[u8]) {
    if let Ok(handshake) = decode::<Handshake>("handshake", data) {
        let again = decode("handshake", &encode(&handshake));
        assert_eq!(again, Ok(handshake));
    }
}

pub(crate) fn request(data: &[u8]) {
    if let Ok(request) = Request::decode(&message(data)) {
        let again = request.clone().into_message(Bytes::new());
        assert_eq!(Request::decode(&again), Ok(request));
    }
}

pub(crate) fn response(data: &[u8]) {
    if let Ok(response) = Response::decode(&message(data)) {
        let again = response.clone().into_message(Bytes::new());
        assert_eq!(Response::decode(&again), Ok(response));
    }
}

fn message(header: &[u8]) -> Message {
    Message {
        header: Bytes::copy_from_slice(header),
        body: Bytes::new(),
    }
}
