//! I19: a server that is a hundred times slower than healthy others is out of the way within ten seconds.
//!
//! That is asked for only where it is possible: the layout is whole when it begins, each chain of a slow unit can do without
//! it, and if it is the disk, something is being written.

use std::collections::BTreeMap;

use milonga_protocol::messages::{Request, Response, UnitRequest, UnitResponse};
use milonga_protocol::{Layout, ServerName};

use crate::world::network::{Exchange, Wire};
use crate::world::plan::{Plan, Shape};
use crate::world::trace::Moment;
use crate::world::workload::{Invariant, Violation, WorldView};

const WITHIN: u64 = 10_000_000_000;
/// So long after it began there is enough written, or nothing is asked for.
const WRITTEN_BY: u64 = 4_000_000_000;
/// Writes of each of two units that are enough.
const ENOUGH: u64 = 8;

/// See the file's head.
#[derive(Debug)]
pub struct SlowIsOut {
    shape: Shape,
    grays: Vec<Gray>,
    /// Writes that each unit has confirmed since the present one began.
    written: BTreeMap<ServerName, u64>,
}

#[derive(Clone, Debug)]
struct Gray {
    server: ServerName,
    since: Moment,
    disk: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ahead,
    Begun,
    /// It is out, or need not be.
    Done,
}

impl SlowIsOut {
    /// What the plan has of it.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let servers = plan.shape.servers();
        let gray = |(server, since, disk)| {
            let server = ServerName::new(servers.get::<usize>(server)?);
            let state = State::Ahead;
            Some(Gray {
                server,
                since,
                disk,
                state,
            })
        };
        Self {
            shape: plan.shape.clone(),
            grays: plan.grays().filter_map(gray).collect(),
            written: BTreeMap::new(),
        }
    }
}

impl Invariant for SlowIsOut {
    fn name(&self) -> &'static str {
        "I19 who is slow is out of the way"
    }

    fn source(&self) -> &'static str {
        "design §4, decision 0015; F31"
    }

    fn check(&mut self, view: &WorldView<'_>) -> Result<(), Violation> {
        for exchange in &view.wire.exchanges {
            self.count(exchange);
        }
        let newest = view.wire.layouts.values().next_back();
        let Some(layout) = newest.filter(|_| !self.grays.is_empty()) else {
            return Ok(());
        };
        self.look(view.now, layout, view.wire)
    }
}

impl SlowIsOut {
    fn count(&mut self, exchange: &Exchange) {
        if let (
            Request::Unit(UnitRequest::Write { .. }),
            Response::Unit(UnitResponse::Written { .. }),
        ) = (&exchange.request, &exchange.response)
        {
            *self.written.entry(exchange.server.clone()).or_default() += 1;
        }
    }

    fn look(&mut self, now: Moment, layout: &Layout, wire: &Wire) -> Result<(), Violation> {
        let whole = wire.is_whole(&self.shape);
        for gray in &mut self.grays {
            match gray.state {
                State::Ahead if now >= gray.since => {
                    self.written.clear();
                    let asked = whole && can_do_without(layout, &gray.server);
                    gray.state = if asked { State::Begun } else { State::Done };
                }
                State::Begun if !is_in(layout, &gray.server) => gray.state = State::Done,
                State::Begun if gray.disk && now >= gray.since.plus(WRITTEN_BY) => {
                    // What counts is what was written in its first seconds.
                    let units = self.written.values().filter(|count| **count >= ENOUGH);
                    let own = self.written.get(&gray.server).copied().unwrap_or_default();
                    let enough = own >= ENOUGH && units.count() > 1;
                    (gray.disk, gray.state) =
                        (false, if enough { State::Begun } else { State::Done });
                }
                State::Begun if now >= gray.since.plus(WITHIN) => {
                    return Err(Violation(format!(
                        "{} has been a hundred times slower than the others since {}, and still takes part in epoch {}",
                        gray.server, gray.since, layout.epoch
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether it has a place in the layout.
fn is_in(layout: &Layout, server: &ServerName) -> bool {
    let members = layout.members().into_iter();
    let mut members = members.map(|unit| &layout.unit(unit).name);
    layout.sequencer.name == *server || members.any(|name| name == server)
}

/// Whether each chain that lists it keeps enough replicas; for a sequencer there is a spare.
fn can_do_without(layout: &Layout, server: &ServerName) -> bool {
    let least = usize::from(layout.redundancy.min_replicas.max(1));
    let mut chains = layout.segments.iter().flat_map(|segment| &segment.chains);
    let lists = |chain: &&Vec<_>| (*chain).iter().any(|u| layout.unit(*u).name == *server);
    let short = chains.any(|chain| lists(&chain) && chain.len() <= least);
    is_in(layout, server) && !short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> impl Iterator<Item = Plan> {
        (0..2_000).map(Plan::draw)
    }

    #[test]
    fn plans_have_slow_servers_of_all_kinds_and_nothing_beside_them() {
        let mut kinds = std::collections::BTreeSet::new();
        for plan in plans() {
            for (server, at, disk) in plan.grays() {
                kinds.insert((plan.shape.servers()[server].starts_with("unit-"), disk));
                let ends = |fault: &crate::world::plan::Fault| fault.at.after(fault.lasts);
                let others = plan.faults.iter().filter(|fault| fault.at != at);
                assert!(others.map(ends).all(|end| end.plus(4_000_000_000) < at));
                assert!(at.plus(WITHIN) < plan.safety);
            }
        }
        assert_eq!(kinds.len(), 3, "{kinds:?}");
    }

    #[test]
    fn who_stays_is_noticed() {
        let plan = plans().find(|plan| plan.grays().next().is_some());
        let mut see = SlowIsOut::new(&plan.expect("some"));
        let gray = &mut see.grays[0];
        (gray.state, gray.disk) = (State::Begun, false);
        let (server, since) = (gray.server.clone(), gray.since);
        let mut layout = crate::world::invariants::samples::layout(1);
        layout.sequencer.name = server.clone();
        let wire = Wire::default();
        assert_eq!(see.look(since.plus(WITHIN - 1), &layout, &wire), Ok(()));
        assert!(see.look(since.plus(WITHIN), &layout, &wire).is_err());
        layout.sequencer.name = "another".into();
        assert_eq!(see.look(since.plus(WITHIN), &layout, &wire), Ok(()));
        layout.sequencer.name = server;
        assert_eq!(
            see.look(since.plus(WITHIN), &layout, &wire),
            Ok(()),
            "it was out"
        );
    }
}
