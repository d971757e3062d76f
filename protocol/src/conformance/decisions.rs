//! Write-once, settling and trimming.

use super::Outcome::{self, NotSupported, Passed};
use super::support::{World, join_all};
use crate::ids::Position;
use crate::log::ReadAnswer;

pub(super) async fn a_value_stays_for_ever(world: World) -> Outcome {
    let s = world.stream(0);
    let first = world.append(0, &[s], "first").await.position;
    let value = world.data(1, first).await;
    for n in 0..5_u8 {
        world.append(usize::from(n) % 3, &[s], vec![n]).await;
        settle(&world, usize::from(n) % 3, first, first.plus(3)).await;
        for client in 0..3 {
            let again = world.data(client, first).await;
            assert_eq!(again, value, "clause 1: {first} changed its value");
        }
    }
    Passed
}

pub(super) async fn junk_stays_for_ever(world: World) -> Outcome {
    let hole = world.hole(&[world.stream(0)]).await;
    settle(&world, 0, hole, hole.next()).await;
    assert_eq!(world.read_one(1, hole).await, ReadAnswer::Junk);
    let late = world.under.write_late(hole, "too late".into()).await;
    assert_ne!(
        late,
        Some(true),
        "clause 1: a late write of {hole} succeeded, but {hole} was junk already"
    );
    for client in 0..3 {
        let again = world.read_one(client, hole).await;
        assert_eq!(again, ReadAnswer::Junk, "clause 1: junk at {hole} changed");
    }
    Passed
}

pub(super) async fn settling_and_a_late_write_agree(world: World) -> Outcome {
    for round in 0..8 {
        let hole = world.hole(&[world.stream(0)]).await;
        let late = async { world.under.write_late(hole, "late".into()).await };
        let settled = async {
            settle(&world, 1, hole, hole.next()).await;
            None
        };
        let both = if round % 2 == 0 {
            join_all::<Option<bool>>(vec![Box::pin(late), Box::pin(settled)]).await[0]
        } else {
            join_all::<Option<bool>>(vec![Box::pin(settled), Box::pin(late)]).await[1]
        };
        let Some(written) = both else {
            return NotSupported;
        };
        for client in 0..3 {
            match world.read_one(client, hole).await {
                ReadAnswer::Data(entry) => {
                    assert_eq!(entry.payload, "late");
                    assert!(
                        written,
                        "clause 4: the write of {hole} was refused, but it is read"
                    );
                }
                ReadAnswer::Junk => assert!(!written, "clause 2: an acknowledged {hole} is junk"),
                other => panic!("{hole} was settled, but reads {other:?}"),
            }
        }
    }
    Passed
}

pub(super) async fn settling_twice_changes_nothing(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let hole = world.hole(&[s]).await;
    let b = world.append(1, &[s], "b").await.position;
    let before = (world.data(0, a).await, world.data(0, b).await);
    join_all(
        (0..3)
            .map(|c| settle_boxed(&world, c, a, b.next()))
            .collect(),
    )
    .await;
    settle(&world, 0, a, b.next()).await;
    assert_eq!(world.read_one(2, hole).await, ReadAnswer::Junk);
    let after = (world.data(2, a).await, world.data(2, b).await);
    assert_eq!(after, before, "settling changed an entry");
    Passed
}

pub(super) async fn trim_is_monotone(world: World) -> Outcome {
    let s = world.stream(0);
    let mut positions = Vec::new();
    for n in 0..6_u8 {
        positions.push(world.append(0, &[s], vec![n]).await.position);
    }
    settle(&world, 0, world.start, positions[5].next()).await;
    let mark = trim(&world, 0, positions[3]).await;
    assert_eq!(mark, positions[3], "all below was settled");
    let lower = trim(&world, 1, positions[1]).await;
    assert!(
        lower >= mark,
        "the trim mark went back from {mark} to {lower}"
    );
    let answers = world.read(2, &positions).await;
    for (position, answer) in positions.iter().zip(answers) {
        match answer {
            ReadAnswer::Trimmed => assert!(*position < mark, "{position} vanished above {mark}"),
            ReadAnswer::Data(_) => assert!(*position >= mark, "{position} is below {mark}"),
            other => panic!("{position} reads {other:?}"),
        }
    }
    let tail = world.tail(2, &[s]).await;
    assert!(tail.trimmed >= mark, "a tail answer carries the mark");
    let higher = trim(&world, 2, positions[5]).await;
    assert!(
        higher >= mark,
        "the trim mark went back from {mark} to {higher}"
    );
    Passed
}

pub(super) async fn trim_stops_at_what_is_not_settled(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let hole = world.hole(&[s]).await;
    let b = world.append(0, &[s], "b").await.position;
    let mark = trim(&world, 1, b.plus(1_000)).await;
    let tail = world.tail(1, &[s]).await;
    assert!(
        mark <= tail.next,
        "the mark {mark} passed the tail {}",
        tail.next
    );
    if mark > hole {
        let late = world.under.write_late(hole, "late".into()).await;
        assert_eq!(
            late,
            Some(false),
            "the mark {mark} passed {hole}, which nobody had decided"
        );
        return Passed;
    }
    let kept = world.read(1, &[a, b]).await;
    assert!(
        matches!(kept[1], ReadAnswer::Data(_)),
        "{b} is above the mark {mark}, but reads {:?}",
        kept[1]
    );
    settle(&world, 0, hole, b.next()).await;
    let mark = trim(&world, 1, b.next()).await;
    assert!(
        mark > hole,
        "all up to {b} is settled, but the mark stays at {mark}"
    );
    Passed
}

pub(super) async fn trim_survives_a_restart(world: World) -> Outcome {
    let s = world.stream(0);
    let mut last = Position::ZERO;
    for n in 0..4_u8 {
        last = world.append(0, &[s], vec![n]).await.position;
    }
    settle(&world, 0, world.start, last.next()).await;
    let mark = trim(&world, 0, last).await;
    if !world.under.restart().await {
        return NotSupported;
    }
    let tail = world.tail(1, &[s]).await;
    assert!(
        tail.trimmed >= mark,
        "the mark {mark} fell to {} in a restart",
        tail.trimmed
    );
    if let Some(below) = mark.before() {
        assert_eq!(world.read_one(1, below).await, ReadAnswer::Trimmed);
    }
    world.data(1, last).await;
    Passed
}

pub(super) async fn settle(world: &World, client: usize, from: Position, to: Position) {
    let settled = world.log(client).settle(from, to).await;
    settled.expect("settling without faults succeeds");
}

fn settle_boxed(
    world: &World,
    client: usize,
    from: Position,
    to: Position,
) -> crate::env::BoxFuture<'_, ()> {
    Box::pin(settle(world, client, from, to))
}

pub(super) async fn trim(world: &World, client: usize, below: Position) -> Position {
    let mark = world.log(client).trim(below).await;
    mark.expect("a trim without faults succeeds")
}
