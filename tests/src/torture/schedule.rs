//! What a seed draws: who is killed or stopped, when and for how long.

use std::fmt;
use std::time::Duration;

use crate::world::Rng;

/// All processes.
pub(super) const NAMES: [&str; 10] = [
    "layout-1",
    "layout-2",
    "layout-3",
    "sequencer-1",
    "sequencer-2",
    "unit-1a",
    "unit-1b",
    "unit-2a",
    "unit-2b",
    "unit-3a",
];

/// The members of the layout.
pub(super) const LAYOUTS: [&str; 3] = ["layout-1", "layout-2", "layout-3"];
/// The chains at the beginning; `unit-3a` is the spare.
pub(super) const CHAINS: [[&str; 2]; 2] = [["unit-1a", "unit-1b"], ["unit-2a", "unit-2b"]];
/// The unit in no chain.
pub(super) const SPARE: &str = "unit-3a";

/// Stands for every unit.
const ALL_UNITS: &str = "all units";

/// How a process is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// SIGKILL, and later it is started again.
    Kill,
    /// SIGSTOP, and later SIGCONT.
    Stop,
    /// Of all units at once: what they have not synced is gone.
    PowerCut,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "SIGKILL",
            Self::Stop => "SIGSTOP",
            Self::PowerCut => "power cut",
        })
    }
}

/// One process, hurt once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strike {
    pub(super) victim: &'static str,
    pub(super) how: How,
    /// After the beginning of the round.
    pub(super) after: Duration,
    pub(super) lasts: Duration,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (after, lasts) = (self.after.as_millis(), self.lasts.as_millis());
        write!(
            f,
            "{} {} after {after} ms for {lasts} ms",
            self.victim, self.how
        )
    }
}

/// One or two victims, or one twice, just when it has come back. Whoever is hurt is back before the round ends, so no
/// chain loses all replicas for good.
pub(super) fn draw(rng: &mut Rng) -> Vec<Strike> {
    let first = one(rng);
    let mut other = one(rng);
    match rng.below(100) {
        0..40 => return vec![first],
        40..55 => {
            other.victim = first.victim;
            other.after = first.after + first.lasts + Duration::from_millis(rng.between(10, 600));
        }
        55..75 => other.after = first.after,
        _ => {}
    }
    while other.victim == first.victim && other.after < first.after + first.lasts {
        other.victim = NAMES[rng.index(NAMES.len())];
    }
    vec![first, other]
}

/// All units lose power at once.
pub(super) fn power_cut(rng: &mut Rng) -> Vec<Strike> {
    vec![Strike {
        victim: ALL_UNITS,
        how: How::PowerCut,
        after: Duration::from_millis(rng.between(200, 1_500)),
        lasts: Duration::from_millis(rng.between(100, 1_000)),
    }]
}

fn one(rng: &mut Rng) -> Strike {
    Strike {
        victim: NAMES[rng.index(NAMES.len())],
        how: *rng.pick(&[How::Kill, How::Stop]),
        after: Duration::from_millis(rng.between(200, 1_000)),
        lasts: Duration::from_millis(match rng.below(3) {
            0 => rng.between(100, 700),
            _ => rng.between(700, 2_500),
        }),
    }
}

/// What is done in a round, in order: fault number, and whether it begins or ends.
pub(super) fn steps(faults: &[Strike]) -> Vec<(Duration, usize, bool)> {
    let numbered = faults.iter().enumerate();
    let mut steps: Vec<_> = numbered
        .flat_map(|(n, f)| [(f.after, n, true), (f.after + f.lasts, n, false)])
        .collect();
    steps.sort_unstable();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_everything_is_drawn() {
        let all = |seed| {
            let mut rng = Rng::new(seed, "rounds");
            (0..300).map(|_| draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
        let rounds = all(1);
        assert!(rounds.iter().all(|faults| (1..=2).contains(&faults.len())));
        assert!(
            rounds
                .iter()
                .any(|f| f.len() == 2 && f[0].after == f[1].after)
        );
        for name in NAMES {
            for how in [How::Kill, How::Stop] {
                let mut faults = rounds.iter().flatten();
                assert!(faults.any(|fault| fault.victim == name && fault.how == how));
            }
        }
    }

    #[test]
    fn steps_come_in_order_and_nobody_is_hurt_twice_at_once() {
        let mut rng = Rng::new(3, "rounds");
        for faults in std::iter::repeat_with(|| draw(&mut rng)).take(300) {
            let steps = steps(&faults);
            assert!(steps.is_sorted());
            for n in 0..faults.len() {
                let of = |begins| steps.iter().position(|(_, m, b)| (*m, *b) == (n, begins));
                assert!(of(true).expect("begins") < of(false).expect("ends"));
            }
            if let [first, other] = faults[..]
                && first.victim == other.victim
            {
                assert!(first.after + first.lasts <= other.after);
            }
        }
    }
}
