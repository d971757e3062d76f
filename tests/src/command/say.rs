//! Prints. Nobody listening any more is no reason to panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// A line on standard output. One that nobody reads, or that there is no room for, ends the process.
pub(crate) fn print(line: impl Display) {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => {}
        // As if SIGPIPE had ended it.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(141),
        Err(error) => {
            note(format_args!("cannot write standard output: {error}"));
            std::process::exit(1);
        }
    }
}

/// A line on standard error.
pub(crate) fn note(line: impl Display) {
    // There is nowhere else to say that this failed.
    let _ = writeln!(io::stderr(), "{line}");
}
