//! The `milonga` command.

fn main() -> std::process::ExitCode {
    milonga::cli::main()
}
