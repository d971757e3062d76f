//! Settings.

use std::time::Duration;

/// Settings of one replica. Start from the default and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaOptions {
    /// How long an update, read, snapshot, opening or transaction may take, from the call on and with everything that
    /// it waits for. Default 30 s.
    pub deadline: Duration,
    /// How often a transaction is tried before its conflict is the outcome. Default 16.
    pub tx_attempts: u32,
    /// Entries that may be in flight before updates wait for each other. Default 4.
    pub entries_in_flight: usize,
    /// Bytes of updates that may wait or be in flight (each counts 192 more); beyond, updates wait for room. Default
    /// 32 MiB.
    pub queue_bytes: usize,
    /// Bytes that one read of the log asks for. Default 1 MiB.
    pub part_bytes: usize,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            tx_attempts: 16,
            entries_in_flight: 4,
            queue_bytes: 32 << 20,
            part_bytes: 1 << 20,
        }
    }
}
