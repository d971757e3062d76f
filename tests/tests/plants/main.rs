//! Six planted faults, each found. They are switched for one thread, so everything runs on one.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

mod crash;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_objects::{Outcome, Replica, ReplicaOptions};
use milonga_protocol::conformance::{LogUnderTest, checks};
use milonga_protocol::memory::MemoryLog;
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{Log as _, NewEntry, ReadAnswer, SharedEnv, TailOf, WriterId};
use milonga_tests::Rig;
use milonga_tests::world::{Failure, Moment, Plan, run};
use milonga_transport::TokioEnv;

/// Runs the named conformance check on a fresh rig.
async fn conformance(name: &str, make: impl AsyncFn() -> Arc<Rig>) {
    let check = checks()
        .into_iter()
        .find(|check| check.name == name)
        .expect("a check of that name");
    let rig: Arc<dyn LogUnderTest> = make().await;
    #[expect(
        clippy::disallowed_methods,
        reason = "a real cluster runs on real time"
    )]
    let ended = tokio::time::timeout(Duration::from_secs(60), check.run(rig)).await;
    ended.expect("ends in time");
}

/// Appends while somebody fills the positions that come next: what was acknowledged must be there.
async fn racing_fills_lose_no_append() {
    let rig = Rig::cluster(1, 1).await;
    let filler = rig.client(1).clone();
    let stop = Arc::new(AtomicBool::new(false));
    let filling = {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let next = filler.tail(TailOf::Log).await.expect("answers").next;
                filler.settle(next, next.plus(4)).await.expect("settles");
            }
        })
    };
    let appends: Vec<_> = (0..16_u64)
        .map(|task| {
            let client = rig.client(0).clone();
            tokio::spawn(async move {
                let mut acked = Vec::new();
                for n in 0..100_u64 {
                    let payload = format!("{task}/{n}");
                    let entry = NewEntry::new(Vec::new(), payload.clone());
                    let appended = client.append(entry).await.expect("appends");
                    acked.push((appended.position, payload));
                }
                acked
            })
        })
        .collect();
    for task in appends {
        for (position, payload) in task.await.expect("does not panic") {
            match rig
                .client(2)
                .read(vec![position])
                .await
                .expect("reads")
                .remove(0)
            {
                ReadAnswer::Data(entry) => assert_eq!(entry.payload, payload.as_bytes()),
                other => panic!("acknowledged at {position}, now {other:?}"),
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    filling.await.expect("does not panic");
}

/// Concurrent read-modify-writes on two replicas: none may be lost, and each must commit in the end.
async fn increments_are_not_lost() {
    let log = MemoryLog::new();
    let env: SharedEnv = TokioEnv::new();
    let mut tasks = Vec::new();
    for writer in 1..=2 {
        let replica = Replica::start(
            Arc::clone(&env),
            log.handle(WriterId(writer)),
            ReplicaOptions::default(),
        );
        for _ in 0..4 {
            let replica = replica.clone();
            tasks.push(tokio::spawn(async move {
                let map = replica.map::<String, u64>("m").await.expect("opens");
                let mut committed = 0;
                for _ in 0..50 {
                    let key = "n".to_owned();
                    let outcome = replica
                        .transaction(async |tx| {
                            let old = tx.get(&map, &key).unwrap_or(0);
                            tx.insert(&map, key.clone(), old + 1);
                            Ok::<_, std::convert::Infallible>(())
                        })
                        .await
                        .expect("no error");
                    committed += u64::from(matches!(outcome, Outcome::Committed { .. }));
                }
                committed
            }));
        }
    }
    let mut committed = 0;
    for task in tasks {
        committed += task.await.expect("does not panic");
    }
    let fresh = Replica::start(env, log.handle(WriterId(9)), ReplicaOptions::default());
    let map = fresh.map::<String, u64>("m").await.expect("opens");
    let value = map.get(&"n".to_owned()).await.expect("reads").unwrap_or(0);
    assert_eq!(
        value, committed,
        "an increment was lost, or counted though it conflicted"
    );
    assert!(committed > 0, "nothing ever commits");
}

/// What did not hold in the world of a seed.
fn in_a_world(seed: u64, plant: Option<Plant>) -> Option<Failure> {
    if let Some(plant) = plant {
        plants::set(plant, true);
    }
    let failure = run(&Plan::draw(seed), seed, false).failure;
    if let Some(plant) = plant {
        plants::set(plant, false);
    }
    failure
}

async fn find(plant: Plant, test: impl Future<Output = ()>) {
    plants::set(plant, true);
    let found = futures_util::FutureExt::catch_unwind(AssertUnwindSafe(test))
        .await
        .is_err();
    plants::set(plant, false);
    assert!(found, "nothing noticed {plant:?}");
    println!("found {plant:?}");
}

#[tokio::test]
async fn every_other_plant_is_found_and_nothing_is_found_without_one() {
    let embedded = Rig::embedded;
    let lost = "a_lost_position_reads_lost";
    let hole = "nothing_is_delivered_past_a_hole";
    let cluster = async || Rig::cluster(2, 1).await;

    racing_fills_lose_no_append().await;
    conformance(lost, embedded).await;
    conformance(hole, cluster).await;
    crash::acknowledged_writes_survive_a_crash();
    increments_are_not_lost().await;

    find(Plant::LostIsUnwritten, conformance(lost, embedded)).await;
    find(Plant::DeliverPastHole, conformance(hole, cluster)).await;
    find(Plant::AckBeforeSync, async {
        crash::acknowledged_writes_survive_a_crash()
    })
    .await;
    find(Plant::VersionOffByOne, increments_are_not_lost()).await;
}

/// Writer and filler meet at one position: on real time that is luck, in a seeded world it is the seed's. Not inside of a
/// runtime: its budget for tasks would stop the world's.
#[test]
fn an_occupied_position_taken_for_success_is_found() {
    let plant = Plant::OccupiedIsSuccess;
    let raced = (0..10).find(|seed| in_a_world(*seed, Some(plant)).is_some());
    let raced = raced.expect("nothing noticed it");
    assert_eq!(
        in_a_world(raced, None),
        None,
        "seed {raced} fails without it"
    );
    println!("found {plant:?} by seed {raced}");
}

/// One server is slow, and nothing else goes wrong: with the plant it stays, without it it is out of the way in time.
#[test]
fn a_detector_that_ignores_slowness_is_found() {
    let plant = Plant::SlownessIgnored;
    let asked = |seed: &u64| {
        let mut plan = Plan::draw(*seed);
        let (server, at, _) = plan.grays().next()?;
        let unit = plan.shape.servers()[server].starts_with("unit-");
        // Where it can be done without.
        if unit && usize::from(plan.shape.min_replicas) >= plan.shape.replicas {
            return None;
        }
        plan.faults.retain(|fault| fault.at == at);
        (plan.faults[0].at, plan.safety) = (Moment(5_000_000_000), Moment(20_000_000_000));
        Some((*seed, plan))
    };
    let found = |(seed, plan): &(u64, Plan)| {
        plants::set(plant, true);
        let failure = run(plan, *seed, false).failure;
        plants::set(plant, false);
        failure.is_some_and(|failure| failure.invariant.starts_with("I19"))
    };
    // A disk that nobody writes to is not missed, and a process may be so slow that it is silent.
    let mut plans = (0..).filter_map(|seed| asked(&seed)).take(8);
    let (seed, plan) = plans.find(found).expect("nothing noticed it");
    assert_eq!(
        run(&plan, seed, false).failure,
        None,
        "seed {seed} fails without it"
    );
    println!("found {plant:?} by seed {seed}");
}
