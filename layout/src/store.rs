//! Where the history is durable: one redb file, or memory for tests.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod records;
#[cfg(test)]
mod tests;
mod version_1;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use milonga_protocol::{Epoch, Layout, Position, UnitId};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::history::{History, HistoryError, StoreChange};
use records::Header;

/// Version of the store's tables and records.
pub const STORE_VERSION: u16 = 3;
/// The oldest version that can still be read; the next change writes the newest.
const OLDEST_VERSION: u16 = 1;
/// The history is small; redb's default would be a gigabyte.
const CACHE_BYTES: usize = 8 << 20;

/// What kind of file this is and whose.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("milonga_layout");
/// Key of the record that says what a file is; the history on raft has the same.
pub(crate) const HEADER: &str = "header";
const INTENT: &str = "intent";
const GIVEN_UP: &str = "given up";
const POLICY: &str = "policy";
/// Epoch to its layout; the last one is the current one.
const LAYOUTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("layouts");
/// Epoch to its start: read whole at each open, unlike the layouts.
const STARTS: TableDefinition<'_, u64, u64> = TableDefinition::new("starts");
/// Unit to the last epoch it confirmed.
const OPENED: TableDefinition<'_, u128, u64> = TableDefinition::new("opened");

/// Keeps the history. One process at a time may have the file open; dropping the store closes it.
pub struct LayoutStore(Kind);

enum Kind {
    File(Box<OpenFile>),
    Memory(Arc<Mutex<History>>),
}

struct OpenFile {
    path: PathBuf,
    db: Database,
    /// What the file holds, to check changes against.
    history: History,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process (or this one, twice) has the file open.
    #[error(
        "{path} is in use by another process; stop it, or give this one a directory of its own"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a layout history of Milonga: {why}; check the configured directory")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// The file was written by another version.
    #[error(
        "{path} has version {found} of the layout history, this build knows version {STORE_VERSION}; run a build that knows it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// The file's records contradict each other.
    #[error("{path} is damaged: {why}; restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk failed. Whether the change is durable is unknown until the next open.
    #[error("{path}: {why}; check the disk, then restart")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The change does not fit the history; nothing was written.
    #[error(transparent)]
    Refused(#[from] HistoryError),
}

impl LayoutStore {
    /// Opens the history at `path` and reads it; a new file is made (durably, its directory entry included).
    ///
    /// # Errors
    /// [`StoreError`]: the file is in use, not a history of this version, or cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, History), StoreError> {
        let path = path.as_ref().to_path_buf();
        let new = !path.try_exists().map_err(|e| disk(&path, &e))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let db = builder.create(&path).map_err(|e| cannot_open(&path, e))?;
        if new && let Some(directory) = path.parent() {
            sync_directory(directory).map_err(|e| disk(&path, &e))?;
        }
        let history = File {
            path: &path,
            db: &db,
        }
        .load()?;
        let open = OpenFile {
            path,
            db,
            history: history.clone(),
        };
        Ok((Self(Kind::File(Box::new(open))), history))
    }

    /// A store that forgets everything with its last clone.
    #[must_use]
    pub fn memory() -> Self {
        Self(Kind::Memory(Arc::default()))
    }

    /// Another handle of a memory store, for what starts again after a crash; `None` for a file.
    #[must_use]
    pub fn share(&self) -> Option<Self> {
        match &self.0 {
            Kind::Memory(history) => Some(Self(Kind::Memory(Arc::clone(history)))),
            Kind::File(_) => None,
        }
    }

