//! Everything that happens, as one running hash, and as text for who wants to read it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// A moment of the world: nanoseconds since it began. No process sees it: each has a clock of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment plus `nanos`.
    #[must_use]
    pub const fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// This moment plus `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        self.plus(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// As seconds.
    #[must_use]
    pub fn seconds(self) -> f64 {
        Duration::from_nanos(self.0).as_secs_f64()
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>13.6}", self.seconds())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Most characters of a line.
const LONGEST: usize = 260;

/// The running hash, and the lines if they are kept.
#[derive(Debug)]
pub struct Trace {
    hash: Mixer,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace; `text`: keep a line for each event that has one.
    #[must_use]
    pub fn new(text: bool) -> Self {
        Self {
            hash: Mixer(0),
            events: 0,
            lines: text.then(Vec::new),
        }
    }

    /// Adds an event with a line.
    pub fn event(&mut self, now: Moment, event: &(impl Hash + fmt::Debug)) {
        self.quiet(now, event);
        if let Some(lines) = &mut self.lines {
            let mut line = format!("{now} {event:?}");
            if let Some((end, _)) = line.char_indices().nth(LONGEST) {
                line.truncate(end);
                line.push_str("...");
            }
            lines.push(line);
        }
    }

    /// Adds an event that is too frequent for a line.
    pub fn quiet(&mut self, now: Moment, event: &impl Hash) {
        self.events += 1;
        now.hash(&mut self.hash);
        event.hash(&mut self.hash);
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How many events there were.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The lines so far; none if they are not kept.
    #[must_use]
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// The same in every process, unlike std's default.
#[derive(Clone, Debug)]
struct Mixer(u64);

impl Mixer {
    const fn mix(&mut self, word: u64) {
        let x = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = (x ^ (x >> 29)).rotate_left(23);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(u64::from_le_bytes(chunk.try_into().expect("chunks of 8")));
        }
        let mut last = [0; 8];
        let rest = chunks.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = self.clone();
        last.mix(0x6d69_6c6f_6e67_6121);
        last.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_content_change_the_hash() {
        let hash = |events: &[(u64, &str)]| {
            let mut trace = Trace::new(false);
            for (at, what) in events {
                trace.event(Moment(*at), what);
            }
            trace.hash()
        };
        let base = hash(&[(1, "a"), (2, "b")]);
        assert_eq!(base, hash(&[(1, "a"), (2, "b")]));
        for other in [
            &[(2, "b"), (1, "a")][..],
            &[(1, "a"), (3, "b")],
            &[(1, "a"), (2, "c")],
            &[(1, "a")],
        ] {
            assert_ne!(base, hash(other));
        }
    }
}
