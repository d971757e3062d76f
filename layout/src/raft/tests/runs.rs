//! Elections, changes, cuts, restarts, snapshots.

use std::time::Duration;

use super::cluster::Cluster;
use super::net::Nowhere;
use super::*;

#[test]
fn members_elect_a_leader_and_agree() {
    on_virtual_time(1, async |env| {
        let cluster = Cluster::running(&env, 3).await;
        let leader = cluster.leader().await;
        for epoch in 1..=3 {
            cluster.next_epoch().await;
            assert_eq!(cluster.agreed().await.epoch(), Epoch(epoch));
        }
        cluster.get(leader).confirm_leadership().await.unwrap();
        for id in cluster.ids().into_iter().filter(|id| *id != leader) {
            let follower = cluster.get(id);
            let leader = Some(leader);
            assert_eq!(follower.leadership().borrow().leader, leader);
            let refused = follower.propose(intent(4)).await;
            assert_eq!(refused, Err(ProposeError::NotLeader { leader }));
            let unconfirmed = follower.confirm_leadership().await;
            assert_eq!(unconfirmed, Err(NotConfirmed::NotLeader { leader }));
        }
    });
}

#[test]
fn a_stale_change_is_refused_by_all_alike() {
    on_virtual_time(2, async |env| {
        let cluster = Cluster::running(&env, 3).await;
        let empty = History::default();
        cluster.next_epoch().await;
        let before = cluster.agreed().await;
        let leader = cluster.leader().await;
        let verdict = cluster.get(leader).propose(commit(&empty, 0)).await;
        let (current, expected) = (Epoch(1), Epoch(0));
        assert_eq!(verdict, Ok(Err(HistoryError::Parent { current, expected })));
        cluster.change(intent(2)).await;
        let after = cluster.agreed().await;
        assert_eq!(after.current(), before.current());
        assert_eq!(after.intent(), Some(Epoch(2)));
    });
}

#[test]
fn a_leader_that_is_cut_off_commits_nothing() {
    on_virtual_time(3, async |env| {
        let cluster = Cluster::running(&env, 3).await;
        cluster.next_epoch().await;
        cluster.agreed().await;
        let old = cluster.leader().await;
        cluster.cut_off(old);
        let begun = env.now();
        // All its calls hang, and it still answers in time.
        let proposed = cluster.get(old).propose(intent(99)).await;
        assert!(
            matches!(proposed, Err(ProposeError::Unavailable { .. })),
            "{proposed:?}"
        );
        let confirmed = cluster.get(old).confirm_leadership().await;
        assert!(
            matches!(confirmed, Err(NotConfirmed::Unavailable { .. })),
            "{confirmed:?}"
        );
        assert!(env.now().since(begun) <= cluster.config.patience * 2);
        assert_eq!(cluster.get(old).history().intent(), None);
        // Nobody has told it, but nobody answers it either.
        assert!(!cluster.get(old).leadership().borrow().leads);

        let new = cluster.leader().await;
        assert_ne!(new, old);
        cluster.next_epoch().await;
        cluster.heal();
        let history = cluster.agreed().await;
        assert_eq!((history.epoch(), history.intent()), (Epoch(2), None));
        let deposed = *cluster.get(old).leadership().borrow();
        assert!(!deposed.leads, "{deposed:?}");
    });
}

#[test]
fn all_members_come_back_with_what_they_knew() {
    for (seed, crash) in [(4, false), (5, true)] {
        on_virtual_time(seed, async |env| {
            let mut cluster = Cluster::running(&env, 3).await;
            cluster.next_epoch().await;
            cluster.next_epoch().await;
            let before = cluster.agreed().await;
            for id in 1..=3 {
                cluster.stop(id, crash).await;
            }
            for id in 1..=3 {
                cluster.start(id).await;
                // Before anybody leads, and without asking anybody.
                assert_eq!(cluster.get(MemberId(id)).history(), before);
            }
            // It may be called again.
            cluster.get(MemberId(1)).initialize().await.unwrap();
            assert_eq!(cluster.agreed().await, before);
            cluster.next_epoch().await;
            assert_eq!(cluster.agreed().await.epoch(), Epoch(3));
        });
    }
}

#[test]
fn who_comes_late_gets_a_snapshot() {
    on_virtual_time(6, async |env| {
        let mut cluster = Cluster::new(&env, 3);
        cluster.config.snapshot_every = 8;
        cluster.config.keep = 2;
        cluster.start(1).await;
        cluster.start(2).await;
        for id in [1, 2] {
            cluster.get(MemberId(id)).initialize().await.unwrap();
        }
        for _ in 0..20 {
            cluster.next_epoch().await;
        }
        cluster.start(3).await;
        cluster.get(MemberId(3)).initialize().await.unwrap();
        assert_eq!(cluster.agreed().await.epoch(), Epoch(20));
        let trace = cluster.trace();
        assert!(trace.iter().any(|line| line.contains("-> 3 snapshot")));
        // What it was given is durable.
        cluster.stop(3, true).await;
        cluster.start(3).await;
        assert_eq!(cluster.get(MemberId(3)).history().epoch(), Epoch(20));
        cluster.next_epoch().await;
        assert_eq!(cluster.agreed().await.epoch(), Epoch(21));
    });
}

