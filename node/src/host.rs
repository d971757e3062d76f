//! Runs a pure core as a task: wait, turn it into an action, apply it, carry out what comes out.
//!
//! ```text
//!   calls ───┐                                  ┌── replies
//!   events ──┼── wait ── apply all ── poll all ─┤
//!   clock ───┘      (until nothing waits)       └── effects ── ... ── events
//! ```
//!
//! Everything that waits is applied before anything is polled: so a unit commits all waiting writes at once.
//! What a host holds is bounded: a request counts from its arrival until its answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use milonga_protocol::messages::{CallId, Refusal, Response};
use milonga_protocol::sync::atomic::{AtomicUsize, Ordering};
use milonga_protocol::sync::{Weakness, weakened};
use milonga_protocol::{BoxFuture, SharedEnv, Task, Time};
use milonga_transport::Reply;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// Most actions applied before effects are polled.
const MOST_PER_TURN: usize = 4_096;
/// Most requests that a host holds.
const MOST_REQUESTS: usize = 1 << 16;
/// Most bytes of requests that a host holds.
const MOST_BYTES: usize = 128 << 20;

/// A pure core, as the host sees it.
pub(crate) trait Core: Send + 'static {
    /// What it is asked.
    type Request: Send + 'static;
    /// What it wants done.
    type Effect;
    /// How that ended.
    type Event: Send + 'static;
    /// Its role, for people.
    const ROLE: &'static str;

    fn handle(&mut self, now: Time, call: CallId, request: Self::Request, body: Bytes);
    fn event(&mut self, now: Time, event: Self::Event);
    fn handle_time(&mut self, now: Time);
    fn next_time(&self) -> Option<Time>;
    fn poll(&mut self) -> Option<Output<Self::Effect>>;
    fn facts(&self) -> BTreeMap<String, String>;
}

/// What comes out of a core.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "moved once, from the core to its host"
)]
pub(crate) enum Output<E> {
    Reply(CallId, Response, Bytes),
    Effect(E),
}

/// The way into a host. Calls after the host has stopped are dropped, with their replies.
pub(crate) struct Handle<C: Core> {
    inbox: UnboundedSender<Action<C>>,
    load: Arc<Load>,
}

impl<C: Core> Clone for Handle<C> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            load: Arc::clone(&self.load),
        }
    }
}

type Inspection<C> = Box<dyn FnOnce(&C) + Send>;

enum Action<C: Core> {
    Call(C::Request, Bytes, Pending),
    Inspect(Inspection<C>),
}

/// A request that is held, and the way back.
struct Pending {
    reply: Reply,
    _charge: Charge,
}

#[derive(Debug, Default)]
struct Load {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// A request's share of the load; given back when dropped.
struct Charge {
    load: Arc<Load>,
    bytes: usize,
}

impl Charge {
    fn new(load: &Arc<Load>, bytes: usize) -> Self {
        add(&load.requests, 1);
        add(&load.bytes, bytes);
        Self {
            load: Arc::clone(load),
            bytes,
        }
    }

    fn is_too_much(&self) -> bool {
        self.load.requests.load(Ordering::Relaxed) > MOST_REQUESTS
            || self.load.bytes.load(Ordering::Relaxed) > MOST_BYTES
    }
}

fn add(sum: &AtomicUsize, more: usize) {
    if weakened(Weakness::SplitCount) {
        sum.store(sum.load(Ordering::Acquire) + more, Ordering::Release);
    } else {
        sum.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<C: Core> Handle<C> {
    /// Hands a request of `len` bytes to the core, or refuses it if the host holds too much.
    /// `urgent` requests (sealing and what follows) are never refused here: a reconfiguration must get through.
    pub(crate) fn call(
        &self,
        request: C::Request,
        body: Bytes,
        len: usize,
        urgent: bool,
        reply: Reply,
    ) {
        let charge = Charge::new(&self.load, len);
        if charge.is_too_much() && !urgent {
            metrics::counter!("milonga_node_busy_total", "role" => C::ROLE).increment(1);
            let what = format!(
                "{MOST_REQUESTS} requests or {MOST_BYTES} bytes at this {}",
                C::ROLE
            );
            let refused = Response::Refused(Refusal::Busy { what });
            reply.send(refused.into_message(Bytes::new()));
            return;
        }
        let pending = Pending {
            reply,
            _charge: charge,
        };
        // A stopped host drops the reply, and so the caller learns it.
        let _ = self.inbox.send(Action::Call(request, body, pending));
    }

    /// Looks at the core between two turns. `None` if the host has stopped.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&C) -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let look: Inspection<C> = Box::new(move |core| {
            let _ = sender.send(look(core));
        });
        self.inbox.send(Action::Inspect(look)).ok()?;
        receiver.await.ok()
    }

