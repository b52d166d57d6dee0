//! A pair breaks while its arbiter stands still, is gone, or has a full disk: nobody goes live until it answers
//! again, and then one does.

use crate::common::channel::{self, Flow, WAYS};
use crate::common::{LIMIT, PROGRAM, cluster, have_kvm, machine, os, skipped};
use crate::trial::{Trial, became};
use crate::{Count, make_trials};
use check::rng::Rng;
use kit::cluster::Cluster;
use kit::daemon::Daemon;
use kit::fate::Fate;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testandset::{Contender, Flag, ViewNumber, VmId};
use vmm::hostclock::monotonic_ns;

const COUNT: Count = Count { short: 8, long: 20 };

/// An arbiter of the test's own. Dropped, it ends.
struct Arbiter {
    daemon: Daemon,
    at: String,
    store: PathBuf,
    errors: PathBuf,
}

fn free_address() -> String {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    probe.local_addr().unwrap().to_string()
}

impl Arbiter {
    fn start(folder: &Path) -> Self {
        let (at, store) = (free_address(), folder.join("store"));
        let errors = folder.join("arbiter.err");
        let daemon = Self::run(&at, &store, &errors);
        Self {
            daemon,
            at,
            store,
            errors,
        }
    }

    fn run(at: &str, store: &Path, errors: &Path) -> Daemon {
        let mut args = os(&["arbiter", "--listen", at, "--store"]);
        args.push(store.into());
        let daemon = Daemon::start("arbiter", args, errors.into()).unwrap();
        daemon
            .wait_line(LIMIT, |line| line.contains("listening"))
            .unwrap();
        daemon
    }

    /// One whose store is on a small disk of its own, mounted at `disk` where nobody else sees it.
    fn start_on_small_disk(folder: &Path, unshare: &[&str], disk: &Path) -> Self {
        let (at, store) = (free_address(), disk.join("store"));
        let errors = folder.join("arbiter.err");
        let script = format!("{MOUNT} && exec \"$2\" arbiter --listen \"$3\" --store \"$1/store\"");
        let mut args = os(unshare);
        args.extend(os(&["sh", "-euc", &script, "sh"]));
        args.extend([disk.into(), PROGRAM.into(), OsString::from(&at)]);
        let unshare = Path::new("unshare");
        let daemon = Daemon::start_other("arbiter", unshare, args, errors.clone()).unwrap();
        daemon
            .wait_line(LIMIT, |line| line.contains("listening"))
            .unwrap();
        Self {
            daemon,
            at,
            store,
            errors,
        }
    }

    fn kill(&mut self) {
        self.daemon.kill();
        self.daemon.wait(LIMIT).unwrap();
    }

    /// Starts it where it was.
    fn restart(&mut self) {
        self.daemon = Self::run(&self.at, &self.store, &self.errors);
    }
}

/// Mounts a small disk at `$1`.
const MOUNT: &str = "mount -t tmpfs -o size=64k tandem \"$1\"";

/// How a namespace is made in which a small disk may be mounted; none where that is not allowed.
fn way_to_mount(folder: &Path) -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let allowed = |way: &&&[&str]| {
        let output = Command::new("unshare")
            .args(**way)
            .args(["sh", "-euc", MOUNT, "sh"])
            .arg(folder)
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    ways.iter().find(allowed).copied()
}

/// What is done to the pair.
#[derive(Clone, Copy, Debug)]
enum Break {
    KillPrimary,
    KillBackup,
    Cut,
}

const BREAKS: [Break; 3] = [Break::KillPrimary, Break::KillBackup, Break::Cut];

fn make(trial: &mut Trial, what: Break) {
    match what {
        Break::KillPrimary => trial.kill("primary"),
        Break::KillBackup => trial.kill("backup"),
        Break::Cut => {
            // It is not healed any more.
            trial.causes.silenced_ns = Some(monotonic_ns());
            for way in WAYS {
                channel::set(way, Flow::Swallowed);
            }
        }
    }
}

/// Waits until an answer was missed twice, and makes sure that nobody guessed one.
fn nobody_goes_live(trial: &Trial) {
    trial.wait_noted("question without an answer", |lines| {
        let refused = lines
            .iter()
            .filter(|line| line.event == "arbiter_unreachable");
        refused.count() >= 2
    });
    let events = trial.pair.events();
    let lively = |event: &str| ["flag_won", "solo", "live"].contains(&event);
    assert!(
        !events.iter().any(|line| lively(&line.event)),
        "{events:#?}"
    );
}

fn ends(mut trial: Trial) -> String {
    trial.wait_solo();
    trial.settle();
    let fate = trial.end();
    assert!(matches!(fate, Fate::Alone(_)), "{fate:?}");
    became(&fate)
}

