//! Reads of positions, repair, trim.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use milonga_protocol::messages::{Request, UnitRequest};
use milonga_protocol::{Log, Position, ReadAnswer, TailOf};

use crate::fake::{Fake, Fault, Held};
use crate::{S, append, client, sleep_ms};

fn text(answer: &ReadAnswer) -> &[u8] {
    match answer {
        ReadAnswer::Data(entry) => &entry.payload,
        other => panic!("no data: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn each_position_answers_one_of_five_in_the_order_asked() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for text in ["a", "b", "c"] {
        append(&client, text).await;
    }
    let hole = fake.take_token(&[S]).position;
    let lost = append(&client, "lost").await;
    client.settle(hole, hole.next()).await.expect("settled");
    assert!(fake.lose(lost, |_| true));
    assert_eq!(client.trim(Position(1)).await, Ok(Position(1)));
    let asked = vec![
        lost,
        Position(2),
        hole,
        Position(0),
        lost.plus(9),
        Position(1),
    ];
    let answers = client.read(asked).await.expect("answers");
    assert_eq!(answers[0], ReadAnswer::Lost);
    assert_eq!(text(&answers[1]), b"c");
    assert_eq!(
        answers[2..5],
        [ReadAnswer::Junk, ReadAnswer::Trimmed, ReadAnswer::Unwritten]
    );
    assert_eq!(text(&answers[5]), b"b");
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_lost_comes_from_another_and_is_given_back() {
    for place in 0..3 {
        let fake = Fake::new(1, 3);
        let client = client(&fake).await;
        let position = append(&client, "a").await;
        append(&client, "b").await;
        fake.lose(position, |p| p == place);
        // Reads of settled positions take turns among the replicas.
        for _ in 0..3 {
            let answers = client.read(vec![position]).await.expect("answers");
            assert_eq!(text(&answers[0]), b"a");
        }
        sleep_ms(&fake, 10).await;
        let held = fake.held(position);
        assert!(
            held.iter().all(|h| matches!(h, Some(Held::Data(_)))),
            "{held:?}"
        );
    }
}

/// An operator is told what is junk now, not what looked lost for a while.
#[tokio::test(start_paused = true)]
async fn what_a_replica_finds_again_is_not_given_up() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let found = fake.take_token(&[S]);
    assert!(fake.write(&found, b"found", 2));
    let lost = append(&client, "lost").await;
    append(&client, "kept").await;
    fake.reconfigure();
    sleep_ms(&fake, 10).await;
    assert!(fake.lose(found.position, |_| true) && fake.lose(lost, |_| true));
    // Both replicas are read to find what is lost, and again to give it up.
    let (reads, world) = (AtomicUsize::new(0), Arc::downgrade(&fake));
    let again = found.clone();
    fake.faults(move |_, request| {
        if let Request::Unit(UnitRequest::Read { positions, .. }) = request
            && positions.contains(&again.position)
            && reads.fetch_add(1, Ordering::Relaxed) == 2
        {
            let fake = world.upgrade().expect("it is calling");
            assert!(fake.write(&again, b"found", 1));
        }
        Fault::None
    });
    let given_up = client.give_up_lost(Position(0), Position(100)).await;
    assert_eq!(given_up, Ok(vec![lost]));
    assert_eq!(fake.world().given_up, [(found.position, lost.next())]);
    let answers = client.read(vec![found.position, lost]).await;
    let answers = answers.expect("answers");
    assert_eq!(text(&answers[0]), b"found");
    assert_eq!(answers[1], ReadAnswer::Junk);
}

#[tokio::test(start_paused = true)]
async fn a_silent_replica_may_have_what_others_lost() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let position = append(&client, "a").await;
    fake.lose(position, |place| place == 1);
    fake.faults(|to, _| match to.name.as_str() {
        "unit-1a" => Fault::Unreachable,
        _ => Fault::None,
    });
    let error = client
        .read(vec![position])
        .await
        .expect_err("not lost for sure");
    assert!(error.is_retryable(), "{error}");
    fake.no_faults();
    let answers = client.read(vec![position]).await.expect("answers");
    assert_eq!(text(&answers[0]), b"a");
}

#[tokio::test(start_paused = true)]
async fn an_open_hole_is_unwritten_and_a_closed_one_is_decided() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let (hole, half) = (fake.take_token(&[S]), fake.take_token(&[S]));
    append(&client, "a").await;
    assert!(fake.write(&half, b"half", 1), "only the head has it");
    let asked = vec![hole.position, half.position];
    let answers = client.read(asked.clone()).await.expect("answers");
    assert_eq!(answers, [ReadAnswer::Unwritten, ReadAnswer::Unwritten]);
    assert!(
        fake.held(hole.position)[0].is_none(),
        "a read fills nothing"
    );
    fake.reconfigure();
    sleep_ms(&fake, 10).await;
    let answers = client.read(asked).await.expect("answers");
    assert_eq!(answers[0], ReadAnswer::Junk);
    assert_eq!(text(&answers[1]), b"half");
    assert!(matches!(fake.held(half.position)[1], Some(Held::Data(_))));
}

