//! Locks that survive a panic of another holder.

use milonga_protocol::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;

/// Locks. What the mutexes of this crate guard is consistent between any two statements, so a panic elsewhere
/// must not spread.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