    /// Facts for the status.
    pub(crate) async fn facts(&self) -> Option<BTreeMap<String, String>> {
        let load = Arc::clone(&self.load);
        let facts = self.inspect(C::facts).await;
        facts.map(|mut facts| {
            let held = load.requests.load(Ordering::Relaxed);
            facts.insert("requests_held".into(), held.to_string());
            facts
        })
    }
}

/// Starts the host of `core`. `events` come from whoever carries out what `effects` is given.
/// The host ends when the task is dropped.
pub(crate) fn start<C: Core>(
    env: &SharedEnv,
    core: C,
    events: UnboundedReceiver<C::Event>,
    effects: impl FnMut(C::Effect) + Send + 'static,
) -> (Handle<C>, Task) {
    let (inbox, actions) = unbounded_channel();
    let handle = Handle {
        inbox,
        load: Arc::default(),
    };
    let host = Host {
        env: Arc::clone(env),
        core,
        effects,
        actions,
        events,
        calls: BTreeMap::new(),
        next_call: 0,
        timer: None,
    };
    let task = env.spawn(C::ROLE, Box::pin(host.run()));
    (handle, task)
}

struct Host<C: Core, F> {
    env: SharedEnv,
    core: C,
    effects: F,
    actions: UnboundedReceiver<Action<C>>,
    events: UnboundedReceiver<C::Event>,
    /// Ordered: when the host ends, callers learn it in a fixed order.
    calls: BTreeMap<CallId, Pending>,
    next_call: u64,
    /// The sleep under way and when it ends: kept while the core wants the same.
    timer: Option<(Time, BoxFuture<'static, ()>)>,
}

impl<C: Core, F: FnMut(C::Effect) + Send + 'static> Host<C, F> {
    async fn run(mut self) {
        loop {
            // What the core wants done when it starts comes first.
            self.carry_out();
            if !self.wait().await {
                return;
            }
            self.drain();
            let now = self.env.now();
            if self.core.next_time().is_some_and(|time| time <= now) {
                self.core.handle_time(now);
            }
        }
    }

    /// Waits for one thing and applies it. `false` when there will be nothing more.
    async fn wait(&mut self) -> bool {
        match (self.core.next_time(), &self.timer) {
            (None, _) => self.timer = None,
            (Some(at), Some((set, _))) if at == *set => {}
            (Some(at), _) => self.timer = Some((at, self.env.sleep_until(at))),
        }
        let timer = async {
            match &mut self.timer {
                Some((_, sleep)) => sleep.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => self.event(event),
            Some(action) = self.actions.recv() => self.apply(action),
            () = timer => self.timer = None,
            else => return false,
        }
        true
    }

    fn drain(&mut self) {
        for _ in 0..MOST_PER_TURN {
            if let Ok(event) = self.events.try_recv() {
                self.event(event);
            } else if let Ok(action) = self.actions.try_recv() {
                self.apply(action);
            } else {
                return;
            }
        }
    }

    fn event(&mut self, event: C::Event) {
        self.core.event(self.env.now(), event);
    }

    fn apply(&mut self, action: Action<C>) {
        match action {
            Action::Call(request, body, pending) => {
                let call = CallId(self.next_call);
                self.next_call += 1;
                self.calls.insert(call, pending);
                self.core.handle(self.env.now(), call, request, body);
            }
            Action::Inspect(look) => look(&self.core),
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Effect(effect) => (self.effects)(effect),
                Output::Reply(call, response, body) => match self.calls.remove(&call) {
                    Some(pending) => pending.reply.send(response.into_message(body)),
                    None => tracing::error!(role = C::ROLE, ?call, "answered twice"),
                },
            }
        }
    }
}

#[cfg(all(test, milonga_loom))]
mod models {
    use milonga_protocol::sync::{explore, find, thread};

    use super::*;

    /// Two requests that together are too much: at most one is let in, and what they held is given back.
    fn charging() {
        let load = Arc::new(Load::default());
        let charge = |load: &Arc<Load>| {
            let charge = Charge::new(load, MOST_BYTES / 2 + 1);
            (!charge.is_too_much()).then_some(charge)
        };
        let other = {
            let load = Arc::clone(&load);
            thread::spawn(move || charge(&load))
        };
        let mine = charge(&load);
        let theirs = other.join().expect("no panic");
        assert!(mine.is_none() || theirs.is_none(), "over the bound");
        drop((mine, theirs));
        let left = (&load.requests, &load.bytes);
        let left = (
            left.0.load(Ordering::Relaxed),
            left.1.load(Ordering::Relaxed),
        );
        assert_eq!(left, (0, 0), "given back");
    }

