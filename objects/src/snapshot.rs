//! Frozen worlds.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use milonga_protocol::Position;

use crate::error::ReadError;
use crate::handle::Opened;
use crate::object::Object;
use crate::replica::Shared;
use crate::world::Frozen;

/// All open objects as they were at one position. Cheap to clone; holding it keeps the old states in memory.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/env.rs")); }
/// # use milonga_objects::{Replica, ReplicaOptions};
/// # use milonga_protocol::MemoryLog;
/// # support::run(async |env| {
/// # let replica = Replica::start(env, MemoryLog::single(), ReplicaOptions::default());
/// let stock = replica.map::<String, i64>("stock").await?;
/// stock.insert("apples".into(), 3).await?;
/// let before = replica.snapshot().await?;
/// stock.insert("apples".into(), 2).await?;
/// assert_eq!(before.of(&stock)?.get("apples"), Some(&3));
/// # Ok(()) });
/// ```
#[derive(Clone)]
pub struct Snapshot {
    frozen: Arc<Frozen>,
    /// Handles of other replicas are refused: their streams may belong to another log.
    replica: Weak<Shared>,
}

impl Snapshot {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            frozen: shared.freeze(),
            replica: Arc::downgrade(shared),
        }
    }

    /// Everything below it is included, nothing at it or above.
    #[must_use]
    pub fn position(&self) -> Position {
        self.frozen.position
    }

    /// The state of one object.
    ///
    /// # Errors
    /// [`ReadError::Halted`], or [`ReadError::NotInSnapshot`] if it was opened later.
    pub fn of<H: Opened>(&self, object: &H) -> Result<View<H::State>, ReadError> {
        let handle = object.handle();
        let info = handle.info();
        if !std::ptr::eq(
            self.replica.as_ptr(),
            Arc::as_ptr(handle.replica().shared()),
        ) {
            let object = Arc::clone(&info.name);
            return Err(ReadError::NotInSnapshot { object });
        }
        self.frozen.share(info.stream, &info.name).map(View)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({})", self.frozen.position)
    }
}

/// The frozen state of one object.
#[derive(Debug)]
pub struct View<O>(Arc<O>);

impl<O> Clone for View<O> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<O: Object> Deref for View<O> {
    type Target = O;

    fn deref(&self) -> &O {
        &self.0
    }
}
