//! Appends: grouped, pipelined, exactly once.
//!
//! ```text
//! callers -> queue -> group --Tokens--> sequencer
//!                       |
//!                       +-- part (chain 0) --Write--> head --Write--> ... --Write--> tail -> its callers
//!                       +-- part (chain 1) --Write--> head ...
//! ```
//!
//! While fewer than `groups_in_flight` groups are under way an append leaves at once; else those that wait make up
//! the next group. Everything after the queue runs in tasks of the client, so a dropped future cancels nothing. No
//! token is taken without an entry in hand.

mod batch;
mod drive;
mod outcome;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::future::join_all;
use milonga_protocol::messages::{SequencerRequest, SequencerResponse, Token};
use milonga_protocol::{AppendError, Appended, EntryId, NewEntry, Time, WriterId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

use crate::cluster::{Cluster, View, garbage};
use crate::read::Reader;
use crate::retry::{Backoff, Failure, Remedy, millis, pause};
use crate::tasks::Tasks;
use batch::{Caller, Item, Part, Queue, Waiting};

/// The appends of one client.
pub(crate) struct Appender {
    pub(crate) writer: WriterId,
    cluster: Arc<Cluster>,
    reader: Arc<Reader>,
    tasks: Arc<Tasks>,
    sequence: AtomicU64,
    queue: Mutex<Queue>,
    /// The queue or its slots have changed.
    wake: Notify,
    room: Room,
    closing: AtomicBool,
}

/// Bounds the bytes under way and, because every entry costs at least its share, their number.
struct Room {
    permits: Arc<Semaphore>,
    total: u32,
    least: u32,
}

/// A group's place among those under way; freed when its parts are done or go on without callers.
struct Slot(Arc<Appender>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().free_slot();
        self.0.wake.notify_one();
    }
}

impl Appender {
    pub(crate) fn new(cluster: Arc<Cluster>, reader: Arc<Reader>, tasks: Arc<Tasks>) -> Arc<Self> {
        let options = &cluster.options;
        // The semaphore counts in u32.
        let total = u32::try_from(options.in_flight_bytes).unwrap_or(u32::MAX);
        let total = total.clamp(1, u32::MAX >> 3);
        let entries = u32::try_from(options.in_flight_entries).unwrap_or(u32::MAX);
        Arc::new(Self {
            writer: WriterId(cluster.env.random_id()),
            sequence: AtomicU64::new(1),
            queue: Mutex::new(Queue::new(options)),
            wake: Notify::new(),
            room: Room {
                permits: Arc::new(Semaphore::new(total as usize)),
                total,
                least: (total / entries.max(1)).max(1),
            },
            closing: AtomicBool::new(false),
            cluster,
            reader,
            tasks,
        })
    }

    /// Appends one entry; see [`milonga_protocol::Log::append`].
    pub(crate) async fn append(self: Arc<Self>, entry: NewEntry) -> Result<Appended, AppendError> {
        batch::check(&entry, &self.cluster.limits())?;
        let since = self.cluster.env.now();
        let deadline = since.after(self.cluster.options.deadline);
        let permit = self.permit(entry.payload.len(), since, deadline).await?;
        let (answer, answered) = oneshot::channel();
        let caller = Caller::new(answer, permit, since, deadline, self.writer);
        self.lock().push(Waiting { entry, caller });
        self.wake.notify_one();
        // Whoever drops the sender unanswered has not written anything.
        answered.await.unwrap_or(Err(AppendError::Closed))
    }

