use super::*;
use crate::policy::Added;
use crate::samples;

fn commit(store: &mut LayoutStore, epoch: u64, start: u64) {
    let parent = store.history().epoch();
    let layout = samples::layout(epoch, start, &store.history());
    let epoch = layout.epoch;
    store.apply(&StoreChange::Intent { epoch }).unwrap();
    store
        .apply(&StoreChange::Commit {
            parent,
            layout,
            origin: None,
        })
        .unwrap();
}

fn refused(path: &Path) -> String {
    LayoutStore::open(path).expect_err("refused").to_string()
}

#[test]
fn what_was_applied_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout.redb");
    let (mut store, history) = LayoutStore::open(&path).unwrap();
    assert_eq!(history, History::default());
    drop(store);
    let mut memory = LayoutStore::memory();
    for epoch in 1..=20_u64 {
        store = LayoutStore::open(&path).unwrap().0;
        for store in [&mut store, &mut memory] {
            commit(store, epoch, epoch * 1_000 - 1_000);
            let epoch = Epoch(epoch);
            let units = vec![UnitId(1), UnitId(u128::from(epoch.0))];
            store.apply(&StoreChange::Opened { epoch, units }).unwrap();
            let mut policy = samples::policy();
            let (id, home) = (UnitId(u128::from(epoch.0) + 99), None);
            let name = format!("unit-{epoch}0").as_str().into();
            policy.added.insert(name, Added { id, home });
            store.apply(&StoreChange::Policy { policy }).unwrap();
        }
        assert_eq!(store.history(), memory.history());
        drop(store);
        assert_eq!(LayoutStore::open(&path).unwrap().1, memory.history());
    }
    store = LayoutStore::open(&path).unwrap().0;
    let intent = StoreChange::Intent { epoch: Epoch(21) };
    store.apply(&intent).unwrap();
    drop(store);
    let (mut store, history) = LayoutStore::open(&path).unwrap();
    assert_eq!(history.intent(), Some(Epoch(21)));
    // A refused change leaves no trace.
    let stale = StoreChange::Intent { epoch: Epoch(20) };
    assert!(matches!(store.apply(&stale), Err(StoreError::Refused(_))));
    drop(store);
    assert_eq!(LayoutStore::open(&path).unwrap().1, history);
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout.redb");
    let first = LayoutStore::open(&path).unwrap();
    assert!(refused(&path).contains("in use by another process"));
    drop(first);
    for _ in 0..20 {
        LayoutStore::open(&path).expect("released on drop");
    }
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("something");
    std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
    let words = refused(&path);
    assert!(words.contains("is not a layout history"), "{words}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![b'x'; 10_000]);

    let path = directory.path().join("other.redb");
    let other = TableDefinition::<u64, u64>::new("cooking recipes");
    let db = Database::create(&path).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(other).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
    drop(db);
    assert!(refused(&path).contains("another program's redb file"));

    let missing = directory.path().join("missing").join("layout.redb");
    assert!(refused(&missing).contains("check the disk"));
}

/// Overwrites a record.
fn tamper(path: &Path, key: &str, value: &[u8]) {
    let db = Database::open(path).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(META).unwrap().insert(key, value).unwrap();
    write.commit().unwrap();
}

#[test]
fn another_version_or_a_damaged_record_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout.redb");
    let (mut store, _) = LayoutStore::open(&path).unwrap();
    commit(&mut store, 1, 0);
    drop(store);
    tamper(&path, HEADER, b"MLGL\x09\x00and more");
    assert!(refused(&path).contains("version 9"));
    tamper(&path, HEADER, b"nothing");
    assert!(refused(&path).contains("another magic"));
    tamper(&path, HEADER, &Header::new(None).encode());
    assert!(refused(&path).contains("different clusters"));
    let whose = milonga_protocol::ClusterId(77);
    tamper(&path, HEADER, &Header::new(Some(whose)).encode());
    LayoutStore::open(&path).expect("as it was");
    tamper(&path, INTENT, b"\x01\x00");
    assert!(refused(&path).contains("intent is malformed"));
}

#[test]
fn starts_that_do_not_ascend_are_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout.redb");
    let (mut store, _) = LayoutStore::open(&path).unwrap();
    for (epoch, start) in [(1, 0), (2, 5), (3, 9)] {
        commit(&mut store, epoch, start);
    }
    drop(store);
    let start_of_2 = |start: u64| {
        let db = Database::open(&path).unwrap();
        let write = db.begin_write().unwrap();
        write.open_table(STARTS).unwrap().insert(2, start).unwrap();
        write.commit().unwrap();
    };
    start_of_2(10);
    assert!(refused(&path).contains("starts below an earlier one"));
    // In order, but not what the layout says.
    start_of_2(6);
    assert!(refused(&path).contains("does not end with its layout's"));
    start_of_2(5);
    LayoutStore::open(&path).expect("as it was");
}
