//! A whole log in this process: opened, closed, dropped, opened again.

use std::path::Path;
use std::time::Duration;

use super::SmallDisk;
use super::raw::{Raw, id, raw};
use crate::{EmbeddedNode, EmbeddedOptions};
use bytes::Bytes;
use milonga_protocol::frame::Message;
use milonga_protocol::messages::{
    Hello, LayoutRequest, Refusal, Request, Response, SequencerRequest, UnitReadAnswer, UnitRequest,
};
use milonga_protocol::{Epoch, Incarnation, Position, SharedEnv, StreamId};
use milonga_transport::TokioEnv;

fn options() -> EmbeddedOptions {
    let mut options = EmbeddedOptions::default();
    options.unit.segment_bytes = 1 << 20;
    options.unit.reserve_bytes = 1 << 20;
    options
}

async fn open(env: &SharedEnv, dir: &Path) -> (EmbeddedNode, Raw) {
    let node = EmbeddedNode::start(dir, env.clone(), options()).await;
    let node = node.expect("the directory can be opened");
    let raw = raw(env, node.network("test".into()), node.layout());
    (node, raw)
}

async fn hundred_times(dir: &Path) {
    let env: SharedEnv = TokioEnv::new();
    let mut written: Vec<(Position, String)> = Vec::new();
    let mut epoch = Epoch::NONE;
    for round in 0..100_u64 {
        let (node, raw) = open(&env, dir).await;
        let published = raw.published(Epoch::NONE).await;
        assert!(
            published.layout.epoch > epoch,
            "every start is a reconfiguration"
        );
        epoch = published.layout.epoch;
        let payload = format!("round {round}");
        let position = raw
            .append(&published, id(round), StreamId::raw(1), &payload)
            .await;
        let position = position.expect("an open log takes appends");
        assert!(written.iter().all(|(p, _)| *p < position));
        written.push((position, payload));
        for (position, payload) in written.iter().rev().step_by(9) {
            let (_, entry) = raw.read(&published, *position).await.unwrap();
            assert_eq!(entry.unwrap().payload, *payload);
        }
        if round % 2 == 0 {
            node.close().await;
        } else {
            drop(node);
        }
    }
}

#[tokio::test]
async fn opened_100_times_in_a_row_it_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    hundred_times(dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opened_100_times_in_a_row_on_many_threads_it_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    hundred_times(dir.path()).await;
}

#[tokio::test]
async fn a_second_open_is_refused_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let env: SharedEnv = TokioEnv::new();
    let (first, raw) = open(&env, dir.path()).await;
    let second = EmbeddedNode::start(dir.path(), env.clone(), options()).await;
    let text = second.unwrap_err().to_string();
    assert!(text.contains("is in use by process"), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    let published = raw.published(Epoch::NONE).await;
    let appended = raw
        .append(&published, id(1), StreamId::raw(1), "still there")
        .await;
    appended.expect("the refused one did not disturb the first");
    drop(first);
}

#[tokio::test]
async fn unacknowledged_work_does_not_hinder_a_drop() {
    let dir = tempfile::tempdir().unwrap();
    let env: SharedEnv = TokioEnv::new();
    for round in 0..10_u64 {
        let (node, raw) = open(&env, dir.path()).await;
        let published = raw.published(Epoch::NONE).await;
        let first = raw
            .append(&published, id(round * 1_000), StreamId::raw(1), "x")
            .await;
        let first = first.unwrap();
        let busy = env.spawn(
            "busy",
            Box::pin(async move {
                for n in 1..900 {
                    let appended = raw
                        .append(&published, id(round * 1_000 + n), StreamId::raw(1), "y")
                        .await;
                    if appended.is_err() {
                        return;
                    }
                }
            }),
        );
        env.sleep(Duration::from_millis(20)).await;
        drop(node);
        let (node, raw) = open(&env, dir.path()).await;
        let published = raw.published(Epoch::NONE).await;
        let (answer, _) = raw.read(&published, first).await.unwrap();
        assert!(matches!(answer, UnitReadAnswer::Data { .. }), "{answer:?}");
        drop(busy);
        node.close().await;
    }
}

