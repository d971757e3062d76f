//! Tests of the whole: conformance, faults, clusters of real processes. What they share lies here.

pub mod command;
mod loop_disk;
mod rig;
pub mod torture;
pub mod world;

pub use loop_disk::LoopDisk;
pub use rig::Rig;
