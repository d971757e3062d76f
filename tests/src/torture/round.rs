//! One round: somebody is hurt, comes back, and appends go on.

use std::time::{Duration, Instant};

use super::cluster::Cluster;
use super::ledger::{Kind, Ledger};
use super::schedule::{How, Strike, steps};
use super::{AnyError, clock, pause};

/// So many updates are acknowledged in a round.
const LEAST_ACKED: u64 = 1_000;
/// No kind of update stands still for longer.
pub(super) const LONGEST_GAP: Duration = Duration::from_secs(10);
/// Beyond, a round ends whatever there is; after that nothing more is to be expected of the cluster.
const PATIENCE: Duration = Duration::from_secs(25);

/// How a round went.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) number: u64,
    pub(super) strikes: Vec<Strike>,
    pub(super) acked: u64,
    pub(super) gap: Duration,
    /// What it was that stood still.
    pub(super) of: Kind,
    /// Why it does not count.
    pub(super) failure: Option<String>,
    /// Nothing goes on.
    pub(super) is_stuck: bool,
}

impl Round {
    /// Its line.
    pub(super) fn line(&self) -> String {
        let victims: Vec<_> = self.strikes.iter().map(Strike::to_string).collect();
        let failure = self.failure.as_ref();
        let failure = failure
            .map(|why| format!(" FAILED: {why}"))
            .unwrap_or_default();
        format!(
            "round {:>3}: {}; {} acked, longest gap {} ms ({}){failure}",
            self.number,
            victims.join(", "),
            self.acked,
            self.gap.as_millis(),
            self.of.name()
        )
    }

    /// The same for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let victims = self.strikes.iter().map(|strike| {
            serde_json::json!({
                "name": strike.victim,
                "signal": strike.how.to_string(),
                "after_ms": millis(strike.after),
                "lasted_ms": millis(strike.lasts),
            })
        });
        serde_json::json!({
            "round": self.number,
            "victims": victims.collect::<Vec<_>>(),
            "acked": self.acked,
            "longest_gap_ms": millis(self.gap),
            "of": self.of.name(),
            "failure": self.failure,
        })
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Plays a round.
pub(super) async fn play(
    number: u64,
    strikes: Vec<Strike>,
    cluster: &mut Cluster,
    ledger: &Ledger,
) -> Round {
    ledger.begin_round();
    let struck = strike(&strikes, cluster).await;
    let back = Instant::now();
    let enough = || ledger.all_since(back) && ledger.acked() >= LEAST_ACKED;
    while !enough() && back.elapsed() < PATIENCE {
        pause(Duration::from_millis(5)).await;
    }
    let is_stuck = !ledger.all_since(back);
    let (gap, of) = ledger.longest();
    let acked = ledger.acked();
    let failure = struck
        .and_then(|()| cluster.all_run())
        .and_then(|()| judge(gap, of, acked, ledger));
    Round {
        number,
        strikes,
        acked,
        gap,
        of,
        failure: failure.err().map(|error| error.to_string()),
        is_stuck,
    }
}

fn judge(gap: Duration, of: Kind, acked: u64, ledger: &Ledger) -> Result<(), AnyError> {
    let complaints = std::mem::take(&mut ledger.book().complaints);
    if !complaints.is_empty() {
        return Err(complaints.join("; ").into());
    }
    if gap > LONGEST_GAP {
        let (ms, most) = (gap.as_millis(), LONGEST_GAP.as_millis());
        return Err(format!("{} stood still for {ms} ms, over {most}", of.name()).into());
    }
    if acked < LEAST_ACKED {
        return Err(format!("{acked} acknowledged, fewer than {LEAST_ACKED}").into());
    }
    Ok(())
}

/// Hurts them, and takes it back. Everybody is back when this returns, or cannot be.
async fn strike(strikes: &[Strike], cluster: &mut Cluster) -> Result<(), AnyError> {
    let began = Instant::now();
    let mut result = Ok(());
    for (at, n, begins) in steps(strikes) {
        pause(at.saturating_sub(began.elapsed())).await;
        let Strike { victim, how, .. } = strikes[n];
        let done = match (how, begins) {
            (How::Kill, true) => cluster.kill(victim).await,
            (How::Kill, false) => cluster.spawn(victim),
            (How::Stop, true) => cluster.stop(victim).await,
            (How::Stop, false) => cluster.go_on(victim).await,
            (How::PowerCut, true) => cluster.cut_power(),
            (How::PowerCut, false) => cluster.power_is_back().await,
        };
        let what = if begins { "begins" } else { "ends" };
        cluster.note(&format!("{} {how} of {victim} {what}", clock()));
        result = result.and(done);
    }
    result
}
