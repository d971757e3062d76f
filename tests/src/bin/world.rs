//! `world`: runs seeded worlds; see `docs/commands.md`.

fn main() -> std::process::ExitCode {
    milonga_tests::command::main()
}
