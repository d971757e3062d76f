//! Where a member keeps the history: one file, and a thread for what blocks on it.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use milonga_layout::{LayoutStore, Member, MemberId, RaftDisk, RaftJob, RaftStore};

use crate::error::NodeError;
use crate::lock::DirectoryError;
use crate::machine::OpenLayout;

/// In the data directory: the history of layouts, as a member of the layout keeps it.
const HISTORY_FILE: &str = "layout-raft.redb";
/// The history of a lone layout before it was kept on raft. It is taken over, and then set aside under the next name, so that
/// a build that knows no better finds no history at all, instead of one that is out of date.
const OLD_FILE: &str = "layout.redb";
const OLD_FILE_ASIDE: &str = "layout.redb.adopted";
/// An empty file of this name in the data directory of a member of several says that its layout is new. It is removed as
/// soon as the member has made its part of it, so a disk that was lost does not look like a new one.
pub const NEW_LAYOUT: &str = "NEW-LAYOUT";

/// Whether a data directory holds a history.
pub(crate) fn exists(directory: &Path) -> bool {
    [HISTORY_FILE, OLD_FILE]
        .iter()
        .any(|file| directory.join(file).exists())
}

/// Opens the history of member `id` in `directory`; `alone`: it has no other members. Blocks for as long as the disk takes.
pub(crate) fn open(
    directory: &Path,
    id: MemberId,
    member: &Member,
    alone: bool,
) -> Result<OpenLayout, NodeError> {
    let old = directory.join(OLD_FILE);
    if !alone && old.exists() {
        return Err(NodeError::Layout {
            why: format!(
                "{} is the history of a layout with one member, and several are configured; members cannot be added yet: name this process alone under layout_servers, everywhere",
                old.display()
            ),
        });
    }
    let store = RaftStore::open(directory.join(HISTORY_FILE))?;
    if old.exists() {
        adopt(directory, &store, id, member)?;
    }
    let (jobs, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("milonga-layout".to_owned())
        .spawn(move || work(&receiver))
        .map_err(DirectoryError::io(
            directory,
            "starting the layout's thread",
        ))?;
    let guard = Guard {
        jobs: jobs.clone(),
        thread: Some(thread),
        store: store.clone(),
    };
    Ok(OpenLayout {
        store: store.on(std::sync::Arc::new(Jobs(jobs))),
        is_new: directory.join(NEW_LAYOUT).exists(),
        guard: Box::new(guard),
    })
}

/// Takes over a history that was kept without raft. Repeatable at each step.
fn adopt(
    directory: &Path,
    store: &RaftStore,
    id: MemberId,
    member: &Member,
) -> Result<(), NodeError> {
    let old = directory.join(OLD_FILE);
    let (before, history) = LayoutStore::open(&old)?;
    drop(before);
    if store.adopt(id, member.clone(), &history)? {
        tracing::info!(epoch = %history.epoch(), "the layout's history is kept on raft from now on");
    }
    std::fs::rename(&old, directory.join(OLD_FILE_ASIDE))
        .and_then(|()| sync(directory))
        .map_err(DirectoryError::io(&old, "setting the old history aside"))?;
    Ok(())
}

/// The layout is made: a member of it that finds its disk empty from now on has lost it.
pub(crate) fn remove_mark(directory: &Path) -> Result<(), NodeError> {
    let mark = directory.join(NEW_LAYOUT);
    match std::fs::remove_file(&mark) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync(directory)),
    }
    .map_err(DirectoryError::io(
        &mark,
        "removing the mark of a new layout",
    ))?;
    Ok(())
}

fn sync(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The way to the thread. `None`: stop.
struct Jobs(mpsc::Sender<Option<RaftJob>>);

impl RaftDisk for Jobs {
    fn run(&self, job: RaftJob) {
        // A thread that is gone belongs to a node that is being stopped.
        let _ = self.0.send(Some(job));
    }
}

fn work(jobs: &mpsc::Receiver<Option<RaftJob>>) {
    while let Ok(Some(job)) = jobs.recv() {
        job();
    }
}

/// Dropping it finishes what is under way, and returns when the file is closed.
struct Guard {
    jobs: mpsc::Sender<Option<RaftJob>>,
    thread: Option<JoinHandle<()>>,
    store: RaftStore,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.jobs.send(None);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the layout's store panicked");
        }
        self.store.close();
    }
}

#[cfg(test)]
mod tests {
    use milonga_layout::StoreChange;
    use milonga_protocol::Epoch;

    use super::*;

    fn member() -> Member {
        Member {
            name: "layout-1".into(),
            address: "127.0.0.1:1".into(),
        }
    }

    #[test]
    fn an_old_history_is_taken_over_once_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join(OLD_FILE);
        let (mut store, _) = LayoutStore::open(&old).unwrap();
        store
            .apply(&StoreChange::Intent { epoch: Epoch(1) })
            .unwrap();
        drop(store);
        // Not by several members.
        let refused = open(dir.path(), MemberId(1), &member(), false)
            .err()
            .unwrap();
        assert!(refused.to_string().contains("alone"), "{refused}");
        drop(open(dir.path(), MemberId(1), &member(), true).unwrap());
        assert!(!old.exists() && exists(dir.path()));
        assert!(dir.path().join(OLD_FILE_ASIDE).exists());
        // Closed, though it was never asked to: it can be opened again.
        drop(open(dir.path(), MemberId(1), &member(), true).unwrap());
    }

    #[test]
    fn the_mark_of_a_new_layout_is_seen_and_removed_once() {
        let dir = tempfile::tempdir().unwrap();
        let is_new = || {
            open(dir.path(), MemberId(1), &member(), false)
                .unwrap()
                .is_new
        };
        assert!(!is_new());
        std::fs::write(dir.path().join(NEW_LAYOUT), "").unwrap();
        assert!(is_new());
        remove_mark(dir.path()).unwrap();
        remove_mark(dir.path()).unwrap();
        assert!(!is_new());
    }
}
