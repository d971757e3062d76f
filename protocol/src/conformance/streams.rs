//! Streams: in order, without gaps, never past a hole.

use super::Outcome::{self, NotSupported, Passed};
use super::decisions::{settle, trim};
use super::support::{World, join_all};
use crate::entry::{BackPointers, Entry, ListEnd};
use crate::env::BoxFuture;
use crate::ids::Position;
use crate::limits::BACKPOINTERS;
use crate::log::{LogError, ReadAnswer, StreamRead};

type Played = Vec<(Position, Entry)>;

pub(super) async fn nothing_is_delivered_past_a_hole(world: World) -> Outcome {
    let (s, other) = (world.stream(0), world.stream(1));
    let a = world.append(0, &[s], "a").await.position;
    let holes = [world.hole(&[s]).await, world.hole(&[s, other]).await];
    let b = world.append(1, &[s], "b").await.position;
    let target = world.tail(2, &[s]).await.target();
    let mut read = StreamRead {
        streams: [s].into(),
        from: a,
        target,
        max_bytes: 1 << 20,
    };
    let mut delivered = Vec::new();
    while read.from < read.target.to {
        let part = world.part(2, &read).await;
        let part = part.expect("a reader settles holes whose time is up");
        for hole in holes.iter().filter(|hole| part.complete > **hole) {
            let answer = world.read_one(0, *hole).await;
            assert_ne!(
                answer,
                ReadAnswer::Unwritten,
                "clause 6: {hole} is still a hole, but the reader was told that all below {} is complete",
                part.complete
            );
        }
        delivered.extend(part.entries.iter().map(|(p, _)| *p));
        (read.from, read.target) = (part.complete, part.target);
    }
    assert_eq!(delivered, [a, b]);
    Passed
}

pub(super) async fn a_late_write_is_delivered_or_refused(world: World) -> Outcome {
    let s = world.stream(0);
    for _ in 0..6 {
        let hole = world.hole(&[s]).await;
        let b = world.append(1, &[s], "b").await.position;
        let played: BoxFuture<'_, (Option<bool>, Played)> =
            Box::pin(async { (None, world.play(2, &[s], hole).await) });
        let late: BoxFuture<'_, _> = Box::pin(async {
            let written = world.under.write_late(hole, "late".into()).await;
            (written, Vec::new())
        });
        let mut both = join_all(vec![played, late]).await;
        let (written, _) = both.remove(1);
        let Some(written) = written else {
            return NotSupported;
        };
        let positions: Vec<_> = both.remove(0).1.iter().map(|(p, _)| *p).collect();
        let want = if written { vec![hole, b] } else { vec![b] };
        assert_eq!(
            positions,
            want,
            "clause 6: the late write of {hole} was {}",
            if written { "acknowledged" } else { "refused" }
        );
    }
    Passed
}

pub(super) async fn streams_come_in_order_without_gaps(world: World) -> Outcome {
    let streams = world.streams(3);
    let mut want = vec![Vec::new(); 3];
    for n in 0..60_usize {
        if n % 7 == 3 {
            world.hole(&[streams[n % 3]]).await;
        } else {
            let position = world
                .append(n % 4, &[streams[n % 3]], vec![0; n])
                .await
                .position;
            want[n % 3].push(position);
        }
    }
    for (stream, want) in streams.iter().zip(&want) {
        let entries = world.play(1, &[*stream], world.start).await;
        let got: Vec<_> = entries.iter().map(|(p, _)| *p).collect();
        assert_eq!(&got, want, "clause 6: {stream} has gaps or is out of order");
    }
    let mut all: Vec<_> = want.concat();
    all.sort();
    let merged = world.play(2, &streams, world.start).await;
    assert!(
        merged.iter().map(|(p, _)| *p).eq(all),
        "clause 6: merged by position"
    );
    Passed
}

