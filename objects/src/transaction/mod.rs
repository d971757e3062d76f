//! Transactions: run on a frozen world, judged by the log.

mod pop;
mod record;
mod tx;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use milonga_protocol::{EntryId, Position, Time};

use crate::error::{ReadError, TransactionError};
use crate::replica::sync::Reach;
use crate::replica::{Backoff, Deadline, Replica, Shared};
use crate::versions::Clash;

use tx::Crowd;
pub use tx::{Len, Tx};

/// A world that lacks an object is renewed so many times.
pub(super) const RENEWALS: u32 = 3;

/// How long a transaction waits for queue items that others have taken, but not more than half of its deadline: an
/// append takes a fraction of it.
const CROWD_PATIENCE: Duration = Duration::from_secs(1);

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<T> {
    /// It took effect, as a whole.
    Committed {
        /// What the closure returned.
        value: T,
        /// Where: the entry that holds it; for a transaction that wrote nothing, the end (exclusive) of the world it
        /// read.
        position: Position,
    },
    /// Every attempt read something that others changed before it could commit; nothing was written.
    Conflict {
        /// Name of the object, of the last attempt.
        object: Arc<str>,
        /// The key that was read and changed, for people; `None`: the whole object was read.
        key: Option<String>,
        /// Where it was changed.
        position: Position,
        /// The entry that changed it.
        winner: EntryId,
        /// Attempts made.
        attempts: u32,
    },
}

impl<T> Outcome<T> {
    /// What the closure returned, if the transaction committed.
    pub fn committed(self) -> Option<T> {
        match self {
            Self::Committed { value, .. } => Some(value),
            Self::Conflict { .. } => None,
        }
    }
}

impl Replica {
    /// Runs `closure` on a frozen world and commits what it wrote, if nothing it read was changed meanwhile; else runs
    /// it again, up to [`ReplicaOptions::tx_attempts`](crate::ReplicaOptions::tx_attempts) times. Strictly
    /// serializable: it takes effect at one position, after everything that returned before this call.
    ///
    /// * The closure may run several times, so it should have no other effects. It sees its own writes.
    /// * `Err` from the closure ends the transaction; nothing is written.
    /// * A transaction that writes nothing never conflicts, and one that reads nothing never does.
    /// * All attempts share one deadline ([`ReplicaOptions::deadline`](crate::ReplicaOptions::deadline)), which begins
    ///   with this call; what the closure waits for counts, and is dropped when it passes.
    /// * Dropping the future while it commits leaves the outcome open; it takes effect once or not at all.
    ///
    /// # Errors
    /// [`TransactionError`]; a conflict is an [`Outcome`].
    pub async fn transaction<T, E, F>(&self, closure: F) -> Result<Outcome<T>, TransactionError<E>>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<T, E> + Clone,
    {
        let shared = self.shared();
        let most = shared.options.tx_attempts.max(1);
        let mut limit = Limit::new(shared);
        let (mut backoff, mut crowded) = (between(shared, 500, 50), between(shared, 200, 5));
        let mut renewals = 0;
        loop {
            limit.sync(shared).await?;
            let mut tx = Tx::new(Arc::clone(shared), limit.crowd(shared.env.now()));
            let run = AssertUnwindSafe(closure.clone()(&mut tx)).catch_unwind();
            let result = limit.within("its own closure", run).await?;
            match tx.obstacle.take() {
                // It saw placeholders: whatever it made of them does not count.
                Some(ReadError::NotInSnapshot { .. }) if renewals < RENEWALS => {
                    renewals += 1;
                    continue;
                }
                Some(source) => return Err(TransactionError::Read { source }),
                None => {}
            }
            if tx.crowd == Crowd::Met {
                // Gives back what it has taken itself.
                drop(tx);
                let crowd = "queue items that other transactions have taken";
                limit.within(crowd, crowded.sleep()).await?;
                continue;
            }
            let value = match result {
                Ok(Ok(value)) => value,
                Ok(Err(error)) => return Err(TransactionError::Closure(error)),
                Err(panic) => resume_unwind(panic),
            };
            if let Some(source) = tx.unwritable.take() {
                return Err(TransactionError::Commit { source });
            }
            let clash = match tx.commit(self, &limit).await? {
                Verdict::Committed(position) => return Ok(Outcome::Committed { value, position }),
                Verdict::Aborted(clash) => clash,
            };
            limit.attempts += 1;
            tracing::debug!(?clash, limit.attempts, "transaction aborted");
            if limit.attempts >= most {
                return tx.give_up(clash, &limit).await;
            }
            drop(tx);
            let others = "others, who change what it reads";
            limit.within(others, backoff.sleep()).await?;
        }
    }
}

fn between(shared: &Shared, first_us: u64, most_ms: u64) -> Backoff {
    let (first, most) = (
        Duration::from_micros(first_us),
        Duration::from_millis(most_ms),
    );
    Backoff::between(&shared.env, first, most)
}

/// What all attempts of a transaction share.
pub(super) struct Limit {
    pub(super) deadline: Deadline,
    /// Until then it waits for queue items that others have taken.
    crowd_until: Time,
    /// Attempts that ended with a conflict.
    pub(super) attempts: u32,
}

impl Limit {
    fn new(shared: &Shared) -> Self {
        let deadline = shared.options.deadline;
        Self {
            deadline: Deadline::new(&shared.env, deadline),
            // In any case it has a chance to commit after that.
            crowd_until: shared.env.now().after(CROWD_PATIENCE.min(deadline / 2)),
            attempts: 0,
        }
    }

    fn crowd(&self, now: Time) -> Crowd {
        match now < self.crowd_until {
            true => Crowd::Wait,
            false => Crowd::Push,
        }
    }

    /// Plays what was appended before this attempt.
    async fn sync<E>(&self, shared: &Shared) -> Result<(), TransactionError<E>> {
        let synced = shared.syncs.sync(Reach::Written);
        let synced = self.within("the log", synced).await?;
        synced.map_err(|source| match source {
            ReadError::Unavailable { what, .. } => self.late(&what),
            source => TransactionError::Read { source },
        })
    }

    pub(super) async fn within<T, E>(
        &self,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, TransactionError<E>> {
        let done = self.deadline.within(work).await;
        done.ok_or_else(|| self.late(what))
    }

    pub(super) fn late<E>(&self, what: &str) -> TransactionError<E> {
        TransactionError::Unavailable {
            attempts: self.attempts,
            what: what.to_owned(),
            waited_ms: self.deadline.waited_ms,
        }
    }
}

pub(super) enum Verdict {
    Committed(Position),
    Aborted(Clash),
}
