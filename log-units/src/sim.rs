//! A simulated disk: pure, seeded, with the faults that disks have.
//!
//! It keeps for each file what is on stable storage and what the system would show. Operations queue; each
//! [`SimDisk::step`] carries one out, in any order that the contract of [`Disk`] allows. A clone at any moment can
//! [`crash`](SimDisk::crash): unsynced writes, and those still queued, are then lost, torn at sectors, or there.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use crate::disk::{Disk, DiskDone, DiskError, DiskOp, FileName, OpId};
use crate::files::mix;
use crate::format::size;

/// Unit of tearing.
const SECTOR: u64 = 512;

/// A completed operation.
pub type Completion = (OpId, Result<DiskDone, DiskError>);

/// The disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    files: BTreeMap<FileName, File>,
    capacity: u64,
    queue: VecDeque<(OpId, DiskOp)>,
    completions: VecDeque<Completion>,
    random: u64,
    fail_write: Option<u64>,
    fail_sync: Option<u64>,
    fail_reads: Option<(FileName, Range<u64>, DiskError)>,
    misdirect: Option<(u64, u64)>,
    dead: bool,
    writes: u64,
    syncs: u64,
    trace: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct File {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Writes that are in `current` only, oldest first.
    unsynced: Vec<(u64, Bytes)>,
}

