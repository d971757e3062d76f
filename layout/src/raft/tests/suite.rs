//! openraft's own suite for stores.

use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::super::home::Home;
use super::super::log::Log;
use super::super::machine::Machine;
use super::disks::DiskThread;
use super::*;

enum Kind {
    Memory,
    File,
    /// On a thread, as a node has it.
    Thread,
}

impl StoreBuilder<TypeConfig, Log, Machine, Option<TempDir>> for Kind {
    async fn build(&self) -> Result<(Option<TempDir>, Log, Machine), StorageError<MemberId>> {
        let (directory, store) = match self {
            Self::Memory => (None, RaftStore::memory()),
            Self::File | Self::Thread => {
                let directory = tempfile::tempdir().unwrap();
                let store = RaftStore::open(directory.path().join("raft.redb")).unwrap();
                (Some(directory), store)
            }
        };
        let store = match self {
            Self::Thread => store.on(Arc::new(DiskThread::new())),
            _ => store,
        };
        let machine = Machine::load(&store).await.unwrap();
        Ok((directory, Log(store), machine))
    }
}

fn run(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let env: SharedEnv = runtime.block_on(async { TokioEnv::seeded(1) });
    let _home = Home::new(&env).enter();
    Suite::test_all(kind).unwrap();
}

#[test]
fn a_store_in_memory_is_what_openraft_wants() {
    run(Kind::Memory);
}

#[test]
fn a_store_in_a_file_is_what_openraft_wants() {
    run(Kind::File);
}

#[test]
fn a_store_on_a_thread_is_what_openraft_wants() {
    run(Kind::Thread);
}
