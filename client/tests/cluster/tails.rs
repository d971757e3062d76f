//! Tail checks: shared, confirmed, never too old.

use std::time::Duration;

use futures_util::future::join_all;
use milonga_protocol::messages::{Lease, Request, SequencerRequest, UnitRequest};
use milonga_protocol::{Epoch, Log, LogError, NewEntry, Position, StreamId, TailOf};

use crate::fake::{Fake, Fault};
use crate::{S, append, background, client, sleep_ms};

fn is_tail(request: &Request) -> bool {
    matches!(request, Request::Sequencer(SequencerRequest::Tail { .. }))
}

fn is_confirm(request: &Request) -> bool {
    matches!(
        request,
        Request::Unit(UnitRequest::Confirm { .. } | UnitRequest::Ends { .. })
    )
}

#[tokio::test(start_paused = true)]
async fn concurrent_calls_share_one_check() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    let tails = (0..256).map(|n| {
        let streams = [S, StreamId::raw(n % 4)];
        client.tail(TailOf::Streams(streams.into()))
    });
    for (n, tail) in join_all(tails).await.into_iter().enumerate() {
        let tail = tail.expect("no faults");
        assert_eq!(tail.next, Position(1));
        assert_eq!(tail.streams.len(), 2);
        assert_eq!(tail.streams[0].last(), Some(Position(0)));
        let other = (n % 4 == 1).then_some(Position(0));
        assert_eq!(tail.streams[1].last(), other);
    }
    assert_eq!(fake.served(is_tail), 1);
    assert_eq!(
        fake.served(is_confirm),
        3,
        "one whole chain, and both tails"
    );
}

/// A writer that hangs with its tokens in hand must not hold up anybody who reads.
#[tokio::test(start_paused = true)]
async fn a_target_covers_what_was_written_and_not_what_is_being_written() {
    let fake = Fake::new(2, 2);
    let (writer, client) = (client(&fake).await, client(&fake).await);
    append(&client, "0").await;
    append(&client, "1").await;
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Fault::Delay(Duration::from_millis(200)),
        _ => Fault::None,
    });
    let written = background(&fake, writer.append(NewEntry::new([S], "2")));
    let other = StreamId::raw(7);
    sleep_ms(&fake, 50).await;
    let tail = client.tail(TailOf::Streams([S, other].into())).await;
    let tail = tail.expect("no faults in tail checks");
    assert_eq!((tail.next, tail.written_end()), (Position(3), Position(2)));
    assert_eq!(
        (tail.target().to, tail.granted().to),
        (Position(2), Position(3))
    );
    written.await.expect("late, but appended");
    let tail = client.tail(TailOf::Streams([S].into())).await;
    assert_eq!(tail.expect("as before").target().to, Position(3));
    // Nothing of the other stream was ever granted.
    let tail = client.tail(TailOf::Streams([other].into())).await;
    assert_eq!(tail.expect("as before").target().to, Position::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_begins_after_a_check_was_sent_waits_for_the_next() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    fake.faults(|_, request| match is_tail(request) {
        true => Fault::Delay(Duration::from_millis(50)),
        false => Fault::None,
    });
    // The first check is served at 50 ms, the confirmation at once.
    let early = background(&fake, client.tail(TailOf::Log));
    sleep_ms(&fake, 10).await;
    append(&client, "a").await;
    let late = client.tail(TailOf::Log).await.expect("no faults");
    assert_eq!(late.next, Position(1));
    early.await.expect("no faults");
    assert_eq!(fake.served(is_tail), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lock_stands_for_a_confirmation() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    fake.world().lease = Lease::DirectoryLock;
    for _ in 0..5 {
        client.tail(TailOf::Log).await.expect("no faults");
    }
    assert_eq!(fake.served(is_confirm), 3, "only before it was known");
    fake.world().lease = Lease::None;
    client.tail(TailOf::Log).await.expect("no faults");
    assert_eq!(
        fake.served(is_confirm),
        6,
        "an unleased answer is confirmed"
    );
}

/// Under a lease the units are asked only while somebody writes, and then for nothing but where their tails end.
#[tokio::test(start_paused = true)]
async fn under_a_lease_tails_are_asked_while_somebody_writes() {
    let fake = Fake::new(2, 2);
    let (writer, client) = (client(&fake).await, client(&fake).await);
    fake.world().lease = Lease::Renewed;
    append(&client, "0").await;
    client.tail(TailOf::Log).await.expect("no faults");
    assert_eq!(fake.served(is_confirm), 3, "before it was known");
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { .. }) => Fault::Delay(Duration::from_millis(200)),
        _ => Fault::None,
    });
    let written = background(&fake, writer.append(NewEntry::new([S], "1")));
    sleep_ms(&fake, 50).await;
    let tail = client.tail(TailOf::Streams([S].into())).await;
    let tail = tail.expect("no faults in tail checks");
    assert_eq!((tail.next, tail.target().to), (Position(2), Position(1)));
    assert_eq!(fake.served(is_confirm), 5, "both tails");
    written.await.expect("late, but appended");
    client.tail(TailOf::Log).await.expect("no faults");
    sleep_ms(&fake, 2_000).await;
    let asked = fake.served(is_confirm);
    for _ in 0..5 {
        client.tail(TailOf::Log).await.expect("no faults");
    }
    assert_eq!(fake.served(is_confirm), asked, "nobody writes any more");
}