    async fn permit(
        &self,
        bytes: usize,
        since: Time,
        deadline: Time,
    ) -> Result<OwnedSemaphorePermit, AppendError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(AppendError::Closed);
        }
        let cost = u32::try_from(bytes).unwrap_or(u32::MAX);
        let cost = cost.max(self.room.least).min(self.room.total);
        match Arc::clone(&self.room.permits).try_acquire_many_owned(cost) {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(AppendError::Closed),
            Err(TryAcquireError::NoPermits) => {}
        }
        tokio::select! {
            biased;
            permit = Arc::clone(&self.room.permits).acquire_many_owned(cost) => {
                permit.map_err(|_| AppendError::Closed)
            }
            () = self.cluster.env.sleep_until(deadline) => Err(AppendError::Unavailable {
                what: "room among the appends under way".into(),
                waited_ms: millis(deadline.since(since)),
            }),
        }
    }

    /// Takes no more appends and waits until those under way are done, at most until `deadline`.
    pub(crate) async fn flush(&self, deadline: Time) {
        self.closing.store(true, Ordering::Release);
        tokio::select! {
            biased;
            _ = self.room.permits.acquire_many(self.room.total) => {}
            () = self.cluster.env.sleep_until(deadline) => {
                tracing::debug!("closed with appends under way");
            }
        }
        self.room.permits.close();
    }

    /// Takes no more appends; those in the queue are answered `Closed`.
    pub(crate) fn stop(&self) {
        self.closing.store(true, Ordering::Release);
        self.room.permits.close();
        let empty = Queue::new(&self.cluster.options);
        let queue = std::mem::replace(&mut *self.lock(), empty);
        // Outside the lock: whoever is dropped here wakes its caller.
        drop(queue);
    }

    /// Starts groups as slots come free; runs until it is dropped.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let expiry = self.lock().next_deadline();
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = self.sleep_until(expiry) => {}
            }
            // Appends that are about to be submitted belong to the same group: they cost it nothing.
            ready_tasks_first().await;
            self.expire_queue();
            loop {
                let Some(group) = self.lock().take_group(&self.cluster.options) else {
                    break;
                };
                let slot = Slot(Arc::clone(&self));
                let appender = Arc::clone(&self);
                self.tasks.spawn("append group", async move {
                    appender.run_group(group, slot).await;
                });
            }
        }
    }

    async fn sleep_until(&self, time: Option<Time>) {
        match time {
            Some(time) => self.cluster.env.sleep_until(time).await,
            None => std::future::pending().await,
        }
    }

    fn expire_queue(&self) {
        let now = self.cluster.env.now();
        let expired = self.lock().take_expired(now);
        for mut waiting in expired {
            waiting.caller.unavailable("appends before this one", now);
        }
    }

    async fn run_group(self: Arc<Self>, mut group: Vec<Waiting>, slot: Slot) {
        let Some((view, tokens)) = self.tokens(&mut group).await else {
            return;
        };
        let slot = Arc::new(slot);
        let parts = self.split(view, group, tokens);
        let mut parts: Vec<_> = parts
            .into_iter()
            .map(|part| self.drive(part, Arc::clone(&slot)))
            .collect();
        drop(slot);
        match parts.pop() {
            Some(only) if parts.is_empty() => only.await,
            Some(last) => {
                parts.push(last);
                join_all(parts).await;
            }
            None => {}
        }
    }

    /// One token for each of the group; members whose deadline passes meanwhile are told and leave it.
    async fn tokens(&self, group: &mut Vec<Waiting>) -> Option<(Arc<View>, Vec<Token>)> {
        let mut backoff = Backoff::default();
        let mut what = String::from("tokens");
        loop {
            let now = self.cluster.env.now();
            group.retain_mut(|waiting| {
                let alive = waiting.caller.deadline > now;
                if !alive {
                    waiting.caller.unavailable(&what, now);
                }
                alive
            });
            let deadline = group.iter().map(|waiting| waiting.caller.deadline).min()?;
            let view = self.cluster.view();
            let failure = match self.ask_tokens(&view, group, deadline).await {
                Ok(Granted {
                    tokens,
                    refused,
                    limit,
                }) => {
                    refuse(group, &refused, limit);
                    return Some((view, tokens));
                }
                Err(failure) => failure,
            };
            what = failure.to_string();
            if failure.remedy() == Remedy::GiveUp {
                let now = self.cluster.env.now();
                for waiting in group {
                    waiting.caller.unavailable(&what, now);
                }
                return None;
            }
            pause(
                &self.cluster,
                &failure,
                view.epoch(),
                &mut backoff,
                deadline,
            )
            .await;
        }
    }

    async fn ask_tokens(
        &self,
        view: &View,
        group: &[Waiting],
        deadline: Time,
    ) -> Result<Granted, Failure> {
        let wants = group.iter().map(|waiting| waiting.entry.streams.clone());
        let request = SequencerRequest::Tokens {
            epoch: view.epoch(),
            wants: wants.collect(),
        };
        let deadline = self.cluster.call_deadline(deadline);
        let granted = match self.cluster.sequencer(view, request, deadline).await? {
            SequencerResponse::Tokens(tokens) => Granted {
                tokens,
                refused: Vec::new(),
                limit: 0,
            },
            SequencerResponse::SomeTokens {
                tokens,
                refused,
                limit,
            } => Granted {
                tokens,
                refused,
                limit,
            },
            _ => return Err(garbage(view.sequencer(), "no tokens")),
        };
        let Granted {
            tokens, refused, ..
        } = &granted;
        let known = |index: &u32| (*index as usize) < group.len();
        let fits = tokens.len() + refused.len() == group.len()
            && refused.iter().all(known)
            && refused.is_sorted_by(|a, b| a < b)
            && tokens.iter().all(|t| !view.layout().is_closed(t.position));
        if fits {
            Ok(granted)
        } else {
            Err(garbage(view.sequencer(), "other tokens than asked for"))
        }
    }

    /// Gives each of the group its token and its entry id, and sorts them by chain.
    fn split(&self, view: Arc<View>, group: Vec<Waiting>, tokens: Vec<Token>) -> Vec<Part> {
        let granted = self.cluster.env.now();
        let options = &self.cluster.options;
        let finish_by = granted.after(options.deadline).after(options.background);
        let first = self
            .sequence
            .fetch_add(group.len() as u64, Ordering::Relaxed);
        // A valid layout's last segment begins at or below the epoch's start, and every token lies above that.
        let segment = &view.layout().segments[view.last_segment()];
        let share = group.len() / segment.chains.len() + 1;
        let mut parts: Vec<Part> = (0..segment.chains.len())
            .map(|chain| Part {
                view: Arc::clone(&view),
                chain,
                items: Vec::with_capacity(share),
                granted,
                finish_by,
            })
            .collect();
        for ((waiting, token), sequence) in group.into_iter().zip(tokens).zip(first..) {
            let chain = segment.chain_of(token.position);
            let id = EntryId {
                writer: self.writer,
                sequence,
            };
            parts[chain].items.push(Item::new(waiting, token, id));
        }
        parts.retain(|part| !part.items.is_empty());
        parts
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change is complete before anything can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the sequencer gave a group.
struct Granted {
    tokens: Vec<Token>,
    /// Indexes of those that would begin one stream too many.
    refused: Vec<u32>,
    limit: u64,
}

/// Tells the refused ones, which leave the group.
fn refuse(group: &mut Vec<Waiting>, refused: &[u32], limit: u64) {
    let mut refused = refused.iter().copied().peekable();
    let mut index = 0;
    group.retain_mut(|waiting| {
        let stays = refused.next_if_eq(&index).is_none();
        index += 1;
        if !stays {
            let error = AppendError::StreamLimit { limit };
            waiting.caller.answer(Err(error));
        }
        stays
    });
}

/// Lets every task that is ready now run before this one goes on. No delay if there is none.
async fn ready_tasks_first() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
