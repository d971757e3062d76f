//! Members of the cluster that misbehave: their connection suffers, nobody else's.

use bytes::BytesMut;
use milonga_protocol::frame::{FrameKind, WIRE_VERSION, write};
use milonga_protocol::messages::Handshake;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream};

use super::*;
use crate::quic::failure::Close;
use crate::quic::greeting;
use crate::quic::settings::{client_config, server_config, socket};

/// A caller that speaks QUIC by hand.
struct Raw {
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    to: SocketAddr,
}

impl Raw {
    fn new(town: &Town, server: &QuicServer) -> Self {
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = socket(LOCAL).expect("a free port");
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime);
        Self {
            endpoint: endpoint.expect("an endpoint"),
            config: client_config(&town.tls("raw", Role::Client), &town.bounds).expect("fine"),
            to: server.local_addr(),
        }
    }

    async fn connect(&self) -> Result<Connection, ConnectionError> {
        self.endpoint
            .connect_with(self.config.clone(), self.to, "unit-1a")
            .expect("valid")
            .await
    }

    /// A connection on which both sides have said who they are.
    async fn greeted(&self) -> (Connection, SendStream, RecvStream) {
        let connection = self.connect().await.expect("connected");
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&hello(WIRE_VERSION)).await.expect("sent");
        let mut answer = [0; 24];
        recv.read_exact(&mut answer).await.expect("a handshake");
        (connection, send, recv)
    }
}

fn hello(version: u8) -> Bytes {
    greeting::frame(&Handshake {
        version,
        cluster: None,
        name: "raw".into(),
        incarnation: Incarnation(9),
    })
}

fn frame(kind: FrameKind, len: usize) -> Vec<u8> {
    let message = Message {
        header: Bytes::from(vec![1; len]),
        body: Bytes::new(),
    };
    let mut out = BytesMut::new();
    write(&mut out, kind, 5, &message).expect("small");
    out.to_vec()
}

fn changed(at: usize, to: u8) -> Vec<u8> {
    let mut bytes = frame(FrameKind::Request, 10);
    bytes[at] = to;
    bytes
}

fn closed_for(error: ConnectionError, close: Close) -> String {
    match error {
        ConnectionError::ApplicationClosed(closed) if closed.error_code == close.code() => {
            String::from_utf8_lossy(&closed.reason).into_owned()
        }
        other => panic!("{other:?}"),
    }
}

/// Bad bytes and a part of the reason for which the connection is closed.
fn bad_bytes() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (vec![0; 100], "is another program on this port?"),
        (changed(4, 9), "wire version 9"),
        (changed(5, 77), "unknown kind of frame 77"),
        (changed(19, 0x70), "over the limit"),
        (changed(23, 0x70), "over the limit"),
        (
            frame(FrameKind::Request, 10)[..30].to_vec(),
            "in the middle of a frame",
        ),
        (b"MLG".to_vec(), "in the middle of a frame"),
    ]
}

#[tokio::test]
async fn bad_frames_close_their_connection_and_no_other() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let friend = town.client("app");
    let to = peer("unit-1a", &server);
    let raw = Raw::new(&town, &server);
    let mut after_handshake = bad_bytes();
    after_handshake.push((frame(FrameKind::Response, 3), "must not send a Response"));
    after_handshake.push((hello(WIRE_VERSION).to_vec(), "must not send a Handshake"));
    for (bytes, reason) in after_handshake {
        let (connection, mut send, _recv) = raw.greeted().await;
        send.write_all(&bytes).await.expect("sent");
        let _ = send.finish();
        let why = closed_for(connection.closed().await, Close::Malformed);
        assert!(why.contains(reason), "{why}");
        town.call(&friend, &to).await.expect("undisturbed");
    }
    // The friend's is left.
    while server.endpoint.open_connections() > 1 {
        town.env.sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn bad_first_frames_are_refused() {
    let town = Town::new();
    let server = town.serve("unit-1a");
    let raw = Raw::new(&town, &server);
    let mut first = bad_bytes();
    first.push((frame(FrameKind::Request, 3), "was no handshake"));
    first.push((
        frame(FrameKind::Handshake, 200),
        "cannot decode a handshake",
    ));
    for (bytes, reason) in first {
        let connection = raw.connect().await.expect("connected");
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&bytes).await.expect("sent");
        let _ = send.finish();
        let why = closed_for(connection.closed().await, Close::Malformed);
        assert!(why.contains(reason), "{why}");
    }
    let connection = raw.connect().await.expect("connected");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&hello(WIRE_VERSION + 1))
        .await
        .expect("sent");
    let why = closed_for(connection.closed().await, Close::Refused);
    assert!(why.contains("the same version"), "{why}");
}

