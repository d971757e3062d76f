//! The decision core: takes entries in order and says which of their records hold. Pure; one owner.
//!
//! It sees every entry of every registered object, hosted here or not, and never a type or a state. What holds is
//! then applied by [`crate::world`].

use milonga_protocol::{Entry, Position, StreamId, WriterId};

use crate::error::ReplicaHalt;
use crate::record::{self, PayloadError, Record, TouchedKeys};
use crate::versions::{Verdict, Versions};

/// Decides, entry by entry.
pub(crate) struct Playback {
    own: WriterId,
    versions: Versions,
}

/// An entry with the verdicts on its records.
pub(crate) struct Plan<'a> {
    pub(crate) position: Position,
    pub(crate) streams: Vec<StreamId>,
    /// The submission number, if this replica's log handle wrote the entry.
    pub(crate) own_tag: Option<u64>,
    pub(crate) content: Content<'a>,
}

/// What an entry says.
pub(crate) enum Content<'a> {
    /// Its records; updates and decisions count as committed.
    Records(Vec<(Record<'a>, Verdict)>),
    /// Nothing that can be understood.
    Malformed(String),
}

impl Playback {
    /// A core that knows nothing; `window` is the largest conflict window of any record to come.
    pub(crate) fn new(own: WriterId, window: u64) -> Self {
        Self {
            own,
            versions: Versions::new(window),
        }
    }

    /// Decides the entry at `position`. Entries MUST come in order, and each once.
    pub(crate) fn decide<'a>(
        &mut self,
        position: Position,
        entry: &'a Entry,
    ) -> Result<Plan<'a>, ReplicaHalt> {
        self.versions.advance(position);
        let mut plan = Plan {
            position,
            streams: entry.streams().filter(|s| s.is_object()).collect(),
            own_tag: None,
            content: Content::Records(Vec::new()),
        };
        let payload = match record::decode(&entry.payload) {
            Ok(payload) => payload,
            Err(PayloadError::Newer(version)) => {
                return Err(ReplicaHalt::Newer { position, version });
            }
            Err(PayloadError::Malformed(why)) => {
                for stream in &plan.streams {
                    self.versions.record(position, *stream, &TouchedKeys::Whole);
                }
                plan.content = Content::Malformed(why);
                return Ok(plan);
            }
        };
        if entry.id.writer == self.own {
            plan.own_tag = Some(payload.tag);
        }
        let mut records = Vec::with_capacity(payload.records.len());
        for record in payload.records {
            let verdict = self.decide_record(position, &record)?;
            records.push((record, verdict));
        }
        plan.content = Content::Records(records);
        Ok(plan)
    }

    fn decide_record(
        &mut self,
        position: Position,
        record: &Record<'_>,
    ) -> Result<Verdict, ReplicaHalt> {
        match record {
            Record::Update(update) => {
                self.versions
                    .record(position, update.stream, &update.touches);
            }
            Record::Commit(commit) => {
                let verdict = self.versions.judge(position, commit).map_err(|unknown| {
                    ReplicaHalt::Window {
                        position,
                        snapshot: unknown.snapshot,
                        known_since: unknown.known_since,
                    }
                })?;
                if verdict != Verdict::Committed {
                    return Ok(verdict);
                }
                for update in &commit.updates {
                    self.versions
                        .record(position, update.stream, &update.touches);
                }
            }
            Record::Decision(_) => {}
        }
        Ok(Verdict::Committed)
    }
}
