//! Opening objects: find or register the name, then join the world.
//!
//! The directory is read ahead of playback, so that opening does not wait for playing everything, and playback knows
//! all streams from its first entry on. An object of which nothing was played joins at once; another one is loaded
//! apart, from its stream alone and the verdicts that playback has kept, and joins at exactly the common position
//! (rules 32, 39).

use std::collections::BTreeMap;
use std::sync::Arc;

use milonga_protocol::sync::Mutex;
use milonga_protocol::{AppendError, LogError, NewEntry, Position, StreamId, Tail, TailOf, Target};
use tokio::sync::oneshot;

use super::player::{Join, read_one};
use super::{Backoff, Shared, lock, millis, pause};
use crate::directory::{Directory, DirectoryOp, MAX_NAME_BYTES, ObjectInfo, ObjectKind};
use crate::error::{OpenError, ReadError, ReplicaHalt};
use crate::object::Object;
use crate::record::{self, Record, TouchedKeys, Update};
use crate::world::Hosted;

/// Behind the common position by less than this, an object is handed to the player to join.
const CLOSE_ENOUGH: u64 = 16;
/// Or after so many rounds: each is as long as what was played during the one before it.
const ROUNDS: u32 = 8;

/// What openings share.
pub(super) struct Opener {
    ahead: tokio::sync::Mutex<Ahead>,
    /// One opening of a stream at a time.
    streams: Mutex<BTreeMap<StreamId, Arc<tokio::sync::Mutex<()>>>>,
}

/// The directory, read ahead.
struct Ahead {
    directory: Hosted,
    /// Everything of its stream below was read.
    read: Position,
}

impl Opener {
    pub(super) fn new() -> Self {
        Self {
            ahead: tokio::sync::Mutex::new(Ahead {
                directory: Hosted::new::<Directory>(Directory::TYPE.into()),
                read: Position::ZERO,
            }),
            streams: Mutex::default(),
        }
    }
}

/// Opens `name` as an `O`.
pub(super) async fn open<O: Object>(
    shared: &Arc<Shared>,
    name: &str,
) -> Result<ObjectInfo, OpenError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(OpenError::Name {
            size: name.len(),
            limit: MAX_NAME_BYTES,
        });
    }
    let kind = ObjectKind::of::<O>();
    let info = find_or_register(shared, name, &kind).await?;
    let differs = |existing: String, wanted: String| OpenError::Type {
        name: Arc::clone(&info.name),
        existing,
        wanted,
    };
    if info.kind != kind {
        return Err(differs(info.kind.to_string(), kind.to_string()));
    }
    let existing = host::<O>(shared, &info)
        .await
        .map_err(|source| OpenError::Read {
            name: Arc::clone(&info.name),
            source,
        })?;
    match existing {
        None => Ok(info),
        // Same names of types and encodings, and yet two types of Rust.
        Some(existing) => Err(differs(existing.into(), std::any::type_name::<O>().into())),
    }
}

async fn find_or_register(
    shared: &Arc<Shared>,
    name: &str,
    kind: &ObjectKind,
) -> Result<ObjectInfo, OpenError> {
    let failed = |source| OpenError::Read {
        name: name.into(),
        source,
    };
    let find = async || {
        let directory = read_directory(shared).await.map_err(failed)?;
        Ok(directory.get(name).cloned())
    };
    if let Some(info) = find().await? {
        return Ok(info);
    }
    let register = || OpenError::Register {
        name: name.into(),
        source: AppendError::Closed,
    };
    let appended = shared.log.append(registration(shared, name, kind)).await;
    let found = find().await?;
    match (appended, found) {
        (_, Some(info)) => Ok(info),
        (Err(source), None) => Err(OpenError::Register {
            name: name.into(),
            source,
        }),
        // The log lost an append that it acknowledged.
        (Ok(_), None) => Err(register()),
    }
}

fn registration(shared: &Shared, name: &str, kind: &ObjectKind) -> NewEntry {
    let op = DirectoryOp::Register {
        name: name.into(),
        kind: kind.clone(),
    };
    let touches = Directory::touches(&op);
    let op = postcard::to_stdvec(&op).expect("plain data into memory");
    let record = Record::Update(Update {
        stream: StreamId::DIRECTORY,
        touches: TouchedKeys::new(&touches),
        op_version: Directory::OP_VERSION,
        op: serde_bytes::Bytes::new(&op),
    });
    // A number that nobody waits for.
    let payload = record.encode(record::begin_payload(shared.submit.next_tag(), op.len()));
    let mut entry = NewEntry::new([StreamId::DIRECTORY], payload);
    entry.reserved_space = true;
    entry
}

/// All registered objects, linearizable.
pub(super) async fn directory(shared: &Arc<Shared>) -> Result<Vec<ObjectInfo>, ReadError> {
    let directory = read_directory(shared).await?;
    Ok(directory.objects().cloned().collect())
}

/// The directory as of a tail check made now.
async fn read_directory(shared: &Arc<Shared>) -> Result<Directory, ReadError> {
    shared.syncs.check()?;
    let mut ahead = shared.opener.ahead.lock().await;
    let tail = tail_of_directory(shared).await?;
    shared.syncs.heard_of(tail.epoch);
    // Also what others are registering now, so that an own registration of unknown outcome is found.
    let target = tail.granted();
    if target.to > ahead.read {
        // Read into a copy: whoever waits here may be dropped in the middle.
        let known = state(&ahead.directory)?.clone();
        let mut directory = Hosted::with_state(Directory::TYPE.into(), known);
        let read = load_to(
            shared,
            StreamId::DIRECTORY,
            &mut directory,
            ahead.read,
            target,
        )
        .await?;
        *ahead = Ahead { directory, read };
    }
    let directory = state(&ahead.directory)?.clone();
    shared.registered(directory.streams());
    Ok(directory)
}

