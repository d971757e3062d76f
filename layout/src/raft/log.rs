//! The store as openraft's log.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, OptionalSend, RaftLogReader, StorageIOError};

use super::store::RaftStore;
use super::tables::TableError;
use super::{Entry, LogId, StorageError, TypeConfig, Vote};

/// Vote and log of one member. Every write is durable when its future completes.
#[derive(Clone, Debug)]
pub(super) struct Log(pub(super) RaftStore);

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let range: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        let read = self.0.run(move |tables| {
            if is_empty(range) {
                return Ok(Vec::new());
            }
            tables.entries(range, usize::MAX)
        });
        read.await.map_err(cannot_read)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let read = self.0.run(move |tables| {
            if start >= end {
                return Ok(Vec::new());
            }
            match tables.some_entries(start, end)? {
                entries if entries.is_empty() => Err(TableError::Damaged(format!(
                    "entry {start} of its log is missing"
                ))),
                entries => Ok(entries),
            }
        });
        read.await.map_err(cannot_read)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let ends = self.0.run(|tables| tables.ends()).await;
        let ends = ends.map_err(cannot_read)?;
        Ok(LogState {
            last_purged_log_id: ends.purged,
            last_log_id: ends.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        let saved = self.0.run(move |tables| tables.save_vote(vote)).await;
        saved.map_err(|why| io(StorageIOError::write_vote(AnyError::error(why))))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = self.0.run(|tables| tables.vote()).await;
        vote.map_err(|why| io(StorageIOError::read_vote(AnyError::error(why))))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let Some(committed) = committed else {
            return Ok(());
        };
        let saved = self.0.run(move |tables| tables.save_committed(committed));
        saved.await.map_err(cannot_write)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed = self.0.run(|tables| tables.committed()).await;
        committed.map_err(cannot_read)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let appended = self.0.run(move |tables| tables.append(entries)).await;
        appended.map_err(cannot_write)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        let truncated = self.0.run(move |tables| tables.truncate(from.index)).await;
        truncated.map_err(cannot_write)
    }

    async fn purge(&mut self, through: LogId) -> Result<(), StorageError> {
        let purged = self.0.run(move |tables| tables.purge(through)).await;
        purged.map_err(cannot_write)
    }
}

/// redb's ranges must not be backwards.
fn is_empty(range: (Bound<u64>, Bound<u64>)) -> bool {
    let first = match range.0 {
        Bound::Included(start) => Some(start),
        Bound::Excluded(before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let last = match range.1 {
        Bound::Included(end) => Some(end),
        Bound::Excluded(after) => after.checked_sub(1),
        Bound::Unbounded => Some(u64::MAX),
    };
    match (first, last) {
        (Some(first), Some(last)) => first > last,
        _ => true,
    }
}

const fn io(source: StorageIOError<super::MemberId>) -> StorageError {
    StorageError::IO { source }
}

fn cannot_read(why: String) -> StorageError {
    io(StorageIOError::read_logs(AnyError::error(why)))
}

fn cannot_write(why: String) -> StorageError {
    io(StorageIOError::write_logs(AnyError::error(why)))
}
