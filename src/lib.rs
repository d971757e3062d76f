//! Replicated maps, counters, queues and your own types, inside your process, kept identical everywhere by one
//! shared log, with transactions across them.
//!
//! ```
//! use milonga::{Milonga, Outcome};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path();
//! let milonga = Milonga::embedded(dir).await?; // or Milonga::connect(config) for a cluster
//! let stock = milonga.map::<String, i64>("stock").await?;
//! let sold = milonga.counter("sold").await?;
//! stock.insert("tango shoes".to_owned(), 2).await?;
//!
//! // Both change, or neither; retried if somebody else changed what it read.
//! let outcome = milonga
//!     .transaction(async |tx| {
//!         let shoes = "tango shoes".to_owned();
//!         let left = tx.get(&stock, &shoes).unwrap_or(0);
//!         if left > 0 {
//!             tx.insert(&stock, shoes, left - 1);
//!             tx.add(&sold, 1);
//!         }
//!         Ok::<_, std::convert::Infallible>(left > 0)
//!     })
//!     .await?;
//! assert!(matches!(outcome, Outcome::Committed { value: true, .. }));
//! assert_eq!(sold.get().await?, 1);
//! milonga.close().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! [`Milonga::embedded`] keeps the log in a directory of this process; [`Milonga::connect`] shares one with others
//! over a cluster of servers (`milonga serve`). Both give the same objects with the same guarantees: updates are
//! durable when their future completes, reads are linearizable, transactions strictly serializable.

#[cfg(feature = "cli")]
pub mod cli;
mod config;
mod error;
mod milonga;

pub use config::{ClientConfig, ConfigError, ServerAddress, TlsPaths};
pub use error::Error;
pub use milonga::Milonga;
pub use milonga_client::{ConnectError, LogClient, Subscription};
pub use milonga_objects::*;
pub use milonga_protocol::{
    AppendError, Appended, Entry, EntryId, Epoch, Log, LogError, NewEntry, Position, ReadAnswer,
    SharedLog, StreamId, StreamPart, StreamRead, Tail, TailOf, Target,
};

/// The README's code is compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
