//! Bits rot under an embedded log: what is gone is said to be gone, and never looks as if it had not been written.

use std::path::{Path, PathBuf};

use milonga::Milonga;
use milonga_protocol::Position;

/// Overwrites every place in the files of `dir` that holds `needle`; says how many there were.
fn destroy(dir: &Path, needle: &[u8]) -> usize {
    let mut found = 0;
    let files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    for path in files {
        if path.is_dir() {
            found += destroy(&path, needle);
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("readable");
        let places: Vec<_> = (0..bytes.len().saturating_sub(needle.len()))
            .filter(|at| bytes[*at..].starts_with(needle))
            .collect();
        if places.is_empty() {
            continue;
        }
        found += places.len();
        for at in places {
            bytes[at..at + needle.len()].fill(0xa5);
        }
        std::fs::write(&path, bytes).expect("writable");
    }
    found
}

/// The whole chain of causes.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

#[tokio::test]
async fn an_object_whose_only_entry_is_lost_halts_there_and_never_looks_empty() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let map = milonga.map::<String, String>("frail").await.expect("opens");
    // Opened before: the directory has nothing behind what will be lost, so it is not what stops.
    let counter = milonga.counter("sound").await.expect("opens");
    let (key, value) = ("key".to_owned(), "a needle in a haystack".to_owned());
    map.insert(key.clone(), value.clone())
        .await
        .expect("inserts");
    for _ in 0..20 {
        counter.add(1).await.expect("counts");
    }
    milonga.close().await.expect("closes");
    assert_eq!(destroy(dir.path(), value.as_bytes()), 1);
    // It stays so: the second start knows nothing of what the first has seen.
    for round in 0..2 {
        let milonga = Milonga::embedded(dir.path()).await.expect("opens");
        let map = milonga.map::<String, String>("frail").await;
        let error = match map {
            Ok(map) => match map.get(&key).await {
                Ok(value) => panic!("round {round}: read {value:?}"),
                Err(error) => words(&error),
            },
            Err(error) => words(&error),
        };
        assert!(
            error.contains("lost") && error.contains("position"),
            "round {round}: {error}"
        );
        milonga.close().await.expect("closes");
    }
    // An operator gives it up: all goes on without it, for good.
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let end = Position(1_000);
    let given_up = milonga.client().give_up_lost(Position::ZERO, end).await;
    assert_eq!(given_up.expect("it is closed").len(), 1);
    milonga.close().await.expect("closes");
    for round in 0..2 {
        let milonga = Milonga::embedded(dir.path()).await.expect("opens");
        let map = milonga.map::<String, String>("frail").await.expect("opens");
        assert_eq!(map.get(&key).await.expect("reads"), None, "round {round}");
        let counter = milonga.counter("sound").await.expect("opens");
        assert_eq!(counter.get().await.expect("reads"), 20, "round {round}");
        milonga.close().await.expect("closes");
    }
}

/// Streams are not numbered by how many registrations can be read: else the next object would get another one's data.
#[tokio::test]
async fn a_registration_that_was_given_up_moves_nobody_elses_stream() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let first = milonga.counter("alpha").await.expect("opens");
    first.add(1).await.expect("counts");
    let lost = milonga.counter("bravo-unmistakable").await.expect("opens");
    let kept = milonga.counter("charlie").await.expect("opens");
    lost.add(1_000).await.expect("counts");
    kept.add(7).await.expect("counts");
    milonga.close().await.expect("closes");
    assert!(destroy(dir.path(), b"bravo-unmistakable") > 0);
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let given_up = milonga
        .client()
        .give_up_lost(Position::ZERO, Position(1_000))
        .await;
    assert_eq!(given_up.expect("it is lost everywhere").len(), 1);
    milonga.close().await.expect("closes");
    let milonga = Milonga::embedded(dir.path()).await.expect("opens");
    let kept = milonga.counter("charlie").await.expect("opens");
    assert_eq!(kept.get().await.expect("counts"), 7);
    let again = milonga.counter("bravo-unmistakable").await.expect("opens");
    assert_eq!(again.get().await.expect("a new one"), 0);
    milonga.close().await.expect("closes");
}
