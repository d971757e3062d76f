//! What handles and tasks share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, Weak};

use milonga_protocol::sync::{
    Mutex, Notify, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard, Weakness,
    atomic::{AtomicU64, Ordering},
    weakened,
};
use milonga_protocol::{Position, SharedEnv, SharedLog, StreamId};

use super::ReplicaOptions;
use super::open::Opener;
use super::player::Join;
use crate::error::{ReadError, ReplicaHalt, UpdateError};
use crate::queue::ItemKey;
use crate::replica::lock;
use crate::replica::submit::{Item, Submit};
use crate::replica::sync::Syncs;
use crate::world::{Frozen, World};

/// What handles and tasks share.
pub(crate) struct Shared {
    pub(crate) env: SharedEnv,
    pub(crate) log: SharedLog,
    pub(crate) options: ReplicaOptions,
    pub(super) world: RwLock<World>,
    /// The newest frozen world, as long as somebody uses it: keeping it longer would make every update copy.
    pub(super) frozen: Mutex<Weak<Frozen>>,
    pub(crate) submit: Submit,
    pub(crate) syncs: Syncs,
    /// Wakes the player.
    pub(super) player: Notify,
    pub(super) joins: Mutex<Vec<Join>>,
    pub(super) opener: Opener,
    /// Streams of open objects: what tail checks ask about.
    pub(super) hosted: Mutex<Arc<[StreamId]>>,
    /// Streams of all registered objects: what is played.
    pub(super) played: Mutex<Arc<[StreamId]>>,
    pub(super) halted: OnceLock<ReplicaHalt>,
    /// What playback waits for, for error messages.
    pub(super) obstacle: Mutex<String>,
    pub(super) next_lane: AtomicU64,
    /// Queue items that local transactions under way have taken.
    pub(crate) claims: Mutex<BTreeMap<StreamId, BTreeSet<ItemKey>>>,
}

impl Shared {
    pub(crate) fn world(&self) -> RwLockReadGuard<'_, World> {
        // Objects' panics are caught inside; the world is never left half changed.
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn world_mut(&self) -> RwLockWriteGuard<'_, World> {
        self.world.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The world as it is now, shared with whoever froze it at the same position.
    pub(crate) fn freeze(&self) -> Arc<Frozen> {
        freeze(&self.frozen, &self.world)
    }

    /// Submits a record now, unless an object it changes cannot take it here.
    pub(crate) fn submit_item(&self, mut item: Item) -> Result<Option<u64>, UpdateError> {
        let world = self.world();
        for stream in &item.streams {
            if let Some(halt) = world.get(*stream).and_then(|hosted| hosted.halted()) {
                return Err(UpdateError::Halted {
                    written: None,
                    source: halt.clone(),
                });
            }
        }
        drop(world);
        let deadline = self.env.now().after(self.options.deadline);
        item.deadline = item.deadline.min(deadline);
        self.submit.push(item)
    }

    /// A lane for a new handle or a single record.
    pub(crate) fn next_lane(&self) -> u64 {
        self.next_lane.fetch_add(1, Ordering::Relaxed)
    }

    /// An own entry is at `position`: play through it.
    pub(super) fn play_through(&self, position: Position) {
        self.syncs.appended(position);
        self.player.notify_one();
    }

    pub(crate) fn hosted_streams(&self) -> Arc<[StreamId]> {
        Arc::clone(&lock(&self.hosted))
    }

    /// An object was opened.
    pub(super) fn hosted_changed(&self) {
        // Under both locks, so that of two openings at once the later one counts.
        let mut hosted = lock(&self.hosted);
        let world = self.world();
        let opened = world.hosted_streams();
        *hosted = opened
            .filter(|stream| *stream != StreamId::DIRECTORY)
            .collect();
    }

    pub(super) fn played_streams(&self) -> Arc<[StreamId]> {
        Arc::clone(&lock(&self.played))
    }

    /// Objects were registered. Directories are prefixes of each other: the longer one knows more.
    pub(super) fn registered(&self, streams: Arc<[StreamId]>) {
        let mut played = lock(&self.played);
        if streams.len() > played.len() {
            *played = streams;
        }
    }

    pub(super) fn set_obstacle(&self, what: &str) {
        what.clone_into(&mut lock(&self.obstacle));
    }

    pub(super) fn obstacle(&self) -> String {
        let obstacle = lock(&self.obstacle);
        if obstacle.is_empty() {
            "entries below the tail that are not decided yet".into()
        } else {
            obstacle.clone()
        }
    }

    /// Whether the replica can go on.
    pub(crate) fn check_halted(&self) -> Result<(), ReadError> {
        match self.halted.get() {
            Some(halt) => Err(halt.clone().into()),
            None => Ok(()),
        }
    }

    pub(super) fn halt(&self, halt: ReplicaHalt) {
        tracing::error!(position = %halt.position(), %halt, "replica halted");
        self.halted.get_or_init(|| halt.clone());
        self.syncs.stop(&halt.clone().into());
        self.submit
            .stop(&UpdateError::ReplicaHalted { source: halt });
        lock(&self.joins).clear();
    }

    pub(super) fn close(&self) {
        self.syncs.stop(&ReadError::Closed);
        self.submit.stop(&UpdateError::Closed);
        lock(&self.joins).clear();
    }
}

fn freeze(newest: &Mutex<Weak<Frozen>>, world: &RwLock<World>) -> Arc<Frozen> {
    let mut newest = lock(newest);
    let world = world.read().unwrap_or_else(PoisonError::into_inner);
    let fits = |frozen: &Arc<_>| weakened(Weakness::KeepFrozen) || world.is_as_frozen(frozen);
    if let Some(frozen) = newest.upgrade().filter(fits) {
        return frozen;
    }
    let frozen = Arc::new(world.freeze());
    *newest = Arc::downgrade(&frozen);
    frozen
}

#[cfg(all(test, milonga_loom))]
mod models {
    use milonga_protocol::sync::{explore, find, thread};

    use super::*;

    /// Two readers freeze while the player goes on: each sees at least what was applied before it asked.
    fn frozen() {
        let cache = Arc::new((Mutex::new(Weak::new()), RwLock::new(World::new())));
        let player = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                let mut world = cache.1.write().expect("no panic");
                world.complete(Position(5));
            })
        };
        let reader = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || freeze(&cache.0, &cache.1))
        };
        let before = cache.1.read().expect("no panic").applied();
        let mine = freeze(&cache.0, &cache.1);
        assert!(mine.position >= before, "a snapshot of the past");
        player.join().expect("no panic");
        let last = freeze(&cache.0, &cache.1);
        assert!(last.position == Position(5), "a snapshot of the past");
        let theirs = reader.join().expect("no panic");
        // Who froze the same holds the same.
        if theirs.position == mine.position {
            assert!(Arc::ptr_eq(&theirs, &mine) || theirs.position < last.position);
        }
    }

    #[test]
    fn a_snapshot_is_no_older_than_the_question() {
        explore(3, frozen);
    }

    #[test]
    fn keeping_a_frozen_world_is_found() {
        find(Weakness::KeepFrozen, "a snapshot of the past", 3, frozen);
    }
}
