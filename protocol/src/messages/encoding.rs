//! Messages as bytes, and the raw part behind the header.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Request, Response};
use crate::entry::EncodedEntry;
use crate::frame::Message;

/// Why a message cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot decode a {what}: {why}")]
pub struct DecodeError {
    what: &'static str,
    why: String,
}

impl Request {
    /// Encodes with `body` behind it.
    #[must_use]
    pub fn into_message(self, body: Bytes) -> Message {
        Message {
            header: encode(&self),
            body,
        }
    }

    /// Decodes the header; the body stays in the message.
    ///
    /// # Errors
    /// [`DecodeError`] if the header is not a request.
    pub fn decode(message: &Message) -> Result<Self, DecodeError> {
        decode("request", &message.header)
    }
}

impl Response {
    /// Encodes with `body` behind it.
    #[must_use]
    pub fn into_message(self, body: Bytes) -> Message {
        Message {
            header: encode(&self),
            body,
        }
    }

    /// Decodes the header; the body stays in the message.
    ///
    /// # Errors
    /// [`DecodeError`] if the header is not a response.
    pub fn decode(message: &Message) -> Result<Self, DecodeError> {
        decode("response", &message.header)
    }
}

/// Encodes any header type.
///
/// # Panics
/// Never for the types of this module: postcard fails only on types without a length, and there are none.
#[must_use]
pub fn encode(header: &impl Serialize) -> Bytes {
    postcard::to_stdvec(header)
        .map(Bytes::from)
        .expect("headers have known lengths")
}

/// Decodes any header type; trailing bytes are an error.
///
/// # Errors
/// [`DecodeError`] names `what` could not be decoded.
pub fn decode<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(DecodeError {
            what,
            why: format!("{} bytes too many", rest.len()),
        }),
        Err(error) => Err(DecodeError {
            what,
            why: error.to_string(),
        }),
    }
}

/// The raw part of a message, taken apart front to back.
#[derive(Debug)]
pub struct Body(Bytes);

impl Body {
    /// The body of `message`.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        Self(message.body.clone())
    }

    /// The next `len` bytes; `None` if there are fewer.
    pub fn take(&mut self, len: u32) -> Option<Bytes> {
        let len = len as usize;
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    /// The bytes not taken yet.
    #[must_use]
    pub const fn rest(&self) -> &Bytes {
        &self.0
    }
}

/// Puts encoded entries one behind the other.
#[must_use]
pub fn body_of<'a>(entries: impl IntoIterator<Item = &'a EncodedEntry>) -> Bytes {
    let mut entries = entries.into_iter();
    let (Some(first), second) = (entries.next(), entries.next()) else {
        return Bytes::new();
    };
    let Some(second) = second else {
        return first.bytes().clone();
    };
    let mut body = BytesMut::with_capacity(first.len() + second.len());
    for entry in [first, second].into_iter().chain(entries) {
        body.extend_from_slice(entry.bytes());
    }
    body.freeze()
}
