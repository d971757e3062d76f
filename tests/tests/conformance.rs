//! The conformance suite of the log contract, on the embedded log and on a cluster over QUIC.

use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::conformance::{LogUnderTest, Outcome, checks};
use milonga_tests::Rig;

async fn run(make: impl AsyncFn() -> Arc<Rig>, not_supported: &[&str]) {
    let mut skipped = Vec::new();
    for check in checks() {
        let rig: Arc<dyn LogUnderTest> = make().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "a real cluster runs on real time"
        )]
        let outcome = tokio::time::timeout(Duration::from_secs(60), check.run(rig)).await;
        match outcome {
            Ok(Outcome::Passed) => println!("passed {check:?}"),
            Ok(Outcome::NotSupported) => skipped.push(check.name),
            Err(_) => panic!("{check:?} did not end"),
        }
    }
    assert_eq!(
        skipped, not_supported,
        "checks that the rig has no fault for"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_log_conforms() {
    // One unit, which lives in the process of its clients.
    let needs_other_processes = [
        "acknowledged_entries_survive_a_restart",
        "acknowledged_entries_survive_damage_of_one_replica",
        "appends_through_a_restart_are_there_once_or_failed",
        "trim_survives_a_restart",
    ];
    run(Rig::embedded, &needs_other_processes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_over_quic_conforms() {
    run(async || Rig::cluster(2, 2).await, &[]).await;
}