#[tokio::test]
async fn whoever_says_nothing_is_sent_away() {
    let mut town = Town::new();
    town.bounds.handshake = Duration::from_millis(300);
    let server = town.serve("unit-1a");
    let raw = Raw::new(&town, &server);
    for bytes in [&b""[..], b"ML"] {
        let connection = raw.connect().await.expect("connected");
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("sent");
        // Not for good: a caller whose frame was lost tries again.
        let why = closed_for(connection.closed().await, Close::Done);
        assert!(why.contains("no handshake came in time"), "{why}");
    }
}

#[tokio::test]
async fn a_flood_of_connections_is_bounded() {
    let mut town = Town::new();
    town.bounds.connections = 8;
    let server = town.serve("unit-1a");
    let friend = town.client("app");
    let to = peer("unit-1a", &server);
    town.call(&friend, &to).await.expect("answered");
    let raw = Raw::new(&town, &server);
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        match raw.connect().await {
            Ok(connection) => open.push(connection),
            Err(ConnectionError::ConnectionClosed(_)) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
        assert!(server.endpoint.open_connections() <= 8);
    }
    assert_eq!((open.len(), refused), (7, 33));
    town.call(&friend, &to).await.expect("undisturbed");

    let late = town.client("late");
    let error = town.call(&late, &to).await.expect_err("full");
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("too many"), "{error}");
    drop(open);
    while town.call(&late, &to).await.is_err() {}
}

/// A server that answers the handshake with `first`, and the first request with `then`.
fn bad_server(town: &Town, first: Vec<u8>, then: Vec<u8>) -> (Endpoint, Peer) {
    let config = server_config(&town.tls("unit-1a", Role::Server), &town.bounds).expect("fine");
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = socket(LOCAL).expect("a free port");
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime);
    let endpoint = endpoint.expect("an endpoint");
    let to = Peer {
        name: "unit-1a".into(),
        address: endpoint.local_addr().expect("bound").to_string().into(),
    };
    let accepting = endpoint.clone();
    let serve = async move {
        while let Some(incoming) = accepting.accept().await {
            let connection = incoming.await.expect("connected");
            let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
            send.write_all(&first).await.expect("sent");
            let mut bytes = vec![0; hello(WIRE_VERSION).len() + 2];
            if recv.read_exact(&mut bytes).await.is_ok() {
                let _ = send.write_all(&then).await;
            }
            connection.closed().await;
        }
    };
    town.env.spawn("bad server", Box::pin(serve)).detach();
    (endpoint, to)
}

#[tokio::test]
async fn a_server_that_sends_bad_frames_is_left() {
    let town = Town::new();
    for (bytes, reason) in bad_bytes()
        .into_iter()
        .filter(|(bytes, _)| bytes.len() > 30)
    {
        let (_endpoint, to) = bad_server(&town, bytes.clone(), Vec::new());
        let error = town.call(&town.client("app"), &to).await.expect_err("bad");
        assert!(matches!(error, CallError::Handshake { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");

        let (_endpoint, to) = bad_server(&town, hello(WIRE_VERSION).to_vec(), bytes);
        let error = town.call(&town.client("app"), &to).await.expect_err("bad");
        assert!(matches!(error, CallError::Dropped { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn replies_that_nobody_reads_are_bounded() {
    let mut town = Town::new();
    town.bounds.reply_bytes = 4 << 20;
    town.bounds.in_flight_bytes = 1 << 30;
    let server = town.serve("unit-1a");
    let raw = Raw::new(&town, &server);
    let (_connection, mut send, _unread) = raw.greeted().await;
    let message = Message {
        header: Bytes::new(),
        body: Bytes::from(vec![0; 100_000]),
    };
    // 40 MB come back, of which the windows take a part and the queue its bound.
    for call in 0..400 {
        let mut out = BytesMut::new();
        write(&mut out, FrameKind::Request, call, &message).expect("fits");
        send.write_all(&out)
            .await
            .expect("taken: replies do not block requests");
    }
    let friend = town.client("app");
    town.call(&friend, &peer("unit-1a", &server))
        .await
        .expect("undisturbed");
}
