//! Transactions: run on a frozen world, judged by the log.

mod pop;
mod record;
mod tx;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use milonga_protocol::{EntryId, Position};

use crate::error::{ReadError, TransactionError};
use crate::replica::sync::Reach;
use crate::replica::{Backoff, Replica};
use crate::versions::Clash;

use tx::Crowd;
pub use tx::{Len, Tx};

/// A world that lacks an object is renewed so many times.
pub(super) const RENEWALS: u32 = 3;

/// How long a transaction waits for queue items that others have taken: an append takes a fraction of it.
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
        let mut backoff = Backoff::between(
            &shared.env,
            Duration::from_micros(500),
            Duration::from_millis(50),
        );
        let (mut attempts, mut renewals) = (0, 0);
        let mut crowded = Backoff::between(
            &shared.env,
            Duration::from_micros(200),
            Duration::from_millis(5),
        );
        let patience = shared.env.now().after(CROWD_PATIENCE);
        loop {
            let synced = shared.syncs.sync(Reach::Written).await;
            synced.map_err(|source| TransactionError::Read { source })?;
            let crowd = match shared.env.now() < patience {
                true => Crowd::Wait,
                false => Crowd::Push,
            };
            let mut tx = Tx::new(Arc::clone(shared), crowd);
            let run = AssertUnwindSafe(closure.clone()(&mut tx)).catch_unwind();
            let result = run.await;
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
                crowded.sleep().await;
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
            attempts += 1;
            let clash = match tx.commit(self).await? {
                Verdict::Committed(position) => return Ok(Outcome::Committed { value, position }),
                Verdict::Aborted(clash) => clash,
            };
            tracing::debug!(?clash, attempts, "transaction aborted");
            if attempts >= most {
                return tx.give_up(clash, attempts).await;
            }
            drop(tx);
            backoff.sleep().await;
        }
    }
}

pub(super) enum Verdict {
    Committed(Position),
    Aborted(Clash),
}
