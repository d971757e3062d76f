//! Durable, linearizable, exactly-once appends, and what is refused.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Outcome::{self, NotSupported, Passed};
use super::decisions::settle;
use super::support::{World, join_all, poll_once};
use crate::env::BoxFuture;
use crate::ids::StreamId;
use crate::log::{AppendError, Appended, NewEntry};

const CLIENTS: usize = 4;

pub(super) async fn acknowledged_entries_survive_a_restart(world: World) -> Outcome {
    let s = world.stream(0);
    let appended = append_many(&world, s, 40).await;
    let before = world.play(0, &[s], world.start).await;
    if !world.under.restart().await {
        return NotSupported;
    }
    for client in 0..2 {
        for (payload, appended) in &appended {
            let entry = world.data(client, appended.position).await;
            assert_eq!(
                (&entry.payload, entry.id),
                (payload, appended.id),
                "clause 2: {} is not what was acknowledged before the restart",
                appended.position
            );
        }
        let after = world.play(client, &[s], world.start).await;
        assert_eq!(after, before, "clause 2: the stream changed in the restart");
    }
    let next = world.append(1, &[s], "goes on").await;
    let last = appended.values().map(|a| a.position).max();
    assert!(
        Some(next.position) > last,
        "an acknowledged position was granted again"
    );
    Passed
}

pub(super) async fn acknowledged_entries_survive_damage_of_one_replica(world: World) -> Outcome {
    let s = world.stream(0);
    let appended = world.append(0, &[s], "on every replica").await;
    let before = world.data(1, appended.position).await;
    if !world.under.lose_one_replica(appended.position).await {
        return NotSupported;
    }
    for client in 0..3 {
        let after = world.data(client, appended.position).await;
        assert_eq!(
            after, before,
            "clause 2: one damaged replica changed the value"
        );
    }
    assert_eq!(world.play(2, &[s], world.start).await.len(), 1);
    Passed
}

pub(super) async fn a_read_sees_what_returned_before(world: World) -> Outcome {
    for n in 0..12_u8 {
        let appended = world
            .append(usize::from(n) % CLIENTS, &[world.stream(0)], vec![n])
            .await;
        let entry = world
            .data(usize::from(n + 1) % CLIENTS, appended.position)
            .await;
        assert_eq!(entry.payload, vec![n], "clause 3");
        assert_eq!(
            entry.id, appended.id,
            "an append returns the id that is read"
        );
    }
    Passed
}

pub(super) async fn a_tail_check_sees_what_returned_before(world: World) -> Outcome {
    let s = world.stream(0);
    for n in 0..12_u8 {
        let position = world
            .append(usize::from(n) % CLIENTS, &[s], vec![n])
            .await
            .position;
        let tail = world.tail(usize::from(n + 1) % CLIENTS, &[s]).await;
        assert!(
            tail.next > position,
            "clause 3: a tail check that began after {position} returned answers {}",
            tail.next
        );
        assert_eq!(
            tail.streams[0].last(),
            Some(position),
            "clause 3: the stream's last position misses an append that returned before"
        );
        assert_eq!(tail.target().to, position.next());
    }
    Passed
}

pub(super) async fn what_is_being_written_is_told_apart(world: World) -> Outcome {
    let (s, other) = (world.stream(0), world.stream(1));
    for n in 0..6 {
        let a = world.append(n % CLIENTS, &[s], "a").await.position;
        let hole = world.hole(&[s]).await;
        let tail = world.tail((n + 1) % CLIENTS, &[s]).await;
        let (target, granted) = (tail.target().to, tail.granted().to);
        assert_eq!(granted, hole.next(), "a follower must hear of {hole}");
        assert!(
            a < target && target <= granted,
            "clause 3: {a} had been appended, but the target is {target} of {granted}"
        );
        assert!(a < tail.written_end() && tail.written_end() <= tail.next);
        // Another stream's entry behind it is no reason to wait for the hole, nor to miss anything.
        let b = world.append(n % CLIENTS, &[other], "b").await.position;
        let tail = world.tail((n + 1) % CLIENTS, &[s, other]).await;
        assert!(b < tail.target().to && b < tail.written_end(), "clause 3");
        settle(&world, n % CLIENTS, hole, b).await;
    }
    Passed
}

pub(super) async fn a_stream_read_sees_what_returned_before(world: World) -> Outcome {
    let s = world.stream(0);
    for n in 0..12_u8 {
        world.append(usize::from(n) % CLIENTS, &[s], vec![n]).await;
        let entries = world
            .play(usize::from(n + 1) % CLIENTS, &[s], world.start)
            .await;
        assert_eq!(
            entries.len(),
            usize::from(n) + 1,
            "clause 3: a stream read misses an append that returned before"
        );
    }
    Passed
}

pub(super) async fn concurrent_appends_are_there_once_each(world: World) -> Outcome {
    let s = world.stream(0);
    let appended = append_many(&world, s, 120).await;
    let positions: BTreeSet<_> = appended.values().map(|a| a.position).collect();
    let ids: BTreeSet<_> = appended.values().map(|a| a.id).collect();
    assert_eq!(
        positions.len(),
        appended.len(),
        "clause 1: two appends got one position"
    );
    assert_eq!(
        ids.len(),
        appended.len(),
        "clause 4: two appends got one id"
    );
    let entries = world.play(1, &[s], world.start).await;
    let mut read = BTreeMap::new();
    for (position, entry) in entries {
        let twice = read.insert(entry.payload.clone(), (position, entry.id));
        assert_eq!(twice, None, "clause 4: one entry is at two positions");
    }
    let acknowledged = appended
        .into_iter()
        .map(|(payload, a)| (payload, (a.position, a.id)));
    assert_eq!(
        read,
        acknowledged.collect(),
        "clause 4: what is read is what was acknowledged"
    );
    Passed
}

