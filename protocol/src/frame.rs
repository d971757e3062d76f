//! The unit of transport: a postcard header and a raw body, behind a fixed prefix.
//!
//! ```text
//! 0   u32  magic "MLG1"      4  u8  version     5  u8  kind      6  u16 zero
//! 8   u64  call number       16 u32 header length               20 u32 body length
//! 24  header (postcard)      .. body (raw, not touched by serde)
//! ```
//!
//! Lengths are checked before anything is allocated. The cluster and the peer's identity are stated once per
//! connection, in the handshake ([`crate::messages::Handshake`]), and hold for all its frames.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::Reader;
use crate::limits::{FRAME_BYTES, FRAME_HEADER_BYTES};

/// Bytes before the header.
pub const PREFIX_BYTES: usize = 24;
/// Version of frame and messages; both sides must speak the same.
pub const WIRE_VERSION: u8 = 8;
const MAGIC: u32 = u32::from_le_bytes(*b"MLG1");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameKind {
    /// First frame of a connection, both ways.
    Handshake,
    /// A request.
    Request,
    /// The response to the request with the same call number.
    Response,
    /// The request with the same call number was dropped by its service: there will be no response. Empty.
    Dropped,
}

/// A message without its call number: what travels through every transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Postcard.
    pub header: Bytes,
    /// Raw bytes: entries as stored.
    pub body: Bytes,
}

impl Message {
    /// Bytes that count against queue bounds.
    #[must_use]
    pub const fn len(&self) -> usize {
        PREFIX_BYTES + self.header.len() + self.body.len()
    }

    /// Whether header and body are empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.header.is_empty() && self.body.is_empty()
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What follows.
    pub kind: FrameKind,
    /// Ties a response to its request.
    pub call: u64,
    /// Bytes of header.
    pub header_len: usize,
    /// Bytes of body.
    pub body_len: usize,
}

/// Why bytes are not a frame. The connection that sent them is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not Milonga at all.
    #[error("not a Milonga frame (magic {0:#010x}); is another program on this port?")]
    Magic(u32),
    /// Another version.
    #[error(
        "a frame of wire version {0} where version {WIRE_VERSION} is spoken; run the same version everywhere"
    )]
    Version(u8),
    /// An unknown kind of frame.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Larger than allowed.
    #[error("a frame of {header} + {body} bytes is over the limit of {FRAME_BYTES}")]
    TooLarge {
        /// Bytes of header.
        header: usize,
        /// Bytes of body.
        body: usize,
    },
}

impl Prefix {
    /// Reads a prefix.
    ///
    /// # Errors
    /// [`FrameError`]: the bytes are not the start of an acceptable frame.
    pub fn read(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, FrameError> {
        let mut r = Reader(bytes);
        let magic = r.u32().unwrap_or_default();
        let version = r.u8().unwrap_or_default();
        let kind = r.u8().unwrap_or_default();
        let _zero = r.u16();
        let call = r.u64().unwrap_or_default();
        let header_len = r.u32().unwrap_or_default() as usize;
        let body_len = r.u32().unwrap_or_default() as usize;
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        if version != WIRE_VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = match kind {
            1 => FrameKind::Handshake,
            2 => FrameKind::Request,
            3 => FrameKind::Response,
            4 => FrameKind::Dropped,
            other => return Err(FrameError::Kind(other)),
        };
        check_size(header_len, body_len)?;
        Ok(Self {
            kind,
            call,
            header_len,
            body_len,
        })
    }
}

/// Whether a message of this size fits a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] if not.
pub const fn check_size(header: usize, body: usize) -> Result<(), FrameError> {
    if header > FRAME_HEADER_BYTES || PREFIX_BYTES + header + body > FRAME_BYTES {
        return Err(FrameError::TooLarge { header, body });
    }
    Ok(())
}

/// Appends a whole frame to `out`.
///
/// # Errors
/// [`FrameError::TooLarge`]; nothing was appended.
pub fn write(
    out: &mut BytesMut,
    kind: FrameKind,
    call: u64,
    message: &Message,
) -> Result<(), FrameError> {
    check_size(message.header.len(), message.body.len())?;
    out.reserve(message.len());
    write_head(out, kind, call, message)?;
    out.put_slice(&message.body);
    Ok(())
}

/// Appends a frame without its body, which has to follow: for bodies that are worth not copying.
///
/// # Errors
/// [`FrameError::TooLarge`]; nothing was appended.
pub fn write_head(
    out: &mut BytesMut,
    kind: FrameKind,
    call: u64,
    message: &Message,
) -> Result<(), FrameError> {
    check_size(message.header.len(), message.body.len())?;
    let too_large = FrameError::TooLarge {
        header: message.header.len(),
        body: message.body.len(),
    };
    let header_len = u32::try_from(message.header.len()).map_err(|_| too_large)?;
    let body_len = u32::try_from(message.body.len()).map_err(|_| too_large)?;
    out.reserve(PREFIX_BYTES + message.header.len());
    out.put_u32_le(MAGIC);
    out.put_u8(WIRE_VERSION);
    out.put_u8(match kind {
        FrameKind::Handshake => 1,
        FrameKind::Request => 2,
        FrameKind::Response => 3,
        FrameKind::Dropped => 4,
    });
    out.put_u16_le(0);
    out.put_u64_le(call);
    out.put_u32_le(header_len);
    out.put_u32_le(body_len);
    out.put_slice(&message.header);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_wire() {
        let message = Message {
            header: Bytes::from_static(b"head"),
            body: Bytes::from_static(b"body!"),
        };
        let mut out = BytesMut::new();
        write(&mut out, FrameKind::Request, 77, &message).expect("small");
        let prefix =
            Prefix::read(out[..PREFIX_BYTES].try_into().expect("24 bytes")).expect("just written");
        assert_eq!(
            prefix,
            Prefix {
                kind: FrameKind::Request,
                call: 77,
                header_len: 4,
                body_len: 5
            }
        );
        assert_eq!(&out[PREFIX_BYTES..], b"headbody!");
    }

    #[test]
    fn foreign_old_and_oversize_frames_are_refused() {
        let mut out = BytesMut::new();
        write(&mut out, FrameKind::Response, 1, &Message::default()).expect("small");
        let good: [u8; PREFIX_BYTES] = out[..].try_into().expect("24 bytes");
        let changed = |at: usize, to: u8| {
            let mut bytes = good;
            bytes[at] = to;
            Prefix::read(&bytes).expect_err("changed").to_string()
        };
        assert!(changed(0, 0).contains("another program"));
        assert!(changed(4, 9).contains("wire version 9"));
        assert!(changed(5, 9).contains("unknown kind"));
        assert!(changed(23, 0xff).contains("over the limit"));
    }
}
