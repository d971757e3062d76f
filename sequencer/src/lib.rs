//! The sequencer core: hands out positions and knows where each stream ends; pure.
//!
//! ```text
//!   handle(now, call, request) --> [ seal / epoch check ] --> State: next position, stream -> last K positions
//!   handle_time(now)           --> [ parked waits ]                      |
//!        |                                          poll_reply() <-------'
//!        '--> [ lease ] --> poll_ask() --> the layout --> leased(now, ask, how long)
//! ```
//!
//! One owner, no locks, no clock. The state is *created by* a bootstrap that carries its epoch, and there is none
//! before (rule 17); nothing is stored, because the next epoch's state comes from the log units. Nothing in here
//! knows of connections, layouts or entries.
//!
//! ```
//! use milonga_protocol::entry::ListEnd;
//! use milonga_protocol::messages::*;
//! use milonga_protocol::{BackPointers, ClusterId, Epoch, Incarnation, Position, StreamId, Time};
//! use milonga_sequencer::Sequencer;
//!
//! let mut sequencer = Sequencer::new(Incarnation(7));
//! let bootstrap = Bootstrap {
//!     epoch: Epoch(1), incarnation: Incarnation(7), cluster: ClusterId(1), next: Position(0), trimmed: Position(0),
//!     lost: Position(0), lease: Lease::None, stream_limit: 1_000, page: 0, last: true, tails: vec![],
//! };
//! sequencer.handle(Time::default(), CallId(1), SequencerRequest::Bootstrap(bootstrap));
//! let wants = vec![vec![StreamId(5)], vec![StreamId(5)]];
//! sequencer.handle(Time::default(), CallId(2), SequencerRequest::Tokens { epoch: Epoch(1), wants });
//! assert_eq!(sequencer.poll_reply(), Some((CallId(1), Response::Sequencer(SequencerResponse::Done))));
//! let Some((_, Response::Sequencer(SequencerResponse::Tokens(tokens)))) = sequencer.poll_reply() else { panic!() };
//! assert_eq!(tokens[1].position, Position(1));
//! assert_eq!(tokens[1].links[0].back, BackPointers::new([Position(0)], ListEnd::Beginning));
//! ```

mod bootstrap;
mod lease;
mod state;
mod waits;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use milonga_protocol::limits::{
    FRAME_HEADER_BYTES, ITEMS_PER_MESSAGE, LONGEST_WAIT_MS, MAX_STREAMS_PER_ENTRY,
};
use milonga_protocol::messages::{
    Bootstrap, CallId, Refusal, Response, SequencerRequest, SequencerResponse,
};
use milonga_protocol::plants::{self, Plant};
use milonga_protocol::{ClusterId, Epoch, Incarnation, Position, StreamId, Time};

pub use lease::AskLease;

use bootstrap::Filling;
use state::{Granted, State};
use waits::{Wait, Waits};

/// Most links that the tokens of one message may have together: they fit one frame (52 bytes each at most).
pub const LINKS_PER_MESSAGE: usize = 65_536;
const _: () = assert!(LINKS_PER_MESSAGE * 52 + ITEMS_PER_MESSAGE * 20 < FRAME_HEADER_BYTES);

/// The sequencer of one process run. See the crate's page for how to drive it.
#[derive(Debug)]
pub struct Sequencer {
    incarnation: Incarnation,
    /// The cluster of this process; learned from the first bootstrap if nobody told it before.
    cluster: Option<ClusterId>,
    /// Every epoch below is refused.
    sealed_below: Epoch,
    /// Exists from the last page of a bootstrap on, and is replaced as a whole.
    state: Option<State>,
    /// A bootstrap of which pages are missing.
    filling: Option<Filling>,
    waits: Waits,
    replies: VecDeque<(CallId, Response)>,
    /// A lease is to be asked for.
    ask: Option<AskLease>,
    /// When something last happened.
    now: Time,
}

type Answer = Result<SequencerResponse, Refusal>;

