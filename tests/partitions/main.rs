//! Pairs on hosts of their own, whose links are cut in every shape, with real clients. See docs/TESTING.md.

#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod shapes;
mod trial;

use common::{have_kvm, machine};
use hosts::{Hosts, runs};
use shapes::{Becomes, QUICK, SHAPES, Shape};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use testing::numbers::number;
use testing::skipped::skip_this;
use trial::{Fate, Services, Trial, judge};

/// Set in the process that is in namespaces of its own.
const INSIDE: &str = "TANDEM_TEST_INSIDE";
/// What that process says when it has tried all.
const DONE: &str = "partitions were tried";
/// So many failures end the test: the next will tell nothing new.
const FAILURES_MAX: u64 = 5;

#[test]
fn whatever_is_cut_one_lives_and_nothing_is_lost() {
    let _machine = machine();
    if !have_kvm("partitions") {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    // No user namespace: in one, heartbeats may not go before other work.
    let namespaces = "unshare --net --mount --pid --fork --kill-child --mount-proc";
    if !runs(&format!("{namespaces} nft list ruleset")) {
        return skip_this(&"no network namespaces, or no nft: the test needs root and nftables");
    }
    let me = std::env::current_exe().expect("its path");
    let status = Command::new("unshare")
        .args(namespaces.split(' ').skip(1))
        .arg(me)
        .args([
            "--exact",
            "whatever_is_cut_one_lives_and_nothing_is_lost",
            "--nocapture",
        ])
        .env(INSIDE, "1")
        .output()
        .expect("unshare runs");
    let said = [status.stdout, status.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(
        status.status.success() && said.contains(DONE),
        "inside the namespaces, as said above"
    );
}

/// Which shapes, how often, and the first seed: `TANDEM_SHAPES=Loss,Clients`, `TANDEM_PARTITIONS=N`, `TANDEM_SEED`.
fn plan() -> (Vec<Shape>, u64, u64) {
    let rounds = number("TANDEM_PARTITIONS");
    let all = if rounds.is_some() {
        &SHAPES[..]
    } else {
        &QUICK[..]
    };
    let wanted = std::env::var("TANDEM_SHAPES").ok();
    let is_wanted = |shape: &&Shape| {
        let name = format!("{shape:?}");
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted.split(',').any(|one| one == name))
    };
    let from = if wanted.is_some() { &SHAPES[..] } else { all };
    let shapes = from.iter().filter(is_wanted).copied().collect();
    (
        shapes,
        rounds.unwrap_or(1),
        number("TANDEM_SEED").unwrap_or(1),
    )
}

/// What became of the trials of a shape.
#[derive(Default)]
struct Sum {
    whole: u64,
    primary: u64,
    backup: u64,
    failed: u64,
}

fn inside() {
    let (shapes, rounds, first) = plan();
    assert!(!shapes.is_empty(), "TANDEM_SHAPES names none");
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = Hosts::make();
    let mut services = Services::start(&hosts, folder.path());
    let mut sums: Vec<(Shape, Sum)> = shapes
        .iter()
        .map(|shape| (*shape, Sum::default()))
        .collect();
    let mut failures = 0;
    'all: for seed in first..first + rounds {
        for (shape, sum) in &mut sums {
            let trial = AssertUnwindSafe(|| {
                let mut trial = Trial::begin(&mut services, *shape, seed);
                trial.disturb();
                trial.end()
            });
            match catch_unwind(trial) {
                Ok(Fate::Whole) => sum.whole += 1,
                Ok(Fate::Alone("primary")) => sum.primary += 1,
                Ok(Fate::Alone(_)) => sum.backup += 1,
                Err(_) => {
                    println!(
                        "{shape:?}, seed {seed}: FAILED; to repeat: TANDEM_SHAPES={shape:?} TANDEM_SEED={seed} \
                         cargo test --release --test partitions -- --nocapture"
                    );
                    sum.failed += 1;
                    failures += 1;
                    hosts.heal();
                    if failures == FAILURES_MAX {
                        break 'all;
                    }
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
    println!("{} {DONE}", rounds * sums.len() as u64);
}

#[test]
fn the_judge_sees_what_is_wrong() {
    let line = |at_ns: u64, who: &str, event: &str, detail: &str| kit::Line {
        at_ns,
        who: who.into(),
        event: event.into(),
        detail: detail.into(),
    };
    let parted = [
        line(1, "backup", "flag_won", "view 1"),
        line(2, "primary", "flag_lost", "view 1"),
        line(3, "backup", "solo", "view 2"),
    ];
    assert_eq!(
        judge(&parted, Becomes::OneGoesOn),
        Ok(Fate::Alone("backup"))
    );
    assert_eq!(judge(&[], Becomes::Whole), Ok(Fate::Whole));
    assert!(judge(&parted, Becomes::Whole).is_err());
    assert!(judge(&parted, Becomes::GoesOn("primary")).is_err());
    assert!(judge(&[], Becomes::OneGoesOn).is_err());
    assert!(
        judge(&parted[1..], Becomes::Either).is_err(),
        "alone without a flag"
    );
    let twice = [&parted[..], &[line(4, "primary", "solo", "view 2")]].concat();
    assert!(judge(&twice, Becomes::Either).is_err());
    let diverged = [&parted[..], &[line(4, "primary", "diverged", "")]].concat();
    assert!(judge(&diverged, Becomes::Either).is_err());
}
