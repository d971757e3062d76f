//! What one process takes for the time.

use std::time::Duration;

use milonga_protocol::Time;

use crate::world::trace::Moment;

/// Nominal rate: one second a second.
pub(crate) const NOMINAL: u64 = 1_000_000;

/// A clock that starts anywhere, runs a little fast or slow, or stands still; never backwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The world's time at the last change of rate, and the clock's.
    since: Moment,
    shown: u64,
    /// Microseconds it advances in a second of the world.
    rate: u64,
}

impl Clock {
    pub(crate) const fn new(now: Moment, shown: Duration, rate: u64) -> Self {
        Self {
            since: now,
            shown: nanos(shown),
            rate,
        }
    }

    /// What it shows.
    pub(crate) fn read(&self, now: Moment) -> Time {
        let passed = u128::from(now.0.saturating_sub(self.since.0)) * u128::from(self.rate);
        let passed = u64::try_from(passed / u128::from(NOMINAL)).unwrap_or(u64::MAX);
        Time::from_start(Duration::from_nanos(self.shown.saturating_add(passed)))
    }

    /// The first moment at which it shows `time` or more. [`Moment`]'s maximum: never.
    pub(crate) fn when(&self, time: Time) -> Moment {
        let ahead = nanos(time.since_start()).saturating_sub(self.shown);
        if ahead == 0 {
            return self.since;
        }
        if self.rate == 0 {
            return Moment(u64::MAX);
        }
        let wait = (u128::from(ahead) * u128::from(NOMINAL)).div_ceil(u128::from(self.rate));
        self.since.plus(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Jumps forward and goes on at another rate.
    pub(crate) fn change(&mut self, now: Moment, jump: Duration, rate: u64) {
        let shown = self.read(now).after(jump).since_start();
        *self = Self::new(now, shown, rate);
    }
}

const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        #[expect(clippy::cast_possible_truncation, reason = "just compared")]
        {
            nanos as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_at_its_moment_and_not_before_at_any_rate() {
        for rate in [1, 900_000, NOMINAL, 1_000_333, 3_000_000] {
            let mut clock = Clock::new(Moment(77), Duration::from_secs(5), rate);
            clock.change(Moment(1_000), Duration::from_nanos(3), rate);
            for ahead in [1, 999, 1_000_001] {
                let time = clock.read(Moment(1_000)).after(Duration::from_nanos(ahead));
                let at = clock.when(time);
                assert!(clock.read(at) >= time);
                assert!(clock.read(Moment(at.0 - 1)) < time);
            }
        }
        let stopped = Clock::new(Moment(0), Duration::ZERO, 0);
        assert_eq!(
            stopped.read(Moment(u64::MAX)),
            Time::from_start(Duration::ZERO)
        );
        assert_eq!(
            stopped.when(Time::from_start(Duration::MAX)),
            Moment(u64::MAX)
        );
    }
}
