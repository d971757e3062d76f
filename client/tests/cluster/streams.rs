//! Streams: in order, never past a hole, holes filled together, targets lowered.

use std::time::Duration;

use milonga_protocol::messages::{Request, UnitRequest};
use milonga_protocol::{Epoch, Log, LogError, Position, Target};

use crate::fake::{Fake, Fault};
use crate::{S, append, background, client, play, sleep_ms, stream_read, target, texts};

fn is_read(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::ReadStreams { .. }))
}

fn is_fill(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Fill { .. }))
}

#[tokio::test(start_paused = true)]
async fn a_hole_is_waited_for_filled_and_never_passed() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    let hole = fake.take_token(&[S]).position;
    append(&client, "b").await;
    let to = target(&client).await;
    let first = client.read_streams(stream_read(Position::ZERO, to)).await;
    let first = first.expect("something at once");
    assert_eq!(
        (texts(&first.entries), first.complete),
        (vec!["a".into()], hole)
    );
    let began = fake.env.now();
    let rest = play(&client, first.complete, to).await.expect("filled");
    assert_eq!(texts(&rest), ["b"]);
    let took = fake.env.now().since(began);
    assert!(
        took > Duration::from_millis(15) && took < Duration::from_millis(30),
        "{took:?}"
    );
    assert!(fake.served(is_read) < 12, "no polling");
}

#[tokio::test(start_paused = true)]
async fn a_late_write_in_time_is_delivered_at_once() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    let late = fake.take_token(&[S]);
    append(&client, "b").await;
    let to = target(&client).await;
    let began = fake.env.now();
    let reader = client.clone();
    let played = background(
        &fake,
        async move { play(&reader, Position::ZERO, to).await },
    );
    sleep_ms(&fake, 8).await;
    assert!(fake.write(&late, b"late", 2));
    let played = played.await.expect("no faults");
    assert_eq!(texts(&played), ["late", "b"]);
    assert!(fake.env.now().since(began) < Duration::from_millis(12));
    assert_eq!(fake.served(is_fill), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_writers_half_write_is_finished_by_the_reader() {
    let fake = Fake::new(1, 3);
    let client = client(&fake).await;
    let half = fake.take_token(&[S]);
    assert!(fake.write(&half, b"half", 1));
    append(&client, "b").await;
    let to = target(&client).await;
    let played = play(&client, Position::ZERO, to).await.expect("settled");
    assert_eq!(texts(&played), ["half", "b"]);
}

#[tokio::test(start_paused = true)]
async fn many_holes_are_filled_together() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for n in 0..256 {
        if n % 10 == 5 {
            append(&client, "x").await;
        }
        fake.take_token(&[S]);
    }
    append(&client, "end").await;
    let to = target(&client).await;
    let began = fake.env.now();
    let played = play(&client, Position::ZERO, to).await.expect("filled");
    assert_eq!(played.len(), 27);
    let took = fake.env.now().since(began);
    assert!(
        took < Duration::from_millis(40),
        "in parallel, not in series: {took:?}"
    );
    assert_eq!(fake.served(is_fill), 2, "one for each chain");
}

