//! Whom a certificate lets in.

use super::*;
use crate::quic::BindError;

#[tokio::test]
async fn name_and_role_are_those_of_the_certificate() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    for (name, role, seen) in [
        ("app", Role::Client, "app Client"),
        ("unit-1b", Role::Server, "unit-1b Server"),
    ] {
        let tls = town.tls(name, role);
        // What a process says of itself does not matter.
        let client = town.client_as(&tls, Identity::new("somebody".into(), Incarnation(3)));
        let answer = town.call(&client, &peer("unit-1a", &server)).await;
        assert_eq!(answer.expect("answered").header, seen);
    }
}

#[tokio::test]
async fn a_client_refuses_a_server_of_another_authority() {
    let (town, other) = (Town::new(), Town::new());
    let server = other.serve("unit-1a");
    let error = refused(&town, &town.client("app"), &peer("unit-1a", &server)).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
    // The server goes on.
    let friend = other.client("app");
    other
        .call(&friend, &peer("unit-1a", &server))
        .await
        .expect("answered");
}

#[tokio::test]
async fn a_server_refuses_a_client_of_another_authority() {
    let (town, other) = (Town::new(), Town::new());
    let server = town.serve("unit-1a");
    let trusts = town.tls("app", Role::Client);
    let intruder = town.client_with(&other.tls("app", Role::Client).trusting(&trusts));
    let error = refused(&town, &intruder, &peer("unit-1a", &server)).await;
    assert!(error.contains("authority that it does not know"), "{error}");
    assert!(error.contains("milonga certs"), "{error}");
    let friend = town.client("app");
    town.call(&friend, &peer("unit-1a", &server))
        .await
        .expect("answered");
}

#[tokio::test]
async fn a_server_under_another_name_is_refused() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let error = refused(&town, &town.client("app"), &peer("unit-1b", &server)).await;
    assert!(
        error.contains("unit-1a") && error.contains("unit-1b"),
        "{error}"
    );
}

async fn refused(town: &Town, client: &SharedNetwork, to: &Peer) -> String {
    let begin = town.env.now();
    let error = town.call(client, to).await.expect_err("refused");
    assert!(matches!(error, CallError::Certificate { .. }), "{error:?}");
    assert!(!error.is_retryable());
    let took = town.env.now().since(begin);
    assert!(took < Duration::from_secs(5), "known at once: {took:?}");
    error.to_string()
}

#[tokio::test]
async fn a_server_needs_its_own_certificate() {
    let town = Town::new();
    for (name, role) in [("unit-1b", Role::Server), ("unit-1a", Role::Client)] {
        let bound = QuicServer::bind(
            town.env.clone(),
            LOCAL,
            &town.tls(name, role),
            Identity::new("unit-1a".into(), Incarnation(1)),
            Arc::new(Mirror),
        );
        let error = bound.expect_err("another's certificate");
        assert!(matches!(error, BindError::Certificate { .. }), "{error}");
        assert!(error.to_string().contains("unit-1a"), "{error}");
    }
}

#[test]
fn a_server_needs_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let town = runtime.block_on(async { Town::new() });
    let bound = QuicServer::bind(
        town.env.clone(),
        LOCAL,
        &town.tls("unit-1a", Role::Server),
        Identity::new("unit-1a".into(), Incarnation(1)),
        Arc::new(Mirror),
    );
    let error = bound.expect_err("no runtime");
    assert!(matches!(error, BindError::NoRuntime(_)), "{error}");
}