fn state(hosted: &Hosted) -> Result<&Directory, ReadError> {
    match hosted.halted() {
        Some(halt) => Err(ReplicaHalt::Directory {
            source: halt.clone(),
        }
        .into()),
        None => Ok(hosted.state().expect("hosted as that type")),
    }
}

async fn tail_of_directory(shared: &Arc<Shared>) -> Result<Tail, ReadError> {
    let streams = TailOf::Streams(Arc::from([StreamId::DIRECTORY]));
    let mut patience = Patience::new(shared);
    loop {
        match shared.log.tail(streams.clone()).await {
            Ok(tail) => return Ok(tail),
            Err(error) => patience.after(error, Position::ZERO).await?,
        }
    }
}

/// Makes the object part of the world. `Some`: it is, but as this other type.
async fn host<O: Object>(
    shared: &Arc<Shared>,
    info: &ObjectInfo,
) -> Result<Option<&'static str>, ReadError> {
    let stream = info.stream;
    let alone = Arc::clone(lock(&shared.opener.streams).entry(stream).or_default());
    let _alone = alone.lock().await;
    if let Some(hosted) = shared.world().get(stream) {
        let same = hosted.state::<O>().is_some();
        let existing = (!same).then(|| hosted.type_name());
        // Whoever opened it may have gone before tail checks learned of it.
        shared.hosted_changed();
        return Ok(existing);
    }
    let new = Hosted::new::<O>(Arc::clone(&info.name));
    if shared.world_mut().join_new(stream, new) {
        shared.hosted_changed();
        return Ok(None);
    }
    tracing::debug!(
        object = &*info.name,
        "loading an object whose stream was played already"
    );
    let mut hosted = Hosted::new::<O>(Arc::clone(&info.name));
    let mut loaded = info.registered;
    for _ in 0..ROUNDS {
        let applied = shared.world().applied();
        if applied.0.saturating_sub(loaded.0) < CLOSE_ENOUGH {
            break;
        }
        loaded = load(shared, stream, &mut hosted, loaded, applied).await?;
    }
    let (done, joined) = oneshot::channel();
    lock(&shared.joins).push(Join {
        stream,
        hosted,
        loaded,
        done,
    });
    if shared.syncs.check().is_err() {
        // Whoever ended the replica may have looked before: nobody else would answer.
        lock(&shared.joins).clear();
    }
    shared.player.notify_one();
    match joined.await {
        Ok(result) => result.map(|()| None),
        Err(_) => Err(shared.check_halted().err().unwrap_or(ReadError::Closed)),
    }
}

/// Feeds `hosted` what its stream has in `from..applied`, all of which was played. Returns the new end.
pub(super) async fn load(
    shared: &Arc<Shared>,
    stream: StreamId,
    hosted: &mut Hosted,
    from: Position,
    applied: Position,
) -> Result<Position, ReadError> {
    let epoch = shared.syncs.epoch();
    let target = Target { epoch, to: applied };
    load_to(shared, stream, hosted, from, target).await
}

async fn load_to(
    shared: &Arc<Shared>,
    stream: StreamId,
    hosted: &mut Hosted,
    mut from: Position,
    mut target: Target,
) -> Result<Position, ReadError> {
    let mut patience = Patience::new(shared);
    while from < target.to {
        let max_bytes = shared.options.part_bytes;
        let part = match read_one(&shared.log, stream, from, target, max_bytes).await {
            Ok(part) => part,
            Err(error) => {
                patience.after(error, from).await?;
                continue;
            }
        };
        patience = Patience::new(shared);
        let aborted = shared.world().aborted_between(from, part.complete);
        for (position, entry) in &part.entries {
            hosted.load(stream, *position, entry, |record| {
                aborted.binary_search(&(*position, record)).is_ok()
            });
        }
        from = part.complete;
        // Lowered if the epoch has ended.
        target.to = target.to.min(part.target.to);
        pause().await;
    }
    Ok(from)
}

/// Waits after errors, up to the deadline.
struct Patience {
    deadline: milonga_protocol::Time,
    waited_ms: u64,
    backoff: Backoff,
    shared: Arc<Shared>,
}

impl Patience {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            deadline: shared.env.now().after(shared.options.deadline),
            waited_ms: millis(shared.options.deadline),
            backoff: Backoff::new(&shared.env),
            shared: Arc::clone(shared),
        }
    }

    async fn after(&mut self, error: LogError, applied: Position) -> Result<(), ReadError> {
        match error {
            LogError::Closed => Err(ReadError::Closed),
            LogError::Trimmed { .. } | LogError::Lost { .. } => {
                let source = error;
                Err(ReplicaHalt::Log { applied, source }.into())
            }
            LogError::Unavailable { what, .. } => {
                let waited_ms = self.waited_ms;
                if self.shared.env.now() >= self.deadline {
                    return Err(ReadError::Unavailable { what, waited_ms });
                }
                self.backoff.sleep().await;
                Ok(())
            }
            source => Err(ReadError::Log { source }),
        }
    }
}