#[tokio::test(start_paused = true)]
async fn a_sealed_chain_vetoes_the_old_sequencer() {
    let fake = Fake::new(1, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    // The old sequencer would still answer.
    fake.world().units[0].sealed = true;
    let began = fake.env.now();
    let tail = client.tail(TailOf::Log).await.expect("in the next epoch");
    assert_eq!((tail.epoch, tail.next), (Epoch(2), Position(1)));
    let took = fake.env.now().since(began);
    assert!(
        took >= Duration::from_millis(200),
        "others get time to act first"
    );
    assert!(took < Duration::from_millis(300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn another_chain_confirms_when_one_is_down() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    fake.faults(|to, _| match to.name.as_str() {
        "unit-1b" => Fault::Unreachable,
        _ => Fault::None,
    });
    for _ in 0..4 {
        let tail = client.tail(TailOf::Log).await.expect("chain 2 is whole");
        assert_eq!(tail.written, None, "the other chain may hold anything");
    }
}

#[tokio::test(start_paused = true)]
async fn without_answers_every_caller_hears_so_by_its_deadline() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    fake.faults(|_, _| Fault::Silence);
    let began = fake.env.now();
    let first = background(&fake, client.tail(TailOf::Log));
    sleep_ms(&fake, 10_000).await;
    let second = client.tail(TailOf::Log).await;
    assert!(matches!(first.await, Err(LogError::Unavailable { .. })));
    assert!(matches!(second, Err(LogError::Unavailable { .. })));
    let took = fake.env.now().since(began);
    assert!(took <= Duration::from_secs(41), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn many_streams_take_several_messages() {
    let fake = Fake::new(1, 1);
    let client = client(&fake).await;
    let streams: Vec<_> = (0..9_000).map(StreamId::raw).collect();
    let wanted = [streams[10], streams[8_500]];
    for stream in wanted {
        let entry = NewEntry::new([stream], "x");
        client.append(entry).await.expect("no faults");
    }
    let tail = client.tail(TailOf::Streams(streams.into())).await;
    let tail = tail.expect("no faults");
    assert_eq!(tail.streams.len(), 9_000);
    assert_eq!(tail.streams[10].last(), Some(Position(0)));
    assert_eq!(tail.streams[8_500].last(), Some(Position(1)));
    assert_eq!(fake.served(is_tail), 3);
}

/// Rule 22: a reader that napped through a trim must run into the mark, not believe that there is nothing to read.
#[tokio::test(start_paused = true)]
async fn a_reader_of_what_was_trimmed_runs_into_the_mark() {
    let fake = Fake::new(2, 2);
    let (writer, reader) = (client(&fake).await, client(&fake).await);
    for text in ["0", "1", "2"] {
        append(&writer, text).await;
    }
    writer
        .settle(Position(0), Position(3))
        .await
        .expect("no faults");
    assert_eq!(writer.trim(Position(3)).await, Ok(Position(3)));
    let tail = reader
        .tail(TailOf::Streams([S].into()))
        .await
        .expect("no faults");
    assert_eq!(tail.target().to, Position(3));
    let read = crate::stream_read(Position(0), tail.target());
    let read = reader.read_streams(read).await;
    assert!(matches!(read, Err(LogError::Trimmed { .. })), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hung_tail_of_another_chain_holds_up_no_check() {
    let fake = Fake::new(2, 2);
    let client = client(&fake).await;
    append(&client, "a").await;
    fake.faults(|to, _| match to.name.as_str() {
        "unit-2b" => Fault::Silence,
        _ => Fault::None,
    });
    let mut slow = 0;
    for _ in 0..6 {
        let began = fake.env.now();
        let tail = client.tail(TailOf::Streams([S].into())).await;
        tail.expect("chain 1 is whole");
        slow += u32::from(fake.env.now().since(began) > Duration::from_millis(100));
    }
    assert!(
        slow <= 1,
        "only who finds out waits for the chain that hangs: {slow}"
    );
}

/// Rule 26: what was granted is known, whether somebody reads as far or not, so all holes become due together.
#[tokio::test(start_paused = true)]
async fn holes_known_together_are_filled_together() {
    const TOKENS: u64 = 16;
    let fake = Fake::new(1, 1);
    let reader = client(&fake).await;
    // The even ones are never written, the odd ones one after the other.
    fake.faults(|_, request| match request {
        Request::Unit(UnitRequest::Write { items, .. }) => match items[0].0.0 {
            p if p % 2 == 0 => Fault::Silence,
            p => Fault::Delay(Duration::from_millis(10 + 3 * p)),
        },
        _ => Fault::None,
    });
    let (mut writers, mut appends) = (Vec::new(), Vec::new());
    for n in 0..TOKENS {
        let writer = client(&fake).await;
        let entry = NewEntry::new([S], n.to_string());
        appends.push(background(&fake, writer.append(entry)));
        writers.push(writer);
        sleep_ms(&fake, 0).await;
    }
    sleep_ms(&fake, 1).await;
    let (began, mut at) = (fake.env.now(), Position::ZERO);
    while at < Position(TOKENS) {
        let tail = reader.tail(TailOf::Streams([S].into())).await;
        let tail = tail.expect("no faults in tail checks");
        assert_eq!(tail.next, Position(TOKENS), "all were granted before");
        let target = tail.target();
        if target.to <= at {
            sleep_ms(&fake, 1).await;
            continue;
        }
        crate::play(&reader, at, target)
            .await
            .expect("no faults in reads");
        at = target.to;
    }
    let took = fake.env.now().since(began);
    assert!(took < Duration::from_millis(90), "{took:?}");
}
