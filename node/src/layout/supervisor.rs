//! Watches the replica: has the layout's core lead while its member does, and follow otherwise.

use std::sync::Arc;
use std::time::Duration;

use milonga_layout::{Leadership, Replica};
use milonga_protocol::{ServerName, SharedEnv};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::roles::LayoutEvent;

/// Between two attempts to have a leadership confirmed.
const CONFIRM_AGAIN: Duration = Duration::from_millis(20);

/// Tells the core of a process who leads.
pub(crate) struct Supervisor {
    pub(crate) env: SharedEnv,
    pub(crate) replica: Arc<Replica>,
    pub(crate) events: UnboundedSender<LayoutEvent>,
    /// The core asks to begin anew.
    pub(crate) anew: UnboundedReceiver<()>,
}

impl Supervisor {
    /// Runs until the replica stops.
    pub(crate) async fn run(mut self) {
        let mut leadership = self.replica.leadership();
        let mut histories = self.replica.histories();
        // The term in which the core leads.
        let mut reign = None;
        loop {
            let seen = *leadership.borrow_and_update();
            let goes_on = seen.leads && reign == Some(seen.term);
            if !goes_on && reign.take().is_some() {
                self.tell(self.follows(seen));
            }
            if seen.leads && reign.is_none() {
                if self.is_confirmed().await {
                    reign = Some(seen.term);
                } else {
                    self.env.sleep(CONFIRM_AGAIN).await;
                }
                // It may be lost already.
                continue;
            }
            if reign.is_none() {
                self.tell(self.follows(seen));
            }
            tokio::select! {
                biased;
                changed = leadership.changed() => if changed.is_err() { break },
                Some(()) = self.anew.recv() => reign = None,
                history = histories.next() => match history {
                    Some(history) => self.tell(LayoutEvent::Learned(history)),
                    None => break,
                },
            }
        }
        let why = self.replica.failure();
        let why = why.unwrap_or_else(|| "this process is being stopped".to_owned());
        tracing::error!(why, "this member of the layout has stopped");
        let why = Some(format!("stopped: {why}; check the disk, then restart"));
        self.tell(LayoutEvent::Follows { leader: None, why });
    }

    /// Has a majority confirm the leadership; then the core begins from what was committed before.
    async fn is_confirmed(&mut self) -> bool {
        match self.replica.confirm_leadership().await {
            Ok(()) => {
                // What earlier cores asked for.
                while self.anew.try_recv().is_ok() {}
                let history = self.replica.history();
                tracing::info!(epoch = %history.epoch(), "this member leads the layout");
                self.tell(LayoutEvent::Leads(history));
                true
            }
            Err(why) => {
                tracing::debug!(%why, "leadership not confirmed");
                false
            }
        }
    }

    fn follows(&self, seen: Leadership) -> LayoutEvent {
        LayoutEvent::Follows {
            leader: self.named(seen),
            why: None,
        }
    }

    /// Another member that leads, and where it is.
    fn named(&self, seen: Leadership) -> Option<(ServerName, String)> {
        let leader = seen.leader.filter(|id| *id != self.replica.id())?;
        let member = self.replica.member(leader)?;
        Some((member.name.clone(), member.address.clone()))
    }

    fn tell(&self, event: LayoutEvent) {
        // A host that is gone belongs to a node that is being stopped.
        let _ = self.events.send(event);
    }
}
