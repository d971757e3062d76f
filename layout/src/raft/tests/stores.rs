//! Files that are something else, of another version, another member's, or damaged.

use std::path::Path;

use redb::{Database, TableDefinition};

use super::super::header::Header;
use super::super::records::decode_history;
use super::messages::of_version_1;
use super::net::Nowhere;
use super::*;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("milonga_layout_raft");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("raft_log");

fn refused(path: &Path) -> String {
    RaftStore::open(path).expect_err("refused").to_string()
}

async fn start(path: &Path, env: &SharedEnv, id: u64) -> Result<Replica, StartError> {
    let store = RaftStore::open(path).unwrap();
    let config = RaftConfig {
        snapshot_every: 4,
        keep: 1,
        ..RaftConfig::default()
    };
    let members = [(MemberId(id), Member::default())].into();
    Replica::start(
        MemberId(id),
        members,
        store,
        Arc::new(Nowhere),
        env,
        &config,
    )
    .await
}

/// A file of member 1 that has made `epochs` epochs and begun the next.
fn written(path: &Path, epochs: u64) {
    on_virtual_time(1, async |env| {
        let replica = start(path, &env, 1).await.unwrap();
        replica.initialize().await.unwrap();
        replica.propose(intent(1)).await.unwrap().unwrap();
        for epoch in 1..=epochs {
            let next = commit(&replica.history(), epoch - 1);
            replica.propose(next).await.unwrap().unwrap();
            replica.propose(intent(epoch + 1)).await.unwrap().unwrap();
        }
        replica.shutdown().await;
    });
}

#[test]
fn what_was_proposed_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raft.redb");
    written(&path, 5);
    on_virtual_time(2, async |env| {
        let replica = start(&path, &env, 1).await.unwrap();
        assert_eq!(replica.history().epoch(), Epoch(5));
        assert!(refused(&path).contains("in use by another process"));
        replica.shutdown().await;
        // Closed by then, though the replica is still there.
        RaftStore::open(&path).unwrap();
        drop(replica);
    });
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("something");
    std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
    assert!(refused(&path).contains("is not a layout history"));
    assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; 10_000]);

    let path = directory.path().join("layout.redb");
    drop(crate::LayoutStore::open(&path).unwrap());
    assert!(refused(&path).contains("another redb file"));

    let missing = directory.path().join("missing").join("raft.redb");
    assert!(refused(&missing).contains("check the disk"));
}

#[test]
fn a_store_belongs_to_one_member() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raft.redb");
    written(&path, 1);
    on_virtual_time(1, async |env| {
        let words = start(&path, &env, 2).await.unwrap_err().to_string();
        assert!(
            words.contains("member 1, this process is member 2"),
            "{words}"
        );
    });
}

#[test]
fn a_lone_layout_goes_on_with_raft() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raft.redb");
    let mut history = History::default();
    for epoch in 1..=3 {
        history.apply(&intent(epoch)).unwrap();
        let next = commit(&history, epoch - 1);
        history.apply(&next).unwrap();
    }
    let adopt = |history: &History| {
        let store = RaftStore::open(&path).unwrap();
        store.adopt(MemberId(1), Member::default(), history)
    };
    assert!(adopt(&history).unwrap());
    for epoch in 4..=15 {
        on_virtual_time(epoch, async |env| {
            let replica = start(&path, &env, 1).await.unwrap();
            assert_eq!(*replica.history(), history);
            replica.initialize().await.unwrap();
            let next = commit(&history, epoch);
            for change in [intent(epoch), next] {
                assert_eq!(replica.propose(change.clone()).await, Ok(Ok(())));
                history.apply(&change).unwrap();
            }
            replica.shutdown().await;
        });
        // What is older is not taken again.
        assert!(!adopt(&History::default()).unwrap());
    }
}

fn tamper(path: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let db = Database::open(path).unwrap();
    let write = db.begin_write().unwrap();
    change(&write);
    write.commit().unwrap();
}

fn put(path: &Path, key: &str, value: &[u8]) {
    tamper(path, |write| {
        write.open_table(META).unwrap().insert(key, value).unwrap();
    });
}

#[test]
fn another_version_or_a_damaged_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let new = |epochs| {
        let path = directory.path().join("raft.redb");
        let _ = std::fs::remove_file(&path);
        written(&path, epochs);
        path
    };
    for (key, value, words) in [
        ("header", &b"MLGR\x09\x00and more"[..], "has version 9"),
        ("header", b"nothing", "another magic"),
        ("header", b"MLGR\x01", "its header is cut"),
        ("header", b"MLGR\x01\x00\x01\x05", "its header is malformed"),
        ("vote", b"\x01", "a vote is cut"),
        (
            "vote",
            b"\x07\x00\x01\x01\x01",
            "a vote of unknown version 7",
        ),
        ("committed", b"\x01\x00\x05", "committed"),
        (
            "committed",
            b"\x01\x00\x09\x01\x60",
            "ends before what was committed",
        ),
        ("history", b"\x01\x00\x05", "snapshot"),
    ] {
        let path = new(5);
        put(&path, key, value);
        let refused = refused(&path);
        assert!(refused.contains(words), "{key}: {refused}");
    }
    for (index, words) in [
        (0, "the first entry"),
        (1, "an entry of its log is missing"),
        (2, "ends before what was committed"),
    ] {
        // Too short for a snapshot: a membership, a blank entry, an intent.
        let path = new(0);
        tamper(&path, |write| {
            let mut log = write.open_table(LOG).unwrap();
            log.remove(index).unwrap().expect("an entry");
        });
        let refused = refused(&path);
        assert!(refused.contains(words), "{index}: {refused}");
    }
    let path = new(1);
    tamper(&path, |write| {
        let mut log = write.open_table(LOG).unwrap();
        log.insert(1, &b"\x01\x00\xff"[..]).unwrap();
    });
    assert!(refused(&path).contains("log entry"));
}

#[test]
fn a_store_of_version_1_becomes_one_of_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("raft.redb");
    drop(RaftStore::open(&path).unwrap());
    for key in ["header", "vote", "snapshot", "history"] {
        put(&path, key, &of_version_1(key));
    }
    let store = RaftStore::open(&path).unwrap();
    let (_, history) = store.tables.snapshot().unwrap().expect("kept");
    let history = decode_history(&history).unwrap();
    let newest = history.report(Epoch::NONE).epochs.pop().expect("an epoch");
    assert_eq!((newest.epoch, newest.origin), (Epoch(1), None));
    // A build of before refuses the file from now on.
    let header = store.tables.header().unwrap().expect("kept").unwrap();
    let (version, member) = (RAFT_STORE_VERSION, Some(MemberId(2)));
    assert_eq!(header, Header { version, member });
}

/// A disk that breaks.
struct Gone;

impl RaftDisk for Gone {
    fn run(&self, job: RaftJob) {
        drop(job);
    }
}

#[test]
fn a_member_without_a_disk_does_not_start() {
    on_virtual_time(1, async |env| {
        let store = RaftStore::memory().on(Arc::new(Gone));
        let config = RaftConfig::default();
        let (id, members) = (MemberId(1), members(1));
        let started = Replica::start(id, members, store, Arc::new(Nowhere), &env, &config);
        let words = started.await.unwrap_err().to_string();
        assert!(words.contains("the disk is gone"), "{words}");
    });
}
