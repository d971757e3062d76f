//! The machine seam: what a server process needs of the computer under it, apart from clock and network.
//!
//! Contract. A [`Machine`] MUST give what it opens to one process at a time, MUST complete every disk operation
//! exactly once unless it is stopped, and MUST NOT touch the directory after the guards of
//! what was opened there are dropped. [`LocalMachine`] is the real one; the tests' seeded world has another.

use std::path::{Path, PathBuf};

use milonga_layout::{Member, MemberId, RaftStore};
use milonga_log_units::{Disk, DiskDone, DiskError, OpId};
use milonga_protocol::SharedEnv;
use tokio::sync::mpsc::UnboundedSender;

use crate::disk::FileDisk;
use crate::error::NodeError;
use crate::layout;
use crate::lock::DirectoryLock;

/// Keeps something open. Dropping it stops it, and returns when nothing touches the directory any more.
pub type Guard = Box<dyn Send + Sync>;

/// A completed disk operation.
pub type DiskCompletion = (OpId, Result<DiskDone, DiskError>);

/// Where disks, stores and locks come from.
pub trait Machine: Send + Sync + 'static {
    /// Locks a directory, making it if it is not there.
    ///
    /// # Errors
    /// [`NodeError::Directory`]: it is in use or cannot be used.
    fn lock(&self, directory: &Path) -> Result<Guard, NodeError>;

    /// Opens the disk of a log unit; completions go to `done`, in the order they happen.
    ///
    /// # Errors
    /// [`NodeError::Directory`] if the directory cannot be used.
    fn disk(
        &self,
        env: &SharedEnv,
        directory: &Path,
        done: UnboundedSender<DiskCompletion>,
    ) -> Result<OpenDisk, NodeError>;

    /// Opens where member `id` of the layout keeps the history; `alone`: there are no other members. Blocks for as long as
    /// the disk takes.
    ///
    /// # Errors
    /// [`NodeError`] if it is not a history of that member, or cannot be read.
    fn layout(
        &self,
        directory: &Path,
        id: MemberId,
        member: &Member,
        alone: bool,
    ) -> Result<OpenLayout, NodeError>;

    /// The new layout of [`OpenLayout::is_new`] is made; it is never said to be new again.
    ///
    /// # Errors
    /// [`NodeError::Directory`] if that cannot be written down.
    fn layout_is_made(&self, directory: &Path) -> Result<(), NodeError>;
}

/// A log unit's disk.
pub struct OpenDisk {
    /// Where it is, for people.
    pub path: PathBuf,
    /// The way to submit operations.
    pub disk: Box<dyn Disk>,
    /// Keeps it open.
    pub guard: Guard,
}

/// Where a member of the layout keeps the history.
pub struct OpenLayout {
    /// The store, on its disk.
    pub store: RaftStore,
    /// Whoever made the directory said that the layout is new.
    pub is_new: bool,
    /// Keeps it open.
    pub guard: Guard,
}

/// This computer: files, threads for what blocks, and a lock file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalMachine;

impl Machine for LocalMachine {
    fn lock(&self, directory: &Path) -> Result<Guard, NodeError> {
        Ok(Box::new(DirectoryLock::take(directory)?))
    }

    fn disk(
        &self,
        env: &SharedEnv,
        directory: &Path,
        done: UnboundedSender<DiskCompletion>,
    ) -> Result<OpenDisk, NodeError> {
        let disk = FileDisk::open(env, directory, &done)?;
        Ok(OpenDisk {
            path: directory.to_owned(),
            disk: Box::new(disk.handle()),
            guard: Box::new(disk),
        })
    }

    fn layout(
        &self,
        directory: &Path,
        id: MemberId,
        member: &Member,
        alone: bool,
    ) -> Result<OpenLayout, NodeError> {
        layout::open(directory, id, member, alone)
    }

    fn layout_is_made(&self, directory: &Path) -> Result<(), NodeError> {
        layout::remove_mark(directory)
    }
}
