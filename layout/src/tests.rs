//! The whole procedure over a seeded network. Every failure names its seed or its step; the same one fails again.

mod copying;
mod leases;
mod operator;
mod origins;
mod refused;
mod restless;
mod resuming;
mod slowness;
mod unit;
mod world;

use std::time::Duration;

use milonga_protocol::messages::{
    CallId, Hello, LayoutRequest, LayoutResponse, Lease, Refusal, Response, SequencerRequest,
    SequencerResponse,
};
use milonga_protocol::{
    BackPointers, ClusterId, Epoch, Incarnation, ListEnd, Position, ServerName, StreamId, Time,
    UnitId, UnitIndex,
};

use unit::Unit;
use world::{SEQUENCER, World};

use crate::{LayoutEffect, StoreError};

fn opened(seed: u64) -> World {
    let mut world = World::new(seed, 2, 2);
    world.run_for(1_000);
    assert!(world.is_served(), "{:?}", world.core().facts());
    world
}

/// Two chains of one unit each: nobody can be done without.
fn single(seed: u64) -> World {
    let mut world = World::new(seed, 2, 1);
    world.run_for(1_000);
    assert!(world.is_served(), "{:?}", world.core().facts());
    world
}

/// One chain, which keeps `least` replicas, whatever happens.
fn needy(seed: u64, replicas: usize, least: u16) -> World {
    let mut world = World::new(seed, 1, replicas);
    world.plan = world.plan.with_min_replicas(least);
    world.start_core();
    world.run_for(1_000);
    assert!(world.is_served(), "{:?}", world.core().facts());
    world
}

fn name(name: &str) -> ServerName {
    name.into()
}

fn epoch(world: &World) -> u64 {
    world.store.history().epoch().0
}

fn state(world: &mut World) -> String {
    world.core().facts()["state"].clone()
}

/// Until the layout server does what begins with these words.
fn until(world: &mut World, words: &str) {
    for _ in 0..10_000 {
        if state(world).starts_with(words) {
            return;
        }
        world.run_for(1);
    }
    panic!("{words} is not to be seen: {}", state(world));
}

#[test]
fn genesis_makes_epoch_1() {
    let mut world = opened(1);
    let published = world.core().published_layout().expect("served");
    assert_eq!(published.layout.epoch, Epoch(1));
    assert_eq!(published.layout.start, Position::ZERO);
    assert_eq!(published.layout.segments[0].chains.len(), 2);
    assert_eq!(published.addresses[&name("unit-00")], "unit-00:1");
    assert_eq!(world.core().cluster(), Some(published.layout.cluster));
    for unit in world.units.values() {
        assert_eq!(world.store.history().opened(unit.id), Some(Epoch(1)));
    }
    world.heal_and_check();
}

#[test]
fn what_starts_together_shares_one_reconfiguration() {
    let mut world = opened(2);
    for _ in 0..20 {
        world.append();
    }
    for server in world.servers() {
        world.restart(&server);
    }
    world.heal_and_check();
    assert_eq!(epoch(&world), 2);
    // Everything at once, the layout server included.
    world.crash_core();
    for server in world.servers() {
        world.restart(&server);
    }
    world.heal_and_check();
    assert_eq!(epoch(&world), 3);
}

#[test]
fn nothing_is_sealed_before_all_are_heard_of() {
    let mut world = World::new(3, 2, 2);
    world.down = vec![name("unit-11"), name(SEQUENCER)];
    world.run_for(5_000);
    let words = state(&mut world);
    assert!(
        words.contains("waiting for unit-11, sequencer-1"),
        "{words}"
    );
    assert_eq!(world.effects, 0);
    world.down.clear();
    world.heal_and_check();
    // A unit that only pauses is not missed by anybody.
    world.down = vec![name("unit-00")];
    world.run_for(200);
    world.down.clear();
    world.run_for(5_000);
    assert_eq!(epoch(&world), 1);
    // A whole chain that is away while another unit returns is waited for, and the published layout stays.
    world.down = vec![name("unit-00"), name("unit-01")];
    world.run_for(4_000);
    assert_eq!(epoch(&world), 1);
    world.restart(&name("unit-10"));
    world.run_for(4_000);
    assert_eq!(epoch(&world), 1);
    let words = state(&mut world);
    assert!(words.contains("waiting for unit-00, unit-01"), "{words}");
    assert!(world.core().published_layout().is_some());
    assert_eq!(world.units[&name("unit-11")].serves(), Epoch(1));
    world.heal_and_check();
    assert_eq!(epoch(&world), 2);
}

