//! Servers and networks that go and come back.

use std::sync::mpsc;

use super::*;
use crate::quic::BindError;
use crate::quic::link::Link;

#[tokio::test]
async fn a_taken_port_is_named() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let bound = QuicServer::bind(
        town.env.clone(),
        server.local_addr(),
        &town.tls("unit-1b", Role::Server),
        Identity::new("unit-1b".into(), Incarnation(1)),
        Arc::new(Mirror),
    );
    let error = bound.expect_err("taken");
    assert!(matches!(error, BindError::Address { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&server.local_addr().to_string()), "{text}");
    assert!(text.contains("stop the process"), "{text}");
}

#[tokio::test]
async fn a_closed_server_has_freed_its_address() {
    let town = Town::new();
    let client = town.client("app");
    let mut address = LOCAL;
    for round in 0..50 {
        let server = town.serve_as(address, Identity::new("unit-1a".into(), Incarnation(round)));
        address = server.local_addr();
        let to = peer("unit-1a", &server);
        if round % 2 == 0 {
            while town.call(&client, &to).await.is_err() {}
        }
        server.close().await;
    }
}

#[tokio::test]
async fn a_dropped_network_closes_its_connections() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let to = peer("unit-1a", &server);
    let client = town.client("app");
    town.call(&client, &to).await.expect("answered");
    let deadline = town.env.now().after(Duration::from_secs(20));
    let hold = Message {
        header: Bytes::from_static(b"hold"),
        body: Bytes::new(),
    };
    let held = client.call(&to, hold, deadline);
    let late = client.call(&to, Message::default(), deadline);
    let held = tokio::join!(held, async {
        town.env.sleep(Duration::from_millis(50)).await;
        drop(client);
    })
    .0;
    assert!(matches!(held, Err(CallError::Dropped { .. })), "{held:?}");
    let late = late.await;
    assert!(
        matches!(late, Err(CallError::Unreachable { .. })),
        "{late:?}"
    );
    while server.endpoint.open_connections() > 0 {
        town.env.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn names_that_do_not_resolve_are_unreachable() {
    let town = Town::new();
    for address in ["no such host:1", "127.0.0.1", "host.invalid:9000"] {
        let to = Peer {
            name: "unit-1a".into(),
            address: address.into(),
        };
        let error = town
            .call(&town.client("app"), &to)
            .await
            .expect_err("nowhere");
        assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("host:port"), "{error}");
    }
}

/// A server in a runtime of its own, which can be ended like a killed process: without a farewell.
struct Killable {
    address: SocketAddr,
    kill: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

#[expect(clippy::disallowed_methods, reason = "stands for another process")]
fn killable(tls: Tls, address: SocketAddr) -> Killable {
    let (kill, killed) = mpsc::channel();
    let (bound, address_of) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let inside = runtime.enter();
        let identity = Identity::new(tls.name().clone(), Incarnation(1));
        let env = TokioEnv::new();
        let server = QuicServer::bind(env, address, &tls, identity, Arc::new(Mirror))
            .expect("the port is free");
        bound.send(server.local_addr()).expect("the test waits");
        killed.recv().expect("the test kills");
        drop(inside);
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(server);
    });
    Killable {
        address: address_of.recv().expect("bound"),
        kill,
        thread,
    }
}

impl Killable {
    fn kill(self) {
        self.kill.send(()).expect("it runs");
        self.thread.join().expect("ended");
    }
}

/// What waits to be repeated fills the window, and is repeated ever more slowly.
#[tokio::test]
async fn a_killed_server_is_found_again_however_much_it_was_sent_before() {
    // Together as much as the window takes, so that nothing else is left to be sent, and much more.
    tokio::join!(found_again(2_850), found_again(200_000));
}

async fn found_again(bytes: usize) {
    let town = Town::new();
    let tls = town.tls("unit-1a", Role::Server);
    let client = town.client("app");
    let server = killable(tls.clone(), LOCAL);
    let address = server.address;
    let to = Peer {
        name: "unit-1a".into(),
        address: address.to_string().into(),
    };
    town.call(&client, &to).await.expect("it runs");
    server.kill();
    let now = town.env.now();
    let ask = |bytes, deadline| {
        let request = Message {
            body: Bytes::from(vec![0; bytes]),
            ..Message::default()
        };
        client.call(&to, request, deadline)
    };
    let call = || ask(bytes, now.after(Duration::from_millis(1_200)));
    let answers = tokio::join!(call(), call(), call(), call());
    assert!(answers.0.is_err() && answers.1.is_err() && answers.2.is_err() && answers.3.is_err());
    // Repeated 1.6 and 3.3 s after the kill, about.
    town.env
        .sleep_until(now.after(Duration::from_millis(1_800)))
        .await;
    let server = killable(tls, address);
    let deadline = town.env.now().after(Duration::from_millis(1_200));
    let answer = ask(2_000, deadline).await;
    server.kill();
    answer.unwrap_or_else(|error| panic!("it is back, after requests of {bytes} bytes: {error}"));
}

#[test]
fn a_server_that_was_only_slow_is_given_more_time() {
    let link = Link::new(Peer {
        name: "unit-1a".into(),
        address: "127.0.0.1:1".into(),
    });
    let silent = Duration::from_millis(500);
    let mut patience = Vec::new();
    for _ in 0..6 {
        patience.push(link.patience(silent).as_millis());
        link.was_slow();
    }
    assert_eq!(patience, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
    link.is_well();
    assert_eq!(link.patience(silent), silent);
}

#[tokio::test]
async fn a_killed_server_is_known_to_be_gone_as_soon_as_it_is_back() {
    let town = Town::new();
    let tls = town.tls("unit-1a", Role::Server);
    let client = town.client("app");
    let mut address = LOCAL;
    for _ in 0..3 {
        let server = killable(tls.clone(), address);
        address = server.address;
        let to = Peer {
            name: "unit-1a".into(),
            address: address.to_string().into(),
        };
        while town.call(&client, &to).await.is_err() {}
        let held = town.ask(&client, &to, "hold");
        let (held, took) = tokio::join!(held, async {
            town.env.sleep(Duration::from_millis(50)).await;
            server.kill();
            let begin = town.env.now();
            let server = killable(tls.clone(), address);
            let answer = loop {
                let deadline = town.env.now().after(Duration::from_secs(3));
                match client.call(&to, Message::default(), deadline).await {
                    Ok(_) => break town.env.now().since(begin),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
            };
            server.kill();
            answer
        });
        let held = held.expect_err("its server was killed");
        assert!(matches!(held, CallError::Dropped { .. }), "{held:?}");
        assert!(held.to_string().contains("has restarted"), "{held}");
        assert!(took < Duration::from_secs(3), "back only after {took:?}");
    }
}
