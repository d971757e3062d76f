//! Finds the control file and makes it readable from any place, as often as one likes.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::Failure;
use crate::control::{Place, Reader};
use crate::say;

const DEFAULT: &str = "/var/lib/dpkg/status";

/// A control file on disk.
#[derive(Debug)]
pub(crate) struct Input {
    /// What to call it.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Keeps the copy of what can be read only once.
    _copy: Option<NamedTempFile>,
}

/// What a first look at the input finds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Well-formed stanzas.
    pub(crate) stanzas: u64,
    /// The others.
    pub(crate) malformed: u64,
    /// Tells one input from another.
    pub(crate) fingerprint: u64,
}

impl Input {
    /// Finds `file`: dpkg's status file by default. Pipes and standard input are copied to a temporary file.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be read.
    pub(crate) fn find(file: Option<&Path>) -> Result<Self, Failure> {
        let default = Path::new(DEFAULT);
        if file.is_none() && !default.exists() {
            let why = format!("there is no {DEFAULT} here; pass a Debian control file as FILE");
            return Err(Failure::NotFound(why));
        }
        let path = file.unwrap_or(default);
        if path == Path::new("-") {
            return Self::copied("standard input", &mut io::stdin().lock());
        }
        let name = path.display().to_string();
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::NotFound(format!("there is no {name}; pass another FILE"))
            }
            _ => Failure::Failed(format!("cannot read {name}: {error}")),
        };
        let mut file = File::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if kind.is_dir() {
            return Err(Failure::Failed(format!(
                "{name} is a directory; pass a Debian control file"
            )));
        }
        if !kind.is_file() {
            return Self::copied(&name, &mut file);
        }
        let path = path.to_owned();
        Ok(Self {
            name,
            path,
            _copy: None,
        })
    }

    fn copied(name: &str, from: &mut impl Read) -> Result<Self, Failure> {
        let mut copy = || -> io::Result<NamedTempFile> {
            let mut copy = NamedTempFile::new()?;
            io::copy(from, &mut copy)?;
            Ok(copy)
        };
        let copy =
            copy().map_err(|error| Failure::Failed(format!("cannot copy {name}: {error}")))?;
        Ok(Self {
            name: name.to_owned(),
            path: copy.path().to_owned(),
            _copy: Some(copy),
        })
    }

    /// Opens it at its beginning.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn open(&self) -> io::Result<BufReader<File>> {
        Ok(BufReader::new(File::open(&self.path)?))
    }

    /// Reads all of it once and tells what is malformed.
    ///
    /// # Errors
    /// If it cannot be read, or holds no stanza.
    pub(crate) fn check(&self) -> Result<Checked, Failure> {
        let failed =
            |error: io::Error| Failure::Failed(format!("cannot read {}: {error}", self.name));
        let mut checked = Checked {
            fingerprint: self.fingerprint().map_err(failed)?,
            ..Checked::default()
        };
        let mut reader = Reader::new(self.open().map_err(failed)?);
        while let Some(stanza) = reader.next_stanza().map_err(failed)? {
            match stanza {
                Ok(_) => checked.stanzas += 1,
                Err(malformed) => {
                    checked.malformed += 1;
                    say::note(format_args!(
                        "{}:{}: {}",
                        self.name, malformed.line, malformed.why
                    ));
                }
            }
        }
        if checked.stanzas == 0 {
            return Err(Failure::Failed(format!(
                "{} holds no stanza; pass a Debian control file",
                self.name
            )));
        }
        Ok(checked)
    }

    /// FNV-1a of the content.
    fn fingerprint(&self) -> io::Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut buffer = vec![0; 1 << 16];
        let mut file = File::open(&self.path)?;
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(hash);
            }
            for byte in &buffer[..n] {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
}

/// Reads the stanzas of the file at `path` from `place` on.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn resume(path: &Path, place: Place) -> io::Result<Reader<BufReader<File>>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(place.offset))?;
    Ok(Reader::resume(BufReader::new(file), place))
}
