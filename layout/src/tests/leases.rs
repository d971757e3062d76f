//! Rule 20: who gets a lease, and how long the next sequencer waits for it.

use std::time::Duration;

use milonga_protocol::Incarnation;
use milonga_protocol::change::ClusterChange;
use milonga_protocol::messages::Renewal;

use super::world::SECOND_SEQUENCER;
use super::*;

/// What a lease of 300 ms may last at most by the leader's clock, and the longest.
const SURELY_OVER: Duration = Duration::from_millis(325);
const LONGEST_OVER: Duration = Duration::from_millis(430);
const RENEW: CallId = CallId(20);

/// At rest in epoch 1 or 2, with a spare sequencer, and leases of 300 ms.
fn leasing(seed: u64) -> World {
    let mut world = opened(seed);
    world.plan = world.plan.clone().with_lease_ms(300);
    world.add_sequencer();
    assert!(world.core().is_idle());
    world
}

/// The sequencer of the newest epoch, or another one, asks for a lease; what it is told at once.
fn ask(world: &mut World, name: &str, run: u128, epoch: u64) -> Option<u32> {
    world.replies.clear();
    let renewal = Renewal {
        name: name.into(),
        incarnation: Incarnation(run),
        epoch: Epoch(epoch),
    };
    world.ask(RENEW, LayoutRequest::Renew(renewal));
    told(world)
}

fn told(world: &World) -> Option<u32> {
    world.replies.iter().find_map(|reply| match reply {
        (RENEW, Response::Layout(LayoutResponse::Lease { lasts_ms })) => Some(*lasts_ms),
        _ => None,
    })
}

/// It asks, and a majority confirms the leader.
fn leased(world: &mut World) -> Time {
    let epoch = epoch(world);
    let asked = world.now;
    assert_eq!(
        ask(world, SEQUENCER, 1, epoch),
        None,
        "a majority is asked first"
    );
    world.run_for(5);
    assert_eq!(told(world), Some(300));
    asked
}

fn move_to_second(world: &mut World) {
    let change = ClusterChange::MoveSequencer {
        to: SECOND_SEQUENCER.into(),
    };
    let dry_run = false;
    world.ask(CallId(21), LayoutRequest::Change { change, dry_run });
}

/// When the second sequencer first grants tokens, if it does within a second.
fn grants_at(world: &mut World) -> Option<Time> {
    let (until, mut at) = (world.now.after(Duration::from_secs(1)), None);
    world.run_until(until, |world| {
        let second = &world.sequencers[&name(SECOND_SEQUENCER)];
        if second.facts()["state"] == "serving" {
            at.get_or_insert(world.now);
        }
    });
    at
}

#[test]
fn a_lease_is_given_to_the_sequencer_of_the_newest_epoch_by_a_confirmed_leader() {
    let mut world = leasing(80);
    leased(&mut world);
    assert!(world.core().facts()["lease"].contains("sequencer-1 may hold one"));
    let epoch = epoch(&world);
    for (name, run, epoch) in [
        (SEQUENCER, 2, epoch),
        (SEQUENCER, 1, epoch - 1),
        (SEQUENCER, 1, epoch + 1),
        (SECOND_SEQUENCER, 1, epoch),
    ] {
        assert_eq!(ask(&mut world, name, run, epoch), Some(0));
    }
    world.leads = false;
    assert_eq!(ask(&mut world, SEQUENCER, 1, epoch), None);
    world.run_for(5);
    assert_eq!(told(&world), Some(0), "deposed");
    // It leads again, and another member has led in between.
    world.replies.clear();
    (world.leads, world.elsewhere) = (true, Some(Epoch(epoch + 1)));
    assert_eq!(ask(&mut world, SEQUENCER, 1, epoch), None);
    world.run_for(5);
    assert_eq!(told(&world), Some(0), "there is a newer epoch");
    world.replies.clear();
    world.elsewhere = None;
    assert_eq!(ask(&mut world, SEQUENCER, 1, epoch), None);
    world.run_for(5);
    assert!(told(&world) > Some(0), "{:?}", told(&world));
}

