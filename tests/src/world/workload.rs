//! What clients do, and what has to hold: the two traits that the rest plugs in through.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use milonga_client::{ClientOptions, ConnectError, LogClient};
use milonga_objects::{Replica, ReplicaOptions};
use milonga_protocol::{BoxFuture, ServerName, SharedEnv};
use milonga_transport::{Peer, SharedNetwork};

use crate::world::executor::{Executor, ProcessId};
use crate::world::journal::{Journal, Observed, Operation, OperationId, Outcome, Pages};
use crate::world::network::Wire;
use crate::world::rng::Rng;
use crate::world::trace::Moment;

/// What the clients of a world do.
pub trait Workload: fmt::Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// The life of one client process: works until [`Client::is_over`], then does once more whatever must be
    /// possible in a healthy cluster, and returns. A client that does not return in time breaks liveness. It is
    /// started anew, with a larger [`Client::run`], after it was killed.
    fn client(&self, client: Client) -> BoxFuture<'static, ()>;

    /// What has to hold of it, beyond what holds of every world.
    fn invariants(&self) -> Vec<Box<dyn Invariant>> {
        Vec::new()
    }
}

/// Something that has to hold, always. One for each world: it keeps what it has seen.
pub trait Invariant: fmt::Debug + Send {
    /// Its name, such as `I2 acknowledged is readable`.
    fn name(&self) -> &'static str;

    /// The paper's section, the rule or the issue it comes from.
    fn source(&self) -> &'static str;

    /// Looks at what happened since the last call; called again and again while the world runs.
    ///
    /// # Errors
    /// [`Violation`] says what was seen.
    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation>;

    /// Called once, when the world has ended in peace.
    ///
    /// # Errors
    /// [`Violation`] says what was seen.
    fn check_end(&mut self, _view: &WorldView<'_>) -> Result<(), Violation> {
        Ok(())
    }
}

/// What was seen that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// The world between two steps.
#[derive(Debug)]
pub struct WorldView<'a> {
    /// The time.
    pub now: Moment,
    /// What happened since the last look, in order.
    pub news: &'a [Observed],
    /// The requests among it with their answers, taken apart.
    pub wire: &'a Wire,
    /// All operations so far.
    pub pages: &'a Pages,
    /// The servers and their disks.
    pub cluster: &'a crate::world::cluster::Cluster,
    /// Whether everything has healed.
    pub healed: bool,
}

/// One run of one client process: what a workload works with.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inside>);

#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) name: ServerName,
    pub(crate) number: usize,
    pub(crate) run: u64,
    pub(crate) executor: Executor,
    pub(crate) process: ProcessId,
    pub(crate) env: EnvOf,
    pub(crate) network: NetworkOf,
    pub(crate) layout: Vec<Peer>,
    pub(crate) options: ClientOptions,
    pub(crate) pace: Duration,
    pub(crate) journal: Journal,
    pub(crate) healed: Arc<AtomicBool>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) rng: Mutex<Rng>,
}

/// What the clients of a world share outside of the system under test: plain numbers, for workloads that need them.
#[derive(Debug, Default)]
pub struct Shared {
    numbers: [AtomicU64; 8],
}

impl Shared {
    /// Number `which`.
    #[must_use]
    pub fn get(&self, which: usize) -> u64 {
        self.numbers[which].load(Ordering::Relaxed)
    }

    /// Raises number `which` to at least `to`.
    pub fn raise(&self, which: usize, to: u64) {
        self.numbers[which].fetch_max(to, Ordering::Relaxed);
    }

    /// Adds to number `which` and gives what it was.
    pub fn add(&self, which: usize, by: u64) -> u64 {
        self.numbers[which].fetch_add(by, Ordering::Relaxed)
    }
}

pub(crate) struct EnvOf(pub(crate) SharedEnv);
pub(crate) struct NetworkOf(pub(crate) SharedNetwork);

impl fmt::Debug for EnvOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("env")
    }
}