impl SimDisk {
    /// An empty disk of 1 GiB.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            files: BTreeMap::new(),
            capacity: 1 << 30,
            queue: VecDeque::new(),
            completions: VecDeque::new(),
            random: mix(seed),
            fail_write: None,
            fail_sync: None,
            fail_reads: None,
            misdirect: None,
            dead: false,
            writes: 0,
            syncs: 0,
            trace: Some(Vec::new()),
        }
    }

    /// A disk with these files, all durable.
    #[must_use]
    pub fn with_files(seed: u64, files: impl IntoIterator<Item = (FileName, Vec<u8>)>) -> Self {
        let mut disk = Self::new(seed);
        for (name, bytes) in files {
            disk.files.insert(name, File::durable(bytes));
        }
        disk
    }

    fn random(&mut self) -> u64 {
        self.random = mix(self.random);
        self.random
    }

    /// Whether operations wait to be carried out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.completions.is_empty()
    }

    /// Carries out one queued operation, drawn from those that may be next. Whether there was one.
    pub fn step(&mut self) -> bool {
        let eligible: Vec<usize> = (0..self.queue.len())
            .filter(|at| self.may_be_next(*at))
            .collect();
        if eligible.is_empty() {
            return false;
        }
        let drawn = self.random() % eligible.len() as u64;
        (eligible.get(size(drawn))).is_some_and(|at| self.finish_at(*at))
    }

    /// Carries out the operation `id`, unless others have to come first. Whether it was done.
    pub fn finish(&mut self, id: OpId) -> bool {
        let at = self.queue.iter().position(|(queued, _)| *queued == id);
        at.is_some_and(|at| self.may_be_next(at) && self.finish_at(at))
    }

    fn finish_at(&mut self, at: usize) -> bool {
        let Some((id, op)) = self.queue.remove(at) else {
            return false;
        };
        let result = self.carry_out(&op);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} -> {}", describe(&op), outcome(&result)));
        }
        self.completions.push_back((id, result));
        true
    }

    /// Results since the last call, in the order they happened.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        self.completions.drain(..).collect()
    }

    /// What was carried out so far, one line each.
    #[must_use]
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Keeps no trace any more: for long runs, and for hosts that have one of their own.
    #[must_use]
    pub fn without_trace(mut self) -> Self {
        self.trace = None;
        self
    }

    /// The files as the system would show them.
    #[must_use]
    pub fn files(&self) -> Vec<(FileName, Vec<u8>)> {
        let shown = |(name, file): (&FileName, &File)| (name.clone(), file.current.clone());
        self.files.iter().map(shown).collect()
    }

    /// Lets the `n`-th write from now (0: the next) fail. It may leave traces.
    pub fn fail_write(&mut self, n: u64) {
        self.fail_write = Some(self.writes + n);
    }

    /// Lets the `n`-th sync from now (0: the next) fail. What it was to make durable never will be, though it is shown.
    pub fn fail_sync(&mut self, n: u64) {
        self.fail_sync = Some(self.syncs + n);
    }

    /// Lets the `n`-th write from now (0: the next) end up `by` bytes further on in its file (as far as that goes),
    /// and reports success: what was to be written is not there, and what lay there is gone.
    pub fn misdirect_write(&mut self, n: u64, by: u64) {
        self.misdirect = Some((self.writes + n, by));
    }

    /// From now on every operation fails and changes nothing, until the process ends: the power of the disk is gone first.
    pub const fn die(&mut self) {
        self.dead = true;
    }

    /// Takes back the faults that were set and have not struck.
    pub fn heal(&mut self) {
        self.fail_write = None;
        self.fail_sync = None;
        self.fail_reads = None;
        self.misdirect = None;
    }

    /// Lets all reads of a file fail that touch these bytes, in this way, until [`Self::heal`].
    pub fn fail_reads(&mut self, name: &str, bytes: Range<u64>, how: DiskError) {
        self.fail_reads = Some((name.to_owned(), bytes, how));
    }

    /// Sets the free space, now.
    pub fn set_free(&mut self, bytes: u64) {
        self.capacity = self.used() + bytes;
    }

    /// Inverts one bit of a file, on stable storage. Whether there is such a bit.
    pub fn flip_bit(&mut self, name: &str, bit: u64) -> bool {
        let Some(file) = self.files.get_mut(name) else {
            return false;
        };
        for bytes in [&mut file.durable, &mut file.current] {
            let Some(byte) = bytes.get_mut(size(bit / 8)) else {
                return false;
            };
            *byte ^= 1 << (bit % 8);
        }
        true
    }

    /// Replaces bytes of a file, on stable storage.
    pub fn overwrite(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        if let Some(file) = self.files.get_mut(name) {
            put(&mut file.durable, offset, bytes);
            put(&mut file.current, offset, bytes);
        }
    }

    /// Removes a file behind the unit's back.
    pub fn lose_file(&mut self, name: &str) -> bool {
        self.files.remove(name).is_some()
    }

    /// Shortens a file behind the unit's back.
    pub fn truncate(&mut self, name: &str, len: u64) {
        if let Some(file) = self.files.get_mut(name) {
            file.durable.truncate(size(len));
            file.current.truncate(size(len));
        }
    }

    /// The disk after a loss of power now. Faults that were set are gone.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut after = Self::new(seed);
        after.trace = self.trace.as_ref().map(|_| Vec::new());
        after.capacity = self.capacity;
        // All, nothing, or a part of what was not synced.
        let luck = after.random() % 4;
        for (name, file) in &self.files {
            let mut bytes = file.durable.clone();
            for (offset, data) in &file.unsynced {
                after.tear(&mut bytes, *offset, data, luck);
            }
            after.files.insert(name.clone(), File::durable(bytes));
        }
        let mut stuck: Vec<FileName> = Vec::new();
        for (_, op) in &self.queue {
            let names = names(op);
            // What is done to one file is done in order.
            if names.iter().any(|n| stuck.contains(n)) || after.random().is_multiple_of(2) {
                stuck.extend(names);
                continue;
            }
            after.crash_during(op, luck);
            if after.random().is_multiple_of(2) {
                stuck.extend(names);
            }
        }
        after
    }

    /// The disk after the process was killed now: what was written is shown, synced or not, and some of what was
    /// queued was written, too.
    #[must_use]
    pub fn kill(&self, seed: u64) -> Self {
        let mut after = Self::new(seed);
        after.trace = self.trace.as_ref().map(|_| Vec::new());
        after.capacity = self.capacity;
        after.files = self.files.clone();
        let mut stuck: Vec<FileName> = Vec::new();
        for (_, op) in &self.queue {
            let names = names(op);
            if names.iter().any(|n| stuck.contains(n)) || after.random().is_multiple_of(2) {
                stuck.extend(names);
                continue;
            }
            let op = match op.clone() {
                DiskOp::WriteAt {
                    name, offset, data, ..
                } => DiskOp::WriteAt {
                    name,
                    offset,
                    data,
                    sync: false,
                },
                other => other,
            };
            let _ = after.carry_out(&op);
        }
        after
    }

    fn crash_during(&mut self, op: &DiskOp, luck: u64) {
        match op {
            DiskOp::Create { name, size: len } => {
                let len = match luck {
                    0 => 0,
                    1 => *len,
                    _ => self.random() % (len + 1),
                };
                let file = File::durable(vec![0; size(len)]);
                self.files.insert(name.clone(), file);
            }
            DiskOp::WriteAt {
                name, offset, data, ..
            } => {
                if let Some(mut file) = self.files.remove(name) {
                    self.tear(&mut file.durable, *offset, &data.concat(), luck);
                    self.files.insert(name.clone(), File::durable(file.durable));
                }
            }
            DiskOp::Rename { .. } | DiskOp::Remove { .. } => {
                let _ = self.carry_out(op);
            }
            DiskOp::Sync { .. } | DiskOp::ReadAt { .. } | DiskOp::List | DiskOp::Space => {}
        }
    }

    /// Puts some sectors of a write into `bytes`.
    fn tear(&mut self, bytes: &mut Vec<u8>, offset: u64, data: &[u8], luck: u64) {
        let mut at = offset;
        let end = offset + data.len() as u64;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            let there = match luck {
                0 => false,
                1 => true,
                _ => self.random().is_multiple_of(2),
            };
            if there {
                put(bytes, at, &data[size(at - offset)..size(next - offset)]);
            }
            at = next;
        }
    }

    fn may_be_next(&self, at: usize) -> bool {
        let Some((_, op)) = self.queue.get(at) else {
            return false;
        };
        let touched = names(op);
        let before = self.queue.iter().take(at);
        !before
            .map(|(_, op)| names(op))
            .any(|n| n.iter().any(|n| touched.contains(n)))
    }

    fn used(&self) -> u64 {
        self.files.values().map(|f| f.current.len() as u64).sum()
    }

    fn carry_out(&mut self, op: &DiskOp) -> Result<DiskDone, DiskError> {
        if self.dead {
            return Err(DiskError::Io("simulated death of the disk".to_owned()));
        }
        match op {
            DiskOp::Create { name, size: len } => {
                let old = self.files.get(name).map_or(0, |f| f.current.len() as u64);
                if self.used() - old + len > self.capacity {
                    return Err(DiskError::Full);
                }
                self.files
                    .insert(name.clone(), File::durable(vec![0; size(*len)]));
            }
            DiskOp::WriteAt {
                name,
                offset,
                data,
                sync,
            } => {
                self.write(name, *offset, &data.concat())?;
                if *sync {
                    self.sync(name)?;
                }
            }
            DiskOp::ReadAt { name, offset, len } => return self.read(name, *offset, *len),
            DiskOp::Sync { name } => self.sync(name)?,
            DiskOp::Rename { from, to } => {
                let file = self.files.remove(from);
                let file = file.ok_or_else(|| DiskError::NotFound(from.clone()))?;
                self.files.insert(to.clone(), file);
            }
            DiskOp::Remove { name } => {
                let file = self.files.remove(name);
                file.ok_or_else(|| DiskError::NotFound(name.clone()))?;
            }
            DiskOp::List => {
                let list =
                    |(name, file): (&FileName, &File)| (name.clone(), file.current.len() as u64);
                return Ok(DiskDone::Files(self.files.iter().map(list).collect()));
            }
            DiskOp::Space => {
                return Ok(DiskDone::Space(self.capacity.saturating_sub(self.used())));
            }
        }
        Ok(DiskDone::Done)
    }

    fn write(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let nth = self.writes;
        self.writes += 1;
        let used = self.used();
        let Some(mut file) = self.files.remove(name) else {
            return Err(DiskError::NotFound(name.to_owned()));
        };
        let room = (file.current.len() as u64).saturating_sub(offset + data.len() as u64);
        let offset = match self.misdirect {
            Some((which, by)) if which == nth => offset + by.min(room),
            _ => offset,
        };
        let end = offset + data.len() as u64;
        let grows = end.saturating_sub(file.current.len() as u64);
        let result = if self.fail_write == Some(nth) {
            let luck = self.random() % 4;
            self.tear(&mut file.current, offset, data, luck);
            self.tear(&mut file.durable, offset, data, luck);
            Err(DiskError::Io("simulated failure of a write".to_owned()))
        } else if used + grows > self.capacity && grows > 0 {
            Err(DiskError::Full)
        } else {
            put(&mut file.current, offset, data);
            file.unsynced.push((offset, Bytes::copy_from_slice(data)));
            Ok(())
        };
        self.files.insert(name.to_owned(), file);
        result
    }

    fn sync(&mut self, name: &str) -> Result<(), DiskError> {
        let nth = self.syncs;
        self.syncs += 1;
        let failed = self.fail_sync == Some(nth);
        let luck = self.random() % 4;
        let Some(mut file) = self.files.remove(name) else {
            return Err(DiskError::NotFound(name.to_owned()));
        };
        for (offset, data) in std::mem::take(&mut file.unsynced) {
            let luck = if failed { luck } else { 1 };
            self.tear(&mut file.durable, offset, &data, luck);
        }
        self.files.insert(name.to_owned(), file);
        if failed {
            return Err(DiskError::Io("simulated failure of a sync".to_owned()));
        }
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, len: u64) -> Result<DiskDone, DiskError> {
        if let Some((bad, bytes, how)) = &self.fail_reads
            && bad == name
            && offset < bytes.end
            && bytes.start < offset.saturating_add(len)
        {
            return Err(how.clone());
        }
        let file = self.files.get(name);
        let file = file.ok_or_else(|| DiskError::NotFound(name.to_owned()))?;
        let from = size(offset).min(file.current.len());
        let to = size(offset.saturating_add(len)).min(file.current.len());
        Ok(DiskDone::Read(Bytes::copy_from_slice(
            &file.current[from..to],
        )))
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, id: OpId, op: DiskOp) {
        self.queue.push_back((id, op));
    }
}