/// The newest epoch goes on without the tail, which does not know yet: what it has not got may be written by now.
#[tokio::test(start_paused = true)]
async fn a_tail_is_not_believed_alone_that_nothing_was_written() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let written = append(&client, "a").await;
    let hole = fake.take_token(&[S]).position;
    assert_eq!(
        client.read(vec![hole]).await,
        Ok(vec![ReadAnswer::Unwritten])
    );
    fake.world().heal = false;
    fake.world().units[0].sealed = true;
    let answer = client.read(vec![hole]).await;
    assert!(
        matches!(answer, Err(milonga_protocol::LogError::Unavailable { .. })),
        "{answer:?}"
    );
    // What it has is settled.
    let answers = client.read(vec![written]).await.expect("answers");
    assert_eq!(text(&answers[0]), b"a");
}

#[tokio::test(start_paused = true)]
async fn a_trim_stops_at_the_first_hole_and_reaches_every_unit() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    for text in ["a", "b", "c"] {
        append(&client, text).await;
    }
    let hole = fake.take_token(&[S]).position;
    append(&client, "d").await;
    let mark = client.trim(Position(100)).await.expect("trims");
    assert!(Position(2) < mark && mark <= hole, "{mark}");
    assert_eq!(client.trim(Position(1)).await, Ok(mark), "monotone");
    assert!(fake.world().units.iter().all(|unit| unit.trimmed == mark));
    let tail = client.tail(TailOf::Log).await.expect("answers");
    assert_eq!(tail.trimmed, mark);
}

#[tokio::test(start_paused = true)]
async fn settling_never_fills_what_was_not_granted() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    fake.take_token(&[S]);
    client
        .settle(Position::ZERO, Position::MAX)
        .await
        .expect("settled");
    let last = fake
        .world()
        .units
        .iter()
        .filter_map(|u| u.held.keys().last().copied())
        .max();
    assert_eq!(last, Some(Position(1)));
    assert_eq!(append(&client, "b").await, Position(2));
}

#[tokio::test(start_paused = true)]
async fn concurrent_wishes_to_settle_share_the_work() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    for _ in 0..10 {
        fake.take_token(&[S]);
    }
    let settles = (0..20).map(|_| client.settle(Position(0), Position(10)));
    for settled in futures_util::future::join_all(settles).await {
        settled.expect("settled");
    }
    let is_fill = |r: &Request| matches!(r, Request::Unit(UnitRequest::Fill { .. }));
    // The first, and one that began after all others had asked.
    assert_eq!(fake.served(is_fill), 2);
}

/// What was settled once may be lost later: whoever asks to settle it is told.
#[tokio::test(start_paused = true)]
async fn what_is_lost_after_it_was_settled_is_noticed_by_the_next_who_settles() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    let position = append(&client, "a").await;
    fake.reconfigure();
    let settle = || client.settle(Position(0), Position(10));
    assert_eq!(settle().await.map_err(|e| e.to_string()), Ok(()));
    fake.lose(position, |_| true);
    let lost = settle().await.expect_err("lost everywhere").to_string();
    assert!(lost.contains("lost"), "{lost}");
    let given_up = client.give_up_lost(Position(0), Position(10)).await;
    assert_eq!(given_up.expect("given up"), [position]);
}

/// The disk of a tail that fails in the middle of a write "loses" what it may never have had.
#[tokio::test(start_paused = true)]
async fn what_only_the_head_has_is_not_shown_though_the_tail_lost_it() {
    for stream in [false, true] {
        let fake = Fake::new(1, 2);
        let client = client(&fake).await;
        let half = fake.take_token(&[S]);
        assert!(fake.write(&half, b"half", 1), "only the head has it");
        fake.lose(half.position, |place| place == 1);
        fake.faults(|to, request| match to.name.as_str() {
            "unit-1b" if matches!(request, Request::Unit(UnitRequest::Write { .. })) => {
                Fault::Unreachable
            }
            _ => Fault::None,
        });
        let to = crate::target(&client).await;
        let read = async || {
            if stream {
                let part = client.read_streams(crate::stream_read(Position::ZERO, to));
                part.await.map(|part| assert_eq!(part.entries.len(), 1))
            } else {
                let answers = client.read(vec![half.position]).await;
                answers.map(|answers| assert_eq!(text(&answers[0]), b"half"))
            }
        };
        let error = read().await.expect_err("it is not settled");
        assert!(error.is_retryable(), "{error}");
        fake.no_faults();
        read().await.expect("settled first");
        let tail = &fake.held(half.position)[1];
        assert!(matches!(tail, Some(Held::Data(_))), "{tail:?}");
    }
}
