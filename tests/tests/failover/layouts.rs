//! Three members of the layout, and what a cluster can do without one or two of them.

use super::*;

impl Cluster {
    /// What `milonga status --json` says.
    pub(super) fn status(&self) -> serde_json::Value {
        let mut command = Command::new(CHILD);
        command.args(["server", "--json", "--config"]);
        command.arg(self.dir.join("client.toml")).arg("status");
        let output = command.output().expect("runs");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// The member that leads, and its term, as soon as one does that `is_such`.
    async fn leader(&self, is_such: impl Fn(&str) -> bool) -> (&'static str, u64) {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status();
            let leader = &status["leader"];
            let name = LAYOUTS.iter().find(|name| leader["name"] == **name);
            if let (Some(name), Some(term)) = (name, leader["term"].as_u64())
                && is_such(name)
            {
                return (name, term);
            }
            assert!(Instant::now() < give_up, "nobody leads: {status:#}");
            sleep(50).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layout_goes_on_without_its_leader_and_appends_do_not_notice() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        mut cluster,
        milonga,
        map,
        log,
        writers,
        acked,
        ..
    } = Load::start(dir.path(), 3).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    // Everything of the epoch is done, and recorded.
    sleep(1_000).await;
    let epoch = log.layout().layout.epoch;
    for round in 0..2 {
        let (old, old_term) = cluster.leader(|_| true).await;
        let _ = std::mem::take(&mut lock(&acked).longest);
        cluster.kill(old);
        let (new, term) = cluster.leader(|name| name != old).await;
        assert!(term > old_term, "{term}");
        sleep(1_000).await;
        let pause = goes_on_when(&log, &acked, |_| true).await;
        assert_eq!(
            log.layout().layout.epoch,
            epoch,
            "no other epoch was needed"
        );
        println!("round {round}: {new} took over from {old}; longest pause {pause:?}");
        cluster.spawn(old);
        sleep(1_000).await;
    }
    // Leader and unit die together: the new leader makes an epoch without the unit.
    let (old, _) = cluster.leader(|_| true).await;
    cluster.kill(old);
    cluster.kill("unit-1b");
    let both = goes_on_when(&log, &acked, is_chain(&["unit-1a"])).await;
    cluster.spawn("unit-1b");
    cluster.spawn(old);
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    println!("longest pause when leader and unit were killed {both:?}");
    let status = cluster.status();
    let servers = status["servers"].as_array().expect("servers");
    assert!(
        servers.iter().all(|server| server["up"] == true),
        "{status:#}"
    );
    writers.check(&map).await;
    milonga.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_and_reads_go_on_without_a_majority_of_the_layout() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        mut cluster,
        config,
        milonga,
        map,
        log,
        writers,
        acked,
    } = Load::start(dir.path(), 3).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    sleep(1_000).await;
    let (leader, _) = cluster.leader(|_| true).await;
    let [one, other] = LAYOUTS
        .map(|name| (name != leader).then_some(name))
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()[..]
    else {
        panic!("two follow");
    };
    cluster.kill(leader);
    cluster.kill(one);
    sleep(2_000).await;
    goes_on_when(&log, &acked, |_| true).await;
    // The member that is left leads nobody, and yet who comes now finds the log.
    assert!(cluster.status()["leader"].is_null());
    let late = Milonga::connect(config).await.expect("connects");
    let seen = late.map::<String, u64>("kept").await.expect("opens");
    let (key, n) = lock(&acked)
        .keys
        .last_key_value()
        .map(|(k, n)| (k.clone(), *n))
        .expect("some");
    assert_eq!(seen.get(&key).await.expect("readable"), Some(n));
    println!("{other} alone showed the way");
    // A majority again: it does what only a majority can.
    cluster.spawn(one);
    cluster.leader(|_| true).await;
    cluster.kill("unit-1a");
    goes_on_when(&log, &acked, is_chain(&["unit-1b"])).await;
    late.close().await.expect("closes");
    writers.check(&map).await;
    milonga.close().await.expect("closes");
}
