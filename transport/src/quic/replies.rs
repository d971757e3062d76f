//! The way back to a caller, and the bounds on what a connection makes this process hold.

use std::array;
use std::sync::Arc;

use milonga_protocol::frame::{FrameKind, Message, check_size};
use milonga_protocol::sync::{
    Notify, Weakness,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    weakened,
};

use super::numbers::{Numbers, reply_dropped};
use super::pipe::Pipe;
use super::settings::{BULK_BYTES, CALL_STREAMS};
use crate::bounds::{Bounds, cost_of};
use crate::network::Reply;

/// What goes back to a caller. A service may keep the way back for long, so nothing here keeps the connection or
/// its socket.
pub(super) struct Replies {
    load: Load,
    /// Nobody reads what would be queued.
    closed: AtomicBool,
    most_queued: usize,
    /// One for each stream of calls, in the order in which they came; the last one is for large responses.
    pipes: [Pipe; CALL_STREAMS + 1],
}

impl Replies {
    pub(super) fn new(bounds: &Bounds, numbers: &Numbers) -> Self {
        Self {
            load: Load::new(bounds.in_flight_bytes),
            closed: AtomicBool::new(false),
            most_queued: bounds.reply_bytes,
            pipes: array::from_fn(|_| Pipe::new(numbers.clone())),
        }
    }

    /// The way back for a request that has come on `lane`. It counts as being worked on until that is used or
    /// dropped.
    pub(super) fn reply(self: &Arc<Self>, lane: usize, call: u64, request: &Message) -> Reply {
        let cost = cost_of(request);
        self.load.begin(cost);
        let ticket = Ticket {
            replies: self.clone(),
            lane,
            call,
            cost,
            answered: false,
        };
        Reply::new(move |response| ticket.answer(&response))
    }

    /// Waits until the connection holds less than its bound.
    pub(super) async fn room(&self) {
        if self.load.is_full() {
            self.load.room().await;
        }
    }

    /// What waits to be sent on `lane`.
    pub(super) const fn pipe(&self, lane: usize) -> &Pipe {
        &self.pipes[lane]
    }

    /// That much was sent.
    pub(super) fn sent(&self, bytes: usize) {
        self.load.sent(bytes);
    }

    /// The connection is gone.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Queues an answer, or the news that there will be none: nobody can wait here, so the bound is kept by
    /// dropping.
    fn answer(&self, lane: usize, call: u64, response: Option<&Message>) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let fits =
            |response: &&Message| match check_size(response.header.len(), response.body.len()) {
                Ok(()) => self.load.queued() + response.len() <= self.most_queued,
                Err(error) => {
                    tracing::error!(%error, "response dropped");
                    false
                }
            };
        let dropped = Message::default();
        let (kind, message) = match response.filter(fits) {
            Some(response) => (FrameKind::Response, response),
            None => {
                reply_dropped();
                (FrameKind::Dropped, &dropped)
            }
        };
        let lane = if message.body.len() > BULK_BYTES {
            CALL_STREAMS
        } else {
            lane
        };
        self.load.queue(message.len());
        self.pipes[lane]
            .push(kind, call, message, message.len())
            .expect("the size was checked");
    }
}

/// The way back of one request.
struct Ticket {
    replies: Arc<Replies>,
    lane: usize,
    call: u64,
    cost: usize,
    answered: bool,
}

impl Ticket {
    fn answer(mut self, response: &Message) {
        self.answered = true;
        self.replies.answer(self.lane, self.call, Some(response));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.replies.answer(self.lane, self.call, None);
        }
        self.replies.load.end(self.cost);
    }
}

/// Bytes that a connection makes this process hold: requests being worked on and replies that wait to be sent.
struct Load {
    limit: usize,
    held: AtomicUsize,
    queued: AtomicUsize,
    room: Notify,
}

impl Load {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            room: Notify::new(),
        }
    }

    fn begin(&self, cost: usize) {
        self.held.fetch_add(cost, Ordering::Relaxed);
    }

    fn end(&self, cost: usize) {
        let before = self.held.fetch_sub(cost, Ordering::AcqRel);
        let room = if weakened(Weakness::RoomByLast) {
            before == cost
        } else {
            before >= self.limit && before - cost < self.limit
        };
        if room {
            self.room.notify_waiters();
        }
    }

    fn queue(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        self.begin(bytes);
    }

    fn sent(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.end(bytes);
    }

    fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.held.load(Ordering::Acquire) >= self.limit
    }

    /// Waits until there is less than the limit.
    async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // From here on a notification is not missed.
            room.as_mut().enable();
            if !self.is_full() {
                return;
            }
            room.await;
        }
    }
}

#[cfg(all(test, milonga_loom))]
mod models {
    use milonga_protocol::sync::{block_on, explore, find, thread};

    use super::*;

    /// A reader waits for room while two requests end and a reply is queued and stays.
    fn room() {
        let load = Arc::new(Load::new(10));
        load.begin(6);
        load.begin(6);
        let ends = [0, 1].map(|nth| {
            let load = Arc::clone(&load);
            thread::spawn(move || {
                if nth == 0 {
                    load.queue(5);
                }
                load.end(6);
            })
        });
        block_on(load.room());
        for end in ends {
            end.join().expect("no panic");
        }
        assert!(!load.is_full());
        assert_eq!(load.held.load(Ordering::Acquire), 5);
        load.sent(5);
        assert_eq!(load.queued(), 0);
    }

    #[test]
    fn whoever_waits_for_room_is_told_of_it() {
        explore(3, room);
    }

    #[test]
    fn a_wait_without_a_second_look_is_found() {
        find(Weakness::LateWaiters, "deadlock", 3, room);
    }

    #[test]
    fn room_that_only_the_last_one_tells_of_is_found() {
        find(Weakness::RoomByLast, "deadlock", 3, room);
    }
}
