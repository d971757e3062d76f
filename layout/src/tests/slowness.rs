//! Who says hello and is slow: taken out where others are fast and can do without it, and nowhere else.

use std::time::Duration;

use milonga_protocol::change::ClusterChange;
use milonga_protocol::messages::{CallId, LayoutRequest};

use super::world::{SECOND_SEQUENCER, SEQUENCER, World};
use super::{chains, epoch, name, opened, single};

/// Every message to and from it takes so many milliseconds longer from now on; 0: no longer.
fn slow(world: &mut World, server: &str, ms: u64) {
    world.slow.insert(name(server), ms);
}

/// Whether `unit` stands in a chain of the newest layout.
fn listed(world: &mut World, unit: &str) -> bool {
    let unit = unit.to_owned();
    let mut segments = chains(world).into_iter();
    segments.any(|(chains, _)| chains.iter().any(|chain| chain.contains(&unit)))
}

/// Seconds until `unit` is in no chain any more, or until it is in one again; at most `most`.
fn seconds_until(world: &mut World, unit: &str, is_listed: bool, most: u64) -> u64 {
    let began = world.now;
    while listed(world, unit) != is_listed {
        let took = world.now.since(began).as_secs();
        assert!(took < most, "{:?}", world.core().facts());
        world.run_for(100);
    }
    world.now.since(began).as_secs()
}

fn sequencer(world: &World) -> String {
    let layout = world.store.history().current().cloned();
    layout.expect("a layout").sequencer.name.to_string()
}

#[test]
fn a_slow_unit_is_out_of_the_way_within_ten_seconds_and_comes_back_when_it_is_fast() {
    let mut world = opened(70);
    world.run_for(5_000);
    slow(&mut world, "unit-00", 100);
    assert!(seconds_until(&mut world, "unit-00", false, 10) >= 2);
    let facts = world.core().facts();
    let out = &facts["out"];
    assert!(
        out.starts_with("unit-00: is slow: it answers within 20")
            && out.contains(", others within"),
        "{facts:?}"
    );
    assert_eq!(facts.get("slow"), None, "said once");
    (0..20).for_each(|_| world.append());
    assert!(!world.acked.is_empty(), "appends go on");
    world.run_for(30_000);
    assert!(!listed(&mut world, "unit-00"), "as long as it is slow");
    slow(&mut world, "unit-00", 0);
    assert!(seconds_until(&mut world, "unit-00", true, 20) >= 5);
    world.heal_and_check();
    assert_eq!(world.core().facts().get("slow"), None);
}

#[test]
fn a_disk_that_is_slow_counts_and_one_that_all_share_does_not() {
    let disk = |world: &mut World, unit: &str, micros| {
        let unit = world.units.get_mut(&name(unit)).expect("a unit");
        unit.disk_micros = Some(micros);
    };
    let mut world = opened(71);
    for unit in ["unit-00", "unit-01", "unit-10", "unit-11"] {
        disk(&mut world, unit, 150_000);
    }
    world.run_for(20_000);
    assert_eq!(epoch(&world), 1, "where all are slow nobody is");
    for unit in ["unit-00", "unit-01", "unit-10"] {
        disk(&mut world, unit, 1_500);
    }
    seconds_until(&mut world, "unit-11", false, 10);
    let facts = world.core().facts();
    assert!(
        facts["out"].contains("its disk takes 150.0 ms for a batch, others' 1.5 ms"),
        "{facts:?}"
    );
    disk(&mut world, "unit-11", 1_500);
    // Fast beside slow ones, but not so slow that anybody cares.
    disk(&mut world, "unit-00", 18_000);
    disk(&mut world, "unit-01", 10);
    seconds_until(&mut world, "unit-11", true, 20);
    world.run_for(20_000);
    assert!(listed(&mut world, "unit-00"));
    world.heal_and_check();
}

#[test]
fn the_last_of_a_chain_stays_however_slow_it_is() {
    let mut world = single(72);
    world.run_for(5_000);
    slow(&mut world, "unit-00", 100);
    world.run_for(20_000);
    assert_eq!(epoch(&world), 1);
    let facts = world.core().facts();
    assert!(facts["slow"].contains("unit-00 is slow"), "{facts:?}");
    assert!(
        facts["slow"].ends_with("cannot be done without now"),
        "{facts:?}"
    );
    world.heal_and_check();
}

