//! What must hold. Each check gets a world of its own.

use std::time::Duration;

use milonga_protocol::limits::FRAME_BYTES;
use milonga_transport::CallError;

use super::*;

const SHORT: Duration = Duration::from_millis(200);
/// How late a call may end after its deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(1_500);

pub(crate) async fn a_request_is_answered(world: World) {
    let sent = message("echo", "body");
    assert_eq!(world.call(sent.clone()).await, Ok(sent));
    let empty = Message::default();
    assert_eq!(world.call(empty.clone()).await, Ok(empty));
}

pub(crate) async fn many_requests_are_answered_each_with_its_own(world: World) {
    let world = Arc::new(world);
    let tasks: Vec<_> = (0..500u32)
        .map(|task| {
            let world = world.clone();
            tokio::spawn(async move {
                for n in 0..8u32 {
                    let len = (task * 37 + n * 1_013) as usize % 6_000;
                    let sent = message(&format!("{task} {n}"), vec![n as u8; len]);
                    assert_eq!(world.call(sent.clone()).await, Ok(sent));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

pub(crate) async fn each_request_is_served_once(world: World) {
    for n in 0..100 {
        world.call(message("echo", vec![n])).await.unwrap();
    }
    assert_eq!(world.toy.handled(), 100);
}

pub(crate) async fn a_call_ends_at_its_deadline(world: World) {
    // Connect first: the deadline is the server's to miss.
    world.call(Message::default()).await.unwrap();
    let begin = world.env.now();
    let error = world
        .call_within(SHORT, message("hold", ""))
        .await
        .unwrap_err();
    assert!(
        matches!(error, CallError::TimedOut { sent: true, .. }),
        "{error:?}"
    );
    assert!(error.may_have_been_served());
    let took = world.env.now().since(begin);
    assert!(took >= SHORT && took < SHORT + SLACK, "{took:?}");
}

pub(crate) async fn a_deadline_in_the_past_sends_nothing(world: World) {
    let error = world
        .call_within(Duration::ZERO, Message::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, CallError::TimedOut { sent: false, .. }),
        "{error:?}"
    );
    world.call(Message::default()).await.unwrap();
    assert_eq!(world.toy.handled(), 1);
}

pub(crate) async fn nothing_is_sent_before_the_first_poll(world: World) {
    let later = world.env.now().after(SHORT);
    drop(
        world
            .client
            .call(&world.under.peer(0), Message::default(), later),
    );
    world.call(Message::default()).await.unwrap();
    assert_eq!(world.toy.handled(), 1);
}

pub(crate) async fn a_dropped_reply_fails_the_call(world: World) {
    let begin = world.env.now();
    let error = world.call(message("drop", "")).await.unwrap_err();
    assert!(matches!(error, CallError::Dropped { .. }), "{error:?}");
    assert!(error.is_retryable() && error.may_have_been_served());
    assert!(
        world.env.now().since(begin) < Duration::from_secs(10),
        "at once"
    );
    world.call(Message::default()).await.unwrap();
}

pub(crate) async fn a_dropped_call_disturbs_nobody(world: World) {
    for n in 0..50u8 {
        let held = world.call(message("hold", vec![n]));
        tokio::select! {
            biased;
            _ = held => panic!("held back"),
            () = world.env.sleep(Duration::from_millis(2)) => {}
        }
    }
    world.toy.release();
    let sent = message("echo", "still there");
    assert_eq!(world.call(sent.clone()).await, Ok(sent));
}

pub(crate) async fn a_late_answer_reaches_nobody_else(world: World) {
    world.call(Message::default()).await.unwrap();
    for n in 0..20u8 {
        let late = world
            .call_within(Duration::from_millis(20), message("hold", vec![n]))
            .await;
        assert!(matches!(late, Err(CallError::TimedOut { .. })), "{late:?}");
        world.toy.release();
        let sent = message("echo", vec![n, n]);
        assert_eq!(world.call(sent.clone()).await, Ok(sent));
    }
}

pub(crate) async fn an_absent_server_is_unreachable(world: World) {
    let begin = world.env.now();
    let peer = world.under.peer(1);
    let error = call(&world.client, &peer, &world.env, SHORT, Message::default())
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
    assert!(error.is_retryable() && !error.may_have_been_served());
    assert!(error.to_string().contains("server-1"), "{error}");
    assert!(world.env.now().since(begin) < SHORT + SLACK);
}

pub(crate) async fn a_server_that_stops_fails_its_calls_and_comes_back(world: World) {
    let (env, client, peer) = (&world.env, &world.client, &world.under.peer(1));
    let toy = Arc::new(Toy::default());
    let running = world.under.serve(1, toy.clone()).await;
    let limit = Duration::from_secs(30);
    let in_flight = client.call(peer, message("hold", ""), env.now().after(limit));
    let in_flight = tokio::spawn(in_flight);
    while toy.handled() == 0 {
        env.sleep(Duration::from_millis(1)).await;
    }

    let begin = env.now();
    running.stop().await;
    let failed = in_flight.await.unwrap().unwrap_err();
    assert!(matches!(failed, CallError::Dropped { .. }), "{failed:?}");
    assert!(env.now().since(begin) < Duration::from_secs(5), "at once");
    let gone = call(client, peer, env, SHORT, Message::default()).await;
    assert!(
        matches!(gone, Err(CallError::Unreachable { .. })),
        "{gone:?}"
    );
    world.call(Message::default()).await.unwrap();

    let _running = world.under.serve(1, toy).await;
    let begin = env.now();
    let limit = Duration::from_secs(5);
    while let Err(error) = call(client, peer, env, limit, Message::default()).await {
        assert!(error.is_retryable(), "{error:?}");
        assert!(env.now().since(begin) < limit, "never back");
    }
}

pub(crate) async fn the_caller_is_known(world: World) {
    let answer = world.call(message("who", "")).await.unwrap();
    assert_eq!(answer.body, "client-0 Client");
    let other = world.under.client(1);
    let answer = call(
        &other,
        &world.under.peer(0),
        &world.env,
        Duration::from_secs(10),
        message("who", ""),
    )
    .await
    .unwrap();
    assert_eq!(answer.body, "client-1 Client");
}

pub(crate) async fn large_bodies_travel_beside_small_calls(world: World) {
    let world = Arc::new(world);
    let large: Vec<_> = [300 << 10, 4 << 20, FRAME_BYTES - 1_000]
        .into_iter()
        .map(|len| {
            let world = world.clone();
            tokio::spawn(async move {
                let sent = message("echo", vec![len as u8; len]);
                assert!(world.call(sent.clone()).await == Ok(sent), "{len} bytes");
                let grown = world.call(message("grow", len.to_string())).await.unwrap();
                assert!(grown.body.len() == len && grown.body.iter().all(|b| *b == 7));
            })
        })
        .collect();
    for n in 0..200 {
        let sent = message("echo", vec![n; 100]);
        assert_eq!(world.call(sent.clone()).await, Ok(sent));
    }
    for task in large {
        task.await.unwrap();
    }
}

pub(crate) async fn what_does_not_fit_a_frame_is_refused(world: World) {
    let error = world
        .call(message("echo", vec![0; FRAME_BYTES]))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error:?}");
    assert!(!error.is_retryable() && !error.may_have_been_served());
    assert_eq!(world.toy.handled(), 0);
    let error = world
        .call(message("grow", FRAME_BYTES.to_string()))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Dropped { .. }), "{error:?}");
    world.call(Message::default()).await.unwrap();
}

pub(crate) async fn clients_and_servers_do_not_disturb_each_other(world: World) {
    let mut servers = Vec::new();
    for n in 1..3 {
        let toy = Arc::new(Toy::default());
        servers.push(world.under.serve(n, toy).await);
    }
    let mut tasks = Vec::new();
    for client in 0..3 {
        let network = world.under.client(client);
        for server in 0..3 {
            let (network, env) = (network.clone(), world.env.clone());
            let peer = world.under.peer(server);
            tasks.push(tokio::spawn(async move {
                for n in 0..50u8 {
                    let sent = message("echo", vec![n, client as u8, server as u8]);
                    let limit = Duration::from_secs(20);
                    let echoed = call(&network, &peer, &env, limit, sent.clone()).await;
                    assert_eq!(echoed, Ok(sent));
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    for server in servers {
        server.stop().await;
    }
}

/// The world's bounds are small (see [`super::NetworkUnderTest`]'s makers): 1 MiB in flight, 1 MiB queued.
pub(crate) async fn a_service_that_does_not_answer_is_not_flooded(world: World) {
    world.call(Message::default()).await.unwrap();
    let world = Arc::new(world);
    let calls: Vec<_> = (0..400)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                world
                    .call_within(Duration::from_secs(2), message("hold", vec![0; 100_000]))
                    .await
            })
        })
        .collect();
    let mut unsent = 0;
    for call in calls {
        match call.await.unwrap().unwrap_err() {
            CallError::TimedOut { sent, .. } => unsent += usize::from(!sent),
            other => panic!("{other:?}"),
        }
    }
    let handled = world.toy.handled();
    assert!(handled <= 20, "{handled} requests of 100 kB reached it");
    assert!(unsent >= 100, "only {unsent} calls waited for room");
    // What had left this side is still served, and held, one bound after the other.
    let sent = message("echo", "goes on");
    let echo = world.call(sent.clone());
    tokio::pin!(echo);
    let echoed = loop {
        world.toy.release();
        tokio::select! {
            biased;
            echoed = &mut echo => break echoed,
            () = world.env.sleep(Duration::from_millis(10)) => {}
        }
    };
    assert_eq!(echoed, Ok(sent));
}
