//! Growth and care by command, in the model network: each command, its refusals, its dry run, and a leader that crashes.

use std::time::Duration;

use milonga_protocol::change::{ChangeReport, ChangeStage, ClusterChange};
use milonga_protocol::messages::{CallId, LayoutRequest, LayoutResponse, Refusal, Response};
use milonga_protocol::{ClusterId, Epoch, ServerName};

use super::unit::Unit;
use super::world::{Dice, SECOND_SEQUENCER, SEQUENCER, World};
use super::{chains, epoch, name, opened, until};

/// Asks, and waits for the answer; `each` happens after each event.
fn request(
    world: &mut World,
    change: &ClusterChange,
    dry_run: bool,
    each: impl FnMut(&mut World),
) -> Option<Response> {
    let call = CallId(1_000 + world.effects * 2 + u64::from(dry_run));
    let change = change.clone();
    let request = LayoutRequest::Change { change, dry_run };
    world.ask(call, request);
    let until = world.now.after(Duration::from_millis(50));
    world.run_until(until, each);
    let mut replies = std::mem::take(&mut world.replies).into_iter();
    let reply = replies.find(|(of, _)| *of == call);
    reply.map(|(_, response)| response)
}

fn report(world: &mut World, change: &ClusterChange, dry_run: bool) -> ChangeReport {
    match request(world, change, dry_run, |_| ()) {
        Some(Response::Layout(LayoutResponse::Change(report))) => report,
        other => panic!("{change:?}: {other:?}"),
    }
}

fn declined(world: &mut World, change: &ClusterChange) -> String {
    let before = world.store.history();
    let why = match request(world, change, false, |_| ()) {
        Some(Response::Refused(Refusal::Declined { why })) => why,
        other => panic!("{change:?}: {other:?}"),
    };
    assert_eq!(world.store.history(), before, "{why}");
    why
}

/// Asks until it is done, as the command does, with appends; `each` happens after each event. A layout server that is gone
/// is started again.
fn until_done(world: &mut World, change: &ClusterChange, mut each: impl FnMut(&mut World)) {
    for _ in 0..400 {
        if world.core.is_none() {
            world.start_core();
        }
        world.append();
        match request(world, change, false, &mut each) {
            Some(Response::Layout(LayoutResponse::Change(report)))
                if report.stage == ChangeStage::Done =>
            {
                return;
            }
            Some(Response::Refused(Refusal::Declined { why })) => panic!("declined: {why}"),
            _ => {}
        }
    }
    let facts = world.core.as_ref().map(crate::LayoutCore::facts);
    panic!("{change:?} is not done: {facts:?}");
}

fn done(world: &mut World, change: &ClusterChange) {
    until_done(world, change, |_| ());
}

fn add(unit: &str, chain: Option<u16>) -> ClusterChange {
    let name = name(unit);
    ClusterChange::AddUnit { name, chain }
}

fn remove(unit: &str) -> ClusterChange {
    let name = name(unit);
    ClusterChange::RemoveUnit { name }
}

fn replace(old: &str, new: &str) -> ClusterChange {
    let (old, new) = (name(old), name(new));
    ClusterChange::ReplaceUnit { old, new }
}

fn more(units: &[&str]) -> ClusterChange {
    let units = units.iter().map(|unit| name(unit)).collect();
    ClusterChange::AddChain { units }
}

fn move_to(to: &str) -> ClusterChange {
    ClusterChange::MoveSequencer { to: name(to) }
}

/// Two chains of two with some entries, a second sequencer, and units that nobody knows yet.
fn world(seed: u64) -> World {
    let mut world = started(seed);
    world.heal_and_check();
    world
}

fn started(seed: u64) -> World {
    let mut world = opened(seed);
    world.add_sequencer();
    for unit in ["unit-x", "unit-y"] {
        world.add_stranger(unit);
    }
    (0..30).for_each(|_| world.append());
    world.run_for(500);
    world
}

