//! Tail checks under a lease, and what becomes of them when the layout is gone.

use milonga_protocol::{Log as _, TailOf};

use super::*;

const UNITS: [&str; 2] = ["unit-1a", "unit-1b"];

impl Cluster {
    /// Waits until the sequencer's status speaks like this of its lease.
    async fn lease_is(&self, begins: &str) {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status();
            let servers = status["servers"].as_array().into_iter().flatten();
            let mut sequencers = servers.filter(|server| server["name"] == "sequencer-1");
            let said = sequencers
                .next()
                .map(|server| &server["roles"]["sequencer"]["lease"]);
            if said
                .and_then(|said| said.as_str())
                .is_some_and(|said| said.starts_with(begins))
            {
                return;
            }
            assert!(Instant::now() < give_up, "{status:#}");
            sleep(50).await;
        }
    }

    fn signal_units(&self, signal: &str) {
        UNITS.iter().for_each(|name| self.signal(name, signal));
    }
}

async fn tail_within(log: &LogClient, ms: u64) -> bool {
    let tail = tokio::time::timeout(Duration::from_millis(ms), log.tail(TailOf::Log)).await;
    tail.is_ok_and(|tail| tail.is_ok())
}

/// Whether a tail check gets its answer while no unit can say anything. They stand still for less than it takes to be given
/// up.
async fn needs_no_unit(cluster: &Cluster, log: &LogClient) -> bool {
    // What was learned last decides whom the next check asks at once.
    assert!(tail_within(log, 5_000).await);
    cluster.signal_units("-STOP");
    let answered = tail_within(log, 250).await;
    cluster.signal_units("-CONT");
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_check_asks_no_unit_under_a_lease_and_goes_on_without_one() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut cluster = Cluster::start(dir.path(), 1);
    let log = log_client(&dir.path().join("certs"), &cluster.layout).await;
    cluster.lease_is("held").await;
    let mut answered = 0;
    for _ in 0..5 {
        answered += u32::from(needs_no_unit(&cluster, &log).await);
        sleep(300).await;
    }
    // A busy machine may miss a renewal.
    assert!(answered >= 3, "{answered} of 5 were answered without units");
    cluster.kill("layout-1");
    // Without the layout nobody says where to ask for a status.
    sleep(1_000).await;
    assert!(
        !needs_no_unit(&cluster, &log).await,
        "the lease has run out"
    );
    for _ in 0..20 {
        assert!(tail_within(&log, 5_000).await, "reads go on");
    }
    cluster.spawn("layout-1");
    cluster.lease_is("held").await;
    assert!(tail_within(&log, 5_000).await);
}
