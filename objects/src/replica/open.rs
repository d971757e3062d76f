//! Opening objects: find or register the name, then join the world.
//!
//! The directory is read ahead of playback, so that opening does not wait for playing everything, and playback knows
//! all streams from its first entry on. An object of which nothing was played joins at once; another one is loaded
//! apart, from its stream alone and the verdicts that playback has kept, and joins at exactly the common position
//! (rules 32, 39).
//!
//! A call has one deadline, around everything that it waits for. What it has read by then is kept, so that an object
//! that takes longer to load is open after some more calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use milonga_protocol::sync::Mutex;
use milonga_protocol::{AppendError, LogError, NewEntry, Position, StreamId, Tail, TailOf, Target};
use tokio::sync::oneshot;

use super::player::{Join, read_one};
use super::{Backoff, Deadline, Shared, lock, pause};
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
    /// The directory, read ahead.
    ahead: tokio::sync::Mutex<Partly>,
    streams: Mutex<BTreeMap<StreamId, Arc<Alone>>>,
}

/// One opening of a stream at a time, and what an earlier one has left.
type Alone = tokio::sync::Mutex<Option<Partly>>;

/// An object that is being read apart. Complete after every part, so whoever reads may be dropped at any time.
pub(super) struct Partly {
    pub(super) hosted: Hosted,
    /// Everything of its stream below was read.
    pub(super) read: Position,
}

impl Partly {
    fn new<O: Object>(name: Arc<str>, from: Position) -> Self {
        Self {
            hosted: Hosted::new::<O>(name),
            read: from,
        }
    }
}