pub(super) async fn a_dropped_append_is_there_once_or_not_at_all(world: World) -> Outcome {
    let s = world.stream(0);
    for n in 0..20_u8 {
        let append = world.log(0).append(NewEntry::new([s], vec![n]));
        drop(poll_once(append).await);
    }
    let marker = world.append(0, &[s], "marker").await.position;
    let mut seen = BTreeSet::new();
    for (position, entry) in world.play(1, &[s], world.start).await {
        if position != marker {
            assert!(
                seen.insert(entry.payload),
                "clause 4: a dropped append is there twice"
            );
        }
    }
    let never = world.log(0).append(NewEntry::new([s], "never polled"));
    drop(never);
    for (_, entry) in world.play(1, &[s], world.start).await {
        assert_ne!(
            entry.payload, "never polled",
            "nothing begins before the first poll"
        );
    }
    Passed
}

pub(super) async fn appends_through_a_restart_are_there_once_or_failed(world: World) -> Outcome {
    let s = world.stream(0);
    let mut futures: Vec<BoxFuture<'_, Result<Result<Appended, AppendError>, bool>>> = Vec::new();
    for n in 0..40_u8 {
        let append = world
            .log(usize::from(n) % CLIENTS)
            .append(NewEntry::new([s], vec![n]));
        futures.push(Box::pin(async move { Ok(append.await) }));
    }
    futures.insert(20, Box::pin(async { Err(world.under.restart().await) }));
    let mut results = join_all(futures).await;
    if results.remove(20) == Err(false) {
        return NotSupported;
    }
    let mut read: BTreeMap<Bytes, Vec<_>> = BTreeMap::new();
    for (position, entry) in world.play(1, &[s], world.start).await {
        read.entry(entry.payload)
            .or_default()
            .push((position, entry.id));
    }
    for (n, result) in (0_u8..).zip(results.into_iter().flatten()) {
        let found = read.remove(&Bytes::from(vec![n])).unwrap_or_default();
        match result {
            Ok(a) => assert_eq!(found, [(a.position, a.id)], "clause 4: acknowledged once"),
            Err(AppendError::OutcomeUnknown { .. }) => {
                assert!(found.len() <= 1, "clause 4: {found:?} hold one entry");
            }
            Err(error) => assert!(
                found.is_empty(),
                "clause 4: an append failed ({error}), but {found:?} hold it"
            ),
        }
    }
    Passed
}

pub(super) async fn an_oversize_entry_is_refused(world: World) -> Outcome {
    let limit = world.log(0).limits().entry_bytes as usize;
    let before = world.tail(0, &[]).await.next;
    let result = world
        .log(0)
        .append(NewEntry::new([world.stream(0)], vec![7; limit + 1]))
        .await;
    let size = limit + 1;
    assert_eq!(result, Err(AppendError::TooLarge { size, limit }));
    assert_eq!(
        world.tail(0, &[]).await.next,
        before,
        "a refused entry takes no position: no token without an entry in hand"
    );
    let largest = world
        .append(0, &[world.stream(0)], vec![7; limit])
        .await
        .position;
    assert_eq!(world.data(1, largest).await.payload.len(), limit);
    Passed
}

pub(super) async fn too_many_streams_are_refused(world: World) -> Outcome {
    let limit = world.log(0).limits().streams_per_entry;
    let many = world.streams(u64::from(limit) + 1);
    let result = world.log(0).append(NewEntry::new(many.clone(), "x")).await;
    let (streams, limit) = (many.len(), limit as usize);
    assert_eq!(result, Err(AppendError::Streams { streams, limit }));
    let position = world.append(0, &many[..limit], "x").await.position;
    let entry = world.data(1, position).await;
    assert!(entry.streams().eq(many[..limit].iter().copied()));
    Passed
}

pub(super) async fn a_stream_named_twice_is_refused(world: World) -> Outcome {
    let (s, t) = (world.stream(0), world.stream(1));
    let result = world.log(0).append(NewEntry::new([s, t, s], "x")).await;
    assert!(
        matches!(result, Err(AppendError::Streams { streams: 3, .. })),
        "a stream named twice is refused, not {result:?}"
    );
    assert_eq!(world.play(1, &[s, t], world.start).await, []);
    Passed
}

/// Appends `n` different payloads to a stream from all clients at once.
async fn append_many(world: &World, s: StreamId, n: usize) -> BTreeMap<Bytes, Appended> {
    let appends = (0..n).map(|n| -> BoxFuture<'_, _> {
        Box::pin(async move {
            let payload = Bytes::from(format!("{n} {}", "x".repeat(n % 50)));
            let appended = world.append(n % CLIENTS, &[s], payload.clone()).await;
            (payload, appended)
        })
    });
    join_all(appends.collect()).await.into_iter().collect()
}
