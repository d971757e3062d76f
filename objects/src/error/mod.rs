//! Why something was not done, and what to do next. A conflict between transactions is an outcome, not an error.

mod halt;
mod open;
mod read;
mod transaction;
mod update;

pub use halt::{Halt, ReplicaHalt};
pub use open::OpenError;
pub use read::ReadError;
pub use transaction::TransactionError;
pub use update::UpdateError;
