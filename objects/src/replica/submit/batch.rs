//! Records on their way, and the entries they share.

use std::sync::Arc;

use bytes::Bytes;
use milonga_protocol::{Limits, StreamId, Time};

use crate::record::{HEADER_BYTES, begin_payload};
use crate::slot::Slot;

/// Most records of one entry: they are applied as a whole, and readers wait meanwhile.
pub(super) const RECORDS_PER_ENTRY: usize = 1_024;

/// What a waiting record costs beside its bytes.
pub(super) const RECORD_OVERHEAD: usize = 192;

/// A record that wants to be appended.
pub(crate) struct Item {
    pub(crate) record: Vec<u8>,
    pub(crate) streams: Vec<StreamId>,
    pub(crate) slot: Arc<Slot>,
    /// Whose order it keeps.
    pub(crate) lane: u64,
    /// At submission lowered to the deadline from then on.
    pub(crate) deadline: Time,
}

impl Item {
    pub(super) fn weight(&self) -> usize {
        self.record.len() + RECORD_OVERHEAD
    }
}

/// An entry under way.
pub(crate) struct Batch {
    pub(super) tag: u64,
    pub(crate) slots: Vec<Arc<Slot>>,
    pub(super) deadlines: Vec<Time>,
    pub(super) lanes: Vec<u64>,
    pub(super) streams: Vec<StreamId>,
    pub(super) payload: Bytes,
    pub(super) weight: usize,
}

impl Batch {
    /// What is kept when nobody knows whether it was appended: who wants to know if it turns up.
    pub(super) fn remembered(&self) -> Self {
        Self {
            tag: self.tag,
            slots: self.slots.clone(),
            deadlines: self.deadlines.clone(),
            lanes: Vec::new(),
            streams: Vec::new(),
            payload: Bytes::new(),
            weight: 0,
        }
    }

    pub(super) fn give_up(&self, now: Time, waited_ms: u64) {
        for (slot, deadline) in self.slots.iter().zip(&self.deadlines) {
            if *deadline <= now {
                slot.give_up(waited_ms);
            }
        }
    }
}

/// The next entry.
pub(super) struct Forming {
    pub(super) items: Vec<Item>,
    pub(super) bytes: usize,
    pub(super) streams: Vec<StreamId>,
    pub(super) room: usize,
    pub(super) most_streams: usize,
}

impl Forming {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
            streams: Vec::new(),
            room: (limits.entry_bytes as usize).saturating_sub(HEADER_BYTES),
            most_streams: limits.streams_per_entry as usize,
        }
    }

    /// The first record always goes in: the log says what is wrong with it.
    pub(super) fn takes(&self, item: &Item) -> bool {
        let new_streams = item.streams.iter().filter(|s| !self.streams.contains(*s));
        self.items.is_empty()
            || (self.items.len() < RECORDS_PER_ENTRY
                && self.bytes + item.record.len() <= self.room
                && self.streams.len() + new_streams.count() <= self.most_streams)
    }

    pub(super) fn add(&mut self, item: Item) {
        for stream in &item.streams {
            if !self.streams.contains(stream) {
                self.streams.push(*stream);
            }
        }
        self.bytes += item.record.len();
        self.items.push(item);
    }

    pub(super) fn into_batch(self, tag: u64, lanes: Vec<u64>) -> Batch {
        let mut payload = begin_payload(tag, self.bytes);
        let weight = self.items.iter().map(Item::weight).sum();
        let mut slots = Vec::with_capacity(self.items.len());
        let mut deadlines = Vec::with_capacity(self.items.len());
        for item in self.items {
            payload.extend_from_slice(&item.record);
            slots.push(item.slot);
            deadlines.push(item.deadline);
        }
        Batch {
            tag,
            slots,
            deadlines,
            lanes,
            streams: self.streams,
            payload: payload.into(),
            weight,
        }
    }
}