#[test]
fn nothing_is_renewed_from_the_begin_of_a_reconfiguration_on() {
    let mut world = leasing(81);
    let epoch = epoch(&world);
    assert_eq!(ask(&mut world, SEQUENCER, 1, epoch), None);
    // While the majority is asked.
    world.ask(
        CallId(22),
        LayoutRequest::ReportSealed {
            epoch: Epoch(epoch),
        },
    );
    let later = ask(&mut world, SEQUENCER, 1, epoch);
    assert_eq!(later, Some(0));
    world.replies.clear();
    world.run_for(5);
    assert_eq!(told(&world), Some(0));
}

#[test]
fn the_next_sequencer_waits_until_the_lease_has_surely_run_out() {
    let mut world = leasing(82);
    let asked = leased(&mut world);
    // It says hello, and confirms nothing.
    world.deaf = vec![name(SEQUENCER)];
    move_to_second(&mut world);
    let at = grants_at(&mut world).expect("the lease runs out");
    let waited = at.since(asked);
    assert!(waited >= SURELY_OVER, "{waited:?}");
    assert!(
        waited < SURELY_OVER + Duration::from_millis(20),
        "{waited:?}"
    );
}

#[test]
fn it_does_not_wait_for_who_confirms_that_it_was_sealed() {
    let mut world = leasing(83);
    leased(&mut world);
    let began = world.now;
    move_to_second(&mut world);
    let at = grants_at(&mut world).expect("moved").since(began);
    // A little is the pause for others that may come together.
    assert!(at < Duration::from_millis(100), "{at:?}");
    let first = world.sequencers[&name(SEQUENCER)].facts();
    assert!(first["state"].starts_with("sealed"), "{first:?}");
}

#[test]
fn a_new_leader_waits_for_what_the_one_before_may_have_given() {
    let mut world = leasing(84);
    leased(&mut world);
    world.take_over();
    let began = world.now;
    world.run_for(250);
    assert!(world.core().is_idle(), "{:?}", world.core().facts());
    world.deaf = vec![name(SEQUENCER)];
    move_to_second(&mut world);
    let waited = grants_at(&mut world).expect("at last").since(began);
    assert!(waited >= LONGEST_OVER, "{waited:?}");
}

#[test]
fn another_run_of_the_same_process_does_not_speak_for_the_one_before() {
    let mut world = leasing(85);
    let asked = leased(&mut world);
    world.restart(&name(SEQUENCER));
    move_to_second(&mut world);
    let waited = grants_at(&mut world).expect("at last").since(asked);
    assert!(waited >= SURELY_OVER, "{waited:?}");
}

#[test]
fn a_silent_sequencer_is_replaced_as_fast_as_without_leases() {
    let failover = |lease_ms| {
        let mut world = leasing(86);
        world.plan = world.plan.clone().with_lease_ms(lease_ms);
        world.take_over();
        world.run_for(1_000);
        if lease_ms > 0 {
            leased(&mut world);
        }
        world.down = vec![name(SEQUENCER)];
        let began = world.now;
        grants_at(&mut world).expect("failed over").since(began)
    };
    let (with, without) = (failover(300), failover(0));
    let slack = Duration::from_millis(10);
    assert!(with < without + slack, "{with:?} and {without:?}");
}

#[test]
fn the_same_run_goes_on_at_once_in_the_next_epoch() {
    let mut world = leasing(87);
    leased(&mut world);
    let before = epoch(&world);
    world.ask(
        CallId(22),
        LayoutRequest::ReportSealed {
            epoch: Epoch(before),
        },
    );
    let began = world.now;
    let mut served = None;
    world.run_until(began.after(Duration::from_millis(300)), |world| {
        let facts = world.sequencers[&name(SEQUENCER)].facts();
        if facts["state"] == "serving" && facts["epoch"] != before.to_string() {
            served.get_or_insert(world.now);
        }
    });
    let took = served.expect("a new epoch").since(began);
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn where_leases_are_switched_off_nobody_gets_one() {
    let mut world = opened(88);
    let epoch = epoch(&world);
    assert_eq!(ask(&mut world, SEQUENCER, 1, epoch), Some(0));
    assert_eq!(world.core().facts()["lease"], "switched off");
}
