//! Whole processes, driven with raw requests.

mod cluster;
mod embedded;
mod raw;
