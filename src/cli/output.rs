//! What every command prints, and how it fails.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use serde::Serialize;

/// Why a command ends with an exit code other than 0.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    pub(super) fn failed(text: impl Display) -> Self {
        Self {
            code: 1,
            text: text.to_string(),
        }
    }

    pub(super) fn usage(text: impl Display) -> Self {
        Self {
            code: 2,
            text: text.to_string(),
        }
    }

    pub(super) fn not_found(text: impl Display) -> Self {
        Self {
            code: 3,
            text: text.to_string(),
        }
    }

    pub(super) fn interrupted() -> Self {
        Self::failed("interrupted; what was asked for may have happened, or not")
    }

    /// Standard output cannot be written.
    fn output(error: &std::io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            // Whoever read has seen enough: nothing to say, and the exit code of tools that SIGPIPE ends.
            return Self {
                code: 141,
                text: String::new(),
            };
        }
        Self::failed(format!("cannot write standard output: {error}"))
    }

    pub(super) fn report(&self) -> ExitCode {
        if !self.text.is_empty() {
            let _ = writeln!(std::io::stderr(), "error: {}", self.text);
        }
        ExitCode::from(self.code)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Every library error is reported with its causes, in one line; some causes are in the error's own words already.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let why = error.to_string();
            if !text.contains(&why) {
                text = format!("{text}: {why}");
            }
            cause = error.source();
        }
        Self::failed(text)
    }
}

/// Prints one line on standard output. A closed pipe ends the command quietly, as tools do.
pub(super) fn line(text: impl Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| Failure::output(&error))
}

/// Prints `value` as JSON, or what `text` makes of it.
pub(super) fn result<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    if json {
        line(serde_json::to_string(value)?)
    } else {
        let text = text(value);
        if text.is_empty() {
            Ok(())
        } else {
            line(text.trim_end_matches('\n'))
        }
    }
}