/// Names of the chains' units, head first, segment by segment, and how many are joining.
fn chains(world: &mut World) -> Vec<(Vec<Vec<String>>, usize)> {
    let layout = world.core().published_layout().expect("served").layout;
    let unit = |unit: &UnitIndex| layout.unit(*unit).name.to_string();
    let chain = |chain: &Vec<UnitIndex>| chain.iter().map(unit).collect();
    let segments = layout.segments.iter();
    let segments = segments.map(|s| (s.chains.iter().map(chain).collect(), s.joining.len()));
    segments.collect()
}

#[test]
fn a_unit_that_is_gone_is_given_up_and_taken_in_again() {
    let mut world = opened(40);
    (0..40).for_each(|_| world.append());
    let before = world.acked.len();
    world.down = vec![name("unit-00")];
    world.run_for(700);
    assert_eq!(epoch(&world), 2, "within 0.7 s");
    let two = vec![
        vec!["unit-01".into()],
        vec!["unit-10".into(), "unit-11".into()],
    ];
    assert_eq!(chains(&mut world), [(two, 0)]);
    let facts = world.core().facts();
    assert_eq!(facts["reduced redundancy"], "chain 1 has 1 of 2 replicas");
    assert!(
        facts["out"].starts_with("unit-00: says nothing"),
        "{facts:?}"
    );
    (0..40).for_each(|_| world.append());
    assert!(world.acked.len() > before + 10, "appends go on");
    // Nobody waits for it, and it comes back behind the others.
    world.restart(&name("unit-11"));
    world.run_for(500);
    assert_eq!(epoch(&world), 3);
    world.down.clear();
    world.heal_and_check();
    let chain = |names: [&str; 2]| names.map(String::from).to_vec();
    let two = vec![chain(["unit-01", "unit-00"]), chain(["unit-10", "unit-11"])];
    assert_eq!(chains(&mut world), [(two, 0)]);
}

#[test]
fn a_spare_takes_the_place_of_who_does_not_come_back() {
    let mut world = opened(41);
    world.add_spare("unit-3");
    (0..40).for_each(|_| world.append());
    let before = epoch(&world);
    world.down = vec![name("unit-10")];
    world.run_for(9_000);
    assert_eq!(epoch(&world), before + 1, "its place is kept for a while");
    world.run_for(6_000);
    world.down.clear();
    world.heal_and_check();
    let [(two, 0)] = &chains(&mut world)[..] else {
        panic!("still joining");
    };
    assert_eq!(two[1], ["unit-11", "unit-3"]);
    let facts = world.core().facts();
    assert!(
        facts["out"].contains("unit-10: waiting for a place"),
        "{facts:?}"
    );
}

#[test]
fn a_spare_that_does_not_answer_lets_the_next_one_go_first() {
    let mut world = opened(46);
    for spare in ["unit-3", "unit-4"] {
        world.add_spare(spare);
    }
    (0..40).for_each(|_| world.append());
    world.deaf = vec![name("unit-3")];
    world.down = vec![name("unit-10")];
    world.run_for(20_000);
    let chains = chains(&mut world);
    let (active, joining) = &chains[chains.len() - 1];
    assert_eq!(
        (&active[1][..], *joining),
        (&["unit-11".into(), "unit-4".into()][..], 0)
    );
}