#[tokio::test]
async fn a_damaged_or_foreign_directory_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let env: SharedEnv = TokioEnv::new();
    std::fs::create_dir(dir.path().join("unit")).unwrap();
    let foreign = dir.path().join("unit/holiday.jpg");
    std::fs::write(&foreign, "beach").unwrap();
    let text = EmbeddedNode::start(dir.path(), env.clone(), options()).await;
    let text = text.unwrap_err().to_string();
    assert!(text.contains("holiday.jpg"), "{text}");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "beach");
    std::fs::remove_file(&foreign).unwrap();
    let (node, _) = open(&env, dir.path()).await;
    let status = node.status().await;
    for role in ["unit", "sequencer", "layout"] {
        assert!(status.roles.contains_key(role), "{status:?}");
    }
    assert!(status.cluster.is_some(), "{status:?}");
}

#[tokio::test]
async fn a_lost_unit_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let env: SharedEnv = TokioEnv::new();
    let (node, raw) = open(&env, dir.path()).await;
    let published = raw.published(Epoch::NONE).await;
    raw.append(&published, id(1), StreamId::raw(1), "gone")
        .await
        .unwrap();
    node.close().await;
    std::fs::remove_dir_all(dir.path().join("unit")).unwrap();
    let mut short = options();
    short.deadline = Duration::from_secs(2);
    let text = EmbeddedNode::start(dir.path(), env, short).await;
    let text = text.unwrap_err().to_string();
    assert!(text.contains("embedded"), "names the unit: {text}");
}

#[tokio::test]
async fn a_full_disk_refuses_appends_until_space_is_back() {
    let Some(small) = SmallDisk::mount("16m") else {
        println!("skipped: cannot mount a small tmpfs here (needs root)");
        return;
    };
    let env: SharedEnv = TokioEnv::new();
    let dir = small.path().join("log");
    let ballast = small.path().join("ballast");
    let (node, raw) = open(&env, &dir).await;
    let published = raw.published(Epoch::NONE).await;
    let append = async |n| raw.append(&published, id(n), StreamId::raw(1), "x").await;
    let first = append(0).await.expect("there is space");
    let mut n = 0;
    let mut until = async |full: bool| {
        for _ in 0..200 {
            n += 1;
            match append(n).await {
                Ok(_) if !full => return,
                Err(why) if full && why.contains("Full") => return,
                _ => {}
            }
            env.sleep(Duration::from_millis(50)).await;
        }
        panic!("the unit does not notice that the disk is {full}");
    };
    // All but half of the unit's reserve.
    let free = rustix::fs::statvfs(small.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    let size = usize::try_from(free).unwrap() - (1 << 19);
    std::fs::write(&ballast, vec![1; size]).unwrap();
    until(true).await;
    let (answer, _) = raw.read(&published, first).await.unwrap();
    assert!(matches!(answer, UnitReadAnswer::Data { .. }), "reads go on");
    std::fs::remove_file(&ballast).unwrap();
    until(false).await;
    node.close().await;
}

#[tokio::test]
async fn only_servers_steer_and_nonsense_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let env: SharedEnv = TokioEnv::new();
    let (_node, raw) = open(&env, dir.path()).await;
    let to = raw.layout.clone();
    let epoch = Epoch(99);
    let hello = Hello {
        name: "embedded".into(),
        address: "elsewhere".into(),
        incarnation: Incarnation(1),
        unit: None,
        sequencer: true,
    };
    for request in [
        Request::Unit(UnitRequest::Seal { epoch }),
        Request::Sequencer(SequencerRequest::Seal { epoch }),
        Request::Layout(LayoutRequest::Hello(hello)),
    ] {
        let answer = raw.call(&to, request, Bytes::new()).await.unwrap().0;
        let refused = matches!(answer, Response::Refused(Refusal::NotAllowed { .. }));
        assert!(refused, "{answer:?}");
    }
    let nonsense = Message {
        header: Bytes::from_static(&[0xff; 9]),
        body: Bytes::new(),
    };
    let deadline = env.now().after(Duration::from_secs(1));
    let answer = raw.network.call(&to, nonsense, deadline).await.unwrap();
    let answer = Response::decode(&answer).unwrap();
    let malformed = matches!(answer, Response::Refused(Refusal::Malformed { .. }));
    assert!(malformed, "{answer:?}");
    let answer = raw
        .call(&to, Request::Status, Bytes::new())
        .await
        .unwrap()
        .0;
    assert!(matches!(answer, Response::Status(_)), "{answer:?}");
    let published = raw.published(Epoch::NONE).await;
    let appended = raw
        .append(&published, id(1), StreamId::raw(1), "undisturbed")
        .await;
    appended.expect("nothing was sealed");
}
