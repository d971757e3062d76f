//! A process that tests start, trace and kill.
//!
//! `child server …` is the `milonga` command; `child append DIR TASKS` appends to an embedded log for ever and prints
//! a line for each entry once it is acknowledged; `child append-one DIR` appends one entry and prints its line.

#![expect(
    clippy::disallowed_methods,
    reason = "real servers run on a real runtime"
)]

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use milonga::{Milonga, NewEntry, SharedLog, StreamId};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = match words.as_slice() {
        ["server", ..] => return milonga::cli::run(std::env::args_os().skip(1)),
        ["append", dir, tasks] => {
            runtime.block_on(append_for_ever(dir, tasks.parse().unwrap_or(1)))
        }
        ["append-one", dir] => runtime.block_on(append_one(dir)),
        _ => Err("child server … | append DIR TASKS | append-one DIR".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("child: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn append(log: &SharedLog, payload: String) -> Result<(), AnyError> {
    let appended = log
        .append(NewEntry::new(vec![StreamId::raw(1)], payload.clone()))
        .await?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "acked {} {payload}", appended.position)?;
    Ok(out.flush()?)
}

async fn append_one(dir: &str) -> Result<(), AnyError> {
    let milonga = Milonga::embedded(dir).await?;
    append(&milonga.log(), "the traced entry".to_owned()).await?;
    Ok(milonga.close().await?)
}

async fn append_for_ever(dir: &str, tasks: usize) -> Result<(), AnyError> {
    let milonga = Milonga::embedded(dir).await?;
    let run = std::process::id();
    let tasks: Vec<_> = (0..tasks)
        .map(|task| {
            let log = milonga.log();
            tokio::spawn(async move {
                for n in 0_u64.. {
                    append(&Arc::clone(&log), format!("{run}-{task}-{n}")).await?;
                }
                Ok::<(), AnyError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}