/// After a partition a unit may be reached before it is heard again: its last hello is older than what it entered since.
#[test]
fn an_old_hello_of_who_entered_ends_no_epoch() {
    let mut world = opened(59);
    world.mute = vec![name("unit-01")];
    let before = epoch(&world);
    for _ in 0..2 {
        world.restart(&name(SEQUENCER));
        world.run_for(150);
    }
    assert_eq!(epoch(&world), before + 2);
    world.mute.clear();
    world.heal_and_check();
}

/// Who says hello is not waited for to do so.
#[test]
fn why_a_unit_that_is_waited_for_cannot_take_part_is_said() {
    let mut world = opened(58);
    for unit in ["unit-00", "unit-01"].map(name) {
        world.units.get_mut(&unit).unwrap().poisoned = true;
    }
    world.run_for(500);
    world.restart(&name(SEQUENCER));
    world.run_for(2_000);
    let state = state(&mut world);
    assert!(
        state.starts_with("waiting for unit-00, unit-01, because ")
            && state.contains("; unit-01: its disk failed"),
        "{state}"
    );
    for unit in ["unit-00", "unit-01"] {
        world.restart(&name(unit));
    }
    world.heal_and_check();
}

#[test]
fn who_goes_up_and_down_is_kept_out_for_longer_and_longer() {
    let mut world = opened(42);
    for _ in 0..12 {
        world.down = vec![name("unit-00")];
        world.run_for(1_000);
        world.down.clear();
        world.run_for(1_000);
    }
    // Each time it is given up and comes back, that is three epochs.
    assert!(epoch(&world) < 20, "{} epochs", epoch(&world));
    world.run_for(60_000);
    world.heal_and_check();
}

#[test]
fn who_comes_back_takes_over_from_who_goes_while_sealing() {
    for seed in 0..10 {
        let mut world = World::new(60 + seed, 1, 2);
        world.run_for(1_000);
        while world.acked.len() < 10 {
            world.append();
        }
        // One is given up; the other goes as soon as it is alone, and the first comes back.
        world.down = vec![name("unit-00")];
        let until = world.now.after(Duration::from_secs(3));
        let mut gone = false;
        world.run_until(until, |world| {
            let alone = world.core().facts()["state"].starts_with("sealing");
            if alone && !gone {
                gone = true;
                world.down = vec![name("unit-01")];
            }
        });
        assert!(gone, "it never came to that");
        assert!(epoch(&world) >= 2, "{}", state(&mut world));
        world.heal_and_check();
    }
}

#[test]
fn a_chain_keeps_as_many_replicas_as_the_policy_says() {
    let mut world = needy(43, 3, 2);
    world.down = vec![name("unit-00")];
    world.run_for(2_000);
    assert_eq!(epoch(&world), 2);
    world.down.push(name("unit-01"));
    world.run_for(5_000);
    assert_eq!(epoch(&world), 2);
    world.down.clear();
    world.heal_and_check();
}

#[test]
fn who_says_hello_and_does_nothing_is_given_up() {
    let mut world = opened(44);
    (0..20).for_each(|_| world.append());
    world.deaf = vec![name("unit-01")];
    world.restart(&name("unit-10"));
    world.run_for(3_000);
    assert_eq!(epoch(&world), 2);
    assert!(world.core().facts()["out"].contains("unit-01"));
    world.deaf.clear();
    world.heal_and_check();
}

#[test]
fn a_report_of_a_sealed_epoch_counts_once() {
    let mut world = opened(4);
    let report = |world: &mut World, epoch| {
        let (now, epoch) = (world.now, Epoch(epoch));
        let report = LayoutRequest::ReportSealed { epoch };
        world.core().handle(now, CallId(0), report);
    };
    report(&mut world, 1);
    report(&mut world, 1);
    world.run_for(2);
    report(&mut world, 1);
    world.heal_and_check();
    assert_eq!(epoch(&world), 2);
    for other in [0, 1, 3] {
        report(&mut world, other);
    }
    world.heal_and_check();
    assert_eq!(epoch(&world), 2);
}

