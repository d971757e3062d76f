//! The life of a client that works with objects, and the reading of the whole log when all are done.

use std::sync::Arc;
use std::time::Duration;

use milonga_client::LogClient;
use milonga_objects::{Replica, ReplicaOptions};
use milonga_protocol::{BoxFuture, Log as _, LogError, Position, ReadAnswer, TailOf};

use super::{Hand, why};
use crate::world::history::History;
use crate::world::rng::Rng;
use crate::world::witness::Rule;
use crate::world::workload::Client;

/// Positions that the last reading asks for at once.
const AT_ONCE: u64 = 128;

/// Starts replicas and tasks over them, waits for their end, and reads the log if nobody else will.
pub(in crate::world::workloads) async fn live(
    client: Client,
    history: History,
    work: impl Fn(Hand, u64) -> BoxFuture<'static, ()>,
) {
    history.started(client.number());
    let log = client.connect().await;
    let mut logs = vec![Arc::clone(&log)];
    let (replicas, tasks) = client.draw(|rng| (*rng.pick(&[1, 1, 1, 2]), *rng.pick(&[1, 1, 2])));
    let drops = client.draw(|rng| *rng.pick(&[0, 50_000, 250_000]));
    let (mut hands, mut done) = (Vec::new(), Vec::new());
    for nth in 0..replicas {
        // Replicas of one process share a log or have one each.
        let log = if nth > 0 && client.draw(|rng| rng.happens(500_000)) {
            logs.push(client.connect().await);
            Arc::clone(&logs[logs.len() - 1])
        } else {
            Arc::clone(&log)
        };
        let options = client.draw(draw_options);
        let hand = Hand {
            replica: Replica::start(client.env(), Arc::clone(&log) as _, options),
            client: client.clone(),
            log,
            history: history.clone(),
            number: history.new_replica(),
            drops,
        };
        for task in 0..tasks {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let work = work(hand.clone(), nth * tasks + task);
            client
                .spawn(Box::pin(async move {
                    work.await;
                    let _ = sender.send(());
                }))
                .detach();
            done.push(receiver);
        }
        hands.push(hand);
    }
    for done in done {
        let _ = done.await;
    }
    for hand in &hands {
        hand.replica.close().await;
    }
    if history.ended(client.number()) {
        read_all(&client, &log, &history).await;
    }
    for log in logs {
        log.close().await;
    }
}

fn draw_options(rng: &mut Rng) -> ReplicaOptions {
    let mut options = ReplicaOptions::default();
    options.deadline = Duration::from_millis(*rng.pick(&[1_000, 3_000, 10_000]));
    options.tx_attempts = *rng.pick(&[1, 3, 16]);
    options.entries_in_flight = *rng.pick(&[1, 2, 4]);
    options.queue_bytes = *rng.pick(&[300, 2_000, 32 << 20]);
    options.part_bytes = *rng.pick(&[1, 200, 4_000, 1 << 20]);
    options
}

/// Reads every granted position, as anybody could.
async fn read_all(client: &Client, log: &LogClient, history: &History) {
    let end = patiently(client, || log.tail(TailOf::Log)).await.next;
    patiently(client, || log.settle(Position::ZERO, end)).await;
    let mut entries = Vec::new();
    for from in (0..end.0).step_by(usize::try_from(AT_ONCE).expect("small")) {
        let wanted: Vec<_> = (from..end.0.min(from + AT_ONCE)).map(Position).collect();
        let answers = patiently(client, || log.read(wanted.clone())).await;
        for (position, answer) in wanted.into_iter().zip(answers) {
            match answer {
                ReadAnswer::Data(entry) => entries.push((position, entry)),
                ReadAnswer::Junk => {}
                other => {
                    let text = format!("position {position} is {other:?} in the end");
                    history.complain(Rule::Readable, text);
                }
            }
        }
    }
    let mut book = history.book();
    book.log = Some(entries);
    book.window = Some(log.limits().conflict_window);
}

async fn patiently<T>(
    client: &Client,
    call: impl Fn() -> BoxFuture<'static, Result<T, LogError>>,
) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => {
                client.note(&why(&error));
                client.pause(Duration::from_millis(50)).await;
            }
        }
    }
}
