//! Who shares a tail check. Knows no server and no clock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use milonga_protocol::sync::{Mutex, MutexGuard, Notify, OnceLock, Weakness, weakened};
use milonga_protocol::{LogError, StreamId, Tail, TailOf, Time, Written};

/// Callers, collected for one check after the other.
#[derive(Default)]
pub(super) struct Sharing {
    state: Mutex<State>,
    /// There is a generation to run.
    wanted: Notify,
}

#[derive(Default)]
struct State {
    collecting: Option<Arc<Generation>>,
    running: Option<Arc<Generation>>,
    closed: bool,
}

/// Callers that share one check.
pub(super) struct Generation {
    /// The earliest call's: nobody waits longer.
    pub(super) deadline: Time,
    wishes: Mutex<Wishes>,
    /// In the order of [`Wishes::streams`].
    answer: OnceLock<Result<Tail, LogError>>,
    answered: Notify,
}

/// The streams of all callers, one list behind the other; equal lists are there once.
#[derive(Default)]
struct Wishes {
    offsets: BTreeMap<Arc<[StreamId]>, usize>,
    streams: Vec<StreamId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sharing {
    /// The answer to a check that begins after this call.
    pub(super) async fn answer(
        &self,
        of: &TailOf,
        deadline: impl FnOnce() -> Time,
    ) -> Result<Tail, LogError> {
        let (generation, at, count) = self.join(of, deadline)?;
        loop {
            let answered = generation.answered.notified();
            tokio::pin!(answered);
            // From here on the answer is not missed.
            answered.as_mut().enable();
            if let Some(answer) = generation.answer.get() {
                let answer = answer.as_ref().map_err(Clone::clone)?;
                return Ok(part_of(answer, at..at + count));
            }
            answered.await;
        }
    }

    /// Joins the generation that collects; says where in its answer the caller's streams are.
    fn join(
        &self,
        of: &TailOf,
        deadline: impl FnOnce() -> Time,
    ) -> Result<(Arc<Generation>, usize, usize), LogError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(LogError::Closed);
        }
        let sent = state.running.clone();
        let sent = sent.filter(|_| weakened(Weakness::JoinSentChecks));
        let generation = match sent.as_ref().or(state.collecting.as_ref()) {
            Some(generation) => Arc::clone(generation),
            None => {
                let generation = Arc::new(Generation {
                    deadline: deadline(),
                    wishes: Mutex::default(),
                    answer: OnceLock::new(),
                    answered: Notify::new(),
                });
                state.collecting = Some(Arc::clone(&generation));
                self.wanted.notify_one();
                generation
            }
        };
        // Under the state's lock: a generation that runs collects no more.
        let (at, count) = match of {
            TailOf::Streams(streams) => (lock(&generation.wishes).add(streams), streams.len()),
            _ => (0, 0),
        };
        Ok((generation, at, count))
    }

    /// Waits for callers. Who they are, and the streams that they ask about.
    pub(super) async fn next(&self) -> (Arc<Generation>, Vec<StreamId>) {
        loop {
            self.wanted.notified().await;
            let generation = {
                let mut state = lock(&self.state);
                state.running = state.collecting.take();
                state.running.clone()
            };
            if let Some(generation) = generation {
                let streams = std::mem::take(&mut lock(&generation.wishes).streams);
                return (generation, streams);
            }
        }
    }

    /// The check that [`Self::next`] asked for has ended.
    pub(super) fn answered(&self, generation: &Generation, answer: Result<Tail, LogError>) {
        generation.finish(answer);
        lock(&self.state).running = None;
    }

    /// Ends all waiting, now and later.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let generations = [state.collecting.take(), state.running.take()];
        drop(state);
        for generation in generations.into_iter().flatten() {
            generation.finish(Err(LogError::Closed));
        }
    }
}

impl Generation {
    fn finish(&self, answer: Result<Tail, LogError>) {
        // Only the first answer counts: closing may come in between.
        let _ = self.answer.set(answer);
        self.answered.notify_waiters();
    }
}