#[test]
fn a_unit_that_silently_stopped_serving_is_noticed() {
    let mut world = opened(5);
    // Same run, but it serves nothing.
    world.units.get_mut(&name("unit-01")).unwrap().restart();
    world.run_for(3_000);
    world.heal_and_check();
    assert_eq!(epoch(&world), 2);
}

#[test]
fn gets_wait_for_the_next_layout() {
    let mut world = World::new(6, 1, 1);
    let get = |world: &mut World, call, known, wait_ms| {
        let (now, known) = (world.now, Epoch(known));
        let request = LayoutRequest::Get { known, wait_ms };
        world.core().handle(now, CallId(call), request);
    };
    let answers = |world: &mut World| {
        world.run_for(0);
        let epoch = |response| match response {
            Response::Layout(LayoutResponse::Layout(published)) => published.layout.epoch.0,
            Response::Layout(LayoutResponse::Waiting { why }) => {
                assert!(!why.is_empty());
                0
            }
            other => panic!("{other:?}"),
        };
        let replies = std::mem::take(&mut world.replies).into_iter();
        replies
            .map(|(call, r)| (call.0, epoch(r)))
            .collect::<Vec<_>>()
    };
    world.down = world.servers();
    get(&mut world, 1, 0, 0);
    get(&mut world, 2, 0, 100);
    get(&mut world, 3, 0, 60_000);
    world.run_for(1);
    assert_eq!(answers(&mut world), [(1, 0)]);
    world.run_for(200);
    assert_eq!(answers(&mut world), [(2, 0)]);
    world.down.clear();
    world.run_for(1_500);
    assert_eq!(answers(&mut world), [(3, 1)]);
    get(&mut world, 4, 0, 100);
    get(&mut world, 5, 1, 60_000);
    world.run_for(1_000);
    assert_eq!(answers(&mut world), [(4, 1)]);
    world.restart(&name("unit-00"));
    world.run_for(500);
    assert_eq!(answers(&mut world), [(5, 2)]);
}

#[test]
fn an_embedded_log_opens_without_waiting() {
    let mut world = World::new(7, 1, 1);
    world.plan.lease = Lease::DirectoryLock;
    world.start_core();
    world.run_for(30);
    assert!(world.is_served(), "{}", state(&mut world));
    world.heal_and_check();
}

// ------------------------------------------------------------------------------------------------- losses

