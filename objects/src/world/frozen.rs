//! States that nothing changes any more.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use milonga_protocol::{Position, StreamId};

use super::missing;
use crate::error::{Halt, ReadError};
use crate::object::Object;

/// States at one position, and nothing changes them any more.
pub(crate) struct Frozen {
    /// Exclusive: they include every entry below.
    pub(crate) position: Position,
    pub(super) joins: u64,
    pub(super) objects: BTreeMap<StreamId, Result<Arc<dyn Any + Send + Sync>, Halt>>,
}

impl Frozen {
    fn any(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<&Arc<dyn Any + Send + Sync>, ReadError> {
        let state = self.objects.get(&stream).ok_or_else(|| missing(name))?;
        state.as_ref().map_err(|halt| halt.clone().into())
    }

    pub(crate) fn state<O: Object>(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<&O, ReadError> {
        let state = self.any(stream, name)?.downcast_ref();
        state.ok_or_else(|| missing(name))
    }

    pub(crate) fn share<O: Object>(
        &self,
        stream: StreamId,
        name: &Arc<str>,
    ) -> Result<Arc<O>, ReadError> {
        let state = Arc::clone(self.any(stream, name)?);
        state.downcast().map_err(|_| missing(name))
    }
}
