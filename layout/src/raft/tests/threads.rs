//! As in a node: several threads, files, the real clock.

use std::time::Duration;

use super::disks::DiskThread;
use super::net::{Net, Wire};
use super::*;

#[test]
fn members_agree_on_threads_and_files() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let env: SharedEnv = TokioEnv::new();
        let net = Net::new(&env);
        let mut replicas = Vec::new();
        for id in members(3).into_keys() {
            let store = RaftStore::open(directory.path().join(format!("{id}.redb"))).unwrap();
            let store = store.on(Arc::new(DiskThread::new()));
            let wire = Arc::new(Wire::new(id, &net));
            let config = RaftConfig::default();
            let replica = Replica::start(id, members(3), store, wire, &env, &config).await;
            let replica = Arc::new(replica.unwrap());
            net.attach(id, &replica);
            replica.initialize().await.unwrap();
            replicas.push(replica);
        }
        let mut epoch = 0;
        // A busy machine may depose a leader: then the next one goes on.
        while epoch < 20 {
            let leads = |replica: &&Arc<Replica>| replica.leadership().borrow().leads;
            let Some(leader) = replicas.iter().find(leads) else {
                env.sleep(Duration::from_millis(10)).await;
                continue;
            };
            let history = leader.history();
            epoch = history.epoch().0;
            let begun = leader.propose(intent(epoch + 1)).await;
            let done = leader.propose(commit(&history, epoch)).await;
            println!("{epoch}: {begun:?} {done:?}");
        }
        for replica in &replicas {
            while replica.history().epoch() < Epoch(20) {
                env.sleep(Duration::from_millis(10)).await;
            }
            replica.shutdown().await;
        }
        for id in members(3).into_keys() {
            RaftStore::open(directory.path().join(format!("{id}.redb"))).expect("closed");
        }
    });
}