pub(super) async fn a_lost_position_stops_its_stream(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let lost = world.append(0, &[s], "lost").await.position;
    world.append(0, &[s], "b").await;
    if !world.under.lose(lost).await {
        return NotSupported;
    }
    let target = world.tail(1, &[s]).await.target();
    let mut read = StreamRead {
        streams: [s].into(),
        from: a,
        target,
        max_bytes: 1 << 20,
    };
    while read.from < read.target.to {
        match world.part(1, &read).await {
            Ok(part) => {
                assert!(
                    part.complete <= lost,
                    "clause 6: the reader was told that all below {} is complete, but {lost} is lost",
                    part.complete
                );
                (read.from, read.target) = (part.complete, part.target);
            }
            Err(error) => {
                assert_eq!(error, LogError::Lost { position: lost });
                return Passed;
            }
        }
    }
    panic!("clause 6: {lost} is lost, but the stream went on");
}

pub(super) async fn a_trimmed_start_is_an_error(world: World) -> Outcome {
    let s = world.stream(0);
    let a = world.append(0, &[s], "a").await.position;
    let b = world.append(0, &[s], "b").await.position;
    settle(&world, 0, world.start, b.next()).await;
    let mark = trim(&world, 0, b).await;
    let target = world.tail(1, &[s]).await.target();
    let result = world.play_to(1, &[s], a, target).await;
    assert!(
        matches!(result, Err(LogError::Trimmed { below, .. }) if below >= mark),
        "a reader that wants what was trimmed is told so, never skipped on: {result:?}"
    );
    let rest = world.play_to(1, &[s], mark, target).await;
    let rest = rest.expect("above the mark all can be read");
    assert!(rest.iter().map(|(p, _)| *p).eq([b]));
    Passed
}

pub(super) async fn two_readers_see_one_order(world: World) -> Outcome {
    let streams = world.streams(2);
    let appends = (0..80_usize).map(|n| -> BoxFuture<'_, _> {
        let (world, streams) = (&world, &streams);
        Box::pin(async move {
            let of = if n % 5 == 0 {
                &streams[..]
            } else {
                &streams[n % 2..=n % 2]
            };
            world.append(n % 4, of, format!("{n}")).await;
            Vec::new()
        })
    });
    let (reader, streams_read) = (&world, &streams);
    let early: BoxFuture<'_, _> =
        Box::pin(async move { reader.play(0, streams_read, reader.start).await });
    let early = join_all(appends.chain([early]).collect()).await.pop();
    let early = early.expect("the reader was the last");
    let one = world.play(0, &streams, world.start).await;
    let two = world.play(1, &streams, world.start).await;
    assert_eq!(one, two, "two readers see two orders");
    assert_eq!(one.len(), 80);
    assert_eq!(
        early[..],
        one[..early.len()],
        "an early view is no prefix of a later one"
    );
    Passed
}

pub(super) async fn an_entry_of_many_streams_has_one_position(world: World) -> Outcome {
    let streams = world.streams(64);
    let single = world.append(0, &streams[1..2], "single").await.position;
    let wide = world.append(0, &streams, "wide").await.position;
    let entry = world.data(1, wide).await;
    assert!(
        entry.streams().eq(streams.iter().copied()),
        "links in the order asked"
    );
    for stream in &streams {
        let entries = world.play(2, &[*stream], world.start).await;
        assert_eq!(entries.last().map(|(p, _)| *p), Some(wide));
    }
    let together = world.play(2, &streams, world.start).await;
    let positions: Vec<_> = together.iter().map(|(p, _)| *p).collect();
    assert_eq!(
        positions,
        [single, wide],
        "an entry of several streams is delivered once"
    );
    let tail = world.tail(0, &streams).await;
    assert!(tail.streams.iter().all(|list| list.last() == Some(wide)));
    Passed
}