impl Opener {
    pub(super) fn new() -> Self {
        let directory = Partly::new::<Directory>(Directory::TYPE.into(), Position::ZERO);
        Self {
            ahead: tokio::sync::Mutex::new(directory),
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
    let mut patience = Patience::new(shared);
    let kind = ObjectKind::of::<O>();
    let info = find_or_register(shared, name, &kind, &mut patience).await?;
    let differs = |existing: String, wanted: String| OpenError::Type {
        name: Arc::clone(&info.name),
        existing,
        wanted,
    };
    if info.kind != kind {
        return Err(differs(info.kind.to_string(), kind.to_string()));
    }
    let hosted = host::<O>(shared, &info, &mut patience).await;
    let existing = hosted.map_err(|source| OpenError::Read {
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
    patience: &mut Patience,
) -> Result<ObjectInfo, OpenError> {
    let failed = |source| OpenError::Read {
        name: name.into(),
        source,
    };
    let directory = read_directory(shared, patience).await.map_err(failed)?;
    if let Some(info) = directory.get(name) {
        return Ok(info.clone());
    }
    let register = || OpenError::Register {
        name: name.into(),
        source: AppendError::Closed,
    };
    let appended = shared.log.append(registration(shared, name, kind));
    let appended = patience.within("its registration", appended).await;
    let appended = appended.map_err(failed)?;
    let directory = read_directory(shared, patience).await.map_err(failed)?;
    match (appended, directory.get(name)) {
        (_, Some(info)) => Ok(info.clone()),
        (Err(source), None) => Err(OpenError::Register {
            name: name.into(),
            source,
        }),
        // The log lost an append that it acknowledged.
        (Ok(_), None) => Err(register()),
    }
}

fn registration(shared: &Shared, name: &str, kind: &ObjectKind) -> NewEntry {
    // A number that nobody waits for.
    let payload = registration_payload(shared.submit.next_tag(), name, kind);
    let mut entry = NewEntry::new([StreamId::DIRECTORY], payload);
    entry.reserved_space = true;
    entry
}

fn registration_payload(tag: u64, name: &str, kind: &ObjectKind) -> Vec<u8> {
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
    record.encode(record::begin_payload(tag, op.len()))
}

/// All registered objects, linearizable.
pub(super) async fn directory(shared: &Arc<Shared>) -> Result<Vec<ObjectInfo>, ReadError> {
    let directory = read_directory(shared, &mut Patience::new(shared)).await?;
    Ok(directory.objects().cloned().collect())
}

/// The directory as of a tail check made now.
async fn read_directory(
    shared: &Arc<Shared>,
    patience: &mut Patience,
) -> Result<Directory, ReadError> {
    shared.syncs.check()?;
    let ahead = shared.opener.ahead.lock();
    let mut ahead = patience.within("the directory", ahead).await?;
    let tail = tail_of_directory(shared, patience).await?;
    shared.syncs.heard_of(tail.epoch);
    // Also what others are registering now, so that an own registration of unknown outcome is found.
    let target = tail.granted();
    load_to(shared, StreamId::DIRECTORY, &mut ahead, target, patience).await?;
    let directory = state(&ahead.hosted)?.clone();
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

async fn tail_of_directory(
    shared: &Arc<Shared>,
    patience: &mut Patience,
) -> Result<Tail, ReadError> {
    let streams = TailOf::Streams(Arc::from([StreamId::DIRECTORY]));
    loop {
        let tail = shared.log.tail(streams.clone());
        match patience
            .within("a tail check of the directory", tail)
            .await?
        {
            Ok(tail) => return Ok(tail),
            Err(error) => patience.after(error, Position::ZERO).await?,
        }
    }
}

/// Makes the object part of the world. `Some`: it is, but as this other type.
async fn host<O: Object>(
    shared: &Arc<Shared>,
    info: &ObjectInfo,
    patience: &mut Patience,
) -> Result<Option<&'static str>, ReadError> {
    let stream = info.stream;
    let alone = Arc::clone(lock(&shared.opener.streams).entry(stream).or_default());
    let others = "another opening of the same object";
    let mut partly = patience.within(others, alone.lock()).await?;
    if let Some(existing) = hosted_as::<O>(shared, stream) {
        *partly = None;
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
    let left = partly
        .take()
        .filter(|left| left.hosted.state::<O>().is_some());
    let name = Arc::clone(&info.name);
    let left = left.unwrap_or_else(|| Partly::new::<O>(name, info.registered));
    let loading = partly.insert(left);
    for _ in 0..ROUNDS {
        let applied = shared.world().applied();
        if applied.0.saturating_sub(loading.read.0) < CLOSE_ENOUGH {
            break;
        }
        load(shared, stream, loading, applied, patience).await?;
    }
    let loaded = partly.take().expect("just inserted");
    let (done, joined) = oneshot::channel();
    lock(&shared.joins).push(Join {
        stream,
        loaded,
        done,
    });
    if shared.syncs.check().is_err() {
        // Whoever ended the replica may have looked before: nobody else would answer.
        lock(&shared.joins).clear();
    }
    shared.player.notify_one();
    match patience.within("playback, to join it", joined).await? {
        // Whoever came later while an earlier call had gone may have joined as something else.
        Ok(result) => result.map(|()| hosted_as::<O>(shared, stream).flatten()),
        Err(_) => Err(shared.check_halted().err().unwrap_or(ReadError::Closed)),
    }
}

/// `Some`: the object is part of the world, and if it is another type than `O`, this one.
fn hosted_as<O: Object>(shared: &Shared, stream: StreamId) -> Option<Option<&'static str>> {
    let existing = {
        let world = shared.world();
        let hosted = world.get(stream)?;
        let same = hosted.state::<O>().is_some();
        (!same).then(|| hosted.type_name())
    };
    // Whoever opened it may have gone before tail checks learned of it.
    shared.hosted_changed();
    Some(existing)
}

/// Feeds `loading` what its stream has below `applied`, all of which was played.
pub(super) async fn load(
    shared: &Arc<Shared>,
    stream: StreamId,
    loading: &mut Partly,
    applied: Position,
    patience: &mut Patience,
) -> Result<(), ReadError> {
    let epoch = shared.syncs.epoch();
    let target = Target { epoch, to: applied };
    load_to(shared, stream, loading, target, patience).await
}

async fn load_to(
    shared: &Arc<Shared>,
    stream: StreamId,
    loading: &mut Partly,
    mut target: Target,
    patience: &mut Patience,
) -> Result<(), ReadError> {
    while loading.read < target.to {
        let (from, max_bytes) = (loading.read, shared.options.part_bytes);
        let part = read_one(&shared.log, stream, from, target, max_bytes);
        let part = match patience.within("a read of its entries", part).await? {
            Ok(part) => part,
            Err(error) => {
                patience.after(error, from).await?;
                continue;
            }
        };
        patience.progress();
        // From here to the new end nothing waits.
        let aborted = shared.world().aborted_between(from, part.complete);
        for (position, entry) in &part.entries {
            loading.hosted.load(stream, *position, entry, |record| {
                aborted.binary_search(&(*position, record)).is_ok()
            });
        }
        loading.read = part.complete;
        // Lowered if the epoch has ended.
        target.to = target.to.min(part.target.to);
        pause().await;
    }
    Ok(())
}

/// Waits for things, and after errors, up to one deadline.
pub(super) struct Patience {
    deadline: Deadline,
    /// It begins anew with every part that was read.
    renewed: bool,
    backoff: Backoff,
    /// The last error, for people.
    obstacle: Option<String>,
    shared: Arc<Shared>,
}

impl Patience {
    /// A deadline from now on.
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            deadline: Deadline::new(&shared.env, shared.options.deadline),
            renewed: false,
            backoff: Backoff::new(&shared.env),
            obstacle: None,
            shared: Arc::clone(shared),
        }
    }

    /// As long as it goes on.
    pub(super) fn renewed(shared: &Arc<Shared>) -> Self {
        Self {
            renewed: true,
            ..Self::new(shared)
        }
    }

    fn progress(&mut self) {
        self.backoff = Backoff::new(&self.shared.env);
        self.obstacle = None;
        if self.renewed {
            self.deadline = Deadline::new(&self.shared.env, self.shared.options.deadline);
        }
    }

    /// Waits for `work`.
    async fn within<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T, ReadError> {
        let done = self.deadline.within(work).await;
        done.ok_or_else(|| ReadError::Unavailable {
            what: self.obstacle.clone().unwrap_or_else(|| what.to_owned()),
            waited_ms: self.deadline.waited_ms,
        })
    }

    async fn after(&mut self, error: LogError, applied: Position) -> Result<(), ReadError> {
        match error {
            LogError::Closed => Err(ReadError::Closed),
            LogError::Trimmed { .. } | LogError::Lost { .. } => {
                let source = error;
                Err(ReplicaHalt::Log { applied, source }.into())
            }
            LogError::Unavailable { what, .. } => {
                self.obstacle = Some(what);
                let pause = self.backoff.sleep();
                self.within("the log", pause).await
            }
            source => Err(ReadError::Log { source }),
        }
    }
}

#[cfg(all(test, not(milonga_loom)))]
mod tests {
    use milonga_protocol::{BackPointers, Entry, EntryId, StreamLink, WriterId};

    use super::*;
    use crate::map::MapState;

    const POSITION: Position = Position(5);

    /// What a directory makes of a payload.
    fn played(payload: &[u8]) -> Hosted {
        let entry = Entry {
            id: EntryId {
                writer: WriterId(1),
                sequence: 1,
            },
            links: vec![StreamLink {
                stream: StreamId::DIRECTORY,
                back: BackPointers::EMPTY,
            }],
            payload: payload.to_vec().into(),
        };
        let mut directory = Hosted::new::<Directory>(Directory::TYPE.into());
        directory.load(StreamId::DIRECTORY, POSITION, &entry, |_| false);
        directory
    }

    #[test]
    fn golden_registration_is_still_read_and_written_alike() {
        let golden = include_bytes!("../../golden/registration-v2.bin");
        let kind = ObjectKind::of::<MapState<String, i64>>();
        assert_eq!(registration_payload(7, "stock", &kind), golden);
        let directory = played(golden);
        let directory = state(&directory).expect("it is read");
        let info = directory.get("stock").expect("it is registered");
        assert_eq!((info.stream, info.registered), (StreamId(26), POSITION));
        assert_eq!(info.kind, kind);
    }

    /// It would name another stream than the build that wrote it.
    #[test]
    fn a_registration_by_an_earlier_build_is_refused() {
        let kind = ObjectKind::of::<MapState<String, i64>>();
        let payload = registration_payload(7, "stock", &kind);
        let payload = record::decode(&payload).expect("an own record");
        let [Record::Update(update)] = payload.records.as_slice() else {
            panic!("one update");
        };
        let earlier = Record::Update(Update {
            op_version: 1,
            ..update.clone()
        });
        let halted = played(&earlier.encode(record::begin_payload(7, 0)));
        assert!(state(&halted).is_err(), "its names are not served");
        let why = halted.halted().expect("it has halted").to_string();
        assert!(
            why.contains("version 1 is older than version 2") && why.contains("begin a new one"),
            "{why}"
        );
    }
}
