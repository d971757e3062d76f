//! Frames from a stream.

use bytes::BytesMut;
use milonga_protocol::frame::{FrameError, Message, PREFIX_BYTES, Prefix};
use quinn::RecvStream;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::numbers::Numbers;

/// Room that a read finds at least; most reads bring many frames.
const LEAST_ROOM: usize = 16 << 10;
const BLOCK: usize = 64 << 10;
/// A frame up to this size gets all its room at once; a larger one earns it by the bytes that have come.
const TRUSTED: usize = 1 << 20;

/// Why a stream gives no more frames.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    #[error("the stream ended")]
    Ended,
    /// The connection is gone, or the other side gave the stream up.
    #[error("{0}")]
    Lost(std::io::Error),
}

impl Unreadable {
    /// Whether the other side broke the protocol, rather than going away.
    pub(super) const fn is_malformed(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Truncated)
    }
}

/// Cuts a stream into frames. Messages are slices of its read buffer: no copy, but a small one that is kept for
/// long keeps a block of up to 64 KiB with it.
pub(super) struct Frames<R = RecvStream> {
    stream: R,
    buffer: BytesMut,
    numbers: Numbers,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(stream: R, numbers: Numbers) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            numbers,
        }
    }

    /// The next frame of those that have come completely.
    pub(super) fn pop(&mut self) -> Result<Option<(Prefix, Message)>, FrameError> {
        let Some(prefix) = self.prefix()? else {
            return Ok(None);
        };
        let len = PREFIX_BYTES + prefix.header_len + prefix.body_len;
        if self.buffer.len() < len {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(len).freeze();
        let body = frame.split_off(PREFIX_BYTES + prefix.header_len);
        let header = frame.split_off(PREFIX_BYTES);
        self.numbers.frames_in.increment(1);
        Ok(Some((prefix, Message { header, body })))
    }

    /// Waits for more bytes.
    pub(super) async fn fill(&mut self) -> Result<(), Unreadable> {
        let missing = match self.prefix()? {
            Some(prefix) => {
                let len = PREFIX_BYTES + prefix.header_len + prefix.body_len;
                len.saturating_sub(self.buffer.len())
            }
            None => 0,
        };
        if missing > LEAST_ROOM {
            let earned = self.buffer.len().max(TRUSTED);
            self.buffer.reserve(missing.min(earned));
        } else if self.buffer.capacity() - self.buffer.len() < LEAST_ROOM {
            self.buffer.reserve(BLOCK);
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) if self.buffer.is_empty() => Err(Unreadable::Ended),
            Ok(0) => Err(Unreadable::Truncated),
            Ok(read) => {
                self.numbers.bytes_in.increment(read as u64);
                Ok(())
            }
            Err(error) => Err(Unreadable::Lost(error)),
        }
    }

    /// Waits for one frame.
    pub(super) async fn next(&mut self) -> Result<(Prefix, Message), Unreadable> {
        loop {
            if let Some(frame) = self.pop()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    fn prefix(&self) -> Result<Option<Prefix>, FrameError> {
        self.buffer
            .first_chunk::<PREFIX_BYTES>()
            .map(Prefix::read)
            .transpose()
    }
}

/// The frames in `bytes`, of which `step` come at a time, and whether the rest is malformed.
#[cfg(feature = "fuzzing")]
pub(crate) async fn cut(bytes: &[u8], step: usize) -> (Vec<(Prefix, Message)>, bool) {
    let mut frames = Frames::new(Pieces { bytes, step }, Numbers::new("fuzzing"));
    let mut found = Vec::new();
    loop {
        match frames.next().await {
            Ok(frame) => found.push(frame),
            Err(why) => return (found, why.is_malformed()),
        }
    }
}

#[cfg(feature = "fuzzing")]
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

#[cfg(feature = "fuzzing")]
impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        room: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let len = self.step.max(1).min(room.remaining());
        let (piece, rest) = self.bytes.split_at(len.min(self.bytes.len()));
        room.put_slice(piece);
        self.bytes = rest;
        std::task::Poll::Ready(Ok(()))
    }
}