impl fmt::Debug for NetworkOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("network")
    }
}

impl Client {
    pub(crate) fn new(inside: Inside) -> Self {
        Self(Arc::new(inside))
    }

    /// Its name: `client-1` and so on.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.0.name
    }

    /// Its number, from 0 on.
    #[must_use]
    pub fn number(&self) -> usize {
        self.0.number
    }

    /// How many times it was started before.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.0.run
    }

    /// What product code gets.
    #[must_use]
    pub fn env(&self) -> SharedEnv {
        Arc::clone(&self.0.env.0)
    }

    /// What the clients share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Draws from the client's own randomness.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.0.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the faults are over: time to finish.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.healed.load(Ordering::Relaxed)
    }

    /// Sleeps for about as long as the plan wants between two operations of one task.
    pub async fn rest(&self) {
        self.pause(self.0.pace).await;
    }

    /// Sleeps for about `typical`.
    pub async fn pause(&self, typical: Duration) {
        let typical = u64::try_from(typical.as_nanos()).unwrap_or(u64::MAX);
        let nanos = self.draw(|rng| rng.between(0, 2 * typical));
        self.0.env.0.sleep(Duration::from_nanos(nanos)).await;
    }

    /// Connects to the log, as often as it takes.
    pub async fn connect(&self) -> Arc<LogClient> {
        loop {
            match self.try_connect().await {
                Ok(client) => return client,
                Err(error) => {
                    self.0
                        .executor
                        .trace(&("cannot connect", error.to_string()));
                    self.pause(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn try_connect(&self) -> Result<Arc<LogClient>, ConnectError> {
        let network = Arc::clone(&self.0.network.0);
        let options = self.0.options.clone();
        LogClient::connect(self.env(), network, self.0.layout.clone(), options).await
    }

    /// Connects and starts a replica.
    pub async fn replica(&self, options: ReplicaOptions) -> Replica {
        let log = self.connect().await;
        Replica::start(self.env(), log, options)
    }

    /// Runs a part of the client's work beside the rest.
    pub fn spawn(&self, work: BoxFuture<'static, ()>) -> milonga_protocol::Task {
        self.0.env.0.spawn("client work", work)
    }

    /// Polls `work` at most `polls` times, then drops it where it is: `None` if it was dropped.
    pub async fn drop_after<T>(&self, polls: u64, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut left = polls;
        std::future::poll_fn(move |cx| {
            if left == 0 {
                return Poll::Ready(None);
            }
            left -= 1;
            let polled = work.as_mut().poll(cx).map(Some);
            if polled.is_pending() && left == 0 {
                // The drop comes at once, not with the next wake, which may be far.
                return Poll::Ready(None);
            }
            polled
        })
        .await
    }

    /// Adds a line to the trace.
    pub fn note(&self, what: &str) {
        self.0.executor.trace(&(self.name().as_str(), what));
    }

    /// Notes that an operation begins.
    #[must_use]
    pub fn invoke(&self, operation: Operation) -> OperationId {
        let now = self.0.executor.now();
        self.0.executor.trace(&(self.name().as_str(), &operation));
        self.0.journal.invoke(now, &self.0.name, operation)
    }

    /// Notes how an operation ended.
    pub fn finish(&self, id: OperationId, outcome: Outcome) {
        let now = self.0.executor.now();
        self.0.executor.trace(&(self.name().as_str(), id, &outcome));
        self.0.journal.finish(now, id, outcome);
    }

    /// The network as the client's process sees it.
    #[must_use]
    pub fn network(&self) -> SharedNetwork {
        Arc::clone(&self.0.network.0)
    }

    /// Looks at what all clients have done so far: for checks that choose what to read.
    pub fn journal<T>(&self, look: impl FnOnce(&Pages) -> T) -> T {
        look(&self.0.journal.lock())
    }

    /// The number of the process in its world.
    #[must_use]
    pub fn process(&self) -> ProcessId {
        self.0.process
    }
}
