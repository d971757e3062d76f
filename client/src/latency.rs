//! How long own appends take: the time-out of holes follows it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Four buckets per power of two, from 16 µs to about 17 minutes.
const BUCKETS: usize = 104;
const FIRST_MICROS: u64 = 16;
/// Above this many samples all counts are halved, so that old ones fade.
const MEMORY: u64 = 20_000;

/// A fading histogram.
pub(crate) struct Latency(Mutex<Counts>);

struct Counts {
    buckets: [u64; BUCKETS],
    total: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self(Mutex::new(Counts {
            buckets: [0; BUCKETS],
            total: 0,
        }))
    }
}

impl Latency {
    /// `count` appends took `time`, from token to durable.
    pub(crate) fn record(&self, time: Duration, count: usize) {
        let count = count as u64;
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.buckets[bucket(time)] += count;
        counts.total += count;
        if counts.total > MEMORY {
            for n in &mut counts.buckets {
                *n /= 2;
            }
            counts.total = counts.buckets.iter().sum();
        }
    }

    /// The 99th percentile, rounded up by at most a quarter; zero without samples.
    pub(crate) fn p99(&self) -> Duration {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let beyond = counts.total / 100;
        let mut seen = 0;
        for index in (0..BUCKETS).rev() {
            seen += counts.buckets[index];
            if seen > beyond {
                return upper(index);
            }
        }
        Duration::ZERO
    }
}

fn bucket(time: Duration) -> usize {
    let scaled = u64::try_from(time.as_micros()).unwrap_or(u64::MAX) / FIRST_MICROS;
    let Some(power) = scaled.checked_ilog2() else {
        return 0;
    };
    let quarter = if power >= 2 {
        (scaled >> (power - 2)) & 3
    } else {
        (scaled << (2 - power)) & 3
    };
    let index = u64::from(power) * 4 + quarter + 1;
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

fn upper(bucket: usize) -> Duration {
    let Some(index) = bucket.checked_sub(1) else {
        return Duration::from_micros(FIRST_MICROS);
    };
    let (power, quarter) = (index / 4, index as u64 % 4);
    Duration::from_micros((FIRST_MICROS << power) * (5 + quarter) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_close_from_above() {
        for micros in [3_u64, 16, 100, 999, 20_000, 1_000_000, 90_000_000] {
            let latency = Latency::default();
            let time = Duration::from_micros(micros);
            latency.record(time, 1_000);
            latency.record(time * 50, 5);
            let p99 = latency.p99();
            assert!(p99 >= time, "{p99:?} for {time:?}");
            assert!(
                p99 <= (time * 5 / 4).max(Duration::from_micros(FIRST_MICROS)),
                "{p99:?} for {time:?}"
            );
        }
    }

    #[test]
    fn old_samples_fade_and_none_is_zero() {
        let latency = Latency::default();
        assert_eq!(latency.p99(), Duration::ZERO);
        latency.record(Duration::from_secs(1), 100);
        for _ in 0..200 {
            latency.record(Duration::from_millis(1), 1_000);
        }
        assert!(latency.p99() < Duration::from_millis(2));
    }
}
