//! Whether the other side of a connection has fallen silent.
//!
//! A connection to a server that died lives on until its idle time is over, and says less and less: QUIC repeats what was
//! not acknowledged at ever longer intervals, and what is new waits behind it once the congestion window is full. A server
//! that is back in between can only tell its callers that it has restarted when it hears something (a stateless reset), so
//! a new connection finds it sooner, by seconds.

use std::time::Duration;

use milonga_protocol::env::Time;
use quinn::ConnectionStats;

/// What was seen of one connection when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Silence {
    asked: u64,
    heard: u64,
    /// Since when the other side has acknowledged nothing of what it should have.
    since: Option<Time>,
}

impl Silence {
    /// Looks at the connection again: for how long it has been silent. Between two looks there should be time for an
    /// acknowledgement.
    pub(super) fn look(&mut self, now: Time, stats: &ConnectionStats) -> Duration {
        self.seen(now, asked(stats), stats.udp_rx.datagrams)
    }

    fn seen(&mut self, now: Time, asked: u64, heard: u64) -> Duration {
        if heard != self.heard {
            self.since = None;
        } else if asked != self.asked {
            self.since.get_or_insert(now);
        }
        (self.asked, self.heard) = (asked, heard);
        self.since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

/// How many frames were sent that are acknowledged at once. What was not is asked for again by an `IMMEDIATE_ACK`, if there
/// is nothing new to send. Each try for larger packets has a `PING` and an `IMMEDIATE_ACK`, too, and may get lost on a path
/// that works.
const fn asked(stats: &ConnectionStats) -> u64 {
    let (sent, tries) = (&stats.frame_tx, stats.path.sent_plpmtud_probes);
    sent.stream + sent.ping.saturating_sub(tries) + sent.immediate_ack.saturating_sub(tries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn who_was_asked_and_says_nothing_is_silent() {
        let mut silence = Silence::default();
        let ms = |duration: Duration| duration.as_millis();
        assert_eq!(ms(silence.seen(at(100), 5, 3)), 0, "it has answered");
        assert_eq!(ms(silence.seen(at(200), 5, 3)), 0, "nobody asks");
        assert_eq!(ms(silence.seen(at(300), 6, 3)), 0, "just asked");
        assert_eq!(ms(silence.seen(at(400), 6, 3)), 100);
        assert_eq!(ms(silence.seen(at(700), 7, 3)), 400, "asked again");
        assert_eq!(ms(silence.seen(at(800), 7, 4)), 0, "it was only slow");
        assert_eq!(ms(silence.seen(at(900), 7, 4)), 0);
    }

    #[test]
    fn what_is_asked_for_again_counts_and_tries_for_larger_packets_do_not() {
        let mut stats = ConnectionStats::default();
        stats.frame_tx.stream = 3;
        stats.frame_tx.acks = 8;
        assert_eq!(asked(&stats), 3);
        stats.path.sent_plpmtud_probes = 2;
        (stats.frame_tx.ping, stats.frame_tx.immediate_ack) = (2, 2);
        assert_eq!(asked(&stats), 3);
        stats.frame_tx.immediate_ack += 1;
        assert_eq!(asked(&stats), 4);
        stats.frame_tx.ping += 1;
        assert_eq!(asked(&stats), 5);
    }
}
