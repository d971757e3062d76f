//! The five answers of a read, and the tail.

use super::Outcome::{self, NotSupported, Passed};
use super::decisions::{settle, trim};
use super::support::World;
use crate::entry::ListEnd;
use crate::log::ReadAnswer;

pub(super) async fn data_is_read_as_it_was_written(world: World) -> Outcome {
    let s = world.stream(0);
    for size in [0, 1, 127, 4_096, 70_001] {
        let payload: Vec<u8> = (0_u8..=255).cycle().skip(size % 7).take(size).collect();
        let appended = world.append(0, &[s], payload.clone()).await;
        let entry = world.data(0, appended.position).await;
        assert_eq!(entry.payload, payload, "clause 5: other bytes than written");
        assert_eq!(entry.id, appended.id);
        assert_eq!(entry.id.writer, world.log(0).writer());
        assert!(entry.streams().eq([s]));
        for client in 1..3 {
            let other = world.data(client, appended.position).await;
            assert_eq!(other, entry, "every reader sees the same, links included");
        }
        let played = world.play(2, &[s], appended.position).await;
        assert_eq!(
            played,
            [(appended.position, entry)],
            "a stream read and a read differ"
        );
    }
    let bare = world.append(1, &[], "in no stream").await.position;
    assert_eq!(world.data(0, bare).await.links, []);
    Passed
}

pub(super) async fn a_filled_hole_reads_junk(world: World) -> Outcome {
    let hole = world.hole(&[world.stream(0)]).await;
    settle(&world, 0, hole, hole.next()).await;
    for client in 0..3 {
        let answer = world.read_one(client, hole).await;
        assert_eq!(answer, ReadAnswer::Junk, "clause 5: a filled hole is junk");
    }
    Passed
}

pub(super) async fn what_nobody_wrote_reads_unwritten(world: World) -> Outcome {
    let beyond = world.tail(0, &[]).await.next;
    let positions = [beyond, beyond.plus(1), beyond.plus(17)];
    for answer in world.read(0, &positions).await {
        assert_eq!(
            answer,
            ReadAnswer::Unwritten,
            "clause 5: nobody wrote there"
        );
    }
    let hole = world.hole(&[]).await;
    let answer = world.read_one(1, hole).await;
    assert_eq!(
        answer,
        ReadAnswer::Unwritten,
        "clause 5: a granted position that nobody wrote, and a read fills nothing"
    );
    settle(&world, 0, hole, hole.next()).await;
    Passed
}

pub(super) async fn below_the_mark_reads_trimmed(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let b = world.append(0, &[s], "b").await.position;
    settle(&world, 0, world.start, b.next()).await;
    let mark = trim(&world, 0, b).await;
    assert_eq!(mark, b, "all below was settled");
    for client in 0..3 {
        let answer = world.read_one(client, a).await;
        assert_eq!(
            answer,
            ReadAnswer::Trimmed,
            "clause 5: {a} is below the mark {mark}"
        );
        world.data(client, b).await;
    }
    Passed
}

pub(super) async fn a_lost_position_reads_lost(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let lost = world.append(0, &[s], "lost").await.position;
    let b = world.append(0, &[s], "b").await.position;
    if !world.under.lose(lost).await {
        return NotSupported;
    }
    for client in 0..3 {
        let answer = world.read_one(client, lost).await;
        assert_eq!(
            answer,
            ReadAnswer::Lost,
            "clause 5: {lost} was acknowledged and no replica can give it; any other answer is the worst bug of all"
        );
        world.data(client, a).await;
        world.data(client, b).await;
    }
    let _ = world.log(0).settle(lost, b.next()).await;
    let answer = world.read_one(1, lost).await;
    assert_eq!(
        answer,
        ReadAnswer::Lost,
        "settling never turns lost into junk"
    );
    Passed
}

pub(super) async fn answers_come_in_the_order_asked(world: World) -> Outcome {
    let mut positions = Vec::new();
    for n in 0..10_u8 {
        positions.push(world.append(0, &[world.stream(0)], vec![n]).await.position);
    }
    let asked: Vec<usize> = vec![7, 0, 9, 3, 3, 8, 1];
    let at: Vec<_> = asked.iter().map(|n| positions[*n]).collect();
    for (n, answer) in asked.iter().zip(world.read(1, &at).await) {
        let ReadAnswer::Data(entry) = answer else {
            panic!("{} reads {answer:?}", positions[*n]);
        };
        assert_eq!(
            usize::from(entry.payload[0]),
            *n,
            "answers are out of order"
        );
    }
    assert_eq!(world.read(1, &[]).await, []);
    Passed
}

pub(super) async fn an_absent_stream_has_an_empty_tail(world: World) -> Outcome {
    let (absent, present) = (world.stream(0), world.stream(1));
    let position = world.append(0, &[present], "x").await.position;
    let tail = world.tail(1, &[absent, present]).await;
    assert_eq!(tail.streams[0].last(), None, "nobody wrote {absent}");
    assert_ne!(
        tail.streams[0].end(),
        ListEnd::Unknown,
        "an absent stream has nothing above the trim mark (rule 22)"
    );
    assert_eq!(tail.streams[1].last(), Some(position));
    let alone = world.tail(1, &[absent]).await;
    assert!(
        alone.target().to <= alone.trimmed,
        "there is nothing to read of {absent}"
    );
    assert_eq!(world.play(2, &[absent], world.start).await, []);
    Passed
}
