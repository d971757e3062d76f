//! Prints. Nobody listening any more is no reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

/// Exit code of tools whose reader has seen enough, as if SIGPIPE had ended them.
const CLOSED_PIPE: u8 = 141;

/// A line on standard error.
pub(crate) fn note(line: impl Display) {
    // There is nowhere else to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}

/// What becomes of the exit code if standard output could not be written.
pub(crate) fn exit(written: io::Result<()>, code: ExitCode) -> ExitCode {
    match written {
        Ok(()) => code,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(CLOSED_PIPE),
        Err(error) => {
            note(format_args!("cannot write standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}
