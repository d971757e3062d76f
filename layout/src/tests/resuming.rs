//! Another leader goes on with an epoch that is at rest, and makes another one if it is not.

use super::*;

/// At rest, and the history knows.
fn at_rest(seed: u64) -> World {
    let mut world = opened(seed);
    (0..20).for_each(|_| world.append());
    world.run_for(500);
    assert!(world.store.history().is_at_rest());
    world
}

#[test]
fn an_epoch_at_rest_goes_on_under_another_leader() {
    let mut world = at_rest(70);
    for _ in 0..5 {
        let asked = world.effects;
        world.take_over();
        // Handed out as soon as it is known where its servers are.
        assert!(world.core().published_layout().is_none());
        let words = state(&mut world);
        assert!(words.starts_with("published; taking over"), "{words}");
        world.run_for(300);
        assert!(world.core().published_layout().is_some());
        assert!(world.core().is_idle(), "{:?}", world.core().facts());
        assert_eq!(
            (epoch(&world), world.effects),
            (1, asked),
            "nobody was asked anything"
        );
        (0..20).for_each(|_| world.append());
    }
    // The new leader sees to it that the epoch ends when it has to.
    world.down = vec![name("unit-00")];
    world.run_for(700);
    assert_eq!(epoch(&world), 2);
    world.down.clear();
    world.heal_and_check();
}

#[test]
fn who_was_restarted_meanwhile_ends_the_epoch() {
    for server in ["unit-10", SEQUENCER] {
        let mut world = at_rest(71);
        world.crash_core();
        world.restart(&name(server));
        world.take_over();
        world.run_for(1_000);
        assert_eq!(epoch(&world), 2, "{server}");
        world.heal_and_check();
    }
}

#[test]
fn who_is_never_heard_by_the_new_leader_is_given_up() {
    let mut world = at_rest(72);
    world.down = vec![name("unit-00")];
    world.take_over();
    world.run_for(2_500);
    assert_eq!(epoch(&world), 1, "not heard yet is not gone");
    world.run_for(1_000);
    assert_eq!(epoch(&world), 2);
    world.down.clear();
    world.heal_and_check();
}

#[test]
fn what_was_left_half_done_is_begun_anew() {
    for after_ms in 0..60 {
        let mut world = at_rest(73 + after_ms);
        // The other reconfiguration gets so far.
        world.restart(&name("unit-01"));
        world.run_for(after_ms * 5);
        world.crash_core();
        let (before, at_rest) = (epoch(&world), world.store.history().is_at_rest());
        world.take_over();
        world.run_for(1_000);
        assert!(world.core().is_idle(), "{:?}", world.core().facts());
        let made = epoch(&world) - before;
        assert!(
            made == 1 || (at_rest && before == 2 && made == 0),
            "{made} more after {after_ms}"
        );
        world.heal_and_check();
    }
}
