//! Giving units what they lack.

use std::time::Duration;

use milonga_protocol::Position;
use milonga_protocol::messages::{CallId, LayoutRequest, LayoutResponse, Refusal, Response};

use super::world::{SEQUENCER, World};
use super::{chains, epoch, name, needy, opened, state};

/// A replica whose disk gives nothing, and which cannot be spared, is no reason to ask no other one.
#[test]
fn what_one_replica_does_not_give_is_copied_from_another() {
    let mut world = needy(57, 3, 2);
    while world.acked.len() < 3_000 {
        world.append();
    }
    world.down = vec![name("unit-00")];
    world.run_for(1_500);
    while world.acked.len() < 3_040 {
        world.append();
    }
    // All of it is settled by another epoch.
    world.restart(&name(SEQUENCER));
    world.run_for(1_000);
    world.units.get_mut(&name("unit-02")).unwrap().withholds = true;
    world.units.get_mut(&name("unit-00")).unwrap().forget();
    world.down.clear();
    let mut said = std::collections::BTreeSet::new();
    let until = world.now.after(Duration::from_secs(10));
    world.run_until(until, |world| {
        let state = state(world);
        let refusals = state
            .split("; ")
            .filter(|words| words.contains("gives nothing"));
        said.extend(refusals.map(str::to_owned));
    });
    assert!(world.is_served(), "{:?}", world.core().facts());
    // Who refused is named, and nothing that was not under way asks it again.
    assert!(
        !said.is_empty() && said.iter().all(|words| words.starts_with("unit-02: ")),
        "{said:?}"
    );
    let unit = world.units.get_mut(&name("unit-02")).unwrap();
    assert_eq!(unit.withheld, 1);
    unit.withholds = false;
    world.heal_and_check();
}

#[test]
fn a_copy_that_cannot_end_does_not_keep_others_out() {
    let mut world = opened(47);
    while world.acked.len() < 40 {
        world.append();
    }
    let one = *world
        .acked
        .keys()
        .find(|p| p.0 % 2 == 0)
        .expect("on the first chain");
    let gone = [name("unit-00"), name("unit-11")];
    world.down = gone.to_vec();
    world.run_for(1_500);
    // Nobody can give the first chain's unit what it lacks.
    for unit in ["unit-00", "unit-01"] {
        world.units.get_mut(&name(unit)).expect("a unit").lose(one);
    }
    world.down.clear();
    world.run_for(10_000);
    let facts = world.core().facts();
    assert!(
        facts["copying"].contains("lost on every replica"),
        "{facts:?}"
    );
    let chains = chains(&mut world);
    let [(closed, 1), (active, 0)] = &chains[..] else {
        panic!("{chains:?}");
    };
    assert_eq!(closed[0], ["unit-01"]);
    assert_eq!(closed[1], ["unit-10", "unit-11"]);
    assert_eq!(active[0], ["unit-01", "unit-00"]);
}

#[test]
fn what_was_given_up_does_not_come_back_with_a_unit_that_was_out() {
    for asked_before in [false, true] {
        let mut world = opened(48);
        while world.acked.len() < 40 {
            world.append();
        }
        world.restart(&name("unit-10"));
        world.run_for(1_500);
        let one = *world
            .acked
            .keys()
            .find(|p| p.0 % 2 == 0)
            .expect("on the first chain");
        world.down = vec![name("unit-00")];
        world.run_for(1_500);
        let alone = epoch(&world);
        world
            .units
            .get_mut(&name("unit-01"))
            .expect("a unit")
            .lose(one);
        let out = &world.units[&name("unit-00")];
        assert!(out.cells.contains_key(&one), "it has it still");
        if asked_before {
            // It was asked to forget, and is not taken in before the operator comes.
            world.down.clear();
            let until = world.now.after(Duration::from_secs(1));
            world.run_until(until, |world| {
                if state(world).contains("can take a place") && epoch(world) == alone {
                    world.down = vec![name("unit-10"), name("unit-11")];
                }
            });
            assert_eq!(epoch(&world), alone);
            world.down = vec![name("unit-00")];
            world.run_for(2_000);
        }
        let (from, to, now) = (one, one.next(), world.now);
        let request = LayoutRequest::GiveUp { from, to };
        world.core().handle(now, CallId(77), request);
        world.run_for(100);
        let heard = (CallId(77), Response::Layout(LayoutResponse::Heard));
        assert!(world.replies.contains(&heard), "{:?}", world.replies);
        let unit = world.units.get_mut(&name("unit-01")).expect("a unit");
        unit.give_up(one);
        world.acked.remove(&one);
        world.down.clear();
        world.heal_and_check();
        for unit in ["unit-00", "unit-01"] {
            let cell = &world.units[&name(unit)].cells[&one];
            assert_eq!(cell.0, milonga_protocol::Value::Junk, "at {unit}");
        }
        assert_eq!(chains(&mut world).len(), 1, "it is a replica again");
        // Only what is closed can be given up.
        let request = LayoutRequest::GiveUp {
            from,
            to: Position::MAX,
        };
        let now = world.now;
        world.core().handle(now, CallId(78), request);
        world.run_for(200);
        let refused = |(call, response): &(CallId, Response)| {
            *call == CallId(78) && matches!(response, Response::Refused(Refusal::Malformed { .. }))
        };
        assert!(world.replies.iter().any(refused));
    }
}

