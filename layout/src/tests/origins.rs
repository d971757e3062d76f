//! The history says when and why each epoch began.

use milonga_protocol::change::Origin;

use super::world::WALL_CLOCK;
use super::*;

fn origin(world: &World, epoch: u64) -> Origin {
    let report = world.store.history().report(Epoch(epoch - 1));
    report.epochs[0].origin.clone().expect("known")
}

/// Seconds since 1970.
fn now(world: &World) -> u64 {
    (WALL_CLOCK + world.now.since_start()).as_secs()
}

#[test]
fn each_epoch_has_its_cause_and_its_time_whoever_leads_later() {
    let mut world = opened(90);
    let first = origin(&world, 1);
    assert_eq!(first.cause, "the cluster is new");
    assert_eq!(first.began, WALL_CLOCK.as_secs());
    world.run_for(20_000);
    let began = now(&world);
    world.down = vec![name("unit-00")];
    world.run_for(2_000);
    assert_eq!(epoch(&world), 2);
    let second = origin(&world, 2);
    assert_eq!(
        second.cause,
        "unit-00 says nothing any more; goes on without unit-00"
    );
    assert!((began..=began + 1).contains(&second.began), "{second:?}");
    // A restart, and another leader.
    world.run_for(10_000);
    let began = now(&world);
    world.crash_core();
    world.start_core();
    world.run_for(5_000);
    let third = origin(&world, 3);
    assert_eq!(third.cause, "the layout server was started");
    assert!((began..=began + 1).contains(&third.began), "{third:?}");
    world.take_over();
    world.run_for(10_000);
    world.down.clear();
    world.heal_and_check();
    assert_eq!(
        [1, 2, 3].map(|epoch| origin(&world, epoch)),
        [first, second, third]
    );
    // An epoch that was at rest went on: the next one has a cause of its own.
    assert_eq!(
        origin(&world, 4).cause,
        "unit-00 can take a place in a chain; takes in unit-00"
    );
}

/// A unit was restarted, and all are being sealed.
fn sealing(seed: u64) -> World {
    let mut world = opened(seed);
    world.run_for(5_000);
    world.restart(&name("unit-00"));
    until(&mut world, "sealing");
    world
}

#[test]
fn what_comes_between_is_not_the_cause() {
    let mut world = sealing(91);
    world.restart(&name("unit-11"));
    world.run_for(4);
    let words = state(&mut world);
    assert!(words.ends_with("because unit-11 was started"), "{words}");
    world.run_for(1_000);
    assert_eq!(origin(&world, 2).cause, "unit-00 was restarted");
    world.restart(&name("unit-11"));
    world.run_for(1_000);
    assert_eq!(origin(&world, 3).cause, "unit-11 was restarted");
    world.heal_and_check();
}

#[test]
fn another_leader_that_makes_an_epoch_says_so() {
    let mut world = sealing(92);
    world.take_over();
    world.run_for(1_000);
    let cause = "another term of the layout's leadership began";
    assert_eq!(origin(&world, 2).cause, cause);
    world.heal_and_check();
}
