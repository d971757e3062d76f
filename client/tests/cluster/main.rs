//! The client against a model cluster with faults, on paused time.

mod appends;
mod chaos;
mod conformance;
mod cores;
mod fake;
mod lifetime;
mod reads;
mod streams;
mod tails;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use milonga_client::{ClientOptions, LogClient};
use milonga_protocol::{
    Entry, Log, LogError, NewEntry, Position, StreamId, StreamPart, StreamRead, TailOf, Target,
};

use fake::Fake;

pub(crate) const S: StreamId = StreamId::raw(1);

pub(crate) async fn client(fake: &Arc<Fake>) -> Arc<LogClient> {
    client_with(fake, ClientOptions::default()).await
}

pub(crate) async fn client_with(fake: &Arc<Fake>, options: ClientOptions) -> Arc<LogClient> {
    let env = Arc::clone(&fake.env);
    let servers = Fake::layout_servers();
    let client = LogClient::connect(env, fake.network(), servers, options).await;
    client.expect("the fake layout answers")
}

pub(crate) async fn append(client: &LogClient, text: &str) -> Position {
    let appended = client.append(NewEntry::new([S], text.to_owned())).await;
    appended.expect("no fault prevents it").position
}

/// Through everything that was granted, written or not.
pub(crate) async fn target(client: &LogClient) -> Target {
    let tail = client.tail(TailOf::Streams([S].into())).await;
    tail.expect("no fault prevents it").granted()
}

pub(crate) fn stream_read(from: Position, target: Target) -> StreamRead {
    StreamRead {
        streams: [S].into(),
        from,
        target,
        max_bytes: 1 << 20,
    }
}

/// Everything in `from..target`.
pub(crate) async fn play(
    client: &LogClient,
    from: Position,
    target: Target,
) -> Result<Vec<(Position, Entry)>, LogError> {
    let mut read = stream_read(from, target);
    let mut entries = Vec::new();
    loop {
        let part: StreamPart = client.read_streams(read.clone()).await?;
        assert!(part.complete >= read.from);
        entries.extend(part.entries.iter().cloned());
        if part.is_done() {
            return Ok(entries);
        }
        (read.from, read.target) = (part.complete, part.target);
    }
}

pub(crate) fn texts(entries: &[(Position, Entry)]) -> Vec<String> {
    let text = |entry: &Entry| String::from_utf8_lossy(&entry.payload).into_owned();
    entries.iter().map(|(_, entry)| text(entry)).collect()
}

/// Runs in the background; the result comes through the returned future.
pub(crate) fn background<T: Send + 'static>(
    fake: &Fake,
    future: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let (send, receive) = tokio::sync::oneshot::channel();
    let task = async move {
        let _ = send.send(future.await);
    };
    fake.env.spawn("test", Box::pin(task)).detach();
    async move { receive.await.expect("the task ends") }
}

pub(crate) async fn sleep_ms(fake: &Fake, ms: u64) {
    fake.env.sleep(Duration::from_millis(ms)).await;
}
