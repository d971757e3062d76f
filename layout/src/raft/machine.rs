//! The history as openraft's state machine.
//!
//! It is in memory: a snapshot and the committed entries behind it are on disk, and that they were committed is on disk
//! before they are applied. So a member that starts again knows at least what it knew.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError,
};
use tokio::sync::watch;

use super::records::{decode_history, encode_history};
use super::store::RaftStore;
use super::{
    Entry, LogId, Member, MemberId, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::history::{History, HistoryError};

/// What all entries up to one have made.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    /// That entry.
    pub(super) last: Option<LogId>,
    membership: StoredMembership,
    /// Shared: readers keep what they look at.
    pub(super) history: Arc<History>,
}

impl Applied {
    fn apply(&mut self, entry: Entry) -> Result<(), HistoryError> {
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Ok(()),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(self.last, membership);
                Ok(())
            }
            EntryPayload::Normal(change) => Arc::make_mut(&mut self.history).apply(&change),
        }
    }

    fn meta(&self) -> SnapshotMeta {
        // Equal on all members: what they applied is, and how it is encoded.
        let id = self.last.map(|last| last.to_string());
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            snapshot_id: id.unwrap_or_else(|| "empty".to_owned()),
        }
    }
}

/// The state machine of one member; whoever reads it subscribes.
#[derive(Debug)]
pub(super) struct Machine {
    store: RaftStore,
    applied: watch::Sender<Applied>,
}

impl Machine {
    /// What the store's snapshot says; openraft then applies the committed entries behind it.
    pub(super) async fn load(store: &RaftStore) -> Result<Self, String> {
        let snapshot = store.run(|tables| tables.snapshot()).await?;
        let applied = match snapshot {
            Some((meta, bytes)) => applied(meta, &bytes)?,
            None => Applied::default(),
        };
        Ok(Self {
            store: store.clone(),
            applied: watch::Sender::new(applied),
        })
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }
}

fn applied(meta: SnapshotMeta, bytes: &[u8]) -> Result<Applied, String> {
    Ok(Applied {
        last: meta.last_log_id,
        membership: meta.last_membership,
        history: Arc::new(decode_history(bytes)?),
    })
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.applied.borrow();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Result<(), HistoryError>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        self.applied.send_modify(|applied| {
            results.extend(entries.into_iter().map(|entry| applied.apply(entry)));
        });
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: self.store.clone(),
            applied: self.applied.borrow().clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        let applied = applied(meta.clone(), &bytes).map_err(|why| cannot_read(meta, why))?;
        save(&self.store, meta, bytes).await?;
        self.applied.send_replace(applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let kept = self.store.run(|tables| tables.snapshot()).await;
        let kept = kept.map_err(|why| StorageError::IO {
            source: StorageIOError::read_snapshot(None, AnyError::error(why)),
        })?;
        Ok(kept.map(|(meta, bytes)| snapshot(meta, bytes)))
    }
}

/// Makes a snapshot of what was applied when this was made.
#[derive(Debug)]
pub(super) struct Builder {
    store: RaftStore,
    applied: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let meta = self.applied.meta();
        let bytes = encode_history(&self.applied.history);
        save(&self.store, &meta, bytes.clone()).await?;
        Ok(snapshot(meta, bytes))
    }
}

async fn save(store: &RaftStore, meta: &SnapshotMeta, bytes: Vec<u8>) -> Result<(), StorageError> {
    let kept = meta.clone();
    let saved = store.run(move |tables| tables.save_snapshot(&kept, &bytes));
    saved.await.map_err(|why| StorageError::IO {
        source: StorageIOError::write_snapshot(Some(meta.signature()), AnyError::error(why)),
    })
}

fn snapshot(meta: SnapshotMeta, bytes: Vec<u8>) -> Snapshot<TypeConfig> {
    let snapshot = Box::new(Cursor::new(bytes));
    Snapshot { meta, snapshot }
}

fn cannot_read(meta: &openraft::SnapshotMeta<MemberId, Member>, why: String) -> StorageError {
    let signature = Some(meta.signature());
    StorageError::IO {
        source: StorageIOError::read_snapshot(signature, AnyError::error(why)),
    }
}
