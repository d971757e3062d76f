use std::time::Duration;

use milonga_protocol::messages::{Lease, StreamTail, TailAnswer, Token};
use milonga_protocol::{BackPointers, ListEnd};
use proptest::prelude::*;

use super::*;

const RUN: Incarnation = Incarnation(7);

fn page(epoch: u64, next: u64) -> Bootstrap {
    Bootstrap {
        epoch: Epoch(epoch),
        incarnation: RUN,
        cluster: ClusterId(9),
        next: Position(next),
        trimmed: Position(0),
        lost: Position(0),
        lease: Lease::None,
        stream_limit: 100,
        page: 0,
        last: true,
        tails: vec![],
    }
}

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

fn ask(sequencer: &mut Sequencer, request: SequencerRequest) -> Response {
    sequencer.handle(at(0), CallId(u64::MAX), request);
    loop {
        let (call, response) = sequencer.poll_reply().expect("answered at once");
        if call == CallId(u64::MAX) {
            return response;
        }
    }
}

fn refused(sequencer: &mut Sequencer, request: SequencerRequest) -> Refusal {
    match ask(sequencer, request) {
        Response::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn done(sequencer: &mut Sequencer, request: SequencerRequest) {
    let done = match request {
        SequencerRequest::Seal { .. } => SequencerResponse::Sealed { incarnation: RUN },
        _ => SequencerResponse::Done,
    };
    assert_eq!(ask(sequencer, request), Response::Sequencer(done));
}

fn boot(sequencer: &mut Sequencer, page: Bootstrap) {
    done(sequencer, SequencerRequest::Bootstrap(page));
}

fn opened(epoch: u64, next: u64) -> Sequencer {
    let mut sequencer = Sequencer::new(RUN);
    boot(&mut sequencer, page(epoch, next));
    sequencer
}

fn tokens(epoch: u64, wants: &[&[u64]]) -> SequencerRequest {
    SequencerRequest::Tokens {
        epoch: Epoch(epoch),
        wants: wants.iter().map(|want| ids(want)).collect(),
    }
}

fn ids(streams: &[u64]) -> Vec<StreamId> {
    streams.iter().copied().map(StreamId).collect()
}

fn granted(sequencer: &mut Sequencer, epoch: u64, wants: &[&[u64]]) -> Vec<Token> {
    match ask(sequencer, tokens(epoch, wants)) {
        Response::Sequencer(SequencerResponse::Tokens(tokens)) => tokens,
        other => panic!("not granted: {other:?}"),
    }
}

fn tail_of(sequencer: &mut Sequencer, epoch: u64, streams: &[u64]) -> TailAnswer {
    let (epoch, streams) = (Epoch(epoch), ids(streams));
    match ask(sequencer, SequencerRequest::Tail { epoch, streams }) {
        Response::Sequencer(SequencerResponse::Tail(answer)) => answer,
        other => panic!("no tail: {other:?}"),
    }
}

fn wait(epoch: u64, streams: &[u64], from: u64, wait_ms: u32) -> SequencerRequest {
    SequencerRequest::Wait {
        epoch: Epoch(epoch),
        streams: ids(streams),
        from: Position(from),
        wait_ms,
    }
}

fn seal(epoch: u64) -> SequencerRequest {
    let epoch = Epoch(epoch);
    SequencerRequest::Seal { epoch }
}

#[test]
fn it_is_unusable_before_a_bootstrap() {
    let mut sequencer = Sequencer::new(RUN);
    let epoch = Epoch(1);
    for request in [
        tokens(1, &[&[1]]),
        SequencerRequest::Tail {
            epoch,
            streams: vec![],
        },
        wait(1, &[], 0, 9),
        SequencerRequest::Trimmed {
            epoch,
            below: Position(0),
        },
    ] {
        assert_eq!(refused(&mut sequencer, request), Refusal::NotOpen);
    }
    // A seal is answered without any state.
    done(&mut sequencer, seal(2));
    let sealed = Refusal::Sealed { epoch: Epoch(2) };
    assert_eq!(refused(&mut sequencer, tokens(1, &[])), sealed);
    assert_eq!(refused(&mut sequencer, tokens(2, &[])), Refusal::NotOpen);
}

#[test]
fn only_its_own_epoch_is_served() {
    let mut sequencer = opened(3, 10);
    assert_eq!(
        refused(&mut sequencer, tokens(2, &[])),
        Refusal::Sealed { epoch: Epoch(3) }
    );
    assert_eq!(
        refused(&mut sequencer, tokens(4, &[])),
        Refusal::NotYet { epoch: Epoch(3) }
    );
    assert_eq!(granted(&mut sequencer, 3, &[&[]])[0].position, Position(10));
}

#[test]
fn a_seal_ends_the_epoch_for_ever() {
    let mut sequencer = opened(3, 10);
    for _ in 0..2 {
        done(&mut sequencer, seal(4));
        assert_eq!(
            refused(&mut sequencer, tokens(3, &[])),
            Refusal::Sealed { epoch: Epoch(4) }
        );
    }
    done(&mut sequencer, seal(2));
    assert_eq!(
        refused(&mut sequencer, tokens(4, &[])),
        Refusal::NotYet { epoch: Epoch(3) }
    );
    // Nobody may go back below it.
    let mut again = page(3, 0);
    assert_eq!(
        ask(&mut sequencer, SequencerRequest::Bootstrap(again.clone())),
        Response::Sequencer(SequencerResponse::Done)
    );
    assert!(matches!(
        refused(&mut sequencer, tokens(3, &[])),
        Refusal::Sealed { .. }
    ));
    again.epoch = Epoch(4);
    boot(&mut sequencer, again);
    assert_eq!(granted(&mut sequencer, 4, &[&[]])[0].position, Position(0));
}

#[test]
fn a_repeated_bootstrap_changes_nothing() {
    let mut sequencer = opened(1, 0);
    granted(&mut sequencer, 1, &[&[5], &[5]]);
    boot(&mut sequencer, page(1, 0));
    assert_eq!(tail_of(&mut sequencer, 1, &[]).next, Position(2));
}

#[test]
fn a_bootstrap_of_another_run_or_a_lower_epoch_is_refused() {
    let mut sequencer = opened(3, 0);
    let mut other = page(4, 0);
    other.incarnation = Incarnation(8);
    assert!(matches!(
        refused(&mut sequencer, SequencerRequest::Bootstrap(other)),
        Refusal::Identity { .. }
    ));
    let lower = SequencerRequest::Bootstrap(page(2, 0));
    assert_eq!(
        refused(&mut sequencer, lower),
        Refusal::Sealed { epoch: Epoch(3) }
    );
    assert_eq!(tail_of(&mut sequencer, 3, &[]).next, Position(0));
    done(&mut sequencer, seal(9));
    let below_the_seal = SequencerRequest::Bootstrap(page(8, 0));
    assert_eq!(
        refused(&mut sequencer, below_the_seal),
        Refusal::Sealed { epoch: Epoch(9) }
    );
}

#[test]
fn a_bootstrap_in_pages_is_usable_after_the_last() {
    let mut sequencer = opened(1, 0);
    let tail = |stream, p| StreamTail {
        stream: StreamId(stream),
        last: BackPointers::new([Position(p)], ListEnd::Beginning),
    };
    let mut pages = vec![page(2, 50); 3];
    for (number, page) in pages.iter_mut().enumerate() {
        let n = number as u64;
        page.page = u32::try_from(number).unwrap();
        page.last = number == 2;
        page.tails = vec![tail(n * 2, n), tail(n * 2 + 1, n + 10)];
    }
    let boot_page = |p: &Bootstrap| SequencerRequest::Bootstrap(p.clone());
    let malformed = |r| matches!(r, Refusal::Malformed { .. });
    assert!(malformed(refused(&mut sequencer, boot_page(&pages[1]))));
    boot(&mut sequencer, pages[0].clone());
    // The epoch before is over as soon as its successor shows.
    assert_eq!(
        refused(&mut sequencer, tokens(1, &[])),
        Refusal::Sealed { epoch: Epoch(2) }
    );
    assert!(malformed(refused(&mut sequencer, boot_page(&pages[2]))));
    boot(&mut sequencer, pages[0].clone());
    let mut other = pages[1].clone();
    other.next = Position(49);
    assert!(malformed(refused(&mut sequencer, boot_page(&other))));
    other = pages[1].clone();
    other.tails = vec![tail(1, 1)];
    assert!(malformed(refused(&mut sequencer, boot_page(&other))));
    boot(&mut sequencer, pages[1].clone());
    assert!(matches!(
        refused(&mut sequencer, tokens(2, &[])),
        Refusal::NotYet { .. }
    ));
    boot(&mut sequencer, pages[2].clone());
    boot(&mut sequencer, pages[2].clone());
    let answer = tail_of(&mut sequencer, 2, &[0, 5, 6]);
    assert_eq!(answer.next, Position(50));
    assert_eq!(answer.streams[0], tail(0, 0).last);
    assert_eq!(answer.streams[1], tail(5, 12).last);
    assert_eq!(answer.streams[2], BackPointers::EMPTY);
}

#[test]
fn a_bootstrap_tells_the_cluster_and_another_cluster_is_refused() {
    let mut sequencer = Sequencer::new(RUN);
    assert_eq!(sequencer.cluster(), None);
    let mut nobody = page(1, 0);
    nobody.cluster = ClusterId::default();
    let nobody = SequencerRequest::Bootstrap(nobody);
    assert!(matches!(
        refused(&mut sequencer, nobody),
        Refusal::Malformed { .. }
    ));
    boot(&mut sequencer, page(1, 0));
    assert_eq!(sequencer.cluster(), Some(ClusterId(9)));
    let mut foreign = page(2, 0);
    foreign.cluster = ClusterId(8);
    let foreign = SequencerRequest::Bootstrap(foreign);
    assert!(matches!(
        refused(&mut sequencer, foreign.clone()),
        Refusal::Identity { .. }
    ));
    // What was told before counts, too.
    let mut told = Sequencer::new(RUN);
    told.belongs_to(ClusterId(9));
    assert!(matches!(
        refused(&mut told, foreign),
        Refusal::Identity { .. }
    ));
    boot(&mut told, page(1, 0));
    assert_eq!(tail_of(&mut sequencer, 1, &[]).next, Position(0));
}

#[test]
fn no_stream_is_complete_over_what_was_lost() {
    let mut sequencer = Sequencer::new(RUN);
    let mut lossy = page(2, 20);
    lossy.lost = Position(9);
    let list =
        |positions: &[u64], end| BackPointers::new(positions.iter().copied().map(Position), end);
    let tails = [
        (1, list(&[3, 1], ListEnd::Beginning)),
        (2, list(&[12, 5], ListEnd::Beginning)),
        (3, list(&[18, 16, 15, 14, 13], ListEnd::Unknown)),
        (4, list(&[12], ListEnd::Unknown)),
    ];
    let tail = |(stream, last)| StreamTail {
        stream: StreamId(stream),
        last,
    };
    lossy.tails = tails.into_iter().map(tail).collect();
    boot(&mut sequencer, lossy);
    // The last that is lost may be of any stream, also of one that nobody listed.
    let want = [
        list(&[8], ListEnd::Unknown),
        list(&[12, 8], ListEnd::Unknown),
        list(&[18, 16, 15, 14], ListEnd::Unknown),
        list(&[12], ListEnd::Unknown),
        list(&[8], ListEnd::Unknown),
    ];
    let streams = [1, 2, 3, 4, 99];
    let answer = tail_of(&mut sequencer, 2, &streams);
    assert_eq!(answer.streams, want);
    // So are the links of new entries.
    let tokens = granted(&mut sequencer, 2, &[&[99], &[99]]);
    assert_eq!(tokens[0].links[0].back, list(&[8], ListEnd::Unknown));
    assert_eq!(tokens[1].links[0].back, list(&[20, 8], ListEnd::Unknown));
    // Once it is trimmed nobody asks for it any more.
    let trim = |below| SequencerRequest::Trimmed {
        epoch: Epoch(2),
        below: Position(below),
    };
    done(&mut sequencer, trim(8));
    let answer = tail_of(&mut sequencer, 2, &[1, 98, 99]);
    assert_eq!(answer.streams[0], list(&[8], ListEnd::Unknown));
    assert_eq!(answer.streams[1], list(&[8], ListEnd::Unknown));
    assert_eq!(answer.streams[2], list(&[21, 20, 8], ListEnd::Unknown));
    done(&mut sequencer, trim(9));
    let answer = tail_of(&mut sequencer, 2, &[1, 98, 99]);
    let below = BackPointers::none(ListEnd::BelowTrim);
    let [first, second] = [answer.streams[0], answer.streams[1]];
    assert_eq!((first, second), (below, below));
    assert_eq!(answer.streams[2], list(&[21, 20], ListEnd::BelowTrim));
}

#[test]
fn a_higher_epoch_replaces_a_half_done_bootstrap() {
    let mut sequencer = Sequencer::new(RUN);
    let mut half = page(2, 5);
    half.last = false;
    boot(&mut sequencer, half.clone());
    boot(&mut sequencer, page(3, 6));
    half.page = 1;
    half.last = true;
    assert_eq!(
        refused(&mut sequencer, SequencerRequest::Bootstrap(half)),
        Refusal::Sealed { epoch: Epoch(3) }
    );
    assert_eq!(tail_of(&mut sequencer, 3, &[]).next, Position(6));
}

#[test]
fn messages_over_a_limit_are_refused_whole() {
    let mut sequencer = opened(1, 0);
    let many: Vec<u64> = (0..65).collect();
    let malformed = |r| matches!(r, Refusal::Malformed { .. });
    assert!(malformed(refused(
        &mut sequencer,
        tokens(1, &[&[1], &many])
    )));
    assert!(malformed(refused(&mut sequencer, tokens(1, &[&[3, 4, 3]]))));
    assert!(malformed(refused(&mut sequencer, tokens(1, &[&[3, 3]]))));
    assert!(malformed(refused(
        &mut sequencer,
        tokens(1, &[&[1_u64] as &[u64]; 4_097])
    )));
    assert!(malformed(refused(
        &mut sequencer,
        tokens(1, &[&many[..64]; 1_025])
    )));
    let below = Position(1);
    let epoch = Epoch(1);
    assert!(malformed(refused(
        &mut sequencer,
        SequencerRequest::Trimmed { epoch, below }
    )));
    let streams = vec![StreamId(1); 4_097];
    assert!(malformed(refused(
        &mut sequencer,
        SequencerRequest::Tail { epoch, streams }
    )));
    assert_eq!(tail_of(&mut sequencer, 1, &[1]).next, Position(0));
}

#[test]
fn the_stream_limit_refuses_new_streams_only() {
    let mut sequencer = Sequencer::new(RUN);
    let mut limited = page(1, 0);
    limited.stream_limit = 2;
    boot(&mut sequencer, limited);
    granted(&mut sequencer, 1, &[&[1]]);
    // The second makes stream 2; from then on none is new but the third's and the fifth's.
    let wants: [&[u64]; 6] = [&[], &[1, 2], &[3], &[2], &[1, 4, 2], &[2, 1]];
    let answer = ask(&mut sequencer, tokens(1, &wants));
    let Response::Sequencer(SequencerResponse::SomeTokens {
        tokens: some,
        refused,
        limit,
    }) = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!((refused, limit), (vec![2, 4], 2));
    let positions: Vec<_> = some.iter().map(|token| token.position.0).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
    let lists = tail_of(&mut sequencer, 1, &[1, 2, 3, 4]).streams;
    assert_eq!(lists[0].positions(), [4, 2, 0].map(Position));
    assert_eq!(lists[1].positions(), [4, 3, 2].map(Position));
    assert_eq!(
        lists[2..],
        [BackPointers::EMPTY; 2],
        "nothing is left of them"
    );
    granted(&mut sequencer, 1, &[&[1, 2], &[2], &[2, 1]]);
    assert_eq!(tail_of(&mut sequencer, 1, &[]).next, Position(8));
}

#[test]
fn a_wait_ends_with_news_with_time_or_with_the_epoch() {
    let mut sequencer = opened(1, 0);
    let mut parked = |call, request| {
        sequencer.handle(at(0), CallId(call), request);
    };
    parked(1, wait(1, &[5, 6], 0, 100));
    parked(2, wait(1, &[6], 1, 200));
    parked(3, wait(1, &[], 1, 300));
    parked(4, wait(1, &[9], 0, 60_000));
    parked(5, wait(1, &[9], 0, 0));
    let calls = |s: &mut Sequencer| {
        let mut calls: Vec<_> = std::iter::from_fn(|| s.poll_reply()).collect();
        calls.sort_by_key(|(call, _)| *call);
        calls
            .into_iter()
            .map(|(c, r)| (c.0, matches!(r, Response::Refused(_))))
            .collect::<Vec<_>>()
    };
    assert_eq!(calls(&mut sequencer), [(5, false)]);
    assert_eq!(sequencer.next_time(), Some(at(100)));
    sequencer.handle(at(1), CallId(10), tokens(1, &[&[6]]));
    assert_eq!(calls(&mut sequencer), [(1, false), (10, false)]);
    sequencer.handle(at(1), CallId(11), tokens(1, &[&[]]));
    assert_eq!(calls(&mut sequencer), [(3, false), (11, false)]);
    sequencer.handle_time(at(199));
    assert_eq!(calls(&mut sequencer), []);
    sequencer.handle_time(at(200));
    assert_eq!(calls(&mut sequencer), [(2, false)]);
    assert_eq!(sequencer.next_time(), Some(at(2_000)));
    sequencer.handle(at(201), CallId(12), seal(2));
    assert_eq!(calls(&mut sequencer), [(4, true), (12, false)]);
    assert_eq!(sequencer.next_time(), None);
    // What is there already is not waited for.
    let mut sequencer = opened(1, 3);
    sequencer.handle(at(0), CallId(1), wait(1, &[], 2, 100));
    sequencer.handle(at(0), CallId(2), wait(1, &[], 3, 100));
    assert_eq!(calls(&mut sequencer), [(1, false)]);
}

#[test]
fn parked_waits_are_bounded() {
    let mut sequencer = opened(1, 0);
    for call in 0..65_536 {
        sequencer.handle(at(0), CallId(call), wait(1, &[5], 0, 100));
    }
    assert_eq!(sequencer.poll_reply(), None);
    assert!(matches!(
        refused(&mut sequencer, wait(1, &[5], 0, 100)),
        Refusal::Busy { .. }
    ));
    sequencer.handle_time(at(100));
    assert_eq!(
        std::iter::from_fn(|| sequencer.poll_reply()).count(),
        65_536
    );
    assert_eq!(sequencer.next_time(), None);
}

#[test]
fn facts_say_what_it_does() {
    let mut sequencer = Sequencer::new(RUN);
    assert!(sequencer.facts()["state"].contains("bootstrap"));
    boot(&mut sequencer, page(4, 9));
    assert_eq!(sequencer.facts()["state"], "serving");
    assert_eq!(sequencer.facts()["next"], "9");
    done(&mut sequencer, seal(5));
    assert!(sequencer.facts()["state"].contains("sealed"));
}

#[test]
fn a_million_streams_are_bootstrapped() {
    let mut sequencer = Sequencer::new(RUN);
    let streams = 1_000_000_u64;
    let per_page = milonga_protocol::limits::STREAM_TAILS_PER_PAGE as u64;
    for number in 0..streams.div_ceil(per_page) {
        let mut page = page(1, streams);
        page.page = u32::try_from(number).unwrap();
        page.stream_limit = streams;
        let to = streams.min((number + 1) * per_page);
        page.last = to == streams;
        let tail = |s| StreamTail {
            stream: StreamId(s),
            last: BackPointers::new([Position(s)], ListEnd::Beginning),
        };
        page.tails = (number * per_page..to).map(tail).collect();
        boot(&mut sequencer, page);
    }
    assert_eq!(sequencer.facts()["streams"], "1000000");
    assert_eq!(
        tail_of(&mut sequencer, 1, &[999_999]).streams[0].last(),
        Some(Position(999_999))
    );
}

#[derive(Clone, Debug)]
enum Step {
    Grant(Vec<Vec<u64>>),
    Trim(u64),
    Look,
}

fn any_step() -> impl Strategy<Value = Step> {
    let want = prop::collection::btree_set(0..6_u64, 0..4).prop_map(|s| s.into_iter().collect());
    prop_oneof![
        4 => prop::collection::vec(want, 0..5).prop_map(Step::Grant),
        1 => (0..60_u64).prop_map(Step::Trim),
        2 => Just(Step::Look),
    ]
}

/// The log as granted: who belongs to which stream, and the mark.
#[derive(Default)]
struct Model {
    log: Vec<Vec<u64>>,
    trimmed: u64,
}

impl Model {
    /// Whether `list` is a true and exact account of a stream.
    fn agrees(&self, stream: u64, list: &BackPointers) -> bool {
        let all = (0..self.log.len() as u64).rev();
        let all = all.filter(|p| self.log[usize::try_from(*p).unwrap()].contains(&stream));
        let all: Vec<u64> = all.collect();
        let kept: Vec<u64> = list.positions().iter().map(|p| p.0).collect();
        let want: Vec<u64> = all
            .iter()
            .copied()
            .filter(|p| *p >= self.trimmed)
            .take(4)
            .collect();
        let beyond = &all[want.len()..];
        let end = match list.end() {
            ListEnd::Beginning => beyond.is_empty(),
            ListEnd::BelowTrim => self.trimmed > 0 && beyond.iter().all(|p| *p < self.trimmed),
            ListEnd::Unknown => kept.len() == 4,
        };
        kept == want && end
    }
}

proptest! {
    #[test]
    fn it_agrees_with_the_model(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut sequencer = opened(1, 0);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Grant(wants) => {
                    let refs: Vec<&[u64]> = wants.iter().map(Vec::as_slice).collect();
                    for (want, token) in wants.iter().zip(granted(&mut sequencer, 1, &refs)) {
                        prop_assert_eq!(token.position, Position(model.log.len() as u64));
                        for (stream, link) in want.iter().zip(&token.links) {
                            prop_assert_eq!(link.stream, StreamId(*stream));
                            prop_assert!(model.agrees(*stream, &link.back), "{} {:?}", stream, link.back);
                        }
                        model.log.push(want.clone());
                    }
                }
                Step::Trim(below) => {
                    let below = below.min(model.log.len() as u64);
                    model.trimmed = model.trimmed.max(below);
                    done(&mut sequencer, SequencerRequest::Trimmed { epoch: Epoch(1), below: Position(below) });
                }
                Step::Look => {
                    let answer = tail_of(&mut sequencer, 1, &[0, 1, 2, 3, 4, 5]);
                    prop_assert_eq!(answer.next, Position(model.log.len() as u64));
                    prop_assert_eq!(answer.trimmed, Position(model.trimmed));
                    for (stream, list) in (0..).zip(&answer.streams) {
                        prop_assert!(model.agrees(stream, list), "{} {:?}", stream, list);
                    }
                }
            }
        }
    }
}

