//! Progress on standard error: a bar on a terminal, a line every tenth elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::say;

/// Shared by whoever makes progress.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    done: Arc<AtomicU64>,
    all: u64,
    is_terminal: bool,
}

impl Bar {
    /// A bar of `all` stanzas, `done` of them from an earlier run.
    pub(crate) fn new(all: u64, done: u64) -> Self {
        let style =
            ProgressStyle::with_template("{bar:40} {pos}/{len} stanzas, {per_sec}, {eta} left");
        let bar = ProgressBar::new(all)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(done);
        Self {
            bar,
            done: Arc::new(AtomicU64::new(done)),
            all,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Some more are done.
    pub(crate) fn add(&self, stanzas: u64) {
        let before = self.done.fetch_add(stanzas, Ordering::Relaxed);
        self.bar.inc(stanzas);
        let tenths = |done: u64| done * 10 / self.all.max(1);
        if !self.is_terminal && tenths(before) < tenths(before + stanzas) {
            say::note(format_args!("{} of {} stanzas", before + stanzas, self.all));
        }
    }

    /// How many are done.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Says something without tearing the bar.
    pub(crate) fn say(&self, line: &str) {
        if self.is_terminal {
            self.bar.println(line);
        } else {
            say::note(line);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Real time since some moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// From now on.
    #[expect(
        clippy::disallowed_methods,
        reason = "an application lives in real time; only the product must not"
    )]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Until now.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}