/// What a sequencer of the newest epoch says of `stream`.
fn tail(world: &mut World, stream: StreamId) -> BackPointers {
    let epoch = Epoch(epoch(world));
    let streams = vec![stream];
    match world.ask_sequencer(SequencerRequest::Tail { epoch, streams }) {
        Response::Sequencer(SequencerResponse::Tail(answer)) => answer.streams[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_whose_only_entry_is_lost_does_not_look_empty() {
    for replicas in 1..3 {
        let mut world = World::new(18, 2, replicas);
        world.run_for(1_000);
        while world.acked.len() < 4 {
            world.append();
        }
        let (position, stream) = world.lose_stream();
        for round in 0..2 {
            for server in world.servers() {
                world.restart(&server);
            }
            world.heal_and_check();
            let list = tail(&mut world, stream);
            assert_eq!(list.last(), Some(position), "round {round}: {list:?}");
            assert_eq!(list.end(), ListEnd::Unknown);
            let damaged = world.core().facts()["damaged below"].clone();
            assert!(
                damaged.starts_with(&position.next().to_string()),
                "{damaged}"
            );
        }
        for unit in world.units.values_mut() {
            unit.trim(position.next());
        }
        world.restart(&name(SEQUENCER));
        world.heal_and_check();
        let below = BackPointers::none(ListEnd::BelowTrim);
        assert_eq!(tail(&mut world, stream), below);
    }
}

#[test]
fn what_one_replica_lost_counts_from_the_other() {
    for seed in 0..20 {
        let mut world = opened(30 + seed);
        while world.acked.len() < 4 {
            world.append();
        }
        let (position, stream) = world.lose(false).expect("acknowledged");
        for server in world.servers() {
            world.restart(&server);
        }
        world.heal_and_check();
        let list = tail(&mut world, stream);
        assert!(list.last() >= Some(position), "{list:?}");
        let layout = world.core().published_layout().unwrap().layout;
        let holders = layout.chain(position).iter();
        let holders = holders.filter(|u| {
            let unit = &world.units[&layout.unit(**u).name];
            unit.cells.contains_key(&position)
        });
        assert!(holders.count() > 0);
        // What was given back is no damage any more.
        world.run_for(2_000);
        let facts = world.core().facts();
        assert_eq!(facts.get("damaged below"), None, "seed {seed}");
    }
}

// ------------------------------------------------------------------------------------ faults at every step

/// Runs a restart of everything with `fault` at the `n`th effect; says whether there were that many.
fn at_effect(seed: u64, n: u64, fault: impl Fn(&mut World)) -> bool {
    let mut world = opened(seed);
    for _ in 0..30 {
        world.append();
    }
    for server in world.servers() {
        world.restart(&server);
    }
    let (first, mut done) = (world.effects, false);
    let until = world.now.after(Duration::from_secs(1));
    world.run_until(until, |world| {
        if !done && world.effects - first >= n {
            done = true;
            fault(world);
        }
    });
    println!("seed {seed}, step {n}");
    world.heal_and_check();
    done
}

#[test]
fn the_leader_may_crash_between_any_two_effects() {
    let mut n = 0;
    while at_effect(20 + n, n, |world| {
        world.crash_core();
        world.start_core();
    }) {
        n += 1;
    }
    assert!(n > 30, "only {n} steps");
}

#[test]
fn genesis_may_be_cut_anywhere() {
    for n in 0..40 {
        println!("step {n}");
        let mut world = World::new(n, 2, 2);
        let until = Time::from_start(Duration::from_secs(1));
        let mut done = false;
        world.run_until(until, |world| {
            if !done && world.effects >= n {
                done = true;
                world.crash_core();
                world.start_core();
            }
        });
        world.heal_and_check();
    }
}

#[test]
fn any_server_may_restart_in_any_phase() {
    for server in ["unit-00", "unit-11", SEQUENCER] {
        let mut n = 0;
        while at_effect(n, n, |world| world.restart(&name(server))) {
            n += 1;
        }
        assert!(n > 30, "only {n} steps");
    }
}

#[test]
fn faults_of_all_kinds_are_survived() {
    for seed in 0..150 {
        println!("seed {seed}");
        let mut world = World::new(seed, 1 + (seed % 3) as usize, 1 + (seed / 3 % 3) as usize);
        world.loss = [0, 20, 5][usize::try_from(seed % 3).unwrap()];
        for _ in 0..60 {
            let ms = 1 + world.dice.below(300);
            world.run_for(ms);
            let servers = world.servers();
            let any = usize::try_from(world.dice.below(servers.len() as u64)).unwrap();
            match world.dice.below(18) {
                0 | 1 => world.restart(&servers[any]),
                2 => {
                    world.crash_core();
                    world.start_core();
                }
                3 => world.crash_core(),
                4 => servers.iter().for_each(|server| world.restart(server)),
                5 => world.down = vec![servers[any].clone()],
                6 => world.down.clear(),
                7 => world.trim(),
                8 => drop(world.lose(seed % 2 == 0)),
                _ => (0..10).for_each(|_| world.append()),
            }
            if world.core.is_none() && world.dice.below(3) == 0 {
                world.start_core();
            }
        }
        world.heal_and_check();
    }
}
