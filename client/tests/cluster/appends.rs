//! Appends: grouped, and exactly once whatever gets lost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use milonga_client::ClientOptions;
use milonga_protocol::messages::{Request, SequencerRequest, UnitRequest};
use milonga_protocol::{
    AppendError, Epoch, Limits, Log, NewEntry, Position, ReadAnswer, StreamId, TailOf,
};

use crate::fake::{Fake, Fault, Held};
use crate::{S, append, background, client, client_with, play, sleep_ms, target, texts};

fn is_write(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Write { .. }))
}

fn is_tokens(request: &Request) -> bool {
    matches!(request, Request::Sequencer(SequencerRequest::Tokens { .. }))
}

/// Answers `true` the first `n` times.
fn first(n: usize) -> impl Fn() -> bool + Send + Sync {
    let left = AtomicUsize::new(n);
    move || {
        let take = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        left.fetch_update(order, order, take).is_ok()
    }
}

/// Reads the whole stream and checks that `want` is there, each text once.
async fn check_once(fake: &Arc<Fake>, want: &[&str]) {
    let reader = client(fake).await;
    let to = target(&reader).await;
    let entries = play(&reader, Position::ZERO, to).await;
    let mut got = texts(&entries.expect("all can be read"));
    got.sort();
    assert_eq!(got, want);
}

#[tokio::test(start_paused = true)]
async fn an_append_is_on_every_replica_of_its_chain() {
    let fake = Fake::new(2, 3);
    let client = client(&fake).await;
    for (n, text) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(append(&client, text).await, Position(n as u64));
    }
    for n in 0..3 {
        let held = fake.held(Position(n));
        assert_eq!(held.len(), 3);
        assert!(held.iter().all(|h| matches!(h, Some(Held::Data(_)))));
    }
    check_once(&fake, &["a", "b", "c"]).await;
}

#[tokio::test(start_paused = true)]
async fn appends_that_wait_travel_together() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    let appends = (0..1_000).map(|n| client.append(NewEntry::new([S], format!("{n}"))));
    let mut positions: Vec<_> = join_all(appends)
        .await
        .into_iter()
        .map(|appended| appended.expect("no faults").position.0)
        .collect();
    positions.sort_unstable();
    assert!(positions.into_iter().eq(0..1_000));
    assert_eq!(fake.served(is_tokens), 1);
    assert_eq!(fake.served(is_write), 4);
}

#[tokio::test(start_paused = true)]
async fn whoever_loses_the_head_writes_again_elsewhere() {
    let fake = Fake::new(1, 2);
    let (slow, other) = (client(&fake).await, client(&fake).await);
    let late = first(1);
    fake.faults(move |to, request| match request {
        Request::Unit(UnitRequest::Write { .. }) if to.name.as_str() == "unit-1a" && late() => {
            Fault::Delay(Duration::from_millis(500))
        }
        _ => Fault::None,
    });
    let slow_append = slow.append(NewEntry::new([S], "slow"));
    let slow_append = background(&fake, slow_append);
    sleep_ms(&fake, 10).await;
    other
        .settle(Position(0), Position(1))
        .await
        .expect("settled");
    let appended = slow_append.await.expect("goes elsewhere");
    assert_eq!(appended.position, Position(1));
    assert_eq!(appended.id.sequence, 2, "a new entry id for the new try");
    assert!(matches!(fake.held(Position(0))[1], Some(Held::Junk)));
    check_once(&fake, &["slow"]).await;
}

/// Seals the cluster when the `n`-th write arrives at `unit`, before it is served.
fn seal_at(fake: &Arc<Fake>, unit: &'static str, lose: Fault) {
    let (weak, now): (Weak<Fake>, _) = (Arc::downgrade(fake), first(1));
    fake.faults(move |to, request| {
        if is_write(request) && to.name.as_str() == unit && now() {
            weak.upgrade().expect("the test holds it").seal();
            return lose;
        }
        Fault::None
    });
}

#[tokio::test(start_paused = true)]
async fn sealed_between_head_and_tail_the_own_write_is_found() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    seal_at(&fake, "unit-1b", Fault::None);
    let appended = client.append(NewEntry::new([S], "mine")).await;
    let appended = appended.expect("the settled position holds it");
    assert_eq!((appended.position, appended.id.sequence), (Position(0), 1));
    assert_eq!(client.layout().layout.epoch, Epoch(2));
    assert!(matches!(fake.held(Position(0))[1], Some(Held::Data(_))));
    check_once(&fake, &["mine"]).await;
}

