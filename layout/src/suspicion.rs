//! Who is taken for gone: so far the sequencer, if there is another process that can take its place.
//!
//! Being wrong is harmless: units serve the new epoch only, so tokens of the old sequencer are refused, and a tail answer
//! without a lease is confirmed by units, which no longer do (rules 20 and 21). It costs one reconfiguration.

use std::time::Duration;

use milonga_protocol::{ServerName, Time};

use crate::core::LayoutCore;
use crate::phase::Phase;

/// A server that says hello ten times a second and was silent for so long is taken for gone.
const SILENT: Duration = Duration::from_millis(500);
/// So much time does not pass between two events of a core that listens: it was paused, and nobody else is to blame.
pub(crate) const NOT_LISTENING: Duration = Duration::from_millis(250);

impl LayoutCore {
    /// Whether `name` can be the sequencer, and was heard lately.
    fn can_sequence(&self, name: &ServerName) -> bool {
        let hello = self.heard.fresh(self.now, name);
        hello.is_some_and(|hello| hello.sequencer) && self.gone_at(name) > self.now
    }

    /// When `name` is taken for gone, if nothing more is heard of it.
    fn gone_at(&self, name: &ServerName) -> Time {
        let since = self.heard.silent_since(name);
        since.unwrap_or(self.started).after(SILENT)
    }

    /// Another process that can be the sequencer now.
    fn other_sequencer(&self) -> Option<&ServerName> {
        let mut others = self.plan.sequencers();
        others.find(|name| **name != self.sequencer && self.can_sequence(name))
    }

    /// The sequencer of the next epoch, and from when on that is settled: the present one while it is there, and when it
    /// is gone, another one. Without others it is waited for.
    pub(crate) fn next_sequencer(&self) -> Option<(&ServerName, Time)> {
        let present = &self.sequencer;
        let other = self.other_sequencer();
        if let Some(other) = other.filter(|_| !self.can_sequence(present)) {
            return Some((other, self.gone_at(present)));
        }
        let hello = self.heard.fresh(self.now, present);
        let here = hello.is_some_and(|hello| hello.sequencer);
        here.then_some((present, Time::default()))
    }

    /// When the sequencer at work is taken for gone.
    pub(crate) fn suspect_at(&self) -> Option<Time> {
        let at_work = matches!(
            self.phase,
            Phase::Seal(_)
                | Phase::Collect(_)
                | Phase::Open(_)
                | Phase::Settle(_)
                | Phase::Report { .. }
                | Phase::Idle
        );
        (at_work && self.other_sequencer().is_some()).then(|| self.gone_at(&self.sequencer))
    }

    /// Begins a reconfiguration if the sequencer is gone.
    pub(crate) fn suspect(&mut self) {
        if self.suspect_at().is_some_and(|at| at <= self.now) {
            let (name, silent) = (&self.sequencer, SILENT.as_millis());
            self.gather(format!("{name} has said nothing for {silent} ms"));
        }
    }
}

#[cfg(test)]
mod tests {
    use milonga_protocol::messages::{CallId, Hello, LayoutRequest, Lease};
    use milonga_protocol::{ClusterId, Incarnation, Limits};

    use super::*;
    use crate::history::History;
    use crate::plan::ClusterPlan;

    const ONE: &str = "sequencer-1";
    const TWO: &str = "sequencer-2";

    fn ms(ms: u64) -> Time {
        Time::default().after(Duration::from_millis(ms))
    }

    fn core() -> LayoutCore {
        let units = vec![vec!["unit-1a".into()]];
        let plan = ClusterPlan::new(units, ONE.into(), Limits::default(), Lease::None);
        let plan = plan.with_spare_sequencers(vec![TWO.into()]);
        LayoutCore::start(plan, History::default(), ClusterId(1), ms(0)).expect("a good plan")
    }

    fn hello(core: &mut LayoutCore, at: u64, name: &str) {
        let hello = Hello {
            name: name.into(),
            address: name.to_owned(),
            incarnation: Incarnation(7),
            unit: None,
            sequencer: true,
        };
        core.handle(ms(at), CallId(at), LayoutRequest::Hello(hello));
    }

    /// Hellos of `names` from `from` to `to`, ten a second.
    fn beat(core: &mut LayoutCore, from: u64, to: u64, names: &[&str]) {
        for at in (from..=to).step_by(100) {
            names.iter().for_each(|name| hello(core, at, name));
        }
    }

    fn next(core: &LayoutCore) -> Option<(&str, Time)> {
        let next = core.next_sequencer();
        next.map(|(name, at)| (name.as_str(), at))
    }

    #[test]
    fn a_spare_takes_over_from_who_was_silent_for_half_a_second() {
        let mut core = core();
        beat(&mut core, 0, 1_000, &[ONE, TWO]);
        core.phase = Phase::Idle;
        assert_eq!(next(&core), Some((ONE, ms(0))));
        assert_eq!(core.suspect_at(), Some(ms(1_500)));
        beat(&mut core, 1_100, 1_400, &[TWO]);
        assert!(matches!(core.phase, Phase::Idle));
        beat(&mut core, 1_500, 1_500, &[TWO]);
        core.handle_time(ms(1_500));
        assert!(matches!(core.phase, Phase::Gather { .. }));
        assert_eq!(next(&core), Some((TWO, ms(1_500))));
        // Who comes back takes the epoch's place again only if nobody else has it yet.
        hello(&mut core, 1_600, ONE);
        assert_eq!(next(&core), Some((ONE, ms(0))));
        core.sequencer = TWO.into();
        assert_eq!(next(&core), Some((TWO, ms(0))));
    }

    #[test]
    fn without_a_spare_that_is_there_the_sequencer_is_waited_for() {
        let mut core = core();
        beat(&mut core, 0, 500, &[ONE]);
        core.phase = Phase::Idle;
        assert_eq!(core.suspect_at(), None, "the other one never said hello");
        core.handle_time(ms(700));
        core.handle_time(ms(900));
        core.handle_time(ms(1_100));
        assert!(matches!(core.phase, Phase::Idle));
    }

    #[test]
    fn a_layout_server_that_was_paused_blames_nobody() {
        let mut core = core();
        beat(&mut core, 0, 1_000, &[ONE, TWO]);
        core.phase = Phase::Idle;
        // It slept; the spare's hello happens to be read first.
        hello(&mut core, 9_000, TWO);
        core.handle_time(ms(9_000));
        assert!(matches!(core.phase, Phase::Idle));
        hello(&mut core, 9_001, ONE);
        core.handle_time(ms(9_100));
        assert!(matches!(core.phase, Phase::Idle));
    }

    #[test]
    fn a_new_cluster_does_not_wait_for_a_sequencer_that_never_comes() {
        let mut core = core();
        hello(&mut core, 100, TWO);
        assert_eq!(next(&core), Some((TWO, ms(500))));
    }
}