#[test]
fn a_member_whose_disk_fails_stops_and_says_so() {
    on_virtual_time(11, async |env| {
        let mut cluster = Cluster::running(&env, 3).await;
        cluster.next_epoch().await;
        let old = cluster.leader().await;
        assert_eq!(cluster.get(old).failure(), None);
        cluster.fail_disk(old);
        let proposed = cluster.get(old).propose(intent(99)).await;
        assert!(
            matches!(proposed, Err(ProposeError::Unavailable { .. })),
            "{proposed:?}"
        );
        let failure = cluster.get(old).failure().expect("it has stopped");
        assert!(failure.contains("the disk is gone"), "{failure}");
        assert_eq!(cluster.get(old).facts()["raft_failure"], failure);
        let begun = env.now();
        assert_ne!(cluster.leader().await, old);
        assert!(env.now().since(begun) < Duration::from_secs(3));
        cluster.next_epoch().await;
        // With a disk again it comes back.
        cluster.stop(old.0, false).await;
        cluster.start(old.0).await;
        let history = cluster.agreed().await;
        assert_eq!((history.epoch(), history.intent()), (Epoch(2), None));
    });
}

#[test]
fn who_has_lost_its_disk_takes_part_in_nothing() {
    on_virtual_time(9, async |env| {
        let mut cluster = Cluster::running(&env, 3).await;
        cluster.next_epoch().await;
        cluster.agreed().await;
        cluster.stop(3, true).await;
        cluster.wipe(3);
        cluster.start(3).await;
        cluster.next_epoch().await;
        env.sleep(Duration::from_secs(10)).await;
        assert_eq!(*cluster.get(MemberId(3)).history(), History::default());
        // Neither does it help a majority.
        let leader = cluster.leader().await;
        let other = MemberId(3 - leader.0);
        cluster.cut_off(if leader.0 == 3 { MemberId(1) } else { other });
        let proposed = cluster.get(leader).propose(intent(3)).await;
        assert!(
            matches!(proposed, Err(ProposeError::Unavailable { .. })),
            "{proposed:?}"
        );
    });
}

#[test]
fn a_cluster_is_made_of_the_same_members_everywhere() {
    on_virtual_time(10, async |env| {
        let (store, config) = (RaftStore::memory(), RaftConfig::default());
        let start = async |count| {
            let (id, store) = (MemberId(1), store.clone());
            Replica::start(id, members(count), store, Arc::new(Nowhere), &env, &config).await
        };
        let replica = start(1).await.unwrap();
        replica.initialize().await.unwrap();
        replica.shutdown().await;
        let words = start(3).await.unwrap_err().to_string();
        assert!(words.contains("made of the members [1]"), "{words}");
        start(1).await.unwrap();
        let missing = Replica::start(
            MemberId(7),
            members(3),
            RaftStore::memory(),
            Arc::new(Nowhere),
            &env,
            &config,
        );
        let words = missing.await.unwrap_err().to_string();
        assert!(words.contains("member 7 is not among"), "{words}");
    });
}

#[test]
fn a_lone_member_leads_at_once() {
    on_virtual_time(7, async |env| {
        let mut cluster = Cluster::new(&env, 1);
        let begun = env.now();
        cluster.start(1).await;
        cluster.get(MemberId(1)).initialize().await.unwrap();
        cluster.next_epoch().await;
        cluster.get(MemberId(1)).confirm_leadership().await.unwrap();
        for crash in [true, false] {
            cluster.stop(1, crash).await;
            cluster.start(1).await;
            cluster.next_epoch().await;
        }
        assert_eq!(cluster.agreed().await.epoch(), Epoch(3));
        // Only its disk takes time.
        assert!(env.now().since(begun) < Duration::from_millis(500));
    });
}

#[test]
fn a_member_that_was_shut_down_answers_in_time() {
    on_virtual_time(8, async |env| {
        let cluster = Cluster::running(&env, 3).await;
        let leader = cluster.leader().await;
        let replica = cluster.get(leader);
        replica.shutdown().await;
        replica.shutdown().await;
        assert!(!replica.leadership().borrow().leads);
        let proposed = replica.propose(intent(1)).await;
        assert!(
            matches!(proposed, Err(ProposeError::Unavailable { .. })),
            "{proposed:?}"
        );
        assert!(replica.confirm_leadership().await.is_err());
        assert!(replica.initialize().await.is_err());
    });
}
