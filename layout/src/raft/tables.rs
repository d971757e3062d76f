//! The tables of a raft store, and what is done to them: one synced transaction each.
//!
//! ```text
//! meta  "header"    see header.rs
//!       "vote" "committed" "purged" "snapshot" "history"     records; the last two are one snapshot
//! log   index       record of the entry
//! ```

use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::header::Header;
use super::messages::ENTRIES_BYTES;
use super::records::{EntryRecord, LogIdRecord, MetaRecord, VoteRecord, decode, encode};
use super::{Entry, LogId, SnapshotMeta, Vote};
use crate::store::{HEADER, header_of};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("milonga_layout_raft");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("raft_log");

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";
const HISTORY: &str = "history";

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("{0}")]
    Disk(#[from] redb::Error),
    #[error("{0}")]
    Damaged(String),
    #[error("it was closed")]
    Closed,
}

macro_rules! from_redb {
    ($($error:ident)*) => {$(
        impl From<redb::$error> for TableError {
            fn from(error: redb::$error) -> Self {
                Self::Disk(error.into())
            }
        }
    )*};
}

from_redb!(TransactionError TableError StorageError CommitError);

type Result<T> = std::result::Result<T, TableError>;

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) purged: Option<LogId>,
    /// Of the last entry; if there is none, as `purged`.
    pub(super) last: Option<LogId>,
}

/// The tables. All methods block on the disk, and those that write return when it is on stable storage.
pub(super) struct Tables(Mutex<Option<Arc<Database>>>);

impl Tables {
    pub(super) fn new(database: Database) -> Self {
        Self(Mutex::new(Some(Arc::new(database))))
    }

