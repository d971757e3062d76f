//! The machine seam: what a server process needs of the computer under it, apart from clock and network.
//!
//! Contract. A [`Machine`] MUST give what it opens to one process at a time, MUST complete every disk operation and
//! every change of a store exactly once unless it is stopped, and MUST NOT touch the directory after the guards of
//! what was opened there are dropped. [`LocalMachine`] is the real one; the tests' seeded world has another.

use std::path::{Path, PathBuf};

use milonga_layout::{History, StoreChange, StoreError, StoreId};
use milonga_log_units::{Disk, DiskDone, DiskError, OpId};
use milonga_protocol::SharedEnv;
use tokio::sync::mpsc::UnboundedSender;

use crate::disk::FileDisk;
use crate::error::NodeError;
use crate::lock::DirectoryLock;
use crate::steer::StoreThread;

/// Keeps something open. Dropping it stops it, and returns when nothing touches the directory any more.
pub type Guard = Box<dyn Send + Sync>;

/// A completed disk operation.
pub type DiskCompletion = (OpId, Result<DiskDone, DiskError>);

/// Reports that a change of the store ended, and how. `false`: nobody wants to know any more.
pub type StoreDone = Box<dyn Fn(StoreId, Result<(), StoreError>) -> bool + Send>;

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

    /// Opens the layout's store. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`NodeError::Store`] if it is not a store or cannot be read.
    fn store(&self, file: &Path, done: StoreDone) -> Result<OpenStore, NodeError>;
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

/// A layout's store.
pub struct OpenStore {
    /// What it held when it was opened.
    pub history: History,
    /// Begins a change; there is at most one at a time.
    pub submit: Box<dyn FnMut(StoreId, StoreChange) + Send>,
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

    fn store(&self, file: &Path, done: StoreDone) -> Result<OpenStore, NodeError> {
        let (thread, history) = StoreThread::open(file, done)?;
        Ok(OpenStore {
            history,
            submit: thread.submit(),
            guard: Box::new(thread),
        })
    }
}
