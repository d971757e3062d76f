//! Reading streams: all chains at once, merged by position, never past a hole.
//!
//! ```text
//!            from                          target
//! chain 0     | 0 . 2 . 4 . 6 . 8          |      complete: 10
//! chain 1     |   1 . 3 . ? . 7            |      complete: 5, the hole
//! together    | 0 1 2 3 4                         complete: 5; 6, 7 and 8 are not shown yet
//! ```

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use milonga_protocol::frame::Message;
use milonga_protocol::limits::{ITEMS_PER_MESSAGE, LONGEST_WAIT_MS};
use milonga_protocol::messages::{Body, UnitRequest, UnitResponse};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{
    EncodedEntry, Entry, Epoch, LogError, Position, ReadAnswer, StreamId, StreamPart, StreamRead,
    Tail, Target, Time,
};

use crate::cluster::{View, garbage};
use crate::read::Reader;
use crate::retry::{Attempts, Failure};
use crate::settle::{What, lowered};

/// Most bytes of one part, whatever the caller asks: answers of all chains have to fit frames.
const LARGEST_BYTES: usize = 8 << 20;
/// Before a hole is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Positions of each chain that are settled in one go, together with the hole that is in the way. Not more, because
/// settling moves every entry among them once more.
const FILLED_TOGETHER: usize = 1_024;

/// What one chain answered.
struct ChainPart {
    chain: usize,
    entries: Vec<(Position, Entry)>,
    /// Every entry of the streams below it is among `entries`.
    complete: Position,
    /// `complete` itself is lost at the unit asked.
    lost: bool,
}

/// Asks one chain for some of the streams.
#[derive(Clone, Copy)]
struct Ask<'a> {
    segment: usize,
    chain: usize,
    streams: &'a [StreamId],
    wait_ms: u32,
}

/// Positions asked of every chain.
#[derive(Clone, Copy)]
struct Span {
    from: Position,
    to: Position,
    bytes: u32,
}

/// Why a round gave nothing.
enum Stop {
    Failed(Failure),
    Error(LogError),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Self {
        Self::Error(error)
    }
}

impl Reader {
    /// The next part of some streams; see [`milonga_protocol::Log::read_streams`].
    pub(crate) async fn read_streams(
        &self,
        read: &StreamRead,
        deadline: Time,
    ) -> Result<StreamPart, LogError> {
        let mut attempts = Attempts::new(&self.cluster, deadline);
        loop {
            let view = self.cluster.view();
            if view.epoch() < read.target.epoch {
                attempts.check(&"the layout of the target's epoch")?;
                let before = Epoch(read.target.epoch.0.saturating_sub(1));
                self.cluster.newer_than(before, deadline).await;
                continue;
            }
            let target = lowered(view.layout(), read.target);
            if read.from >= target.to || read.streams.is_empty() {
                return Ok(StreamPart {
                    entries: Vec::new(),
                    complete: read.from.max(target.to),
                    target,
                });
            }
            match self.round(&view, read, target, deadline).await {
                Ok(Some(part)) => return Ok(part),
                Ok(None) => attempts.check(&format_args!("position {}", read.from))?,
                Err(Stop::Failed(failure)) => attempts.after(view.epoch(), failure).await?,
                Err(Stop::Error(error)) => return Err(error),
            }
        }
    }

    /// Asks every chain once. `None`: look again.
    ///
    /// If the first position is not decided yet there is nothing to deliver, so the unit that holds it keeps the
    /// request until it is, or until the hole may be filled; the others answer at once.
    async fn round(
        &self,
        view: &View,
        read: &StreamRead,
        target: Target,
        deadline: Time,
    ) -> Result<Option<StreamPart>, Stop> {
        let now = self.cluster.env.now();
        self.known
            .saw(view.epoch(), target.to, now, self.hole_age());
        let index = view.layout().segment_of(read.from);
        let segment = &view.layout().segments[index];
        let chains = segment.chains.len();
        let bytes = read.max_bytes.clamp(1, LARGEST_BYTES) / chains;
        let span = Span {
            from: read.from,
            to: target.to.min(view.layout().end_of(index)),
            bytes: u32::try_from(bytes.max(1)).unwrap_or(u32::MAX),
        };
        let (owner, wait) = (
            segment.chain_of(span.from),
            wait_ms(self.hole_is_due(view, span.from), now),
        );
        let asks = (0..chains).flat_map(|chain| {
            let wait_ms = if chain == owner { wait } else { 0 };
            let streams = read.streams.chunks(ITEMS_PER_MESSAGE);
            streams.map(move |streams| Ask {
                segment: index,
                chain,
                streams,
                wait_ms,
            })
        });
        let asked = try_join_all(asks.map(|ask| self.ask_tail(view, ask, span, deadline)));
        let parts = asked.await?;
        if complete_of(&parts) > span.from {
            return Ok(Some(merged(parts, target)));
        }
        if lost_at(&parts, span.from) {
            return Ok(self.elsewhere(read, target, deadline).await?);
        }
        let now = self.cluster.env.now();
        if self.hole_is_due(view, span.from) <= now {
            self.fill(view, span, now, deadline).await?;
        } else {
            // A unit that does not hold the request must not make this loop busy.
            let soon = now.after(LOOK_AGAIN).min(deadline);
            self.cluster.newer_than(view.epoch(), soon).await;
        }
        Ok(None)
    }

