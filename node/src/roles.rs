//! The three cores, each as the host sees it.

mod layout;
mod sequencer;
mod unit;

pub(crate) use layout::{LayoutEvent, LayoutRole};
pub(crate) use sequencer::{Leased, SequencerRole};
pub(crate) use unit::{UnitRole, UnitState};
