//! The handle an application holds.

use std::path::Path;
use std::sync::Arc;
#[cfg(feature = "embedded")]
use std::sync::{Mutex, PoisonError};

use milonga_client::{ClientOptions, LogClient};
use milonga_objects::{
    Counter, Handle, Map, Object, ObjectInfo, OpenError, Outcome, Queue, ReadError, Replica,
    ReplicaOptions, Snapshot, TransactionError, Tx,
};
#[cfg(feature = "embedded")]
use milonga_protocol::ServerName;
use milonga_protocol::{Incarnation, SharedEnv, SharedLog};
use milonga_transport::{Identity, Peer, QuicNetwork, SharedNetwork, Tls, TokioEnv};

use crate::config::ClientConfig;
use crate::error::Error;

/// One view of the shared log: opens replicated objects, runs transactions over them.
///
/// Cheap to clone; clones share one replica. `Send + Sync`. Works on current-thread and multi-thread tokio
/// runtimes. Nothing process-wide is installed. Dropping the last clone stops its tasks and releases the
/// directory; [`close`](Self::close) also waits for what is under way.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// # let dir = tempfile::tempdir().unwrap();
/// let milonga = milonga::Milonga::embedded(dir.path()).await?;
/// let greetings = milonga.map::<String, String>("greetings").await?;
/// greetings.insert("en".to_owned(), "hello".to_owned()).await?;
/// assert_eq!(greetings.get(&"en".to_owned()).await?.as_deref(), Some("hello"));
/// milonga.close().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Milonga {
    inner: Arc<Inner>,
}

/// Fields are dropped in this order: first who uses the log, then the log, then its servers.
#[derive(Debug)]
struct Inner {
    replica: Replica,
    log: Arc<LogClient>,
    #[cfg(feature = "embedded")]
    node: Mutex<Option<milonga_node::EmbeddedNode>>,
}

impl Milonga {
    /// Opens the log in `dir` with its servers in this process; makes it if the directory is empty or absent.
    ///
    /// One process at a time may have it open. What was acknowledged survives a crash of the process or machine.
    ///
    /// # Errors
    /// [`Error`] says what is wrong and what to do: no tokio runtime, directory in use, damaged or of another
    /// cluster, no space.
    #[cfg(feature = "embedded")]
    pub async fn embedded(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let env: SharedEnv = TokioEnv::try_new()?;
        let options = milonga_node::EmbeddedOptions::default();
        let node =
            milonga_node::EmbeddedNode::start(dir.as_ref(), Arc::clone(&env), options).await?;
        let (network, layout) = (node.network(ServerName::new("client")), node.layout());
        Self::over(
            env,
            network,
            vec![layout],
            ClientOptions::default(),
            Some(node),
        )
        .await
    }

    /// Connects to a cluster. Returns once its layout is known.
    ///
    /// # Errors
    /// [`Error`] says what is wrong and what to do: no tokio runtime, certificates not accepted, nobody reachable
    /// before the deadline.
    pub async fn connect(config: ClientConfig) -> Result<Self, Error> {
        let env: SharedEnv = TokioEnv::try_new()?;
        config.check(Path::new("the configuration"))?;
        let network = network(&config, &env)?;
        tokio::select! {
            biased;
            resolved = config.resolve() => resolved?,
            // Whoever has not been found by then is not reached either.
            () = env.sleep(config.deadline()) => {}
        }
        let servers = config.peers();
        let mut options = ClientOptions::default();
        options.deadline = config.deadline();
        #[cfg(feature = "embedded")]
        return Self::over(env, network, servers, options, None).await;
        #[cfg(not(feature = "embedded"))]
        return Self::over(env, network, servers, options).await;
    }