#[tokio::test(start_paused = true)]
async fn sealed_before_the_head_a_closed_position_is_junk_and_the_append_goes_elsewhere() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let lose = first(1);
    fake.faults(move |to, request| {
        if is_write(request) && to.name.as_str() == "unit-1a" && lose() {
            return Fault::Silence;
        }
        Fault::None
    });
    let mine = background(&fake, client.append(NewEntry::new([S], "mine")));
    sleep_ms(&fake, 10).await;
    assert_eq!(append(&client, "other").await, Position(1));
    fake.reconfigure();
    let appended = mine.await.expect("goes elsewhere");
    assert_eq!(appended.position, Position(2));
    assert!(matches!(fake.held(Position(0))[0], Some(Held::Junk)));
    check_once(&fake, &["mine", "other"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_above_the_next_start_is_void() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    seal_at(&fake, "unit-1a", Fault::LoseRequest);
    let appended = client.append(NewEntry::new([S], "mine")).await;
    let appended = appended.expect("written under the next epoch");
    assert_eq!(appended.position, Position(0), "granted again");
    assert_eq!(appended.id.sequence, 2);
    let is_fill = |r: &Request| matches!(r, Request::Unit(UnitRequest::Fill { .. }));
    assert_eq!(fake.served(is_fill), 0, "a void position is not filled");
    check_once(&fake, &["mine"]).await;
}

#[tokio::test(start_paused = true)]
async fn lost_messages_never_write_twice() {
    for fault in [Fault::LoseReply, Fault::LoseRequest, Fault::Silence] {
        let fake = Fake::new(2, 2);
        let client = client(&fake).await;
        let count = AtomicUsize::new(0);
        fake.faults(move |_, request| {
            let ours = is_write(request) || is_tokens(request);
            if ours && count.fetch_add(1, Ordering::Relaxed) % 3 != 2 {
                return fault;
            }
            Fault::None
        });
        let texts = ["a", "b", "c", "d"];
        for text in texts {
            append(&client, text).await;
        }
        fake.no_faults();
        check_once(&fake, &texts).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_and_a_new_epoch_together_find_the_own_write() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    seal_after_serving(&fake);
    let appended = client.append(NewEntry::new([S], "mine")).await;
    let appended = appended.expect("found");
    assert_eq!((appended.position, appended.id.sequence), (Position(0), 1));
    check_once(&fake, &["mine"]).await;
}

/// The tail's answer is lost, and then the epoch ends.
fn seal_after_serving(fake: &Arc<Fake>) {
    let (weak, step) = (Arc::downgrade(fake), AtomicUsize::new(0));
    fake.faults(move |to, request| {
        if !is_write(request) || to.name.as_str() != "unit-1b" {
            return Fault::None;
        }
        match step.fetch_add(1, Ordering::Relaxed) {
            0 => Fault::LoseReply,
            1 => {
                weak.upgrade().expect("the test holds it").seal();
                Fault::None
            }
            _ => Fault::None,
        }
    });
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_and_the_error_says_what_was_written() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.faults(|_, _| Fault::Unreachable);
    let began = fake.env.now();
    let error = client
        .append(NewEntry::new([S], "x"))
        .await
        .expect_err("nobody");
    assert!(
        matches!(&error, AppendError::Unavailable { what, .. } if what.contains("sequencer-1"))
    );
    assert!(error.is_retryable());
    let took = fake.env.now().since(began);
    assert!(
        took >= Duration::from_secs(30) && took < Duration::from_secs(31),
        "{took:?}"
    );

    fake.faults(|to, _| match to.name.as_str() {
        "unit-1a" => Fault::Unreachable,
        _ => Fault::None,
    });
    let error = client
        .append(NewEntry::new([S], "y"))
        .await
        .expect_err("no head");
    assert!(
        matches!(error, AppendError::Unavailable { .. }),
        "surely not written: {error}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_finished_in_the_background_under_its_id() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.faults(|to, request| match to.name.as_str() {
        "unit-1b" if is_write(request) => Fault::Silence,
        _ => Fault::None,
    });
    let error = client
        .append(NewEntry::new([S], "x"))
        .await
        .expect_err("no tail");
    let AppendError::OutcomeUnknown { id, .. } = error else {
        panic!("the head has it: {error}");
    };
    assert!(matches!(fake.held(Position(0))[..], [Some(_), None]));
    fake.no_faults();
    sleep_ms(&fake, 5_000).await;
    let answers = client.read(vec![Position(0)]).await.expect("readable");
    assert!(matches!(&answers[0], ReadAnswer::Data(entry) if entry.id == id));
    check_once(&fake, &["x"]).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_unknown_outcome_there_is_no_second_try() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.faults(|to, request| match to.name.as_str() {
        "unit-1a" if is_write(request) => Fault::Silence,
        _ => Fault::None,
    });
    let error = client
        .append(NewEntry::new([S], "x"))
        .await
        .expect_err("silent head");
    assert!(matches!(error, AppendError::OutcomeUnknown { .. }));
    assert!(!error.is_retryable());
    fake.reconfigure();
    fake.no_faults();
    sleep_ms(&fake, 70_000).await;
    let tail = client.tail(TailOf::Log).await.expect("answers");
    assert_eq!(tail.next, Position(0), "nothing was granted to it again");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_told_at_once_and_leaves_no_hole() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    fake.world().units[0].full = true;
    let error = client
        .append(NewEntry::new([S], "b"))
        .await
        .expect_err("full");
    assert_eq!(
        error,
        AppendError::Full {
            unit: "unit-1a".into()
        }
    );
    sleep_ms(&fake, 10).await;
    assert!(matches!(
        fake.held(Position(1))[..],
        [Some(Held::Junk), Some(Held::Junk)]
    ));
    fake.world().units[0].full = false;
    append(&client, "c").await;
    check_once(&fake, &["a", "c"]).await;
}

#[tokio::test(start_paused = true)]
async fn too_far_above_the_settled_mark_it_settles_and_goes_on() {
    let mut limits = Limits::default();
    limits.positions_ahead = 8;
    let fake = Fake::with(2, 2, limits);
    let client = client(&fake).await;
    append(&client, "a").await;
    for _ in 0..40 {
        fake.take_token(&[S]);
    }
    append(&client, "b").await;
    check_once(&fake, &["a", "b"]).await;
}

/// A head that hears of no appends has to be told what is settled before it fills.
#[tokio::test(start_paused = true)]
async fn a_hole_far_above_what_the_head_knows_is_filled() {
    let mut limits = Limits::default();
    limits.positions_ahead = 8;
    let fake = Fake::with(1, 2, limits);
    let client = client(&fake).await;
    for _ in 0..30 {
        append(&client, "a").await;
    }
    let hole = fake.take_token(&[S]).position;
    fake.world().units[0].settled = Position::ZERO;
    client.settle(hole, hole.next()).await.expect("settled");
    assert_eq!(client.read(vec![hole]).await, Ok(vec![ReadAnswer::Junk]));
}

#[tokio::test(start_paused = true)]
async fn limits_are_checked_before_anything_is_sent() {
    let mut limits = Limits::default();
    limits.entry_bytes = 10;
    limits.streams_per_entry = 2;
    let fake = Fake::with(1, 1, limits);
    let client = client(&fake).await;
    let error = client.append(NewEntry::new([S], vec![0; 11])).await;
    assert_eq!(
        error,
        Err(AppendError::TooLarge {
            size: 11,
            limit: 10
        })
    );
    for streams in [vec![S, S], (0..3).map(StreamId::raw).collect()] {
        let count = streams.len();
        let error = client.append(NewEntry::new(streams, "x")).await;
        let want = AppendError::Streams {
            streams: count,
            limit: 2,
        };
        assert_eq!(error, Err(want));
    }
    assert_eq!(
        fake.served(is_tokens),
        0,
        "no token without an entry in hand"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_is_bounded() {
    let fake = Fake::new(1, 1);
    let mut options = ClientOptions::default();
    (options.in_flight_bytes, options.in_flight_entries) = (1_000, 10);
    options.deadline = Duration::from_secs(3);
    options.background = Duration::from_secs(3);
    let client = client_with(&fake, options).await;
    fake.faults(|_, request| {
        if is_write(request) {
            Fault::Silence
        } else {
            Fault::None
        }
    });
    let appends = (0..30).map(|n| client.append(NewEntry::new([S], format!("{n}"))));
    let outcomes = join_all(appends).await;
    let unknown = |o: &Result<_, _>| matches!(o, Err(AppendError::OutcomeUnknown { .. }));
    assert_eq!(outcomes.iter().filter(|o| unknown(o)).count(), 10);
    let not_sent = |o: &Result<_, _>| matches!(o, Err(AppendError::Unavailable { .. }));
    assert_eq!(outcomes.iter().filter(|o| not_sent(o)).count(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_append_goes_on() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let append = client.append(NewEntry::new([S], "dropped"));
    let never = client.append(NewEntry::new([S], "never polled"));
    tokio::select! {
        biased;
        _ = append => panic!("too early"),
        () = std::future::ready(()) => {}
    }
    drop(never);
    sleep_ms(&fake, 10).await;
    check_once(&fake, &["dropped"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_asked_again() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    let busy = first(3);
    fake.faults(move |_, request| {
        if is_write(request) && busy() {
            Fault::Unreachable
        } else {
            Fault::None
        }
    });
    append(&client, "a").await;
    check_once(&fake, &["a"]).await;
}
