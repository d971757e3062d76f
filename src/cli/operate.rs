//! `milonga cluster …`: growth and care by command. The layout does the work; this asks, and shows how far it is.

mod asking;
mod text;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use milonga_protocol::Epoch;
use milonga_protocol::change::{ChangeReport, ChangeStage, ClusterChange, CopyReport, EpochReport};
use serde_json::json;

use super::output::{self, Failure};
use super::{Place, Target, serve, status};
use crate::ClientConfig;
use asking::{Asking, Unanswered};

/// How often the layout is asked how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make configurations and certificates of a new cluster; the same as `milonga init`.
    Init(serve::Init),
    /// Show who serves what; the same as `milonga status`.
    Status(status::StatusCommand),
    /// Show all epochs with their starts, when and why each began, and the chains of the newest layout.
    History,
    /// Make another process the sequencer, which must be configured as one or as a spare.
    MoveSequencer {
        /// The process.
        #[arg(value_parser = server_name)]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Let a unit take places in chains. It has to run, with an empty directory.
    AddUnit {
        /// The unit's process.
        #[arg(value_parser = server_name)]
        name: String,
        /// The chain it belongs to, from 1: it comes in at once if that lacks a replica.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        chain: Option<u16>,
        #[command(flatten)]
        how: How,
    },
    /// Take a unit out of all chains, for good. Refused if a chain would keep too few replicas.
    RemoveUnit {
        /// The unit's process.
        #[arg(value_parser = server_name)]
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Give a unit's place to another one. The old one serves until the new one has everything.
    ReplaceUnit {
        /// Who leaves.
        #[arg(value_parser = server_name)]
        old: String,
        /// Who comes, running.
        #[arg(value_parser = server_name)]
        new: String,
        #[command(flatten)]
        how: How,
    },
    /// Spread what is appended from now on over one more chain of these units. They have to run, with empty directories.
    AddChain {
        /// The units' processes, head first.
        #[arg(required = true, value_parser = server_name)]
        names: Vec<String>,
        #[command(flatten)]
        how: How,
    },
}

/// How a change is made.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct How {
    /// Show what would be done, and change nothing. Waits 15 seconds for an answer at most.
    #[arg(long)]
    dry_run: bool,
    /// Seconds to wait until all is done. What was begun goes on afterwards; the same command waits for it again.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    deadline: u64,
}

impl How {
    /// How long to wait. What would be done is known at once, or nobody can say.
    fn seconds(self) -> u64 {
        if self.dry_run {
            self.deadline.min(15)
        } else {
            self.deadline
        }
    }
}

/// A name that a server can have.
fn server_name(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("this is empty; name a process of the cluster");
    }
    Ok(text.to_owned())
}

impl ClusterCommand {
    pub(super) async fn run(self, target: &Target, json: bool) -> Result<(), Failure> {
        let (change, how) = match self {
            Self::Init(init) => return init.run(json),
            Self::Status(command) => return command.run(target, json).await,
            Self::History => return history(target, json).await,
            Self::MoveSequencer { name, how } => {
                let to = name.as_str().into();
                (ClusterChange::MoveSequencer { to }, how)
            }
            Self::AddUnit { name, chain, how } => {
                let (name, chain) = (name.as_str().into(), chain.map(|number| number - 1));
                (ClusterChange::AddUnit { name, chain }, how)
            }
            Self::RemoveUnit { name, how } => {
                let name = name.as_str().into();
                (ClusterChange::RemoveUnit { name }, how)
            }
            Self::ReplaceUnit { old, new, how } => {
                let (old, new) = (old.as_str().into(), new.as_str().into());
                (ClusterChange::ReplaceUnit { old, new }, how)
            }
            Self::AddChain { names, how } => {
                let units = names.iter().map(|name| name.as_str().into()).collect();
                (ClusterChange::AddChain { units }, how)
            }
        };
        let asking = asking(target)?;
        tokio::select! {
            biased;
            result = change_cluster(&asking, change, how, json) => result,
            signal = serve::told_to_stop() => {
                signal?;
                Err(Failure::failed(if how.dry_run {
                    "interrupted; nothing was changed"
                } else {
                    "interrupted; if it was begun it goes on, and the same command waits for it again, or begins it; see `milonga cluster history`"
                }))
            }
        }
    }
}