// --------------------------------------------------------------------------------------------------- leases

fn leasing() -> Sequencer {
    let mut sequencer = Sequencer::new(RUN);
    let mut page = page(1, 5);
    page.lease = Lease::Renewed;
    boot(&mut sequencer, page);
    sequencer
}

/// What stands for a lease in a tail answer to a query of `epoch` that is read at `ms`; `None`: it is refused.
fn lease_at(sequencer: &mut Sequencer, epoch: u64, ms: u64) -> Option<Lease> {
    let (epoch, streams) = (Epoch(epoch), vec![]);
    let request = SequencerRequest::Tail { epoch, streams };
    sequencer.handle(at(ms), CallId(1), request);
    match sequencer.poll_reply() {
        Some((_, Response::Sequencer(SequencerResponse::Tail(answer)))) => Some(answer.lease),
        _ => None,
    }
}

fn asked_at(sequencer: &mut Sequencer, ms: u64) -> AskLease {
    sequencer.handle_time(at(ms));
    sequencer.poll_ask().expect("it is time to ask")
}

#[test]
fn a_lease_runs_from_the_moment_of_asking_and_no_longer_than_the_longest() {
    let mut sequencer = leasing();
    let lasts = Duration::from_millis(300);
    assert_eq!(sequencer.next_time(), Some(at(0)), "asks at once");
    let first = asked_at(&mut sequencer, 10);
    assert_eq!(lease_at(&mut sequencer, 1, 20), Some(Lease::None));
    // The answer takes its time; that is the lease's.
    sequencer.leased(at(200), first, lasts);
    assert_eq!(lease_at(&mut sequencer, 1, 309), Some(Lease::Renewed));
    assert_eq!(sequencer.facts()["lease"], "held");
    assert_eq!(lease_at(&mut sequencer, 1, 310), Some(Lease::None));
    assert!(sequencer.facts()["lease"].starts_with("not held"));
    let second = asked_at(&mut sequencer, 320);
    sequencer.leased(at(330), second, Duration::from_secs(5));
    // An older answer that was overtaken, and one that grants nothing.
    sequencer.leased(at(340), first, lasts);
    sequencer.leased(at(340), second, Duration::ZERO);
    assert_eq!(lease_at(&mut sequencer, 1, 719), Some(Lease::Renewed));
    assert_eq!(lease_at(&mut sequencer, 1, 720), Some(Lease::None));
}

