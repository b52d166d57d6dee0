//! A pair under load on a host that has other work: nobody takes that for a death.

use crate::common::spinners::Spinners;
use crate::common::{cluster, have_kvm, machine, skipped};
use crate::trial::{Trial, became};
use crate::{Count, make_trials};
use kit::cluster::Cluster;
use kit::fate::Fate;
use std::time::Duration;

const COUNT: Count = Count { short: 2, long: 20 };
/// Threads that spin, on however many processors.
const SPINNERS: usize = 4;

#[test]
fn a_busy_host() {
    let _machine = machine();
    if !have_kvm("a busy host") {
        return;
    }
    if !logchannel::may_be_prompt() {
        skipped::skip_this(&"heartbeats may not go before other work here: no CAP_SYS_NICE");
        return;
    }
    let cluster = cluster("file");
    let _spinners = Spinners::start(SPINNERS);
    make_trials("a_busy_host", &COUNT, |seed| under_load(&cluster, seed));
}

/// In two of three trials a replica is killed in the end, which the other finds closed, not silent.
fn under_load(cluster: &Cluster, seed: u64) -> String {
    let mut trial = Trial::begin(cluster, "busy", seed, None);
    let length = Duration::from_millis(500 + trial.rng.below(2500));
    // The work of the others in this time is what is tried.
    std::thread::sleep(length);
    trial.serve(100);
    assert!(
        !trial.has_parted(),
        "without a cause: {:#?}",
        trial.pair.events()
    );
    let victim = [None, Some("primary"), Some("backup")][usize::try_from(seed % 3).unwrap()];
    if let Some(who) = victim {
        trial.kill(who);
    }
    trial.settle();
    let fate = trial.end();
    assert_eq!(fate == Fate::Whole, victim.is_none(), "{fate:?}");
    let killed = victim.map_or(String::new(), |who| format!(", the {who} killed"));
    format!("{} ms{killed}: {}", length.as_millis(), became(&fate))
}
