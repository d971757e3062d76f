//! Trimming: never above what is settled, on stable storage of every unit before it is reported.

use futures_util::future::{join_all, try_join_all};
use milonga_protocol::messages::{SequencerRequest, SequencerResponse, UnitRequest, UnitResponse};
use milonga_protocol::{LogError, Position, TailOf, Time};

use crate::cluster::{Cluster, View, garbage};
use crate::retry::{Attempts, Failure};
use crate::tail::TailChecks;

/// Trims below `below`, or less; answers the mark that every member has on disk.
pub(crate) async fn trim(
    cluster: &Cluster,
    tails: &TailChecks,
    below: Position,
    deadline: Time,
) -> Result<Position, LogError> {
    let tail = tails.tail(TailOf::Log).await?;
    let below = below.min(tail.next);
    let mut attempts = Attempts::new(cluster, deadline);
    loop {
        let view = cluster.view();
        match attempt(cluster, &view, below, attempts.call_deadline()).await {
            Ok(mark) => return Ok(mark),
            Err(failure) => attempts.after(view.epoch(), failure).await?,
        }
    }
}

async fn attempt(
    cluster: &Cluster,
    view: &View,
    below: Position,
    deadline: Time,
) -> Result<Position, Failure> {
    let below = below.min(settled(cluster, view, deadline).await?);
    let units = view.layout().members().into_iter();
    let marks = try_join_all(units.map(async |unit| {
        let unit = view.unit(unit);
        let epoch = view.epoch();
        let request = UnitRequest::Trim { epoch, below };
        match cluster.unit(epoch, unit, request, deadline).await? {
            (UnitResponse::Trimmed { below }, _) => Ok(below),
            _ => Err(garbage(unit, "no mark to a trim")),
        }
    }));
    let mark = marks.await?.into_iter().min().unwrap_or_default();
    let request = SequencerRequest::Trimmed {
        epoch: view.epoch(),
        below: mark,
    };
    match cluster.sequencer(view, request, deadline).await? {
        SequencerResponse::Done => Ok(mark),
        _ => Err(garbage(view.sequencer(), "a wrong answer to a trim mark")),
    }
}

/// Everything below is settled on every chain of the last segment, by what their tails say now. (Older segments lie
/// below the epoch's start; the leader has settled them, and a unit refuses to trim what is not.)
pub(crate) async fn settled(
    cluster: &Cluster,
    view: &View,
    deadline: Time,
) -> Result<Position, Failure> {
    let segment = view.last_segment();
    let chains = &view.layout().segments[segment].chains;
    let marks = try_join_all(chains.iter().enumerate().map(async |(chain, units)| {
        let tail = *units.last().expect("a chain has replicas");
        let settled = cluster.confirm(view, tail, deadline).await?.settled;
        cluster.raise_settled(view, segment, chain, settled);
        Ok::<_, Failure>(settled)
    }));
    Ok(marks.await?.into_iter().min().unwrap_or_default())
}

/// Tells replicas before the tails, which know it only from others, that everything below `mark` is settled:
/// else they refuse to fill far above the mark they know.
pub(crate) async fn tell_settled(cluster: &Cluster, view: &View, mark: Position, deadline: Time) {
    let (epoch, settled) = (view.epoch(), mark);
    let chains = &view.layout().segments[view.last_segment()].chains;
    let behind = chains.iter().filter_map(|units| units.split_last());
    let told = behind.flat_map(|(_, units)| units).map(async |unit| {
        let request = UnitRequest::Told { epoch, settled };
        if let Err(failure) = cluster
            .unit(epoch, view.unit(*unit), request, deadline)
            .await
        {
            tracing::debug!(%failure, "mark not told");
        }
    });
    join_all(told).await;
}
