//! What travels: requests and responses of all roles. New enum variants go at the end only (postcard numbers them).
//!
//! Every request to a unit or the sequencer carries an epoch and is refused unless the server serves exactly that
//! epoch. Refusals are values ([`Refusal`]), not errors. Entries travel in the frame's raw body, one behind the
//! other, with their lengths in the header; see [`Body`].

mod encoding;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::change::{ChangeReport, ClusterChange, HistoryReport};
use crate::entry::{BackPointers, StreamLink};
use crate::ids::{ClusterId, Epoch, Incarnation, Position, ServerName, StreamId, UnitId};
use crate::layout::{Layout, Published};

pub use encoding::{Body, DecodeError, body_of, decode, encode};

/// First message on every connection, both ways. Nothing else is served before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// [`crate::frame::WIRE_VERSION`] again, for the error message.
    pub version: u8,
    /// The cluster this process belongs to; `None` before it knows. Two known ones must be equal.
    pub cluster: Option<ClusterId>,
    /// The process's name (a client's is free text).
    pub name: ServerName,
    /// Run of the process.
    pub incarnation: Incarnation,
}

/// Ties a reply to the request it answers; chosen by the host of a core, unique while unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// A request to any role of a server process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// To the log unit.
    Unit(UnitRequest),
    /// To the sequencer.
    Sequencer(SequencerRequest),
    /// To the layout.
    Layout(LayoutRequest),
    /// What this process is and does; for `milonga status`.
    Status,
    /// From one member of the layout to another; the body is for its raft. Servers only.
    Raft,
    /// Whether somebody is there, and how long the way takes. Answered at once, whatever else is waiting.
    Ping,
}

/// A response from any role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// From the log unit.
    Unit(UnitResponse),
    /// From the sequencer.
    Sequencer(SequencerResponse),
    /// From the layout.
    Layout(LayoutResponse),
    /// What this process is and does.
    Status(ServerStatus),
    /// Not done, nothing changed, and why.
    Refused(Refusal),
    /// To `Raft`; the body is from its raft.
    Raft,
    /// To `Ping`.
    Pong,
}

/// Why a server did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The request's epoch is over here: `epoch` is the newest that this server has served or been sealed for.
    #[error("sealed: epoch {epoch} is over or ending here")]
    Sealed {
        /// Highest epoch this server knows to be over, or is sealed in favour of, minus nothing: a client that
        /// knows no later layout reports the epoch *it* used.
        epoch: Epoch,
    },
    /// The request's epoch has not begun here.
    #[error("not yet in that epoch; serving epoch {epoch}")]
    NotYet {
        /// The epoch this server serves.
        epoch: Epoch,
    },
    /// The server has no epoch yet: it started and waits for the layout.
    #[error("not open yet: waiting for the layout")]
    NotOpen,
    /// The request would exceed a bound, or something else has to end first. Try again later.
    #[error("busy: {what}; try again")]
    Busy {
        /// What it is busy with.
        what: String,
    },
    /// A disk error: this unit serves what is surely durable and refuses the rest until it is restarted.
    #[error("unit is poisoned: {why}; replace the disk or restart the unit")]
    Poisoned {
        /// The first failure.
        why: String,
    },
    /// The sender may not do that (a client's certificate on a server's request, another cluster's server).
    #[error("not allowed: {why}")]
    NotAllowed {
        /// What is missing.
        why: String,
    },
    /// The message cannot be understood or breaks a limit.
    #[error("bad request: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// This process does not have that role.
    #[error("this server is no {role}")]
    NoSuchRole {
        /// The missing role.
        role: String,
    },
    /// The layout names another unit than this one, or this unit has lost its past (rules 10, 28).
    #[error("identity: {why}")]
    Identity {
        /// What does not fit.
        why: String,
    },
    /// This member of the layout does not lead, or does not any more.
    #[error("this member of the layout does not lead; {}", leader.as_ref().map_or_else(|| "nobody is known to".to_owned(), |(name, _)| format!("ask {name}")))]
    NotLeader {
        /// Who does, as far as is known, and where.
        leader: Option<(ServerName, String)>,
    },
    /// An operator's wish that cannot be granted as things are.
    #[error("{why}")]
    Declined {
        /// What stands against it, and what to do.
        why: String,
    },
}

// ---------------------------------------------------------------------------------------------- log unit

