//! The conformance suite of the [`Network`] contract, for every implementation.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "tests: a panic is a failure, tasks are joined, patterns may wrap"
)]

pub(crate) mod checks;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use milonga_protocol::env::{BoxFuture, SharedEnv};
use milonga_protocol::frame::Message;
use milonga_transport::{CallError, Caller, Network, Peer, Reply, Service, SharedNetwork};

/// A network and how to start servers in it.
pub(crate) trait NetworkUnderTest: Send + Sync + 'static {
    fn env(&self) -> SharedEnv;
    /// The `n`-th client, named `client-N`.
    fn client(&self, n: usize) -> SharedNetwork;
    /// Where the `n`-th server is or will be; named `server-N`.
    fn peer(&self, n: usize) -> Peer;
    /// Starts the `n`-th server.
    fn serve(&self, n: usize, service: Arc<dyn Service>) -> BoxFuture<'_, Running>;
}

/// A running server.
pub(crate) struct Running(pub(crate) Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>);

impl Running {
    pub(crate) async fn stop(self) {
        (self.0)().await;
    }
}

/// A service that does what the header says.
#[derive(Default)]
pub(crate) struct Toy {
    pub(crate) handled: AtomicUsize,
    held: Mutex<Vec<(Message, Reply)>>,
}

impl Toy {
    pub(crate) fn handled(&self) -> usize {
        self.handled.load(Ordering::SeqCst)
    }

    /// Answers what it held back.
    pub(crate) fn release(&self) {
        for (request, reply) in self.held.lock().unwrap().drain(..) {
            reply.send(request);
        }
    }
}

impl Service for Toy {
    fn handle(&self, from: &Caller, request: Message, reply: Reply) {
        self.handled.fetch_add(1, Ordering::SeqCst);
        match &request.header[..] {
            b"drop" => drop(reply),
            b"hold" => self.held.lock().unwrap().push((request, reply)),
            b"who" => reply.send(message("who", format!("{} {:?}", from.name, from.role))),
            b"grow" => {
                let len = String::from_utf8_lossy(&request.body).parse().unwrap();
                reply.send(message("grown", vec![7; len]));
            }
            _ => reply.send(request),
        }
    }
}

pub(crate) fn message(header: &str, body: impl Into<Bytes>) -> Message {
    Message {
        header: Bytes::copy_from_slice(header.as_bytes()),
        body: body.into(),
    }
}

/// What a check works with: a network with one server that runs.
pub(crate) struct World {
    pub(crate) under: Arc<dyn NetworkUnderTest>,
    pub(crate) env: SharedEnv,
    pub(crate) client: SharedNetwork,
    pub(crate) toy: Arc<Toy>,
    pub(crate) _server: Running,
}

impl World {
    pub(crate) async fn new(under: Arc<dyn NetworkUnderTest>) -> Self {
        let toy = Arc::new(Toy::default());
        Self {
            env: under.env(),
            client: under.client(0),
            _server: under.serve(0, toy.clone()).await,
            toy,
            under,
        }
    }

    pub(crate) async fn call(&self, request: Message) -> Result<Message, CallError> {
        self.call_within(Duration::from_secs(20), request).await
    }

    pub(crate) async fn call_within(
        &self,
        time: Duration,
        request: Message,
    ) -> Result<Message, CallError> {
        call(&self.client, &self.under.peer(0), &self.env, time, request).await
    }
}

pub(crate) async fn call(
    network: &Arc<dyn Network>,
    to: &Peer,
    env: &SharedEnv,
    time: Duration,
    request: Message,
) -> Result<Message, CallError> {
    network.call(to, request, env.now().after(time)).await
}

/// Runs one check in a world of its own, within a time limit.
pub(crate) async fn run<F>(under: impl NetworkUnderTest, check: impl FnOnce(World) -> F)
where
    F: Future<Output = ()>,
{
    let world = World::new(Arc::new(under)).await;
    let env = world.env.clone();
    tokio::select! {
        biased;
        () = check(world) => {}
        () = env.sleep(Duration::from_secs(60)) => panic!("took too long"),
    }
}

macro_rules! conformance {
    ($make:ident; $($name:ident,)*) => {
        $(mod $name {
            use crate::suite::{checks::$name, run};

            #[tokio::test]
            async fn on_one_thread() {
                run(super::$make(), $name).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_two_threads() {
                run(super::$make(), $name).await;
            }
        })*
    };
    ($make:ident) => {
        conformance! {
            $make;
            a_request_is_answered,
            many_requests_are_answered_each_with_its_own,
            each_request_is_served_once,
            a_call_ends_at_its_deadline,
            a_deadline_in_the_past_sends_nothing,
            nothing_is_sent_before_the_first_poll,
            a_dropped_reply_fails_the_call,
            a_dropped_call_disturbs_nobody,
            a_late_answer_reaches_nobody_else,
            an_absent_server_is_unreachable,
            a_server_that_stops_fails_its_calls_and_comes_back,
            the_caller_is_known,
            large_bodies_travel_beside_small_calls,
            what_does_not_fit_a_frame_is_refused,
            clients_and_servers_do_not_disturb_each_other,
            a_service_that_does_not_answer_is_not_flooded,
        }
    };
}
pub(crate) use conformance;
