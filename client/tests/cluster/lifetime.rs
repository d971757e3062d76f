//! Connecting, closing, dropping.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_client::{ClientOptions, ConnectError, LogClient};
use milonga_protocol::messages::{Request, UnitRequest};
use milonga_protocol::{AppendError, Log, LogError, NewEntry, Position, TailOf};

use crate::fake::{Fake, Fault};
use crate::{S, append, background, client, sleep_ms};

async fn connect(
    fake: &Arc<Fake>,
    servers: Vec<milonga_transport::Peer>,
) -> Result<Arc<LogClient>, ConnectError> {
    let env = Arc::clone(&fake.env);
    LogClient::connect(env, fake.network(), servers, ClientOptions::default()).await
}

#[tokio::test(start_paused = true)]
async fn connecting_waits_for_a_layout_and_names_who_is_missing() {
    let fake = Fake::new(1, 1);
    assert_eq!(
        connect(&fake, Vec::new()).await.err(),
        Some(ConnectError::NoServers)
    );
    fake.faults(|_, _| Fault::Unreachable);
    let error = connect(&fake, Fake::layout_servers())
        .await
        .expect_err("nobody");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("layout-1"), "{error}");
    let late = Arc::clone(&fake);
    let connected = background(&fake, async move {
        connect(&late, Fake::layout_servers()).await
    });
    sleep_ms(&fake, 3_000).await;
    fake.no_faults();
    let client = connected.await.expect("it is back");
    append(&client, "a").await;
}

#[tokio::test(start_paused = true)]
async fn closing_flushes_and_then_everything_is_closed() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    let appends: Vec<_> = (0..50)
        .map(|n| background(&fake, client.append(NewEntry::new([S], format!("{n}")))))
        .collect();
    sleep_ms(&fake, 1).await;
    assert!(client.close().await, "all was flushed");
    for appended in join_all(appends).await {
        appended.expect("flushed");
    }
    assert_eq!(
        client.append(NewEntry::new([S], "x")).await,
        Err(AppendError::Closed)
    );
    assert_eq!(client.tail(TailOf::Log).await, Err(LogError::Closed));
    assert_eq!(client.read(vec![Position(0)]).await, Err(LogError::Closed));
    assert_eq!(
        client.wait([S].into(), Position(0)).await,
        Err(LogError::Closed)
    );
    assert_eq!(client.trim(Position(0)).await, Err(LogError::Closed));
}

#[tokio::test(start_paused = true)]
async fn closing_does_not_wait_for_ever() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Fault::Silence,
        _ => Fault::None,
    });
    let stuck = background(&fake, client.append(NewEntry::new([S], "x")));
    sleep_ms(&fake, 10).await;
    let began = fake.env.now();
    assert!(!client.close().await, "the append was not done");
    assert!(fake.env.now().since(began) <= Duration::from_secs(31));
    assert!(matches!(
        stuck.await,
        Err(AppendError::OutcomeUnknown { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_client_stops_its_tasks_and_answers_its_callers() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) | Request::Sequencer(_) => Fault::Silence,
        _ => Fault::None,
    });
    let waiting = background(&fake, client.append(NewEntry::new([S], "no token yet")));
    let tail = background(&fake, client.tail(TailOf::Log));
    let collecting = background(&fake, client.tail(TailOf::Log));
    sleep_ms(&fake, 10).await;
    drop(client);
    assert_eq!(waiting.await, Err(AppendError::Closed));
    assert_eq!(tail.await, Err(LogError::Closed));
    assert_eq!(collecting.await, Err(LogError::Closed));
    sleep_ms(&fake, 10).await;
    let (before, world) = (Arc::strong_count(&fake), Arc::downgrade(&fake));
    assert_eq!(before, 1, "no task holds the network any more");
    drop(fake);
    assert!(world.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_exposed_append_of_a_dropped_client_is_unknown() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Fault::Silence,
        _ => Fault::None,
    });
    let exposed = background(&fake, client.append(NewEntry::new([S], "x")));
    sleep_ms(&fake, 10).await;
    drop(client);
    assert!(matches!(
        exposed.await,
        Err(AppendError::OutcomeUnknown { .. })
    ));
}