fn active(world: &mut World) -> Vec<Vec<String>> {
    chains(world).pop().expect("a segment").0
}

/// All commands, each with what the active chains are afterwards.
fn commands() -> Vec<(ClusterChange, Vec<Vec<&'static str>>)> {
    let (one, two) = (vec!["unit-00", "unit-01"], vec!["unit-10", "unit-11"]);
    vec![
        (move_to(SECOND_SEQUENCER), vec![one.clone(), two.clone()]),
        (add("unit-x", Some(1)), vec![one.clone(), two.clone()]),
        (remove("unit-11"), vec![one.clone(), vec!["unit-10"]]),
        (
            replace("unit-00", "unit-x"),
            vec![vec!["unit-01", "unit-x"], two.clone()],
        ),
        (
            more(&["unit-x", "unit-y"]),
            vec![one, two, vec!["unit-x", "unit-y"]],
        ),
    ]
}

#[test]
fn each_command_does_what_it_says() {
    for (seed, (change, wanted)) in (100..).zip(commands()) {
        let mut world = world(seed);
        done(&mut world, &change);
        assert_eq!(active(&mut world), wanted, "{change:?}");
        assert_eq!(report(&mut world, &change, false).stage, ChangeStage::Done);
        world.settle_and_check();
        // The configuration is as it was.
        world.crash_core();
        world.start_core();
        world.settle_and_check();
        assert_eq!(active(&mut world), wanted, "{change:?}");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_be() {
    for (seed, (change, wanted)) in (120..).zip(commands()) {
        let mut world = world(seed);
        let (before, sent) = (world.store.history(), world.effects);
        let report = report(&mut world, &change, true);
        assert_eq!(report.stage, ChangeStage::Planned);
        assert_eq!(world.store.history(), before);
        assert_eq!(world.effects, sent);
        assert!(!report.steps.is_empty(), "{change:?}");
        // Where the next epoch begins is not known yet.
        let start = format!("below {}", before.current().expect("one").start);
        assert!(report.steps.iter().all(|step| !step.contains(&start)));
        assert_eq!(report.chains.len(), wanted.len());
        for (chain, wanted) in report.chains.iter().zip(&wanted) {
            let chain: Vec<_> = chain.iter().map(ServerName::as_str).collect();
            assert_eq!(chain, *wanted, "{change:?}");
        }
        world.run_for(3_000);
        assert_eq!(world.store.history(), before);
    }
}

#[test]
fn the_leader_may_crash_between_any_two_effects_of_a_command() {
    for (change, wanted) in commands() {
        for n in 0.. {
            let mut world = started(140);
            let (at, mut crashed) = (world.effects + n, false);
            until_done(&mut world, &change, |world| {
                if !crashed && world.effects > at {
                    crashed = true;
                    world.crash_core();
                }
            });
            assert_eq!(active(&mut world), wanted, "{change:?}, effect {n}");
            world.settle_and_check();
            if !crashed {
                assert!(n > 0, "{change:?} has no effects");
                break;
            }
        }
    }
}

#[test]
fn a_sequencer_moves_without_anybody_gone() {
    let mut world = world(160);
    let before = epoch(&world);
    done(&mut world, &move_to(SECOND_SEQUENCER));
    assert_eq!(epoch(&world), before + 1);
    assert_eq!(epoch(&world), world.committed.len() as u64);
    done(&mut world, &move_to(SEQUENCER));
    let why = declined(&mut world, &move_to("unit-00"));
    assert!(why.contains("not configured as a sequencer"), "{why}");
    world.down = vec![name(SECOND_SEQUENCER)];
    world.run_for(1_000);
    let why = declined(&mut world, &move_to(SECOND_SEQUENCER));
    assert!(why.contains("start it"), "{why}");
    world.down.clear();
    world.heal_and_check();
}

/// Nothing speaks against what would be done.
#[track_caller]
fn joins_at_once(world: &mut World, change: &ClusterChange) {
    let plan = report(world, change, true);
    let waits = |step: &String| step.contains("that waits");
    assert!(
        plan.steps[0].contains("joins chain") && !plan.steps.iter().any(waits),
        "{plan:?}"
    );
}

#[test]
fn an_added_unit_comes_in_where_it_belongs() {
    let mut world = world(161);
    done(&mut world, &remove("unit-01"));
    done(&mut world, &add("unit-y", None));
    // At once, though another spare has waited for longer.
    done(&mut world, &add("unit-x", Some(0)));
    assert_eq!(active(&mut world)[0], ["unit-00", "unit-x"]);
    world.settle_and_check();
    for (change, word) in [
        (add("unit-x", Some(1)), "cannot move"),
        (add("unit-x", Some(7)), "no chain 8"),
        (add("unit-z", None), "has not said hello"),
        (
            add("unit-01", None),
            "its old directory, which is not empty",
        ),
    ] {
        let why = declined(&mut world, &change);
        assert!(why.contains(word), "{why}");
    }
    // Who was removed comes in again with an empty directory only.
    world.replace_disk("unit-01");
    world.run_for(500);
    done(&mut world, &remove("unit-x"));
    joins_at_once(&mut world, &add("unit-01", None));
    done(&mut world, &add("unit-01", None));
    world.settle_and_check();
}

#[test]
fn a_unit_whose_disk_was_replaced_comes_in_as_a_new_one() {
    let mut world = world(162);
    world.replace_disk("unit-10");
    world.run_for(3_000);
    assert_eq!(active(&mut world)[1], ["unit-11"]);
    joins_at_once(&mut world, &add("unit-10", Some(1)));
    done(&mut world, &add("unit-10", Some(1)));
    world.settle_and_check();
    assert_eq!(active(&mut world)[1], ["unit-11", "unit-10"]);
}

#[test]
fn no_chain_is_left_with_too_few() {
    let mut world = world(163);
    done(&mut world, &remove("unit-00"));
    let why = declined(&mut world, &remove("unit-01"));
    assert!(why.contains("chain 1 would keep fewer"), "{why}");
    assert!(why.contains("replace-unit unit-01"), "{why}");
    let why = declined(&mut world, &remove("unit-77"));
    assert!(why.contains("not a unit"), "{why}");
    // What was removed stays out, whatever it does.
    world.restart(&name("unit-00"));
    world.run_for(20_000);
    assert_eq!(active(&mut world)[0], ["unit-01"]);
    // It is said that it runs, and that nobody has its place, as long as that is so.
    let facts = world.core().facts();
    assert_eq!(facts["removed"], "unit-00");
    assert!(facts["vacant"].contains("add-unit"), "{facts:?}");
    assert!(!facts.contains_key("out"), "{facts:?}");
    world.down = vec![name("unit-00")];
    world.run_for(5_000);
    assert!(!world.core().facts().contains_key("removed"));
    world.down.clear();
    let why = declined(&mut world, &replace("unit-00", "unit-x"));
    assert!(why.contains("is leaving or has left"), "{why}");
    // Its place goes to a successor of the last one all the same.
    done(&mut world, &replace("unit-01", "unit-x"));
    assert_eq!(active(&mut world)[0], ["unit-x"]);
    world.settle_and_check();
}

#[test]
fn who_is_out_has_no_place_to_give_away() {
    let mut world = world(168);
    world.add_spare("unit-s");
    world.heal_and_check();
    let why = declined(&mut world, &replace("unit-s", "unit-x"));
    assert!(why.contains("it is a spare"), "{why}");
    world.down = vec![name("unit-11")];
    world.run_for(2_000);
    let change = replace("unit-11", "unit-x");
    let why = declined(&mut world, &change);
    assert!(why.contains("add-unit unit-x --chain 2` gives"), "{why}");
    assert!(why.contains("then `milonga cluster remove-unit"), "{why}");
    world.run_for(20_000);
    assert_eq!(active(&mut world)[1], ["unit-10", "unit-s"]);
    let why = declined(&mut world, &change);
    assert!(why.contains("chain 2, where it belongs, lacks"), "{why}");
    let why = declined(&mut world, &replace("unit-z", "unit-x"));
    assert!(why.contains("not a unit of this cluster"), "{why}");
}

#[test]
fn a_unit_that_finds_no_place_is_told_when_it_gets_one() {
    let mut world = world(169);
    for (change, words) in [
        (add("unit-x", None), "unit-x is a spare: it takes a place"),
        (add("unit-x", Some(1)), "chain 2 lacks nothing now; unit-x"),
    ] {
        // What would be done, what is done, and what was done.
        for (dry_run, stage) in [
            (true, ChangeStage::Planned),
            (false, ChangeStage::UnderWay),
            (false, ChangeStage::Done),
        ] {
            let report = report(&mut world, &change, dry_run);
            assert_eq!(report.stage, stage);
            let [step] = report.steps.as_slice() else {
                panic!("{:?}", report.steps);
            };
            assert!(step.starts_with(words), "{step}");
        }
    }
    done(&mut world, &remove("unit-11"));
    world.run_for(3_000);
    assert_eq!(active(&mut world)[1], ["unit-10", "unit-x"]);
}

/// A unit forgot what it does not surely know, waits for another one, and comes back as it was before.
#[test]
fn who_was_restarted_since_it_forgot_is_asked_to_forget_again() {
    let mut world = world(175);
    let change = more(&["unit-x", "unit-y"]);
    let unit = name("unit-x");
    let before = world.units[&unit].clone();
    world.deaf = vec![name("unit-y")];
    report(&mut world, &change, false);
    world.run_for(2_000);
    assert_eq!(world.units[&unit].rejoined, 1);
    world.units.insert(unit.clone(), before);
    world.restart(&unit);
    world.run_for(2_000);
    world.deaf.clear();
    done(&mut world, &change);
    assert_eq!(world.units[&unit].rejoined, 1, "that one forgot nothing");
    world.settle_and_check();
}

/// It was chosen already, and the layout that lists it is not recorded yet.
#[test]
fn who_is_restarted_while_it_is_taken_in_is_asked_to_forget_again() {
    let mut world = world(176);
    let change = more(&["unit-x", "unit-y"]);
    let unit = name("unit-x");
    let before = world.units[&unit].clone();
    report(&mut world, &change, false);
    until(&mut world, "sealing");
    world.slow.insert(name("unit-00"), 100);
    until(&mut world, "collecting");
    world.units.insert(unit.clone(), before);
    world.restart(&unit);
    done(&mut world, &change);
    assert_eq!(world.units[&unit].rejoined, 1, "that one forgot nothing");
    world.slow.clear();
    world.settle_and_check();
}

#[test]
fn that_a_chain_gets_fewer_replicas_than_are_wanted_is_said() {
    let mut world = world(177);
    for (change, words) in [
        (remove("unit-00"), "chain 1 has 1 of 2 replicas then"),
        (more(&["unit-x"]), "chain 3 has 1 of 2 replicas then"),
    ] {
        let steps = report(&mut world, &change, true).steps;
        let last = steps.last().expect("some steps");
        assert!(last.starts_with(words), "{steps:?}");
    }
    let steps = report(&mut world, &more(&["unit-x", "unit-y"]), true).steps;
    assert!(!steps.concat().contains("replicas then"), "{steps:?}");
}

#[test]
fn why_a_unit_is_not_taken_in_yet_is_said() {
    let mut world = world(174);
    world.plan = world.plan.clone().with_copy_limit(Some(1));
    world.crash_core();
    world.start_core();
    world.run_for(6_000);
    (0..40).for_each(|_| world.append());
    world.slow.insert(name("unit-00"), 100);
    world.run_for(15_000);
    assert_eq!(active(&mut world)[0], ["unit-01"]);
    let slow = report(&mut world, &add("unit-00", None), false);
    assert_eq!(slow.stage, ChangeStage::UnderWay);
    assert!(
        slow.steps[0].starts_with("unit-00 joins chain 1"),
        "{slow:?}"
    );
    assert!(
        slow.steps[1].starts_with("that waits: unit-00 is slow: it answers within"),
        "{slow:?}"
    );
    // Once it is in, it has to be given what it lacks: at one byte a second.
    world.slow.clear();
    world.units.get_mut(&name("unit-00")).unwrap().forget();
    world.run_for(500);
    let kept_out = report(&mut world, &add("unit-00", None), false);
    assert!(
        kept_out.steps[1].starts_with("that waits: unit-00 "),
        "{kept_out:?}"
    );
    world.run_for(30_000);
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-00"]);
    let joining = report(&mut world, &add("unit-00", None), false);
    assert_eq!(joining.stage, ChangeStage::UnderWay);
    assert_eq!(
        joining.steps,
        ["unit-00 is being given what its chain holds"]
    );
}

/// A process that is no unit says hello, too, if there is nothing that it could be.
#[test]
fn who_runs_and_is_no_unit_is_not_told_to_start() {
    let mut world = world(170);
    world.add_process("layout-1");
    world.run_for(200);
    for change in [add("layout-1", None), more(&["layout-1"])] {
        let why = declined(&mut world, &change);
        assert!(why.contains("runs, but is no log unit"), "{why}");
    }
}

#[test]
fn a_directory_that_was_used_is_named() {
    let mut world = world(171);
    let unit = |world: &mut World, change: &dyn Fn(&mut Unit)| {
        change(world.units.get_mut(&name("unit-x")).expect("a unit"));
        world.run_for(500);
        declined(world, &add("unit-x", None))
    };
    let why = unit(&mut world, &|unit| unit.cluster = Some(ClusterId(3)));
    assert!(why.contains("of another cluster"), "{why}");
    let id = world.units[&name("unit-00")].id;
    let why = unit(&mut world, &|unit| (unit.cluster, unit.id) = (None, id));
    assert!(why.contains("the directory of unit-00; start"), "{why}");
}

#[test]
fn who_is_replaced_serves_until_the_other_has_everything() {
    let mut world = world(164);
    world.plan.copy_bytes_per_second = Some(400);
    world.crash_core();
    world.start_core();
    world.heal_and_check();
    let change = replace("unit-00", "unit-x");
    let mut both = false;
    for _ in 0..600 {
        world.append();
        let report = request(&mut world, &change, false, |_| ());
        let Some(Response::Layout(LayoutResponse::Change(report))) = report else {
            continue;
        };
        let layout = world.store.history().current().expect("one").clone();
        for segment in &layout.segments {
            assert!(segment.chains[0].len() >= 2, "redundancy was lost");
        }
        both |= !report.copying.is_empty();
        if report.stage == ChangeStage::Done {
            break;
        }
        world.run_for(50);
    }
    assert!(both, "copying was not seen");
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-x"]);
    world.settle_and_check();
}

#[test]
fn a_replacement_is_taken_back_or_goes_on_without_the_old_one() {
    let mut world = world(165);
    world.plan.copy_bytes_per_second = Some(100);
    world.crash_core();
    world.start_core();
    world.heal_and_check();
    let change = replace("unit-00", "unit-x");
    assert_eq!(
        report(&mut world, &change, false).stage,
        ChangeStage::UnderWay
    );
    world.run_for(500);
    let why = declined(&mut world, &replace("unit-00", "unit-y"));
    assert!(why.contains("takes that back"), "{why}");
    assert_eq!(active(&mut world)[0], ["unit-00", "unit-01", "unit-x"]);
    world.down = vec![name("unit-00")];
    world.run_for(1_000);
    world.down.clear();
    done(&mut world, &change);
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-x"]);
    // Taken back.
    let change = replace("unit-10", "unit-y");
    assert_eq!(
        report(&mut world, &change, false).stage,
        ChangeStage::UnderWay
    );
    world.run_for(500);
    done(&mut world, &add("unit-10", None));
    world.run_for(20_000);
    assert_eq!(active(&mut world)[1], ["unit-10", "unit-11", "unit-y"]);
    world.settle_and_check();
}

/// A unit that the configuration does not name, whose successor was removed, stays known: else no later leader could begin.
#[test]
fn who_stays_after_all_is_known_to_later_leaders() {
    let mut world = world(120);
    done(&mut world, &replace("unit-00", "unit-x"));
    report(&mut world, &replace("unit-x", "unit-y"), false);
    done(&mut world, &remove("unit-y"));
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-x"]);
    world.crash_core();
    world.start_core();
    world.heal_and_check();
    assert_eq!(active(&mut world)[0], ["unit-01", "unit-x"]);
}

#[test]
fn a_chain_that_is_added_takes_no_unit_twice() {
    let mut world = world(166);
    for (units, word) in [
        (vec!["unit-x", "unit-x"], "twice"),
        (vec!["unit-x", "unit-00"], "in chain 1 already"),
        (vec!["unit-x", "unit-z"], "has not said hello"),
        (vec![], "0 were named"),
    ] {
        let why = declined(&mut world, &more(&units));
        assert!(why.contains(word), "{why}");
    }
    // It waits for all of them, and then comes; meanwhile they take no other place.
    world.deaf = vec![name("unit-y")];
    let change = more(&["unit-x", "unit-y"]);
    assert_eq!(
        report(&mut world, &change, false).stage,
        ChangeStage::UnderWay
    );
    world.run_for(3_000);
    assert_eq!(active(&mut world).len(), 2);
    let why = declined(&mut world, &add("unit-x", None));
    assert!(why.contains("about to take a place"), "{why}");
    world.deaf.clear();
    done(&mut world, &change);
    world.settle_and_check();
    // A unit of an older chain goes and comes back; then one of the new one.
    for unit in ["unit-00", "unit-y"] {
        world.down = vec![name(unit)];
        world.run_for(1_000);
        (0..20).for_each(|_| world.append());
        world.down.clear();
        world.run_for(3_000);
        world.settle_and_check();
    }
}

#[test]
fn decisions_that_were_not_recorded_stop_it() {
    let mut world = world(167);
    let change = add("unit-x", None);
    let dry_run = false;
    let now = world.now;
    let core = world.core();
    core.handle(now, CallId(7), LayoutRequest::Change { change, dry_run });
    let store = std::iter::from_fn(|| core.poll_effect()).find_map(|effect| match effect {
        crate::LayoutEffect::Store { id, .. } => Some(id),
        _ => None,
    });
    let why = "no space".to_owned();
    core.stored(now, store.expect("stored"), Err(why));
    assert!(core.facts()["state"].contains("no space"));
}

#[test]
fn operators_and_faults_meet() {
    for seed in 0..12 {
        let mut world = world(200 + seed);
        world.loss = 30;
        let mut dice = Dice(seed);
        for _ in 0..25 {
            let all = commands();
            let (change, _) = &all[usize::try_from(dice.below(all.len() as u64)).expect("few")];
            world.ask(
                CallId(5),
                LayoutRequest::Change {
                    change: change.clone(),
                    dry_run: dice.below(4) == 0,
                },
            );
            match dice.below(4) {
                0 => {
                    world.crash_core();
                    world.run_for(dice.below(300));
                    world.start_core();
                }
                1 => {
                    let servers = world.servers();
                    let any = dice.below(servers.len() as u64);
                    world.restart(&servers[usize::try_from(any).expect("few")]);
                }
                _ => {}
            }
            (0..5).for_each(|_| world.append());
            world.run_for(dice.below(2_000));
        }
        world.loss = 0;
        world.run_for(10_000);
        world.settle_and_check();
        assert!(world.store.history().epoch() > Epoch(1));
    }
}