    /// What is durable now.
    #[must_use]
    pub fn history(&self) -> History {
        match &self.0 {
            Kind::File(open) => open.history.clone(),
            Kind::Memory(history) => history
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Makes a change; it is on stable storage when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Refused`]: nothing was written. [`StoreError::Disk`]: unknown; open the store anew.
    pub fn apply(&mut self, change: &StoreChange) -> Result<(), StoreError> {
        match &mut self.0 {
            Kind::Memory(history) => {
                let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(history.apply(change)?)
            }
            Kind::File(open) => {
                let OpenFile { path, db, history } = &mut **open;
                let mut next = history.clone();
                next.apply(change)?;
                let file = File { path, db };
                file.write(change, &next).map_err(|e| disk(path, &e))?;
                *history = next;
                Ok(())
            }
        }
    }
}

impl fmt::Debug for LayoutStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::File(open) => write!(f, "LayoutStore({})", open.path.display()),
            Kind::Memory(_) => f.write_str("LayoutStore(memory)"),
        }
    }
}

/// An open file.
struct File<'a> {
    path: &'a Path,
    db: &'a Database,
}

impl File<'_> {
    fn load(&self) -> Result<History, StoreError> {
        match self.read_header().map_err(|e| disk(self.path, &e))? {
            Some(Ok(header)) => self.check_header(&header)?,
            Some(Err(why)) => return Err(self.foreign(why)),
            None => self.write_new()?,
        }
        let records = self.read_records().map_err(|e| disk(self.path, &e))?;
        self.history(records)
    }

    /// `None`: the file is new.
    fn read_header(&self) -> Result<Option<Result<Header, String>>, redb::Error> {
        let foreign = "it is another program's redb file";
        header_of(self.db, META, foreign, Header::decode)
    }

    fn check_header(&self, header: &Header) -> Result<(), StoreError> {
        if !(OLDEST_VERSION..=STORE_VERSION).contains(&header.version) {
            return Err(StoreError::Version {
                path: self.path.to_path_buf(),
                found: header.version,
            });
        }
        Ok(())
    }

    fn write_new(&self) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let write = self.db.begin_write()?;
            let header = Header::new(None).encode();
            write.open_table(META)?.insert(HEADER, header.as_slice())?;
            write.open_table(LAYOUTS)?;
            write.open_table(STARTS)?;
            write.open_table(OPENED)?;
            write.commit()?;
            Ok(())
        };
        write().map_err(|e| disk(self.path, &e))
    }

    fn read_records(&self) -> Result<Records, redb::Error> {
        let read = self.db.begin_read()?;
        let meta = read.open_table(META)?;
        let value = |key| -> Result<_, redb::Error> {
            Ok(meta.get(key)?.map(|bytes| bytes.value().to_vec()))
        };
        let mut records = Records {
            header: value(HEADER)?.unwrap_or_default(),
            intent: value(INTENT)?,
            given_up: value(GIVEN_UP)?,
            policy: value(POLICY)?,
            ..Records::default()
        };
        if let Some(entry) = read.open_table(LAYOUTS)?.last()? {
            records.layout = Some(entry.1.value().to_vec());
        }
        for entry in read.open_table(STARTS)?.iter()? {
            let (epoch, start) = entry?;
            let pair = (Epoch(epoch.value()), Position(start.value()));
            records.starts.push(pair);
        }
        for entry in read.open_table(OPENED)?.iter()? {
            let (unit, epoch) = entry?;
            let pair = (UnitId(unit.value()), Epoch(epoch.value()));
            records.opened.push(pair);
        }
        Ok(records)
    }

    fn history(&self, records: Records) -> Result<History, StoreError> {
        let header = Header::decode(&records.header).map_err(|why| self.damaged(why))?;
        let intent = records.intent.as_deref().map(records::decode_intent);
        let layout = records.layout.as_deref().map(records::decode_layout);
        let given_up = records.given_up.as_deref().map(records::decode_given_up);
        let policy = records.policy.as_deref().map(records::decode_policy);
        let policy = policy.transpose().map_err(|why| self.damaged(why))?;
        let history = History {
            cluster: header.cluster,
            current: layout.transpose().map_err(|why| self.damaged(why))?,
            intent: intent.transpose().map_err(|why| self.damaged(why))?,
            starts: records.starts.into_iter().collect(),
            opened: records.opened.into_iter().collect(),
            given_up: given_up.transpose().map_err(|why| self.damaged(why))?,
            settled: Epoch::NONE,
            origins: BTreeMap::new(),
            policy: policy.unwrap_or_default(),
        };
        history.check().map_err(|why| self.damaged(why))?;
        Ok(history)
    }

    /// Writes what `change` made of the history, in one transaction, synced.
    fn write(&self, change: &StoreChange, next: &History) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        match change {
            StoreChange::Intent { epoch } => {
                let record = records::encode_intent(*epoch);
                write.open_table(META)?.insert(INTENT, record.as_slice())?;
            }
            StoreChange::Commit { layout, .. } => {
                let mut meta = write.open_table(META)?;
                let header = Header::new(next.cluster).encode();
                meta.insert(HEADER, header.as_slice())?;
                meta.remove(INTENT)?;
                self.write_layout(&write, layout)?;
            }
            StoreChange::Opened { epoch, units } => {
                let mut opened = write.open_table(OPENED)?;
                for unit in units {
                    opened.insert(unit.0, epoch.0)?;
                }
            }
            StoreChange::GivenUp { .. } => {
                if let Some(range) = next.given_up {
                    let record = records::encode_given_up(range);
                    write_fact(&write, next, GIVEN_UP, &record)?;
                }
            }
            // Not kept: whoever starts from this store makes another epoch.
            StoreChange::Settled { .. } => {}
            StoreChange::Policy { policy } => {
                write_fact(&write, next, POLICY, &records::encode_policy(policy))?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn write_layout(
        &self,
        write: &redb::WriteTransaction,
        layout: &Layout,
    ) -> Result<(), redb::Error> {
        let record = records::encode_layout(layout);
        let mut layouts = write.open_table(LAYOUTS)?;
        layouts.insert(layout.epoch.0, record.as_slice())?;
        let mut starts = write.open_table(STARTS)?;
        starts.insert(layout.epoch.0, layout.start.0)?;
        Ok(())
    }

    fn foreign(&self, why: String) -> StoreError {
        let path = self.path.to_path_buf();
        StoreError::Foreign { path, why }
    }

    fn damaged(&self, why: String) -> StoreError {
        let path = self.path.to_path_buf();
        StoreError::Damaged { path, why }
    }
}

/// Writes a record that older builds do not know: the header says so.
fn write_fact(
    write: &redb::WriteTransaction,
    next: &History,
    key: &str,
    record: &[u8],
) -> Result<(), redb::Error> {
    let mut meta = write.open_table(META)?;
    let header = Header::new(next.cluster).encode();
    meta.insert(HEADER, header.as_slice())?;
    meta.insert(key, record)?;
    Ok(())
}

/// The header in `table` of a file. `None`: the file is new. `Some(Err)`: how it shows that it is something else; `foreign`
/// if it has other tables only.
pub(crate) fn header_of<H>(
    db: &Database,
    table: TableDefinition<'_, &str, &[u8]>,
    foreign: &str,
    decode: impl FnOnce(&[u8]) -> Result<H, String>,
) -> Result<Option<Result<H, String>>, redb::Error> {
    let read = db.begin_read()?;
    let table = match read.open_table(table) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            let empty = read.list_tables()?.next().is_none();
            return Ok((!empty).then(|| Err(foreign.to_owned())));
        }
        Err(error) => return Err(error.into()),
    };
    let header = table.get(HEADER)?;
    Ok(Some(match header {
        Some(bytes) => decode(bytes.value()),
        None => Err("it has no header".into()),
    }))
}

/// What the tables hold, as stored.
#[derive(Default)]
struct Records {
    header: Vec<u8>,
    intent: Option<Vec<u8>>,
    given_up: Option<Vec<u8>>,
    policy: Option<Vec<u8>>,
    layout: Option<Vec<u8>>,
    starts: Vec<(Epoch, Position)>,
    opened: Vec<(UnitId, Epoch)>,
}

pub(crate) fn disk(path: &Path, error: &impl fmt::Display) -> StoreError {
    StoreError::Disk {
        path: path.to_path_buf(),
        why: error.to_string(),
    }
}

pub(crate) fn cannot_open(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(error))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            disk(&path, &error)
        }
        DatabaseError::Storage(redb::StorageError::Corrupted(why)) => {
            StoreError::Damaged { path, why }
        }
        other => StoreError::Foreign {
            path,
            why: other.to_string(),
        },
    }
}

/// Makes the entry of a new file durable.
pub(crate) fn sync_directory(directory: &Path) -> std::io::Result<()> {
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    std::fs::File::open(directory)?.sync_all()
}
