//! The conformance suite of the [`Log`](crate::Log) contract: one list of checks for every implementation.
//!
//! An implementation gives a [`LogUnderTest`] and runs [`run_all`], or picks from [`checks`]. A check panics with a
//! text that says which clause was broken. Checks work on a log that was used before (they begin at its tail and
//! use fresh streams), but they must not run at the same time on one log. They have no clock: whoever runs them
//! puts a time limit around them.

mod appends;
mod decisions;
mod reads;
mod streams;
mod support;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::env::BoxFuture;
use crate::ids::{Position, StreamId};
use crate::log::{SharedLog, TailOf};
use support::World;

/// A log and the hooks that the checks need. Faults that an implementation cannot make are `false` or `None`: the
/// checks that need them are then reported as [`Outcome::NotSupported`].
pub trait LogUnderTest: Send + Sync + 'static {
    /// The `n`-th client, independent of the others (`n` is at most 3). The same handle each time.
    fn log(&self, n: usize) -> SharedLog;

    /// Takes a token for these streams, as a client that dies before it writes.
    fn make_hole(&self, streams: Vec<StreamId>) -> BoxFuture<'_, Position>;

    /// The writer of a hole wakes up and tries to write: whether it succeeded, `None` if there is no such writer.
    fn write_late(&self, _hole: Position, _payload: Bytes) -> BoxFuture<'_, Option<bool>> {
        Box::pin(async { None })
    }

    /// Damages a written position on every replica, beyond repair.
    fn lose(&self, _position: Position) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    /// Damages a written position on one replica; another one still has it.
    fn lose_one_replica(&self, _position: Position) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    /// Crashes all servers at once and starts them again. Clients stay.
    fn restart(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }
}

/// How a check ended, if it did not panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The clause holds.
    Passed,
    /// The implementation lacks the hook.
    NotSupported,
}

/// One check.
#[derive(Clone, Copy)]
pub struct Check {
    /// What holds.
    pub name: &'static str,
    /// The clause of the contract, 1 to 6; 0 for what goes beyond them.
    pub clause: u8,
    run: fn(World) -> BoxFuture<'static, Outcome>,
}

impl Check {
    /// Runs the check.
    ///
    /// # Panics
    /// If the clause is broken.
    pub async fn run(&self, under: Arc<dyn LogUnderTest>) -> Outcome {
        let outcome = (self.run)(World::new(Arc::clone(&under)).await).await;
        // The next check on the same log may trim, and a hole would be in its way. What is lost stays.
        let log = under.log(0);
        if let Ok(tail) = log.tail(TailOf::Log).await {
            let _ = log.settle(tail.trimmed, tail.next).await;
        }
        outcome
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (clause {})", self.name, self.clause)
    }
}

/// Runs every check on a log of its own and reports each as it ends.
///
/// # Panics
/// At the first check that fails.
pub async fn run_all(
    make: impl AsyncFn() -> Arc<dyn LogUnderTest>,
    mut report: impl FnMut(&Check, Outcome),
) {
    for check in checks() {
        let outcome = check.run(make().await).await;
        report(&check, outcome);
    }
}

macro_rules! list {
    ($($clause:literal $module:ident::$name:ident,)*) => {
        vec![$(Check {
            name: stringify!($name),
            clause: $clause,
            run: |world| Box::pin($module::$name(world)),
        },)*]
    };
}

/// All checks.
#[must_use]
pub fn checks() -> Vec<Check> {
    list![
        1 decisions::a_value_stays_for_ever,
        1 decisions::junk_stays_for_ever,
        1 decisions::settling_and_a_late_write_agree,
        1 decisions::settling_twice_changes_nothing,
        2 appends::acknowledged_entries_survive_a_restart,
        2 appends::acknowledged_entries_survive_damage_of_one_replica,
        3 appends::a_read_sees_what_returned_before,
        3 appends::a_tail_check_sees_what_returned_before,
        3 appends::what_is_being_written_is_told_apart,
        3 appends::a_stream_read_sees_what_returned_before,
        4 appends::concurrent_appends_are_there_once_each,
        4 appends::a_dropped_append_is_there_once_or_not_at_all,
        4 appends::appends_through_a_restart_are_there_once_or_failed,
        5 reads::data_is_read_as_it_was_written,
        5 reads::a_filled_hole_reads_junk,
        5 reads::what_nobody_wrote_reads_unwritten,
        5 reads::below_the_mark_reads_trimmed,
        5 reads::a_lost_position_reads_lost,
        5 reads::answers_come_in_the_order_asked,
        6 streams::nothing_is_delivered_past_a_hole,
        6 streams::a_late_write_is_delivered_or_refused,
        6 streams::streams_come_in_order_without_gaps,
        6 streams::a_lost_position_stops_its_stream,
        6 streams::a_trimmed_start_is_an_error,
        0 streams::two_readers_see_one_order,
        0 streams::an_entry_of_many_streams_has_one_position,
        0 streams::links_lead_back_through_the_stream,
        0 streams::max_bytes_bounds_a_part,
        0 streams::a_reader_follows_a_writer,
        0 streams::wait_wakes_up,
        0 reads::an_absent_stream_has_an_empty_tail,
        0 appends::an_oversize_entry_is_refused,
        0 appends::too_many_streams_are_refused,
        0 appends::a_stream_named_twice_is_refused,
        0 decisions::trim_is_monotone,
        0 decisions::trim_stops_at_what_is_not_settled,
        0 decisions::trim_survives_a_restart,
    ]
}
