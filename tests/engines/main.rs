//! KVM and the software engine are one machine: what runs on one runs on the other, to the last bit.

#[path = "../common/mod.rs"]
mod common;
mod first_places;
mod snapshots;

use check::{CheckOptions, Load, LoadOptions, Pace, check, read_all};
use common::{cluster, have_kvm, machine, os, tandem_json, text};
use kit::cluster::PairOptions;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

const ENGINES: [&str; 2] = ["kvm", "soft"];
/// Longest wait for clients to be served, again or at all.
const PATIENCE: Duration = Duration::from_secs(60);

fn record(log: &Path, engine: &str, guest: &[&str]) -> serde_json::Value {
    let head = ["record", "-o", text(log), "--json", "--quiet"];
    let rest = ["--digest-every", "16", "--engine", engine];
    tandem_json(&[&head, guest, &rest].concat())
}

/// Records `guest` on each engine and replays it on each, with equal digests.
fn across(name: &str, guest: &[&str]) {
    across_after(name, guest, || {});
}

/// The same, each recording after `prepare`.
fn across_after(name: &str, guest: &[&str], prepare: impl Fn()) {
    let _machine = machine();
    if !have_kvm(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for recorder in ENGINES {
        prepare();
        let recorded = record(&log, recorder, guest);
        for replayer in ENGINES {
            let replayed = tandem_json(&["replay", text(&log), "--json", "--engine", replayer]);
            assert!(replayed["divergence"].is_null(), "{recorder} to {replayer}");
            for key in ["entries", "clock", "clock_kind", "digest", "exit_status"] {
                assert_eq!(
                    recorded[key], replayed[key],
                    "{key}, {recorder} to {replayer}: {guest:?}"
                );
            }
        }
    }
}

#[test]
fn counter_is_interrupted_at_the_same_blocks_on_both_engines() {
    // A short run: the software engine takes a minute for a second of this guest on KVM.
    across(
        "counter",
        &["counter", "--arg", "hz=1000", "--arg", "ticks=60"],
    );
}

#[test]
fn clock_is_told_the_same_times_on_both_engines() {
    across("clock", &["clock", "--arg", "reads=300"]);
    across(
        "clock",
        &["clock", "--arg", "reads=300", "--tsc", "derived"],
    );
}

#[test]
fn disk_reads_reach_the_guest_at_the_same_places_on_both_engines() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
    across(
        "disk",
        &["disk", "--disk", text(&image), "--arg", "rounds=10"],
    );
}

#[test]
fn a_guest_that_resets_itself_starts_over_at_the_same_places_on_both_engines() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    let fresh = || std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    for tsc in ["logged", "derived"] {
        let words = ["reset", "--disk", text(&image), "--arg", "resets=4"];
        across_after("reset", &[&words[..], &["--tsc", tsc]].concat(), fresh);
        let lives = std::fs::read(&image).unwrap()[8];
        assert_eq!(lives, 4, "what the disk says, time {tsc}");
    }
}

#[test]
fn the_software_engine_counts_instructions_of_bare_guests_too() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let guest = ["counter", "--arg", "ticks=50", "--clock", "instructions"];
    let recorded = record(&log, "soft", &guest);
    let replayed = tandem_json(&["replay", text(&log), "--json"]);
    assert_eq!(recorded["clock_kind"], "instructions");
    assert_eq!(recorded["digest"], replayed["digest"]);
    assert_eq!(recorded["clock"], replayed["clock"]);
}

/// The software engine without its translator.
const INTERPRETED: &str = "interpreted";

/// A pair whose replicas run on these engines, killed under load.
fn survives(engines: [&str; 2]) {
    let _machine = machine();
    if !have_kvm("a pair of two engines") {
        return;
    }
    let cluster = cluster("file");
    let words = |engine: &str| -> Vec<OsString> {
        match engine {
            INTERPRETED => os(&["--engine", "soft", "--executor", "interpret"]),
            engine => os(&["--engine", engine]),
        }
    };
    let options = PairOptions {
        network: true,
        primary: words(engines[0]),
        backup: words(engines[1]),
        ..PairOptions::default()
    };
    let name = format!("{}-{}", engines[0], engines[1]);
    let mut pair = cluster.start_pair(&name, &os(&["kv"]), &options).unwrap();
    pair.wait_ready("ready").unwrap();
    let options = LoadOptions {
        clients: 4,
        seed: 7,
        pace: Pace::Think(Duration::from_millis(2)),
        max_ops: 100_000,
        ..LoadOptions::default()
    };
    let load = Load::start(cluster.server(), options).unwrap();
    assert!(load.wait_replies(800, PATIENCE), "it serves");
    let killed_at = load.epoch().now_ns();
    pair.primary.kill();
    assert!(load.wait_all_replied(killed_at, PATIENCE), "it goes on");
    let epoch = load.epoch();
    let mut history = load.stop();
    read_all(cluster.server(), epoch, PATIENCE, &mut history).unwrap();
    let options = CheckOptions {
        lease_slack_ms: 500,
        ..CheckOptions::default()
    };
    let verdict = check(&history, options);
    assert_eq!(history.breaks.len(), 0, "{:?}", history.breaks);
    assert_eq!(verdict.lost_writes, 0, "{}", verdict.explain());
    assert!(verdict.linearizable(), "{}", verdict.explain());
    pair.backup.ask_to_end();
    assert!(pair.backup.wait(PATIENCE).unwrap().success());
}

#[test]
fn a_pair_with_a_kvm_primary_and_a_software_backup_survives_a_kill() {
    survives(["kvm", "soft"]);
}

#[test]
fn a_pair_with_a_software_primary_and_a_kvm_backup_survives_a_kill() {
    survives(["soft", "kvm"]);
}

#[test]
fn a_pair_on_the_software_engine_survives_a_kill() {
    survives(["soft", "soft"]);
}

#[test]
fn a_pair_whose_backup_alone_translates_survives_a_kill() {
    survives([INTERPRETED, "soft"]);
}
