//! `torture`: kills and stops real processes; see `docs/commands.md`.

fn main() -> std::process::ExitCode {
    milonga_tests::torture::main()
}
