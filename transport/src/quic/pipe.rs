//! What waits to be sent on one stream.

use bytes::{Bytes, BytesMut};
use milonga_protocol::frame::{FrameError, FrameKind, Message, write, write_head};
use milonga_protocol::sync::{Mutex, Notify, Weakness, weakened};
use quinn::{SendStream, WriteError};

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
        if weakened(Weakness::WakeBeforePush) {
            self.ready.notify_one();
        }
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
        if first && !weakened(Weakness::WakeBeforePush) {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Waits for frames and takes them all: into `segments`, which is empty. How many they are, and their charge.
    async fn take(&self, segments: &mut Vec<Bytes>) -> (u64, usize) {
        self.ready.notified().await;
        let mut waiting = lock(&self.waiting);
        waiting.seal_tail();
        std::mem::swap(segments, &mut waiting.segments);
        let frames = std::mem::take(&mut waiting.frames);
        (frames, std::mem::take(&mut waiting.charge))
    }

    /// Sends what waits, all of it at once, and says how much of the charge that was. Ends with the stream.
    pub(super) async fn run(
        &self,
        mut stream: SendStream,
        sent: impl Fn(usize),
    ) -> Result<(), WriteError> {
        let mut segments = Vec::new();
        loop {
            let (frames, charge) = self.take(&mut segments).await;
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

#[cfg(all(test, milonga_loom))]
mod models {
    use std::sync::Arc;

    use milonga_protocol::sync::{block_on, explore, find, thread};

    use super::*;

    /// Two push, the writer takes: it is woken for every frame that it has not taken.
    fn pushing() {
        let pipe = Arc::new(Pipe::new(Numbers::new("model")));
        let writer = {
            let pipe = pipe.clone();
            thread::spawn(move || {
                let (mut frames, mut charge) = (0, 0);
                while frames < 2 {
                    let (more, cost) = block_on(pipe.take(&mut Vec::new()));
                    frames += more;
                    charge += cost;
                }
                assert_eq!((frames, charge), (2, 30));
            })
        };
        let push = |pipe: &Pipe, charge| {
            let message = Message::default();
            pipe.push(FrameKind::Request, 1, &message, charge)
                .expect("small");
        };
        let other = {
            let pipe = pipe.clone();
            thread::spawn(move || push(&pipe, 10))
        };
        push(&pipe, 20);
        other.join().expect("no panic");
        writer.join().expect("no panic");
    }

    #[test]
    fn every_frame_is_taken() {
        explore(3, pushing);
    }

    #[test]
    fn waking_before_the_frame_is_there_is_found() {
        find(Weakness::WakeBeforePush, "deadlock", 3, pushing);
    }

    #[test]
    fn a_wake_up_that_is_not_kept_is_found() {
        find(Weakness::NoPermits, "deadlock", 3, pushing);
    }
}
