//! Who starts again and again: a process that dies of what it is asked, or soon after, and whose supervisor has it back
//! before its silence tells anything.
//!
//! A new run is forgiven what the one before did, because it may be the remedy. So a server that is back within less than
//! half a second is never silent for long enough to be taken for gone, and each of its runs has what is under way begun
//! again: without this count it could keep a chain from ever going on that could do without it.
//!
//! Being restless is no failure. Such a unit is left out if its chains keep enough replicas that are calm; if they do not,
//! it is waited for as before: where all start again and again (the power fails thrice), nobody is to blame.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use milonga_protocol::{Incarnation, Layout, ServerName, Time, UnitIndex};

use crate::algebra;
use crate::core::LayoutCore;

/// So many restarts within so long a time are too many. Two are forgiven: somebody restarts a server, and then once more.
const TOO_MANY: usize = 3;
const WITHIN: Duration = Duration::from_secs(10);
/// So many restarts are counted: who has more within that time is no worse.
const COUNTED: usize = 8;
/// A restless server is trusted again once it has run for so long, and after twice as long each further time.
const CALM_FOR: Duration = Duration::from_secs(10);
const CALM_FOR_AT_MOST: Duration = Duration::from_secs(60);
/// Who was not restless for so long begins anew.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// When a server was restarted lately.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    /// The last [`COUNTED`] restarts, the oldest first.
    lately: VecDeque<Time>,
    /// The run before the present one: its last hello may have been overtaken, and is no start.
    before: Option<Incarnation>,
    /// How often it became restless.
    times: u32,
    /// Its last start while it was.
    last: Time,
}

impl Starts {
    /// The run `new` follows `old`.
    pub(crate) fn restarted(&mut self, now: Time, old: Incarnation, new: Incarnation) {
        if self.before.replace(old) == Some(new) {
            return;
        }
        if self.lately.len() == COUNTED {
            self.lately.pop_front();
        }
        self.lately.push_back(now);
        if self.is_restless(now) {
            self.last = now;
        } else if self.within(now) >= TOO_MANY {
            if now.since(self.last) >= FORGOTTEN_AFTER {
                self.times = 0;
            }
            self.times += 1;
            self.last = now;
        }
    }

    /// How many restarts there were around `then`.
    fn within(&self, then: Time) -> usize {
        let near = |at: &&Time| then.since(**at).max(at.since(then)) <= WITHIN;
        self.lately.iter().filter(near).count()
    }

    /// Within what time the last [`TOO_MANY`] restarts were.
    fn span(&self) -> Duration {
        let first = self.lately.len().saturating_sub(TOO_MANY);
        let first = self.lately.get(first);
        match (first, self.lately.back()) {
            (Some(first), Some(last)) => last.since(*first),
            _ => Duration::ZERO,
        }
    }

    fn trusted_at(&self) -> Time {
        let doublings = self.times.saturating_sub(1).min(16);
        let calm_for = CALM_FOR * 2_u32.pow(doublings);
        self.last.after(calm_for.min(CALM_FOR_AT_MOST))
    }

    pub(crate) fn is_restless(&self, now: Time) -> bool {
        self.times > 0 && now < self.trusted_at()
    }

    /// Whether it is as bad as `other`, which is restless: it starts again and again as often. Where the power fails for
    /// all, one comes back first, so its next start is counted.
    fn is_no_better_than(&self, other: &Self, now: Time) -> bool {
        // Around the last start of the other one: that they were alike then does not change by waiting. Or now: whoever only
        // begins to fail when the other one is up again is no better.
        let then = other.lately.back().copied().unwrap_or(now);
        let with_next = self.within(then).max(self.within(now)) + 1;
        let is_bad = self.is_restless(now) || with_next >= TOO_MANY;
        is_bad && with_next >= other.within(then)
    }

    /// In words and numbers, if it is restless.
    fn words(&self, now: Time) -> Option<String> {
        let (span, left) = (self.span().as_secs_f64(), self.trusted_at().since(now));
        let left = left.as_secs_f64().ceil();
        self.is_restless(now).then(|| {
            format!(
                "starts again and again (the last {TOO_MANY} times within {span:.1} s); trusted again in {left} s if it stays up"
            )
        })
    }
}

impl LayoutCore {
    /// Whether `name` starts again and again, or has not run for long enough since.
    pub(crate) fn is_restless(&self, name: &ServerName) -> bool {
        let starts = self.heard.starts(name);
        starts.is_some_and(|starts| starts.is_restless(self.now))
    }

    /// Why `name` is not trusted, if it is restless.
    pub(crate) fn restless_words(&self, name: &ServerName) -> Option<String> {
        self.heard.starts(name)?.words(self.now)
    }

    /// Whether the member `unit` starts as often as `name`, which is restless.
    fn is_no_better(&self, unit: UnitIndex, name: &ServerName) -> bool {
        let starts = self.heard.starts(self.unit_name(unit));
        let both = starts.zip(self.heard.starts(name));
        both.is_some_and(|(starts, of_name)| starts.is_no_better_than(of_name, self.now))
    }

    /// The restless member `unit`, and who of its chains is no better.
    fn no_better(&self, layout: &Layout, unit: UnitIndex) -> BTreeSet<UnitIndex> {
        let chains = layout.segments.iter().flat_map(|s| &s.chains);
        let its = chains.filter(|chain| chain.contains(&unit));
        let mut beside: BTreeSet<_> = its.flatten().copied().collect();
        beside.retain(|other| self.is_no_better(*other, self.unit_name(unit)));
        beside.insert(unit);
        beside
    }

