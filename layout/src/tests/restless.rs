//! Who starts again and again before its silence tells anything: done without where that is possible, else waited for.

use milonga_protocol::change::ClusterChange;
use milonga_protocol::messages::{CallId, LayoutRequest, Request, SequencerRequest, UnitRequest};

use super::unit::Unit;
use super::world::{Dies, SECOND_SEQUENCER, SEQUENCER, World};
use super::{chains, epoch, name, opened, single};

fn is_open(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Open { .. }))
}

fn is_seal(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Seal { .. }))
}

fn is_bootstrap(request: &Request) -> bool {
    matches!(request, Request::Sequencer(SequencerRequest::Bootstrap(_)))
}

/// One chain of two units.
fn pair(seed: u64) -> World {
    let mut world = World::new(seed, 1, 2);
    world.run_for(1_000);
    assert!(world.is_served(), "{:?}", world.core().facts());
    world
}

/// The active chains of the published layout.
fn active(world: &mut World) -> Vec<Vec<String>> {
    let mut segments = chains(world);
    segments.pop().expect("a segment").0
}

fn fact(world: &mut World, name: &str) -> String {
    let facts = world.core().facts();
    facts.get(name).cloned().unwrap_or_default()
}

fn sequencer(world: &World) -> String {
    let layout = world.store.history().current().cloned();
    layout.expect("a layout").sequencer.name.to_string()
}

/// Whether somebody who appends for a second gets on.
fn appends_go_on(world: &mut World) -> bool {
    let before = world.acked.len();
    for _ in 0..10 {
        world.run_for(100);
        (0..5).for_each(|_| world.append());
    }
    world.acked.len() > before
}

/// A replica that dies of it again and again is left out, appends go on, and it comes back when it is well.
fn is_left_out(seed: u64, dies: Dies) {
    let mut world = pair(seed);
    let unit = name("unit-00");
    world.dies.insert(unit.clone(), dies);
    world.restart(&unit);
    world.run_for(2_500);
    let facts = world.core().facts();
    assert!(world.core().is_idle(), "{facts:?}");
    assert_eq!(active(&mut world), [["unit-01"]], "{facts:?}");
    let out = fact(&mut world, "out");
    let words = "unit-00: starts again and again (the last 3 times within ";
    assert!(
        out.starts_with(words) && out.ends_with("if it stays up"),
        "{out}"
    );
    // It is no candidate meanwhile.
    let before = epoch(&world);
    world.run_for(6_000);
    assert_eq!(epoch(&world), before);
    // What it costs when it is tried again is bounded, and becomes rarer.
    let mut good = 0;
    for _ in 0..120 {
        good += u32::from(appends_go_on(&mut world));
    }
    assert!(good >= 110, "{good} of 120 s: {:?}", world.core().facts());
    world.dies.clear();
    world.run_for(61_000);
    world.heal_and_check();
    assert_eq!(active(&mut world), [["unit-01", "unit-00"]]);
    assert_eq!(fact(&mut world, "restless"), "");
}

#[test]
fn a_restless_unit_is_needed_after_all_when_the_calm_one_hears_nothing() {
    let mut world = pair(89);
    for round in 0..3 {
        world.run_for(400);
        if round == 2 {
            world.deaf.push(name("unit-01"));
        }
        world.restart(&name("unit-00"));
    }
    world.run_for(8_000);
    assert!(fact(&mut world, "restless").starts_with("unit-00 starts again and again"));
    assert_eq!(active(&mut world), [["unit-00"]]);
    assert!(appends_go_on(&mut world));
    world.deaf.clear();
    world.run_for(30_000);
    world.heal_and_check();
}

#[test]
fn a_unit_that_dies_of_being_opened_is_left_out() {
    let (of, after) = (is_open as fn(&Request) -> bool, None);
    is_left_out(90, Dies { of, after });
}

#[test]
fn a_unit_that_dies_of_being_sealed_is_left_out() {
    let (of, after) = (is_seal as fn(&Request) -> bool, None);
    is_left_out(91, Dies { of, after });
}

#[test]
fn a_unit_that_dies_soon_after_it_was_opened_is_left_out() {
    let (of, after) = (is_open as fn(&Request) -> bool, Some(200));
    is_left_out(92, Dies { of, after });
}

#[test]
fn a_unit_that_is_refused_again_and_again_is_left_out() {
    let mut world = pair(93);
    world.units.insert(name("unit-00"), Unit::new(99));
    for _ in 0..10 {
        world.restart(&name("unit-00"));
        world.run_for(300);
    }
    assert_eq!(active(&mut world), [["unit-01"]]);
    let out = fact(&mut world, "out");
    assert!(
        out.starts_with("unit-00: came with an empty directory")
            && out.contains(", and starts again and again"),
        "{out}"
    );
}

