//! The targets.

pub(crate) mod certificates;
pub(crate) mod config;
pub(crate) mod cores;
pub(crate) mod disk;
pub(crate) mod entry;
pub(crate) mod layout;
pub(crate) mod objects;
pub(crate) mod wire;
