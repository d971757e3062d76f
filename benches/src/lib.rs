//! What all benchmarks share: the command line and the report. See `docs/commands.md` for their contract.

pub mod report;