#[test]
fn what_a_replica_says_it_has_lost_is_given_back() {
    let mut world = opened(49);
    while world.acked.len() < 40 {
        world.append();
    }
    world.restart(&name("unit-10"));
    world.run_for(2_000);
    let before = epoch(&world);
    let lost: Vec<_> = world
        .acked
        .keys()
        .copied()
        .filter(|p| p.0 % 2 == 0)
        .take(5)
        .collect();
    for position in &lost {
        world
            .units
            .get_mut(&name("unit-01"))
            .expect("a unit")
            .lose(*position);
    }
    // One of them nobody has.
    world
        .units
        .get_mut(&name("unit-00"))
        .expect("a unit")
        .lose(lost[2]);
    world.run_for(1_000);
    for (position, has) in lost.iter().zip([true, true, false, true, true]) {
        let unit = &world.units[&name("unit-01")];
        assert_eq!(unit.cells.contains_key(position), has, "{position}");
    }
    assert_eq!(epoch(&world), before, "nothing else changes");
    // It is looked for again.
    let value = world.acked[&lost[2]].0.clone();
    let unit = world.units.get_mut(&name("unit-00")).expect("a unit");
    unit.find(lost[2], value);
    world.run_for(61_000);
    assert!(world.units[&name("unit-01")].cells.contains_key(&lost[2]));
}

#[test]
fn copying_is_slowed_down_to_its_limit() {
    let time = |limit| {
        let mut world = World::new(45, 1, 2);
        world.plan = world.plan.with_copy_limit(limit);
        world.start_core();
        world.run_for(1_000);
        while world.acked.len() < 200 {
            world.append();
        }
        world.down = vec![name("unit-00")];
        world.run_for(1_000);
        // All of it again.
        world.units.get_mut(&name("unit-00")).unwrap().forget();
        world.down.clear();
        let began = world.now;
        world.heal_and_check();
        world.now.since(began).as_millis()
    };
    let (fast, slow) = (time(None), time(Some(5_000)));
    assert!(slow > fast + 1_000, "{fast} ms, {slow} ms");
}

/// One replica has lost something, the next one refuses: there is a third.
#[test]
fn what_the_last_of_three_replicas_has_is_copied() {
    let mut world = needy(60, 4, 3);
    (0..40).for_each(|_| world.append());
    world.down = vec![name("unit-00")];
    world.run_for(1_500);
    world.restart(&name(SEQUENCER));
    world.run_for(1_000);
    let settled = world
        .core()
        .published_layout()
        .expect("served")
        .layout
        .start;
    let tail = world.units.get_mut(&name("unit-03")).unwrap();
    (0..settled.0).for_each(|position| tail.lose(Position(position)));
    world.units.get_mut(&name("unit-02")).unwrap().withholds = true;
    world.units.get_mut(&name("unit-00")).unwrap().forget();
    world.down.clear();
    // Soon, not when another one has been given back what it lost.
    world.run_for(1_500);
    assert!(world.is_served(), "{:?}", world.core().facts());
    let [(chain, 0)] = &chains(&mut world)[..] else {
        panic!("still joining");
    };
    assert!(chain[0].contains(&"unit-00".into()), "{chain:?}");
    world.units.get_mut(&name("unit-02")).unwrap().withholds = false;
    world.heal_and_check();
}
