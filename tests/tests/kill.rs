//! SIGKILL of every server at once, then a restart: everything acknowledged is there.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milonga::cli::LocalCluster;
use milonga::{ClientConfig, Milonga};

const CHILD: &str = env!("CARGO_BIN_EXE_child");

async fn connect(config: &Path) -> Milonga {
    Milonga::connect(ClientConfig::read(config).expect("just written"))
        .await
        .expect("connects")
}

#[expect(clippy::disallowed_methods, reason = "real processes run on real time")]
async fn sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_every_server_at_once_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut cluster =
        LocalCluster::start(dir.path(), 2, 2, Path::new(CHILD), &["server"]).expect("starts");
    let milonga = connect(cluster.config()).await;
    let map = milonga.map::<String, u64>("kept").await.expect("opens");
    let counter = milonga.counter("updates").await.expect("opens");
    let acked = Arc::new(Mutex::new(BTreeMap::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8_u64)
        .map(|writer| {
            let (map, counter, acked, stop) = (
                map.clone(),
                counter.clone(),
                Arc::clone(&acked),
                Arc::clone(&stop),
            );
            tokio::spawn(async move {
                for n in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{writer}/{n}");
                    map.insert(key.clone(), n)
                        .await
                        .expect("goes on after the restart");
                    counter.add(1).await.expect("goes on after the restart");
                    acked
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(key, n);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        sleep(300).await;
        cluster.kill_all();
        for name in cluster.names().to_vec() {
            cluster.spawn(&name).expect("starts again");
        }
    }
    sleep(500).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer failed");
    }
    let acked = acked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(
        acked.len() > 100,
        "only {} updates were acknowledged",
        acked.len()
    );

    let fresh = connect(cluster.config()).await;
    let kept = fresh.map::<String, u64>("kept").await.expect("opens");
    let kept: BTreeMap<String, u64> = kept.entries().await.expect("reads").collect();
    assert_eq!(kept, acked);
    let count = fresh
        .counter("updates")
        .await
        .expect("opens")
        .get()
        .await
        .expect("reads");
    assert_eq!(
        count,
        i64::try_from(acked.len()).expect("small"),
        "each update counts exactly once"
    );
    fresh.close().await.expect("closes");
    milonga.close().await.expect("closes");
}
