//! The way to one open object.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use milonga_protocol::{Position, StreamId, Time};

use crate::directory::ObjectInfo;
use crate::error::{ReadError, UpdateError};
use crate::object::Object;
use crate::record::{HEADER_BYTES, Record, TouchedKeys, Update as UpdateRecord};
use crate::replica::Replica;
use crate::replica::submit::Item;
use crate::replica::sync::Reach;
use crate::slot::{Convert, Slot};
use crate::update::Update;

/// An open object of any type. Updates of one handle take effect in the order in which they are first polled; a
/// clone is a handle of its own, so that tasks with clones do not wait for each other.
pub struct Handle<O> {
    replica: Replica,
    info: Arc<ObjectInfo>,
    lane: u64,
    object: PhantomData<fn() -> O>,
}

/// Every handle of an open object: what snapshots and transactions take.
pub trait Opened {
    /// The object's state.
    type State: Object;

    /// The plain handle inside.
    fn handle(&self) -> &Handle<Self::State>;
}

impl<O: Object> Opened for Handle<O> {
    type State = O;

    fn handle(&self) -> &Self {
        self
    }
}

impl<O> Clone for Handle<O> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            info: Arc::clone(&self.info),
            lane: self.replica.next_lane(),
            object: PhantomData,
        }
    }
}

impl<O: Object> fmt::Debug for Handle<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({:?})", self.info.kind, self.info.name)
    }
}

impl<O: Object> Handle<O> {
    pub(crate) fn new(replica: Replica, info: ObjectInfo) -> Self {
        Self {
            lane: replica.next_lane(),
            replica,
            info: Arc::new(info),
            object: PhantomData,
        }
    }

    /// Name, stream and type.
    #[must_use]
    pub fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Its stream.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.info.stream
    }

    /// The replica that hosts it.
    #[must_use]
    pub const fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Changes the object.
    pub fn update(&self, op: O::Op) -> Update<O::Output> {
        self.update_as(op, None)
    }

    /// [`Self::update`] whose output is made of `apply`'s.
    pub(crate) fn update_as<T: Send + 'static>(
        &self,
        op: O::Op,
        convert: Option<Convert>,
    ) -> Update<T> {
        let record = encode::<O>(&self.info, &op).and_then(|record| self.check_size(record));
        let item = record.map(|record| Item {
            record,
            streams: vec![self.info.stream],
            slot: Slot::new(Some(Arc::clone(&self.info.name)), convert),
            lane: self.lane,
            deadline: Time::from_start(Duration::MAX),
        });
        Update::new(self.replica.clone(), item)
    }

    fn check_size(&self, record: Vec<u8>) -> Result<Vec<u8>, UpdateError> {
        let limit = self.replica.shared().log.limits().entry_bytes as usize;
        let size = record.len() + HEADER_BYTES;
        if size > limit {
            let object = Arc::clone(&self.info.name);
            return Err(UpdateError::TooLarge {
                object,
                size,
                limit,
            });
        }
        Ok(record)
    }

    /// Reads the object, linearizable: `read` sees every update that returned before this call, in a clone of the
    /// state (which is cheap), so it may take its time and read other objects.
    ///
    /// # Errors
    /// [`ReadError`] if the object halted, or the log cannot be played by the deadline.
    pub async fn read<R>(&self, read: impl FnOnce(&O) -> R) -> Result<R, ReadError> {
        Ok(self.read_with_position(read).await?.0)
    }

    /// As [`Self::read`], with the position that was read at: everything below it was visible.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_with_position<R>(
        &self,
        read: impl FnOnce(&O) -> R,
    ) -> Result<(R, Position), ReadError> {
        let (state, position) = self.look_after(Reach::Hosted, O::clone).await?;
        Ok((read(&state), position))
    }

    /// Reads what this replica has played so far, at once. It may be behind by any amount, and after opening it is
    /// whatever was played then, perhaps nothing; [`Replica::sync`] brings it up.
    ///
    /// # Errors
    /// [`ReadError::Halted`], [`ReadError::ReplicaHalted`].
    pub fn peek<R>(&self, read: impl FnOnce(&O) -> R) -> Result<R, ReadError> {
        Ok(self.peek_with_position(read)?.0)
    }

    /// As [`Self::peek`], with the position that was read at.
    ///
    /// # Errors
    /// As [`Self::peek`].
    pub fn peek_with_position<R>(
        &self,
        read: impl FnOnce(&O) -> R,
    ) -> Result<(R, Position), ReadError> {
        let (state, position) = self.look(O::clone)?;
        Ok((read(&state), position))
    }

    /// Looks at the state after a sync, under the lock that playback needs. A user's closure must not run there: if it
    /// read another object while the player waits for the lock, both would wait for ever.
    pub(crate) async fn look_after<R>(
        &self,
        reach: Reach,
        look: impl FnOnce(&O) -> R,
    ) -> Result<(R, Position), ReadError> {
        self.replica.shared().syncs.sync(reach).await?;
        self.look(look)
    }

    /// As [`Self::look_after`], at once.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&O) -> R) -> Result<(R, Position), ReadError> {
        self.replica.shared().check_halted()?;
        let world = self.replica.shared().world();
        let state = world.state::<O>(self.info.stream, &self.info.name)?;
        Ok((look(state), world.applied()))
    }
}

fn encode<O: Object>(info: &ObjectInfo, op: &O::Op) -> Result<Vec<u8>, UpdateError> {
    let touches = O::touches(op);
    let op = encode_op::<O>(&info.name, op)?;
    let update = UpdateRecord {
        stream: info.stream,
        touches: TouchedKeys::new(&touches),
        op_version: O::OP_VERSION,
        op: serde_bytes::Bytes::new(&op),
    };
    Ok(Record::Update(update).encode(Vec::with_capacity(op.len() + 48)))
}

pub(crate) fn encode_op<O: Object>(name: &Arc<str>, op: &O::Op) -> Result<Vec<u8>, UpdateError> {
    postcard::to_stdvec(op).map_err(|error| UpdateError::Encode {
        object: Arc::clone(name),
        why: error.to_string(),
    })
}
