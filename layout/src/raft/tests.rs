//! Members over a network that delays, cuts and hangs, in one thread on virtual time.

mod cluster;
mod disks;
mod messages;
mod net;
mod runs;
mod stores;
mod storms;
mod suite;
mod threads;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use milonga_protocol::{Epoch, SharedEnv};
use milonga_transport::TokioEnv;

use super::*;
use crate::history::{History, HistoryError, StoreChange};
use crate::samples;

/// Runs a test in one thread on virtual time, with the randomness of `seed`.
fn on_virtual_time<F: Future>(seed: u64, test: impl FnOnce(SharedEnv) -> F) -> F::Output {
    // Shown if the test fails.
    println!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { test(TokioEnv::seeded(seed)).await })
}

fn members(count: u64) -> BTreeMap<MemberId, Member> {
    let member = |id| {
        let name = format!("layout-{id}");
        let member = Member {
            name: name.as_str().into(),
            address: name,
        };
        (MemberId(id), member)
    };
    (1..=count).map(member).collect()
}

fn intent(epoch: u64) -> StoreChange {
    let epoch = Epoch(epoch);
    StoreChange::Intent { epoch }
}

/// The commit of the epoch behind `history`.
fn commit(history: &History, start: u64) -> StoreChange {
    let parent = history.epoch();
    let epoch = parent.0 + 1;
    StoreChange::Commit {
        parent,
        layout: samples::layout(epoch, start, history),
        origin: Some(samples::origin(epoch)),
    }
}
