//! What an operator does, and the loss of the layout's majority: appends should hardly notice.

use std::time::{Duration, Instant};

use bytes::Bytes;
use milonga::{NewEntry, StreamId};

use crate::appends::{Appends, fill};
use crate::cluster::{Cluster, wait};
use crate::{AnyError, millis};

/// Between two changes.
const REST: Duration = Duration::from_secs(1);
/// As many chains as the spares of one cluster make.
const ADDED: usize = 4;
const STREAMS_PER_ENTRY: usize = 64;
/// For so long the layout has no majority.
const LOST_FOR: Duration = Duration::from_secs(60);

/// Moves the sequencer, so many times, in a cluster of so many chains with so many streams: the longest pauses of appends,
/// and how long it took to seal all units and to collect the tails of their streams.
pub(crate) async fn moves(
    times: usize,
    chains: usize,
    streams: u64,
) -> Result<(Vec<f64>, Vec<f64>), AnyError> {
    let cluster = Cluster::start(chains, 1)?;
    let milonga = cluster.connect().await?;
    cluster.whole(&milonga).await?;
    let ids: Vec<_> = (1..=streams).map(StreamId).collect();
    let entries = ids.chunks(STREAMS_PER_ENTRY);
    fill(
        &milonga,
        entries.map(|ids| NewEntry::new(ids.to_vec(), Bytes::new())),
    )
    .await?;
    let appends = Appends::start(&milonga, 128);
    tokio::time::sleep(2 * REST).await;
    let (mut pauses, mut seals) = (Vec::new(), Vec::new());
    for round in 0..times {
        appends.longest();
        let to = ["sequencer-2", "sequencer-1"][round % 2];
        cluster.command(&["cluster", "move-sequencer", to]).await?;
        tokio::time::sleep(REST).await;
        pauses.push(millis(appends.longest()));
        seals.push(cluster.took("last seal took").await?);
    }
    appends.stop().await?;
    milonga.close().await?;
    Ok((pauses, seals))
}

/// Adds a chain of two units, so many times: the longest pauses of appends.
pub(crate) async fn growth(times: usize) -> Result<Vec<f64>, AnyError> {
    let mut pauses = Vec::new();
    while pauses.len() < times {
        let cluster = Cluster::start(2, 2 * ADDED)?;
        let milonga = cluster.connect().await?;
        let appends = Appends::start(&milonga, 128);
        cluster.whole(&milonga).await?;
        tokio::time::sleep(2 * REST).await;
        for round in 0..ADDED.min(times - pauses.len()) {
            appends.longest();
            // The spares are called unit-3, unit-4 and so on.
            let [head, tail] = [0, 1].map(|place| format!("unit-{}", 3 + 2 * round + place));
            let add = ["cluster", "add-chain", &head, &tail];
            cluster.command(&add).await?;
            tokio::time::sleep(REST).await;
            pauses.push(millis(appends.longest()));
        }
        appends.stop().await?;
        milonga.close().await?;
    }
    Ok(pauses)
}

/// Two of the three members of the layout are gone for a minute: the longest pause of appends, and the longest read that
/// has to see everything that was acknowledged before.
pub(crate) async fn layout_lost() -> Result<(f64, f64), AnyError> {
    let mut cluster = Cluster::start(2, 1)?;
    let milonga = cluster.connect().await?;
    let map = milonga.map::<String, u64>("read").await?;
    let appends = Appends::start(&milonga, 128);
    cluster.whole(&milonga).await?;
    tokio::time::sleep(2 * REST).await;
    appends.longest();
    cluster.kill("layout-1")?;
    cluster.kill("layout-2")?;
    let began = Instant::now();
    let (mut longest, mut reads) = (Duration::ZERO, 0);
    while began.elapsed() < LOST_FOR {
        let value = reads;
        map.insert("n".to_owned(), value).await?;
        let asked = Instant::now();
        if map.get("n").await? != Some(value) {
            return Err("a read missed an acknowledged update".into());
        }
        longest = longest.max(asked.elapsed());
        reads += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pause = appends.longest();
    cluster.spawn("layout-1")?;
    cluster.spawn("layout-2")?;
    let epoch = milonga.client().layout().layout.epoch;
    // They decide again: what they are asked for is done.
    tokio::time::sleep(2 * REST).await;
    let to = ["cluster", "move-sequencer", "sequencer-2"];
    cluster.command(&to).await?;
    wait(|| milonga.client().layout().layout.epoch > epoch).await?;
    eprintln!("layout_lost: {reads} reads");
    appends.stop().await?;
    milonga.close().await?;
    Ok((millis(pause), millis(longest)))
}
