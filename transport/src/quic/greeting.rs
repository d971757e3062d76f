//! The first frame on a connection, both ways.

use bytes::{Bytes, BytesMut};
use milonga_protocol::frame::{FrameKind, Message, write};
use milonga_protocol::messages::{Handshake, decode, encode};
use quinn::SendStream;

use super::failure::Close;
use super::frames::Frames;
use crate::identity::Identity;

/// The encoded frame.
pub(super) fn frame(handshake: &Handshake) -> Bytes {
    let message = Message {
        header: encode(handshake),
        body: Bytes::new(),
    };
    let mut out = BytesMut::new();
    write(&mut out, FrameKind::Handshake, 0, &message).expect("names are short");
    out.freeze()
}

/// Says who this process is. Errors show when the answer is read.
pub(super) async fn send(stream: &mut SendStream, identity: &Identity) {
    let _ = stream.write_chunk(frame(&identity.handshake())).await;
}

/// What is wrong with the other side's first frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unwelcome {
    /// It may not talk to this process.
    #[error("{0}")]
    Refused(String),
    /// Its certificate says too little.
    #[error("{0}")]
    Certificate(String),
    /// It does not talk as it should.
    #[error("{0}")]
    Malformed(String),
    /// It went away.
    #[error("{0}")]
    Lost(String),
}

impl Unwelcome {
    /// How to close the connection.
    pub(super) const fn close(&self) -> Close {
        match self {
            Self::Refused(_) => Close::Refused,
            Self::Certificate(_) => Close::Certificate,
            Self::Malformed(_) => Close::Malformed,
            Self::Lost(_) => Close::Done,
        }
    }
}

/// Reads and checks who the other side is.
pub(super) async fn receive(
    frames: &mut Frames,
    identity: &Identity,
) -> Result<Handshake, Unwelcome> {
    let (prefix, message) = frames.next().await.map_err(|error| {
        if error.is_malformed() {
            Unwelcome::Malformed(error.to_string())
        } else {
            Unwelcome::Lost(error.to_string())
        }
    })?;
    if prefix.kind != FrameKind::Handshake {
        let text = "the first frame was no handshake".to_owned();
        return Err(Unwelcome::Malformed(text));
    }
    let theirs: Handshake = decode("handshake", &message.header)
        .map_err(|error| Unwelcome::Malformed(error.to_string()))?;
    identity.check(&theirs).map_err(Unwelcome::Refused)?;
    Ok(theirs)
}
