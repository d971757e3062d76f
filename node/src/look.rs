//! Looking at a log unit's directory from outside: files are opened for reading only, nothing is made, locked or changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use milonga_log_units::{
    DiskDone, DiskError, DiskOp, Inspection, InspectionStep, OpenError, UnitReport,
};

use crate::layout;
use crate::lock::{DirectoryError, DirectoryLock, LOCK_FILE};
use crate::process::UNIT_DIRECTORY;

/// Files that only a log unit's directory has.
const OF_UNITS: [&str; 3] = ["superblock", "superblock.new", "state"];
/// Most directories that are proposed instead.
const PROPOSED: usize = 8;

/// A log unit's directory, to be looked at.
#[derive(Clone, Debug)]
pub struct UnitDirectory {
    path: PathBuf,
}

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookError {
    /// There is nothing.
    #[error("{} does not exist; name the directory of a log unit: `unit` in a server's data", path.display())]
    Absent {
        /// What was named.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} {what}; {}", path.display(), propose(instead))]
    NoUnit {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: String,
        /// Directories of log units that may have been meant.
        instead: Vec<PathBuf>,
    },
    /// It or its lock cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It is of another version, or the disk gives nothing.
    #[error("{}: {source}", path.display())]
    Unit {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: OpenError,
    },
}

fn propose(instead: &[PathBuf]) -> String {
    let shown: Vec<_> = instead
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    match &shown[..] {
        [] => "name the directory of a log unit: `unit` in a server's data".to_owned(),
        [one] => format!("name {one}"),
        many => format!("name one of {}", many.join(", ")),
    }
}

impl UnitDirectory {
    /// The log unit's directory at `path`.
    ///
    /// # Errors
    /// [`LookError`] says what is there instead, and which directory may have been meant.
    pub fn at(path: &Path) -> Result<Self, LookError> {
        let no_unit = |what: &str, instead: Vec<PathBuf>| LookError::NoUnit {
            path: path.to_owned(),
            what: what.to_owned(),
            instead,
        };
        let meta = match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let path = path.to_owned();
                return Err(LookError::Absent { path });
            }
            other => other.map_err(DirectoryError::io(path, "looking at it"))?,
        };
        if !meta.is_dir() {
            let parent = path.parent().filter(|parent| is_unit(parent));
            let parent = parent.map(Path::to_owned).into_iter().collect();
            return Err(no_unit("is a file, not a directory", parent));
        }
        let entries = std::fs::read_dir(path).map_err(DirectoryError::io(path, "listing it"))?;
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        if is_unit(path) {
            let path = path.to_owned();
            return Ok(Self { path });
        }
        let inside = path.join(UNIT_DIRECTORY);
        if is_unit(&inside) {
            return Err(no_unit(
                "is a server's data, or an embedded log",
                vec![inside],
            ));
        }
        if layout::exists(path) {
            return Err(no_unit(
                "holds a layout's history, and no log unit",
                Vec::new(),
            ));
        }
        let servers = names
            .iter()
            .map(|name| path.join(name).join(UNIT_DIRECTORY));
        let mut servers: Vec<_> = servers.filter(|unit| is_unit(unit)).collect();
        servers.sort();
        servers.truncate(PROPOSED);
        let what = match (servers.is_empty(), names.is_empty()) {
            (false, _) => "holds the data of servers",
            (true, true) => "is empty",
            (true, false) => "holds no log unit",
        };
        Err(no_unit(what, servers))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Id of the process that uses it now, as it wrote itself into the lock file, if any does. The lock lies beside
    /// the directory, in the server's data.
    ///
    /// # Errors
    /// [`DirectoryError`] if a lock file is there and cannot be read.
    pub fn user(&self) -> Result<Option<String>, DirectoryError> {
        let whole = std::fs::canonicalize(&self.path)
            .map_err(DirectoryError::io(&self.path, "looking at it"))?;
        if let Some(user) = DirectoryLock::user(&whole)? {
            return Ok(Some(user));
        }
        whole.parent().map_or(Ok(None), DirectoryLock::user)
    }

    /// Reads all of it. `progress` is told how many bytes of how many are read.
    ///
    /// # Errors
    /// [`LookError::Unit`]; damage is no error.
    pub fn inspect(&self, mut progress: impl FnMut(u64, u64)) -> Result<UnitReport, LookError> {
        let (mut inspection, mut op) = Inspection::start();
        let mut files = ReadOnly {
            directory: &self.path,
            open: BTreeMap::new(),
        };
        loop {
            let step = inspection.done(files.run(&op));
            let (done, all) = inspection.progress();
            progress(done, all);
            match step {
                InspectionStep::Do(next) => op = next,
                InspectionStep::Ready(report) => return Ok(*report),
                InspectionStep::Failed(source) => {
                    let path = self.path.clone();
                    return Err(LookError::Unit { path, source });
                }
            }
        }
    }
}

