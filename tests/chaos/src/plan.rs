//! What is done to a machine, one fault after the other: all of it follows from a seed.

use crate::services::Service;
use crate::shapes::{SHAPES, Shape};
use check::rng::Rng;
use std::fmt;
use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Links are cut, replicas stopped, services killed.
    Shape(Shape),
    /// The primary is killed (SIGKILL).
    KillPrimary,
    /// The backup is killed.
    KillBackup,
    /// The replica that waits is killed.
    KillSpare,
    /// The primary is killed, and then the new backup, while it is given the machine.
    KillJoiner,
    /// The arbiter is killed, and started again.
    KillArbiter,
    /// The viewservice is killed, and started again.
    KillViews,
}

impl Fault {
    /// All there are.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let kills = [
            Self::KillPrimary,
            Self::KillBackup,
            Self::KillSpare,
            Self::KillJoiner,
            Self::KillArbiter,
            Self::KillViews,
        ];
        SHAPES.map(Self::Shape).into_iter().chain(kills).collect()
    }

    /// The service that is killed for it, if one is.
    #[must_use]
    pub fn service(self) -> Option<Service> {
        match self {
            Self::KillArbiter | Self::Shape(Shape::ArbiterKilled) => Some(Service::Arbiter),
            Self::KillViews | Self::Shape(Shape::ViewsKilled) => Some(Service::Views),
            _ => None,
        }
    }

    /// The longest time that it lasts, in milliseconds; some last that long, most a part of it.
    fn longest_ms(self, rng: &mut Rng) -> u64 {
        let of: &[u64] = match self {
            // Most often for no longer than the other may wonder.
            Self::Shape(Shape::PrimaryStops | Shape::BackupStops) => &[400, 400, 1_500, 10_000],
            Self::Shape(Shape::Flapping) => &[3_000],
            Self::Shape(_) | Self::KillArbiter | Self::KillViews => &[400, 1_500, 3_000],
            // How long after the beginning of the join the new backup dies.
            Self::KillJoiner => &[150],
            Self::KillPrimary | Self::KillBackup | Self::KillSpare => return 0,
        };
        of[usize::try_from(rng.below(of.len() as u64)).unwrap_or(0)]
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(shape) => write!(f, "{shape:?}"),
            kill => write!(f, "{kill:?}"),
        }
    }
}

/// A fault and its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long the machine is left alone before.
    pub calm: Duration,
    /// What is done.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
}

/// All faults, endlessly: each kind once, in a random order, then each kind once more, and so on.
pub struct Plan {
    rng: Rng,
    deck: Vec<Fault>,
}

impl Plan {
    /// The plan of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed, 2),
            deck: Vec::new(),
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = Fault::all();
        }
        let left = self.deck.len() as u64;
        let nth = usize::try_from(self.rng.below(left)).unwrap_or(0);
        let fault = self.deck.swap_remove(nth);
        let calm = Duration::from_millis(self.rng.below(700));
        let longest_us = fault.longest_ms(&mut self.rng) * 1_000;
        let lasts = Duration::from_micros(self.rng.below(longest_us.max(1)));
        Some(Step { calm, fault, lasts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_seed_has_one_plan_and_each_kind_of_fault_is_in_it() {
        let of = |seed| {
            Plan::new(seed)
                .take(2 * Fault::all().len())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        let (first, second) = (of(7), of(7).split_off(Fault::all().len()));
        for deck in [&first[..Fault::all().len()], &second] {
            let kinds: HashSet<Fault> = deck.iter().map(|step| step.fault).collect();
            assert_eq!(kinds.len(), Fault::all().len());
        }
    }
}
