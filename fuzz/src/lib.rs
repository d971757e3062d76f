//! Fuzz targets: every decoder of bytes that come from a network, a disk or a person.
//!
//! A target is a function of bytes that panics if a rule is broken: whatever the bytes, decoding ends; what was
//! decoded is encoded to something that decodes alike; what was accepted answers every question about it.
//!
//! * `cargo test -p milonga-fuzz` runs each target over its corpus and some thousand mutations, always the same.
//! * `just fuzz TARGET SECONDS` runs libFuzzer with AddressSanitizer (`libfuzzer/`, a workspace of its own).
//! * `cargo run -p milonga-fuzz --bin seeds` writes the corpora's seeds anew.

mod mutate;
mod seeds;
mod targets;

pub use mutate::Mutator;
pub use seeds::seeds;

/// One decoder, or some that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics if the bytes break a rule.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("frames", targets::wire::frames),
    target("handshake", targets::wire::handshake),
    target("request", targets::wire::request),
    target("response", targets::wire::response),
    target("entry", targets::entry::entry),
    target("payload", targets::objects::payload),
    target("keys", targets::objects::keys),
    target("blocks", targets::disk::blocks),
    target("segment", targets::disk::segment),
    target("directory", targets::disk::directory),
    target("unit", targets::cores::unit),
    target("sequencer", targets::cores::sequencer),
    target("layout_records", targets::layout::records),
    target("process_config", targets::config::process),
    target("client_config", targets::config::client),
    target("certificates", targets::certificates::certificates),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// Runs the target of that name.
///
/// # Panics
/// If `bytes` break one of its rules, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(bytes);
}
