//! What a user of the library relies on.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

use std::path::Path;
use std::time::Duration;

use milonga::{ClientConfig, Counter, Map, Milonga, Queue};

const fn is_send_sync_clone<T: Send + Sync + Clone>() {}
const fn is_send<T: Send>(_: &T) {}

const _: () = {
    is_send_sync_clone::<Milonga>();
    is_send_sync_clone::<Map<String, u64>>();
    is_send_sync_clone::<Counter>();
    is_send_sync_clone::<Queue<String>>();
};

#[tokio::test]
async fn futures_can_cross_threads_and_transactions_can_be_spawned() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let map = milonga.map::<String, u64>("m").await.expect("opens");
    let insert = map.insert("a".to_owned(), 1);
    is_send(&insert);
    insert.await.expect("inserts");
    let (inner, borrowed) = (milonga.clone(), map.clone());
    let committed = tokio::spawn(async move {
        let key = "a".to_owned();
        let bump = inner.transaction(async |tx| {
            let old = tx.get(&borrowed, &key).unwrap_or(0);
            tx.insert(&borrowed, key.clone(), old + 1);
            Ok::<_, std::convert::Infallible>(old)
        });
        bump.await
    });
    committed.await.expect("does not panic").expect("commits");
    assert_eq!(map.get(&"a".to_owned()).await.expect("reads"), Some(2));
    milonga.close().await.expect("closes");
}

#[test]
fn a_hundred_times_open_and_close_on_both_kinds_of_runtime() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for round in 0..100_u64 {
        let mut builder = if round % 2 == 0 {
            tokio::runtime::Builder::new_current_thread()
        } else {
            tokio::runtime::Builder::new_multi_thread()
        };
        builder
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(async {
                let milonga = Milonga::embedded(dir.path())
                    .await
                    .expect("an open right after");
                let counter = milonga.counter("opens").await.expect("opens");
                assert_eq!(
                    counter.add(1).await.expect("adds"),
                    i64::try_from(round).expect("small") + 1
                );
                if round % 3 == 0 {
                    milonga.close().await.expect("closes");
                }
                // Otherwise the drop releases everything.
            });
    }
}

#[tokio::test]
async fn dropped_and_opened_again_in_one_runtime() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for round in 1..=20 {
        let milonga = Milonga::embedded(dir.path())
            .await
            .expect("an open right after");
        let counter = milonga.counter("opens").await.expect("opens");
        assert_eq!(counter.add(1).await.expect("adds"), round);
        drop((milonga, counter));
    }
}

#[tokio::test]
async fn a_second_opener_is_told_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let error = Milonga::embedded(dir.path())
        .await
        .expect_err("in use")
        .to_string();
    assert!(error.contains("in use"), "{error}");
    milonga.close().await.expect("closes");
}

#[test]
fn outside_a_runtime_the_error_says_so() {
    let mut opening = Box::pin(Milonga::embedded("/nonexistent"));
    let waker = std::task::Waker::noop();
    match opening
        .as_mut()
        .poll(&mut std::task::Context::from_waker(waker))
    {
        std::task::Poll::Ready(Err(error)) => {
            assert!(error.to_string().contains("runtime"), "{error}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn another_type_under_the_same_name_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    milonga.counter("x").await.expect("opens");
    let error = milonga
        .queue::<String>("x")
        .await
        .expect_err("a counter")
        .to_string();
    assert!(
        error.contains("counter") && error.contains("queue"),
        "{error}"
    );
    milonga.close().await.expect("closes");
}

#[tokio::test]
async fn an_oversize_value_is_refused_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let map = milonga.map::<String, String>("m").await.expect("opens");
    let error = map
        .insert("big".to_owned(), "x".repeat(2 << 20))
        .await
        .expect_err("over 1 MiB")
        .to_string();
    assert!(error.contains("limit"), "{error}");
    map.insert("small".to_owned(), "y".to_owned())
        .await
        .expect("goes on");
    assert_eq!(map.get(&"big".to_owned()).await.expect("reads"), None);
    milonga.close().await.expect("closes");
}

#[tokio::test]
async fn nobody_there_is_an_error_within_the_deadline() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    milonga_transport::certs::make_ca(dir.path()).expect("an authority");
    let name = milonga_protocol::ServerName::new("client");
    milonga_transport::certs::make_leaf(dir.path(), &name, milonga_transport::Role::Client)
        .expect("a certificate");
    let mut config = ClientConfig::new(dir.path(), "client", [("sequencer-1", "127.0.0.1:9")]);
    config.deadline_ms = 500;
    #[expect(clippy::disallowed_methods, reason = "bounds the test")]
    let outcome = tokio::time::timeout(Duration::from_secs(20), Milonga::connect(config)).await;
    let error = outcome
        .expect("ends by itself")
        .expect_err("nobody there")
        .to_string();
    assert!(error.contains("sequencer-1"), "{error}");
    let missing = ClientConfig::new(
        Path::new("/nonexistent"),
        "client",
        [("sequencer-1", "127.0.0.1:9")],
    );
    let error = Milonga::connect(missing)
        .await
        .expect_err("no certificates")
        .to_string();
    assert!(error.contains("/nonexistent"), "{error}");
}
