//! Who cannot take part, and how the layout server says so.

use super::*;

/// Starts `world` anew and expects that nothing begins, with these words.
fn stuck(world: &mut World, words: &[&str]) {
    let (before, units) = (epoch(world), world.units.len());
    world.crash_core();
    world.start_core();
    let effects = world.effects;
    world.run_for(3_000);
    assert_eq!(epoch(world), before);
    assert_eq!(world.effects, effects, "something was sent");
    assert_eq!(world.units.len(), units);
    let state = state(world);
    for word in words {
        assert!(state.contains(word), "{word:?} is missing in: {state}");
    }
}

#[test]
fn data_without_a_history_is_refused() {
    let mut world = opened(10);
    world.store = crate::LayoutStore::memory();
    stuck(
        &mut world,
        &["unit-00 holds data of cluster", "restore the history"],
    );
}

#[test]
fn an_emptied_directory_is_refused() {
    let mut world = single(11);
    let lost = world.units.insert(name("unit-10"), Unit::new(99)).unwrap();
    stuck(&mut world, &["unit-10 came with an empty directory"]);
    // Also without a restart of the layout server; and all is well once the directory is back.
    world.units.insert(name("unit-10"), lost);
    world.heal_and_check();
    let before = epoch(&world);
    let lost = world.units.insert(name("unit-10"), Unit::new(98)).unwrap();
    world.restart(&name("unit-10"));
    world.run_for(3_000);
    assert!(state(&mut world).contains("unit-10 came with an empty directory"));
    assert_eq!(epoch(&world), before);
    world.units.insert(name("unit-10"), lost);
    world.restart(&name("unit-10"));
    world.heal_and_check();
}

#[test]
fn a_restored_backup_is_refused() {
    let mut world = single(12);
    world.restart(&name("unit-00"));
    world.heal_and_check();
    world.units.get_mut(&name("unit-10")).unwrap().persisted = Epoch(1);
    stuck(
        &mut world,
        &["unit-10 has lost its past: it confirmed epoch 2"],
    );
    world.units.get_mut(&name("unit-10")).unwrap().persisted = Epoch(5);
    stuck(
        &mut world,
        &["unit-10 has served epoch 5, but the history ends with epoch 2"],
    );
}

/// Two chains of one unit each; a layout takes its time to be recorded.
fn of_epoch_2(seed: u64) -> World {
    let mut world = single(seed);
    world.restart(&name("unit-00"));
    world.heal_and_check();
    world.slow_store = 20;
    world
}

/// Nobody looks at what is said while a layout is being recorded: it counts all the same.
#[test]
fn a_backup_that_is_restored_while_a_layout_is_recorded_is_refused() {
    let (mut world, unit, backup) = (of_epoch_2(61), name("unit-10"), Epoch(1));
    world.restart(&name(SEQUENCER));
    until(&mut world, "recording the layout");
    world.units.get_mut(&unit).unwrap().persisted = backup;
    world.restart(&unit);
    world.run_for(3_000);
    let words = state(&mut world);
    assert!(words.contains("unit-10 has lost its past"), "{words}");
    assert_eq!(world.units[&unit].persisted, backup, "it was let in");
}

/// It had confirmed an epoch that nobody else did: the seal's report is all that tells.
#[test]
fn a_backup_of_before_an_epoch_that_was_never_recorded_is_refused() {
    let (mut world, unit) = (of_epoch_2(64), name("unit-10"));
    world.restart(&name("unit-00"));
    until(&mut world, "recording the layout");
    world.down = vec![name(SEQUENCER)];
    world.run_for(50);
    assert_eq!(world.units[&unit].persisted, Epoch(3));
    assert_eq!(
        world.store.history().opened(world.units[&unit].id),
        Some(Epoch(2))
    );
    world.down.clear();
    world.restart(&name(SEQUENCER));
    until(&mut world, "recording the layout of epoch 4");
    world.units.get_mut(&unit).unwrap().persisted = Epoch(2);
    world.restart(&unit);
    world.run_for(5_000);
    let words = state(&mut world);
    let lost = "unit-10 has lost its past: it confirmed epoch 3 and comes back with epoch 2";
    assert!(words.contains(lost), "{words}");
    assert_eq!(world.units[&unit].persisted, Epoch(2), "it entered");
}

#[test]
fn who_leaves_before_it_was_heard_in_its_last_epoch_has_lost_nothing() {
    let mut world = opened(66);
    world.mute = vec![name("unit-01")];
    world.restart(&name(SEQUENCER));
    world.run_for(200);
    assert_eq!(world.units[&name("unit-01")].persisted, Epoch(2));
    world.run_for(2_000);
    let out = world.core().facts()["out"].clone();
    assert_eq!(out, "unit-01: says nothing any more");
    world.mute.clear();
    world.heal_and_check();
}

/// It is reached before it is heard, so only it can know.
#[test]
fn a_backup_that_cannot_be_heard_yet_does_not_enter() {
    let (mut world, unit) = (of_epoch_2(62), name("unit-10"));
    world.restart(&name(SEQUENCER));
    until(&mut world, "recording the layout");
    world.mute = vec![unit.clone()];
    world.units.get_mut(&unit).unwrap().persisted = Epoch(1);
    world.restart(&unit);
    world.run_for(300);
    let words = state(&mut world);
    assert!(words.contains("unit-10: "), "{words}");
    assert_eq!(world.units[&unit].persisted, Epoch(1), "it entered");
    world.mute.clear();
    world.run_for(3_000);
    let words = state(&mut world);
    assert!(words.contains("unit-10 has lost its past"), "{words}");
}

