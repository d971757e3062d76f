//! How fast a member is to notice and give up.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};

use super::messages::PIECE_BYTES;

/// Timing and upkeep of raft; the same on all members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// Time between two signs of life of a leader, and how long it waits for an answer to what it sends. Entries that
    /// reach a slow disk later than that are found there when they are sent again.
    pub heartbeat: Duration,
    /// Least silence of a leader after which a member stands for election. Each start of a member draws its own.
    pub election_min: Duration,
    /// That silence is below this; after so long without a leader, members vote for another.
    pub election_max: Duration,
    /// How long a call to a [`Replica`](super::Replica) may take.
    pub patience: Duration,
    /// A snapshot is made after so many entries.
    pub snapshot_every: u64,
    /// So many entries that are in a snapshot are kept for members that lag.
    pub keep: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
            patience: Duration::from_secs(2),
            snapshot_every: 512,
            keep: 128,
        }
    }
}

impl RaftConfig {
    /// # Errors
    /// Which of the times contradict each other.
    pub(super) fn to_openraft(&self) -> Result<Arc<Config>, String> {
        let config = Config {
            cluster_name: "layout".into(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.patience),
            snapshot_max_chunk_size: PIECE_BYTES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every.max(1)),
            max_in_snapshot_log_to_keep: self.keep,
            // Above the policy: else a snapshot would not close the gap.
            replication_lag_threshold: self.snapshot_every.max(1).saturating_mul(2) + self.keep,
            ..Config::default()
        };
        match config.validate() {
            Ok(config) => Ok(Arc::new(config)),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
