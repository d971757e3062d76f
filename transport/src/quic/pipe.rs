//! What waits to be sent on one stream.

use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use milonga_protocol::frame::{FrameError, FrameKind, Message, write, write_head};
use quinn::{SendStream, WriteError};
use tokio::sync::Notify;

use super::numbers::Numbers;
use crate::lock::lock;

/// Bodies from here on are sent from where they are; smaller ones are cheaper to copy.
const WORTH_SHARING: usize = 4 << 10;

/// A queue of encoded frames. Bounded by whoever pushes; emptied by [`Pipe::run`].
pub(super) struct Pipe {
    waiting: Mutex<Waiting>,
    ready: Notify,
    numbers: Numbers,
}

#[derive(Default)]
struct Waiting {
    /// Before `tail`, in order.
    segments: Vec<Bytes>,
    tail: BytesMut,
    frames: u64,
    /// What the pushers counted against their bound.
    charge: usize,
    /// Bytes pushed and not written yet, for the gauge.
    unsent: usize,
}

impl Waiting {
    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.segments.push(self.tail.split().freeze());
        }
    }
}

impl Pipe {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self {
            waiting: Mutex::default(),
            ready: Notify::new(),
            numbers,
        }
    }

    /// Puts a frame at the end. `charge` comes back through `sent` of [`Pipe::run`].
    pub(super) fn push(
        &self,
        kind: FrameKind,
        call: u64,
        message: &Message,
        charge: usize,
    ) -> Result<(), FrameError> {
        let mut waiting = lock(&self.waiting);
        if message.body.len() < WORTH_SHARING {
            write(&mut waiting.tail, kind, call, message)?;
        } else {
            write_head(&mut waiting.tail, kind, call, message)?;
            waiting.seal_tail();
            waiting.segments.push(message.body.clone());
        }
        waiting.frames += 1;
        waiting.charge += charge;
        waiting.unsent += message.len();
        // Whoever finds the queue empty wakes the writer; the others' frames go with it.
        let first = waiting.frames == 1;
        drop(waiting);
        self.numbers.queue_bytes.increment(gauged(message.len()));
        if first {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Sends what waits, all of it at once, and says how much of the charge that was. Ends with the stream.
    pub(super) async fn run(
        &self,
        mut stream: SendStream,
        sent: impl Fn(usize),
    ) -> Result<(), WriteError> {
        let mut segments = Vec::new();
        loop {
            self.ready.notified().await;
            let (frames, charge) = {
                let mut waiting = lock(&self.waiting);
                waiting.seal_tail();
                std::mem::swap(&mut segments, &mut waiting.segments);
                let frames = std::mem::take(&mut waiting.frames);
                (frames, std::mem::take(&mut waiting.charge))
            };
            let bytes: usize = segments.iter().map(Bytes::len).sum();
            self.numbers.frames_out.increment(frames);
            self.numbers.bytes_out.increment(bytes as u64);
            stream.write_all_chunks(&mut segments).await?;
            lock(&self.waiting).unsent -= bytes;
            self.numbers.queue_bytes.decrement(gauged(bytes));
            segments.clear();
            sent(charge);
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let unsent = lock(&self.waiting).unsent;
        self.numbers.queue_bytes.decrement(gauged(unsent));
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "queues are far smaller than 2^52 bytes"
)]
const fn gauged(bytes: usize) -> f64 {
    bytes as f64
}