/// The directory of before, as it was before what is appended now; and that of now is put back when that was noticed.
fn exchange(world: &mut World, unit: &ServerName) -> Unit {
    let mut backup = world.units[unit].clone();
    (0..20).for_each(|_| world.append());
    backup.persisted = Epoch(1);
    world
        .units
        .insert(unit.clone(), backup)
        .expect("it is there")
}

#[track_caller]
fn nothing_is_made_of_it(world: &mut World, unit: &ServerName, newest: Unit) {
    until(world, "sealing for epoch 3");
    world.run_for(200);
    let words = state(world);
    let lost = "unit-10: has lost its past: it confirmed epoch 2 and comes back with epoch 1";
    assert!(words.contains(lost), "{words}");
    assert!(!world.committed.contains_key(&Epoch(3)));
    world.units.insert(unit.clone(), newest);
    world.mute.clear();
    world.restart(unit);
    world.heal_and_check();
}

/// Its directory was exchanged before it was sealed, and the run that has the older one was never heard.
#[test]
fn no_epoch_is_made_of_what_a_backup_reports() {
    let (mut world, unit) = (of_epoch_2(63), name("unit-10"));
    let newest = exchange(&mut world, &unit);
    world.mute = vec![unit.clone()];
    world.restart(&unit);
    world.restart(&name(SEQUENCER));
    nothing_is_made_of_it(&mut world, &unit, newest);
}

/// What it said then may have been of before: that is no reason to believe it now.
#[test]
fn no_epoch_is_made_of_a_backup_that_the_leader_of_before_heard() {
    let (mut world, unit) = (of_epoch_2(65), name("unit-10"));
    let newest = exchange(&mut world, &unit);
    world.restart(&unit);
    world.run_for(1_000);
    assert!(state(&mut world).contains("unit-10 has lost its past"));
    world.mute = vec![unit.clone()];
    let heard = std::mem::take(&mut world.core().heard);
    world.crash_core();
    world.run_for(10);
    world.start_core();
    world.core().heard = heard;
    nothing_is_made_of_it(&mut world, &unit, newest);
}

#[test]
fn foreign_units_are_refused() {
    let mut world = single(13);
    world.units.get_mut(&name("unit-10")).unwrap().cluster = Some(ClusterId(3));
    stuck(&mut world, &["unit-10 belongs to cluster"]);
    let mut world = single(14);
    let a = world.units.remove(&name("unit-00")).unwrap();
    let b = world.units.insert(name("unit-10"), a).unwrap();
    world.units.insert(name("unit-00"), b);
    stuck(&mut world, &["unit-00 came with the directory of unit"]);
    let mut world = World::new(15, 1, 2);
    for unit in world.units.values_mut() {
        unit.id = UnitId(4);
    }
    stuck(&mut world, &["unit-00 and unit-01 have the same identity"]);
}

#[test]
fn who_is_refused_is_gone_for_a_chain_that_can_do_without() {
    for seed in 0..5 {
        let mut world = opened(50 + seed);
        (0..30).for_each(|_| world.append());
        let lost = world.units.insert(name("unit-10"), Unit::new(99)).unwrap();
        world.restart(&name("unit-10"));
        world.run_for(2_000);
        assert_eq!(epoch(&world), 2);
        let out = world.core().facts()["out"].clone();
        assert!(
            out.starts_with("unit-10: came with an empty directory"),
            "{out}"
        );
        (0..30).for_each(|_| world.append());
        // The right directory again, though it missed an epoch.
        world.units.insert(name("unit-10"), lost);
        world.restart(&name("unit-10"));
        world.heal_and_check();
    }
}

#[test]
fn a_unit_that_no_chain_names_is_told_so() {
    let mut world = opened(19);
    let now = world.now;
    let unit = world.units[&name("unit-00")].hello();
    let hello = Hello {
        name: name("unit-77"),
        address: "unit-77:1".into(),
        incarnation: Incarnation(1),
        unit: Some(unit),
        sequencer: false,
    };
    let call = CallId(7);
    world.core().handle(now, call, LayoutRequest::Hello(hello));
    world.run_for(1_000);
    let [(told, Response::Refused(Refusal::Identity { why }))] = &world.replies[..] else {
        panic!("{:?}", world.replies);
    };
    assert!(
        *told == call && why.contains("unit-77 is not a unit"),
        "{why}"
    );
    world.heal_and_check();
}

#[test]
fn a_failed_store_stops_it_with_the_reason() {
    let mut world = opened(16);
    let mut core = world.core.take().expect("running");
    let mut now = world.now;
    let report = LayoutRequest::ReportSealed { epoch: Epoch(1) };
    core.handle(now, CallId(0), report.clone());
    let store = loop {
        match core.poll_effect() {
            Some(LayoutEffect::Store { id, .. }) => break id,
            Some(_) => {}
            None => {
                now = core.next_time().expect("it goes on by itself");
                core.handle_time(now);
            }
        }
    };
    let path = "layout.redb".into();
    let why = "no space left".into();
    core.stored(now, store, Err(StoreError::Disk { path, why }.to_string()));
    assert!(core.facts()["state"].contains("no space left"));
    // What is published stays, and nothing is decided any more.
    assert!(core.published_layout().is_some());
    core.handle(now, CallId(0), report);
    core.handle_time(now.after(Duration::from_secs(9)));
    let mut effects = std::iter::from_fn(|| core.poll_effect());
    assert!(effects.all(|effect| matches!(effect, LayoutEffect::Reply(..))));
}

#[test]
fn a_configuration_with_other_units_is_refused() {
    let world = opened(17);
    let mut plan = world.plan.clone();
    plan.units[0].pop();
    let error =
        crate::LayoutCore::start(plan, world.store.history(), ClusterId(1), Time::default());
    let words = error.expect_err("other units").to_string();
    assert!(words.contains("was made with"), "{words}");
}