    async fn over(
        env: SharedEnv,
        network: SharedNetwork,
        servers: Vec<Peer>,
        options: ClientOptions,
        #[cfg(feature = "embedded")] node: Option<milonga_node::EmbeddedNode>,
    ) -> Result<Self, Error> {
        let mut replica_options = ReplicaOptions::default();
        replica_options.deadline = options.deadline;
        let log = LogClient::connect(Arc::clone(&env), network, servers, options).await?;
        let replica = Replica::start(env, Arc::clone(&log) as SharedLog, replica_options);
        let inner = Inner {
            replica,
            log,
            #[cfg(feature = "embedded")]
            node: Mutex::new(node),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }
}

/// A client's way into the cluster of `config`.
pub(crate) fn network(config: &ClientConfig, env: &SharedEnv) -> Result<SharedNetwork, Error> {
    let tls = Tls::read(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
    let identity = Identity::new(tls.name().clone(), Incarnation(env.random_id()));
    Ok(QuicNetwork::client(Arc::clone(env), &tls, identity))
}

impl Milonga {
    /// Opens the map `name`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`]: the name belongs to an object of another type, or the log does not answer.
    pub async fn map<K, V>(&self, name: &str) -> Result<Map<K, V>, OpenError>
    where
        K: milonga_objects::Key,
        V: milonga_objects::Value,
    {
        self.inner.replica.map(name).await
    }

    /// Opens the counter `name`, or makes it.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub async fn counter(&self, name: &str) -> Result<Counter, OpenError> {
        self.inner.replica.counter(name).await
    }

    /// Opens the queue `name`, or makes it.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub async fn queue<T: milonga_objects::Value>(
        &self,
        name: &str,
    ) -> Result<Queue<T>, OpenError> {
        self.inner.replica.queue(name).await
    }

    /// Opens the object `name` of the application's own type `O`, or makes it.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub async fn object<O: Object>(&self, name: &str) -> Result<Handle<O>, OpenError> {
        self.inner.replica.object(name).await
    }

    /// Runs a transaction over any opened objects: strictly serializable, retried on conflict within bounds: of
    /// attempts, and by the deadline that all of them share.
    ///
    /// # Errors
    /// [`TransactionError`]: the closure's own error (nothing was written), or the log's.
    pub async fn transaction<T, E, F>(&self, body: F) -> Result<Outcome<T>, TransactionError<E>>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E> + Clone,
    {
        self.inner.replica.transaction(body).await
    }

    /// All opened objects frozen at one position: linearizable, and consistent across objects.
    ///
    /// # Errors
    /// [`ReadError`] if the log does not answer.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.inner.replica.snapshot().await
    }

    /// What the directory lists.
    ///
    /// # Errors
    /// [`ReadError`] if the log does not answer.
    pub async fn directory(&self) -> Result<Vec<ObjectInfo>, ReadError> {
        self.inner.replica.directory().await
    }

    /// The shared log itself.
    #[must_use]
    pub fn log(&self) -> SharedLog {
        Arc::clone(&self.inner.log) as SharedLog
    }

    /// The client of the log, with what the contract does not have: layout and subscriptions.
    #[must_use]
    pub fn client(&self) -> &Arc<LogClient> {
        &self.inner.log
    }

    /// Flushes what is under way, stops all tasks and releases the directory. Other clones fail from now on. Waits for
    /// the objects' updates and then for other appends, for each at most until the deadline.
    ///
    /// # Errors
    /// [`Error::Unfinished`] if something under way was not written, or nobody knows whether it was, when the deadline
    /// passed; all is stopped and released all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let updates = self.inner.replica.close().await;
        let appends = !self.inner.log.close().await;
        #[cfg(feature = "embedded")]
        {
            let node = self
                .inner
                .node
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(node) = node {
                node.close().await;
            }
        }
        if updates > 0 || appends {
            return Err(Error::Unfinished { updates, appends });
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn close_says_what_it_could_not_flush() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let env: SharedEnv = TokioEnv::try_new().expect("in a runtime");
        let node = milonga_node::EmbeddedNode::start(
            dir.path(),
            Arc::clone(&env),
            milonga_node::EmbeddedOptions::default(),
        );
        let node = node.await.expect("starts");
        let (network, layout) = (node.network(ServerName::new("client")), node.layout());
        let mut options = ClientOptions::default();
        options.deadline = Duration::from_millis(500);
        let milonga = Milonga::over(env, network, vec![layout], options, Some(node));
        let milonga = milonga.await.expect("connects");
        let counter = milonga.counter("counter").await.expect("opens");
        counter.add(1).await.expect("counts");
        let node = milonga.inner.node.lock().expect("no panic").take();
        node.expect("it is there").close().await;
        // Submitted, and then nobody waits for it.
        let mut add = counter.add(2);
        let submitted = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut add).poll(cx)));
        assert!(submitted.await.is_pending());
        drop(add);
        let error = milonga.close().await.expect_err("nobody took it");
        assert!(
            matches!(error, Error::Unfinished { updates: 1, .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("1 updates"), "{error}");
        // What it says goes for that call.
        milonga
            .close()
            .await
            .expect("nothing is under way any more");
    }
}
