//! The producer and the workers as processes: they say what they do in JSON, a line each, on standard output, and end
//! when their standard input does.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use milonga::{ClientConfig, Milonga};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::job::{Event, Fault, Job, Observer, Production, produce, work};
use crate::say;

/// First argument that makes this binary a child; the second is an [`Order`] in JSON.
pub(crate) const BE_CHILD: &str = "--be-child";

/// What a child has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// How to reach the cluster.
    pub(crate) config: PathBuf,
    /// Which part.
    pub(crate) part: Part,
}

/// A part of the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    /// Push every stanza of this file.
    Produce {
        /// The file.
        path: PathBuf,
        /// Its [`Production::fingerprint`].
        fingerprint: u64,
        /// How many stanzas it has.
        stanzas: u64,
    },
    /// Take stanzas.
    Work {
        /// Transactions at a time.
        tasks: u32,
    },
}

/// Runs a child.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let order = arguments
        .next()
        .and_then(|order| serde_json::from_str(order.to_str()?).ok());
    let Some(order) = order else {
        say::note(format_args!("{BE_CHILD} is for this program's own use"));
        return ExitCode::from(2);
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say::note(format_args!("cannot start a runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            ended = carry_out(order) => ended,
            () = parent_is_gone() => Err("the parent process is gone".into()),
        }
    });
    // Somebody still reads standard input in the background.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say::note(format_args!("pid {}: {fault}", std::process::id()));
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(order: Order) -> Result<(), Fault> {
    let milonga = Milonga::connect(ClientConfig::read(&order.config)?).await?;
    let job = Arc::new(Job::open(milonga).await?);
    let observe: Observer = Arc::new(|event| say(&event));
    match order.part {
        Part::Produce {
            path,
            fingerprint,
            stanzas,
        } => {
            produce(&job, &path, Production::new(fingerprint, stanzas), &observe).await?;
        }
        Part::Work { tasks } => {
            let mut running = JoinSet::new();
            for task in 1..=tasks {
                let (job, observe) = (Arc::clone(&job), Arc::clone(&observe));
                running.spawn(async move { work(&job, task, &observe).await });
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
        }
    }
    job.close().await
}

/// One write: a line is whole or not there when somebody kills this process.
fn say(event: &Event) {
    let mut line = serde_json::to_string(event).expect("plain data");
    line.push('\n');
    let mut out = std::io::stdout().lock();
    // A parent that is gone is noticed elsewhere.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

async fn parent_is_gone() {
    let mut buffer = [0; 64];
    let mut input = tokio::io::stdin();
    while input.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}
