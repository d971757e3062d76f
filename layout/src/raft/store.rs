//! Where one member keeps what it promised and acknowledged: one redb file, or memory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::Database;
use redb::backends::InMemoryBackend;
use tokio::sync::oneshot;

use super::header::Header;
use super::records::{OLDEST_RECORD_VERSION, RECORD_VERSION, decode_history, encode_history};
use super::tables::{TableError, Tables};
use super::{LogId, Member, MemberId, Membership, SnapshotMeta, StoredMembership};
use crate::history::History;
use crate::store::{StoreError, cannot_open, disk, sync_directory};

/// Version of a raft store's tables and records.
pub const RAFT_STORE_VERSION: u16 = RECORD_VERSION;
/// The log is short; redb's default would be a gigabyte.
const CACHE_BYTES: usize = 8 << 20;

/// Something that blocks on the disk.
pub type RaftJob = Box<dyn FnOnce() + Send>;

/// Runs what blocks on the disk.
///
/// Contract: jobs MUST run one at a time and in the order they came, each at most once. A job may run in place; a job
/// that is dropped stands for a disk that is gone, and stops its member.
pub trait RaftDisk: Send + Sync + 'static {
    /// Runs `job`, now or later.
    fn run(&self, job: RaftJob);
}

/// Runs jobs where they are submitted.
struct InPlace;

impl RaftDisk for InPlace {
    fn run(&self, job: RaftJob) {
        job();
    }
}

/// One member's vote, log and snapshot. One process at a time may have the file open; it is closed with the last clone,
/// and so when the [`Replica`](super::Replica) that was given it has shut down.
#[derive(Clone)]
pub struct RaftStore {
    /// `None` in memory.
    path: Option<Arc<Path>>,
    pub(super) tables: Arc<Tables>,
    disk: Arc<dyn RaftDisk>,
}

/// Why a raft store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RaftStoreError {
    /// The file is in use, something else, damaged, or the disk fails.
    #[error(transparent)]
    File(#[from] StoreError),
    /// The file was written by another version.
    #[error(
        "{path} has version {found} of the layout's raft log, this build knows version {RAFT_STORE_VERSION}; run a build that knows it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// The file is another member's. Two members with one past could elect two leaders.
    #[error(
        "{path} is the raft log of the layout's member {found}, this process is member {expected}; check the configured directory"
    )]
    Member {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: MemberId,
        /// Who asked.
        expected: MemberId,
    },
}

