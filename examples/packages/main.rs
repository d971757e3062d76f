//! The main job: every stanza of a Debian control file becomes part of a package index, exactly once.
//!
//! ```text
//!   FILE ---> producer ---> queue `stanzas` ---> workers ---> map `packages`, map `edges` (both ways),
//!             its progress moves in the        pop and all    counters `section/NAME` and `total`
//!             transaction that pushes          that follows
//!                                              in one transaction
//! ```
//!
//! Workers never look whether a key is already there: that the stanza was still in the queue is all they need to know.
//! At the end every object is compared with a direct count of the file by separate code. By default producer and workers
//! are tasks on an embedded log; `--processes N` makes them processes on a cluster, and `--kill` kills two of
//! them, and then a log unit and the sequencer.

mod args;
mod bar;
mod child;
mod compare;
mod control;
mod embedded;
mod input;
mod job;
mod processes;
mod reference;
mod report;
mod say;
mod servers;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use args::Args;
use input::Input;
use job::Fault;
use report::Report;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == servers::BE_MILONGA => return servers::be_milonga(arguments),
        Some(first) if first == child::BE_CHILD => return child::main(arguments),
        _ => {}
    }
    let args = Args::parse();
    let json = args.json;
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run_until_told_to_stop(args)),
        Err(error) => Err(Failure::Failed(format!("cannot start a runtime: {error}"))),
    };
    match ended {
        Ok(done) => done,
        Err(failure) => failure.report(json),
    }
}

/// Why there is nothing to compare.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is no such file.
    NotFound(String),
    /// Anything else.
    Failed(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        let mut why = fault.to_string();
        let mut source = fault.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !why.contains(&cause_text) {
                why = format!("{why}: {cause_text}");
            }
            source = cause.source();
        }
        Self::Failed(why)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Failure {
    /// Prints the last line, and gives the exit code.
    fn report(self, json: bool) -> ExitCode {
        let (why, code) = match self {
            Self::NotFound(why) => (why, 3),
            Self::Failed(why) => (why, 1),
        };
        let verdict = format!("failed: {why}");
        let mut out = std::io::stdout();
        let written = if json {
            let value = serde_json::json!({ "ok": false, "verdict": verdict });
            writeln!(out, "{value:#}")
        } else {
            writeln!(out, "{verdict}")
        };
        say::exit(written, ExitCode::from(code))
    }
}

/// Whatever is under way when a signal comes is dropped: processes are killed, temporary files removed.
async fn run_until_told_to_stop(args: Args) -> Result<ExitCode, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Err(Failure::Failed("interrupted".to_owned())),
        _ = terminate.recv() => Err(Failure::Failed("terminated".to_owned())),
        ended = run(args) => ended,
    }
}

/// Does the job and reports; successful if everything is as it should be.
async fn run(args: Args) -> Result<ExitCode, Failure> {
    let input = Input::find(args.file.as_deref())?;
    let checked = input.check()?;
    let reference = reference::count(input.open()?)?;
    let (dir, _temporary) = directory(args.dir)?;
    let (found, work) = match args.processes {
        None => embedded::run(&input, checked, &dir, args.workers).await?,
        Some(workers) => processes::run(&input, checked, &dir, workers, args.kill).await?,
    };
    let mut differences = compare::compare(&reference, &found);
    if (checked.stanzas, checked.malformed) != (reference.stanzas, reference.malformed) {
        differences.notes.push(format!(
            "the reader and the reference disagree: {checked:?}"
        ));
    }
    let report = Report {
        input: &input.name,
        reference: &reference,
        found: &found,
        differences: &differences,
        work: &work,
    };
    let code = if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    Ok(say::exit(report.print(args.json), code))
}

/// The directory to use, made if it is not there, and what removes a temporary one.
fn directory(dir: Option<PathBuf>) -> Result<(PathBuf, Option<tempfile::TempDir>), Failure> {
    if let Some(dir) = dir {
        std::fs::create_dir_all(&dir).map_err(|error| {
            Failure::Failed(format!(
                "cannot make {}: {error}; pass another --dir",
                dir.display()
            ))
        })?;
        return Ok((dir.canonicalize()?, None));
    }
    let temporary = tempfile::Builder::new()
        .prefix("milonga-packages-")
        .tempdir()?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}