fn is_unit(directory: &Path) -> bool {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files = names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        OF_UNITS.contains(&name.as_ref())
            || (name.starts_with("segment-") && name.ends_with(".log"))
    })
}

/// The files of a directory, one of which is open at a time.
struct ReadOnly<'a> {
    directory: &'a Path,
    open: BTreeMap<String, File>,
}

impl ReadOnly<'_> {
    fn run(&mut self, op: &DiskOp) -> Result<DiskDone, DiskError> {
        let done = match op {
            DiskOp::List => self.list().map(DiskDone::Files),
            DiskOp::ReadAt { name, offset, len } => self.read(name, *offset, *len),
            other => {
                return Err(DiskError::Io(format!(
                    "only looked at, not to be changed: {other:?}"
                )));
            }
        };
        done.map_err(|error| match error.kind() {
            ErrorKind::OutOfMemory => DiskError::Busy(error.to_string()),
            _ => DiskError::Io(error.to_string()),
        })
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(self.directory)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if meta.is_file() && name != LOCK_FILE {
                files.push((name, meta.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn read(&mut self, name: &str, offset: u64, len: u64) -> io::Result<DiskDone> {
        if !self.open.contains_key(name) {
            let file = File::open(self.directory.join(name))?;
            self.open = BTreeMap::from([(name.to_owned(), file)]);
        }
        let file = self.open.get(name).ok_or(ErrorKind::NotFound)?;
        let there = file.metadata()?.len().saturating_sub(offset).min(len);
        let there = usize::try_from(there).map_err(|_| ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; there];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(DiskDone::Read(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        UnitDirectory::at(path).expect_err("no unit").to_string()
    }

    #[test]
    fn what_is_no_unit_is_named_and_the_right_one_proposed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(refused(&path("none")).contains("does not exist"));
        assert!(refused(dir.path()).contains("is empty"));
        std::fs::create_dir_all(path("unit-1a/unit")).unwrap();
        assert!(refused(dir.path()).contains("holds no log unit"));
        std::fs::write(path("unit-1a/unit/state"), "").unwrap();
        std::fs::write(path("unit-1a/layout.redb"), "").unwrap();
        let inside = path("unit-1a/unit").display().to_string();
        for (path, what) in [
            (dir.path().to_owned(), "data of servers"),
            (path("unit-1a"), "a server's data"),
            (path("unit-1a/unit/state"), "is a file"),
        ] {
            let text = refused(&path);
            assert!(
                text.contains(what) && text.contains(&format!("name {inside}")),
                "{text}"
            );
        }
        std::fs::create_dir_all(path("sequencer-1")).unwrap();
        std::fs::write(path("sequencer-1/layout.redb"), "").unwrap();
        assert!(refused(&path("sequencer-1")).contains("a layout's history"));
        assert!(UnitDirectory::at(&path("unit-1a/unit")).is_ok());
    }

    #[test]
    fn who_uses_it_is_seen_beside_it_and_looking_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("unit");
        std::fs::create_dir(&unit).unwrap();
        std::fs::write(unit.join("state"), "").unwrap();
        let looked_at = UnitDirectory::at(&unit).unwrap();
        assert_eq!(looked_at.user().unwrap(), None);
        assert!(!dir.path().join(LOCK_FILE).exists());
        let lock = DirectoryLock::take(dir.path()).unwrap();
        let me = std::process::id().to_string();
        assert_eq!(looked_at.user().unwrap(), Some(me));
        drop(lock);
        assert_eq!(looked_at.user().unwrap(), None);
    }
}