#[test]
fn a_spare_that_starts_again_and_again_holds_up_nobody() {
    let mut world = opened(94);
    world.add_spare("unit-3");
    let before = epoch(&world);
    world.down = vec![name("unit-00")];
    for _ in 0..6 {
        world.restart(&name("unit-3"));
        world.run_for(250);
    }
    assert_eq!(epoch(&world), before + 1, "{:?}", world.core().facts());
    let restless = fact(&mut world, "restless");
    assert!(
        restless.starts_with("unit-3 starts again and again (the last 3 times within 0.5 s)"),
        "{restless}"
    );
    // Nor does it take the place.
    for _ in 0..60 {
        world.restart(&name("unit-3"));
        world.run_for(250);
    }
    assert_eq!(epoch(&world), before + 1);
    world.run_for(10_000);
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-3"]);
}

#[test]
fn a_rolling_restart_is_forgiven_and_does_not_keep_a_chain_from_going_on() {
    let mut world = World::new(95, 4, 2);
    world.run_for(1_000);
    world.down = vec![name("unit-00")];
    let others = ["01", "10", "11", "20", "21", "30", "31"];
    let mut early = 0;
    for n in 0..14 {
        world.restart(&format!("unit-{}", others[n % 7]).as_str().into());
        world.run_for(270);
        if n == 10 {
            early = epoch(&world);
        }
    }
    assert!(early > 1, "within three seconds");
    world.run_for(1_000);
    let lengths: Vec<_> = active(&mut world).iter().map(Vec::len).collect();
    assert_eq!(lengths, [1, 2, 2, 2]);
    world.heal_and_check();
}

#[test]
fn two_restarts_are_forgiven() {
    let mut world = pair(96);
    for restarts in 1..=2 {
        world.restart(&name("unit-00"));
        world.run_for(300);
        assert!(world.is_served(), "{:?}", world.core().facts());
        assert_eq!(epoch(&world), 1 + restarts);
    }
    assert_eq!(fact(&mut world, "restless"), "");
    world.run_for(10_000);
    world.restart(&name("unit-00"));
    world.run_for(300);
    assert!(world.is_served(), "{:?}", world.core().facts());
    assert_eq!(epoch(&world), 4, "its place was always its own");
}

#[test]
fn a_unit_that_cannot_be_done_without_is_waited_for() {
    let dies = [(is_open as fn(&Request) -> bool, None), (is_seal, None)];
    for (seed, (of, after)) in (97..).zip(dies) {
        let mut world = single(seed);
        world.dies.insert(name("unit-00"), Dies { of, after });
        world.restart(&name("unit-00"));
        world.run_for(20_000);
        let restless = fact(&mut world, "restless");
        assert!(
            restless.ends_with("it stays: it cannot be done without now"),
            "{restless}"
        );
        world.dies.clear();
        world.run_for(3_000);
        assert!(world.is_served(), "{:?}", world.core().facts());
        world.heal_and_check();
    }
}

#[test]
fn where_a_whole_chain_starts_again_and_again_nobody_is_to_blame() {
    let mut world = opened(99);
    for _ in 0..5 {
        for server in world.servers() {
            world.restart(&server);
        }
        world.run_for(400);
    }
    world.run_for(600);
    assert!(world.is_served(), "{:?}", world.core().facts());
    assert_eq!(
        active(&mut world),
        [["unit-00", "unit-01"], ["unit-10", "unit-11"]]
    );
    world.heal_and_check();
}

#[test]
fn whoever_comes_back_first_is_not_to_blame_for_what_all_suffer() {
    let mut world = pair(101);
    for _ in 0..8 {
        for unit in ["unit-00", "unit-01"] {
            world.restart(&name(unit));
            world.run_for(150);
        }
        world.run_for(1_600);
        assert!(world.is_served(), "{:?}", world.core().facts());
        assert_eq!(active(&mut world), [["unit-00", "unit-01"]]);
    }
    world.heal_and_check();
}

/// Before they are gone, all say that their disks fail: whoever is back a moment later is not left out.
#[test]
fn nobody_is_left_out_when_the_power_fails_for_all_again_and_again() {
    let mut world = pair(102);
    for _ in 0..8 {
        for unit in ["unit-00", "unit-01"].map(name) {
            world.units.get_mut(&unit).expect("a unit").poisoned = true;
            world.hello(&unit);
        }
        world.run_for(300);
        for unit in ["unit-00", "unit-01"] {
            world.restart(&name(unit));
            world.run_for(10);
        }
        world.run_for(1_600);
        assert!(world.is_served(), "{:?}", world.core().facts());
        assert_eq!(active(&mut world), [["unit-00", "unit-01"]]);
    }
    world.heal_and_check();
}