/// A value on its way to or from a unit; data lies in the body, `len` bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireValue {
    /// The next `len` bytes of the body are an [`EncodedEntry`](crate::EncodedEntry).
    Data {
        /// Bytes.
        len: u32,
    },
    /// Junk.
    Junk,
}

/// Requests to a log unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitRequest {
    /// Writes values. In the active part a token holder writes data at the head and the same behind it; a filler
    /// carries the head's winner down the chain (junk is never *written* at a head: that is `Fill`).
    /// Below `start` (closed) the settler writes what rule 9 decided, to whoever lacks it.
    Write {
        /// The epoch.
        epoch: Epoch,
        /// Settled mark of this chain as the sender knows it: raises the unit's.
        settled: Position,
        /// Positions and values, ascending.
        items: Vec<(Position, WireValue)>,
    },
    /// At the head of the active part: make each own position in `from..to` hold something, junk where nothing
    /// was, and answer all winners once durable (rule 8).
    Fill {
        /// The epoch.
        epoch: Epoch,
        /// First position.
        from: Position,
        /// End, exclusive; at most `ITEMS_PER_MESSAGE` own positions.
        to: Position,
    },
    /// Reads positions.
    Read {
        /// The epoch.
        epoch: Epoch,
        /// Settled mark of this chain as the sender knows it.
        settled: Position,
        /// Which.
        positions: Vec<Position>,
    },
    /// All entries of the streams in `from..to` on this unit, ascending; `from..to` lies in one segment.
    ReadStreams {
        /// The epoch.
        epoch: Epoch,
        /// The streams (an entry of several is given once).
        streams: Vec<StreamId>,
        /// First position of interest.
        from: Position,
        /// End, exclusive.
        to: Position,
        /// Stop after about this many bytes (at least one entry is given).
        max_bytes: u32,
        /// If the first own position at or above `from` is undecided, wait up to this long for it to be
        /// decided (at most `LONGEST_WAIT_MS`).
        wait_ms: u32,
    },
    /// Do you still serve this epoch? (Rule 21.)
    Confirm {
        /// The epoch.
        epoch: Epoch,
    },
    /// Forget everything below the mark; it never passes the settled mark of the log.
    Trim {
        /// The epoch.
        epoch: Epoch,
        /// The mark.
        below: Position,
    },
    /// The layout's settler is done: everything below is settled on every chain, and what is lost is lost for good
    /// (rule 5). Servers only.
    Settled {
        /// The epoch.
        epoch: Epoch,
        /// The mark; at most the epoch's start.
        below: Position,
    },
    /// The tails say that everything of the last segment below the mark is settled. Says nothing of closed segments.
    Told {
        /// The epoch.
        epoch: Epoch,
        /// The mark.
        settled: Position,
    },
    /// Stop serving every epoch below `epoch`; drain; report. Needs no disk. Servers only.
    Seal {
        /// The epoch that is to come.
        epoch: Epoch,
    },
    /// A page of the stream tails of a sealed unit. Servers only.
    Collect {
        /// The epoch it was sealed for.
        epoch: Epoch,
        /// Streams above this one.
        after: Option<StreamId>,
        /// Only positions below the next epoch's start count (rule 16).
        below: Position,
    },
    /// Enter the layout's epoch. Servers only.
    Open {
        /// The committed layout.
        layout: Layout,
        /// The epoch that the unit had persisted when it was sealed, as far as is known. One that has less has lost its past
        /// since, and must not enter (rule 28).
        persisted: Epoch,
        /// Start of every epoch after that one (voids records, rule 1).
        starts: Vec<(Epoch, Position)>,
    },
    /// As `Confirm`, and where what is durable here ends.
    Ends {
        /// The epoch.
        epoch: Epoch,
        /// Which streams.
        streams: Vec<StreamId>,
    },
    /// Take back what you have lost of these, or lack of what you are joining, as another replica holds it. The sender knows
    /// that all of it is settled, so an active head takes it, too, where it knows the same; whoever still has a value keeps
    /// that. Answered as `Write`.
    Repair {
        /// The epoch.
        epoch: Epoch,
        /// Settled mark of this chain as the sender knows it: raises the unit's.
        settled: Position,
        /// Positions and values, ascending.
        items: Vec<(Position, WireValue)>,
    },
    /// You missed an epoch, or are new: stop serving every epoch below `epoch`, and forget what you hold at or above your
    /// settled mark, or `below` if that is lower, because others have decided without you what lies there (rule 10).
    /// Answered with `Done` once that is durable, and everything is ready for the next `Open`, which appends wait for;
    /// nothing is written until then. Servers only.
    Rejoin {
        /// The cluster: a unit in an empty directory becomes one of its units.
        cluster: ClusterId,
        /// The epoch that is to come.
        epoch: Epoch,
        /// Only what lies below it may be kept.
        below: Position,
    },
    /// Which positions do you lack, from `from` on: of the ranges that you are joining, and of what is settled in your own?
    /// Servers only.
    Lacking {
        /// The epoch.
        epoch: Epoch,
        /// First position of interest.
        from: Position,
        /// Most positions to name; at most `ITEMS_PER_MESSAGE`.
        limit: u32,
    },
}

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAnswer {
    /// Won at the head, not yet durable (for overlapped durability, not sent yet).
    Accepted,
    /// On stable storage, by this or an earlier write of the same entry id.
    Durable,
    /// The position holds something else.
    Occupied,
    /// The disk is full; nothing was written (rule 29).
    Full,
    /// Farther above the settled mark than the layout allows; settle what is undecided below and send again.
    TooFar,
    /// This unit is no replica of that position.
    NotMine,
    /// The position is below the trim mark.
    Trimmed,
    /// Malformed entry, or junk written to an active head.
    Refused,
}