    async fn ask_tail(
        &self,
        view: &View,
        ask: Ask<'_>,
        span: Span,
        deadline: Time,
    ) -> Result<ChainPart, Stop> {
        let units = view.chain(ask.segment, ask.chain);
        let unit = view.unit(*units.last().expect("a chain has replicas"));
        let request = UnitRequest::ReadStreams {
            epoch: view.epoch(),
            streams: ask.streams.to_vec(),
            from: span.from,
            to: span.to,
            max_bytes: span.bytes,
            wait_ms: ask.wait_ms,
        };
        let wait = Duration::from_millis(u64::from(ask.wait_ms));
        let options = &self.cluster.options;
        let call_by = self.cluster.env.now().after(options.call_timeout + wait);
        let (response, body) = self
            .cluster
            .unit(view.epoch(), unit, request, call_by.min(deadline))
            .await?;
        match response {
            UnitResponse::Entries {
                entries,
                complete,
                marks,
            } => {
                if self.cluster.settled(view, ask.segment, ask.chain) >= span.from {
                    // The marks speak of what was asked; what lies below is settled as well.
                    let mark = marks.settled.min(span.to);
                    self.cluster
                        .raise_settled(view, ask.segment, ask.chain, mark);
                }
                let segment = &view.layout().segments[ask.segment];
                let of_chain = |position: &Position| segment.chain_of(*position) == ask.chain;
                if !entries.iter().all(|(position, _)| of_chain(position)) {
                    return Err(garbage(unit, "entries of another chain").into());
                }
                let part = decoded(ask.chain, entries, body, complete.min(span.to), span);
                Ok(part.map_err(|why| garbage(unit, why))?)
            }
            UnitResponse::Trimmed { below } => Err(Stop::Error(LogError::Trimmed {
                below,
                from: span.from,
            })),
            _ => Err(garbage(unit, "no entries to a read of streams").into()),
        }
    }

    /// Everything granted is known from now on, whether somebody reads as far or not: the timers of all holes run
    /// together (rule 26).
    pub(crate) fn heard_of(&self, tail: &Tail) {
        let now = self.cluster.env.now();
        self.known.saw(tail.epoch, tail.next, now, self.hole_age());
    }

    /// When the hole at `position` may be filled: below the epoch's start there is nothing to wait for (rule 9).
    fn hole_is_due(&self, view: &View, position: Position) -> Time {
        let now = self.cluster.env.now();
        if view.layout().is_closed(position) {
            return now;
        }
        self.known
            .since(position)
            .filter(|_| !plants::active(Plant::HoleTimerRestarts))
            .unwrap_or(now)
            .after(self.hole_age())
    }

    /// Bounded: appends that sat through an outage must not make readers wait for minutes afterwards.
    fn hole_age(&self) -> Duration {
        let options = &self.cluster.options;
        let age = (4 * self.latency.p99()).min(options.call_timeout);
        age.max(options.hole_time)
    }

    /// Settles the hole at the start of `span` together with everything else whose time is up (rule 26).
    async fn fill(
        &self,
        view: &View,
        span: Span,
        now: Time,
        deadline: Time,
    ) -> Result<(), LogError> {
        let expired = self.known.older_than(self.hole_age(), now);
        // One request for each chain: what lies behind waits no longer when its turn comes.
        let chains = view.layout().segments[view.layout().segment_of(span.from)]
            .chains
            .len();
        let most = span.from.plus((FILLED_TOGETHER * chains) as u64);
        let to = expired.max(view.layout().start).min(span.to).min(most);
        let what = What::Range(span.from, to.max(span.from.next()));
        let lost = self.settler.settle(what, view.epoch(), deadline).await?;
        match lost {
            Some(position) if position == span.from => Err(LogError::Lost { position }),
            _ => Ok(()),
        }
    }

