//! Commit records.

use std::collections::BTreeSet;
use std::sync::Arc;

use milonga_protocol::{EntryId, LogError, Position, ReadAnswer, StreamId};
use serde_bytes::Bytes as Slice;

use crate::error::ReadError;
use crate::key::KeyBytes;
use crate::object::Touches;
use crate::record::{Read, ReadKeys, TouchedKeys, Update};
use crate::replica::Shared;

/// An object's name and its keys' encoding.
pub(super) struct Name {
    pub(super) name: Arc<str>,
    pub(super) key_encoding: String,
}

pub(super) enum Reads {
    Whole,
    Keys(BTreeSet<KeyBytes>),
}

pub(super) struct Written {
    pub(super) stream: StreamId,
    pub(super) touches: Touches,
    pub(super) op_version: u16,
    pub(super) op: Vec<u8>,
}

pub(super) fn encode_reads<'a>(
    (stream, (_, reads)): (&StreamId, &'a (Arc<Name>, Reads)),
) -> Read<'a> {
    Read {
        stream: *stream,
        what: match reads {
            Reads::Whole => ReadKeys::Whole,
            Reads::Keys(keys) => {
                ReadKeys::Keys(keys.iter().map(|k| Slice::new(k.as_slice())).collect())
            }
        },
    }
}

pub(super) fn encode_update(update: &Written) -> Update<'_> {
    Update {
        stream: update.stream,
        touches: TouchedKeys::new(&update.touches),
        op_version: update.op_version,
        op: Slice::new(&update.op),
    }
}

/// Who wrote the entry at `position`, which was played here.
pub(super) async fn writer_at(shared: &Shared, position: Position) -> Result<EntryId, ReadError> {
    let mut answers = shared
        .log
        .read(vec![position])
        .await
        .map_err(|source| match source {
            LogError::Closed => ReadError::Closed,
            LogError::Unavailable { what, waited_ms } => ReadError::Unavailable { what, waited_ms },
            source => ReadError::Log { source },
        })?;
    match answers.pop() {
        Some(ReadAnswer::Data(entry)) => Ok(entry.id),
        Some(ReadAnswer::Trimmed) => Err(ReadError::Log {
            source: LogError::Trimmed {
                below: position.next(),
                from: position,
            },
        }),
        _ => Err(ReadError::Log {
            source: LogError::Lost { position },
        }),
    }
}
