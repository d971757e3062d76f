//! A limit on everything.

use serde::{Deserialize, Serialize};

/// Backpointers per stream that the sequencer keeps (the paper's K).
pub const BACKPOINTERS: usize = 4;
/// Largest frame on the wire, header and body together; checked before anything is allocated.
pub const FRAME_BYTES: usize = 16 << 20;
/// Largest postcard header of a frame.
pub const FRAME_HEADER_BYTES: usize = 4 << 20;
/// Hard ceiling of [`Limits::entry_bytes`]; an entry with its links must fit one frame with room to spare.
pub const MAX_ENTRY_BYTES: u32 = 4 << 20;
/// Hard ceiling of [`Limits::streams_per_entry`].
pub const MAX_STREAMS_PER_ENTRY: u32 = 64;
/// Most tokens, writes, positions or streams that one message may carry.
pub const ITEMS_PER_MESSAGE: usize = 4_096;
/// Most stream tails that one page of a collection or bootstrap may carry.
pub const STREAM_TAILS_PER_PAGE: usize = 50_000;
/// Most recent epochs whose starts a layout lists, for clients that settle old tokens.
pub const STARTS_IN_LAYOUT: usize = 256;
/// Most epochs whose starts one answer about the history lists.
pub const STARTS_PER_PAGE: usize = 1_000;
/// Most bytes of the cause of an epoch.
pub const CAUSE_BYTES: usize = 200;
/// Newest epochs of which the history keeps when and why they came about.
pub const ORIGINS_KEPT: usize = 1_000;
/// Most units that one chain may be made of by command.
pub const UNITS_PER_NEW_CHAIN: usize = 16;
/// Longest time a server holds a waiting request before it answers anyway.
pub const LONGEST_WAIT_MS: u32 = 2_000;

/// The longest lease that a layout grants and a sequencer takes (rule 20). A new leader of the layout, who does not know
/// what the one before granted, waits for so long.
pub const LONGEST_LEASE_MS: u32 = 400;
/// The shortest lease that can be configured: it has to bear that a renewal is lost.
pub const SHORTEST_LEASE_MS: u32 = 100;
/// The lease if nothing is configured. It has run out when half a second of silence is noticed.
pub const DEFAULT_LEASE_MS: u32 = 300;

/// Shared limits: fixed in the layout, the same for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Limits {
    /// Largest payload of one entry, in bytes.
    pub entry_bytes: u32,
    /// Most streams that one entry may belong to.
    pub streams_per_entry: u32,
    /// W: a transaction whose snapshot is older than this many positions aborts.
    pub conflict_window: u64,
    /// A unit refuses positions farther than this above its settled mark.
    pub positions_ahead: u64,
    /// Most streams that may ever exist; the sequencer refuses new ones above.
    pub streams: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entry_bytes: 1 << 20,
            streams_per_entry: MAX_STREAMS_PER_ENTRY,
            conflict_window: 1 << 18,
            positions_ahead: 1 << 20,
            streams: 4 << 20,
        }
    }
}
