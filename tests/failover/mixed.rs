//! Failover from KVM to the software engine, which executes the same guest many times slower: the
//! primary is slowed as far as its backup needs (P15), so that there is little left to execute when it
//! dies, and the backup is the same machine.

use super::common::{LIMIT, cluster, have_kvm, machine, os, tandem_json, text};
use super::patient;
use check::{CheckOptions, Load, LoadOptions, check, read_all};
use kit::cluster::{Pair, PairOptions};
use std::time::{Duration, Instant};

/// Longest time from the kill until the backup has executed what it was sent, in nanoseconds.
const DRAIN_NS_MAX: u64 = 2_000_000_000;

/// What the backup has left to execute once a spinning primary has settled: the bound, and half of it for a
/// busy host.
const SETTLED_US: u64 = 750_000;

fn mixed(network: bool) -> PairOptions {
    let mut options = patient();
    options.network = network;
    options.primary = os(&["--engine", "kvm"]);
    options.backup = os(&["--engine", "soft"]);
    options
}

/// The primary's last counters.
fn counters(pair: &Pair) -> serde_json::Value {
    let metrics = pair.metrics();
    let line = metrics.last().map_or("{}", |line| &line.detail);
    serde_json::from_str(line).unwrap()
}

/// Waits until the primary's counters say so.
fn wait_counters(pair: &Pair, wanted: impl Fn(&serde_json::Value) -> bool) {
    let begun = Instant::now();
    while !wanted(&counters(pair)) {
        assert!(begun.elapsed() < LIMIT, "{}", counters(pair));
        assert!(!pair.primary.has_ended(), "{:?}", pair.events());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills the primary; the backup must be live soon.
fn kill(pair: &mut Pair) {
    let at_ns = vmm::hostclock::monotonic_ns();
    pair.primary.kill();
    pair.primary.wait(LIMIT).unwrap();
    assert!(pair.primary.was_killed(), "{:?}", pair.events());
    let drained = pair.wait_event("backup", "drained").unwrap();
    let took_ns = drained.at_ns.saturating_sub(at_ns);
    assert!(took_ns < DRAIN_NS_MAX, "{took_ns} ns: {}", counters(pair));
    pair.wait_event("backup", "live").unwrap();
}

fn end(mut pair: Pair) {
    pair.backup.ask_to_end();
    let status = pair.backup.wait(LIMIT).unwrap();
    assert!(status.success(), "{status}{}", pair.backup.complaint());
}

#[test]
fn p15_clients_keep_their_connections_to_a_slower_engine() {
    let _machine = machine();
    if !have_kvm("failover to the software engine") {
        return;
    }
    let cluster = cluster("file");
    let mut pair = cluster
        .start_pair("mixed-kv", &os(&["kv"]), &mixed(true))
        .unwrap();
    pair.wait_ready("ready").unwrap();
    let load = Load::start(cluster.server(), LoadOptions::default()).unwrap();
    // More entries than there are between two state digests, twice: the backup's is the same.
    wait_counters(&pair, |counters| {
        counters["cursors"]["acked"].as_u64() > Some(10_000)
    });
    let killed_at = load.epoch().now_ns();
    kill(&mut pair);
    assert!(load.wait_all_replied(killed_at, LIMIT), "clients starve");
    let epoch = load.epoch();
    let mut history = load.stop();
    read_all(cluster.server(), epoch, LIMIT, &mut history).unwrap();
    assert!(history.breaks.is_empty(), "{:?}", history.breaks);
    let verdict = check(&history, CheckOptions::default());
    assert_eq!(verdict.lost_writes, 0);
    assert!(verdict.linearizable(), "{}", verdict.explain());
    end(pair);
}

#[test]
fn p15_a_spinning_guest_is_slowed_to_what_its_backup_can_do() {
    let _machine = machine();
    if !have_kvm("the brake") {
        return;
    }
    let cluster = cluster("file");
    let guest = ["counter", "--arg", "hz=100", "--arg", "ticks=1000000"];
    let options = mixed(false);
    let mut pair = cluster
        .start_pair("mixed-counter", &os(&guest), &options)
        .unwrap();
    // Slowed, and that for a while: what it ran ahead before that was known is made up for.
    wait_counters(&pair, |counters| {
        let settled = counters["lag"]["drain_us"].as_u64() < Some(SETTLED_US);
        settled && counters["braked_us"].as_u64() > Some(3_000_000)
    });
    kill(&mut pair);
    end(pair);
}

#[test]
fn p15_a_backup_that_keeps_up_slows_nobody() {
    let _machine = machine();
    if !have_kvm("a brake that is off") {
        return;
    }
    let cluster = cluster("file");
    // A software primary under a KVM backup is the slower of the two.
    let mut options = mixed(false);
    std::mem::swap(&mut options.primary, &mut options.backup);
    // Beyond what a busy host keeps a backup from running.
    options.primary.extend(os(&["--lag-max-ms", "5000"]));
    let guest = ["counter", "--arg", "hz=100", "--arg", "ticks=200"];
    let mut pair = cluster
        .start_pair("mixed-fast", &os(&guest), &options)
        .unwrap();
    assert!(pair.primary.wait(LIMIT).unwrap().success());
    assert!(pair.backup.wait(LIMIT).unwrap().success());
    assert_eq!(counters(&pair)["braked_us"].as_u64(), Some(0));
}

#[test]
fn a_guest_that_idles_has_one_state_on_both_engines() {
    let _machine = machine();
    if !have_kvm("states of two engines") {
        return;
    }
    let cluster = cluster("file");
    let log = cluster.folder().join("idle.log");
    // Digests at so many entries that some come where an interrupt has just ended a halt.
    let args = os(&["--engine", "kvm", "--digest-every", "8", "-o", text(&log)]);
    let mut recording = cluster
        .start_single("record", &os(&["kv"]), &args, true)
        .unwrap();
    recording
        .wait_line(LIMIT, |line| line.contains("ready"))
        .unwrap();
    let begun = Instant::now();
    while std::fs::metadata(&log).map_or(0, |file| file.len()) < 4096 {
        assert!(begun.elapsed() < LIMIT, "nothing is recorded");
        std::thread::sleep(Duration::from_millis(5));
    }
    recording.ask_to_end();
    assert!(recording.wait(LIMIT).unwrap().success());
    let replayed = tandem_json(&["replay", text(&log), "--engine", "soft", "--json"]);
    assert!(replayed["entries"].as_u64() > Some(50), "{replayed}");
    assert!(replayed["divergence"].is_null(), "{replayed}");
}