/// What a unit knows of one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitReadAnswer {
    /// The next `len` bytes of the body.
    Data {
        /// Bytes.
        len: u32,
    },
    /// Filled.
    Junk,
    /// Never written here.
    Unwritten,
    /// Below the trim mark.
    Trimmed,
    /// Known or owed, but cannot be given. Never confused with `Unwritten`.
    Lost,
    /// Accepted here, not yet durable.
    Pending,
    /// Not a replica of that position.
    NotMine,
}

/// Marks that units add to their answers. All exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Every own position (of the range asked, or of the last range) below it is decided and durable *here*, or was
    /// settled before and is lost here. At a chain's tail, written one after the other, that means settled.
    pub settled: Position,
    /// Everything below was trimmed.
    pub trimmed: Position,
}

/// What a sealed unit reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealReport {
    /// Epoch it served before (or its persisted epoch, after a restart).
    pub epoch: Epoch,
    /// First position above everything it holds, knows to have held, or may have held.
    pub high: Position,
    /// Marks.
    pub marks: Marks,
    /// Distinct streams it will report when collected.
    pub streams: u64,
    /// End, exclusive, of what it may have held, cannot give, and does not know the streams of; 0 if there is no
    /// such position. Any stream may have had an entry there, also one that nobody lists when collected.
    pub lost: Position,
}

/// The tail of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTail {
    /// The stream.
    pub stream: StreamId,
    /// Its last positions.
    pub last: BackPointers,
}

/// Responses of a log unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitResponse {
    /// To `Write`: one answer for each item, when all are answered.
    Written {
        /// In order of the items.
        answers: Vec<WriteAnswer>,
        /// Marks.
        marks: Marks,
    },
    /// To `Fill`: the durable winners in order of position. `full`: stopped early because even the reserve is full.
    Filled {
        /// Winners; data in the body.
        winners: Vec<(Position, WireValue)>,
        /// Marks.
        marks: Marks,
    },
    /// To `Read`: one answer for each position; data in the body. It stops early, behind at least one answer, where
    /// it would be too large.
    Values {
        /// In order of the positions.
        answers: Vec<UnitReadAnswer>,
        /// Marks.
        marks: Marks,
    },
    /// To `ReadStreams`.
    Entries {
        /// Positions and lengths, ascending; data in the body. Junk is not listed; a `Lost` one has length 0
        /// and `complete` ends at it.
        entries: Vec<(Position, u32)>,
        /// Every entry of the streams below it on this unit was given: not above the settled mark of the range,
        /// nor above `to`.
        complete: Position,
        /// Marks of the range asked.
        marks: Marks,
    },
    /// To `ReadStreams` from below the trim mark, and to `Trim`.
    Trimmed {
        /// The mark, persisted.
        below: Position,
    },
    /// To `Confirm`: still serving the epoch.
    Serving {
        /// Marks.
        marks: Marks,
    },
    /// To `Seal`.
    Sealed(SealReport),
    /// To `Collect`.
    Tails {
        /// Stream tails, ascending by stream.
        tails: Vec<StreamTail>,
        /// Whether there are no more.
        done: bool,
    },
    /// To `Open`, `Settled` and `Rejoin`.
    Done,
    /// To `Ends`: still serving the epoch. Ends are exclusive and may be too high, never too low.
    Ends {
        /// Marks.
        marks: Marks,
        /// First position above everything that is durable here.
        log: Position,
        /// For each stream asked: first position above its entries that are durable here.
        streams: Vec<Position>,
    },
    /// To `Lacking`.
    Lacking {
        /// Positions, ascending.
        positions: Vec<Position>,
        /// Nothing else is lacking below it; `Position::MAX`: nowhere.
        through: Position,
    },
}

