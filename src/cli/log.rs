//! `milonga log …`: the log itself.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use clap::{Args, Subcommand};
use milonga_protocol::{
    Entry, LogError, NewEntry, Position, ReadAnswer, StreamId, StreamRead, TailOf,
};
use serde::Serialize;

use super::Access;
use super::output::{self, Failure};
use crate::Milonga;

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Append one entry and print its position.
    Append {
        /// The bytes, as text; `-` reads standard input.
        payload: String,
        /// Raw streams it belongs to (numbers); may be given several times.
        #[arg(long = "stream", value_name = "N")]
        streams: Vec<u64>,
    },
    /// Read positions, or the whole of a raw stream.
    Read {
        /// First position.
        #[arg(default_value_t = 0)]
        from: u64,
        /// How many positions.
        #[arg(long, default_value_t = 1, conflicts_with = "stream")]
        count: u64,
        /// Read this raw stream up to its end instead.
        #[arg(long, value_name = "N")]
        stream: Option<u64>,
    },
    /// Print the first position that is not granted yet, and the trim mark.
    Tail,
    /// Print every entry of a raw stream from now on, until interrupted.
    Follow(Follow),
    /// Decide holes: finish half-done writes, fill the rest with junk.
    Fill {
        /// First position.
        from: u64,
        /// End, exclusive; default: one position.
        to: Option<u64>,
        /// Also turn into junk what every replica has lost. There is no way back.
        #[arg(long)]
        give_up_lost: bool,
    },
    /// Forget everything below a position, but nothing that is appended from now on. Refused while the directory names
    /// an object; afterwards none can be opened, because there are no checkpoints yet.
    Trim {
        /// The mark.
        below: u64,
    },
}

