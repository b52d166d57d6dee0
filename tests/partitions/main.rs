//! Pairs on hosts of their own, whose links are cut in every shape, with real clients. See docs/TESTING.md.

mod chaotic;
#[path = "../common/mod.rs"]
mod common;
mod trial;

use chaos::hosts::Hosts;
use chaos::services::Services;
use chaos::shapes::{SHAPES, Shape};
use common::{have_kvm, machine};
use kit::fate::Fate;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
use testing::numbers::number;
use testing::skipped::skip_this;
use trial::Trial;
use vmm::backends::netns::PrivateNetwork;

/// So many failures end the test: the next will tell nothing new.
const FAILURES_MAX: u64 = 5;

/// Which shapes, how often, and the first seed: `TANDEM_SHAPES=Loss,Clients`, `TANDEM_PARTITIONS=N`, `TANDEM_SEED`.
fn plan() -> (Vec<Shape>, u64, u64) {
    let rounds = number("TANDEM_PARTITIONS").unwrap_or(1);
    // Of this one, no shape takes long, and those that may part a pair do.
    let first = number("TANDEM_SEED").unwrap_or(2);
    let Ok(wanted) = std::env::var("TANDEM_SHAPES") else {
        return (SHAPES.to_vec(), rounds, first);
    };
    let named = |name| {
        Shape::named(name)
            .unwrap_or_else(|| panic!("TANDEM_SHAPES: '{name}' is none of {SHAPES:?}"))
    };
    (wanted.split(',').map(named).collect(), rounds, first)
}

/// What became of the trials of a shape.
#[derive(Default)]
struct Sum {
    whole: u64,
    primary: u64,
    backup: u64,
    failed: u64,
}

#[test]
fn whatever_is_cut_one_lives_and_nothing_is_lost() {
    let _machine = machine();
    let (shapes, rounds, first) = plan();
    if !have_kvm("partitions") {
        return;
    }
    // Of this thread, and of all that it starts.
    let network = match PrivateNetwork::enter_thread(&[]) {
        Ok(network) => network,
        Err(why) => return skip_this(&why),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = match Hosts::make(network, folder.path()) {
        Ok(hosts) => hosts,
        Err(why) => return skip_this(&why),
    };
    let mut services = Services::start(&hosts, folder.path()).expect("arbiter and viewservice");
    let mut sums: Vec<(Shape, Sum)> = shapes.into_iter().map(|s| (s, Sum::default())).collect();
    let mut failures = 0;
    'all: for seed in first..first + rounds {
        for (shape, sum) in &mut sums {
            let trial = AssertUnwindSafe(|| {
                let mut trial = Trial::begin(&mut services, *shape, seed);
                trial.disturb();
                trial.end()
            });
            let begun = Instant::now();
            let fate = catch_unwind(trial);
            println!("{shape:?}, seed {seed}: {} ms", begun.elapsed().as_millis());
            match fate {
                Ok(Fate::Whole) => sum.whole += 1,
                Ok(Fate::Alone(who)) if who == "primary" => sum.primary += 1,
                Ok(Fate::Alone(_)) => sum.backup += 1,
                Err(_) => {
                    println!(
                        "{shape:?}, seed {seed}: FAILED; to repeat: TANDEM_SHAPES={shape:?} TANDEM_SEED={seed} \
                         cargo test --release --test partitions -- --nocapture"
                    );
                    sum.failed += 1;
                    failures += 1;
                    if failures == FAILURES_MAX {
                        break 'all;
                    }
                    // The next one finds all as this one did.
                    hosts.heal().expect("all is healed");
                    services.mend().expect("arbiter and viewservice");
                }
            }
        }
    }
    println!(
        "{:18} {:>8} {:>8} {:>8} {:>8}",
        "shape", "a pair", "primary", "backup", "failed"
    );
    for (shape, sum) in &sums {
        let name = format!("{shape:?}");
        println!(
            "{name:18} {:8} {:8} {:8} {:8}",
            sum.whole, sum.primary, sum.backup, sum.failed
        );
    }
    assert_eq!(failures, 0);
}