#[test]
fn one_at_a_time_is_out_and_serves_again_if_its_chain_loses_the_other_before() {
    let mut world = opened(73);
    world.run_for(5_000);
    slow(&mut world, "unit-00", 100);
    slow(&mut world, "unit-10", 150);
    seconds_until(&mut world, "unit-10", false, 10);
    world.run_for(20_000);
    assert!(listed(&mut world, "unit-00"), "one is out already");
    // Who is slow and a member goes on while others die.
    world.down = vec![name("unit-01")];
    world.run_for(5_000);
    let before = world.acked.len();
    (0..20).for_each(|_| world.append());
    assert!(world.acked.len() > before, "{:?}", world.core().facts());
    assert!(listed(&mut world, "unit-00"));
    world.down.clear();
    slow(&mut world, "unit-00", 0);
    slow(&mut world, "unit-10", 0);
    world.heal_and_check();
}

#[test]
fn who_is_slow_again_and_again_is_kept_out_for_longer_and_longer() {
    let mut world = opened(74);
    let mut waits = Vec::new();
    for _ in 0..4 {
        world.run_for(2_000);
        slow(&mut world, "unit-00", 100);
        seconds_until(&mut world, "unit-00", false, 10);
        slow(&mut world, "unit-00", 0);
        waits.push(seconds_until(&mut world, "unit-00", true, 90));
    }
    assert!(waits.is_sorted() && waits[3] >= 40, "{waits:?}");
    world.heal_and_check();
}

#[test]
fn a_spare_takes_over_from_a_slow_sequencer_and_a_slow_spare_from_nobody_but_the_dead() {
    let mut world = opened(75);
    world.add_sequencer();
    world.run_for(5_000);
    slow(&mut world, SECOND_SEQUENCER, 100);
    world.run_for(10_000);
    assert_eq!(sequencer(&world), SEQUENCER);
    slow(&mut world, SECOND_SEQUENCER, 0);
    slow(&mut world, SEQUENCER, 100);
    world.run_for(10_000);
    assert_eq!(
        sequencer(&world),
        SECOND_SEQUENCER,
        "{:?}",
        world.core().facts()
    );
    // An operator is told why not.
    let to = name(SEQUENCER);
    let change = ClusterChange::MoveSequencer { to };
    let dry_run = true;
    world.ask(CallId(9), LayoutRequest::Change { change, dry_run });
    world.run_for(50);
    let reply = format!("{:?}", world.replies);
    assert!(reply.contains("is slow: it answers within"), "{reply}");
    world.down = vec![name(SECOND_SEQUENCER)];
    world.run_for(5_000);
    assert_eq!(sequencer(&world), SEQUENCER, "better slow than none");
    // As soon as there is a better one again, it goes on.
    world.down.clear();
    world.run_for(1_000);
    assert_eq!(
        sequencer(&world),
        SECOND_SEQUENCER,
        "{:?}",
        world.core().facts()
    );
    slow(&mut world, SEQUENCER, 0);
    world.heal_and_check();
}

#[test]
fn without_a_spare_a_slow_sequencer_stays() {
    let mut world = opened(76);
    slow(&mut world, SEQUENCER, 100);
    world.run_for(20_000);
    assert_eq!(
        (epoch(&world), sequencer(&world)),
        (1, SEQUENCER.to_owned())
    );
    world.heal_and_check();
}

#[test]
fn lost_messages_and_a_leader_that_slept_make_nobody_slow() {
    let mut world = opened(77);
    world.loss = 20;
    world.run_for(60_000);
    let facts = world.core().facts();
    assert_eq!(facts.get("slow"), None, "{facts:?}");
    // Everything it had asked comes back late, and all of it alike.
    world.loss = 0;
    world.now = world.now.after(Duration::from_secs(5));
    world.run_for(5_000);
    assert_eq!(world.core().facts().get("slow"), None);
    world.heal_and_check();
}