fn asking(target: &Target) -> Result<Asking, Failure> {
    match target.place()? {
        Place::Config(file) => Asking::new(&ClientConfig::read(file)?),
        Place::Dir(dir) => Err(Failure::usage(format!(
            "{} is an embedded log, which is one process; `cluster` wants --config FILE of a cluster",
            dir.display()
        ))),
    }
}

/// Asks for the change until it is done.
async fn change_cluster(
    asking: &Asking,
    change: ClusterChange,
    how: How,
    json: bool,
) -> Result<(), Failure> {
    let until = asking.now().after(Duration::from_secs(how.seconds()));
    let bar = CopyBar::new();
    let mut last: Option<ChangeReport> = None;
    // What was said while there was time to say it.
    let mut busy = None;
    // What had to be done, and not only what is left in the end.
    let mut plan: Option<ChangeReport> = None;
    loop {
        match asking.change(&change, how.dry_run, until).await {
            Ok(report) => {
                if how.dry_run || report.stage != ChangeStage::UnderWay {
                    bar.clear();
                    let plan = plan.as_ref().unwrap_or(&report);
                    return output::result(json, &text::value(&report, plan, how.dry_run), |_| {
                        text::describe(&report, plan, how.dry_run)
                    });
                }
                bar.show(&report.copying);
                plan.get_or_insert_with(|| report.clone());
                last = Some(report);
            }
            Err(Unanswered::Declined(why)) => {
                bar.clear();
                return Err(Failure::failed(why));
            }
            Err(Unanswered::Later(why)) => {
                if busy.is_none() || asking.now() < until {
                    busy = Some(why);
                }
            }
        }
        if asking.now() >= until {
            bar.clear();
            let why = busy.unwrap_or_default();
            return Err(Failure::failed(late(how, last.as_ref(), &why)));
        }
        asking.pause(LOOK_AGAIN).await;
    }
}

/// What to say when the deadline has passed.
fn late(how: How, last: Option<&ChangeReport>, why: &str) -> String {
    let seconds = how.seconds();
    match last {
        Some(report) => format!(
            "not done within {seconds} s; still to do: {}. It goes on; the same command waits for it again, `milonga status` says who is waited for",
            report.steps.join("; ")
        ),
        None => format!(
            "not known to be under way within {seconds} s: {why}; give the same command again, or see `milonga cluster history`"
        ),
    }
}

/// How far copying is, if somebody looks.
struct CopyBar(ProgressBar);

impl CopyBar {
    fn new() -> Self {
        let style = "{msg} {bar:40} {pos} of {len}, {eta} left";
        let style = ProgressStyle::with_template(style);
        let bar = ProgressBar::hidden();
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    fn show(&self, copying: &[CopyReport]) {
        let Some(copy) = copying.first() else {
            return;
        };
        if self.0.is_hidden() && std::io::stdout().is_terminal() {
            self.0.set_draw_target(ProgressDrawTarget::stderr());
        }
        let bytes = HumanBytes(copy.bytes);
        self.0.set_length(copy.end.0);
        self.0.set_position(copy.below.0);
        self.0
            .set_message(format!("{}: {} entries ({bytes})", copy.unit, copy.entries));
    }

    fn clear(&self) {
        self.0.finish_and_clear();
    }
}

async fn history(target: &Target, json: bool) -> Result<(), Failure> {
    let asking = asking(target)?;
    let (mut epochs, mut current) = (Vec::<EpochReport>::new(), None);
    loop {
        let after = epochs.last().map_or(Epoch::NONE, |last| last.epoch);
        let page = asking.history(after).await?;
        let got_on = !page.epochs.is_empty();
        epochs.extend(page.epochs);
        current = page.current.or(current);
        if !page.more || !got_on {
            break;
        }
    }
    let layout = current.as_ref();
    let value = json!({
        "epochs": epochs.iter().map(text::epoch).collect::<Vec<_>>(),
        "segments": layout.map(text::segments).unwrap_or_default(),
        "sequencer": layout.map(|layout| layout.sequencer.name.to_string()),
    });
    output::result(json, &value, |_| text::history(&epochs, layout))
}
