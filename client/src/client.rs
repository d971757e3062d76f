//! The handle: puts the parts together and implements the log contract.

use std::fmt;
use std::sync::Arc;

use milonga_protocol::env::BoxFuture;
use milonga_protocol::limits::ITEMS_PER_MESSAGE;
use milonga_protocol::messages::SequencerRequest;
use milonga_protocol::{
    AppendError, Appended, Limits, Log, LogError, NewEntry, Position, Published, ReadAnswer,
    SharedEnv, SharedLog, StreamId, StreamPart, StreamRead, Tail, TailOf, Time, WriterId,
};
use milonga_transport::{Peer, SharedNetwork};
use tracing::{Instrument, debug_span};

use crate::append::Appender;
use crate::cluster::{Cluster, ConnectError};
use crate::latency::Latency;
use crate::options::ClientOptions;
use crate::read::Reader;
use crate::retry::{Backoff, Remedy, pause};
use crate::settle::{Settler, What};
use crate::subscribe::Subscription;
use crate::tail::TailChecks;
use crate::tasks::Tasks;
use crate::trim::trim;

/// How long the sequencer holds a request that waits for growth.
const WAIT_MS: u32 = 1_000;

/// A client of a cluster's log; see [`Log`] for what it promises.
///
/// [`Self::close`] finishes what is under way; dropping the client stops it: appends that may have been written are
/// then answered `OutcomeUnknown`, the others `Closed`.
pub struct LogClient {
    cluster: Arc<Cluster>,
    settler: Arc<Settler>,
    reader: Arc<Reader>,
    appender: Arc<Appender>,
    tails: Arc<TailChecks>,
    tasks: Arc<Tasks>,
}

impl LogClient {
    /// Connects: asks the layout servers until one of them has a layout. Nothing else is dialled yet.
    ///
    /// # Errors
    /// [`ConnectError`] names the servers and what they said, at the latest after [`ClientOptions::deadline`].
    pub async fn connect(
        env: SharedEnv,
        network: SharedNetwork,
        layout_servers: Vec<Peer>,
        options: ClientOptions,
    ) -> Result<Arc<Self>, ConnectError> {
        let tasks = Tasks::new(Arc::clone(&env));
        let cluster = Cluster::connect(env, network, layout_servers, options).await?;
        let cluster = Arc::new(cluster);
        let settler = Arc::new(Settler::new(Arc::clone(&cluster)));
        let reader = Arc::new(Reader::new(
            Arc::clone(&cluster),
            Arc::clone(&settler),
            Arc::new(Latency::default()),
            Arc::clone(&tasks),
        ));
        let appender = Appender::new(
            Arc::clone(&cluster),
            Arc::clone(&reader),
            Arc::clone(&tasks),
        );
        let tails = Arc::new(TailChecks::new(Arc::clone(&cluster)));
        for server in cluster.layout_servers() {
            tasks.spawn("layout watch", Arc::clone(&cluster).follow(server.clone()));
        }
        tasks.spawn("appender", Arc::clone(&appender).run());
        tasks.spawn("tail checks", Arc::clone(&tails).run());
        Ok(Arc::new(Self {
            cluster,
            settler,
            reader,
            appender,
            tails,
            tasks,
        }))
    }

    /// Takes no more calls, waits until the appends under way are done (at most for the deadline of the options),
    /// and stops all tasks. Calls that are not finished then end with `Closed`.
    ///
    /// Returns whether all of them were done.
    pub async fn close(&self) -> bool {
        let deadline = self.cluster.deadline();
        // The flush's own limit is a later one: which of the two ends first is the answer.
        let later = deadline.after(self.cluster.options.deadline);
        let flushed = tokio::select! {
            biased;
            () = self.appender.flush(later) => true,
            () = self.cluster.env.sleep_until(deadline) => false,
        };
        if !flushed {
            tracing::debug!("closed with appends under way");
        }
        self.stop();
        flushed
    }

    /// The newest layout this client knows.
    #[must_use]
    pub fn layout(&self) -> Arc<Published> {
        Arc::clone(&self.cluster.view().published)
    }

    /// Follows `streams` from position `from` on.
    #[must_use]
    pub fn subscribe(
        self: &Arc<Self>,
        streams: impl Into<Arc<[StreamId]>>,
        from: Position,
    ) -> Subscription {
        let log: SharedLog = Arc::<Self>::clone(self);
        let prefetch = self.cluster.options.prefetch_bytes;
        Subscription::new(log, streams.into(), from, prefetch)
    }

    /// Turns into junk what lies in `from..to` and every replica has lost (rule 11): for an operator who has decided
    /// that it will not come back. Whoever stopped there goes on without it. What any replica still has stays, and
    /// holes are settled on the way. Answers the positions that were given up.
    ///
    /// # Errors
    /// [`LogError::Lost`] names a position at or above the epoch's start: it can be given up in a later epoch.
    pub async fn give_up_lost(
        &self,
        from: Position,
        to: Position,
    ) -> Result<Vec<Position>, LogError> {
        let deadline = self.begin()?;
        let tail = self.tails.tail(TailOf::Log).await?;
        let (from, to) = (from.max(tail.trimmed), to.min(tail.next));
        let given_up = self.settler.give_up(from, to, tail.epoch, deadline).await?;
        if !given_up.is_empty() {
            tracing::warn!(positions = given_up.len(), "lost positions were given up");
        }
        Ok(given_up.into_iter().collect())
    }

