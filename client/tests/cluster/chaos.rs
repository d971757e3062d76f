//! Random faults, dying writers and reconfigurations: what was acknowledged is there once, what failed never.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use milonga_client::{ClientOptions, LogClient};
use milonga_protocol::messages::Request;
use milonga_protocol::{
    AppendError, Appended, Entry, EntryId, Log, LogError, NewEntry, Position, TailOf,
};

use crate::fake::{Fake, Fault};
use crate::{S, background, client, client_with, play, stream_read, target};

/// splitmix64: reproducible from the seed alone.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

fn fault(dice: &Dice, request: &Request, percent: u64) -> Fault {
    if matches!(request, Request::Layout(_)) || dice.roll(100) >= percent {
        return Fault::Delay(Duration::from_micros(100 + dice.roll(3_000)));
    }
    match dice.roll(5) {
        0 => Fault::LoseRequest,
        1 => Fault::LoseReply,
        2 => Fault::Silence,
        3 => Fault::Unreachable,
        _ => Fault::Delay(Duration::from_millis(dice.roll(300))),
    }
}

type Outcomes = Arc<Mutex<Vec<(String, Result<Appended, AppendError>)>>>;

async fn write(
    fake: Arc<Fake>,
    client: Arc<LogClient>,
    name: u64,
    dice: Arc<Dice>,
    outcomes: Outcomes,
) {
    for n in 0..25 {
        let text = format!("{name}.{n}");
        let outcome = client.append(NewEntry::new([S], text.clone())).await;
        outcomes.lock().expect("no panic").push((text, outcome));
        let pause = Duration::from_millis(dice.roll(30));
        fake.env.sleep(pause).await;
    }
}

/// Follows the stream; what it saw must be a prefix of the truth.
async fn follow(client: Arc<LogClient>) -> Vec<(Position, Entry)> {
    let (mut seen, mut from) = (Vec::new(), Position::ZERO);
    for _ in 0..200 {
        let Ok(tail) = client.tail(TailOf::Streams([S].into())).await else {
            continue;
        };
        match client.read_streams(stream_read(from, tail.target())).await {
            Ok(part) => {
                assert!(part.complete >= from);
                seen.extend(part.entries);
                from = part.complete.min(part.target.to.max(from));
            }
            Err(LogError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    seen
}

async fn disturb(fake: Arc<Fake>, dice: Arc<Dice>) {
    for _ in 0..12 {
        fake.env.sleep(Duration::from_millis(dice.roll(300))).await;
        match dice.roll(6) {
            0 | 1 => fake.reconfigure(),
            2 => fake.seal(),
            3 => {
                let token = fake.take_token(&[S]);
                fake.write(&token, b"half", 1);
            }
            _ => {
                fake.take_token(&[S]);
            }
        }
    }
}

fn check(seed: u64, truth: &[(Position, Entry)], outcomes: &Outcomes) {
    let mut by_text: BTreeMap<Vec<u8>, Vec<(Position, EntryId)>> = BTreeMap::new();
    for (position, entry) in truth {
        let found = by_text.entry(entry.payload.to_vec()).or_default();
        found.push((*position, entry.id));
    }
    for (text, outcome) in outcomes.lock().expect("no panic").iter() {
        let found = by_text.get(text.as_bytes()).cloned().unwrap_or_default();
        match outcome {
            Ok(appended) => assert_eq!(
                found,
                [(appended.position, appended.id)],
                "seed {seed}: {text} was acknowledged"
            ),
            Err(AppendError::OutcomeUnknown { id, .. }) => assert!(
                found.is_empty() || (found.len() == 1 && found[0].1 == *id),
                "seed {seed}: {text} of unknown outcome {id:?} is at {found:?}"
            ),
            Err(error) => assert!(
                found.is_empty(),
                "seed {seed}: {text} failed ({error}) but is at {found:?}"
            ),
        }
    }
}

async fn run(seed: u64) -> usize {
    let dice = Arc::new(Dice(AtomicU64::new(seed)));
    let chains = usize::try_from(1 + dice.roll(3)).expect("small");
    let replicas = usize::try_from(1 + dice.roll(3)).expect("small");
    let fake = Fake::new(chains, replicas);
    let mut options = ClientOptions::default();
    options.call_timeout = Duration::from_millis(400);
    options.deadline = Duration::from_millis(2_000 + dice.roll(8_000));
    options.groups_in_flight = usize::try_from(1 + dice.roll(3)).expect("small");
    let outcomes = Outcomes::default();
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(client_with(&fake, options.clone()).await);
    }
    let (percent, faults_dice) = (dice.roll(40), Arc::clone(&dice));
    fake.faults(move |_, request| fault(&faults_dice, request, percent));
    let mut writers = Vec::new();
    for name in 0..8 {
        let client = &clients[usize::from(name % 2 == 0)];
        let writer = write(
            Arc::clone(&fake),
            Arc::clone(client),
            name,
            Arc::clone(&dice),
            Arc::clone(&outcomes),
        );
        writers.push(background(&fake, writer));
    }
    let follower = background(&fake, follow(Arc::clone(&clients[0])));
    let disturbed = disturb(Arc::clone(&fake), Arc::clone(&dice));
    background(&fake, disturbed).await;
    join_all(writers).await;
    let seen = follower.await;
    fake.no_faults();
    // Appends of unknown outcome are finished in the background.
    fake.env.sleep(Duration::from_secs(120)).await;
    let reader = client(&fake).await;
    let to = target(&reader).await;
    let truth = play(&reader, Position::ZERO, to).await.expect("healed");
    check(seed, &truth, &outcomes);
    assert_eq!(
        seen[..],
        truth[..seen.len()],
        "seed {seed}: no prefix of the truth"
    );
    let acknowledged = outcomes.lock().expect("no panic");
    acknowledged.iter().filter(|(_, o)| o.is_ok()).count()
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_each_append_is_there_once_or_failed() {
    let from = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok());
    let (from, seeds) = (from.unwrap_or(1), seeds.unwrap_or(40));
    let mut acknowledged = 0;
    for seed in from..from + seeds {
        acknowledged += run(seed).await;
    }
    assert!(acknowledged > 20 * usize::try_from(seeds).expect("small"));
}