// --------------------------------------------------------------------------------------------- sequencer

/// Requests to the sequencer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SequencerRequest {
    /// One token for each item: the streams it will belong to.
    Tokens {
        /// The epoch.
        epoch: Epoch,
        /// For each token its streams, distinct.
        wants: Vec<Vec<StreamId>>,
    },
    /// The tail, and the last positions of some streams.
    Tail {
        /// The epoch.
        epoch: Epoch,
        /// Which streams.
        streams: Vec<StreamId>,
    },
    /// Answer (like `Tail`) as soon as a stream has a position at or above `from`, or after `wait_ms`.
    /// A hint to look again: the answer is not a tail check.
    Wait {
        /// The epoch.
        epoch: Epoch,
        /// Which streams; none = any position at all.
        streams: Vec<StreamId>,
        /// The first position of interest.
        from: Position,
        /// At most `LONGEST_WAIT_MS`.
        wait_ms: u32,
    },
    /// The log was trimmed below the mark.
    Trimmed {
        /// The epoch.
        epoch: Epoch,
        /// The mark.
        below: Position,
    },
    /// State for a new epoch, in pages; usable after the last. Servers only.
    Bootstrap(Bootstrap),
    /// Stop serving every epoch below `epoch`, and give up the lease. Servers only.
    Seal {
        /// The epoch that is to come.
        epoch: Epoch,
    },
}

/// One page of a bootstrap (rule 17).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The new epoch.
    pub epoch: Epoch,
    /// The run of the process it is meant for.
    pub incarnation: Incarnation,
    /// The cluster that the process now belongs to.
    pub cluster: ClusterId,
    /// First position to grant.
    pub next: Position,
    /// Trim mark.
    pub trimmed: Position,
    /// End, exclusive, of what some replica lost with its streams; 0 if nothing is lost. No stream is known to be
    /// complete below it before somebody has looked there (rule 11).
    pub lost: Position,
    /// How tail answers are to be given.
    pub lease: Lease,
    /// Most streams that may exist (a layout limit).
    pub stream_limit: u64,
    /// Number of this page, from 0.
    pub page: u32,
    /// Whether it is the last one.
    pub last: bool,
    /// Stream tails of this page, ascending over all pages.
    pub tails: Vec<StreamTail>,
}

/// What stands for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lease {
    /// Nothing: every tail answer has to be confirmed by a chain (rule 21).
    None,
    /// The directory lock of an embedded log (rule 44).
    DirectoryLock,
    /// A lease that the layout's leader renews (rule 20). In a bootstrap: one is to be asked for. In a tail answer: it
    /// is held, and had not run out when the query was read.
    Renewed,
}

/// Permission to write one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The position.
    pub position: Position,
    /// Links for each stream wanted, in that order.
    pub links: Vec<StreamLink>,
}

/// The sequencer's answer to a tail query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailAnswer {
    /// First position not granted yet.
    pub next: Position,
    /// Trim mark; an absent stream means "nothing above the mark" (rule 22).
    pub trimmed: Position,
    /// Whether the answer may be used as it is. `None`: confirm it by rule 21.
    pub lease: Lease,
    /// The last positions of the streams asked, in that order. Where something was lost, a list names that position
    /// as one that may be the stream's, and leads no further down.
    pub streams: Vec<BackPointers>,
}

