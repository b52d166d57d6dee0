//! A replica is stopped (SIGSTOP) at a random moment under load, for less and more than the time to suspicion.

use crate::common::{cluster, have_kvm, machine};
use crate::trial::{Trial, became};
use crate::verdict::HARMLESS_MS;
use crate::{Count, make_trials};
use kit::cluster::{Cluster, TAPS};
use kit::fate::Fate;
use std::time::Duration;
use wire::Tapped;

#[path = "../paper/wire.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod wire;

const COUNT: Count = Count {
    short: 9,
    long: 100,
};

#[test]
fn a_replica_stopped_under_load() {
    let _machine = machine();
    if !have_kvm("stopped replicas") {
        return;
    }
    let cluster = cluster("file");
    make_trials("a_replica_stopped_under_load", &COUNT, |seed| {
        let who = ["primary", "backup"][usize::try_from(seed / 3 % 2).unwrap()];
        if seed.is_multiple_of(3) {
            return stopped_until_the_other_runs_alone(&cluster, seed, who);
        }
        let longest_ms = if seed % 3 == 1 { HARMLESS_MS / 2 } else { 1500 };
        stopped_for_a_while(&cluster, seed, who, longest_ms)
    });
}

/// Up to three pauses, with random times between them.
fn stopped_for_a_while(cluster: &Cluster, seed: u64, who: &str, longest_ms: u64) -> String {
    let mut trial = Trial::begin(cluster, "paused", seed, None);
    let mut pauses = Vec::new();
    for _ in 0..=trial.rng.below(3) {
        let length = Duration::from_micros(trial.rng.below(longest_ms * 1000));
        // The pause itself is what is tried.
        let took = trial.stop_while(who, |_| std::thread::sleep(length));
        pauses.push(took.as_millis().to_string());
        trial.settle();
        if trial.has_parted() {
            break;
        }
        let more = trial.rng.below(300);
        trial.serve(more);
    }
    trial.settle();
    let fate = trial.end();
    format!(
        "the {who} stopped for {} ms: {}",
        pauses.join(", "),
        became(&fate)
    )
}

/// What leaves the one that was stopped when it wakes in a world that goes on without it. Of a backup, nothing.
/// A primary may have stood still between the ack that released a frame and the write of it: that frame is late,
/// as frames may be, and the backup, which had its entry, has sent the same one. Anything else contradicts it.
fn stopped_until_the_other_runs_alone(cluster: &Cluster, seed: u64, who: &str) -> String {
    let mut trial = Trial::begin(cluster, "stopped", seed, None);
    let mut taps = TAPS;
    let mut other = "backup";
    if who == "backup" {
        taps.reverse();
        other = "primary";
    }
    let wires = cluster
        .switch_socket()
        .is_none()
        .then(|| taps.map(Tapped::interface));
    let mut sent_again = Vec::new();
    let took = trial.stop_while(who, |trial| {
        // What was under way is on the wire.
        wires.iter().flatten().for_each(|wire| drop(wire.take()));
        trial.wait_solo();
        if let (Some([_, wire]), "primary") = (&wires, who) {
            sent_again = wire.take();
        }
    });
    trial.wait_noted("halt of the one that was stopped", |lines| {
        lines
            .iter()
            .any(|line| line.event == "halted" && line.who == who)
    });
    trial.settle();
    let fate = trial.end();
    assert_eq!(fate, Fate::Alone(other.into()));
    let late = wires.map_or_else(Vec::new, |[wire, _]| wire.take());
    for frame in &late {
        let again = sent_again.contains(frame);
        assert!(
            again,
            "the {who} sent what the {other} did not: {frame:02x?}"
        );
    }
    let (ms, late) = (took.as_millis(), late.len());
    format!(
        "the {who} stopped for {ms} ms, {late} frames late: {}",
        became(&fate)
    )
}
