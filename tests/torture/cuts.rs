//! One direction of the logging channel is cut at a random moment under load.

use crate::common::channel::{self, Flow, WAYS, Way};
use crate::common::{cluster, have_kvm, machine};
use crate::trial::{Trial, became};
use crate::{Count, make_trials};
use kit::cluster::Cluster;
use kit::fate::Fate;
use std::time::Duration;
use vmm::hostclock::monotonic_ns;

const COUNT: Count = Count { short: 8, long: 50 };

#[test]
fn a_channel_cut_in_one_direction() {
    let _machine = machine();
    if !have_kvm("channels cut in one direction") {
        return;
    }
    let cluster = cluster("file");
    make_trials("a_channel_cut_in_one_direction", &COUNT, |seed| {
        let way = WAYS[usize::try_from(seed % 2).unwrap()];
        match seed / 2 % 4 {
            0 => for_ever(&cluster, seed, way),
            1 => healed_too_late(&cluster, seed, way),
            2 => healed_after_a_while(&cluster, seed, way),
            _ => torn(&cluster, seed, way),
        }
    });
}

/// A cut of `way` that parts the pair, whatever it does to bytes, and what becomes of it after that.
fn parts(cluster: &Cluster, seed: u64, way: Way, (flow, after): (Flow, Flow)) -> Fate {
    let mut trial = Trial::begin(cluster, "cut", seed, Some(channel::start));
    let from_ns = monotonic_ns();
    channel::set(way, flow);
    trial.wait_solo();
    trial.causes.silence(from_ns, monotonic_ns());
    channel::set(way, after);
    trial.settle();
    let fate = trial.end();
    assert!(matches!(fate, Fate::Alone(_)), "{fate:?}");
    fate
}

fn for_ever(cluster: &Cluster, seed: u64, way: Way) -> String {
    let fate = parts(cluster, seed, way, (Flow::Swallowed, Flow::Swallowed));
    format!("{way:?} cut for ever: {}", became(&fate))
}

/// What was held arrives at somebody who has gone on alone, or has lost.
fn healed_too_late(cluster: &Cluster, seed: u64, way: Way) -> String {
    let fate = parts(cluster, seed, way, (Flow::Held, Flow::Open));
    format!("{way:?} healed too late: {}", became(&fate))
}

fn healed_after_a_while(cluster: &Cluster, seed: u64, way: Way) -> String {
    let mut trial = Trial::begin(cluster, "held", seed, Some(channel::start));
    let longest_ms = [100, 1200][usize::try_from(trial.rng.below(2)).unwrap()];
    let length = Duration::from_micros(trial.rng.below(longest_ms * 1000));
    let from_ns = monotonic_ns();
    channel::set(way, Flow::Held);
    // The cut itself is what is tried.
    std::thread::sleep(length);
    channel::set(way, Flow::Open);
    let to_ns = monotonic_ns();
    trial.causes.silence(from_ns, to_ns);
    trial.settle();
    let fate = trial.end();
    let took_ms = (to_ns - from_ns) / 1_000_000;
    format!("{way:?} held for {took_ms} ms: {}", became(&fate))
}

/// Bytes are lost and the rest comes, which TCP does not do, but a middlebox may.
fn torn(cluster: &Cluster, seed: u64, way: Way) -> String {
    let mut trial = Trial::begin(cluster, "torn", seed, Some(channel::start));
    let length = Duration::from_micros(trial.rng.below(400_000));
    trial.causes.torn_ns = Some(monotonic_ns());
    channel::set(way, Flow::Swallowed);
    // The loss itself is what is tried.
    std::thread::sleep(length);
    channel::set(way, Flow::Open);
    trial.settle();
    let fate = trial.end();
    format!(
        "{way:?} lost bytes for {} ms: {}",
        length.as_millis(),
        became(&fate)
    )
}
