//! How fast servers are, and for how long: the memory of [`super`]'s rules, without any rule about the layout.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use milonga_protocol::settle::{SendId, SendOutcome};
use milonga_protocol::{ServerName, Time};

/// Between two pings of a server.
const PING_EVERY: Duration = Duration::from_millis(400);
/// So many of the last pings count, by their median: one that was lost on the way says nothing.
const PINGS: usize = 9;
/// Fewer say nothing.
const LEAST_PINGS: usize = 5;
/// Who takes less is not slow, whatever others take. A median of so much is nothing that a healthy disk or a local network
/// shows, and little enough to live with.
pub(crate) const FLOOR: Duration = Duration::from_millis(20);
/// Slow is who takes so many times as long as others. (Ten times may be a busy disk; a hundred times is broken.)
pub(crate) const FACTOR: u32 = 25;
/// It has to be slow for so long.
const FOR_LONG: Duration = Duration::from_secs(2);
/// Who was taken out comes back once it was fast for so long, and twice as long after each further time (flap damping).
const FAST_FOR: Duration = Duration::from_secs(5);
const FAST_FOR_AT_MOST: Duration = Duration::from_secs(60);
/// Who was not slow for so long is trusted again.
const TRUSTED_AFTER: Duration = Duration::from_secs(300);

/// What is known of all servers' speed.
#[derive(Debug, Default)]
pub(crate) struct Slowness {
    servers: BTreeMap<ServerName, Watched>,
    /// When they were pinged last.
    pinged: Option<Time>,
}

/// What is known of one.
#[derive(Debug, Default)]
struct Watched {
    /// The last pings, the oldest first.
    pings: VecDeque<Ping>,
    /// It is slow just now, since when.
    slow_since: Option<Time>,
    /// It is not, since when.
    fast_since: Option<Time>,
    /// Why, in words and numbers, when it was slow last.
    why: String,
    /// It was taken out for that, and has not been fast for long enough.
    out: bool,
    /// How often it was, and when last.
    times: u32,
    last: Time,
}

#[derive(Debug)]
struct Ping {
    id: SendId,
    sent: Time,
    /// `None`: under way.
    took: Option<Duration>,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    RoundTrip,
    Disk,
}

/// What one server shows, and what the others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) measure: Measure,
    pub(crate) own: Duration,
    /// `None`: there is nobody to compare it with.
    pub(crate) others: Option<Duration>,
}

impl Seen {
    /// Whether it is much slower than others.
    pub(crate) fn is_slow(&self) -> bool {
        let much = |others: Duration| self.own >= others.saturating_mul(FACTOR);
        self.own >= FLOOR && self.others.is_some_and(much)
    }

    fn words(&self) -> String {
        let (own, others) = (ms(self.own), ms(self.others.unwrap_or_default()));
        match self.measure {
            Measure::RoundTrip => format!("it answers within {own}, others within {others}"),
            Measure::Disk => format!("its disk takes {own} for a batch, others' {others}"),
        }
    }
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1_000.0)
}

/// The middle one; of two in the middle the greater, so that doubts speak for who is judged by it.
pub(crate) fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

impl Watched {
    /// The median of the last round trips; one under way counts as what it has taken so far.
    fn round_trip(&self, now: Time) -> Option<Duration> {
        let took = |ping: &Ping| ping.took.unwrap_or_else(|| now.since(ping.sent));
        let known = |ping: &&Ping| ping.took.is_some() || now.since(ping.sent) >= FLOOR;
        let took: Vec<_> = self.pings.iter().filter(known).map(took).collect();
        median(took).filter(|_| self.pings.len() >= LEAST_PINGS)
    }

    /// For how long it has to be fast before it is let in again.
    fn penance(&self) -> Duration {
        let doublings = self.times.saturating_sub(1).min(16);
        (FAST_FOR * 2_u32.pow(doublings)).min(FAST_FOR_AT_MOST)
    }

    /// Takes in what it shows now.
    fn see(&mut self, now: Time, slow: Option<&Seen>) {
        if let Some(seen) = slow {
            self.why = seen.words();
            self.slow_since.get_or_insert(now);
            self.fast_since = None;
            return;
        }
        self.slow_since = None;
        let since = *self.fast_since.get_or_insert(now);
        if self.out && now.since(since) >= self.penance() {
            (self.out, self.last) = (false, now);
        }
    }

