//! What becomes of one message: pure, seeded.

use std::collections::BTreeMap;

use milonga_protocol::ServerName;

use crate::world::rng::Rng;
use crate::world::trace::Moment;

/// How the network behaves when nothing in particular happens. Drawn by each seed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkPlan {
    /// Typical nanoseconds one way.
    pub delay: u64,
    /// Arrivals are rounded up to this many nanoseconds: coarse ones arrive together.
    pub tick: u64,
    /// Of a million messages, so many are lost and sent again after a while.
    pub loss: u32,
    /// Of a million messages, so many break their connection.
    pub corruption: u32,
    /// Of a million answers, so many arrive twice.
    pub duplication: u32,
    /// Of a million messages to nobody, or on a dead connection, so many are noticed before the deadline.
    pub noticed: u32,
    /// Bytes of requests under way between two processes.
    pub room: usize,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// It arrives.
    Arrives(Moment),
    /// It arrives twice.
    Twice(Moment, Moment),
    /// It arrives when the link is mended.
    Held,
    /// It never arrives, and nobody is told.
    Lost,
    /// It broke the connection: both sides notice, the sender at this moment.
    Broken(Moment),
}

/// The state of the links.
#[derive(Debug)]
pub(crate) struct Model {
    plan: NetworkPlan,
    rng: Rng,
    /// How many partitions cut a direction right now.
    cuts: BTreeMap<(ServerName, ServerName), u32>,
    /// How many faults have what a process asks for lost.
    mute: BTreeMap<ServerName, u32>,
    /// Everything to and from a process takes so many times longer.
    slow: BTreeMap<ServerName, u64>,
    /// Added to the plan's rates while storms last.
    storm: u32,
}

impl Model {
    pub(crate) fn new(seed: u64, plan: NetworkPlan) -> Self {
        Self {
            plan,
            rng: Rng::new(seed, "network"),
            cuts: BTreeMap::new(),
            mute: BTreeMap::new(),
            slow: BTreeMap::new(),
            storm: 0,
        }
    }

    pub(crate) const fn room(&self) -> usize {
        self.plan.room
    }

    pub(crate) fn cut(&mut self, from: &ServerName, to: &ServerName) {
        *self.cuts.entry((from.clone(), to.clone())).or_insert(0) += 1;
    }

    /// Ends one cut. Whether the direction is open again.
    pub(crate) fn mend(&mut self, from: &ServerName, to: &ServerName) -> bool {
        let link = (from.clone(), to.clone());
        match self.cuts.get_mut(&link) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => self.cuts.remove(&link).is_some(),
        }
    }

    pub(crate) fn is_cut(&self, from: &ServerName, to: &ServerName) -> bool {
        !self.cuts.is_empty() && self.cuts.contains_key(&(from.clone(), to.clone()))
    }

    pub(crate) fn set_mute(&mut self, name: &ServerName, on: bool) {
        let count = self.mute.entry(name.clone()).or_insert(0);
        *count = if on {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
    }

    pub(crate) fn set_slow(&mut self, name: &ServerName, factor: u64) {
        if factor <= 1 {
            self.slow.remove(name);
        } else {
            self.slow.insert(name.clone(), factor);
        }
    }

    pub(crate) const fn set_storm(&mut self, added: u32) {
        self.storm = added;
    }

    /// Draws the fate of a message sent `now`.
    pub(crate) fn draw(
        &mut self,
        now: Moment,
        from: &ServerName,
        to: &ServerName,
        answer: bool,
    ) -> Fate {
        if !answer && self.mute.get(from).is_some_and(|count| *count > 0) {
            return Fate::Lost;
        }
        if self.is_cut(from, to) {
            // QUIC sends again until the connection is given up.
            let held = self.rng.happens(500_000);
            return if held { Fate::Held } else { Fate::Lost };
        }
        if self.rng.happens(self.plan.corruption + self.storm / 20) {
            return Fate::Broken(now.plus(self.delay(from, to)));
        }
        let at = self.arrival(now, from, to);
        if answer && self.rng.happens(self.plan.duplication + self.storm / 2) {
            return Fate::Twice(at, self.arrival(now, from, to));
        }
        Fate::Arrives(at)
    }

    /// When a message arrives that is neither cut off nor broken.
    pub(crate) fn arrival(&mut self, now: Moment, from: &ServerName, to: &ServerName) -> Moment {
        let mut delay = self.delay(from, to);
        let mut timeout = self.plan.delay * 3;
        while timeout < 2_000_000_000 && self.rng.happens(self.plan.loss + self.storm) {
            delay += timeout + self.rng.below(timeout + 1);
            timeout *= 2;
        }
        let at = now.plus(delay).0;
        let tick = self.plan.tick.max(1);
        Moment(at.div_ceil(tick) * tick)
    }

    /// When a datagram arrives (never, once or twice), and whether it was damaged on its way.
    pub(crate) fn draw_datagram(
        &mut self,
        now: Moment,
        from: &ServerName,
        to: &ServerName,
    ) -> (Vec<Moment>, bool) {
        let lost = self.rng.happens(self.plan.loss + self.storm);
        if lost || self.is_cut(from, to) {
            return (Vec::new(), false);
        }
        let twice = self.rng.happens(self.plan.duplication + self.storm / 2);
        let tick = self.plan.tick.max(1);
        let arrivals = (0..if twice { 2 } else { 1 }).map(|_| {
            let at = now.plus(self.delay(from, to)).0;
            Moment(at.div_ceil(tick) * tick)
        });
        let arrivals = arrivals.collect();
        (
            arrivals,
            self.rng.happens(self.plan.corruption + self.storm / 20),
        )
    }

    /// Whether a message to nobody is noticed, and when.
    pub(crate) fn nobody(
        &mut self,
        now: Moment,
        from: &ServerName,
        to: &ServerName,
    ) -> Option<Moment> {
        let noticed = self.rng.happens(self.plan.noticed) && !self.is_cut(from, to);
        noticed.then(|| now.plus(2 * self.delay(from, to)))
    }

    /// Whether a message that was held arrives after all.
    pub(crate) const fn survives(&mut self) -> bool {
        self.rng.happens(700_000)
    }

    fn delay(&mut self, from: &ServerName, to: &ServerName) -> u64 {
        let slow = |name| self.slow.get(name).copied().unwrap_or(1);
        let factor = slow(from).max(slow(to));
        self.rng.long_tailed(self.plan.delay) * factor
    }
}
