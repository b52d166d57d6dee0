//! A machine saved in the middle of a replay on one engine goes on on the other, to the same end.

use super::common::saved::{go_on, replay_saving};
use super::common::{LIMIT, have_kvm, machine, os, text};
use super::record;
use check::rng::Rng;
use check::{Load, LoadOptions};
use kit::daemon::Daemon;
use replay::Clock;
use replica::machine::EngineChoice;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

/// Places at which each replay is saved.
const PLACES: u64 = 4;
const KVM_TO_SOFT: [EngineChoice; 2] = [EngineChoice::Kvm, EngineChoice::Soft];
const SOFT_TO_KVM: [EngineChoice; 2] = [EngineChoice::Soft, EngineChoice::Kvm];

/// `log` is replayed on each engine, saved at places chosen at random, and goes on from there on the
/// other.
fn change_engines(name: &str, log: &Path, clock: u64) {
    let seed = u64::from(std::process::id());
    let mut random = Rng::new(seed, 0);
    for [first, second] in [KVM_TO_SOFT, SOFT_TO_KVM] {
        let mut places: Vec<Clock> = (0..PLACES).map(|_| Clock(random.below(clock))).collect();
        places.sort_unstable();
        let (saved, ended) = replay_saving(log, first, &places);
        for saved in &saved {
            let clock = saved.clock;
            eprintln!("{name}, seed {seed}: saved on {first:?} at {clock}, goes on on {second:?}");
            assert_eq!(
                go_on(log, second, saved, None),
                Some(ended),
                "{name} from clock {clock}, seed {seed}"
            );
        }
        assert!(
            !saved.is_empty(),
            "{name} ended before it was saved, seed {seed}: {places:?}"
        );
    }
}

/// The same for a guest that needs nobody.
fn alone(name: &str, guest: &[&str]) {
    let _machine = machine();
    if !have_kvm(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let recorded = record(&log, "kvm", guest);
    change_engines(name, &log, recorded["clock"].as_u64().unwrap());
}

/// The same for a server on `port`, while `drive` talks to it.
fn serving(guest: &str, port: u16, drive: impl Fn(SocketAddr)) {
    let _machine = machine();
    if !have_kvm(guest) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = listener.local_addr().unwrap();
    drop(listener);
    let forward = format!("{}:{port}", server.port());
    let args = [
        "record",
        guest,
        "-o",
        text(&log),
        "--json",
        "--engine",
        "kvm",
    ];
    let rest = ["--digest-every", "16", "--forward", &forward];
    let errors = folder.path().join("errors");
    let mut recorder = Daemon::start("recorder", os(&[&args[..], &rest].concat()), errors).unwrap();
    recorder
        .wait_line(LIMIT, |line| line.contains("ready"))
        .unwrap();
    drive(server);
    recorder.ask_to_end();
    let status = recorder.wait(LIMIT).unwrap();
    assert!(status.success(), "{}", recorder.complaint());
    let said = recorder.said();
    let recorded: serde_json::Value = serde_json::from_str(said.last().unwrap()).unwrap();
    change_engines(guest, &log, recorded["clock"].as_u64().unwrap());
}

#[test]
fn counter_changes_engines_under_its_tick() {
    alone(
        "counter",
        &["counter", "--arg", "hz=1000", "--arg", "ticks=40"],
    );
}

#[test]
fn clock_changes_engines_between_its_questions() {
    alone("clock", &["clock", "--arg", "reads=200"]);
    let derived = ["clock", "--arg", "reads=200", "--tsc", "derived"];
    alone("clock with derived time", &derived);
}

#[test]
fn disk_changes_engines_with_requests_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    std::fs::write(&image, vec![0x5a; 8 << 20]).unwrap();
    alone(
        "disk",
        &["disk", "--disk", text(&image), "--arg", "rounds=10"],
    );
}

#[test]
fn reset_changes_engines_in_one_life_and_starts_over_on_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    for tsc in ["logged", "derived"] {
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let words = ["reset", "--disk", text(&image), "--arg", "resets=4"];
        alone("reset", &[&words[..], &["--tsc", tsc]].concat());
    }
}

#[test]
fn kv_changes_engines_with_clients_connected() {
    serving("kv", 6379, |server| {
        let options = LoadOptions {
            clients: 3,
            seed: 5,
            ..LoadOptions::default()
        };
        let load = Load::start(server, options).unwrap();
        assert!(load.wait_replies(60, LIMIT), "it serves");
        let history = load.stop();
        assert!(history.breaks.is_empty(), "{:?}", history.breaks);
    });
}

#[test]
fn echo_changes_engines_between_frames() {
    serving("echo", 7, |server| {
        let mut stream = TcpStream::connect(server).unwrap();
        let bytes: Vec<u8> = (0..8000u32).map(|n| (n >> 2) as u8).collect();
        let mut back = vec![0; bytes.len()];
        stream.write_all(&bytes).unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, bytes);
    });
}
