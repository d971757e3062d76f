//! The executor by itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;

const SECOND: Moment = Moment(1_000_000_000);

fn executor(seed: u64, order: Order) -> Executor {
    Executor::new(seed, order, Duration::ZERO, Trace::new(false))
}

fn process(executor: &Executor, name: &str) -> ProcessId {
    executor.start(1, name, Duration::ZERO, NOMINAL)
}

/// Counts the seconds of a process.
fn ticker(executor: &Executor, process: ProcessId) -> Arc<AtomicU64> {
    let (ticks, env) = (Arc::new(AtomicU64::new(0)), executor.env(process));
    let count = Arc::clone(&ticks);
    let tick = async move {
        loop {
            env.sleep(Duration::from_secs(1)).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    };
    executor.spawn(process, "ticker", Box::pin(tick)).detach();
    ticks
}

fn run(executor: &Executor, seconds: u64) {
    let until = Moment(SECOND.0 * seconds + SECOND.0 / 2);
    executor.run_until(until).unwrap();
}

#[test]
fn time_jumps_from_timer_to_timer_for_each_clock_at_its_rate() {
    let executor = executor(1, Order::Random);
    let plain = ticker(&executor, process(&executor, "plain"));
    let fast = executor.start(1, "fast", Duration::from_secs(77), 2 * NOMINAL);
    let ticks = ticker(&executor, fast);
    run(&executor, 10);
    assert_eq!(plain.load(Ordering::Relaxed), 10);
    assert_eq!(ticks.load(Ordering::Relaxed), 21);
    executor.change_clock(fast, Duration::from_secs(100), 0);
    run(&executor, 20);
    assert_eq!(
        ticks.load(Ordering::Relaxed),
        22,
        "one long sleep ended, then it stood still"
    );
    executor.heal_clock(fast);
    run(&executor, 30);
    assert_eq!(ticks.load(Ordering::Relaxed), 32);
}

#[test]
fn a_paused_process_waits_and_a_dead_one_is_gone_with_all_it_held() {
    let executor = executor(1, Order::Fifo);
    let (a, b) = (process(&executor, "a"), process(&executor, "b"));
    let (ticks, others) = (ticker(&executor, a), ticker(&executor, b));
    let called = Arc::new(AtomicU64::new(0));
    let call = Arc::clone(&called);
    executor.schedule(SECOND, a, move || {
        call.fetch_add(1, Ordering::Relaxed);
    });
    executor.pause(a);
    run(&executor, 3);
    assert_eq!(
        (
            ticks.load(Ordering::Relaxed),
            called.load(Ordering::Relaxed)
        ),
        (0, 0)
    );
    executor.resume(a);
    run(&executor, 5);
    assert_eq!(
        (
            ticks.load(Ordering::Relaxed),
            called.load(Ordering::Relaxed)
        ),
        (2, 1)
    );
    executor.schedule(Moment(u64::MAX), a, || ());
    executor.kill(a);
    run(&executor, 9);
    assert_eq!(
        (
            ticks.load(Ordering::Relaxed),
            others.load(Ordering::Relaxed)
        ),
        (2, 9)
    );
    assert_eq!(Arc::strong_count(&ticks), 1, "the task was dropped");
    assert!(!executor.is_alive(a) && executor.is_alive(b));
}

#[test]
fn a_stopped_task_is_dropped_also_by_itself() {
    let executor = executor(1, Order::Lifo);
    let a = process(&executor, "a");
    let place: Arc<Mutex<Option<Task>>> = Arc::default();
    let held = Arc::clone(&place);
    let suicide = async move {
        drop(held.lock().unwrap().take());
        std::future::pending::<()>().await;
    };
    *place.lock().unwrap() = Some(executor.spawn(a, "suicide", Box::pin(suicide)));
    run(&executor, 1);
    assert_eq!(Arc::strong_count(&place), 1);
}

#[test]
fn the_seed_draws_the_order_and_the_trace_shows_it() {
    let order = |seed, order| {
        let executor = executor(seed, order);
        let ran: Arc<Mutex<Vec<u32>>> = Arc::default();
        let a = process(&executor, "a");
        for n in 0..8 {
            let ran = Arc::clone(&ran);
            let task = async move { ran.lock().unwrap().push(n) };
            executor.spawn(a, "task", Box::pin(task)).detach();
        }
        run(&executor, 1);
        let ran = ran.lock().unwrap().clone();
        (ran, executor.with_trace(|trace| trace.hash()))
    };
    assert_eq!(order(1, Order::Fifo).0, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(order(1, Order::Lifo).0, [7, 6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(order(1, Order::Random), order(1, Order::Random));
    assert_ne!(order(1, Order::Random), order(2, Order::Random));
}

#[test]
fn a_panic_and_an_endless_loop_are_errors_that_name_the_task() {
    let failed = |future: BoxFuture<'static, ()>| {
        crate::world::catch_quietly(|| {
            let executor = executor(1, Order::Random);
            let a = process(&executor, "unit-1a");
            executor.spawn(a, "host", future).detach();
            executor.run_until(SECOND).unwrap_err().to_string()
        })
    };
    let text = failed(Box::pin(async { panic!("no {}", "way") }));
    assert!(
        text.starts_with("unit-1a (host) panicked: no way at "),
        "{text}"
    );
    let busy = std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    let text = failed(Box::pin(busy));
    assert!(text.starts_with("unit-1a (host) was polled"), "{text}");
}