    fn is_slow(&self, now: Time) -> bool {
        self.slow_since.is_some_and(|at| now.since(at) >= FOR_LONG)
    }
}

impl Slowness {
    /// When everybody is to be pinged, and judged, next.
    pub(crate) fn ping_at(&self) -> Time {
        let pinged = self.pinged.map(|at| at.after(PING_EVERY));
        pinged.unwrap_or_default()
    }

    /// They are being pinged now.
    pub(crate) const fn ping_round(&mut self, now: Time) {
        self.pinged = Some(now);
    }

    /// A ping leaves.
    pub(crate) fn pinged(&mut self, now: Time, name: &ServerName, id: SendId) {
        let pings = &mut self.servers.entry(name.clone()).or_default().pings;
        if pings.len() == PINGS {
            pings.pop_front();
        }
        let (sent, took) = (now, None);
        pings.push_back(Ping { id, sent, took });
    }

    /// Takes the outcome of a ping; whether it was one.
    pub(crate) fn answered(&mut self, now: Time, id: SendId, outcome: &SendOutcome) -> bool {
        for watched in self.servers.values_mut() {
            let pings = &mut watched.pings;
            let Some(place) = pings.iter().position(|ping| ping.id == id) else {
                continue;
            };
            let took = now.since(pings[place].sent);
            if outcome.is_ok() || took >= FLOOR {
                pings[place].took = Some(took);
            } else {
                // Nobody was there. That is for those to judge who listen for hellos.
                pings.remove(place);
            }
            return true;
        }
        false
    }

    /// It was silent, or is a new run: what it was asked before says nothing.
    pub(crate) fn is_back(&mut self, name: &ServerName) {
        if let Some(watched) = self.servers.get_mut(name) {
            watched.pings.clear();
        }
    }

    pub(crate) fn round_trip(&self, now: Time, name: &ServerName) -> Option<Duration> {
        self.servers.get(name)?.round_trip(now)
    }

    /// Takes in what `name` shows now: what it is slow by, if it is.
    pub(crate) fn see(&mut self, now: Time, name: &ServerName, slow: Option<&Seen>) {
        let watched = self.servers.entry(name.clone()).or_default();
        watched.see(now, slow);
    }

    /// Nothing is known of all others: they are neither slow nor fast.
    pub(crate) fn see_no_others(&mut self, seen: &BTreeSet<ServerName>) {
        for (name, watched) in &mut self.servers {
            if !seen.contains(name) {
                (watched.slow_since, watched.fast_since) = (None, None);
            }
        }
    }

    /// It is taken out.
    pub(crate) fn take_out(&mut self, now: Time, name: &ServerName) {
        let watched = self.servers.entry(name.clone()).or_default();
        if now.since(watched.last) >= TRUSTED_AFTER {
            watched.times = 0;
        }
        watched.times += 1;
        (watched.out, watched.last) = (true, now);
    }

    /// Whether it was taken out, and has not been fast for long enough since.
    pub(crate) fn is_out(&self, name: &ServerName) -> bool {
        self.servers.get(name).is_some_and(|watched| watched.out)
    }

    /// Whether it is slow and has been for long, or was taken out for that.
    pub(crate) fn is_slow(&self, now: Time, name: &ServerName) -> bool {
        let watched = self.servers.get(name);
        watched.is_some_and(|watched| watched.out || watched.is_slow(now))
    }

    /// Why, and when it may come back, for people.
    pub(crate) fn why(&self, now: Time, name: &ServerName) -> Option<String> {
        let watched = self.servers.get(name)?;
        if !watched.out && !watched.is_slow(now) {
            return None;
        }
        let why = &watched.why;
        let Some(since) = watched.fast_since else {
            return Some(format!("is slow: {why}"));
        };
        let left = watched.penance().saturating_sub(now.since(since)).as_secs();
        Some(format!(
            "was slow ({why}); trusted again in {left} s if it stays fast"
        ))
    }
}