pub(super) async fn links_lead_back_through_the_stream(world: World) -> Outcome {
    let streams = world.streams(2);
    for n in 0..20_u64 {
        let of = if n % 4 == 0 {
            &streams[..]
        } else {
            &streams[1..]
        };
        world.append(0, of, n.to_le_bytes().to_vec()).await;
    }
    for stream in &streams {
        let mut before: Vec<Position> = Vec::new();
        for (position, entry) in world.play(1, &[*stream], world.start).await {
            let link = entry.links.iter().find(|link| link.stream == *stream);
            let back: BackPointers = link.expect("the entry is in the stream").back;
            let want: Vec<_> = before
                .iter()
                .rev()
                .take(back.positions().len())
                .copied()
                .collect();
            assert_eq!(
                back.positions(),
                want,
                "backpointers of {position} in {stream}"
            );
            let all = back.positions().len() == before.len();
            assert!(
                all || back.positions().len() == BACKPOINTERS,
                "a list is short only if it is whole"
            );
            assert!(
                all || back.end() == ListEnd::Unknown,
                "a list that leaves something out does not end at the beginning"
            );
            before.push(position);
        }
        assert_eq!(
            world.tail(1, &[*stream]).await.streams[0].last(),
            before.last().copied()
        );
    }
    Passed
}

pub(super) async fn max_bytes_bounds_a_part(world: World) -> Outcome {
    let s = world.stream(0);
    for n in 0..30_u8 {
        world.append(0, &[s], vec![n; 1_000]).await;
    }
    let target = world.tail(1, &[s]).await.target();
    let (mut read, mut got, mut parts) = (
        StreamRead {
            streams: [s].into(),
            from: world.start,
            target,
            max_bytes: 5_000,
        },
        Vec::new(),
        0,
    );
    while read.from < read.target.to {
        let part = world.part(1, &read).await.expect("nothing is wrong");
        let bytes: usize = part.entries.iter().map(|(_, e)| e.payload.len()).sum();
        assert!(bytes <= 10_000, "asked for about 5000 bytes, got {bytes}");
        got.extend(part.entries.iter().map(|(_, e)| e.payload[0]));
        (read.from, read.target) = (part.complete, part.target);
        parts += 1;
        assert!(parts < 1_000, "reading does not go on after {}", read.from);
    }
    assert!(
        got.into_iter().eq(0..30),
        "a read in parts leaves nothing out"
    );
    let tiny = StreamRead {
        from: world.start,
        max_bytes: 1,
        target,
        ..read
    };
    let part = world.part(1, &tiny).await.expect("nothing is wrong");
    assert!(
        part.complete > world.start,
        "one entry at least is given, or nothing moves"
    );
    Passed
}

pub(super) async fn a_reader_follows_a_writer(world: World) -> Outcome {
    const ENTRIES: usize = 50;
    let s = world.stream(0);
    let writer = async {
        for n in 0..ENTRIES {
            world.append(0, &[s], n.to_le_bytes().to_vec()).await;
        }
    };
    let reader = async {
        let (mut at, mut seen) = (world.start, 0_usize);
        while seen < ENTRIES {
            let waited = world.log(1).wait([s].into(), at).await;
            waited.expect("waiting without faults succeeds");
            let target = world.tail(1, &[s]).await.granted();
            let entries = world.play_to(1, &[s], at, target).await;
            for (_, entry) in entries.expect("nothing is wrong") {
                assert_eq!(entry.payload, seen.to_le_bytes().to_vec(), "out of order");
                seen += 1;
            }
            at = at.max(target.to);
        }
    };
    join_all::<()>(vec![Box::pin(reader), Box::pin(writer)]).await;
    Passed
}

pub(super) async fn wait_wakes_up(world: World) -> Outcome {
    let s = world.stream(0);
    let from = world.tail(0, &[s]).await.next;
    let waiting = world.log(1).wait([s].into(), from);
    let any = world.log(2).wait([].into(), from);
    let append = async {
        world.append(0, &[world.stream(1)], "another stream").await;
        world.append(0, &[s], "the stream").await;
        Ok(())
    };
    let results = join_all::<Result<(), LogError>>(vec![waiting, any, Box::pin(append)]).await;
    for result in results {
        result.expect("waiting without faults succeeds");
    }
    let already = world.log(1).wait([s].into(), from).await;
    already.expect("what is there already needs no waiting");
    Passed
}