    /// The first position is lost at its tail: another replica may have it, or the log decides that it is junk.
    async fn elsewhere(
        &self,
        read: &StreamRead,
        target: Target,
        deadline: Time,
    ) -> Result<Option<StreamPart>, LogError> {
        let position = read.from;
        tracing::debug!(%position, "lost at the tail, asking the other replicas");
        let mut entries = Vec::new();
        match self.read_one(position, deadline).await? {
            ReadAnswer::Data(entry) => {
                if entry.streams().any(|stream| read.streams.contains(&stream)) {
                    entries.push((position, entry));
                }
            }
            ReadAnswer::Junk => {}
            ReadAnswer::Trimmed => {
                return Err(LogError::Trimmed {
                    below: position.next(),
                    from: position,
                });
            }
            // The epoch has ended meanwhile.
            ReadAnswer::Unwritten => return Ok(None),
            ReadAnswer::Lost => return Err(LogError::Lost { position }),
        }
        Ok(Some(StreamPart {
            entries,
            complete: position.next(),
            target,
        }))
    }
}

/// Entries of one answer. Damaged bytes count as lost at that unit.
fn decoded(
    chain: usize,
    listed: Vec<(Position, u32)>,
    body: Bytes,
    complete: Position,
    span: Span,
) -> Result<ChainPart, &'static str> {
    let mut body = Body::of(&Message {
        body,
        ..Message::default()
    });
    let mut entries = Vec::with_capacity(listed.len());
    // Units list entries above what they have decided, too: that one of those is lost says nothing of what lies below.
    let lost = |entries, position: Position| ChainPart {
        chain,
        entries,
        complete: position.min(complete),
        lost: position <= complete,
    };
    let mut above = span.from;
    for (position, len) in listed {
        if position < above || position >= span.to {
            return Err("entries out of order or outside of what was asked");
        }
        above = position.next();
        if len == 0 {
            return Ok(lost(entries, position));
        }
        let bytes = body.take(len).ok_or("a short body")?;
        let entry = EncodedEntry::check(bytes).and_then(|entry| entry.decode(position));
        match entry {
            Ok(entry) => entries.push((position, entry)),
            Err(_) => return Ok(lost(entries, position)),
        }
    }
    Ok(ChainPart {
        chain,
        entries,
        complete,
        lost: false,
    })
}

/// Every entry below it is known: the smallest of all chains (rule 6).
fn complete_of(parts: &[ChainPart]) -> Position {
    let all = parts.iter().map(|part| part.complete);
    let complete = if plants::active(Plant::DeliverPastHole) {
        all.max()
    } else {
        all.min()
    };
    complete.unwrap_or_default()
}

fn lost_at(parts: &[ChainPart], position: Position) -> bool {
    parts
        .iter()
        .any(|part| part.lost && part.complete == position)
}

/// One order out of all chains, cut where the first of them is not complete.
fn merged(parts: Vec<ChainPart>, target: Target) -> StreamPart {
    let complete = complete_of(&parts);
    let chunked = parts.windows(2).any(|pair| pair[0].chain == pair[1].chain);
    let most = parts.iter().map(|part| part.entries.len()).sum();
    let mut entries = Vec::with_capacity(most);
    for part in parts {
        let shown = part.entries.into_iter();
        entries.extend(shown.take_while(|(position, _)| *position < complete));
    }
    // Runs of ascending positions, one for each chain: what the stable sort is best at.
    if !plants::acts(Plant::ChainsUnmerged, 20) {
        entries.sort_by_key(|(position, _)| *position);
    }
    if chunked {
        // An entry of several streams may have come with several parts of a long list of streams.
        entries.dedup_by_key(|(position, _)| *position);
    }
    StreamPart {
        entries,
        complete,
        target,
    }
}

/// How long a unit is to hold a request: not at all if the hole is due.
fn wait_ms(due: Time, now: Time) -> u32 {
    if due <= now {
        return 0;
    }
    let wait = u32::try_from(due.since(now).as_millis()).unwrap_or(u32::MAX);
    wait.saturating_add(1).min(LONGEST_WAIT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_entry_above_what_is_decided_completes_nothing() {
        let span = Span {
            from: Position(1),
            to: Position(9),
            bytes: 100,
        };
        let part = |complete| {
            let listed = vec![(Position(5), 0)];
            let part = decoded(0, listed, Bytes::new(), Position(complete), span);
            let part = part.expect("in order");
            (part.complete, part.lost)
        };
        assert_eq!(part(3), (Position(3), false));
        assert_eq!(part(5), (Position(5), true));
        assert_eq!(part(7), (Position(5), true));
    }
}
