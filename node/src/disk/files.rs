//! The operations themselves: blocking calls on files of one flat directory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use milonga_log_units::{DiskDone, DiskError, DiskOp, FileName};

use milonga_protocol::sync::atomic::{AtomicBool, Ordering};
use milonga_protocol::sync::{Mutex, MutexGuard};
use rustix::io::Errno;

use crate::lock::{DirectoryError, LOCK_FILE};

/// Most files kept open: well below the usual limit of 1,024 per process.
const OPEN_FILES: usize = 256;
/// Zero-filling goes in steps of this size, each synced: a large sync at the end would hold up everybody's commits.
const ZEROS: usize = 4 << 20;
/// Most slices that one system call takes.
const SLICES: usize = 1_024;

#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// For syncing the directory itself.
    root: File,
    /// Open files by name. A name that changes its meaning is taken out under the lock, in one step with the change,
    /// so that nobody keeps reading what the name meant before.
    open: Mutex<BTreeMap<FileName, Arc<File>>>,
}

impl Files {
    pub(super) fn open(directory: &Path) -> Result<Self, DirectoryError> {
        std::fs::create_dir_all(directory)
            .map_err(DirectoryError::io(directory, "making the directory"))?;
        let root = File::open(directory)
            .map_err(DirectoryError::io(directory, "opening the directory"))?;
        // The directory may be new: its own name must survive a power loss too.
        if let Some(parent) = directory.parent()
            && let Ok(parent) = File::open(parent)
        {
            let synced = parent.sync_all();
            synced.map_err(DirectoryError::io(
                directory,
                "syncing the parent directory",
            ))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            root,
            open: Mutex::default(),
        })
    }

    pub(super) fn run(&self, op: &DiskOp, stop: &AtomicBool) -> Result<DiskDone, DiskError> {
        match op {
            DiskOp::Create { name, size } => self.create(name, *size, stop),
            DiskOp::WriteAt {
                name,
                offset,
                data,
                sync,
            } => self.write(name, *offset, data, *sync),
            DiskOp::ReadAt { name, offset, len } => self.read(name, *offset, *len),
            DiskOp::Sync { name } => {
                let file = self.file(name)?;
                file.sync_data().map_err(|e| self.error("sync", name, &e))?;
                Ok(DiskDone::Done)
            }
            DiskOp::Rename { from, to } => self.rename(from, to),
            DiskOp::Remove { name } => self.remove(name),
            DiskOp::List => self.list(),
            DiskOp::Space => self.space(),
        }
    }

    /// Zeros are written, not only reserved: an unwritten extent costs a metadata commit at each first sync.
    fn create(&self, name: &FileName, size: u64, stop: &AtomicBool) -> Result<DiskDone, DiskError> {
        let path = self.path(name)?;
        let result = self.zero_fill(name, &path, size, stop);
        if result.is_err() {
            // Gives the space back; the error that is reported is the first one.
            let _ = std::fs::remove_file(&path);
            self.opened().remove(name);
        }
        result.map_err(|e| self.error("create", name, &e))?;
        self.sync_directory()
    }

    fn zero_fill(
        &self,
        name: &FileName,
        path: &Path,
        size: u64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let file = {
            let mut open = self.opened();
            open.remove(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            options.open(path)?
        };
        let zeros = vec![0; ZEROS.min(usize::try_from(size).unwrap_or(ZEROS))];
        let mut at = 0;
        while at < size {
            if stop.load(Ordering::SeqCst) {
                return Err(io::Error::other("the node is being stopped"));
            }
            let len = usize::try_from(size - at).map_or(zeros.len(), |rest| rest.min(zeros.len()));
            file.write_all_at(&zeros[..len], at)?;
            file.sync_data()?;
            at += len as u64;
        }
        file.sync_all()
    }

    fn write(
        &self,
        name: &FileName,
        offset: u64,
        data: &[Bytes],
        sync: bool,
    ) -> Result<DiskDone, DiskError> {
        let file = self.file(name)?;
        let mut written = 0;
        if let Err(error) = write_all(&file, offset, data, &mut written) {
            let error = self.error("write", name, &error);
            return Err(if written > 0 { unsure(error) } else { error });
        }
        if sync {
            file.sync_data()
                .map_err(|e| unsure(self.error("sync", name, &e)))?;
        }
        Ok(DiskDone::Done)
    }

    fn read(&self, name: &FileName, offset: u64, len: u64) -> Result<DiskDone, DiskError> {
        let file = self.file(name)?;
        read_up_to(&file, offset, len)
            .map(|bytes| DiskDone::Read(bytes.into()))
            .map_err(|e| self.error("read", name, &e))
    }

    fn rename(&self, from: &FileName, to: &FileName) -> Result<DiskDone, DiskError> {
        let (old, new) = (self.path(from)?, self.path(to)?);
        {
            let mut open = self.opened();
            std::fs::rename(old, new).map_err(|e| self.error("rename", from, &e))?;
            open.remove(from);
            open.remove(to);
        }
        self.sync_directory()
    }

    fn remove(&self, name: &FileName) -> Result<DiskDone, DiskError> {
        let path = self.path(name)?;
        {
            let mut open = self.opened();
            std::fs::remove_file(path).map_err(|e| self.error("remove", name, &e))?;
            open.remove(name);
        }
        self.sync_directory()
    }

    fn list(&self) -> Result<DiskDone, DiskError> {
        let whole = String::from(".");
        let error = |e: io::Error| self.error("list", &whole, &e);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(error)? {
            let entry = entry.map_err(error)?;
            let meta = entry.metadata().map_err(error)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if meta.is_file() && name != LOCK_FILE {
                files.push((name, meta.len()));
            }
        }
        files.sort();
        Ok(DiskDone::Files(files))
    }

    fn space(&self) -> Result<DiskDone, DiskError> {
        let stat = rustix::fs::fstatvfs(&self.root)
            .map_err(|e| self.error("ask for the space of", &String::from("."), &e.into()))?;
        Ok(DiskDone::Space(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn sync_directory(&self) -> Result<DiskDone, DiskError> {
        self.root
            .sync_all()
            .map_err(|e| self.error("sync", &String::from("."), &e))?;
        Ok(DiskDone::Done)
    }

    fn opened(&self) -> MutexGuard<'_, BTreeMap<FileName, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &FileName) -> Result<Arc<File>, DiskError> {
        let path = self.path(name)?;
        let mut open = self.opened();
        if let Some(file) = open.get(name) {
            return Ok(Arc::clone(file));
        }
        let mut opened = OpenOptions::new().read(true).write(true).open(&path);
        // After an error some file systems can be read only. A write to this file will fail.
        if matches!(&opened, Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem) {
            opened = File::open(path);
        }
        let file = Arc::new(opened.map_err(|e| self.error("open", name, &e))?);
        if open.len() >= OPEN_FILES {
            // Names sort by age: the oldest segment is the least likely to be read again.
            open.pop_first();
        }
        open.insert(name.clone(), Arc::clone(&file));
        Ok(file)
    }

    fn path(&self, name: &FileName) -> Result<PathBuf, DiskError> {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if plain && name != LOCK_FILE {
            Ok(self.directory.join(name))
        } else {
            Err(DiskError::Io(format!("{name:?} is no name of a file")))
        }
    }

    fn error(&self, what: &str, name: &FileName, error: &io::Error) -> DiskError {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskError::Full,
            ErrorKind::NotFound => DiskError::NotFound(name.clone()),
            kind => {
                let path = self.directory.join(name);
                let why = format!("cannot {what} {}: {error}", path.display());
                let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
                let lacks = Errno::from_io_error(error).is_some_and(|e| lacking.contains(&e));
                if lacks || matches!(kind, ErrorKind::OutOfMemory | ErrorKind::Interrupted) {
                    DiskError::Busy(why)
                } else {
                    DiskError::Io(why)
                }
            }
        }
    }
}

/// The error of a write that may have changed something. `Full` promises that nothing was: a value that its writer
/// was told to be refused could come back from the disk after a crash. (Copy-on-write file systems can run out of
/// space on files that are there.)
fn unsure(error: DiskError) -> DiskError {
    match error {
        DiskError::Full => DiskError::Io("no space left in the middle of a write".into()),
        other => other,
    }
}

/// Writes all of `data`, as few calls as the kernel allows; `written` counts the bytes, also of a failure.
fn write_all(file: &File, offset: u64, data: &[Bytes], written: &mut u64) -> io::Result<()> {
    let slices = data.iter().filter(|bytes| !bytes.is_empty());
    let mut slices: Vec<_> = slices.map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(SLICES)];
        match rustix::io::pwritev(file, some, offset + *written) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(more) => {
                *written += more as u64;
                IoSlice::advance_slices(&mut rest, more);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads `len` bytes, fewer only at the end of the file.
fn read_up_to(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let there = file.metadata()?.len().saturating_sub(offset).min(len);
    let there = usize::try_from(there).map_err(|_| ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; there];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}
