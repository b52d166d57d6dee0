//! Whole lives: a pair, the loss of either side, a machine that runs alone, a join, and again.

use crate::plan::{Plan, Told, Troubles, Victim};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};
use testing::numbers::number;

/// Lives of the gate, whose seeds are the first.
const GATE: u64 = 20_000;

/// What many lives came to.
#[derive(Default)]
struct Sum {
    lives: u64,
    /// Those whose machine lived in the end.
    survived: u64,
    steps: u64,
    joins: u64,
    refused: u64,
    /// Most views one machine began.
    views_max: u64,
    killed: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, told: Told) {
        self.lives += 1;
        self.survived += u64::from(told.lives);
        self.steps += told.steps;
        self.joins += told.joins;
        self.refused += told.refused;
        self.views_max = self.views_max.max(told.views);
        for (how, count) in told.killed {
            *self.killed.entry(how).or_default() += count;
        }
    }

    fn tell(&self, what: &str) {
        let Self {
            lives,
            survived,
            steps,
            joins,
            refused,
            views_max,
            killed,
        } = self;
        println!(
            "{what}: {lives} lives, {steps} steps, {joins} joins, {refused} offers refused, up to {views_max} views; \
             {survived} machines lived in the end"
        );
        for (how, count) in killed {
            println!("{count:8} killed as {how}");
        }
    }

    /// Replicas were killed in each of these stands, or these lives say little.
    fn has_killed(&self, stands: &[&str]) {
        for how in stands {
            assert!(self.killed.contains_key(*how), "none was killed as {how}");
        }
    }
}

/// How replicas stand on the way from a machine alone to a pair.
const STANDS: [&str; 14] = [
    "primary",
    "primary contending",
    "solo",
    "solo, joining, calling",
    "solo, joining, sending pages",
    "solo, joining, standing still",
    "solo, sealing, joiner level",
    "backup",
    "backup contending",
    "backup draining",
    "waiting",
    "given a machine",
    "joiner",
    "joiner, its Welcome on the way",
];

/// `TANDEM_LIVES=N` lives N others, whose first seed is `TANDEM_SEED` or one nobody has chosen.
#[test]
fn whatever_goes_wrong_outsiders_see_one_machine() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let fresh = || since.map_or(1, |since| u64::from(since.subsec_nanos()) << 32);
    let seeds = match (number("TANDEM_LIVES"), number("TANDEM_SEED")) {
        (None, None) => 0..GATE,
        (lives, seed) => {
            let first = seed.unwrap_or_else(fresh);
            first..first + lives.unwrap_or(1)
        }
    };
    let mut sum = Sum::default();
    println!("seeds {seeds:?}");
    let many = seeds == (0..GATE);
    for seed in seeds {
        sum.add(Plan::random(seed).live());
    }
    sum.tell("random");
    if many {
        sum.has_killed(&STANDS);
        assert!(sum.views_max >= 10, "few generations: {}", sum.views_max);
        assert!(sum.refused > GATE, "few offers: {}", sum.refused);
    }
}

/// Each side is killed at every step of a pair's life, then at every step of what follows: a failover, a join,
/// and the pair that comes of it. Nothing else goes wrong, so it is known when a machine may be lost.
#[test]
fn either_side_is_killed_at_every_step() {
    let mut sum = Sum::default();
    for first in [Victim::Leader, Victim::Second] {
        for second in [Victim::Leader, Victim::Second] {
            for third in [Victim::Leader, Victim::Second] {
                for after in 0..160 {
                    for seed in 0..12 {
                        let kills = vec![(30, first), (after, second), (160 - after, third)];
                        sum.add(lives_through(seed, kills));
                    }
                }
            }
        }
    }
    sum.tell("killed at every step");
    sum.has_killed(&STANDS);
}

/// As long as a backup is there whenever a replica is killed, the machine lives for ever.
#[test]
fn a_machine_that_is_given_time_outlives_any_number_of_hosts() {
    let mut sum = Sum::default();
    for seed in 0..300 {
        let sides = [Victim::Leader, Victim::Second];
        let kills = (0..10).map(|generation| {
            let side = (seed >> generation) % 2;
            (250, sides[usize::from(side == 1)])
        });
        let told = lives_through(seed, kills.collect());
        assert!(told.lives, "the machine of seed {seed} was lost");
        assert_eq!(told.joins, 9, "seed {seed}");
        sum.add(told);
    }
    sum.tell("given time");
}

fn lives_through(seed: u64, kills: Vec<(usize, Victim)>) -> Told {
    let plan = Plan {
        seed,
        troubles: Troubles::Kills(kills),
        broken: None,
    };
    plan.live()
}
