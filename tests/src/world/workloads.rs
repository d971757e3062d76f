//! What clients do.

mod appends;
mod bank;
mod hand;
mod jobs;
mod lists;
mod log;
mod many;
mod objects;
mod own;
mod ring;

use crate::world::workload::Workload;

pub use appends::Appends;
pub use bank::Bank;
pub(crate) use hand::why;
pub use jobs::Jobs;
pub use lists::ListAppend;
pub use log::WholeLog;
pub use many::Many;
pub use objects::Objects;
pub use own::Own;
pub use ring::Ring;

/// All workloads; a plan chooses one.
#[must_use]
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(Appends),
        Box::new(WholeLog),
        Box::<Objects>::default(),
        Box::<Bank>::default(),
        Box::<Ring>::default(),
        Box::<ListAppend>::default(),
        Box::<Jobs>::default(),
        Box::<Own>::default(),
        Box::<Many>::default(),
    ]
}
