//! The lock on a data directory: one process at a time, held as long as the guard lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Name of the lock file; never removed, so that two processes always lock the same file.
pub const LOCK_FILE: &str = "LOCK";

/// How often a lock is tried that is only looked at.
const ATTEMPTS: usize = 1_000;

/// An exclusive lock on a directory. The kernel releases it when the process dies.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another process (or another log of this one) uses it.
    #[error(
        "directory {} is in use by process {pid}; stop it or use another directory",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as it wrote itself into the lock file; `unknown` in the instant before it did.
        pid: String,
    },
    /// Something else lies there.
    #[error("{} {what}; name a directory that holds a log, or a new one", path.display())]
    NoLog {
        /// What was named.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// It cannot be made, opened or locked.
    #[error("cannot use directory {}: {what}; check that it is on a mounted disk and writable", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
}

impl DirectoryError {
    pub(crate) fn io(
        path: &Path,
        what: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, what, source }
    }
}

impl DirectoryLock {
    /// Makes the directory if it is not there and locks it.
    ///
    /// # Errors
    /// [`DirectoryError`]: another process has it, or it cannot be made or written.
    pub fn take(directory: &Path) -> Result<Self, DirectoryError> {
        std::fs::create_dir_all(directory)
            .map_err(DirectoryError::io(directory, "making the directory"))?;
        let path = directory.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);
        let file = options
            .open(&path)
            .map_err(DirectoryError::io(&path, "opening the lock file"))?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DirectoryError::InUse {
                    path: directory.to_owned(),
                    pid: holder(file),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(DirectoryError::io(&path, "locking the lock file")(source));
            }
        }
        let lock = Self { file };
        lock.sign()
            .map_err(DirectoryError::io(&path, "writing the lock file"))?;
        Ok(lock)
    }

    /// Id of the process that has the lock on `directory`, if any has. Makes nothing, and holds nothing afterwards.
    ///
    /// # Errors
    /// [`DirectoryError::Io`] if there is a lock file that cannot be read.
    pub(crate) fn user(directory: &Path) -> Result<Option<String>, DirectoryError> {
        let path = directory.join(LOCK_FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(DirectoryError::io(&path, "opening the lock file"))?,
        };
        match file.try_lock_shared() {
            Ok(()) => file
                .unlock()
                .map(|()| None)
                .map_err(DirectoryError::io(&path, "releasing the lock file")),
            Err(TryLockError::WouldBlock) => Ok(Some(holder(file))),
            Err(TryLockError::Error(source)) => Err(DirectoryError::io(
                &path,
                "looking at the lock file",
            )(source)),
        }
    }

    /// Leaves this process's id for the error message of the next. Works on a full disk: the file keeps its bytes.
    fn sign(&self) -> std::io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        let signature = format!("{:<20}\n", std::process::id());
        match file.write_all(signature.as_bytes()) {
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(()),
            result => result,
        }
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Not left to closing: a child that is being forked right now holds a copy of the file.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "cannot release the directory lock");
        }
    }
}

/// Takes the lock, though somebody may just be asking for its holder and so have a share of it for an instant.
fn lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            result => return result,
        }
        // Whoever uses the directory does not share.
        file.try_lock_shared()?;
        file.unlock().map_err(TryLockError::Error)?;
        std::thread::yield_now();
    }
    Err(TryLockError::WouldBlock)
}

fn holder(mut file: File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_process_and_a_released_one_can_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er");
        for _ in 0..100 {
            let lock = DirectoryLock::take(&path).unwrap();
            let text = DirectoryLock::take(&path).unwrap_err().to_string();
            assert!(text.contains(&std::process::id().to_string()), "{text}");
            assert!(text.contains("deep/er is in use by process"), "{text}");
            drop(lock);
        }
    }

    #[test]
    fn who_only_looks_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DirectoryLock::user(dir.path()).unwrap(), None);
        assert!(!dir.path().join(LOCK_FILE).exists());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    DirectoryLock::user(dir.path()).unwrap();
                }
            });
            let mut taken = 0;
            for _ in 0..2_000 {
                taken += usize::from(DirectoryLock::take(dir.path()).is_ok());
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(taken, 2_000);
        });
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let text = DirectoryLock::take(&path).unwrap_err().to_string();
        assert!(text.contains("/file") && text.contains("making"), "{text}");
    }
}