#[derive(Debug, Args)]
pub(super) struct Follow {
    /// The raw stream.
    stream: u64,
    /// Begin at this position instead of the tail.
    #[arg(long, value_name = "N")]
    from: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Shown {
    position: u64,
    is: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    streams: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl Shown {
    fn of(position: Position, answer: &ReadAnswer) -> Self {
        let is = match answer {
            ReadAnswer::Data(entry) => return Self::entry(position, entry),
            ReadAnswer::Junk => "junk",
            ReadAnswer::Unwritten => "unwritten",
            ReadAnswer::Trimmed => "trimmed",
            ReadAnswer::Lost => "lost",
        };
        Self {
            position: position.0,
            is,
            id: None,
            streams: Vec::new(),
            payload: None,
        }
    }

    fn entry(position: Position, entry: &Entry) -> Self {
        Self {
            position: position.0,
            is: "data",
            id: Some(entry.id.to_string()),
            streams: entry.streams().map(|s| s.to_string()).collect(),
            payload: Some(
                String::from_utf8_lossy(&entry.payload)
                    .escape_debug()
                    .to_string(),
            ),
        }
    }

    fn text(&self) -> String {
        let payload = self.payload.as_deref().unwrap_or_default();
        format!(
            "{}\t{}\t{}\t{payload}",
            self.position,
            self.is,
            self.streams.join(",")
        )
    }
}

impl LogCommand {
    pub(super) const fn access(&self) -> Access {
        match self {
            Self::Append { .. } => Access::Make,
            _ => Access::Existing,
        }
    }

    pub(super) async fn run(self, milonga: &Milonga, json: bool) -> Result<(), Failure> {
        match self {
            Self::Append { payload, streams } => append(milonga, payload, &streams, json).await,
            Self::Read {
                from,
                stream: Some(stream),
                ..
            } => read_stream(milonga, stream, from, json).await,
            Self::Read {
                from,
                count,
                stream: None,
            } => read(milonga, from, count, json).await,
            Self::Tail => tail(milonga, json).await,
            Self::Follow(follow) => follow.run(milonga, json).await,
            Self::Fill {
                from,
                to,
                give_up_lost,
            } => {
                let to = to.unwrap_or_else(|| from.saturating_add(1));
                if to <= from {
                    return Err(Failure::usage(format!(
                        "{from}..{to} holds no position: the end is exclusive and must be above the first"
                    )));
                }
                fill(milonga, from, to, give_up_lost, json).await
            }
            Self::Trim { below } => trim(milonga, below, json).await,
        }
    }
}

async fn append(
    milonga: &Milonga,
    payload: String,
    streams: &[u64],
    json: bool,
) -> Result<(), Failure> {
    let payload = if payload == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        Bytes::from(bytes)
    } else {
        Bytes::from(payload)
    };
    let streams: BTreeSet<_> = streams.iter().map(|n| StreamId::raw(*n)).collect();
    let entry = NewEntry::new(streams.into_iter().collect::<Vec<_>>(), payload);
    let appended = milonga.log().append(entry).await?;
    let value =
        serde_json::json!({ "position": appended.position.0, "id": appended.id.to_string() });
    output::result(json, &value, |_| appended.position.to_string())
}

/// Positions read per call, so that neither side holds much at once.
const READ_STEP: u64 = 256;

async fn read(milonga: &Milonga, from: u64, count: u64, json: bool) -> Result<(), Failure> {
    let mut shown = Vec::new();
    let end = from.saturating_add(count);
    let mut next = from;
    while next < end {
        let to = end.min(next.saturating_add(READ_STEP));
        let positions: Vec<_> = (next..to).map(Position).collect();
        let answers = milonga.log().read(positions.clone()).await?;
        for (position, answer) in positions.into_iter().zip(&answers) {
            let one = Shown::of(position, answer);
            if json {
                shown.push(one)
            } else {
                output::line(one.text())?
            }
        }
        next = to;
    }
    if json {
        output::result(true, &shown, |_| String::new())
    } else {
        Ok(())
    }
}

async fn read_stream(milonga: &Milonga, stream: u64, from: u64, json: bool) -> Result<(), Failure> {
    let log = milonga.log();
    let streams: Arc<[StreamId]> = Arc::from([StreamId::raw(stream)]);
    let tail = log.tail(TailOf::Streams(Arc::clone(&streams))).await?;
    let mut read = StreamRead {
        streams,
        from: Position(from).max(tail.trimmed),
        target: tail.target(),
        max_bytes: 1 << 20,
    };
    let mut shown = Vec::new();
    while read.from < read.target.to {
        let part = log.read_streams(read.clone()).await?;
        for (position, entry) in &part.entries {
            let one = Shown::entry(*position, entry);
            if json {
                shown.push(one)
            } else {
                output::line(one.text())?
            }
        }
        (read.from, read.target) = (part.complete, part.target);
    }
    if json {
        output::result(true, &shown, |_| String::new())
    } else {
        Ok(())
    }
}

async fn tail(milonga: &Milonga, json: bool) -> Result<(), Failure> {
    let tail = milonga.log().tail(TailOf::Log).await?;
    let value = serde_json::json!({
        "tail": tail.next.0, "trimmed": tail.trimmed.0, "epoch": tail.epoch.0,
    });
    output::result(json, &value, |_| {
        format!(
            "tail {} trimmed {} epoch {}",
            tail.next, tail.trimmed, tail.epoch
        )
    })
}

impl Follow {
    /// Ends only if it fails.
    pub(super) async fn run(self, milonga: &Milonga, json: bool) -> Result<(), Failure> {
        let streams: Arc<[StreamId]> = Arc::from([StreamId::raw(self.stream)]);
        let from = match self.from {
            Some(from) => Position(from),
            None => {
                let tail = TailOf::Streams(Arc::clone(&streams));
                milonga.log().tail(tail).await?.next
            }
        };
        let mut subscription = milonga.client().subscribe(streams, from);
        loop {
            let (position, entry) = subscription.next().await?;
            let one = Shown::entry(position, &entry);
            // A stream of values has no end, so `--json` means one value a line here.
            output::result(json, &one, Shown::text)?;
        }
    }
}

async fn fill(
    milonga: &Milonga,
    from: u64,
    to: u64,
    give_up_lost: bool,
    json: bool,
) -> Result<(), Failure> {
    let tail = milonga.log().tail(TailOf::Log).await?.next;
    if to > tail.0 {
        return Err(Failure::usage(match tail.0.checked_sub(1) {
            Some(last) => format!(
                "position {} is not granted yet: the last that can be filled is {last}",
                to - 1
            ),
            None => "no position is granted yet: there is nothing to fill".to_owned(),
        }));
    }
    let (first, end) = (Position(from), Position(to));
    let mut given_up = Vec::new();
    if give_up_lost {
        given_up = milonga.client().give_up_lost(first, end).await?;
    } else {
        milonga.log().settle(first, end).await?;
    }
    let given_up: Vec<u64> = given_up.into_iter().map(|p| p.0).collect();
    let value = serde_json::json!({ "from": from, "to": to, "given_up": given_up });
    output::result(json, &value, |_| {
        let lost = match given_up.len() {
            0 => String::new(),
            lost => format!(", gave up {lost} lost positions"),
        };
        format!("settled {from}..{to}{lost}")
    })
}

async fn trim(milonga: &Milonga, below: u64, json: bool) -> Result<(), Failure> {
    let below = below_all_objects(milonga, Position(below)).await?;
    let mark = milonga.log().trim(below).await?;
    output::result(json, &serde_json::json!({ "trimmed": mark.0 }), |_| {
        format!("trimmed below {mark}")
    })
}

/// A mark up to `below` under which no object has anything, and none that is registered later will.
async fn below_all_objects(milonga: &Milonga, below: Position) -> Result<Position, Failure> {
    // In this order: the directory is read through every registration below what was granted before.
    let log = milonga.log();
    let below = below.min(log.tail(TailOf::Log).await?.next);
    // And what is decided is not granted again in a later epoch.
    match log.settle(below.minus(1), below).await {
        Ok(()) | Err(LogError::Lost { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let objects = milonga.directory().await?;
    match objects.first() {
        None => Ok(below),
        Some(object) => Err(Failure::failed(format!(
            "refused: the directory names {} object(s), such as `{}`, which have no checkpoints yet and need the whole log",
            objects.len(),
            object.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It may be registered between the look into the directory and the trim.
    #[tokio::test]
    async fn a_trim_takes_nothing_from_an_object_that_is_registered_meanwhile() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let milonga = Milonga::embedded(dir.path()).await.expect("opens");
        for text in ["one", "two", "three"] {
            let entry = NewEntry::new([StreamId::raw(7)], text);
            milonga.log().append(entry).await.expect("appends");
        }
        let mark = below_all_objects(&milonga, Position(1_000)).await;
        let mark = mark.unwrap_or_else(|refused| panic!("{refused}"));
        let counter = milonga.counter("late").await.expect("opens");
        counter.add(5).await.expect("counts");
        let trimmed = milonga.log().trim(mark).await.expect("trims");
        assert_eq!(trimmed, Position(3));
        let kept: Vec<_> = (3..5).map(Position).collect();
        let kept = milonga.log().read(kept).await.expect("reads");
        assert!(kept.iter().all(|kept| matches!(kept, ReadAnswer::Data(_))));
        assert_eq!(counter.get().await.expect("reads"), 5);
        let refused = below_all_objects(&milonga, Position(1_000)).await;
        assert!(refused.is_err_and(|refused| refused.to_string().contains("late")));
        milonga.close().await.expect("closes");
    }
}