impl File {
    fn durable(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes.clone(),
            current: bytes,
            unsynced: Vec::new(),
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let end = size(offset) + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[size(offset)..end].copy_from_slice(data);
}

/// The names whose operations keep their order. Reads keep none.
fn names(op: &DiskOp) -> Vec<FileName> {
    match op {
        DiskOp::Create { name, .. }
        | DiskOp::WriteAt { name, .. }
        | DiskOp::Sync { name }
        | DiskOp::Remove { name } => vec![name.clone()],
        DiskOp::Rename { from, to } => vec![from.clone(), to.clone()],
        DiskOp::ReadAt { .. } | DiskOp::List | DiskOp::Space => Vec::new(),
    }
}

fn describe(op: &DiskOp) -> String {
    match op {
        DiskOp::WriteAt {
            name,
            offset,
            data,
            sync,
        } => {
            let sum = |crc, part: &Bytes| crc32c::crc32c_append(crc, part);
            let crc = data.iter().fold(0, sum);
            let len: usize = data.iter().map(Bytes::len).sum();
            format!("write {name} at {offset}: {len} bytes, {crc:08x}, sync {sync}")
        }
        other => format!("{other:?}"),
    }
}

fn outcome(result: &Result<DiskDone, DiskError>) -> String {
    match result {
        Ok(DiskDone::Done) => "done".to_owned(),
        Ok(DiskDone::Read(bytes)) => {
            format!("{} bytes, {:08x}", bytes.len(), crc32c::crc32c(bytes))
        }
        Ok(DiskDone::Files(files)) => format!("{} files", files.len()),
        Ok(DiskDone::Space(free)) => format!("{free} free"),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misdirected_write_reports_success_and_lands_elsewhere() {
        let mut disk = SimDisk::with_files(1, [("f".to_owned(), vec![0; 8])]).without_trace();
        disk.misdirect_write(1, 100);
        for (n, text) in ["ab", "cd", "ef"].into_iter().enumerate() {
            let op = DiskOp::WriteAt {
                name: "f".into(),
                offset: 2,
                data: vec![Bytes::from_static(text.as_bytes())],
                sync: true,
            };
            disk.submit(OpId(n as u64), op);
            assert!(disk.step());
            assert_eq!(
                disk.take_completions(),
                [(OpId(n as u64), Ok(DiskDone::Done))]
            );
        }
        assert_eq!(disk.files()[0].1, b"\0\0ef\0\0cd");
        assert!(disk.trace().is_empty());
    }
}
