//! The seeded world: the whole system in one thread, on virtual time, under faults that a seed draws.
//!
//! ```text
//!   seed ── Plan (shape, limits, faults) ── run ── Report (trace hash, operations, what was violated)
//!                                            |
//!    Agenda: faults begin and end ──> Cluster, clients: processes over ──> Executor (time, tasks, order)
//!    Invariants <── Journal <───────── Workload                            WorldNetwork, WorldDisk
//! ```
//!
//! Product code runs as it is, over its own seams: `Env`, `Network`, `Machine`. A run is a pure function of plan and
//! seed: the same bytes in every process. `docs/decisions/0008-the-seeded-world.md` says why it is built like this.

mod agenda;
mod clients;
mod cluster;
mod disk;
mod executor;
pub mod history;
pub mod invariants;
mod journal;
mod network;
pub mod opinions;
mod panics;
mod plan;
mod quic;
mod rng;
mod run;
mod shrink;
mod takeovers;
mod trace;
pub mod witness;
mod workload;
pub mod workloads;

pub use cluster::Cluster;
pub use disk::{DiskPlan, End, WorldDisk, WorldStore};
pub use executor::{Executor, Order, ProcessId, RunError};
pub use journal::{Journal, Observed, Operation, OperationId, Outcome, Pages, Record, Seen, Tail};
pub use network::{Direction, Exchange, How, Letter, NetworkPlan, Said, Shown, Wire, WorldNetwork};
pub use panics::catch_quietly;
pub use plan::{Fault, FaultKind, Plan, Shape};
pub use rng::Rng;
pub use run::{Failure, Report, run, run_workload};
pub use shrink::shrink;
pub use trace::{Moment, Trace};
pub use workload::{Client, Invariant, Shared, Violation, Workload, WorldView};