/// A folder of this trial's, and the cluster's arbiter set to the one that `start` makes there.
fn with(
    cluster: &mut Cluster,
    seed: u64,
    start: impl FnOnce(&Path) -> Arbiter,
) -> (Arbiter, Trial) {
    let folder = cluster
        .folder()
        .join(format!("arbiter-{seed}-{}", monotonic_ns()));
    std::fs::create_dir(&folder).unwrap();
    let arbiter = start(&folder);
    cluster.use_arbiter(format!("tcp:{}", arbiter.at));
    let trial = Trial::begin(cluster, "arbiter", seed, Some(channel::start));
    (arbiter, trial)
}

fn stands_still(cluster: &mut Cluster, seed: u64, what: Break) -> String {
    let (arbiter, mut trial) = with(cluster, seed, Arbiter::start);
    arbiter.daemon.stand_still().unwrap();
    make(&mut trial, what);
    nobody_goes_live(&trial);
    arbiter.daemon.signal(Signal::SIGCONT);
    format!("{what:?} while the arbiter stood still: {}", ends(trial))
}

fn is_gone(cluster: &mut Cluster, seed: u64, what: Break) -> String {
    let (mut arbiter, mut trial) = with(cluster, seed, Arbiter::start);
    arbiter.kill();
    make(&mut trial, what);
    nobody_goes_live(&trial);
    arbiter.restart();
    format!("{what:?} while the arbiter was gone: {}", ends(trial))
}

/// The arbiter dies at about the moment it is asked: it may have answered, or kept the flag and not said so.
fn dies_when_asked(cluster: &mut Cluster, seed: u64, what: Break) -> String {
    let (mut arbiter, mut trial) = with(cluster, seed, Arbiter::start);
    let longest_us = match what {
        Break::Cut => 500_000,
        Break::KillPrimary | Break::KillBackup => 4_000,
    };
    let delay = Duration::from_micros(Rng::new(seed, 7).below(longest_us));
    make(&mut trial, what);
    // The moment of its death is what is tried.
    std::thread::sleep(delay);
    arbiter.kill();
    arbiter.restart();
    format!(
        "{what:?}, the arbiter killed {delay:?} later: {}",
        ends(trial)
    )
}

/// What is left of the store's last page is taken, too, by flags that need less room than a replica's.
fn fill_the_store(at: &str) {
    let arbiter = testandset::parse(&format!("tcp:{at}"), &tls::Security::Loopback).unwrap();
    let (vm, who) = (VmId::new("f").unwrap(), Contender::new("w").unwrap());
    // A page of 4096 bytes has room for no more.
    let full = (1..5000).any(|view| {
        let (vm, view) = (vm.clone(), ViewNumber(view));
        arbiter.test_and_set(&Flag { vm, view }, &who).is_err()
    });
    assert!(full, "the disk is not full");
}

fn disk_is_full(cluster: &mut Cluster, seed: u64, what: Break, unshare: &[&str]) -> String {
    let disk = tempfile::tempdir().unwrap();
    let start = |folder: &Path| Arbiter::start_on_small_disk(folder, unshare, disk.path());
    let (arbiter, mut trial) = with(cluster, seed, start);
    // As the arbiter sees it.
    let root = PathBuf::from(format!("/proc/{}/root", arbiter.daemon.pid()));
    let filler = root
        .join(disk.path().strip_prefix("/").unwrap())
        .join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    fill_the_store(&arbiter.at);
    make(&mut trial, what);
    nobody_goes_live(&trial);
    let events = trial.pair.events();
    let full = |detail: &str| detail.contains("disk is full");
    assert!(events.iter().any(|line| full(&line.detail)), "{events:#?}");
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    format!(
        "{what:?} while the arbiter's disk was full: {}",
        ends(trial)
    )
}

#[test]
fn an_arbiter_that_gives_no_answer() {
    let _machine = machine();
    if !have_kvm("arbiters without an answer") {
        return;
    }
    let mut cluster = cluster("file");
    let probe = tempfile::tempdir().unwrap();
    let unshare = way_to_mount(probe.path());
    if unshare.is_none() {
        let name = format!("{} (on a full disk)", skipped::this_test());
        skipped::skipped(&name, &"no mount namespace can be made here");
    }
    make_trials("an_arbiter_that_gives_no_answer", &COUNT, |seed| {
        let what = BREAKS[usize::try_from((seed + seed / 4) % 3).unwrap()];
        match (seed % 4, unshare) {
            (0, _) => stands_still(&mut cluster, seed, what),
            (1, _) => is_gone(&mut cluster, seed, what),
            (2, Some(unshare)) => disk_is_full(&mut cluster, seed, what, unshare),
            _ => dies_when_asked(&mut cluster, seed, what),
        }
    });
}
