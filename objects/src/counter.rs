//! The counter.

use serde::{Deserialize, Serialize};

use crate::error::ReadError;
use crate::handle::{Handle, Opened};
use crate::object::{Context, Object, Touches};
use crate::replica::sync::Reach;
use crate::update::Update;

/// A replicated counter of `i64`, zero at first; it stops at the ends of its range.
///
/// ```
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/env.rs")); }
/// # use milonga_objects::{Replica, ReplicaOptions};
/// # use milonga_protocol::MemoryLog;
/// # support::run(async |env| {
/// # let replica = Replica::start(env, MemoryLog::single(), ReplicaOptions::default());
/// let sold = replica.counter("sold").await?;
/// assert_eq!(sold.add(3).await?, 3);
/// assert_eq!(sold.add(-1).await?, 2);
/// assert_eq!(sold.get().await?, 2);
/// # Ok(()) });
/// ```
#[derive(Clone, Debug)]
pub struct Counter(pub(crate) Handle<CounterState>);

impl Counter {
    /// Adds `n`; resolves to the new value.
    pub fn add(&self, n: i64) -> Update<i64> {
        self.0.update(CounterOp::Add(n))
    }

    /// The value, linearizable.
    ///
    /// # Errors
    /// As [`Handle::read`].
    pub async fn get(&self) -> Result<i64, ReadError> {
        Ok(self
            .0
            .look_after(Reach::Hosted, |counter| counter.value)
            .await?
            .0)
    }

    /// The value as this replica knows it now; see [`Handle::peek`].
    ///
    /// # Errors
    /// As [`Handle::peek`].
    pub fn peek(&self) -> Result<i64, ReadError> {
        Ok(self.0.look(|counter| counter.value)?.0)
    }
}

impl Opened for Counter {
    type State = CounterState;

    fn handle(&self) -> &Handle<CounterState> {
        &self.0
    }
}

/// State of a [`Counter`].
#[derive(Clone, Debug, Default)]
pub struct CounterState {
    value: i64,
}

impl CounterState {
    /// The value.
    #[must_use]
    pub const fn value(&self) -> i64 {
        self.value
    }
}

/// An update of a [`Counter`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CounterOp {
    /// Adds; outputs the new value.
    Add(i64),
}

impl Object for CounterState {
    const TYPE: &'static str = "counter";
    const OP_VERSION: u16 = 1;
    type Op = CounterOp;
    type Output = i64;

    fn apply(&mut self, op: CounterOp, _: &Context) -> i64 {
        match op {
            CounterOp::Add(n) => self.value = self.value.saturating_add(n),
        }
        self.value
    }

    fn touches(_: &CounterOp) -> Touches {
        Touches::Whole
    }
}