#[tokio::test(start_paused = true)]
async fn below_the_epochs_start_nothing_is_waited_for() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for _ in 0..5 {
        fake.take_token(&[S]);
        append(&client, "x").await;
    }
    fake.reconfigure();
    sleep_ms(&fake, 10).await;
    let to = target(&client).await;
    assert_eq!(to.epoch, Epoch(2));
    let began = fake.env.now();
    let played = play(&client, Position::ZERO, to).await.expect("settled");
    assert_eq!(played.len(), 5);
    let took = fake.env.now().since(began);
    assert!(took < Duration::from_millis(8), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_target_is_lowered_when_its_epoch_ends() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    for _ in 0..3 {
        fake.take_token(&[S]);
    }
    let to = target(&client).await;
    assert_eq!(
        to,
        Target {
            epoch: Epoch(1),
            to: Position(4)
        }
    );
    // The head of the first hole is slow: the epoch ends while the reader waits.
    let reader = client.clone();
    let read = stream_read(Position(1), to);
    let part = background(&fake, async move { reader.read_streams(read).await });
    sleep_ms(&fake, 5).await;
    fake.reconfigure();
    let part = part.await.expect("lowered");
    assert_eq!(
        part.target,
        Target {
            epoch: Epoch(2),
            to: Position(1)
        }
    );
    assert!(part.is_done() && part.entries.is_empty());
    assert_eq!(
        fake.served(is_fill),
        0,
        "positions above the start belong to the next epoch"
    );
    assert_eq!(append(&client, "b").await, Position(1));
    let played = play(&client, Position::ZERO, target(&client).await).await;
    assert_eq!(texts(&played.expect("no holes")), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn reading_below_the_trim_mark_is_an_error() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for text in ["a", "b", "c", "d"] {
        append(&client, text).await;
    }
    client.trim(Position(2)).await.expect("trims");
    let to = target(&client).await;
    let error = play(&client, Position::ZERO, to).await;
    let want = LogError::Trimmed {
        below: Position(2),
        from: Position(0),
    };
    assert_eq!(error.expect_err("trimmed"), want);
    let rest = play(&client, Position(2), to).await.expect("there");
    assert_eq!(texts(&rest), ["c", "d"]);
}

/// Nobody appends any more, perhaps because the disk is full: then nobody but the reader tells replicas what is settled.
#[tokio::test(start_paused = true)]
async fn holes_are_filled_for_ever_without_an_append_in_between() {
    let mut limits = milonga_protocol::Limits::default();
    limits.positions_ahead = 8;
    let fake = Fake::with(2, 3, limits);
    let client = client(&fake).await;
    append(&client, "a").await;
    for _ in 0..40 {
        fake.take_token(&[S]);
        let to = target(&client).await;
        let played = play(&client, Position::ZERO, to).await;
        assert_eq!(texts(&played.expect("filled")), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_entry_comes_from_another_replica_or_stops_the_stream() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for text in ["a", "b", "c"] {
        append(&client, text).await;
    }
    let to = target(&client).await;
    fake.lose(Position(1), |place| place == 1);
    let played = play(&client, Position::ZERO, to).await.expect("spliced in");
    assert_eq!(texts(&played), ["a", "b", "c"]);
    fake.lose(Position(1), |_| true);
    let part = client.read_streams(stream_read(Position::ZERO, to)).await;
    assert_eq!(part.expect("up to it").complete, Position(1));
    let error = client.read_streams(stream_read(Position(1), to)).await;
    assert_eq!(
        error,
        Err(LogError::Lost {
            position: Position(1)
        })
    );
}

#[tokio::test(start_paused = true)]
async fn a_part_is_bounded_and_reading_goes_on_through_faults() {
    let fake = Fake::new(3, 2);
    let client = client(&fake).await;
    for n in 0..60 {
        append(&client, &format!("{n:02}")).await;
    }
    let to = target(&client).await;
    let count = std::sync::atomic::AtomicUsize::new(0);
    fake.faults(move |_, request| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match (is_read(request), n % 5) {
            (true, 0) => Fault::LoseReply,
            (true, 2) => Fault::Delay(Duration::from_millis(3)),
            _ => Fault::None,
        }
    });
    let (mut read, mut got) = (stream_read(Position::ZERO, to), Vec::new());
    read.max_bytes = 200;
    loop {
        let part = client.read_streams(read.clone()).await.expect("goes on");
        assert!(part.entries.len() < 20, "about 200 bytes");
        got.extend(texts(&part.entries));
        if part.is_done() {
            break;
        }
        (read.from, read.target) = (part.complete, part.target);
    }
    assert!(got.into_iter().eq((0..60).map(|n| format!("{n:02}"))));
}

#[tokio::test(start_paused = true)]
async fn a_hole_that_cannot_be_filled_is_an_error_by_the_deadline() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.take_token(&[S]);
    append(&client, "a").await;
    let to = target(&client).await;
    fake.faults(|to, _| match to.name.as_str() {
        "unit-1a" => Fault::Silence,
        _ => Fault::None,
    });
    let began = fake.env.now();
    let error = play(&client, Position::ZERO, to)
        .await
        .expect_err("no head");
    assert!(matches!(error, LogError::Unavailable { .. }), "{error}");
    let took = fake.env.now().since(began);
    assert!(took <= Duration::from_secs(31), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_follows_without_polling() {
    let fake = Fake::new(2, 2);
    let (reader, writer) = (client(&fake).await, client(&fake).await);
    append(&writer, "0").await;
    let mut subscription = reader.subscribe([S], Position::ZERO);
    let env = fake.env.clone();
    let written = background(&fake, async move {
        for n in 1..20 {
            env.sleep(Duration::from_millis(700)).await;
            append(&writer, &n.to_string()).await;
        }
    });
    for n in 0..20 {
        let (position, entry) = subscription.next().await.expect("follows");
        assert_eq!(entry.payload, n.to_string());
        assert_eq!(position, Position(n));
        assert_eq!(subscription.position(), position.next());
    }
    written.await;
    let is_wait = |r: &Request| {
        matches!(
            r,
            Request::Sequencer(milonga_protocol::messages::SequencerRequest::Wait { .. })
        )
    };
    assert!(fake.served(is_wait) < 45, "about one a second and entry");
}

#[tokio::test(start_paused = true)]
async fn slow_appends_do_not_make_holes_wait_for_ever() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Fault::Delay(Duration::from_millis(1_900)),
        _ => Fault::None,
    });
    append(&client, "slow").await;
    fake.no_faults();
    fake.take_token(&[S]);
    append(&client, "b").await;
    let began = fake.env.now();
    let to = target(&client).await;
    let played = play(&client, Position::ZERO, to).await.expect("filled");
    assert_eq!(texts(&played), ["slow", "b"]);
    let took = fake.env.now().since(began);
    assert!(took < Duration::from_secs(3), "{took:?}");
}
