//! Runs that a seed draws.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cluster::Cluster;
use super::*;

/// Members are cut off, crash and come back as the seed says, while whoever leads makes changes. Gives the trace.
fn storm(seed: u64) -> Vec<String> {
    on_virtual_time(seed, async |env| {
        let mut cluster = Cluster::running(&env, 3).await;
        cluster.config.snapshot_every = 6;
        cluster.config.keep = 1;
        let mut acknowledged = BTreeSet::new();
        for _ in 0..40 {
            trouble(&mut cluster).await;
            let pause = Duration::from_millis(env.random() % 1_500);
            env.sleep(pause).await;
            for id in cluster.ids() {
                if cluster.get(id).leadership().borrow().leads
                    && let Some(epoch) = next_epoch(&cluster, id).await
                {
                    assert!(acknowledged.insert(epoch), "{epoch} twice");
                }
            }
        }
        cluster.heal();
        start_all(&mut cluster).await;
        let history = cluster.agreed().await;
        let made = history.starts_after(Epoch::NONE);
        let made: BTreeSet<_> = made.into_iter().map(|(epoch, _)| epoch).collect();
        assert!(acknowledged.is_subset(&made), "{acknowledged:?} {made:?}");
        cluster.note(&format!("{history:?}"));
        cluster.trace()
    })
}

async fn trouble(cluster: &mut Cluster) {
    let random = cluster.env.random();
    let id = 1 + random % 3;
    match random >> 8 & 7 {
        0 | 1 => cluster.cut_off(MemberId(id)),
        2 => cluster.heal(),
        3 => cluster.stop(id, true).await,
        4 => cluster.stop(id, false).await,
        5 => start_all(cluster).await,
        _ => {}
    }
}

async fn start_all(cluster: &mut Cluster) {
    for id in 1..=3 {
        if !cluster.ids().contains(&MemberId(id)) {
            cluster.start(id).await;
        }
    }
}

/// The epoch that a member has surely made.
async fn next_epoch(cluster: &Cluster, id: MemberId) -> Option<Epoch> {
    let replica = cluster.get(id);
    let history = replica.history();
    let epoch = history.epoch().next();
    let last = history.current().map(|layout| layout.start.0);
    let start = last.map_or(0, |last| last + cluster.env.random() % 3);
    let begun = replica.propose(intent(epoch.0)).await;
    let done = replica.propose(commit(&history, start)).await;
    cluster.note(&format!("{id} proposed {epoch}: {begun:?} {done:?}"));
    (done == Ok(Ok(()))).then_some(epoch)
}

#[test]
fn nothing_acknowledged_is_lost_in_a_storm() {
    let mut epochs = 0;
    for seed in 100..140 {
        let trace = storm(seed);
        let made = |line: &&String| line.ends_with("Ok(Ok(())) Ok(Ok(()))");
        epochs += trace.iter().filter(made).count();
    }
    assert!(epochs > 100, "only {epochs} epochs: nothing was tried");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3] {
        let (first, second) = (storm(seed), storm(seed));
        let differs = first.iter().zip(&second).find(|(a, b)| a != b);
        assert_eq!(differs, None);
        assert_eq!(first.len(), second.len());
    }
    assert_ne!(storm(1), storm(2));
}
