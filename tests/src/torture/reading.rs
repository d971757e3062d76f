//! The final reading, by a client that was never there before.

use std::sync::Arc;
use std::time::Duration;

use milonga_client::LogClient;
use milonga_objects::{CounterOp, MapOp, Opened as _, QueueOp};
use milonga_protocol::{
    Entry, Log as _, Position, ReadAnswer, SharedEnv, StreamRead, TailOf, WriterId,
};

use super::cluster::Cluster;
use super::ledger::{Book, Fate, Id, Kind};
use super::objects::{Objects, replica, stream};
use super::replicas::Asker;
use super::tally::{Tally, Verdict};
use super::{AnyError, say};
use crate::world::history::History;
use crate::world::witness::{self, Record, Update, decode};

/// Positions that are read at once.
const AT_ONCE: u64 = 256;
const DEADLINE: Duration = Duration::from_secs(30);

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) verdict: Verdict,
    /// Positions of the log.
    pub(super) positions: u64,
    /// Answers of single replicas.
    pub(super) compared: u64,
    /// Calls that the witness judged.
    pub(super) calls: usize,
}

/// Reads everything and compares it with the book; the witness judges the sample.
pub(super) async fn read(
    cluster: &Cluster,
    env: &SharedEnv,
    book: &Book,
    (history, writers): (History, Vec<WriterId>),
) -> Result<Read, AnyError> {
    let log = cluster.connect(env, DEADLINE).await?;
    let asker = Asker {
        env: Arc::clone(env),
        network: cluster.network(env)?,
    };
    let mut read = Read::default();
    let verdict = &mut read.verdict;
    let replica = replica(env, &log, DEADLINE);
    let objects = Objects::open(&replica).await?;
    check_objects(&objects, book, verdict).await?;
    check_streams(&log, book, verdict).await?;
    let end = log.tail(TailOf::Log).await?.next;
    log.settle(Position::ZERO, end).await?;
    let mut scan = Scan::new(&objects, book, &writers);
    for from in (0..end.0).step_by(usize::try_from(AT_ONCE)?) {
        let wanted: Vec<_> = (from..end.0.min(from + AT_ONCE)).map(Position).collect();
        let answers = log.read(wanted.clone()).await?;
        match asker.compare(&log, &wanted).await {
            Ok(compared) => read.compared += compared,
            Err(error) => verdict.wrong(format!("replicas differ: {error}")),
        }
        for (position, answer) in wanted.into_iter().zip(answers) {
            match answer {
                ReadAnswer::Data(entry) => scan.entry(position, entry, verdict),
                ReadAnswer::Junk => {}
                other => verdict.wrong(format!("position {position} is {other:?}")),
            }
        }
    }
    let (adds, sample) = scan.end(verdict);
    let value = objects.count.get().await?;
    verdict.check(value == adds, || {
        format!("the counter is {value}, the log has {adds} adds")
    });
    read.positions = end.0;
    say::note(format_args!(
        "read: {} positions, {} answers of replicas",
        read.positions, read.compared
    ));
    {
        let mut history = history.book();
        history.log = Some(sample);
        history.window = Some(log.limits().conflict_window);
        read.calls = history.calls.len();
        for finding in witness::judge(&history, None) {
            verdict.wrong(format!("{}: {}", finding.rule.name(), finding.text));
        }
    }
    replica.close().await;
    log.close().await;
    Ok(read)
}

/// What a replica of the objects shows.
async fn check_objects(
    objects: &Objects,
    book: &Book,
    verdict: &mut Verdict,
) -> Result<(), AnyError> {
    let Objects {
        kept, items, moved, ..
    } = objects;
    let pairs = |map: &milonga_objects::MapState<u64, u64>| -> Vec<(u64, u64)> {
        map.iter().map(|(key, value)| (key, *value)).collect()
    };
    let mut inserts = Tally::new("the map", Kind::Insert, book);
    for (key, value) in kept.handle().read(pairs).await? {
        verdict.check(key == value, || format!("{value:x} at the key {key:x}"));
        inserts.see(key, None, verdict);
    }
    inserts.end(verdict);
    let mut pushes = Tally::new("the queue and what was moved", Kind::Push, book);
    let waiting: Vec<_> = {
        let read = items.handle().read(|queue| {
            let items = queue.iter().map(|(key, item)| (key.position, *item));
            items.collect::<Vec<_>>()
        });
        read.await?
    };
    for (position, item) in waiting {
        pushes.see(item, Some(position), verdict);
    }
    let mut moves = Tally::new("what was moved", Kind::Move, book);
    let gone = moved.handle().read(pairs).await?;
    for (item, by) in &gone {
        pushes.see(*item, None, verdict);
        moves.see(*by, None, verdict);
        let told = book.moved.get(item).copied().unwrap_or(*by);
        verdict.check(told == *by, || {
            format!("{item:x} was moved by {by:x}, not {told:x}")
        });
    }
    pushes.end(verdict);
    moves.end(verdict);
    let counted = objects.moves.get().await?;
    verdict.check(i64::try_from(gone.len()) == Ok(counted), || {
        format!("{} were moved, but {counted} counted", gone.len())
    });
    let value = usize::try_from(objects.count.get().await?)?;
    let acked = book.count(Kind::Add, |fate| matches!(fate, Fate::Acked(_)));
    let unknown = book.count(Kind::Add, |fate| *fate == Fate::Unknown);
    verdict.check((acked..=acked + unknown).contains(&value), || {
        format!("the counter is {value}: {acked} were acknowledged, {unknown} unknown")
    });
    Ok(())
}

