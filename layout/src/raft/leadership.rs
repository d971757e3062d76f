//! Who leads, as one member sees it.

use std::time::Duration;

use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use super::{Member, MemberId};

/// Who leads, as this member sees it now. It may have been deposed already: only
/// [`Replica::confirm_leadership`](super::Replica::confirm_leadership) knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This member leads, its history holds everything that was committed before it did, and a majority has answered it
    /// lately. It may become true again in the same term.
    pub leads: bool,
    /// The term. A term has at most one leader at a time, but a later one may take the term over: `term` and `leader`
    /// together name a leadership. A leader that restarts at once may resume its own.
    pub term: u64,
    /// Who leads, as far as is known.
    pub leader: Option<MemberId>,
}

/// Follows openraft's metrics until it stops.
pub(super) async fn follow(
    mut metrics: watch::Receiver<RaftMetrics<MemberId, Member>>,
    leadership: watch::Sender<Leadership>,
    silence: Duration,
) {
    let mut reign = Reign {
        begun: None,
        silence,
    };
    loop {
        let now = reign.look(&metrics.borrow_and_update());
        leadership.send_if_modified(|shown| std::mem::replace(shown, now) != now);
        if metrics.changed().await.is_err() {
            leadership.send_modify(|shown| {
                shown.leads = false;
                shown.leader = None;
            });
            return;
        }
    }
}

/// This member's leadership: it counts when everything is applied that its log held when it began. That is at least its
/// own first entry, and so everything that was committed before; whoever resumes a leadership after a restart may hold
/// more than it knows to be committed.
struct Reign {
    begun: Option<(u64, Option<u64>)>,
    /// After so long without a majority's answer it counts no more: the others may be electing another.
    silence: Duration,
}

impl Reign {
    fn look(&mut self, metrics: &RaftMetrics<MemberId, Member>) -> Leadership {
        let term = metrics.current_term;
        if metrics.state == ServerState::Leader {
            match self.begun {
                Some((begun, _)) if begun == term => {}
                _ => self.begun = Some((term, metrics.last_log_index)),
            }
        } else {
            self.begun = None;
        }
        let applied = metrics.last_applied.map(|id| id.index);
        let knows = self.begun.is_some_and(|(_, held)| applied >= held);
        let answered = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        let heard = answered.is_some_and(|since| since < self.silence);
        Leadership {
            leads: knows && heard,
            term,
            leader: metrics.current_leader,
        }
    }
}
