//! The `milonga` command.
fn main() {}