impl Wishes {
    fn add(&mut self, streams: &Arc<[StreamId]>) -> usize {
        if let Some(offset) = self.offsets.get(streams) {
            return *offset;
        }
        let offset = self.streams.len();
        self.streams.extend_from_slice(streams);
        self.offsets.insert(Arc::clone(streams), offset);
        offset
    }
}

/// What one caller asked of what all asked.
fn part_of(tail: &Tail, streams: Range<usize>) -> Tail {
    let mut part = Tail::new(
        tail.epoch,
        tail.next,
        tail.trimmed,
        tail.streams[streams.clone()].to_vec(),
    );
    part.written = tail.written.as_ref().map(|written| Written {
        log: written.log,
        streams: written.streams[streams].to_vec(),
    });
    part
}

#[cfg(all(test, milonga_loom))]
mod models {
    use milonga_protocol::sync::atomic::{AtomicU64, Ordering};
    use milonga_protocol::sync::{block_on, explore, find, thread};
    use milonga_protocol::{BackPointers, Epoch, ListEnd, Position};

    use super::*;

    fn of(stream: u64) -> TailOf {
        TailOf::Streams(Arc::from([StreamId(stream)]))
    }

    /// Two ask, one of them after it has written; checks are made until the client closes.
    fn sharing() {
        let sharing = Arc::new(Sharing::default());
        let written = Arc::new(AtomicU64::new(0));
        let checker = {
            let (sharing, written) = (sharing.clone(), written.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let (generation, streams) = block_on(sharing.next());
                    let end = Position(written.load(Ordering::Acquire));
                    let list = |stream: &StreamId| {
                        BackPointers::new([Position(stream.0)], ListEnd::Unknown)
                    };
                    let lists = streams.iter().map(list).collect();
                    let tail = Tail::new(Epoch(1), end, Position::ZERO, lists);
                    sharing.answered(&generation, Ok(tail));
                    if streams.len() == 2 {
                        return;
                    }
                }
            })
        };
        let other = {
            let sharing = sharing.clone();
            thread::spawn(move || {
                let tail = block_on(sharing.answer(&of(16), Time::default)).expect("open");
                let last = tail.streams[0].last();
                assert_eq!(last, Some(Position(16)), "another's answer");
            })
        };
        written.store(5, Ordering::Release);
        let tail = block_on(sharing.answer(&of(18), Time::default)).expect("open");
        assert_eq!(
            tail.streams[0].last(),
            Some(Position(18)),
            "another's answer"
        );
        assert_eq!(
            tail.next,
            Position(5),
            "a check from before it was asked for"
        );
        other.join().expect("no panic");
        checker.join().expect("no panic");
        sharing.close();
        let closed = block_on(sharing.answer(&of(18), Time::default));
        assert_eq!(closed, Err(LogError::Closed));
    }

    #[test]
    fn everybody_gets_an_answer_from_after_the_question() {
        explore(2, sharing);
    }

    #[test]
    fn a_checker_that_is_not_woken_is_found() {
        find(Weakness::NoPermits, "deadlock", 2, sharing);
    }

    #[test]
    fn joining_a_check_that_was_sent_is_found() {
        // What was asked for is not in that check's answer.
        find(Weakness::JoinSentChecks, "another's answer", 2, sharing);
    }

    /// The client closes while somebody asks and the check ends.
    fn closing() {
        let sharing = Arc::new(Sharing::default());
        let closer = {
            let sharing = sharing.clone();
            thread::spawn(move || sharing.close())
        };
        let answer = block_on(sharing.answer(&of(16), Time::default));
        assert_eq!(answer, Err(LogError::Closed));
        closer.join().expect("no panic");
    }

    #[test]
    fn closing_ends_every_wait() {
        explore(3, closing);
    }

    #[test]
    fn waiting_behind_the_look_is_found() {
        find(Weakness::LateWaiters, "deadlock", 3, closing);
    }
}
