//! Tests of the whole unit on the simulated disk.

mod crashes;
mod damage;
mod every_bit;
mod faults;
mod fuzz;
mod golden;
mod inspect;
mod marks;
mod rejoin;
mod requests;
mod rig;
mod speed;
