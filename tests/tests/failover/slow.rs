//! Processes that are stopped most of the time: slow, and not silent.

use super::*;

/// Stopped for 120 ms and let run for 2, in turns. Nothing in the loop starts a process: that would take longer.
const TURNS: &str = r#"
    exec {nap}<> <(:)
    while kill -STOP "$0" 2>/dev/null; do
        read -rt 0.12 -u "$nap"
        kill -CONT "$0"
        read -rt 0.002 -u "$nap"
    done
"#;

/// Makes a process slow until it is dropped.
struct Slow<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    turns: Child,
}

impl<'a> Slow<'a> {
    fn begin(cluster: &'a Cluster, name: &'static str) -> Self {
        let pid = cluster.running[name].id().to_string();
        let turns = Command::new("bash").args(["-c", TURNS, &pid]).spawn();
        Self {
            cluster,
            name,
            turns: turns.expect("there is bash"),
        }
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        let _ = self.turns.kill();
        let _ = self.turns.wait();
        self.cluster.signal(self.name, "-CONT");
    }
}

/// Waits until the layout is `such`; how long that took.
async fn wait_until(log: &LogClient, such: impl Fn(&Layout) -> bool) -> Duration {
    let began = Instant::now();
    loop {
        let layout = log.layout().layout.clone();
        if such(&layout) {
            return began.elapsed();
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(60), "{layout:?}");
        sleep(20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_unit_is_out_of_the_way_and_comes_back_when_it_is_fast() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        cluster,
        milonga,
        map,
        log,
        writers,
        acked,
        ..
    } = Load::start(dir.path(), 1).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1a", "unit-1b"])).await;
    // The head: every append goes through it.
    let slow = Slow::begin(&cluster, "unit-1a");
    let out = wait_until(&log, is_chain(&["unit-1b"])).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1b"])).await;
    drop(slow);
    let back = wait_until(&log, is_chain(&["unit-1b", "unit-1a"])).await;
    goes_on_when(&log, &acked, is_chain(&["unit-1b", "unit-1a"])).await;
    println!("out after {out:?}, back {back:?} after it was fast again");
    writers.check(&map).await;
    milonga.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_takes_over_from_a_slow_sequencer() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let Load {
        cluster,
        milonga,
        map,
        log,
        writers,
        acked,
        ..
    } = Load::start(dir.path(), 1).await;
    goes_on_with(&log, "sequencer-1", &acked).await;
    let slow = Slow::begin(&cluster, "sequencer-1");
    let out = wait_until(&log, is_sequencer("sequencer-2")).await;
    goes_on_with(&log, "sequencer-2", &acked).await;
    drop(slow);
    // It is the spare now.
    sleep(1_000).await;
    goes_on_with(&log, "sequencer-2", &acked).await;
    println!("out after {out:?}");
    writers.check(&map).await;
    milonga.close().await.expect("closes");
}