    #[test]
    fn a_host_holds_no_more_than_its_bound() {
        explore(3, charging);
    }

    #[test]
    fn counting_in_two_steps_is_found() {
        find(Weakness::SplitCount, "over the bound", 3, charging);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use milonga_transport::TokioEnv;

    use super::*;

    /// Answers a request when the effect it asked for ends, or when its time is up.
    #[derive(Default)]
    struct Echo {
        waiting: Vec<(CallId, u64, Time)>,
        out: Vec<Output<u64>>,
        largest_turn: usize,
    }

    impl Core for Echo {
        type Request = u64;
        type Effect = u64;
        type Event = u64;
        const ROLE: &'static str = "echo";

        fn handle(&mut self, now: Time, call: CallId, request: u64, _body: Bytes) {
            self.waiting
                .push((call, request, now.after(Duration::from_secs(1))));
            self.out.push(Output::Effect(request));
            self.largest_turn = self.largest_turn.max(self.out.len());
        }

        fn event(&mut self, _now: Time, event: u64) {
            self.answer(|request, _| request == event);
        }

        fn handle_time(&mut self, now: Time) {
            self.answer(|_, until| until <= now);
        }

        fn next_time(&self) -> Option<Time> {
            self.waiting.iter().map(|(_, _, until)| *until).min()
        }

        fn poll(&mut self) -> Option<Output<u64>> {
            self.out.pop()
        }

        fn facts(&self) -> BTreeMap<String, String> {
            [("waiting".to_owned(), self.waiting.len().to_string())].into()
        }
    }

    impl Echo {
        fn answer(&mut self, which: impl Fn(u64, Time) -> bool) {
            self.waiting.retain(|(call, request, until)| {
                let done = which(*request, *until);
                if done {
                    let response = Response::Refused(Refusal::NotOpen);
                    self.out.push(Output::Reply(*call, response, Bytes::new()));
                }
                !done
            });
        }
    }

    fn reply() -> (Reply, mpsc::Receiver<()>) {
        let (sender, receiver) = mpsc::channel();
        let send = move |_| {
            let _ = sender.send(());
        };
        (Reply::new(send), receiver)
    }

    #[tokio::test(start_paused = true)]
    async fn effects_events_timers_and_inspections_reach_the_core() {
        let env: SharedEnv = TokioEnv::new();
        let (events, receiver) = unbounded_channel();
        let (echo, _task) = start(&env, Echo::default(), receiver, move |effect| {
            // Odd ones never end.
            if effect % 2 == 0 {
                let _ = events.send(effect);
            }
        });
        let mut answers = Vec::new();
        for request in 0..100 {
            let (reply, answer) = reply();
            echo.call(request, Bytes::new(), 8, false, reply);
            answers.push(answer);
        }
        let waiting = echo.inspect(|core| core.largest_turn).await;
        assert_eq!(
            waiting,
            Some(100),
            "all that waits is applied before effects are polled"
        );
        env.sleep(Duration::from_millis(500)).await;
        let answered = answers.iter().filter(|a| a.try_recv().is_ok()).count();
        assert_eq!(answered, 50);
        let facts = echo.facts().await.unwrap();
        assert_eq!((&*facts["waiting"], &*facts["requests_held"]), ("50", "50"));
        env.sleep(Duration::from_millis(501)).await;
        let answered = answers.iter().filter(|a| a.try_recv().is_ok()).count();
        assert_eq!(answered, 50, "the timer answers the rest");
    }

    #[tokio::test]
    async fn what_a_host_holds_is_bounded_but_urgent_requests_get_through() {
        let env: SharedEnv = TokioEnv::new();
        let (_events, receiver) = unbounded_channel();
        let (echo, task) = start(&env, Echo::default(), receiver, |_| {});
        let (first, first_answer) = reply();
        echo.call(1, Bytes::new(), MOST_BYTES, false, first);
        let (second, second_answer) = reply();
        echo.call(3, Bytes::new(), 1, false, second);
        assert!(second_answer.try_recv().is_ok(), "refused at once");
        let (urgent, urgent_answer) = reply();
        echo.call(5, Bytes::new(), 1, true, urgent);
        assert_eq!(echo.inspect(|core| core.waiting.len()).await, Some(2));
        assert!(first_answer.try_recv().is_err() && urgent_answer.try_recv().is_err());
        drop(task);
        while echo.inspect(|_| ()).await.is_some() {
            env.sleep(Duration::from_millis(1)).await;
        }
        let held = echo.load.requests.load(Ordering::Relaxed);
        assert_eq!(held, 0, "a stopped host gives back what it held");
    }
}