    fn stop(&self) {
        self.cluster.close();
        self.tails.close();
        self.appender.stop();
        self.tasks.stop();
    }

    /// A deadline from now on, unless the client is closed.
    fn begin(&self) -> Result<Time, LogError> {
        if self.cluster.is_closed() {
            return Err(LogError::Closed);
        }
        Ok(self.cluster.deadline())
    }
}

impl Drop for LogClient {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for LogClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "LogClient({:?}, {:?})",
            self.appender.writer, self.cluster
        )
    }
}

impl Log for LogClient {
    fn writer(&self) -> WriterId {
        self.appender.writer
    }

    fn limits(&self) -> Limits {
        self.cluster.limits()
    }

    fn append(&self, entry: NewEntry) -> BoxFuture<'static, Result<Appended, AppendError>> {
        Box::pin(Arc::clone(&self.appender).append(entry))
    }

    fn tail(&self, of: TailOf) -> BoxFuture<'static, Result<Tail, LogError>> {
        let (tails, reader) = (Arc::clone(&self.tails), Arc::clone(&self.reader));
        Box::pin(async move {
            let tail = tails.tail(of).await?;
            reader.heard_of(&tail);
            Ok(tail)
        })
    }

    fn read(
        &self,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<Vec<ReadAnswer>, LogError>> {
        let (reader, begun) = (Arc::clone(&self.reader), self.begin());
        let span = debug_span!("read", count = positions.len(), first = ?positions.first());
        Box::pin(async move { reader.read(&positions, begun?).await }.instrument(span))
    }

    fn read_streams(&self, read: StreamRead) -> BoxFuture<'static, Result<StreamPart, LogError>> {
        let (reader, begun) = (Arc::clone(&self.reader), self.begin());
        let span = debug_span!(
            "read_streams", from = %read.from, to = %read.target.to, stream = ?read.streams.first()
        );
        Box::pin(async move { reader.read_streams(&read, begun?).await }.instrument(span))
    }

    fn wait(
        &self,
        streams: Arc<[StreamId]>,
        from: Position,
    ) -> BoxFuture<'static, Result<(), LogError>> {
        let (cluster, begun) = (Arc::clone(&self.cluster), self.begin());
        Box::pin(async move {
            begun?;
            wait(&cluster, &streams, from).await
        })
    }

    fn settle(&self, from: Position, to: Position) -> BoxFuture<'static, Result<(), LogError>> {
        let (settler, tails) = (Arc::clone(&self.settler), Arc::clone(&self.tails));
        let begun = self.begin();
        let span = debug_span!("settle", %from, %to);
        let settle = async move {
            let deadline = begun?;
            // What was not granted is not to be filled.
            let tail = tails.tail(TailOf::Log).await?;
            let what = What::Everything(from.max(tail.trimmed), to.min(tail.next));
            match settler.settle(what, tail.epoch, deadline).await? {
                Some(position) => Err(LogError::Lost { position }),
                None => Ok(()),
            }
        };
        Box::pin(settle.instrument(span))
    }

    fn trim(&self, below: Position) -> BoxFuture<'static, Result<Position, LogError>> {
        let (cluster, tails) = (Arc::clone(&self.cluster), Arc::clone(&self.tails));
        let begun = self.begin();
        let span = debug_span!("trim", %below);
        Box::pin(async move { trim(&cluster, &tails, below, begun?).await }.instrument(span))
    }
}

/// Waits for growth at the sequencer. Any trouble ends it early, after a pause: it is a hint only.
async fn wait(cluster: &Cluster, streams: &[StreamId], from: Position) -> Result<(), LogError> {
    let view = cluster.view();
    let request = SequencerRequest::Wait {
        epoch: view.epoch(),
        // Too many to name: any growth will do.
        streams: if streams.len() > ITEMS_PER_MESSAGE {
            Vec::new()
        } else {
            streams.to_vec()
        },
        from,
        wait_ms: WAIT_MS,
    };
    let held = std::time::Duration::from_millis(u64::from(WAIT_MS));
    let until = cluster.env.now().after(cluster.options.call_timeout + held);
    let grown = cluster.sequencer(&view, request, until);
    let failure = tokio::select! {
        biased;
        answer = grown => match answer {
            Ok(_) => return Ok(()),
            Err(failure) => failure,
        },
        _ = cluster.newer_than(view.epoch(), until) => return Ok(()),
    };
    if cluster.is_closed() {
        return Err(LogError::Closed);
    }
    if failure.remedy() == Remedy::GiveUp {
        return Err(failure.into_refused());
    }
    pause(
        cluster,
        &failure,
        view.epoch(),
        &mut Backoff::default(),
        until,
    )
    .await;
    Ok(())
}