    /// Whether the member `name` is restless, and its chains keep enough that are calm, and there.
    pub(crate) fn is_to_blame(&self, name: &ServerName) -> bool {
        let member = self.history.current().zip(self.member(name));
        member.is_some_and(|(layout, unit)| {
            self.is_restless(name) && self.is_spared(layout, unit, &self.absent())
        })
    }

    /// Whether the chains of the restless member `unit` keep enough without it, those that are no better, and `gone`.
    fn is_spared(&self, layout: &Layout, unit: UnitIndex, gone: &BTreeSet<UnitIndex>) -> bool {
        let mut more = self.no_better(layout, unit);
        more.extend(gone);
        algebra::can_do_without(layout, &more)
    }

    /// Whether `name` is as calm as those whose chain it would come into: where all start again and again, each is needed.
    pub(crate) fn is_calm_enough(&self, name: &ServerName, chain: u16) -> bool {
        let last = self.history.current().and_then(|l| l.segments.last());
        let chain = last.and_then(|last| last.chains.get(usize::from(chain)));
        let all_as_bad = |chain: &Vec<_>| chain.iter().all(|unit| self.is_no_better(*unit, name));
        !self.is_restless(name) || chain.is_some_and(all_as_bad)
    }

    /// Takes those members in that are restless and that their chains can do without: what is left is enough, and calm.
    pub(crate) fn with_restless(
        &self,
        layout: &Layout,
        mut gone: BTreeSet<UnitIndex>,
    ) -> BTreeSet<UnitIndex> {
        let members = layout.members().into_iter();
        for unit in members.filter(|unit| self.is_restless(self.unit_name(*unit))) {
            if self.is_spared(layout, unit, &gone) {
                gone.insert(unit);
            }
        }
        gone
    }

    /// Whether the member `name` is left out of the next epoch because it is restless.
    pub(crate) fn is_left_out_as_restless(&self, unit: UnitIndex) -> bool {
        let layout = self.history.current();
        layout.is_some_and(|layout| self.with_restless(layout, self.absent()).contains(&unit))
    }

    /// Who is restless, but for units that are out: of them it is said why.
    pub(crate) fn facts_of_restless(&self) -> Option<String> {
        self.why_not_trusted(self.heard.names(), |name| self.restless_words(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    /// Restarts at these moments.
    fn restarts(starts: &mut Starts, moments: &[u64]) {
        for ms in moments {
            let (old, new) = (starts.before.map_or(0, |run| run.0 + 1), u128::from(*ms));
            starts.before = None;
            starts.restarted(at(*ms), Incarnation(old), Incarnation(new));
        }
    }

    #[test]
    fn the_third_restart_within_ten_seconds_is_one_too_many() {
        let mut starts = Starts::default();
        restarts(&mut starts, &[20_000, 24_000, 30_001, 34_001]);
        assert!(!starts.is_restless(at(34_001)));
        restarts(&mut starts, &[34_500]);
        assert_eq!(
            starts.words(at(36_000)).expect("restless"),
            "starts again and again (the last 3 times within 4.5 s); trusted again in 9 s if it stays up"
        );
        assert!(starts.is_restless(at(44_499)));
        assert!(!starts.is_restless(at(44_500)));
    }

    #[test]
    fn a_hello_that_was_overtaken_is_no_start() {
        let (old, new) = (Incarnation(1), Incarnation(2));
        let mut starts = Starts::default();
        for ms in 0..10 {
            let (from, to) = if ms % 2 == 0 { (old, new) } else { (new, old) };
            starts.restarted(at(ms), from, to);
        }
        assert_eq!(starts.lately.len(), 1);
    }

    #[test]
    fn who_starts_again_and_again_now_is_no_better_than_who_did_before() {
        let (mut well, mut ill) = (Starts::default(), Starts::default());
        // Restless for the second time, so that it is trusted again after 20 s only.
        restarts(&mut well, &[1, 2, 3, 100_001, 100_002, 100_003]);
        assert!(!ill.is_no_better_than(&well, at(100_003)));
        restarts(&mut ill, &[111_001, 111_500]);
        assert!(
            ill.is_no_better_than(&well, at(111_500)),
            "one more is one too many"
        );
        restarts(&mut ill, &[112_000]);
        let now = at(112_000);
        assert!(well.is_restless(now) && ill.is_restless(now));
        assert!(ill.is_no_better_than(&well, now));
        assert!(!well.is_no_better_than(&ill, now));
    }

    #[test]
    fn that_two_were_alike_does_not_change_by_waiting() {
        let (mut one, mut other) = (Starts::default(), Starts::default());
        restarts(&mut one, &[1_000, 2_000, 3_000]);
        restarts(&mut other, &[1_100, 2_100, 3_100]);
        for now in [3_100, 8_000, 12_999] {
            assert!(one.is_no_better_than(&other, at(now)), "{now}");
            assert!(other.is_no_better_than(&one, at(now)), "{now}");
        }
        // What happened long before is no excuse.
        let mut third = Starts::default();
        restarts(&mut third, &[900_000, 900_001, 900_002]);
        assert!(!one.is_no_better_than(&third, at(900_002)));
    }

    #[test]
    fn it_has_to_stay_up_for_longer_and_longer() {
        let mut starts = Starts::default();
        let (mut now, mut waits) = (1_000_000, Vec::new());
        for _ in 0..5 {
            // Each start while it is restless begins the wait again, and no more.
            restarts(&mut starts, &[now, now + 1, now + 2, now + 9_000]);
            now += 9_000;
            let waits_from = now;
            while starts.is_restless(at(now)) {
                now += 500;
            }
            waits.push((now - waits_from) / 1_000);
        }
        assert_eq!(waits, [10, 20, 40, 60, 60]);
        now += 300_000;
        restarts(&mut starts, &[now, now + 1, now + 2]);
        assert!(!starts.is_restless(at(now + 10_002)));
    }
}
