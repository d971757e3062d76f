//! What is checked before anything is served.

use milonga_protocol::ClusterId;

use super::*;

fn member(name: &str, cluster: u128) -> Arc<Identity> {
    let identity = Identity::new(name.into(), Incarnation(1));
    identity.set_cluster(ClusterId(cluster)).expect("unset");
    identity
}

fn handshake_error(result: Result<Message, CallError>) -> String {
    let error = result.expect_err("another cluster");
    assert!(matches!(error, CallError::Handshake { .. }), "{error:?}");
    assert!(!error.is_retryable() && !error.may_have_been_served());
    error.to_string()
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let town = Town::new();
    let server = town.serve_as(LOCAL, member("unit-1a", 0xa));
    let tls = town.tls("app", Role::Client);
    let to = peer("unit-1a", &server);

    let stranger = town.client_as(&tls, member("app", 0xb));
    let text = handshake_error(town.call(&stranger, &to).await);
    let clusters = [ClusterId(0xa), ClusterId(0xb)].map(|id| id.to_string());
    assert!(clusters.iter().all(|id| text.contains(id)), "{text}");

    let citizen = town.client_as(&tls, member("app", 0xa));
    town.call(&citizen, &to).await.expect("the same cluster");
    let newcomer = town.client_with(&tls);
    town.call(&newcomer, &to).await.expect("none known yet");
}

#[tokio::test]
async fn a_cluster_learnt_later_is_checked_too() {
    let town = Town::new();
    let identity = Identity::new("unit-1a".into(), Incarnation(1));
    let server = town.serve_as(LOCAL, identity.clone());
    let tls = town.tls("app", Role::Client);
    let client = town.client_as(&tls, member("app", 0xb));
    let to = peer("unit-1a", &server);
    town.call(&client, &to).await.expect("none known yet");
    identity.set_cluster(ClusterId(0xa)).expect("unset");
    // The server meets it when the next request comes; then the connection is made anew, in vain.
    while let Err(CallError::Dropped { .. }) | Ok(_) = town.call(&client, &to).await {}
    handshake_error(town.call(&client, &to).await);
}

#[tokio::test]
async fn many_first_calls_share_one_connection() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let client = town.client("app");
    let to = peer("unit-1a", &server);
    let deadline = town.env.now().after(Duration::from_secs(20));
    let (done, mut all) = tokio::sync::mpsc::channel(100);
    for _ in 0..100 {
        let call = client.call(&to, Message::default(), deadline);
        let done = done.clone();
        let task = async move {
            call.await.expect("answered");
            done.send(()).await.expect("the test waits");
        };
        town.env.spawn("call", Box::pin(task)).detach();
    }
    drop(done);
    while all.recv().await.is_some() {}
    assert_eq!(server.endpoint.open_connections(), 1);
}
