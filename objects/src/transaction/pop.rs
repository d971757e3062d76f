//! Which item a transactional pop takes.

use std::collections::BTreeSet;

use crate::object::Value;
use crate::queue::{ItemKey, QueueState};

/// A transactional pop chooses among so many first items.
pub(super) const POP_CHOICE: usize = 256;

/// One of the first items that no other local transaction has taken; one of the first if all are.
pub(super) fn choose<T: Value>(
    state: &QueueState<T>,
    claimed: &BTreeSet<ItemKey>,
    random: u64,
) -> Option<ItemKey> {
    let keys = || state.iter().map(|(key, _)| key);
    let mut free: Vec<_> = keys()
        .take(POP_CHOICE + claimed.len())
        .filter(|key| !claimed.contains(key))
        .take(POP_CHOICE)
        .collect();
    if free.is_empty() {
        free = keys().take(POP_CHOICE).collect();
    }
    let choices = free.len() as u64;
    let index = usize::try_from(random.checked_rem(choices)?).unwrap_or(0);
    free.get(index).copied()
}
