//! Tests of the whole: conformance, faults, clusters of real processes. What they share lies here.

mod rig;

pub use rig::Rig;