/// Responses of the sequencer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SequencerResponse {
    /// To `Tokens`; ascending.
    Tokens(Vec<Token>),
    /// To `Tail` and `Wait`.
    Tail(TailAnswer),
    /// To `Bootstrap` and `Trimmed`.
    Done,
    /// To `Tokens`, if some of them would make more streams than there may be.
    SomeTokens {
        /// For the others, in their order; ascending.
        tokens: Vec<Token>,
        /// Which wants got none, as indexes, ascending: each names a stream that does not exist yet.
        refused: Vec<u32>,
        /// Most streams that may exist (a layout limit).
        limit: u64,
    },
    /// To `Seal`: this run of the process serves no lower epoch any more, and holds no lease for one.
    Sealed {
        /// The run.
        incarnation: Incarnation,
    },
}

// ------------------------------------------------------------------------------------------------ layout

/// Requests to the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayoutRequest {
    /// A server process says what it is; repeated as a heartbeat. Servers only.
    Hello(Hello),
    /// The current layout, or a newer one than `known` if that comes within `wait_ms`.
    Get {
        /// What the asker has.
        known: Epoch,
        /// At most `LONGEST_WAIT_MS`.
        wait_ms: u32,
    },
    /// Somebody met `Sealed` in this epoch and knows no later one (rule 2).
    ReportSealed {
        /// The epoch.
        epoch: Epoch,
    },
    /// An operator is about to turn what is lost in `from..to` into junk: units that are out now may not bring it back.
    /// Answered with `Heard` once that is durable.
    GiveUp {
        /// First position.
        from: Position,
        /// End, exclusive; at most the start of the current epoch.
        to: Position,
    },
    /// An operator wants the cluster to be otherwise. Asked again, it goes on where it stands.
    Change {
        /// How.
        change: ClusterChange,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Epochs after this one, at most [`crate::limits::STARTS_PER_PAGE`], and the newest layout.
    History {
        /// 0: from the first one.
        after: Epoch,
    },
    /// The sequencer asks for a lease on the tail answers of its epoch, from the moment on when it sent this (rule 20).
    /// Servers only.
    Renew(Renewal),
}

/// Whose lease is to be renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The sequencer; equal to the name in its certificate.
    pub name: ServerName,
    /// Its run.
    pub incarnation: Incarnation,
    /// The epoch that it serves.
    pub epoch: Epoch,
}

/// What a server process is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name; equal to the one in its certificate.
    pub name: ServerName,
    /// Where others reach it.
    pub address: String,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its log unit, if it has one.
    pub unit: Option<UnitHello>,
    /// Whether it can be a sequencer.
    pub sequencer: bool,
}

/// What a log unit says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitHello {
    /// Identity of its directory.
    pub id: UnitId,
    /// The cluster its directory belongs to; `None` until some cluster has asked it to take part.
    pub cluster: Option<ClusterId>,
    /// The persisted epoch; 0 if it never served one.
    pub persisted: Epoch,
    /// The epoch it serves now; 0 if it has sealed itself or was sealed.
    pub serving: Epoch,
    /// Whether its directory holds no entry and it never served an epoch.
    pub empty: bool,
    /// Whether a failure of its disk has made it refuse writes until it is restarted.
    pub poisoned: bool,
    /// Whether it may have lost something that it held.
    pub damaged: bool,
    /// How long its disk took lately to make a batch durable: the median, in microseconds. `None` if it wrote too little
    /// to say.
    pub disk_micros: Option<u32>,
}

/// Responses of the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayoutResponse {
    /// The newest published layout.
    Layout(Published),
    /// There is none yet, or none newer; `why` names what is waited for.
    Waiting {
        /// For people: which servers are missing, which step is under way.
        why: String,
    },
    /// To `Hello`, `ReportSealed` and `GiveUp`.
    Heard,
    /// To `Change`.
    Change(ChangeReport),
    /// To `History`.
    History(HistoryReport),
    /// To `Renew`.
    Lease {
        /// How long the lease lasts from the moment on when the request was sent; 0: there is none.
        lasts_ms: u32,
    },
}

// ------------------------------------------------------------------------------------------------ status

/// What a process is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its name.
    pub name: ServerName,
    /// Its run.
    pub incarnation: Incarnation,
    /// The cluster, once known.
    pub cluster: Option<ClusterId>,
    /// Version of the build.
    pub version: String,
    /// For each role (`unit`, `sequencer`, `layout`) some facts, for people and scripts.
    pub roles: BTreeMap<String, BTreeMap<String, String>>,
}