#[test]
fn a_lease_is_asked_for_three_times_while_it_lasts() {
    let mut sequencer = leasing();
    let ask = asked_at(&mut sequencer, 0);
    assert_eq!(sequencer.next_time(), Some(at(100)));
    sequencer.leased(at(5), ask, Duration::from_millis(150));
    let _ = asked_at(&mut sequencer, 100);
    assert_eq!(sequencer.next_time(), Some(at(150)));
    sequencer.handle_time(at(149));
    assert_eq!(sequencer.poll_ask(), None);
}

#[test]
fn a_seal_or_a_new_epoch_ends_the_lease_of_the_old_one() {
    let lasts = Duration::from_millis(300);
    let mut sequencer = leasing();
    let ask = asked_at(&mut sequencer, 0);
    done(&mut sequencer, seal(2));
    sequencer.leased(at(1), ask, lasts);
    assert_eq!(lease_at(&mut sequencer, 1, 2), None);
    assert_eq!(sequencer.next_time(), None, "asks no more");
    let mut next = page(2, 9);
    next.lease = Lease::Renewed;
    boot(&mut sequencer, next);
    sequencer.leased(at(3), ask, lasts);
    assert_eq!(
        lease_at(&mut sequencer, 2, 4),
        Some(Lease::None),
        "an old epoch's"
    );
    let ask = asked_at(&mut sequencer, 5);
    assert_eq!(ask.epoch, Epoch(2));
    sequencer.leased(at(6), ask, lasts);
    assert_eq!(lease_at(&mut sequencer, 2, 7), Some(Lease::Renewed));
}

#[test]
fn nobody_is_asked_where_leases_are_switched_off_or_a_lock_stands_for_them() {
    for lease in [Lease::None, Lease::DirectoryLock] {
        let mut sequencer = Sequencer::new(RUN);
        let mut page = page(1, 5);
        page.lease = lease;
        boot(&mut sequencer, page);
        assert_eq!(sequencer.next_time(), None);
        sequencer.handle_time(at(500));
        assert_eq!(sequencer.poll_ask(), None);
        assert_eq!(lease_at(&mut sequencer, 1, 600), Some(lease));
    }
}