impl Sequencer {
    /// A sequencer without state: it refuses everything (`NotOpen`) until it is bootstrapped.
    /// `incarnation` is the run of this process, which every bootstrap must name.
    #[must_use]
    pub const fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            cluster: None,
            sealed_below: Epoch::NONE,
            state: None,
            filling: None,
            waits: Waits::new(),
            replies: VecDeque::new(),
            ask: None,
            now: Time::from_start(Duration::ZERO),
        }
    }

    /// This process belongs to `cluster`: bootstraps of others are refused. Ignored if a cluster is known already.
    pub fn belongs_to(&mut self, cluster: ClusterId) {
        self.cluster.get_or_insert(cluster);
    }

    /// The cluster, once it was told or a bootstrap named it.
    #[must_use]
    pub const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Takes a request. The answer comes out of [`Self::poll_reply`] under `call`, at once for all but `Wait`. `now` MUST be
    /// read after the request was: the lease on a tail answer has to last until then (rule 20).
    pub fn handle(&mut self, now: Time, call: CallId, request: SequencerRequest) {
        self.now = now;
        let answer = match request {
            SequencerRequest::Tokens { epoch, wants } => self.tokens(epoch, &wants),
            SequencerRequest::Tail { epoch, streams } => self.tail(now, epoch, &streams),
            SequencerRequest::Trimmed { epoch, below } => self.trimmed(epoch, below),
            SequencerRequest::Bootstrap(page) => self.bootstrap(page),
            SequencerRequest::Seal { epoch } => self.seal(epoch),
            SequencerRequest::Wait {
                epoch,
                streams,
                from,
                wait_ms,
            } => {
                let wait = Wait {
                    streams,
                    from,
                    until: now.after(waits::longest(wait_ms)),
                };
                match self.wait(now, call, epoch, wait) {
                    Some(answer) => answer,
                    None => return,
                }
            }
        };
        self.reply(call, answer);
    }

    /// Answers the waits whose time is up, and asks for a lease when it is time to.
    pub fn handle_time(&mut self, now: Time) {
        self.now = now;
        if let Some(state) = self.state.as_mut().filter(|s| s.epoch >= self.sealed_below)
            && state.lease.asks(now)
        {
            let epoch = state.epoch;
            self.ask = Some(AskLease { epoch, asked: now });
        }
        let expired = self.waits.expired(now);
        self.answer_waits(expired);
    }

    /// When [`Self::handle_time`] has something to do.
    #[must_use]
    pub fn next_time(&self) -> Option<Time> {
        let state = self.state.as_ref();
        let state = state.filter(|s| s.epoch >= self.sealed_below);
        let ask_at = state.and_then(|s| s.lease.ask_at());
        [self.waits.next_time(), ask_at].into_iter().flatten().min()
    }

    /// A request for a lease, to be sent to the layout; its answer goes to [`Self::leased`], and none is an answer, too.
    pub const fn poll_ask(&mut self) -> Option<AskLease> {
        self.ask.take()
    }

    /// The layout granted what `ask` was for: a lease that lasts so long from the time of asking on; zero: none.
    pub fn leased(&mut self, now: Time, ask: AskLease, lasts: Duration) {
        self.now = now;
        // A lease is its epoch's; and what was sealed answers nothing, whatever it holds.
        if let Some(state) = self.state.as_mut().filter(|s| s.epoch == ask.epoch)
            && lasts > Duration::ZERO
        {
            state.lease.granted(now, ask.asked, lasts);
        }
    }

    /// The next answer, in any order.
    pub fn poll_reply(&mut self) -> Option<(CallId, Response)> {
        self.replies.pop_front()
    }

    /// For people and `milonga status`.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut fact = |name: &str, value: String| facts.insert(name.to_owned(), value);
        let state = match (&self.state, &self.filling) {
            (Some(state), None) if state.epoch >= self.sealed_below => "serving".to_owned(),
            (_, Some(filling)) => filling.describe(),
            (None, None) => "waits for the layout's bootstrap".to_owned(),
            (Some(_), None) => format!("sealed for epoch {}", self.sealed_below),
        };
        fact("state", state);
        if let Some(state) = &self.state {
            fact("epoch", state.epoch.to_string());
            fact("next", state.next.to_string());
            fact("trimmed", state.trimmed.to_string());
            fact("streams", state.streams().to_string());
            if state.epoch >= self.sealed_below {
                fact("lease", state.lease.describe(self.now).to_owned());
            }
        }
        fact("waits", self.waits.len().to_string());
        facts
    }

    fn reply(&mut self, call: CallId, answer: Answer) {
        let response = answer.map_or_else(Response::Refused, Response::Sequencer);
        self.replies.push_back((call, response));
    }

    /// The state, if it serves exactly `epoch`.
    fn serving(&mut self, epoch: Epoch) -> Result<&mut State, Refusal> {
        let newest = self.state.as_ref().map_or(Epoch::NONE, |s| s.epoch);
        if epoch < self.sealed_below {
            return Err(Refusal::Sealed {
                epoch: self.sealed_below.max(newest),
            });
        }
        let state = self.state.as_mut().ok_or(Refusal::NotOpen)?;
        match epoch.cmp(&state.epoch) {
            std::cmp::Ordering::Equal => Ok(state),
            std::cmp::Ordering::Less => Err(Refusal::Sealed { epoch: state.epoch }),
            std::cmp::Ordering::Greater => Err(Refusal::NotYet { epoch: state.epoch }),
        }
    }

    fn tokens(&mut self, epoch: Epoch, wants: &[Vec<StreamId>]) -> Answer {
        let state = self.serving(epoch)?;
        check_wants(wants)?;
        let Granted {
            tokens,
            refused,
            limit,
        } = state.grant(wants);
        let woken = self.waits.granted(&tokens);
        self.answer_waits(woken);
        if refused.is_empty() {
            return Ok(SequencerResponse::Tokens(tokens));
        }
        Ok(SequencerResponse::SomeTokens {
            tokens,
            refused,
            limit,
        })
    }

    fn tail(&mut self, now: Time, epoch: Epoch, streams: &[StreamId]) -> Answer {
        let state = self.serving(epoch)?;
        check_streams(streams)?;
        Ok(SequencerResponse::Tail(state.tail(now, streams)))
    }

    fn trimmed(&mut self, epoch: Epoch, below: Position) -> Answer {
        let state = self.serving(epoch)?;
        if below > state.next {
            return Err(malformed(format!(
                "trim mark {below} is above the tail {}",
                state.next
            )));
        }
        state.trimmed = state.trimmed.max(below);
        Ok(SequencerResponse::Done)
    }

    /// `None`: parked.
    fn wait(&mut self, now: Time, call: CallId, epoch: Epoch, wait: Wait) -> Option<Answer> {
        let state = match self.serving(epoch) {
            Ok(state) => state,
            Err(refusal) => return Some(Err(refusal)),
        };
        if let Err(refusal) = check_streams(&wait.streams) {
            return Some(Err(refusal));
        }
        if wait.until <= now || state.grew(&wait.streams, wait.from) {
            let answer = state.tail(now, &wait.streams);
            return Some(Ok(SequencerResponse::Tail(answer)));
        }
        self.waits.park(call, wait).err().map(Err)
    }

    fn seal(&mut self, epoch: Epoch) -> Answer {
        let incarnation = self.incarnation;
        let sealed = SequencerResponse::Sealed { incarnation };
        if plants::active(Plant::SequencerServesSealed) {
            return Ok(sealed);
        }
        if epoch > self.sealed_below {
            self.sealed_below = epoch;
            if self.filling.as_ref().is_some_and(|f| f.epoch() < epoch) {
                self.filling = None;
            }
            self.refuse_old_waits();
        }
        Ok(sealed)
    }

    fn bootstrap(&mut self, page: Bootstrap) -> Answer {
        if page.incarnation != self.incarnation {
            let why = "the bootstrap is meant for another run of this process".into();
            return Err(Refusal::Identity { why });
        }
        if let Some(mine) = self.cluster.filter(|mine| *mine != page.cluster) {
            let other = page.cluster;
            let why =
                format!("this process belongs to cluster {mine}, the bootstrap is of {other}");
            return Err(Refusal::Identity { why });
        }
        if page.cluster == ClusterId::default() {
            return Err(malformed("a bootstrap that names no cluster".into()));
        }
        if page.lost > page.next {
            let (lost, next) = (page.lost, page.next);
            return Err(malformed(format!(
                "lost below {lost}, but the epoch starts at {next}"
            )));
        }
        let served = self.state.as_ref().map_or(Epoch::NONE, |s| s.epoch);
        let begins_anew = plants::active(Plant::RepeatedBootstrapStartsOver);
        if page.epoch == served && served != Epoch::NONE && !begins_anew {
            // A repeat changes nothing: tokens may have been granted since (rule 17).
            return Ok(SequencerResponse::Done);
        }
        let newest = served.max(self.sealed_below);
        if page.epoch < newest || page.epoch == Epoch::NONE {
            return Err(Refusal::Sealed { epoch: newest });
        }
        let (epoch, cluster) = (page.epoch, page.cluster);
        let last = bootstrap::take_page(&mut self.filling, page)?;
        // The new epoch is committed, so the old one is over even if nobody said so.
        self.seal(epoch)?;
        self.belongs_to(cluster);
        if last && let Some(filling) = self.filling.take() {
            self.state = Some(filling.into_state());
        }
        Ok(SequencerResponse::Done)
    }

    /// Waits belong to the epoch in which they were parked; all parked ones are of the same.
    fn refuse_old_waits(&mut self) {
        let epoch = self.sealed_below;
        for (call, _) in self.waits.all() {
            self.reply(call, Err(Refusal::Sealed { epoch }));
        }
    }

    fn answer_waits(&mut self, waits: Vec<(CallId, Wait)>) {
        for (call, wait) in waits {
            let answer = match &self.state {
                Some(state) => Ok(SequencerResponse::Tail(state.tail(self.now, &wait.streams))),
                None => Err(Refusal::NotOpen),
            };
            self.reply(call, answer);
        }
    }
}