/// Two restarts of the other replica are no excuse: it was restarted for another reason.
#[test]
fn two_restarts_of_one_do_not_excuse_the_many_of_the_other() {
    let mut world = pair(104);
    for _ in 0..2 {
        world.restart(&name("unit-01"));
        world.run_for(300);
    }
    let (of, after) = (is_open as fn(&Request) -> bool, None);
    world.dies.insert(name("unit-00"), Dies { of, after });
    world.restart(&name("unit-00"));
    world.run_for(3_000);
    assert_eq!(active(&mut world), [["unit-01"]]);
    // Nor is it taken in again for the like.
    for round in 0..60 {
        world.restart(&name("unit-00"));
        if round == 30 || round == 35 {
            world.restart(&name("unit-01"));
        }
        world.run_for(300);
        if round > 40 {
            assert!(world.core().is_idle(), "{:?}", world.core().facts());
        }
        assert_eq!(active(&mut world), [["unit-01"]]);
    }
    world.dies.clear();
    world.run_for(61_000);
    world.heal_and_check();
}

/// That both were alike when the power failed does not change by waiting.
#[test]
fn nobody_is_to_blame_later_for_what_all_suffered() {
    let mut world = pair(105);
    for round in 0..3 {
        if round > 0 {
            world.restart(&name("unit-01"));
            world.run_for(10);
        }
        world.restart(&name("unit-00"));
        world.run_for(4_000);
    }
    world.run_for(3_000);
    assert!(fact(&mut world, "restless").starts_with("unit-00"));
    world.restart(&name(SEQUENCER));
    world.run_for(500);
    assert!(world.is_served(), "{:?}", world.core().facts());
    assert_eq!(active(&mut world), [["unit-00", "unit-01"]]);
}

#[test]
fn who_is_out_comes_back_though_its_whole_chain_starts_again_and_again() {
    let mut world = pair(103);
    for round in 0..8 {
        for unit in ["unit-00", "unit-01"] {
            world.restart(&name(unit));
        }
        if round == 3 {
            world.down = vec![name("unit-00")];
            world.run_for(1_000);
            assert_eq!(active(&mut world), [["unit-01"]]);
            world.down.clear();
        }
        world.run_for(2_000);
    }
    assert_eq!(active(&mut world), [["unit-01", "unit-00"]]);
    world.heal_and_check();
}

#[test]
fn a_calm_spare_takes_over_from_a_sequencer_that_starts_again_and_again() {
    for dies in [false, true] {
        let mut world = opened(100);
        world.add_sequencer();
        if dies {
            let (of, after) = (is_bootstrap as fn(&Request) -> bool, None);
            world.dies.insert(name(SEQUENCER), Dies { of, after });
        }
        for _ in 0..5 {
            world.restart(&name(SEQUENCER));
            world.run_for(300);
        }
        assert_eq!(sequencer(&world), SECOND_SEQUENCER);
        let before = epoch(&world);
        for _ in 0..10 {
            world.restart(&name(SEQUENCER));
            world.run_for(300);
        }
        assert_eq!(epoch(&world), before, "{:?}", world.core().facts());
        assert!(appends_go_on(&mut world));
        let restless = fact(&mut world, "restless");
        assert!(restless.starts_with("sequencer-1 starts"), "{restless}");
        let (to, dry_run) = (name(SEQUENCER), true);
        let change = ClusterChange::MoveSequencer { to };
        world.ask(CallId(9), LayoutRequest::Change { change, dry_run });
        let reply = format!("{:?}", world.replies);
        assert!(reply.contains("starts again and again"), "{reply}");
        // Better a restless one than none.
        world.dies.clear();
        world.down = vec![name(SECOND_SEQUENCER)];
        world.run_for(2_000);
        assert_eq!(sequencer(&world), SEQUENCER);
        assert!(appends_go_on(&mut world));
        world.heal_and_check();
    }
}

#[test]
fn without_a_spare_a_restless_sequencer_goes_on_trying() {
    let mut world = opened(101);
    for _ in 0..10 {
        world.restart(&name(SEQUENCER));
        world.run_for(500);
        assert!(world.is_served(), "{:?}", world.core().facts());
    }
    let restless = fact(&mut world, "restless");
    assert!(
        restless.starts_with("sequencer-1 starts again and again (the last 3 times within 1.0 s)")
            && restless.ends_with("it stays: it cannot be done without now"),
        "{restless}"
    );
    world.heal_and_check();
}
