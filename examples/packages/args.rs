//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Turns a Debian control file into a package index, exactly once, through a replicated queue, two maps and counters;
/// then compares every object with a direct count of the file.
#[derive(Debug, Parser)]
#[command(name = "packages")]
pub(crate) struct Args {
    /// A Debian control file; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Where the log lies; what is there already is gone on with. Default: a fresh temporary directory.
    #[arg(long, value_name = "D")]
    pub(crate) dir: Option<PathBuf>,
    /// Tasks that work in this process, on an embedded log.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) workers: u32,
    /// Worker processes, and one producer, on a cluster of server processes that this one starts.
    #[arg(long, value_name = "N", conflicts_with = "workers", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) processes: Option<u32>,
    /// Kill one worker, one producer, one log unit and the sequencer midway; others take over.
    #[arg(long, requires = "processes")]
    pub(crate) kill: bool,
    /// Print one JSON value instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("packages").chain(line.split_whitespace()))
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "--kill",
            "--workers 2 --processes 2",
            "--workers 0",
            "--processes 0",
            "--nonsense",
            "a b",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
        let args = parse("- --processes 4 --kill --json").expect("makes sense");
        assert_eq!(args.file, Some(PathBuf::from("-")));
        assert_eq!(
            (args.processes, args.kill, args.json),
            (Some(4), true, true)
        );
    }
}
