//! Tests of the whole: conformance, faults, clusters of real processes. What they share lies here.

pub mod command;
mod rig;
pub mod torture;
pub mod world;

pub use rig::Rig;