fn check_wants(wants: &[Vec<StreamId>]) -> Result<(), Refusal> {
    if wants.len() > ITEMS_PER_MESSAGE {
        let tokens = wants.len();
        return Err(malformed(format!(
            "{tokens} tokens in one message, at most {ITEMS_PER_MESSAGE}"
        )));
    }
    let links: usize = wants.iter().map(Vec::len).sum();
    if links > LINKS_PER_MESSAGE {
        return Err(malformed(format!(
            "tokens with {links} streams together, at most {LINKS_PER_MESSAGE}"
        )));
    }
    for want in wants {
        if want.len() > MAX_STREAMS_PER_ENTRY as usize {
            let streams = want.len();
            return Err(malformed(format!(
                "a token of {streams} streams, at most {MAX_STREAMS_PER_ENTRY}"
            )));
        }
        if has_duplicates(want) {
            return Err(malformed("a token that names a stream twice".into()));
        }
    }
    Ok(())
}

fn check_streams(streams: &[StreamId]) -> Result<(), Refusal> {
    if streams.len() > ITEMS_PER_MESSAGE {
        let asked = streams.len();
        return Err(malformed(format!(
            "{asked} streams in one message, at most {ITEMS_PER_MESSAGE}"
        )));
    }
    Ok(())
}

fn has_duplicates(streams: &[StreamId]) -> bool {
    match streams {
        [] | [_] => false,
        [a, b] => a == b,
        many => {
            let mut sorted = many.to_vec();
            sorted.sort_unstable();
            sorted.windows(2).any(|pair| pair[0] == pair[1])
        }
    }
}

const fn malformed(why: String) -> Refusal {
    Refusal::Malformed { why }
}

/// The longest that a wait may be parked.
const LONGEST_WAIT: Duration = Duration::from_millis(LONGEST_WAIT_MS as u64);