/// The raw appends, by their streams.
async fn check_streams(
    log: &LogClient,
    book: &Book,
    verdict: &mut Verdict,
) -> Result<(), AnyError> {
    let streams: Arc<[_]> = (0..Kind::Raw.lanes()).map(stream).collect();
    let tail = log.tail(TailOf::Streams(Arc::clone(&streams))).await?;
    let mut tally = Tally::new("the streams", Kind::Raw, book);
    let mut read = StreamRead {
        streams,
        from: Position::ZERO,
        target: tail.target(),
        max_bytes: 1 << 20,
    };
    loop {
        let part = log.read_streams(read.clone()).await?;
        for (position, entry) in &part.entries {
            match raw(entry) {
                Some(id) => tally.see(id, Some(*position), verdict),
                None => verdict.wrong(format!("rubbish at {position}")),
            }
        }
        if part.is_done() {
            break;
        }
        (read.from, read.target) = (part.complete, part.target);
    }
    tally.end(verdict);
    Ok(())
}

/// The id of a raw append.
fn raw(entry: &Entry) -> Option<Id> {
    let id = entry.payload.strip_prefix(b"raw ")?;
    Some(Id::from_le_bytes(id.try_into().ok()?))
}

/// All entries, one after the other.
struct Scan<'a> {
    raws: Tally<'a>,
    inserts: Tally<'a>,
    pushes: Tally<'a>,
    adds: i64,
    /// Positions where adds were acknowledged and found.
    counted: usize,
    book: &'a Book,
    /// Of the map, the queue and the counter.
    streams: [u64; 3],
    writers: &'a [WriterId],
    sample: Vec<(Position, Entry)>,
}

impl<'a> Scan<'a> {
    fn new(objects: &Objects, book: &'a Book, writers: &'a [WriterId]) -> Self {
        Self {
            raws: Tally::new("the log", Kind::Raw, book),
            inserts: Tally::new("the log", Kind::Insert, book),
            pushes: Tally::new("the log", Kind::Push, book),
            adds: 0,
            counted: 0,
            book,
            streams: [
                objects.kept.handle().stream().0,
                objects.items.handle().stream().0,
                objects.count.handle().stream().0,
            ],
            writers,
            sample: Vec::new(),
        }
    }

    fn entry(&mut self, position: Position, entry: Entry, verdict: &mut Verdict) {
        if let Some(id) = raw(&entry) {
            return self.raws.see(id, Some(position), verdict);
        }
        if self.writers.contains(&entry.id.writer) {
            return self.sample.push((position, entry));
        }
        let Some(records) = decode(&entry.payload) else {
            return verdict.wrong(format!("nobody can read the entry at {position}"));
        };
        let before = self.adds;
        for record in &records {
            if let Record::Update(update) = record {
                self.update(position, update, verdict);
            }
        }
        if let Some(answers) = self.book.counted.get(&position) {
            self.counted += 1;
            let after = before + 1..=self.adds;
            verdict.check(answers.iter().all(|n| after.contains(n)), || {
                format!("adds at {position} answered {answers:?}, not {after:?}")
            });
        }
    }

    fn update(&mut self, position: Position, update: &Update, verdict: &mut Verdict) {
        let [kept, items, count] = self.streams;
        let op = update.op.as_slice();
        if update.stream == kept
            && let Ok(MapOp::Insert { value, .. }) = postcard::from_bytes::<MapOp<Id>>(op)
        {
            self.inserts.see(value, Some(position), verdict);
        } else if update.stream == items
            && let Ok(QueueOp::Push(item)) = postcard::from_bytes::<QueueOp<Id>>(op)
        {
            self.pushes.see(item, Some(position), verdict);
        } else if update.stream == count
            && let Ok(CounterOp::Add(n)) = postcard::from_bytes(op)
        {
            self.adds += n;
        }
    }

    /// The counter as the log has it, and the entries of the sample.
    fn end(self, verdict: &mut Verdict) -> (i64, Vec<(Position, Entry)>) {
        self.raws.end(verdict);
        self.inserts.end(verdict);
        self.pushes.end(verdict);
        let wanted = self.book.counted.len();
        verdict.check(self.counted == wanted, || {
            format!(
                "adds were acknowledged at {wanted} positions and found at {}",
                self.counted
            )
        });
        (self.adds, self.sample)
    }
}