impl RaftStore {
    /// Opens the store at `path` and checks it; a new file is made (durably, its directory entry included). Blocks, and
    /// so does all later work on the disk, unless it is given [`Self::on`] another.
    ///
    /// # Errors
    /// [`RaftStoreError`]: the file is in use, not a raft log of this version, damaged, or cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RaftStoreError> {
        let path = path.as_ref();
        let new = !path.try_exists().map_err(|e| disk(path, &e))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let db = builder.create(path).map_err(|e| cannot_open(path, e))?;
        if new && let Some(directory) = path.parent() {
            sync_directory(directory).map_err(|e| disk(path, &e))?;
        }
        let store = Self {
            path: Some(path.into()),
            tables: Arc::new(Tables::new(db)),
            disk: Arc::new(InPlace),
        };
        store.load()?;
        Ok(store)
    }

    /// A store that forgets everything with its last clone.
    ///
    /// # Panics
    /// Never: a new store in memory has nothing to fail on.
    #[must_use]
    pub fn memory() -> Self {
        let db = Database::builder().create_with_backend(InMemoryBackend::new());
        let store = Self {
            path: None,
            tables: Arc::new(Tables::new(db.expect("memory is empty and does not fail"))),
            disk: Arc::new(InPlace),
        };
        store.load().expect("memory is empty and does not fail");
        store
    }

    /// The same store, working on `disk`.
    #[must_use]
    pub fn on(self, disk: Arc<dyn RaftDisk>) -> Self {
        Self { disk, ..self }
    }

    /// Closes the file, whoever still has a clone: what is asked of the store afterwards fails. Nothing must be under way on
    /// its disk any more.
    pub fn close(&self) {
        self.tables.close();
    }

    /// Takes over the history that a lone layout has kept without raft, durably: `member` will be its only member.
    /// `false`: the store has a past of its own, and nothing was done. Blocks on the disk.
    ///
    /// # Errors
    /// [`RaftStoreError`]: the store is another member's, or the disk failed.
    pub fn adopt(
        &self,
        id: MemberId,
        member: Member,
        history: &History,
    ) -> Result<bool, RaftStoreError> {
        self.claim(id)?;
        // As if it had been there when the cluster was made.
        let first = LogId::default();
        let members = Membership::new(vec![[id].into()], BTreeMap::from([(id, member)]));
        let meta = SnapshotMeta {
            last_log_id: Some(first),
            last_membership: StoredMembership::new(Some(first), members),
            snapshot_id: first.to_string(),
        };
        let adopted = self.tables.adopt(&meta, &encode_history(history));
        adopted.map_err(|error| self.error(error))
    }

    /// Makes the store that of `member`, if it is nobody's yet.
    pub(super) fn claim(&self, member: MemberId) -> Result<(), RaftStoreError> {
        let header = self.tables.header().map_err(|e| self.error(e))?;
        match header {
            Some(Ok(Header {
                member: Some(found),
                ..
            })) if found != member => Err(RaftStoreError::Member {
                path: self.path(),
                found,
                expected: member,
            }),
            Some(Ok(Header {
                member: Some(_), ..
            })) => Ok(()),
            _ => self.write_header(Some(member)),
        }
    }

    /// Does `job` on the disk; completes when it is done. It is done even if the future is dropped.
    ///
    /// # Errors
    /// What went wrong, for people. After a failed write the member must stop: what is on disk is unknown.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tables) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, String> {
        let (sender, receiver) = oneshot::channel();
        let tables = Arc::clone(&self.tables);
        self.disk.run(Box::new(move || {
            let result = job(&tables);
            // Before the answer: whoever has it may close the store.
            drop(tables);
            let _ = sender.send(result);
        }));
        match receiver.await {
            Ok(result) => result.map_err(|error| self.error(error).to_string()),
            Err(_) => Err(format!("{}: the disk is gone", self.path().display())),
        }
    }

    fn load(&self) -> Result<(), RaftStoreError> {
        let header = match self.tables.header().map_err(|e| self.error(e))? {
            None => return self.write_header(None),
            Some(Err(why)) => {
                let path = self.path();
                return Err(StoreError::Foreign { path, why }.into());
            }
            Some(Ok(header))
                if !(OLDEST_RECORD_VERSION..=RAFT_STORE_VERSION).contains(&header.version) =>
            {
                return Err(RaftStoreError::Version {
                    path: self.path(),
                    found: header.version,
                });
            }
            Some(Ok(header)) => header,
        };
        let check = self.tables.check().and_then(|()| self.tables.snapshot());
        if let Some((_, bytes)) = check.map_err(|e| self.error(e))? {
            decode_history(&bytes).map_err(|why| self.error(TableError::Damaged(why)))?;
        }
        if header.version < RAFT_STORE_VERSION {
            // Builds of before do not know the records that come.
            self.write_header(header.member)?;
        }
        Ok(())
    }

    fn write_header(&self, member: Option<MemberId>) -> Result<(), RaftStoreError> {
        let version = RAFT_STORE_VERSION;
        let written = self.tables.write_header(Header { version, member });
        written.map_err(|error| self.error(error))
    }

    fn path(&self) -> PathBuf {
        let path = self.path.as_deref();
        path.map_or_else(|| "(memory)".into(), Path::to_path_buf)
    }

    fn error(&self, error: TableError) -> RaftStoreError {
        let path = self.path();
        RaftStoreError::File(match error {
            TableError::Disk(error) => disk(&path, &error),
            TableError::Damaged(why) => StoreError::Damaged { path, why },
            closed @ TableError::Closed => disk(&path, &closed),
        })
    }
}

impl fmt::Debug for RaftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RaftStore({})", self.path().display())
    }
}