    /// Closes the file as soon as nothing is under way; everything afterwards fails.
    pub(super) fn close(&self) {
        let database = self.lock().take();
        drop(database);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn database(&self) -> Result<Arc<Database>> {
        let database = self.lock().clone();
        database.ok_or(TableError::Closed)
    }

    /// `None`: the file is new. `Some(Err)`: how it shows that it is something else.
    pub(super) fn header(&self) -> Result<Option<std::result::Result<Header, String>>> {
        let foreign = "it is another redb file";
        Ok(header_of(
            &*self.database()?,
            META,
            foreign,
            Header::decode,
        )?)
    }

    pub(super) fn write_header(&self, header: Header) -> Result<()> {
        self.write(|meta, _| {
            meta.insert(HEADER, header.encode().as_slice())?;
            Ok(())
        })
    }

    pub(super) fn vote(&self) -> Result<Option<Vote>> {
        let vote: Option<VoteRecord> = self.record(VOTE)?;
        Ok(vote.map(Into::into))
    }

    pub(super) fn save_vote(&self, vote: Vote) -> Result<()> {
        self.put(VOTE, &VoteRecord::from(vote))
    }

    pub(super) fn committed(&self) -> Result<Option<LogId>> {
        let id: Option<LogIdRecord> = self.record(COMMITTED)?;
        Ok(id.map(Into::into))
    }

    pub(super) fn save_committed(&self, id: LogId) -> Result<()> {
        self.put(COMMITTED, &LogIdRecord::from(id))
    }

    pub(super) fn ends(&self) -> Result<Ends> {
        let purged: Option<LogIdRecord> = self.record(PURGED)?;
        let purged = purged.map(Into::into);
        let read = self.database()?.begin_read()?;
        let log = read.open_table(LOG)?;
        let last = match log.last()? {
            Some((_, entry)) => Some(entry_of(entry.value())?.log_id),
            None => purged,
        };
        Ok(Ends { purged, last })
    }

    /// Entries of the range, in order; stops behind the one that makes it more than `most` bytes.
    pub(super) fn entries(&self, range: impl RangeBounds<u64>, most: usize) -> Result<Vec<Entry>> {
        let read = self.database()?.begin_read()?;
        let log = read.open_table(LOG)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in log.range::<u64>(range)? {
            let (_, entry) = entry?;
            bytes += entry.value().len();
            entries.push(entry_of(entry.value())?);
            if bytes >= most {
                break;
            }
        }
        Ok(entries)
    }

    /// As many entries as fit a message, at least one.
    pub(super) fn some_entries(&self, start: u64, end: u64) -> Result<Vec<Entry>> {
        self.entries(start..end, ENTRIES_BYTES)
    }

    pub(super) fn append(&self, entries: Vec<Entry>) -> Result<()> {
        self.write(|_, log| {
            for entry in entries {
                let index = entry.log_id.index;
                let record = encode(&EntryRecord::from(entry));
                log.insert(index, record.as_slice())?;
            }
            Ok(())
        })
    }

    /// Removes the entry at `index` and all behind it.
    pub(super) fn truncate(&self, index: u64) -> Result<()> {
        self.write(|_, log| {
            log.retain_in(index.., |_, _| false)?;
            Ok(())
        })
    }

    /// Removes the entry of `id` and all before it.
    pub(super) fn purge(&self, id: LogId) -> Result<()> {
        let purged: Option<LogIdRecord> = self.record(PURGED)?;
        if purged.is_some_and(|purged| LogId::from(purged).index > id.index) {
            return Ok(());
        }
        self.write(|meta, log| {
            let record = encode(&LogIdRecord::from(id));
            meta.insert(PURGED, record.as_slice())?;
            log.retain_in(..=id.index, |_, _| false)?;
            Ok(())
        })
    }

    /// What the snapshot holds, and its bytes.
    pub(super) fn snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>> {
        let read = self.database()?.begin_read()?;
        let meta = read.open_table(META)?;
        let (Some(record), Some(bytes)) = (meta.get(SNAPSHOT)?, meta.get(HISTORY)?) else {
            return Ok(None);
        };
        let record: MetaRecord =
            decode("snapshot's description", record.value()).map_err(TableError::Damaged)?;
        Ok(Some((record.into(), bytes.value().to_vec())))
    }

    /// Keeps a snapshot instead of the one before; an older one is not kept.
    pub(super) fn save_snapshot(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<()> {
        if let Some((kept, _)) = self.snapshot()?
            && kept.last_log_id > meta.last_log_id
        {
            return Ok(());
        }
        let record = encode(&MetaRecord::from(meta.clone()));
        self.write(|meta, _| {
            meta.insert(SNAPSHOT, record.as_slice())?;
            meta.insert(HISTORY, bytes)?;
            Ok(())
        })
    }

    /// Begins an unused store with a snapshot; `false` if it is used.
    pub(super) fn adopt(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<bool> {
        let used = self.vote()?.is_some() || self.ends()?.last.is_some();
        let (Some(last), false) = (meta.last_log_id, used) else {
            return Ok(false);
        };
        let (snapshot, purged) = (
            encode(&MetaRecord::from(meta.clone())),
            encode(&LogIdRecord::from(last)),
        );
        self.write(|meta, _| {
            meta.insert(SNAPSHOT, snapshot.as_slice())?;
            meta.insert(HISTORY, bytes)?;
            meta.insert(PURGED, purged.as_slice())?;
            Ok(())
        })?;
        Ok(true)
    }

    /// Whether the records fit together.
    pub(super) fn check(&self) -> Result<()> {
        let damaged = |why: &str| Err(TableError::Damaged(why.to_owned()));
        self.vote()?;
        let Ends { purged, last } = self.ends()?;
        let mut before = purged;
        for entry in self.entries(.., usize::MAX)? {
            let id = entry.log_id;
            match before {
                Some(before) if id.index != before.index + 1 => {
                    return damaged("an entry of its log is missing");
                }
                Some(before) if id.leader_id < before.leader_id => {
                    return damaged("an entry of its log is older than the one before");
                }
                None if id.index != 0 => return damaged("the first entry of its log is missing"),
                _ => before = Some(id),
            }
        }
        let snapshot = self.snapshot()?;
        let covered = snapshot.and_then(|(meta, _)| meta.last_log_id);
        if purged > covered {
            return damaged("what was cut off its log is in no snapshot");
        }
        if self.committed()? > last.max(covered) {
            return damaged("its log ends before what was committed");
        }
        Ok(())
    }

    fn record<T: DeserializeOwned>(&self, key: &'static str) -> Result<Option<T>> {
        let read = self.database()?.begin_read()?;
        let meta = read.open_table(META)?;
        let bytes = meta.get(key)?;
        let record = bytes.map(|bytes| decode(key, bytes.value()));
        record.transpose().map_err(TableError::Damaged)
    }

    fn put(&self, key: &'static str, record: &impl Serialize) -> Result<()> {
        let bytes = encode(record);
        self.write(|meta, _| {
            meta.insert(key, bytes.as_slice())?;
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl FnOnce(
            &mut redb::Table<'_, &'static str, &'static [u8]>,
            &mut redb::Table<'_, u64, &'static [u8]>,
        ) -> Result<()>,
    ) -> Result<()> {
        let database = self.database()?;
        // redb syncs at each commit unless it is told otherwise.
        let write = database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let mut log = write.open_table(LOG)?;
            change(&mut meta, &mut log)?;
        }
        write.commit()?;
        Ok(())
    }
}

fn entry_of(record: &[u8]) -> Result<Entry> {
    let record: EntryRecord = decode("log entry", record).map_err(TableError::Damaged)?;
    Ok(record.into())
}
